"""Whether a data set's pictures can be read: told before a model is loaded, and of all of them at once."""

from __future__ import annotations

from collections.abc import Callable

from foveate.evaluation.suites import Suite
from foveate.images import load_image

NAMED = 5
"""Broken pictures whose cause is told; of more there is the number."""


def check_pictures(suite: Suite, progress: Callable[[int, int], None] | None = None) -> None:
    """Decodes every picture of a suite once.

    Args:
        suite: whose pictures.
        progress: called with the number of pictures looked at and of those there are.

    Raises:
        ValueError: some cannot be read; the message names them and why.
    """
    names = list(dict.fromkeys(item.image for item in suite.items))
    broken: list[str] = []
    for done, name in enumerate(names, 1):
        try:
            load_image(suite.folder / name)
        except (ValueError, OSError) as error:
            broken.append(str(error))
        if progress is not None:
            progress(done, len(names))
    if broken:
        more = f"; and {len(broken) - NAMED} more" if len(broken) > NAMED else ""
        raise ValueError(
            f"{len(broken)} of {len(names)} pictures of {suite.name} cannot be read: {'; '.join(broken[:NAMED])}{more}"
        )
