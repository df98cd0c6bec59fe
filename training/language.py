"""Stage 2 and the joint finish: the language model learns to answer from the visual tokens, then all learn together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import LlavaNextForConditionalGeneration

from training.data import IGNORE, NOTHING, View, ahead, make_batch
from training.model import embeddings, normalise, see
from training.parallel import part
from training.presets import Preset
from training.questions import BUDGETS, Packed, budget_of, loss_of_answers, pack, question_mask
from training.replay import replayed
from training.runs import learn, log
from training.views import TOKENS
from training.vision import Heads, vision_losses
from training.words import (
    BEFORE_ANSWER,
    BEFORE_IMAGE,
    END,
    ID,
    PAD,
    PLURALS,
    THINGS,
    VISUAL_WORDS,
    VOCABULARY,
    encode,
)

#: How much of what all visual tokens have in common is taken out of them, and how much is added along the words.
_COMMON_TAKEN = 0.65
_WORDS_ADDED = 1.5
#: Directions in which the visual tokens vary least, where words that name nothing visible are put.
_QUIET_DIRECTIONS = 72
#: How much of a plural's embedding is the mark of the plural.
_PLURAL_MARK = 0.25
#: What is asked once in a picture and learned late weighs more; in the finish also what needs the vision tower's help.
_EMPHASIS = {"counting": 2.0, "biggest": 2.0}
_JOINT_EMPHASIS = {**_EMPHASIS, "position": 2.0, "relation": 2.0}
#: How often tokens are dropped in the finish.
_JOINT_DROPOUT = 0.3


@torch.no_grad()
def settle_tokens(model: LlavaNextForConditionalGeneration, preset: Preset, device: torch.device) -> dict[str, float]:
    """Make visual tokens easier to tell apart for the language model, by a linear map folded into the projector.

    Stage 1 leaves tokens that are nearly parallel: what they have in common is useless to it and bounds every cosine
    with a word at about 0.2, so that attention, which starts from such products, does not find the token a word asks
    for, and the model stays at chance. Without most of the common part, and with the words' directions stronger, the
    cosine is about 0.45, and AdaFV's softmax finds as before.

    Returns:
        Length of the tokens' mean direction (1: all are parallel), before and after.
    """
    tokens = _some_tokens(model, preset, device)
    common = {"before": float(F.normalize(tokens, dim=-1).mean(0).norm())}
    span, _ = torch.linalg.qr(embeddings(model)[[ID[word] for word in VISUAL_WORDS]].T.float())
    change = torch.eye(len(span), device=device) + _WORDS_ADDED * span @ span.T
    last = model.model.multi_modal_projector.linear_2
    last.bias.copy_(change @ (last.bias - _COMMON_TAKEN * tokens.mean(0)))
    last.weight.copy_(change @ last.weight)
    common["after"] = float(F.normalize(_some_tokens(model, preset, device), dim=-1).mean(0).norm())
    return common


@torch.no_grad()
def _some_tokens(model: LlavaNextForConditionalGeneration, preset: Preset, device: torch.device) -> Tensor:
    """The visual tokens of a few scenes, (T, D)."""
    scenes = make_batch(preset.seed + 2, 0, 24, preset.canvases, 0.5)
    pixels = torch.cat([torch.from_numpy(scene.pixels) for scene in scenes]).to(device)
    return see(model, normalise(pixels))[1].float().flatten(0, 1)


@torch.no_grad()
def settle_words(model: LlavaNextForConditionalGeneration, preset: Preset, device: torch.device) -> dict[str, float]:
    """Give the words that stage 1 did not train their embeddings, and all words length one.

    Function words go where visual tokens hardly are, so that they find nothing in a picture. A plural lies by its
    singular.

    Returns:
        The largest cosine of a function word with a visual token, before and after.
    """
    words = embeddings(model)
    tokens = F.normalize(_some_tokens(model, preset, device), dim=-1)
    others = [ID[word] for word in VOCABULARY if word not in {*VISUAL_WORDS, *PLURALS}]
    cosines = {"before": float((tokens @ F.normalize(words[others], dim=-1).T).abs().max())}
    _, directions = torch.linalg.eigh((tokens.T @ tokens / len(tokens)).double().cpu())
    quiet = directions[:, : min(_QUIET_DIRECTIONS, words.shape[1] // 2)].float().T
    generator = torch.Generator().manual_seed(preset.seed)
    drawn = F.normalize(torch.randn(len(others) + 1, len(quiet), generator=generator) @ quiet, dim=-1).to(device)
    words[others] = drawn[:-1]
    words.copy_(F.normalize(words, dim=-1))
    singulars, plurals = [ID[name] for name in THINGS], [ID[name] for name in PLURALS]
    words[plurals] = F.normalize(words[singulars] + _PLURAL_MARK * drawn[-1], dim=-1)
    cosines["after"] = float((tokens @ words[others].T).abs().max())
    return cosines


@dataclass(frozen=True)
class Asked:
    """A picture's visual tokens and the questions about it, as stage 2 sees them.

    Attributes:
        view: the picture, without its pixels.
        tokens: (views * TOKENS, D) its projected patches.
    """

    view: View
    tokens: Tensor


def pack_questions(views: list[View], answerable: list[list[bool]]) -> Packed:
    """Put the answerable questions of each picture into one row."""
    asked = [
        [
            ([*encode(question.text), *BEFORE_ANSWER], [ID[question.answers[0]]], question.kind)
            for question, use in zip(view.questions, usable, strict=True)
            if use
        ]
        for view, usable in zip(views, answerable, strict=True)
    ]
    return pack(asked, PAD, END)


def answerable(view: View, kept: np.ndarray, everything: bool) -> list[bool]:
    """Which questions can be answered from the patches that are kept.

    Something of what is asked about must be left: of its colour or its number if that is asked, and in the base view,
    which alone knows the place in the picture, if it is asked where it is. Counting needs everything.
    """
    in_base = kept < TOKENS
    out = []
    for question in view.questions:
        wanted = [THINGS.index(view.names[i]) for i in question.things]
        things = view.thing[kept]
        if everything or not wanted:
            out.append(True)
        elif question.kind == "counting":
            out.append(False)
        elif question.kind in ("position", "relation"):
            out.append(all(bool(((things == name) & in_base).any()) for name in wanted))
        elif question.kind == "attribute":
            out.append(bool(((things == wanted[0]) & (view.color[kept] >= 0)).any()))
        elif question.kind == "reading":
            out.append(bool((view.digit[kept] >= 0).any()))
        else:
            out.append(bool((things == wanted[0]).any()))
    return out


def drop_tokens(view: View, budget: int, rng: np.random.Generator) -> np.ndarray:
    """Places in the prompt's order of ``budget`` visual tokens, drawn so that most things keep a few."""
    order = view.order
    label = np.where(order >= 0, view.thing[order], -1)
    weight = np.full(len(order), 1e-4)
    for value in np.unique(label[label != -1]):
        members = label == value
        share = 1.0 if value == NOTHING else 0.5 if value == IGNORE else 2.0
        weight[members] = share / members.sum()
    noise = rng.gumbel(size=len(order)) * rng.choice([0.6, 1.0, 1.5])
    kept = np.argsort(-(np.log(weight) + noise), kind="stable")[:budget]
    return np.sort(kept)


def answer_loss(
    model: LlavaNextForConditionalGeneration,
    asked: list[Asked],
    budget: int | None,
    rng: np.random.Generator,
    autocast: torch.autocast,
    emphasis: Mapping[str, float] | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """Loss of the answers, and the share of right ones by kind.

    Args:
        asked: pictures with their tokens.
        budget: how many visual tokens are left of each, None for all.
        emphasis: weights of kinds of questions, 1 unless given.
    """
    device = asked[0].tokens.device
    words, newline = embeddings(model), model.model.image_newline
    kept, places, extents = [], [], []
    original = bool(rng.random() < 0.5)
    for item in asked:
        count = len(item.view.order)
        keep = np.arange(count) if budget is None else drop_tokens(item.view, budget, rng)
        kept.append(keep)
        places.append(keep if budget is None or original else np.arange(len(keep)))
        extents.append(count if budget is None or original else len(keep))
    usable = [
        answerable(item.view, item.view.order[keep][item.view.order[keep] >= 0], budget is None)
        for item, keep in zip(asked, kept, strict=True)
    ]
    packed = pack_questions([item.view for item in asked], usable)
    longest, before = max(len(keep) for keep in kept), len(BEFORE_IMAGE)
    place = torch.zeros(len(asked), longest, dtype=torch.long)
    real = torch.zeros(len(asked), longest, dtype=torch.bool)
    rows = []
    for i, (item, keep) in enumerate(zip(asked, kept, strict=True)):
        source = torch.cat([item.tokens, newline[None].to(item.tokens.dtype)])  # index -1 is the newline
        rows.append(F.pad(source[torch.from_numpy(item.view.order[keep]).to(device)], (0, 0, 0, longest - len(keep))))
        place[i, : len(keep)] = torch.from_numpy(places[i])
        real[i, : len(keep)] = True
    visual = torch.stack(rows)
    start = words[list(BEFORE_IMAGE)].expand(len(asked), -1, -1)
    hidden = torch.cat([start, visual.to(start.dtype), words[packed.ids.to(device)]], 1)
    positions = torch.cat(
        [
            torch.arange(before).expand(len(asked), -1),
            place + before,
            packed.place + before + torch.tensor(extents)[:, None],
        ],
        1,
    ).to(device)
    mask = question_mask(real.to(device), packed.block.to(device), before)
    with autocast:
        states = model.model.language_model(
            inputs_embeds=hidden, attention_mask=mask, position_ids=positions, use_cache=False
        ).last_hidden_state[:, before + longest :]
    return loss_of_answers(states, words, packed, "/all" if budget is None else "/kept", emphasis)


def _without_pixels(view: View) -> View:
    return View(**{**view.__dict__, "pixels": view.pixels[:, :0]})


def train_language(
    model: LlavaNextForConditionalGeneration,
    preset: Preset,
    out: Path,
    device: torch.device,
    *,
    dropout: bool,
) -> None:
    """Stage 2: the language model alone, on frozen visual tokens of pictures asked about several times."""
    stage, name = preset.language, "language" if dropout else "language-control"
    model.to(device)
    model.requires_grad_(False)
    trained = [weight for part, weight in model.model.language_model.named_parameters() if "embed_tokens" not in part]
    trained.append(model.model.image_newline)
    for weight in trained:
        weight.requires_grad_(True)
    facts = {}
    if not (out / f"{name}.pt").exists():
        settled = {"common": settle_tokens(model, preset, device), "words": settle_words(model, preset, device)}
        log.info("tokens' common part, and function words' largest cosine with a token: %s", settled)
        facts = {"settled": settled}
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=preset.bfloat16)

    def show(batch: list[View]) -> list[Asked]:
        with torch.no_grad(), autocast:
            pixels = torch.cat([torch.from_numpy(view.pixels) for view in batch]).to(device)
            tokens = see(model, normalise(pixels))[1].float()
        parts = tokens.split([len(view.pixels) for view in batch])
        return [Asked(_without_pixels(view), part.flatten(0, 1)) for view, part in zip(batch, parts, strict=True)]

    def loss_of(step: int, batch: tuple[list[Asked], np.random.Generator]) -> tuple[Tensor, dict[str, float]]:
        asked, rng = batch
        budget = budget_of(stage, step, dropout, rng)
        return answer_loss(model, asked, budget, rng, autocast, _EMPHASIS)

    learn(
        name,
        stage,
        preset,
        out,
        device,
        parts={"model": model},
        trained=trained,
        decay=0.05,
        batches=lambda first: replayed(preset, first, make_batch, (preset.canvases, 0.5), show),
        loss_of=loss_of,
        facts=facts,
    )
    model.requires_grad_(True)


def train_joint(
    model: LlavaNextForConditionalGeneration,
    preset: Preset,
    out: Path,
    device: torch.device,
    *,
    dropout: bool,
) -> None:
    """The finish: all but the word embeddings learn from the answers and from stage 1's losses together."""
    stage, name = preset.joint, "joint" if dropout else "joint-control"
    if stage.steps == 0:
        return
    heads = Heads(preset.vision_width, preset.text_width)
    heads.load_state_dict(torch.load(out / "vision.pt", weights_only=False, map_location="cpu")["heads"])
    model.to(device), heads.to(device)
    model.requires_grad_(True)
    embeddings(model).requires_grad_(False)
    if not (out / f"{name}.pt").exists():
        # The tokens were settled since stage 1, and background lies elsewhere.
        heads.nothing.data.copy_(F.normalize(_some_tokens(model, preset, device), dim=-1).mean(0))
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=preset.bfloat16)

    def batches(first: int) -> Iterator[list[View]]:
        tasks = (
            (preset.seed + 200, *part(step * stage.batch, stage.batch), preset.canvases, 0.5)
            for step in range(first, stage.steps)
        )
        return ahead(make_batch, tasks, preset.workers)

    def loss_of(step: int, batch: list[View]) -> tuple[Tensor, dict[str, float]]:
        rng = np.random.default_rng([preset.seed, 3, step])
        with autocast:
            cls, tokens = see(model, normalise(torch.cat([torch.from_numpy(view.pixels) for view in batch]).to(device)))
        parts = tokens.float().split([len(view.pixels) for view in batch])
        asked = [Asked(view, part.flatten(0, 1)) for view, part in zip(batch, parts, strict=True)]
        budget = int(rng.choice(BUDGETS[-1][1])) if dropout and rng.random() < _JOINT_DROPOUT else None
        answered, seen = answer_loss(model, asked, budget, rng, autocast, _JOINT_EMPHASIS)
        aligned, watched = vision_losses(cls.float(), tokens.float(), batch, embeddings(model), heads)
        watched = {f"vision/{key}": value for key, value in watched.items() if "/" not in key}
        return answered + 0.5 * aligned, {**seen, **watched}

    learn(
        name,
        stage,
        preset,
        out,
        device,
        parts={"model": model, "heads": heads},
        trained=[weight for weight in (*model.parameters(), *heads.parameters()) if weight.requires_grad],
        decay=0.02,
        batches=batches,
        loss_of=loss_of,
    )
