"""Look once, ask often: the vision tower runs once per set of images, the selection once per question."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from foveate.asking_again import AskAgain
from foveate.attachment import check_model
from foveate.crops import Crops
from foveate.inputs import PROBE, image_mark, input_device, picture_list, probe_inputs, process, question_prompt
from foveate.instrumented import looking_through
from foveate.locks import lock_of
from foveate.models import family_for
from foveate.models.encoded import EncodedImage, Kind, Layout, Newlines, Positions, Request
from foveate.models.view_store import Views, ViewStore
from foveate.options import Options
from foveate.pixels import resized, warn_fixed
from foveate.pruners.base import Method
from foveate.pruners.uniform import Uniform
from foveate.stateless import run
from foveate.stopwatch import stage
from foveate.tokens import Selection
from foveate.turns import adds_special_tokens

PER_TOKEN = ("input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids")
"""What a processor gives with one entry per prompt token."""


@dataclass(frozen=True, eq=False)
class Answer:
    """What a question about a session's images gave.

    Args:
        question: as asked.
        text: the model's answer, special tokens left out.
        selections: one per image.
        visual_tokens: visual tokens (newlines included, where kept) that reached the LLM.
        prompt_tokens: length of the prompt that reached the LLM.
        sequence: (S + new,) int64: the whole prompt's ids, then the answer's.
        new_tokens: how many ids of ``sequence`` are the answer's (padding after an early end included).
        margin: with ``AskAgain``, how sure the model was of the first pass; else None.
        before: the first pass's answer where ``AskAgain`` asked again: all else here is then of the second.
    """

    question: str
    text: str
    selections: Sequence[Selection] = field(repr=False)
    visual_tokens: int
    prompt_tokens: int
    sequence: Tensor = field(repr=False)
    new_tokens: int
    margin: float | None = None
    before: Answer | None = field(default=None, repr=False)

    @property
    def asked_again(self) -> bool:
        """Whether this is the second pass's answer."""
        return self.before is not None

    @property
    def tokens_spent(self) -> int:
        """``visual_tokens`` of every pass that it took, together."""
        return self.visual_tokens + (0 if self.before is None else self.before.tokens_spent)


class Session:
    """Encoded images that questions can be asked about; made by ``foveate.look``.

    Args:
        model, processor: as given to ``look``.
        pictures: the images as the processor sees them: as given, or resized.
        views: the same, encoded (Gemma 3: with pan-and-scan, its crops too), or as far as questions have asked for.
        inputs: what the processor made of a probe prompt with them, pixels included.
        layout, crops: see ``foveate.attach``.
        kind: what the pictures are to the model: images, or one video (``foveate.watching``).
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        pictures: Sequence[Image],
        views: Views,
        inputs: Mapping[str, Tensor],
        layout: Layout,
        crops: Crops | None = None,
        kind: Kind = "image",
    ) -> None:
        self.model = model
        self.processor = processor
        self.pictures = pictures
        self.layout = layout
        self.crops = crops
        self.views = views
        family = family_for(model)
        self._token = family.placeholder_ids[kind]
        # The features are delivered; the model only asks how many images there are, and how they are shaped.
        names = family.inputs_of(kind)
        self._image_inputs = {name: inputs[name] for name in names if name in inputs}
        self._image_inputs[names[0]] = inputs[names[0]].new_zeros(len(inputs[names[0]]), 1)
        # Where writing runs of placeholders is all that the processor does to a prompt, its work on the pixels need
        # not be repeated for every question.
        self._by_runs = self._equals(inputs, lambda: self._write_runs([self.prompt(PROBE)]))

    @property
    def images(self) -> Sequence[EncodedImage]:
        """The pictures after the vision tower; with ``crops``, what is not encoded yet is zero."""
        return self.views.images

    @staticmethod
    def _equals(inputs: Mapping[str, Tensor], written: Callable[[], Mapping[str, Tensor]]) -> bool:
        try:
            ours = written()
        except (ValueError, AttributeError):
            return False
        theirs = {name: inputs[name] for name in PER_TOKEN if name in inputs}
        return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)

    def prompt(self, question: str) -> str:
        """The text for the processor: see ``question_prompt``."""
        return question_prompt(self.processor, question, len(self.pictures), self.model)

    def ask(self, question: str, pruner: Method | AskAgain | None = None, **options: Any) -> Answer:
        """Answers one question. See ``ask_many``."""
        return self.ask_many([question], pruner, **options)[0]

    def ask_many(
        self,
        questions: Sequence[str],
        pruner: Method | AskAgain | None = None,
        *,
        positions: Positions | None = None,
        newlines: Newlines = "drop",
        turn_end: Sequence[Sequence[int]] | None = None,
        calibrate: bool | float = False,
        crops: Crops | float | int | str | None = None,
        max_new_tokens: int = 64,
        **generate_options: Any,
    ) -> list[Answer]:
        """Answers several questions about the same images as one batch; each as if it had been asked alone.

        Args:
            questions: one prompt each, about all of the session's images.
            pruner: which tokens stay; None keeps all. With ``AskAgain``, the questions whose answers are unsure are
                asked again, as one batch.
            positions, newlines, turn_end, calibrate: see ``foveate.attach``.
            crops: likewise; by default what ``look`` was told. A crop is encoded when a question first asks for it, and
                no question chooses among more crops than it asked for.
            max_new_tokens: longest answer, tokens.
            generate_options: for the model's own ``generate`` (``num_return_sequences`` must stay 1).

        Raises:
            ValueError: an empty question, or options that ``foveate.attach`` or ``AskAgain`` refuses.
        """
        if not questions:
            return []
        if isinstance(pruner, AskAgain):
            given: dict[str, Any] = {"positions": positions, "newlines": newlines, "turn_end": turn_end}
            given |= {"calibrate": calibrate, "crops": crops}
            return pruner.ask(self, questions, {**given, "max_new_tokens": max_new_tokens, **generate_options})
        pruner = Uniform(keep=1.0) if pruner is None else pruner
        crops = self.crops if crops is None else crops
        options = Options(positions, newlines, self.layout, turn_end, self.processor, calibrate, crops)
        inputs = self.arguments(questions)
        limits = {"max_new_tokens": max_new_tokens, "return_dict_in_generate": False}
        call, sequences = run(self.model, pruner, options, (), {**inputs, **limits, **generate_options}, self.views)
        call.mirror()
        if len(sequences) != len(questions):
            raise ValueError("num_return_sequences must be 1 in a session: one answer per question")
        length = inputs["input_ids"].shape[1]
        each = len(self.images)
        with lock_of(self.processor.tokenizer):
            texts = [self.processor.tokenizer.decode(one[length:], skip_special_tokens=True) for one in sequences]
        return [
            Answer(
                question=question,
                text=text.strip(),
                selections=call.selections[number * each : (number + 1) * each],
                visual_tokens=call.visual_tokens[number],
                prompt_tokens=call.prompt_tokens,
                sequence=sequence,
                new_tokens=len(sequence) - length,
            )
            for number, (question, sequence, text) in enumerate(zip(questions, sequences, texts, strict=True))
        ]

    def arguments(self, questions: Sequence[str]) -> dict[str, Any]:
        """What the model's ``generate`` is called with for questions about the images, their pixels left out."""
        inputs = self._tokenize([self.prompt(question) for question in questions])
        rows = len(questions)
        return inputs | {
            name: value.repeat(rows, *[1] * (value.ndim - 1)) for name, value in self._image_inputs.items()
        }

    def _tokenize(self, prompts: Sequence[str]) -> dict[str, Any]:
        for prompt in prompts:
            self._count_marks(prompt)
        if self._by_runs:
            return self._write_runs(prompts)
        inputs = process(self.processor, self.model, prompts, self.pictures)
        return {name: inputs[name] for name in PER_TOKEN if name in inputs}

    def _count_marks(self, prompt: str) -> list[str]:
        mark = image_mark(self.processor)
        parts = prompt.split(mark)
        if len(parts) != len(self.pictures) + 1:
            raise ValueError(
                f"the prompt has {len(parts) - 1} image tokens for {len(self.pictures)} images; the question must "
                f"not contain {mark!r} itself"
            )
        return parts

    def _write_runs(self, prompts: Sequence[str]) -> dict[str, Any]:
        texts = []
        for prompt in prompts:
            runs = [self.processor.image_token * image.placeholders for image in self.images]
            parts = self._count_marks(prompt)
            texts.append("".join(part + run for part, run in zip(parts, [*runs, ""], strict=True)))
        with lock_of(self.processor.tokenizer):
            batch = self.processor.tokenizer(
                texts,
                return_tensors="pt",
                padding=True,
                padding_side="left",
                add_special_tokens=adds_special_tokens(self.processor, texts[0]),
            )
        device = input_device(self.model)
        found = {name: batch[name].to(device) for name in ("input_ids", "attention_mask")}
        if "mm_token_type_ids" in getattr(self.processor, "model_input_names", ()):
            found["mm_token_type_ids"] = (found["input_ids"] == self._token).long()
        return found


def look(
    model: Any,
    processor: Any,
    images: Image | Sequence[Image],
    *,
    layout: Layout = "stock",
    crops: Crops | float | int | str | None = None,
    pixels: float | int | str | None = None,
) -> Session:
    """Runs the vision tower over one or several images and keeps what it gave, so that many questions can be asked.

    Args:
        model: a stock transformers model of a known family.
        processor: its processor.
        images: PIL images, in the order they shall stand in the prompt.
        layout: see ``foveate.attach``.
        crops: likewise: only the base view is encoded now, and a crop when a question first asks for it.
        pixels: how large the images are when the processor sees them, see ``foveate.Pixels``; default as they are.

    Returns:
        A session; its answers equal those of separate calls.

    Raises:
        ValueError: no image, an unknown family, a model that cannot be pruned faithfully, or no such ``pixels``.
        TypeError: what is handed over is no model, no processor or no picture; the message says what to write.
    """
    check_model(model)
    if hasattr(processor, "generate"):
        raise TypeError("expected the model's processor, got a model: look(model, processor, images)")
    pictures = picture_list(images)
    if pixels is not None:
        pictures = resized(pictures, pixels, model, processor)
    inputs, prompt = probe_inputs(processor, model, pictures)
    with looking_through(model) as instrumented, torch.no_grad():
        inputs = instrumented.family.named(inputs)
        options = Options(layout=layout, crops=crops)
        options.check(instrumented.family)
        if pixels is not None:
            warn_fixed(instrumented.family)

        def encode(store: ViewStore | None = None) -> Sequence[EncodedImage]:
            with looking_through(model) as site, torch.no_grad(), stage("encoder"):
                request = Request(
                    site.features["image"], keys=True, encoded=True, layout=layout, prompt=prompt, views=store
                )
                return site.family.encode(inputs, request)

        routed = options.routed
        if routed is None:
            views = Views.of(encode())
        else:
            views = Views(encode, instrumented.family, inputs, prompt, at_once=not routed.ranks)
    return Session(model, processor, pictures, views, inputs, layout, routed)
