"""InternVL 2.5, 3 and 3.5 in their transformers form: InternViT, pixel shuffle, tiles in one run of placeholders."""

from __future__ import annotations

from torch import Tensor

from foveate.models.films import Film, counted, film_labels, films_in
from foveate.models.tiles import Cut, TiledFamily, runs_of
from foveate.models.towers import INTERN, Tower


class InternVl(TiledFamily):
    """``InternVLForConditionalGeneration``. A video is told by the numbers before its frames."""

    title = "InternVL"
    model_types = ("internvl",)
    checkpoints = {"internvl": "OpenGVLab/InternVL3-8B-hf (the -hf form: the other runs code of its own)"}
    saliency = "CLS row"
    filmed = True

    def check(self) -> None:
        self.tower = Tower(self.base, self.config, INTERN)

    @property
    def factor(self) -> int:
        return int(1 / self.config.downsample_ratio)

    def cuts(self, row: Tensor, per_tile: int) -> list[Cut]:
        """One unbroken run of placeholders is one image: the processor puts ``<img>`` and ``</img>`` around it."""
        found = []
        for first, end in runs_of(row, self.image_token_id):
            tiles, rest = divmod(end - first, per_tile)
            if rest:
                raise ValueError(
                    f"an image of {end - first} placeholders is no whole number of tiles of {per_tile}: does the "
                    "processor's image_seq_length fit the model?"
                )
            found.append(Cut(tiles))
        return found

    def joined(self, row: Tensor, cuts: list[Cut]) -> list[Cut]:
        found, first = [], 0
        for film in self._films(row, super().marks(row[None])[0], [cut.tiles == 1 for cut in cuts]):
            found += [*cuts[first : film.first], Cut(film.end - film.first, film=True)]
            first = film.end
        return found + cuts[first:]

    def marks(self, ids: Tensor) -> Tensor:
        """Also what labels a video's frames."""
        per_tile = (self.tower.side // self.factor) ** 2
        known = super().marks(ids)
        if not self.filmed:
            return known
        films = [
            self._films(row, here, [end - first == per_tile for first, end in runs_of(row, self.image_token_id)])
            for row, here in zip(ids, known, strict=True)
        ]
        return known | film_labels(ids, self.image_token_id, known, films, self.special_token_ids)

    def _films(self, row: Tensor, marks: Tensor, single: list[bool]) -> list[Film]:
        return films_in(row, self.image_token_id, marks, single, counted)


class QianfanOcr(InternVl):
    """``QianfanOCRForConditionalGeneration``: the same without videos."""

    title = "Qianfan-OCR"
    model_types = ("qianfan_ocr",)
    checkpoints = {"qianfan_ocr": "baidu/Qianfan-OCR"}
    filmed = False

    def _films(self, row: Tensor, marks: Tensor, single: list[bool]) -> list[Film]:
        return []
