"""SmolVLM: Idefics3's tiles, and videos, whose frames stand in the prompt as pictures that are not cut."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor

from foveate.models.films import Film, film_labels, films_in, timed
from foveate.models.idefics3 import Idefics3
from foveate.models.tile_marks import runs, tile_marks


class SmolVlm(Idefics3):
    """``SmolVLMForConditionalGeneration``. A video is told by the times before its frames."""

    title = "SmolVLM"
    model_types = ("smolvlm",)
    filmed = True
    checkpoints = {"smolvlm": "HuggingFaceTB/SmolVLM2-2.2B-Instruct"}

    def films(self, prompt: Tensor, grids: Sequence[tuple[int, int]]) -> list[int]:
        marks = tile_marks(prompt, self.image_token_id)
        films = [self._films(row, here) for row, here in zip(prompt, marks, strict=True)]
        pictures = iter(grids)
        found: list[int] = []
        for row, ours in zip(prompt, films, strict=True):
            ends, run = {film.first: film.end for film in ours}, 0
            last = len(runs(row, self.image_token_id)[0])
            while run < last:
                frames = ends.get(run, run + 1) - run
                tiles = sum(rows * columns + 1 for rows, columns in (next(pictures) for _ in range(frames)))
                found.append(frames)
                run += tiles
        return found

    def marks(self, ids: Tensor) -> Tensor:
        """Also what labels a video's frames."""
        known = super().marks(ids)
        films = [self._films(row, here) for row, here in zip(ids, known, strict=True)]
        return known | film_labels(ids, self.image_token_id, known, films, self.special_token_ids)

    def _films(self, row: Tensor, marks: Tensor) -> list[Film]:
        between = runs(row, self.image_token_id)[3]
        # Where a picture ends, its mark stands twice. One that ends where it begins is not cut, and may be a frame.
        single = [before > 1 and behind > 1 for before, behind in pairwise([2, *between, 2])]
        return films_in(row, self.image_token_id, marks, single, timed)
