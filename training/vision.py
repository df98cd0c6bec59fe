"""Stage 1: the vision tower learns to see, and its projected tokens to lie along the words for what they show."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlavaNextForConditionalGeneration

from training.data import COLOR_IDS, DIGIT_IDS, IGNORE, NOTHING, THING_IDS, View, ahead, make_batch
from training.model import embeddings, normalise, see
from training.parallel import part
from training.presets import Preset
from training.runs import learn
from training.views import GRID, TOKENS

#: Scale of the text-to-image softmax, as AdaFV uses it.
SCALE = 100.0
_READOUT = 5  # row, column, middle of a thing, side, base view


class Heads(nn.Module):
    """What stage 1 needs beside the model and what is thrown away after it."""

    def __init__(self, vision_width: int, text_width: int) -> None:
        super().__init__()
        self.cls = nn.Linear(vision_width, text_width)
        self.nothing = nn.Parameter(torch.randn(text_width) / text_width**0.5)
        self.readout = nn.Linear(text_width, _READOUT)
        # Begun at 15, things are told apart several times more slowly: the cosines stay small for SCALE's sake.
        self.log_scale = nn.Parameter(torch.tensor(40.0).log())
        own = (torch.arange(GRID) + 0.5) / GRID * 2 - 1
        self.register_buffer("places", torch.cartesian_prod(own, own))


def train_vision(model: LlavaNextForConditionalGeneration, preset: Preset, out: Path, device: torch.device) -> None:
    """Train, or go on training, and leave the model's trained parts in place."""
    stage = preset.vision
    torch.manual_seed(preset.seed + 1)
    heads = Heads(preset.vision_width, preset.text_width)
    model.to(device), heads.to(device)
    parts = [model.model.vision_tower, model.model.multi_modal_projector, heads]

    def batches(first: int) -> Iterator[list[View]]:
        tasks = (
            (preset.seed, *part(step * stage.batch, stage.batch), preset.canvases, _clutter(step / stage.steps))
            for step in range(first, stage.steps)
        )
        return ahead(make_batch, tasks, preset.workers)

    def loss_of(step: int, batch: list[View]) -> tuple[Tensor, dict[str, float]]:
        with torch.autocast(device.type, torch.bfloat16, enabled=preset.bfloat16):
            cls, tokens = see(model, normalise(torch.cat([torch.from_numpy(view.pixels) for view in batch]).to(device)))
        return vision_losses(cls.float(), tokens.float(), batch, embeddings(model), heads)

    learn(
        "vision",
        stage,
        preset,
        out,
        device,
        parts={"model": model, "heads": heads},
        trained=[*(p for part in parts for p in part.parameters()), embeddings(model)],
        decay=0.02,
        batches=batches,
        loss_of=loss_of,
    )


def _clutter(progress: float) -> float:
    """Cluttered pictures teach most things at once; towards the end they are as many as in the suite."""
    return 0.85 if progress < 0.6 else 0.85 - 0.35 * (progress - 0.6) / 0.4


def vision_losses(
    cls: Tensor, tokens: Tensor, batch: list[View], words: Tensor, heads: Heads
) -> tuple[Tensor, dict[str, float]]:
    """All of stage 1's losses, and what to watch.

    Args:
        cls: (V, width) CLS states of all views of the batch.
        tokens: (V, TOKENS, D) their projected patches.
        words: (words, D) embeddings.
    """
    device = tokens.device

    def gathered(name: str) -> Tensor:
        return torch.cat([torch.from_numpy(getattr(view, name)) for view in batch]).to(device)

    thing, color, digit = gathered("thing"), gathered("color"), gathered("digit")
    named = F.normalize(torch.cat([words[THING_IDS], heads.nothing[None], words[COLOR_IDS], words[DIGIT_IDS]]), dim=-1)
    flat = tokens.flatten(0, 1)
    cosine = F.normalize(flat, dim=-1) @ named.T
    scale = heads.log_scale.exp().clamp(max=SCALE)
    of_things, of_colors, of_digits = cosine.split([NOTHING + 1, len(COLOR_IDS), len(DIGIT_IDS)], 1)

    # Background is most of the patches and the easiest: it counts a quarter.
    weight = torch.ones(NOTHING + 1, device=device)
    weight[NOTHING] = 0.25
    losses = {
        "thing": F.cross_entropy(scale * of_things, thing, weight, ignore_index=IGNORE),
        "color": cross_entropy(scale * of_colors, color),
        "digit": cross_entropy(scale * of_digits, digit),
    }
    # Saliency: what CLS attends to is what it needs to say which things fill the view, by area.
    share = gathered("share")
    guess = scale * F.normalize(heads.cls(F.layer_norm(cls, cls.shape[-1:])), dim=-1) @ named[: NOTHING + 1].T
    losses["cls"] = -(share * guess.log_softmax(-1)).sum(-1).mean()
    losses["found"], losses["flat"] = _text_to_image(cosine, (thing, color, digit), batch)
    # Where a patch is in its view, whether that is the base view, whether it holds the middle of its thing and how
    # large that is can be read off its token: position, relation, counting and "biggest" need it, and no word says it.
    read = heads.readout(F.normalize(flat, dim=-1) * flat.shape[-1] ** 0.5)
    of_thing = (thing >= 0) & (thing < NOTHING)
    places = heads.places.repeat(len(tokens), 1)
    losses["place"] = F.mse_loss(read[:, :2], places)
    losses["center"] = F.binary_cross_entropy_with_logits(read[:, 2], gathered("center"))
    losses["side"] = F.mse_loss(read[of_thing, 3], gathered("side")[of_thing])
    is_base = torch.zeros(len(tokens), TOKENS, device=device)
    is_base[_bases(batch)] = 1
    losses["base"] = F.binary_cross_entropy_with_logits(read[:, 4], is_base.flatten())
    losses["norm"] = (flat.norm(dim=-1) - 1).square().mean()
    weights = {
        "color": 0.5,
        "digit": 1.0,
        "cls": 0.3,
        "found": 0.3,
        "flat": 0.1,
        "place": 0.3,
        "center": 0.5,
        "base": 0.2,
        "norm": 0.02,
    }
    total = sum((weights.get(name, 1.0) * loss for name, loss in losses.items()), tokens.new_zeros(()))
    seen = {f"loss/{name}": float(loss.detach()) for name, loss in losses.items()}
    with torch.no_grad():
        right = of_things.argmax(-1) == thing
        seen |= {
            "thing": float(right[of_thing].float().mean()),
            "nothing": float(right[thing == NOTHING].float().mean()),
        }
        crops = of_thing.clone().view(-1, TOKENS)
        crops[_bases(batch)] = False
        seen["thing/crops"] = float(right[crops.flatten()].float().mean())
        for name, logits, target in (("color", of_colors, color), ("digit", of_digits, digit)):
            if (target >= 0).any():
                seen[name] = float((logits.argmax(-1) == target)[target >= 0].float().mean())
        seen["cls"] = float((guess.argmax(-1) == share.argmax(-1)).float().mean())
    return total, seen


def _bases(batch: list[View]) -> list[int]:
    """Which views of the batch are base views."""
    starts = [0]
    for view in batch[:-1]:
        starts.append(starts[-1] + len(view.pixels))
    return starts


def cross_entropy(logits: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean over the rows that have a target, weighted by class if told how; 0 where none has."""
    used = target >= 0
    return F.cross_entropy(logits[used], target[used], weight) if used.any() else logits.sum() * 0


def _text_to_image(cosine: Tensor, labels: tuple[Tensor, Tensor, Tensor], batch: list[View]) -> tuple[Tensor, Tensor]:
    """AdaFV's own softmax over a picture's tokens: on the tokens of what a word names, flat when that is not there."""
    offsets = (0, NOTHING + 1, NOTHING + 1 + len(COLOR_IDS))
    shown = torch.zeros_like(cosine, dtype=torch.bool)
    for label, offset in zip(labels, offsets, strict=True):
        rows = (label >= 0).nonzero()[:, 0]
        shown[rows, label[rows] + offset] = True
    shown[:, NOTHING] = False
    found, flat, start = [], [], 0
    for view in batch:
        order = torch.from_numpy(view.order[view.order >= 0]).to(cosine.device) + start
        attention = (SCALE * cosine[order]).log_softmax(0)
        there = shown[order]
        present = there.any(0)
        found.append(attention[:, present].masked_fill(~there[:, present], -torch.inf).logsumexp(0))
        absent = ~present
        absent[NOTHING] = False
        # Kullback-Leibler divergence of the uniform distribution from the attention.
        flat.append(-attention[:, absent].mean(0) - torch.log(torch.tensor(float(len(order)))))
        start += len(view.pixels) * TOKENS
    return -torch.cat(found).mean(), torch.cat(flat).mean()
