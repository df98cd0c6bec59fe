"""What one visitor has before them: pictures, a question, two sides with what they keep and answer. Nobody else's."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from PIL.Image import Image

from foveate.app.engine import START, Chosen, Explorer, Looked, Side, Told
from foveate.app.snippets import Source
from foveate.cli.console import told
from foveate.evaluation.worlds import get_world
from foveate.images import load_image

MANY = 10_000
"""Drawn pictures to choose from, per world."""


@dataclass(eq=False)
class Shown:
    """One side.

    Args:
        side: its method and budget.
        chosen: what it would keep, or kept; None: not known.
        told: its answer, as far as it has come; None: not asked.
        note: what keeps it from either.
    """

    side: Side
    chosen: Chosen | None = None
    told: Told | None = None
    note: str = ""


@dataclass(eq=False)
class Visit:
    """A visitor's state; see the module."""

    looked: Looked | None = None
    sources: Sequence[Source] = ()
    question: str = ""
    sides: list[Shown] = field(default_factory=lambda: [Shown(side) for side in START])

    @classmethod
    def begun(cls, explorer: Explorer) -> Visit:
        """One that has seen nothing, with what stands on the explorer's sides at first."""
        return cls(sides=[Shown(side) for side in explorer.start])

    def take_files(self, explorer: Explorer, paths: Sequence[str | os.PathLike[str]]) -> str:
        """Reads pictures and looks at them; what stood there before goes. After an error it stays.

        Returns:
            What is to be said of the files, or nothing.

        Raises:
            ValueError, FileNotFoundError: as ``load_image``, by the file's own name; or as ``Explorer.look``.
        """
        pictures, said = [], []
        for path in paths:
            name = os.path.basename(path)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                try:
                    pictures.append(load_image(path))
                except (ValueError, FileNotFoundError) as error:
                    raise type(error)(str(error).replace(os.fspath(path), name)) from None
            said += [str(one.message).replace(os.fspath(path), name) for one in caught if one.category is UserWarning]
        self._take(explorer, pictures, [Source(os.path.basename(path)) for path in paths])
        return " ".join(said)

    def take_drawn(self, explorer: Explorer, world: str, index: int) -> list[tuple[str, str]]:
        """Draws a picture and looks at it.

        Returns:
            Its questions, each with its answer.

        Raises:
            ValueError: no such world or number.
        """
        if not 0 <= index < MANY:
            raise ValueError(f"drawn pictures have numbers from 0 to {MANY - 1}, got {index}")
        drawing = get_world(world).draw(0, index=index)
        self._take(explorer, [drawing.picture], [Source.drawn(world, index)])
        return [(asked.text, asked.answers[0]) for asked in drawing.questions]

    def clear(self) -> None:
        """No pictures any more."""
        self.looked, self.sources = None, ()
        self._forget()

    def set(self, explorer: Explorer, question: str, sides: Sequence[Side]) -> bool:
        """The question and the sides as they are on the page: whatever of the selections and answers is no longer true
        goes, and what would be kept is chosen anew, without encoding again.

        Returns:
            Whether anything that is shown is another than before.
        """
        before = self._all_shown()
        if question != self.question:
            self.question = question
            self._forget()
        for number, side in enumerate(sides):
            if self.sides[number].side != side:
                self.sides[number] = Shown(side)
            self._choose(explorer, self.sides[number])
        return self._all_shown() != before

    def ask(self, explorer: Explorer) -> Iterator[None]:
        """Asks both sides, one after the other, so that each has the machine to itself; yields as they come.

        Raises:
            ValueError: there is no picture or no question.
        """
        if self.looked is None:
            raise ValueError("there is no picture yet: drop one in, or draw a scene")
        if not self.question.strip():
            raise ValueError("the question is empty: write one")
        looked, question = self.looked, self.question
        for shown in self.sides:
            shown.told = None
        for shown in list(self.sides):
            try:
                for step in explorer.ask(looked, question, shown.side):
                    shown.told, shown.note = step, ""
                    if step.done:
                        shown.chosen = step.chosen
                    yield
            except (ValueError, TypeError, RuntimeError) as error:
                # Also what torch raises, out of memory for one: the other side may fit.
                shown.told, shown.note = None, told(error)
                yield

    def _take(self, explorer: Explorer, pictures: list[Image], sources: Sequence[Source]) -> None:
        if not pictures:
            self.clear()
            return
        looked = explorer.look(pictures)
        self.looked, self.sources = looked, tuple(sources)
        self._forget()

    def _all_shown(self) -> list[tuple[Shown, Chosen | None, str]]:
        return [(shown, shown.chosen, shown.note) for shown in self.sides]

    def _forget(self) -> None:
        self.sides = [Shown(shown.side) for shown in self.sides]

    def _choose(self, explorer: Explorer, shown: Shown) -> None:
        if self.looked is None or not self.question.strip() or shown.chosen is not None:
            return
        try:
            shown.chosen, shown.note = explorer.choose(self.looked, self.question, shown.side), ""
            if not shown.chosen.selections and shown.told is None:
                shown.note = "This method chooses within the language model: ask, and see what it kept."
        except (ValueError, TypeError, RuntimeError) as error:
            shown.note = told(error)
