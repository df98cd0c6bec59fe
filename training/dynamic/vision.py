"""Stage 1: the encoder learns to see and to read, and its tokens to lie along the words for what they show."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import Qwen3VLForConditionalGeneration

from training.data import ahead
from training.dynamic.data import IGNORE, NO_DIGIT, NOTHING, PLACES, Picture
from training.dynamic.drawing import make_batch
from training.dynamic.heads import BACKGROUND, Heads, letter_loss
from training.dynamic.letters import NO_LETTER
from training.dynamic.model import embeddings, hidden, see
from training.dynamic.presets import Preset
from training.dynamic.reading import train_letters
from training.dynamic.words import COLOR_NAMES, ID, MARK, NAMES
from training.parallel import part
from training.presets import Stage
from training.runs import learn
from training.vision import SCALE, cross_entropy
from training.words import DIGITS, THINGS

_THINGS = len(THINGS)
"""Of ``NAMES``, the first are things of scenes; the others are words of documents."""
NAME_IDS = [ID[MARK + name] for name in NAMES]
COLOR_IDS = [ID[MARK + name] for name in COLOR_NAMES]
DIGIT_IDS = [ID[MARK + digit] for digit in DIGITS]
#: A place weighs so much because the encoder knows it and its tokens, nearly parallel at first, do not: at 0.3 it
#: cannot be read off them after 400 steps (squared error 0.33, that of a guess), at 3 it is there after 225 (0.07), and
#: nothing else is learned later.
WEIGHTS = {
    "color": 0.5,
    "digit": 0.5,
    "number": 1.0,
    "letter": 0.5,
    "key": 0.5,
    "found": 0.3,
    "flat": 0.1,
    "place": 3.0,
    "center": 0.5,
    "side": 0.5,
    "norm": 0.02,
}
DEEP = 0.3
"""What the DeepStack plane's losses count."""


def train_vision(model: Qwen3VLForConditionalGeneration, preset: Preset, out: Path, device: torch.device) -> None:
    """Train, or go on training, and leave the model's trained parts in place."""
    stage = preset.vision
    torch.manual_seed(preset.seed + 1)
    heads = Heads(preset.text_width)
    model.to(device), heads.to(device)

    def batches(stage: Stage, seed: int, first: int) -> Iterator[list[Picture]]:
        tasks = (
            (seed, *part(step * stage.batch, stage.batch), preset.mix, step / stage.steps)
            for step in range(first, stage.steps)
        )
        return ahead(make_batch, tasks, preset.workers)

    def loss_of(step: int, batch: list[Picture]) -> tuple[Tensor, dict[str, float]]:
        with torch.autocast(device.type, torch.bfloat16, enabled=preset.bfloat16):
            tokens, deep = see(model, batch, device)
        return vision_losses(tokens.float(), deep.float(), batch, embeddings(model), heads)

    if not (out / "vision.pt").exists():
        train_letters(model, heads, preset, out, device)
        if preset.heads is not None:
            model.requires_grad_(False)
            learn(
                "heads",
                preset.heads,
                preset,
                out,
                device,
                parts={"heads": heads},
                trained=list(heads.parameters()),
                decay=0.02,
                batches=partial(batches, preset.heads, preset.seed + 3),
                loss_of=loss_of,
            )
            model.requires_grad_(True)

    learn(
        "vision",
        stage,
        preset,
        out,
        device,
        parts={"model": model, "heads": heads},
        trained=[*model.model.visual.parameters(), *heads.parameters(), embeddings(model)],
        decay=0.02,
        hidden=hidden(model.model.visual),
        batches=partial(batches, stage, preset.seed),
        loss_of=loss_of,
    )


def vision_losses(
    tokens: Tensor, deep: Tensor, batch: list[Picture], words: Tensor, heads: Heads
) -> tuple[Tensor, dict[str, float]]:
    """All of stage 1's losses, and what to watch.

    Args:
        tokens, deep: (cells, D) visual tokens and DeepStack plane, one picture behind the other.
        words: (words, D) embeddings.
    """
    device = tokens.device

    def gathered(name: str) -> Tensor:
        return torch.cat([torch.from_numpy(getattr(picture, name)) for picture in batch]).to(device)

    names, shares, digits, color = (gathered(name) for name in ("names", "shares", "digits", "color"))
    known = [words[NAME_IDS], heads.nothing[None], words[COLOR_IDS], words[DIGIT_IDS]]
    named = F.normalize(torch.cat(known), dim=-1)
    scale = heads.log_scale.exp().clamp(max=SCALE)

    def told(rows: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        cosine = F.normalize(rows, dim=-1) @ named.T
        of_names, of_colors, of_digits = (scale * cosine).split([len(NAME_IDS) + 1, len(COLOR_IDS), len(DIGIT_IDS)], 1)
        return cosine, {
            "name": soft_cross_entropy(of_names, names, shares, NOTHING),
            "color": cross_entropy(of_colors, color),
            "digit": soft_cross_entropy(of_digits, *spread_digits(digits)),
        }

    cosine, losses = told(tokens)
    losses["found"], losses["flat"] = text_to_image(cosine, labelled(names, digits, color), batch)
    of_deep = told(deep)[1]
    # Where a cell is, whether it holds the middle of its thing and how large that is can be read off its token:
    # position, relation, counting and "biggest" need it, and no word says it. So can all digits of a number, in order,
    # and what a number or a word in a table is the value of.
    level = F.normalize(tokens, dim=-1) * tokens.shape[-1] ** 0.5
    read = heads.readout(level)
    owner = gathered("owner")
    places = torch.cat([torch.from_numpy(picture.grid.places()) for picture in batch]).to(device)
    extent = torch.cat(
        [torch.tensor([[picture.grid.rows, picture.grid.columns]]).expand(picture.grid.cells, 2) for picture in batch]
    ).to(device)
    losses["place"] = F.mse_loss(read[:, :2], (places + 0.5) / extent * 2 - 1)
    losses["center"] = F.binary_cross_entropy_with_logits(read[:, 2], gathered("center"))
    if (owner >= 0).any():
        # The logarithm: a letter's side and a bar's are to be told with equal care.
        losses["side"] = F.mse_loss(read[owner >= 0, 3], gathered("side")[owner >= 0].clamp(min=0.1).log())
    of_number = heads.number(level).view(-1, PLACES, NO_DIGIT + 1)
    losses["number"] = cross_entropy(of_number.flatten(0, 1), digits.flatten())
    keys = gathered("keys")
    of_key = scale * F.normalize(heads.key(level), dim=-1) @ F.normalize(words[NAME_IDS], dim=-1).T
    amount = (keys != IGNORE).sum(1, keepdim=True).clamp(min=1)
    losses["key"] = soft_cross_entropy(of_key, keys, (keys != IGNORE) / amount)
    letters = gathered("letters").flatten()
    of_letters, losses["letter"] = letter_loss(heads.letters, tokens, letters)
    # Letters are seen in one place: they belong to the plane of the encoder's first half as well, and all of it.
    losses["deep letter"] = letter_loss(heads.deep_letters, deep, letters)[1]
    losses["norm"] = (tokens.norm(dim=-1) - 1).square().mean() + (deep.norm(dim=-1) - 1).square().mean()
    total = sum((WEIGHTS.get(name, 1.0) * loss for name, loss in losses.items()), tokens.new_zeros(()))
    total = total + DEEP * sum((WEIGHTS.get(name, 1.0) * loss for name, loss in of_deep.items()), tokens.new_zeros(()))
    with torch.no_grad():
        seen = {f"loss/{name}": float(loss) for name, loss in losses.items()}
        guess = cosine[:, : NOTHING + 1].argmax(-1)
        is_named = (names[:, 0] >= 0) & (names[:, 0] < NOTHING)
        among = (guess[:, None] == names).any(1)
        things = is_named & (names[:, 0] < _THINGS)
        for name, where in (("thing", things), ("word", is_named & ~things), ("nothing", names[:, 0] == NOTHING)):
            if where.any():
                seen[name] = float(among[where].float().mean())
        if (color >= 0).any():
            at = NOTHING + 1
            seen["color"] = float((cosine[:, at : at + len(COLOR_IDS)].argmax(-1) == color)[color >= 0].float().mean())
        numbered = digits[:, 0] != IGNORE
        if numbered.any():
            seen["number"] = float((of_number.argmax(-1) == digits)[numbered].all(1).float().mean())
        lettered = (letters != IGNORE) & (letters != NO_LETTER)
        if lettered.any():
            seen["letter"] = float((of_letters.argmax(-1) == letters)[lettered].float().mean())
        keyed = keys[:, 0] != IGNORE
        if keyed.any():
            seen["key"] = float((of_key.argmax(-1)[:, None] == keys)[keyed].any(1).float().mean())
    return total, seen


def soft_cross_entropy(logits: Tensor, target: Tensor, shares: Tensor, background: int | None = None) -> Tensor:
    """Cross-entropy with targets that share a row.

    Args:
        logits: (R, classes).
        target, shares: (R, S); rows whose shares are all 0 count for nothing.
        background: the class that counts ``BACKGROUND``, if there is one.
    """
    used = shares.sum(1) > 0
    if not used.any():
        return logits.sum() * 0
    taken = logits[used].log_softmax(-1).gather(1, target[used].clamp(min=0))
    each = -(taken * shares[used]).sum(1)
    weight = torch.ones_like(each)
    if background is not None:
        weight[target[used][:, 0] == background] = BACKGROUND
    return (each * weight).sum() / weight.sum()


def spread_digits(digits: Tensor) -> tuple[Tensor, Tensor]:
    """Targets and shares of the words for digits: a number's digits have equal parts of its cells."""
    there = (digits != IGNORE) & (digits != NO_DIGIT)
    return torch.where(there, digits, 0), there / there.sum(1, keepdim=True).clamp(min=1)


def labelled(names: Tensor, digits: Tensor, color: Tensor) -> Tensor:
    """(cells, words) bool: which of the words that can be seen a cell shows, in ``told``'s order."""
    shown = torch.zeros(
        len(names), NOTHING + 1 + len(COLOR_IDS) + len(DIGIT_IDS), dtype=torch.bool, device=names.device
    )
    at = NOTHING + 1
    for target, offset in ((names, 0), (color[:, None], at), (digits, at + len(COLOR_IDS))):
        there = (target >= 0) & ((target != NO_DIGIT) | (offset != at + len(COLOR_IDS)))
        rows, columns = there.nonzero(as_tuple=True)
        shown[rows, target[rows, columns] + offset] = True
    shown[:, NOTHING] = False
    return shown


def text_to_image(cosine: Tensor, shown: Tensor, batch: list[Picture]) -> tuple[Tensor, Tensor]:
    """AdaFV's own softmax over a picture's tokens: on the tokens of what a word names, flat when that is not there."""
    found, flat = [], []
    counts = [picture.grid.cells for picture in batch]
    for rows, there in zip(cosine.split(counts), shown.split(counts), strict=True):
        attention = (SCALE * rows).log_softmax(0)
        present = there.any(0)
        found.append(attention[:, present].masked_fill(~there[:, present], -torch.inf).logsumexp(0))
        absent = ~present
        absent[NOTHING] = False
        # Kullback-Leibler divergence of the uniform distribution from the attention.
        flat.append(-attention[:, absent].mean(0) - math.log(len(rows)))
    return -torch.cat(found).mean(), torch.cat(flat).mean()
