"""What answers questions about clips: a transformers model that takes videos."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

from foveate.asking_again import AskAgain
from foveate.evaluation.blind import Blind
from foveate.evaluation.cropped import Cropped
from foveate.evaluation.engines import Answered, Asker, Item, Spent, Way
from foveate.evaluation.runner import Transformers, count_kept, count_passes, generate, shared, stopwatch
from foveate.inputs import question_prompt
from foveate.pruners.uniform import Uniform
from foveate.resizing import Resize
from foveate.stopwatch import FirstToken, timing
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
    """Asks batches of questions about clips, one clip after the other; the vision tower runs once for each in turn.

    ``taken`` are the milliseconds until the first question about the clip at hand could be asked, and ``encoder`` those
    of the vision tower among them.
    """

    def __init__(self, engine: Filmed, folder: Path) -> None:
        self.engine, self.folder = engine, folder
        self.name = ""
        self.session: VideoSession | None = None
        self.taken = self.encoder = 0.0

    def ask(self, items: Sequence[Item], pruner: Way, max_new_tokens: int) -> tuple[list[Answered], Spent]:
        """See ``Asker``; the milliseconds are means over these questions, each with the whole time of its clip's
        encoding."""
        answered: list[Answered] = []
        parts: list[tuple[Spent, int]] = []
        for image, some in groupby(items, key=lambda item: item.image):
            own = list(some)
            session = self._watch(image)
            if isinstance(pruner, Blind):
                found, spent = self._blind(own, session, max_new_tokens)
            else:
                found, spent = self._ask(own, session, pruner, max_new_tokens)
                encoder = self.encoder + (spent.encoder or 0.0)
                spent = replace(spent, latency=spent.latency + self.taken, encoder=encoder)
            answered += found
            parts.append((spent, len(own)))
        return answered, _mean(parts)

    def _watch(self, image: str) -> VideoSession:
        if self.session is None or self.name != image:
            video = load_video(self.folder / image)
            watching = stopwatch(self.engine.model)
            with timing(watching):
                self.session, self.name = watch(self.engine.model, self.engine.processor, video), image
            self.taken, self.encoder = sum(watching.taken.values()), watching.taken["encoder"]
        return self.session

    @staticmethod
    def _ask(
        items: Sequence[Item], session: VideoSession, pruner: Any, max_new_tokens: int
    ) -> tuple[list[Answered], Spent]:
        asking = stopwatch(session.model)
        with timing(asking):
            answers = session.ask_many(
                [item.question for item in items], pruner, max_new_tokens=max_new_tokens, do_sample=False, num_beams=1,
                logits_processor=[FirstToken(asking)],
            )  # fmt: skip
        counted = count_passes(pruner, answers) if isinstance(pruner, AskAgain) else count_kept(pruner)
        told: list[Answered] = [(answer.text, *counts, None) for answer, counts in zip(answers, counted, strict=True)]
        return told, shared(asking, len(items))

    def _blind(self, items: Sequence[Item], session: VideoSession, max_new_tokens: int) -> tuple[list[Answered], Spent]:
        model, processor = self.engine.model, self.engine.processor
        prompts = [question_prompt(processor, item.question, 0, model) for item in items]
        asking = stopwatch(model)
        with timing(asking):
            texts = generate(
                model, processor, prompts, [()] * len(items), Uniform(keep=1.0), max_new_tokens=max_new_tokens,
                do_sample=False, num_beams=1, logits_processor=[FirstToken(asking)],
            )  # fmt: skip
        total = len(session.images[0].tokens)
        return [(text, 0, total, 0) for text in texts], shared(asking, len(items))


def _mean(parts: Sequence[tuple[Spent, int]]) -> Spent:
    """Of what the questions took, so many of each part."""
    whole = sum(count for _, count in parts)

    def mean(name: str) -> float:
        return sum(getattr(spent, name) * count for spent, count in parts) / whole

    return Spent(*map(mean, ("latency", "encoder", "selection", "prefill")))
