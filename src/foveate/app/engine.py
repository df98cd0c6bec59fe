"""The model behind the page: it looks, chooses and answers, for one visitor at a time, and measures as it goes."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL.Image import Image
from PIL.Image import new as new_image
from transformers import StoppingCriteriaList

from foveate.app.streaming import Chosen, Stop, Streamer, Told
from foveate.crops import Crops
from foveate.looking_ahead import choose, point
from foveate.pruners import Method, get_pruner
from foveate.pruners.inside import InsidePruner
from foveate.session import Session, look

ALL = "all tokens"
"""What stands in a method's place where nothing is pruned."""
STEPS = (1, 0.1, 0.01)
"""Of sliders, %."""
LONGEST = 50_000
"""Letters of a question that is not even looked at."""
GREEDY: dict[str, Any] = {"do_sample": False, "num_beams": 1}


@dataclass(frozen=True)
class Side:
    """One of the two ways in which a question is answered.

    Args:
        method: a method's name, options behind it as for ``foveate.get_pruner``; or ``ALL``.
        percent: what stays of each picture's tokens, in (0, 100].
    """

    method: str = ALL
    percent: float = 100.0

    @property
    def keep(self) -> float:
        """The budget as a fraction."""
        return 1.0 if self.method == ALL else round(self.percent / 100, 6)

    @property
    def step(self) -> float:
        """How finely a slider must go for the percentage to lie on it: 1 where it can, else 0.1 or 0.01."""
        return next((step for step in STEPS if round(self.percent % step, 6) in (0, step)), STEPS[-1])

    @property
    def title(self) -> str:
        """For people."""
        return ALL if self.method == ALL else f"{self.method}, {self.percent:g} %"

    def pruner(self) -> Method | None:
        """The method with its budget.

        Raises:
            ValueError, TypeError: no such method, or options that it refuses.
        """
        return None if self.method == ALL else get_pruner(self.method, keep=self.keep)


START = (Side(percent=10.0), Side(method="adafv", percent=10.0))
"""What stands on the two sides at first."""


@dataclass(frozen=True, eq=False)
class Looked:
    """Pictures that have been through the vision tower.

    Args:
        session: to ask.
        pictures: as they were given; the session's may be resized.
        encode_ms: processor and vision tower, milliseconds.
    """

    session: Session
    pictures: Sequence[Image]
    encode_ms: float


class Explorer:
    """A model that visitors ask. Any thread; only one of them runs the model at a time, so that times are true.

    Args:
        model, processor: as ``foveate.loading.load`` gives them.
        name: what to call the model.
        crops, pixels: see ``foveate.look``.
        max_new_tokens: longest answer, tokens.
        dtype: as the model was loaded, for the code that is shown.
        start: what stands on the two sides at first; default all tokens, and a tenth by ``adafv``.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        *,
        name: str = "bundled",
        crops: str | None = None,
        pixels: float | int | str | None = None,
        max_new_tokens: int = 64,
        dtype: str = "auto",
        start: tuple[Side, Side] = START,
    ) -> None:
        self.model = model
        self.processor = processor
        self.name = name
        self.crops = Crops.of(crops)
        self.crops_given = crops
        self.pixels = pixels
        self.max_new_tokens = max_new_tokens
        self.dtype = dtype
        self.start = start
        self.lock = threading.Lock()

    def warm(self) -> None:
        """Looks and answers once: what visitors are told is not to be the price of a beginning."""
        looked = self.look([new_image("RGB", (336, 336), "grey")])
        with self.lock:
            looked.session.ask("?", max_new_tokens=1, **GREEDY)

    def look(self, pictures: Sequence[Image]) -> Looked:
        """Runs the vision tower.

        Raises:
            ValueError, TypeError: as ``foveate.look``.
        """
        with self.lock:
            began = time.perf_counter()
            session = look(self.model, self.processor, pictures, crops=self.crops, pixels=self.pixels)
            self._settle()
            return Looked(session, list(pictures), (time.perf_counter() - began) * 1e3)

    def choose(self, looked: Looked, question: str, side: Side) -> Chosen:
        """What a side would keep. The vision tower does not run again, the language model not at all.

        Raises:
            ValueError, TypeError: as ``Side.pruner`` and ``looking_ahead.choose``; a question that is too long.
        """
        self._check(question)
        pruner = side.pruner()
        if isinstance(pruner, InsidePruner):
            return Chosen()
        with self.lock:
            selections = choose(looked.session, question, pruner or get_pruner("uniform", keep=1.0))
            return Chosen(selections, point(looked.session, question, selections))

    def ask(self, looked: Looked, question: str, side: Side) -> Iterator[Told]:
        """The answer as it comes; the last one is done. Who is slower than the model misses steps between; who closes
        the iterator stops it.

        Raises:
            ValueError, TypeError: as ``Session.ask``; a question that is too long for the model.
        """
        self._check(question)
        pruner = side.pruner()
        self._check_length(looked, question, side)
        streamer, stop = Streamer(self.processor.tokenizer), threading.Event()
        worker = threading.Thread(
            target=self._answer, args=(looked, question, pruner, streamer, stop), name="foveate-answer", daemon=True
        )
        worker.start()
        try:
            while True:
                told = streamer.newest()
                if isinstance(told, BaseException):
                    raise told
                yield told
                if told.done:
                    return
        finally:
            stop.set()

    def _answer(
        self, looked: Looked, question: str, pruner: Method | None, streamer: Streamer, stop: threading.Event
    ) -> None:
        """In a thread of its own: whoever asked may be gone before the model is done with it."""
        try:
            with self.lock:
                if stop.is_set():
                    return
                watch = self.model.register_forward_hook(streamer.see_cache)
                try:
                    streamer.begin()
                    answer = looked.session.ask(
                        question,
                        pruner,
                        max_new_tokens=self.max_new_tokens,
                        streamer=streamer,
                        stopping_criteria=StoppingCriteriaList([Stop(stop)]),
                        **GREEDY,
                    )
                finally:
                    watch.remove()
                pointings = point(looked.session, question, answer.selections)
                streamer.told.put(
                    replace(
                        streamer.so_far,
                        text=answer.text,
                        done=True,
                        visual_tokens=answer.visual_tokens,
                        prompt_tokens=answer.prompt_tokens,
                        chosen=Chosen(answer.selections, pointings),
                    )
                )
        except BaseException as error:  # raised where it is waited for
            streamer.told.put(error)

    def _check(self, question: str) -> None:
        if not question.strip():
            raise ValueError("the question is empty")
        if len(question) > LONGEST:
            raise ValueError(f"the question has {len(question):,} letters; at most {LONGEST:,} are read: shorten it")

    def _check_length(self, looked: Looked, question: str, side: Side) -> None:
        """Raises ValueError where prompt and answer do not fit into what the model reads."""
        limit = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        if not isinstance(limit, int):
            return
        prompt = looked.session.arguments([question])["input_ids"].shape[1]
        selections = self.choose(looked, question, side).selections
        prompt -= sum(selection.total - len(selection) for selection in selections)
        if prompt + self.max_new_tokens > limit:
            raise ValueError(
                f"this is too long for the model: a prompt of {prompt:,} tokens under {side.title} and "
                f"{self.max_new_tokens} for the answer, of {limit:,} that it reads. Shorten the question, or keep "
                "fewer visual tokens"
            )

    def _settle(self) -> None:
        if self.model.device.type == "cuda":
            torch.cuda.synchronize(self.model.device)
