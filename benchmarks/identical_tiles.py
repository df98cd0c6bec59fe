"""How many tiles of a picture are exact copies of another tile of it, through the processors that cut them.

    python -m benchmarks.identical_tiles > benchmarks/results/identical-tiles.md

Documents and screens are drawn (drawn_documents.py); the processors have the sizes of released checkpoints. Tiles are
equal when every value of ``pixel_values`` is.
"""

from __future__ import annotations

import sys
from typing import Any

from PIL import Image
from torch import Tensor
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil
from transformers.models.ovis2.image_processing_pil_ovis2 import Ovis2ImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from benchmarks.drawn_documents import KINDS

PICTURES = 12


def square(side: int) -> dict[str, int]:
    return {"height": side, "width": side}


def smol(side: int) -> Any:
    return SmolVLMImageProcessorPil(size={"longest_edge": 4 * side}, max_image_size={"longest_edge": side})


def grid(side: int, most: int) -> list[list[int]]:
    return [[side * rows, side * columns] for rows in range(1, most + 1) for columns in range(1, most + 1)]


NEXT = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
PROCESSORS: dict[str, Any] = {
    "InternVL, 448, 12 tiles": GotOcr2ImageProcessorPil(size=square(448), crop_to_patches=True, max_patches=12),
    "Ovis2, 448, 9 tiles": Ovis2ImageProcessorPil(size=square(448), crop_to_patches=True, max_patches=9),
    "LLaVA-NeXT, 336": LlavaNextImageProcessorPil(
        size={"shortest_edge": 336}, crop_size=square(336), image_grid_pinpoints=NEXT
    ),
    "LLaVA-OneVision, 384": LlavaOnevisionImageProcessorPil(size=square(384), image_grid_pinpoints=grid(384, 6)),
    "SmolVLM, 512": smol(512),
    "SmolVLM, 384": smol(384),
}


def tiles_of(processor: Any, picture: Image.Image) -> Tensor:
    """(tiles, 3, side, side)."""
    return processor(picture, return_tensors="pt")["pixel_values"].flatten(0, -4)


def count(processor: Any, pictures: list[Image.Image]) -> tuple[int, int]:
    """Tiles in all, and how many of them are copies of an earlier one of their picture."""
    total = copies = 0
    for picture in pictures:
        found = [tile.numpy().tobytes() for tile in tiles_of(processor, picture)]
        total, copies = total + len(found), copies + len(found) - len(set(found))
    return total, copies


def main(pictures: int = PICTURES) -> None:
    """Prints the table: for each kind and processor, copies in % of all tiles (tiles per picture)."""
    print("# Identical tiles\n\n`python -m benchmarks.identical_tiles`")
    print(
        f"\n{pictures} drawn pictures of a kind. Tiles that are an exact copy of an earlier tile of the same picture,"
    )
    print("in % of all its tiles, whole views counted; in brackets tiles per picture.\n")
    print(f"| pictures | {' | '.join(PROCESSORS)} |")
    print(f"| --- |{' ---: |' * len(PROCESSORS)}")
    sums = dict.fromkeys(PROCESSORS, (0, 0))
    for kind, draw in KINDS.items():
        drawn, cells = [draw(seed) for seed in range(pictures)], []
        for name, processor in PROCESSORS.items():
            total, copies = count(processor, drawn)
            sums[name] = (sums[name][0] + total, sums[name][1] + copies)
            cells.append(f"{100 * copies / total:.1f} ({total / pictures:.1f})")
        print(f"| {kind} | {' | '.join(cells)} |", flush=True)
    print(f"| all | {' | '.join(f'{100 * copies / total:.1f}' for total, copies in sums.values())} |")


if __name__ == "__main__":
    main(pictures=int(sys.argv[1]) if len(sys.argv) > 1 else PICTURES)
