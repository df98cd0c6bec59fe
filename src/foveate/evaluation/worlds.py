"""The one place that names the drawn worlds."""

from __future__ import annotations

from foveate.evaluation.clips import CLIPS
from foveate.evaluation.documents import DOCUMENTS
from foveate.evaluation.drawn import World
from foveate.evaluation.scenes import SCENES

WORLDS: dict[str, World] = {world.name: world for world in (SCENES, DOCUMENTS, CLIPS)}
STILL: dict[str, World] = {name: world for name, world in WORLDS.items() if not world.filmed}
"""Those of pictures."""


def get_world(name: str) -> World:
    """The world of that name.

    Raises:
        ValueError: there is none; the message names those there are.
    """
    if name not in WORLDS:
        raise ValueError(f"unknown world {name!r}; known: {', '.join(WORLDS)}")
    return WORLDS[name]
