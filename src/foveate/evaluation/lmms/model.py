"""``--model foveate`` of lmms-eval: a stock transformers model under a pruner."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from accelerate import Accelerator
from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from lmms_eval.protocol import ChatMessages
from loguru import logger
from tqdm import tqdm

from foveate.evaluation.runner import count_kept, generate
from foveate.inputs import question_prompt
from foveate.keep import Keep
from foveate.loading import load
from foveate.pruners import get_pruner

UNPRUNED = ("all", "none")
ATTACHING = ("positions", "newlines", "layout")


class Foveate(lmms):
    """A vision-language model that answers with part of its visual tokens.

    Args (``--model_args``):
        pretrained: checkpoint folder or hub id; default the model that ships with Foveate.
        method: one of ``foveate.METHODS``, or ``all`` to keep every token.
        keep: as for ``foveate.Keep.read``, since it is typed on a command line: 0.1, ``10%``, ``64t``. Default 0.1.
        dtype: ``auto``, ``float32``, ``bfloat16`` or ``float16``.
        device: default ``cuda`` where there is one, else ``cpu``.
        batch_size: most requests answered at once; lmms-eval's own option.
        positions, newlines, layout: see ``foveate.attach``.
        options: the method's own, such as ``variant=released``.

    Raises:
        ValueError, TypeError: an unknown method or option, an impossible budget, a model that cannot be loaded.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str | None = None,
        method: str = "adafv",
        keep: float | int | str = 0.1,
        dtype: str = "auto",
        device: str | None = None,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        if not str(batch_size).isdigit() or int(batch_size) < 1:
            raise ValueError(f"batch_size must be a number of at least 1, got {batch_size!r}")
        self.attaching = {name: options.pop(name) for name in ATTACHING if name in options}
        unpruned = method in UNPRUNED
        kept = Keep.read(keep).value
        self.pruner = get_pruner("uniform", keep=1.0) if unpruned else get_pruner(method, keep=kept, **options)
        if unpruned and options:
            raise ValueError(f"method={method} keeps every token and has no options, got {', '.join(options)}")
        self.accelerator = Accelerator()
        if self.accelerator.num_processes > 1:
            device = str(self.accelerator.device)
        self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
        self.model, self.processor = load(pretrained, dtype=dtype, device=device)
        self.batch_size = int(batch_size)
        self.kept = self.total = 0

    @property
    def device(self) -> Any:
        """Where the model is."""
        return self.model.device

    @property
    def tokenizer(self) -> Any:
        """The processor's."""
        return self.processor.tokenizer

    def generate_until(self, requests: Sequence[Instance]) -> list[str]:
        """Answers every request, in batches of those that ask for the same kind of answer."""
        answers = [""] * len(requests)
        groups: dict[str, list[int]] = {}
        for place, request in enumerate(requests):
            groups.setdefault(repr(sorted(request.args[2].items())), []).append(place)
        with tqdm(total=len(requests), disable=self.rank != 0, desc="foveate") as bar:
            for places in groups.values():
                for start in range(0, len(places), self.batch_size):
                    batch = places[start : start + self.batch_size]
                    read = {place: self._messages(requests[place]) for place in batch}
                    for seen in (True, False):  # a processor takes pictures for all prompts of a batch, or for none
                        asked = [place for place in batch if bool(read[place].extract_media()[0]) is seen]
                        told = self._answer([requests[place] for place in asked], [read[place] for place in asked])
                        for place, text in zip(asked, told, strict=True):
                            answers[place] = text
                    bar.update(len(batch))
        if self.total:
            share = f"{self.kept} of {self.total} visual tokens ({100 * self.kept / self.total:.2f} %)"
            logger.info(f"foveate: {self.pruner} kept {share}")
        return answers

    def _messages(self, request: Instance) -> ChatMessages:
        _, to_messages, _, number, task, split = request.args
        return ChatMessages(messages=to_messages(self.task_dict[task][split][number]))

    def _answer(self, requests: Sequence[Instance], read: Sequence[ChatMessages]) -> list[str]:
        if not requests:
            return []
        media = [messages.extract_media() for messages in read]
        if any(videos or audios for _, videos, audios in media):
            raise ValueError("foveate answers about images only: videos and sounds were asked about")
        pictures = [[image.convert("RGB") for image in images] for images, _, _ in media]
        prompts = [self._prompt(messages, len(images)) for messages, images in zip(read, pictures, strict=True)]
        options = dict(requests[0].args[2])
        stops = options.pop("until", None) or []
        sampled = options.pop("do_sample", None) or float(options.get("temperature") or 0) > 0
        if not sampled:  # where nothing is drawn, transformers warns of how it should be drawn
            for name in ("temperature", "top_p", "top_k"):
                options.pop(name, None)
        options.setdefault("max_new_tokens", 1024)
        texts = generate(
            self.model,
            self.processor,
            prompts,
            pictures,
            self.pruner,
            attaching=self.attaching,
            do_sample=bool(sampled),
            **options,
        )
        for kept, total in count_kept(self.pruner):
            self.kept, self.total = self.kept + kept, self.total + total
        for request, text in zip(requests, texts, strict=True):
            self.cache_hook.add_partial("generate_until", (request.args[0], request.args[2]), text)
        return [_cut(text, [stops] if isinstance(stops, str) else stops) for text in texts]

    def _prompt(self, messages: ChatMessages, images: int) -> str:
        if getattr(self.processor, "chat_template", None):
            told = messages.to_hf_messages()
            for message in told:  # the pictures go to the processor; the template only wants to know where they stand
                message["content"] = [
                    {"type": "image"} if content["type"] == "image" else content for content in message["content"]
                ]
            return str(self.processor.apply_chat_template(told, add_generation_prompt=True))
        if [message.role for message in messages.messages] != ["user"]:
            raise ValueError(
                "the processor has no chat template, and without one only a single question can be put: use a "
                "checkpoint whose processor has one"
            )
        contents = messages.messages[0].content
        question = "\n".join(content.text for content in contents if content.type == "text")
        return question_prompt(self.processor, question, images, self.model)

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        """Not supported."""
        raise NotImplementedError("foveate generates answers only: choose tasks whose output_type is generate_until")

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> list[str]:
        """Not supported."""
        raise NotImplementedError(
            "foveate answers single rounds only: choose tasks whose output_type is generate_until"
        )


def _cut(text: str, stops: Sequence[str]) -> str:
    """The text before the first of the stops."""
    return text[: min((text.index(stop) for stop in stops if stop and stop in text), default=len(text))]
