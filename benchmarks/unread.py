"""What stock vision towers compute for nobody, in FLOPs, and the hidden states that stock code keeps, in MiB.

    python -m benchmarks.unread > benchmarks/results/unread.md

Shapes of released checkpoints on the meta device: nothing is computed, the operators are counted.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from foveate.benchmarks.shapes import SHAPES, Shape
from foveate.models import family_for
from foveate.models.encoded import Request
from foveate.models.squares import SquareFamily
from foveate.models.towers import Reading

TOWERS = (
    "llava-1.5-7b", "llava-next-7b", "llava-onevision-7b", "aya-vision-8b", "pixtral-12b", "mistral3-24b",
    "internvl-8b", "gemma3-4b", "paligemma-3b",
)  # fmt: skip
HEADED = ("llava-onevision-7b", "gemma3-4b")


def cases() -> Iterator[tuple[str, Shape]]:
    """Shapes as released; and, of two SigLIP ones, with the head that the config switches off."""
    for name in TOWERS:
        yield name, SHAPES[name]
    for name in HEADED:
        shape = SHAPES[name]
        yield f"{name}, vision_use_head", dataclasses.replace(shape, vision={**shape.vision, "vision_use_head": True})


def row(name: str, shape: Shape) -> str:
    """One line of the table."""
    shape = dataclasses.replace(shape, encoder_only=True, text={**shape.text, "intermediate_size": 256})
    model = shape.build(llm_layers=1, device="meta", dtype=torch.bfloat16)
    written = shape.write(model, shape.picture).inputs
    pixels = written["pixel_values"].flatten(0, -4).to("meta", torch.bfloat16)
    family: Any = family_for(model)
    tower = model.model.vision_tower
    record = family.tower.recorder(reading_of(family), Request(lambda: None))
    packed = family.tower.kind == "pixtral"
    options: dict[str, Any] = {"image_sizes": written["image_sizes"].tolist()} if packed else {}
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        output = tower(pixels, output_hidden_states=True, **options)
    counts = {part: sum(found.values()) for part, found in counter.get_flop_counts().items()}
    unread = [part for part, module in tower.named_modules() if id(module) in record.skip]
    flops = sum(counts.get(f"{type(tower).__name__}.{part}", 0) for part in unread)
    kept = sum(state.nbytes for state in output.hidden_states) / 2**20
    collects = shape.model_type in ("llava", "llava_next", "llava_onevision", "aya_vision", "mistral3")
    return (
        f"| {name} | {len(pixels)} | {', '.join(unread) or 'nothing'} | {counter.get_total_flops() / 1e9:.1f} | "
        f"{100 * flops / counter.get_total_flops():.2f} | {f'{kept:.1f}' if collects else '-'} |"
    )


def reading_of(family: Any) -> Reading:
    """How the family reads its tower when a call says nothing."""
    if isinstance(family, SquareFamily):
        return Reading(len(family.tower.layers) - 1, "full", normed=True)
    reading: Reading = family.tower.reading({})
    return reading


def main() -> None:
    print("# What towers compute for nobody\n\n`python -m benchmarks.unread`, bfloat16\n")
    print("| shape | views | unread in stock | tower, GFLOPs | unread, % of them | hidden states kept, MiB |")
    print("| --- | ---: | --- | ---: | ---: | ---: |")
    for name, shape in cases():
        print(row(name, shape), flush=True)


if __name__ == "__main__":
    main()
