"""What answers questions about clips: a transformers model that takes videos."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from foveate.asking_again import AskAgain
from foveate.evaluation.blind import Blind
from foveate.evaluation.cropped import Cropped
from foveate.evaluation.engines import Answered, Asker, Item, Way
from foveate.evaluation.runner import Transformers, count_kept, count_passes, generate
from foveate.inputs import question_prompt
from foveate.pruners.uniform import Uniform
from foveate.resizing import Resize
from foveate.videos import load_video
from foveate.watching import VideoSession, watch


class Filmed(Transformers):
    """As ``Transformers``, of whom the items' pictures are clips.

    Args:
        model, processor: of a family that takes videos.
    """

    def __init__(self, model: Any, processor: Any) -> None:
        super().__init__(model, processor)

    def require(self, method: str, pruners: Sequence[Way]) -> None:
        """Every method runs here, without crops and at the clips' own size."""
        if any(isinstance(one, (Resize, Cropped)) for one in pruners):
            raise ValueError(f"{method} is for pictures, and these are clips: leave it out")
        super().require(method, pruners)

    def require_sizes(self, resize: Resize, sizes: Sequence[tuple[int, int]]) -> None:
        """Raises ValueError: clips are seen at their size."""
        raise ValueError("it makes pictures smaller, and these are clips")

    def asker(self, folder: Path, across: bool) -> Asker:
        return _Clips(self, folder)


class _Clips:
    """Asks batches of questions about clips, one clip after the other; the vision tower runs once for each in turn."""

    def __init__(self, engine: Filmed, folder: Path) -> None:
        self.engine, self.folder = engine, folder
        self.name = ""
        self.session: VideoSession | None = None
        self.watching = 0.0

    def ask(self, items: Sequence[Item], pruner: Way, max_new_tokens: int) -> tuple[list[Answered], float]:
        """See ``Asker``; the milliseconds are means over these questions, each with the whole time of its clip's
        encoding."""
        answered: list[Answered] = []
        spent = 0.0
        for image, some in groupby(items, key=lambda item: item.image):
            own = list(some)
            session = self._watch(image)
            if isinstance(pruner, Blind):
                found, seconds = self._blind(own, session, max_new_tokens)
            else:
                found, seconds = self._ask(own, session, pruner, max_new_tokens)
                seconds += self.watching * len(own)
            answered += found
            spent += seconds
        return answered, spent * 1e3 / len(items)

    def _watch(self, image: str) -> VideoSession:
        if self.session is None or self.name != image:
            video = load_video(self.folder / image)
            start = _now(self.engine.model)
            self.session, self.name = watch(self.engine.model, self.engine.processor, video), image
            self.watching = _now(self.engine.model) - start
        return self.session

    @staticmethod
    def _ask(
        items: Sequence[Item], session: VideoSession, pruner: Any, max_new_tokens: int
    ) -> tuple[list[Answered], float]:
        start = _now(session.model)
        answers = session.ask_many(
            [item.question for item in items], pruner, max_new_tokens=max_new_tokens, do_sample=False, num_beams=1
        )
        seconds = _now(session.model) - start
        counted = count_passes(pruner, answers) if isinstance(pruner, AskAgain) else count_kept(pruner)
        return [(answer.text, *counts, None) for answer, counts in zip(answers, counted, strict=True)], seconds

    def _blind(self, items: Sequence[Item], session: VideoSession, max_new_tokens: int) -> tuple[list[Answered], float]:
        model, processor = self.engine.model, self.engine.processor
        start = _now(model)
        prompts = [question_prompt(processor, item.question, 0, model) for item in items]
        texts = generate(
            model, processor, prompts, [()] * len(items), Uniform(keep=1.0), max_new_tokens=max_new_tokens,
            do_sample=False, num_beams=1,
        )  # fmt: skip
        total = len(session.images[0].tokens)
        return [(text, 0, total, 0) for text in texts], _now(model) - start


def _now(model: Any) -> float:
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    return time.perf_counter()
