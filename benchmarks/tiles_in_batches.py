"""Whether a tile's features depend on what it is encoded with, and whether identical patches get identical features.

    python -m benchmarks.tiles_in_batches > benchmarks/results/tiles-in-batches.md

The first with the towers' real widths and few layers, random weights: what is asked is arithmetic. The second with the
bundled model, whose weights are trained.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from foveate import bundled
from foveate.benchmarks.shapes import SHAPES

TOWERS = {"llava-next-7b": "CLIP-L/14, 336", "llava-onevision-7b": "SigLIP So400m/14, 384",
          "internvl-8b": "InternViT-300M, 448"}  # fmt: skip
SIZES = (2, 5, 13)
LAYERS = 2


def tower_of(name: str) -> Any:
    shape = SHAPES[name]
    shape = dataclasses.replace(shape, encoder_only=True, text={**shape.text, "intermediate_size": 256})
    return shape.build(llm_layers=1, vision_layers=LAYERS).model.vision_tower


def worst(found: Tensor, wanted: Tensor) -> str:
    """The largest difference over the largest value, or that there is none."""
    if torch.equal(found, wanted):
        return "identical"
    return f"{float((found - wanted).abs().max() / wanted.abs().max()):.1e}"


def batches(name: str, tower: Any) -> str:
    """One line: a tile in batches of several sizes against itself alone, and twice in one batch."""
    size = tower.config.image_size
    side = size if isinstance(size, int) else size[0]
    pixels = torch.randn(max(SIZES), 3, side, side, generator=torch.Generator().manual_seed(0))
    pixels[-1] = pixels[0]
    with torch.no_grad():
        alone = tower(pixels[:1]).last_hidden_state[0]
        together = [tower(pixels[:count]).last_hidden_state for count in SIZES]
    cells = [worst(one[0], alone) for one in together] + [worst(together[-1][-1], together[-1][0])]
    return f"| {name} | {' | '.join(cells)} |"


def patches() -> list[tuple[str, float, float]]:
    """By place in the bundled model's encoder: see ``distances``."""
    model, _ = bundled.load()
    tower: Any = model.model.vision_tower
    tower = getattr(tower, "vision_model", tower)
    side, patch = tower.config.image_size, tower.config.patch_size
    pixels = torch.ones(1, 3, side, side)  # a blank page with something in its middle
    first, last = side // patch // 4, 3 * (side // patch) // 4
    noise = torch.randn(1, 3, *[(last - first) * patch] * 2, generator=torch.Generator().manual_seed(0))
    pixels[..., first * patch : last * patch, first * patch : last * patch] = noise
    blank = torch.ones(side // patch, side // patch, dtype=torch.bool)
    blank[first:last, first:last] = False
    with torch.no_grad():
        states = tower(pixels, output_hidden_states=True).hidden_states
        embedded = tower.embeddings.patch_embedding(pixels).flatten(2).transpose(1, 2)[0]
    places = {"patch embedding": embedded, "with positions": states[0][0, 1:]}
    places |= {f"after layer {number}": state[0, 1:] for number, state in enumerate(states) if number}
    return [(name, *distances(found, blank.flatten())) for name, found in places.items()]


def distances(found: Tensor, blank: Tensor) -> tuple[float, float]:
    """Median distance between two blank patches, and between a blank one and another; over the mean norm."""
    norm = found.norm(dim=-1).mean()
    within = torch.nn.functional.pdist(found[blank]).median()
    across = torch.cdist(found[blank], found[~blank]).median()
    return float(within / norm), float(across / norm)


def main() -> None:
    heads = [f"in {count}" for count in SIZES] + [f"twice in {SIZES[-1]}"]
    print("# Tiles in batches\n\n`python -m benchmarks.tiles_in_batches`\n")
    print(
        f"CPU, float32, {torch.get_num_threads()} thread(s), {LAYERS} layers, random weights; the bundled model whole."
    )
    print("Largest difference to the tile encoded alone (last column: to its copy in the same batch), over the")
    print(f"largest value.\n\n| tower | {' | '.join(heads)} |\n| --- |{' ---: |' * len(heads)}")
    print(batches("bundled model, 112", bundled.load()[0].model.vision_tower), flush=True)
    for shape, name in TOWERS.items():
        print(batches(name, tower_of(shape)), flush=True)
    print("\nThe bundled model on a blank page with a block of noise in its middle: median distance between two")
    print("patches, over their mean norm.\n")
    print("| place | both blank, pixel by pixel the same | one blank, one of the block |\n| --- | ---: | ---: |")
    for place, within, across in patches():
        print(f"| {place} | {within:.3f} | {across:.3f} |")


if __name__ == "__main__":
    main()
