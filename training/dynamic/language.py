"""Stage 2 and the finish: the language model learns to answer from the visual tokens, then all learn together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import Qwen3VLForConditionalGeneration

from training.data import ahead
from training.dynamic.clips import Clip
from training.dynamic.data import Picture
from training.dynamic.drawing import make_batch
from training.dynamic.heads import Heads
from training.dynamic.model import embeddings, hidden, see
from training.dynamic.presets import Preset
from training.dynamic.prompt import VISUAL, lead
from training.dynamic.vision import vision_losses
from training.dynamic.words import AFTER_IMAGE, BEFORE_ANSWER, BEFORE_IMAGE, END, PAD, encode
from training.parallel import part
from training.questions import BUDGETS, budget_of, loss_of_answers, pack, question_mask
from training.replay import replayed
from training.runs import learn, log

_COMMON_TAKEN = 0.65
"""How much of what all visual tokens have in common is taken out of them."""
_EMPHASIS = {
    "counting": 2.0, "biggest": 2.0, "place": 1.5, "position": 1.5, "relation": 1.5,
    "often": 2.0, "when": 1.5, "what": 1.5,
}  # fmt: skip
"""What is asked rarely in a picture, or learned late, weighs more."""
_MOST = 400
"""Tokens of a clip that are shown at once, so that no batch becomes several times as long as others."""
_JOINT_DROPOUT = 0.3
"""How often tokens are dropped in the finish."""
_JOINT_CLIPS = 0.3
"""How many clips it has of those that stage 2 has: one costs as much as seven pictures."""
_NEEDS_ALL = ("counting", "biggest")
"""Kinds of questions that are asked only where all tokens are left."""


@torch.no_grad()
def settle_tokens(model: Qwen3VLForConditionalGeneration, preset: Preset, device: torch.device) -> dict[str, float]:
    """Take most of what all visual tokens have in common out of the merger's last bias.

    Nearly parallel tokens bound every cosine with a word, and attention, which starts from such products, does not find
    the token a word asks for.

    Returns:
        Length of the tokens' mean direction (1: all are parallel), before and after.
    """
    tower, common = model.model.visual, {}
    for name, number, merger in (("tokens", 0, tower.merger), ("deepstack", 1, tower.deepstack_merger_list[0])):
        tokens = _some_tokens(model, preset, device)[number]
        common[f"{name} before"] = float(F.normalize(tokens, dim=-1).mean(0).norm())
        merger.linear_fc2.bias.sub_(_COMMON_TAKEN * tokens.mean(0))
        common[f"{name} after"] = float(F.normalize(_some_tokens(model, preset, device)[number], dim=-1).mean(0).norm())
    return common


@torch.no_grad()
def _some_tokens(model: Qwen3VLForConditionalGeneration, preset: Preset, device: torch.device) -> tuple[Tensor, Tensor]:
    """The visual tokens and DeepStack plane of a few pictures, (cells, D) each."""
    tokens, deep = see(model, make_batch(preset.seed + 2, 0, 24, preset.mix.asked(), 1.0), device)
    return tokens.float(), deep.float()


@dataclass(frozen=True)
class Shown:
    """A picture or a clip without its pixels, and what the encoder made of it: (cells, D) each."""

    picture: Picture | Clip
    tokens: Tensor
    deep: Tensor


def answerable(picture: Picture | Clip, kept: np.ndarray, everything: bool) -> list[bool]:
    """Which questions can be answered from the cells that are kept: of all that must be seen, something is left."""
    shown = picture.shows[:, kept].any(1) if len(picture.shows) else np.zeros(0, bool)
    return [
        everything or (question.kind not in _NEEDS_ALL and bool(shown[list(question.regions)].all()))
        for question in picture.questions
    ]


def drop_tokens(picture: Picture | Clip, budget: int, rng: np.random.Generator) -> np.ndarray:
    """``budget`` cells, ascending, drawn so that most things keep a few."""
    owner = picture.owner
    weight = np.full(len(owner), 1e-4)
    for value in np.unique(owner):
        members = owner == value
        weight[members] = (1.0 if value == -1 else 0.5 if value == -2 else 2.0) / members.sum()
    noise = rng.gumbel(size=len(owner)) * rng.choice([0.6, 1.0, 1.5])
    return np.sort(np.argsort(-(np.log(weight) + noise), kind="stable")[:budget])


def kept_of(picture: Picture | Clip, budget: int | None, rng: np.random.Generator) -> np.ndarray:
    """The cells that are left of a picture; of a long clip never more than ``_MOST`` of them."""
    if budget is None:
        budget = picture.cells if isinstance(picture, Picture) else min(picture.cells, _MOST)
    return np.arange(picture.cells) if budget >= picture.cells else drop_tokens(picture, budget, rng)


def answer_loss(
    model: Qwen3VLForConditionalGeneration,
    shown: list[Shown],
    budget: int | None,
    rng: np.random.Generator,
    autocast: torch.autocast,
    emphasis: Mapping[str, float] | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """Loss of the answers, and the share of right ones by kind.

    Args:
        shown: pictures with their tokens.
        budget: how many visual tokens are left of each, None for all. They keep their places.
        emphasis: weights of kinds of questions, 1 unless given.
    """
    device = shown[0].tokens.device
    words, start = embeddings(model), len(BEFORE_IMAGE)
    kept = [kept_of(one.picture, budget, rng) for one in shown]
    asked = [
        [
            ([*AFTER_IMAGE, *encode(question.text), *BEFORE_ANSWER], encode(question.answer), question.kind)
            for question, use in zip(
                one.picture.questions, answerable(one.picture, keep, len(keep) == one.picture.cells), strict=True
            )
            if use
        ]
        for one, keep in zip(shown, kept, strict=True)
    ]
    packed = pack(asked, PAD, END)
    leads = [lead(one.picture, keep) for one, keep in zip(shown, kept, strict=True)]
    longest = max(len(one.ids) for one in leads)
    front = torch.full((len(shown), longest), PAD)
    real = torch.zeros(len(shown), longest, dtype=torch.bool, device=device)
    places = torch.zeros(3, len(shown), longest, dtype=torch.long)
    for number, one in enumerate(leads):
        front[number, : len(one.ids)], places[:, number, : len(one.ids)] = one.ids, one.places
        real[number, : len(one.ids)] = True
    after = torch.tensor([[one.after] for one in leads])
    chosen = [torch.from_numpy(keep).to(device) for keep in kept]
    tokens, planes = (
        torch.cat([getattr(one, plane)[keep] for one, keep in zip(shown, chosen, strict=True)])
        for plane in ("tokens", "deep")
    )
    visual = (front == VISUAL).to(device)
    picture = words[front.clamp(min=0).to(device)].masked_scatter(visual[..., None], tokens.to(words.dtype))
    before = words[list(BEFORE_IMAGE)].expand(len(shown), -1, -1)
    inputs = torch.cat([before, picture, words[packed.ids.to(device)]], 1)
    positions = torch.cat(
        [
            torch.arange(start).expand(3, len(shown), -1),
            places,
            (packed.place + after).expand(3, -1, -1),
        ],
        2,
    ).to(device)
    is_visual = torch.zeros(inputs.shape[:2], dtype=torch.bool, device=device)
    is_visual[:, start : start + longest] = visual
    with autocast:
        states = model.model.language_model(
            inputs_embeds=inputs,
            attention_mask=question_mask(real, packed.block.to(device), start),
            position_ids=positions,
            visual_pos_masks=is_visual,
            deepstack_visual_embeds=[planes],
            use_cache=False,
        ).last_hidden_state[:, start + longest :]
    return loss_of_answers(states, words, packed, "/all" if budget is None else "/kept", emphasis)


def train_language(
    model: Qwen3VLForConditionalGeneration, preset: Preset, out: Path, device: torch.device, *, dropout: bool
) -> None:
    """Stage 2: the language model alone, on frozen visual tokens of pictures asked about several times."""
    stage, name = preset.language, "language" if dropout else "language-control"
    model.to(device)
    model.requires_grad_(False)
    trained = list(model.model.language_model.parameters())
    for weight in trained:
        weight.requires_grad_(True)
    facts = {}
    if not (out / f"{name}.pt").exists():
        facts = {"settled": settle_tokens(model, preset, device)}
        log.info("tokens' common part: %s", facts)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=preset.bfloat16)

    def show(batch: list[Picture | Clip]) -> list[Shown]:
        with torch.no_grad(), autocast:
            tokens, deep = see(model, batch, device)
        counts = [picture.cells for picture in batch]
        parts = zip(batch, tokens.float().split(counts), deep.float().split(counts), strict=True)
        return [Shown(picture.without_pixels(), *planes) for picture, *planes in parts]

    def loss_of(step: int, batch: tuple[list[Shown], np.random.Generator]) -> tuple[Tensor, dict[str, float]]:
        shown, rng = batch
        return answer_loss(model, shown, budget_of(stage, step, dropout, rng), rng, autocast, _EMPHASIS)

    learn(
        name,
        stage,
        preset,
        out,
        device,
        parts={"model": model},
        trained=trained,
        decay=0.05,
        hidden=hidden(model.model.language_model),
        batches=lambda first: replayed(preset, first, make_batch, (preset.asked, 1.0), show),
        loss_of=loss_of,
        facts=facts,
    )
    model.requires_grad_(True)


def train_joint(
    model: Qwen3VLForConditionalGeneration, preset: Preset, out: Path, device: torch.device, *, dropout: bool
) -> None:
    """The finish: all learn from the answers and from stage 1's losses together."""
    stage, name = preset.joint, "joint" if dropout else "joint-control"
    if stage.steps == 0:
        return
    heads = Heads(preset.text_width)
    heads.load_state_dict(torch.load(out / "vision.pt", weights_only=False, map_location="cpu")["heads"])
    model.to(device), heads.to(device)
    model.requires_grad_(True)
    if not (out / f"{name}.pt").exists():
        # The tokens were settled since stage 1, and background lies elsewhere.
        heads.nothing.data.copy_(F.normalize(_some_tokens(model, preset, device)[0], dim=-1).mean(0))
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=preset.bfloat16)

    mix = replace(preset.asked, clips=_JOINT_CLIPS * preset.asked.clips)

    def batches(first: int) -> Iterator[list[Picture | Clip]]:
        tasks = (
            (preset.seed + 200, *part(step * stage.batch, stage.batch), mix, 1.0) for step in range(first, stage.steps)
        )
        return ahead(make_batch, tasks, preset.workers)

    def loss_of(step: int, batch: list[Picture | Clip]) -> tuple[Tensor, dict[str, float]]:
        rng = np.random.default_rng([preset.seed, 3, step])
        with autocast:
            tokens, deep = (plane.float() for plane in see(model, batch, device))
        counts = [picture.cells for picture in batch]
        shown = [Shown(*one) for one in zip(batch, tokens.split(counts), deep.split(counts), strict=True)]
        budget = int(rng.choice(BUDGETS[-1][1])) if dropout and rng.random() < _JOINT_DROPOUT else None
        loss, seen = answer_loss(model, shown, budget, rng, autocast, _EMPHASIS)
        # No cell of a clip is labelled.
        stills = [(one.tokens, one.deep, one.picture) for one in shown if isinstance(one.picture, Picture)]
        if stills:
            own, planes, pictures = zip(*stills, strict=True)
            aligned, watched = vision_losses(
                torch.cat(own), torch.cat(planes), list(pictures), embeddings(model), heads
            )
            loss = loss + 0.5 * aligned
            seen |= {f"vision/{key}": value for key, value in watched.items() if "/" not in key}
        return loss, seen

    learn(
        name,
        stage,
        preset,
        out,
        device,
        parts={"model": model, "heads": heads},
        trained=[weight for weight in (*model.parameters(), *heads.parameters()) if weight.requires_grad],
        decay=0.02,
        hidden=[*hidden(model.model.visual), *hidden(model.model.language_model)],
        batches=batches,
        loss_of=loss_of,
    )
