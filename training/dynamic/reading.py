"""Before stage 1: the encoder's first layers learn letters, from pages that grow hard as fast as they are learned."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import Qwen3VLForConditionalGeneration

from training.data import ahead
from training.dynamic.data import Picture
from training.dynamic.heads import Heads, letter_loss
from training.dynamic.letters import NO_LETTER
from training.dynamic.model import hidden, see
from training.dynamic.pages import make_page
from training.dynamic.presets import Preset
from training.parallel import part
from training.runs import learn

#: (part of the stage, how hard pages are by then), straight in between. Found by making pages harder whenever seven of
#: ten letters were told.
_HARDER = ((0.0, 0.0), (0.04, 0.0), (0.2, 0.25), (1.0, 1.0))


def pages(seed: int, first: int, count: int, hard: float) -> list[Picture]:
    """Pages ``first`` to ``first + count - 1``."""
    return [make_page(np.random.default_rng([seed, first + number, 8]), hard) for number in range(count)]


def train_letters(
    model: Qwen3VLForConditionalGeneration, heads: Heads, preset: Preset, out: Path, device: torch.device
) -> None:
    """Train the layers below the DeepStack plane on letters alone, or go on training them."""
    stage, tower = preset.letters, model.model.visual
    every = tower.blocks

    def batches(first: int) -> Iterator[list[Picture]]:
        parts, hardness = zip(*_HARDER, strict=True)
        tasks = (
            (preset.seed, *part(step * stage.batch, stage.batch), float(np.interp(step / stage.steps, parts, hardness)))
            for step in range(first, stage.steps)
        )
        return ahead(pages, tasks, preset.workers)

    def loss_of(step: int, batch: list[Picture]) -> tuple[Tensor, dict[str, float]]:
        with torch.autocast(device.type, torch.bfloat16, enabled=preset.bfloat16):
            deep = see(model, batch, device)[1].float()
        letters = torch.cat([torch.from_numpy(picture.letters) for picture in batch]).to(device).flatten()
        logits, loss = letter_loss(heads.deep_letters, deep, letters)
        there = letters != NO_LETTER
        with torch.no_grad():
            right = float((logits.argmax(-1) == letters)[there].float().mean())
        return loss, {"letter": right, "loss/letter": float(loss)}

    tower.blocks = every[: tower.config.deepstack_visual_indexes[0] + 1]
    try:
        learn(
            "letters",
            stage,
            preset,
            out,
            device,
            parts={"tower": tower, "heads": heads},
            trained=[*tower.parameters(), *heads.deep_letters.parameters()],
            decay=0.02,
            hidden=hidden(tower),
            batches=batches,
            loss_of=loss_of,
        )
    finally:
        tower.blocks = every
