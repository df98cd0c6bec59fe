"""How Idefics3 and SmolVLM write an image into a prompt, read back: which tiles make up one image, and what marks them.

With F for ``<fake_token_around_image>``, their processors write ``F tag run F tag run \\n``, the same for every row of
tiles, then ``\\n F tag run F`` for the whole image (that alone when it was not cut). Tags may be several tokens
(Idefics3's tokenizer has none of its own for them), so only F is relied upon: it is what stands behind a prompt's last
run. Once between two runs, it opens the next tile of the same image; twice, it closes one image and opens another. A
run with F behind it goes on in the same row of tiles, with anything else it ends the row.
"""

from __future__ import annotations

import torch
from torch import Tensor

LAYOUT = (
    "Every image must stand in its prompt as the model's own processor writes it: the mark around images before each "
    "tile, a line break after each row of tiles, the whole image last, the mark behind it"
)


def tile_grids(ids: Tensor, token: int, per_tile: int) -> list[tuple[int, int]]:
    """Which of a prompt's runs of placeholders make up one image.

    Args:
        ids: (S,) int64 on the CPU, -1 where not to be looked at.
        token: the placeholder's id.
        per_tile: placeholders of one tile.

    Returns:
        (rows, columns) of tiles of every image, (0, 0) where there is only the whole image.

    Raises:
        ValueError: the prompt is not written that way.
    """
    starts, ends, fences, between = runs(ids, token)
    if not len(starts):
        return []
    if not fences.any() or bool((ends - starts != per_tile).any()):
        raise ValueError(
            f"runs of {(ends - starts).tolist()} image placeholders, each of which must be {per_tile} long with a mark "
            f"behind it. {LAYOUT}."
        )
    grids: list[tuple[int, int]] = []
    lines: list[int] = []
    across = 0
    for times, same_row in zip([*between, 2], fences[ends].tolist(), strict=True):  # one step per tile
        across += 1
        if times >= 2:
            if across != 1 or len(set(lines)) > 1:
                raise ValueError(f"an image with rows of {[*lines, across]} tiles. {LAYOUT}.")
            grids.append((len(lines), lines[0] if lines else 0))
            lines, across = [], 0
        elif times == 0:
            raise ValueError(f"nothing marks the border between two runs of image placeholders. {LAYOUT}.")
        elif not same_row:
            lines.append(across)
            across = 0
    return grids


def tile_marks(ids: Tensor, token: int) -> Tensor:
    """(B, S) bool: the marks around images, the tags of their tiles and the line breaks between these.

    Args:
        ids: (B, S) int64 on the CPU, -1 where not to be looked at.
        token: the placeholder's id.
    """
    found = torch.zeros_like(ids, dtype=torch.bool)
    for row, line in zip(ids, found, strict=True):
        starts, ends, fences, between = runs(row, token)
        line |= fences
        opened = torch.where(fences, torch.arange(len(row), device="cpu"), -1).cummax(dim=0).values[starts].tolist()
        for number, (first, start) in enumerate(zip(opened, starts.tolist(), strict=True)):  # one step per tile
            if first >= 0:
                line[first:start] = True
            if number and between[number - 1] == 1:
                line[int(ends[number - 1]) : start] = True
    return found


def runs(ids: Tensor, token: int) -> tuple[Tensor, Tensor, Tensor, list[int]]:
    """The unbroken runs of placeholders in a prompt, and the marks between them.

    Args:
        ids: (S,) int64 on the CPU, -1 where not to be looked at.
        token: the placeholder's id.

    Returns:
        (R,) the first column of every run; (R,) the one behind its last; (S,) bool, where the id stands that follows
        the last run (nowhere when nothing follows it); and how often it stands between each two runs.
    """
    steps = torch.nn.functional.pad((ids == token).long(), (1, 1)).diff()
    starts, ends = (steps == 1).nonzero()[:, 0], (steps == -1).nonzero()[:, 0]
    fences = torch.zeros_like(ids, dtype=torch.bool)
    if len(ends) and int(ends[-1]) < len(ids):
        fences = (ids == ids[ends[-1]]) & (ids >= 0)
    before = torch.nn.functional.pad(fences.long().cumsum(0), (1, 0))
    return starts, ends, fences, (before[starts[1:]] - before[ends[:-1]]).tolist()
