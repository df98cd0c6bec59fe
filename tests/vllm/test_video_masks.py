"""EVS and VidCom2 choose what vLLM's own functions choose, of equal numbers of tokens."""

from __future__ import annotations

import pytest
import torch

import foveate
from foveate.tokens import VisualTokens
from tests.pruners.test_pruners import geometry

evs = pytest.importorskip("vllm.multimodal.video_prune.evs")
vidcom2 = pytest.importorskip("vllm.multimodal.video_prune.vidcom2")


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("frames, rows, columns, pruned", [(4, 3, 4, 0.5), (8, 4, 4, 0.75), (5, 2, 4, 0.25)])
def test_the_masks_are_vllms(seed: int, frames: int, rows: int, columns: int, pruned: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    first = torch.randn(rows * columns, 32, generator=generator)
    moves = [0.1 * step * torch.rand(len(first), 1, generator=generator) for step in range(frames)]
    features = torch.cat([first + move * torch.randn(first.shape, generator=generator) for move in moves])
    visual = VisualTokens(features, geometry(*[(rows, columns)] * frames).as_frames())
    for theirs, method in ((evs, foveate.EVS), (vidcom2, foveate.VidCom2)):
        mask = theirs.compute_retention_mask(features, (frames, 2 * rows, 2 * columns), 2, pruned)
        count = int(mask.sum())
        assert count == len(visual) * (1 - pruned)
        assert torch.equal(method(keep=count).select(visual).mask(), mask), method.name
