"""Look once, ask often: the vision tower runs once per set of images, the selection once per question."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from foveate.attachment import looking_through
from foveate.call import Call, Options, Positions
from foveate.models.base import EncodedImage, Layout, Newlines
from foveate.prompts import adds_special_tokens
from foveate.pruners.base import Pruner
from foveate.pruners.uniform import Uniform
from foveate.tokens import Selection


@dataclass(frozen=True)
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
    """

    question: str
    text: str
    selections: Sequence[Selection] = field(repr=False)
    visual_tokens: int
    prompt_tokens: int
    sequence: Tensor = field(repr=False)
    new_tokens: int


def question_prompt(processor: Any, question: str, images: int) -> str:
    """The text for a processor: its chat template around the images and the question, else a plain one.

    Raises:
        ValueError: the question is empty.
    """
    if not question.strip():
        raise ValueError("the question is empty")
    if getattr(processor, "chat_template", None):
        content = [{"type": "image"}] * images + [{"type": "text", "text": question}]
        rendered: str = processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True
        )
        return rendered
    marks = f"{processor.image_token}\n" * images
    return f"USER: {marks}{question} ASSISTANT:"


class Session:
    """Encoded images that questions can be asked about; made by ``foveate.look``."""

    def __init__(self, model: Any, processor: Any, images: Sequence[EncodedImage], layout: Layout) -> None:
        self.model = model
        self.processor = processor
        self.images = images
        self.layout = layout

    def prompt(self, question: str) -> str:
        """The text for the processor: see ``question_prompt``."""
        return question_prompt(self.processor, question, len(self.images))

    def ask(self, question: str, pruner: Pruner | None = None, **options: Any) -> Answer:
        """Answers one question. See ``ask_many``."""
        return self.ask_many([question], pruner, **options)[0]

    def ask_many(
        self,
        questions: Sequence[str],
        pruner: Pruner | None = None,
        *,
        positions: Positions = "compact",
        newlines: Newlines = "drop",
        turn_end: Sequence[Sequence[int]] | None = None,
        max_new_tokens: int = 64,
        **generate_options: Any,
    ) -> list[Answer]:
        """Answers several questions about the same images as one batch; each as if it had been asked alone.

        Args:
            questions: one prompt each, about all of the session's images.
            pruner: which tokens stay; None keeps all.
            positions, newlines, turn_end: see ``foveate.attach``.
            max_new_tokens: longest answer, tokens.
            generate_options: for the model's own ``generate`` (``num_return_sequences`` must stay 1).

        Raises:
            ValueError: an empty question, or options that ``foveate.attach`` refuses.
        """
        if not questions:
            return []
        pruner = Uniform(keep=1.0) if pruner is None else pruner
        options = Options(positions=positions, newlines=newlines, layout=self.layout, turn_end=turn_end)
        inputs = self._tokenize([self.prompt(question) for question in questions])
        images = [image for _ in questions for image in self.images]
        with looking_through(self.model) as site:
            call = Call(site.family, pruner, options, site.features, images)
            sequences = call.generate(
                site.originals["generate"],
                **inputs,
                # The model only asks how many there are: the features are delivered.
                pixel_values=torch.zeros(len(images), 1, device=self.model.device, dtype=self.model.dtype),
                max_new_tokens=max_new_tokens,
                return_dict_in_generate=False,
                **generate_options,
            )
        if len(sequences) != len(questions):
            raise ValueError("num_return_sequences must be 1 in a session: one answer per question")
        length = inputs["input_ids"].shape[1]
        each = len(self.images)
        return [
            Answer(
                question=question,
                text=self.processor.tokenizer.decode(sequence[length:], skip_special_tokens=True).strip(),
                selections=pruner.selections[number * each : (number + 1) * each],
                visual_tokens=call.visual_tokens[number],
                prompt_tokens=call.prompt_tokens,
                sequence=sequence,
                new_tokens=len(sequence) - length,
            )
            for number, (question, sequence) in enumerate(zip(questions, sequences, strict=True))
        ]

    def _tokenize(self, prompts: Sequence[str]) -> dict[str, Any]:
        mark = self.processor.image_token
        tokenizer = self.processor.tokenizer
        texts = []
        for prompt in prompts:
            parts = prompt.split(mark)
            if len(parts) != len(self.images) + 1:
                raise ValueError(
                    f"the prompt has {len(parts) - 1} image tokens for {len(self.images)} images; the question must "
                    f"not contain {mark!r} itself"
                )
            runs = [mark * image.placeholders for image in self.images]
            texts.append("".join(part + run for part, run in zip(parts, [*runs, ""], strict=True)))
        batch = tokenizer(
            texts,
            return_tensors="pt",
            padding=True,
            padding_side="left",
            add_special_tokens=adds_special_tokens(self.processor, texts[0]),
        )
        return {name: batch[name].to(self.model.device) for name in ("input_ids", "attention_mask")}


def look(model: Any, processor: Any, images: Image | Sequence[Image], *, layout: Layout = "stock") -> Session:
    """Runs the vision tower over one or several images and keeps what it gave, so that many questions can be asked.

    Args:
        model: a stock transformers model of a known family.
        processor: its processor.
        images: PIL images, in the order they shall stand in the prompt.
        layout: see ``foveate.attach``.

    Returns:
        A session; its answers equal those of separate calls.

    Raises:
        ValueError: no image, an unknown family, or a model that cannot be pruned faithfully.
    """
    images = [images] if isinstance(images, Image) else list(images)
    if not images:
        raise ValueError("no image to look at")
    inputs = processor.image_processor(images, return_tensors="pt")
    inputs = {
        name: value.to(model.device, model.dtype) if value.is_floating_point() else value.to(model.device)
        for name, value in inputs.items()
        if torch.is_tensor(value)
    }
    with looking_through(model) as site, torch.no_grad():
        if layout not in site.family.layouts:
            raise ValueError(f"{site.family.title} has no layout {layout!r}; known: {', '.join(site.family.layouts)}")
        encoded = site.family.encode(inputs, saliency=True, layout=layout, features=site.features)
    return Session(model, processor, encoded, layout)
