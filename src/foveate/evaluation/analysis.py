"""Two analyses of what could rank visual tokens: does a score depend on where a token stands, does it find the object.

They are AdaFV's (arXiv 2501.09532) reasons for leaving attention inside the language model alone, repeated on drawn
pictures, where what is asked about has known boxes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from foveate.evaluation.drawn import Item
from foveate.evaluation.kept import Kept, Lying
from foveate.evaluation.llm_attention import reading_row
from foveate.evaluation.plots_of_kept import plot_kept
from foveate.evaluation.scenes import SCENES
from foveate.evaluation.statistics import Design, Difference, Estimate, bootstrap, paired_difference, tallied
from foveate.images import load_image
from foveate.models import family_for
from foveate.pruners import AdaFV
from foveate.pruners.base import SALIENCY, TEXT_TO_IMAGE
from foveate.session import Session, look

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LLM = "llm_attention"
SCORES = (LLM, TEXT_TO_IMAGE, SALIENCY)
TITLES = {
    LLM: "attention inside the LLM",
    TEXT_TO_IMAGE: "text-to-image attention (AdaFV)",
    SALIENCY: "visual saliency",
}
COLOURS = {LLM: "#8d96a3", TEXT_TO_IMAGE: "#2e86ab", SALIENCY: "#edae49"}

ANALYSIS_FILE = "analysis.json"
BINS = 16
"""Places along the prompt that the position curves have."""
KEEPS = (0.05, 0.1, 0.25)
"""Fractions of the tokens at which recall is taken."""


@dataclass(frozen=True)
class Scored:
    """One question's scores.

    Args:
        item: the question.
        scores: by name, (N,) float64, summing to N: 1 is what an even spread gives.
        inside: (N,) bool: the token is one of what is asked about, see ``tokens_of``.
        base: (N,) bool: the token is one of the base view's.
    """

    item: Item
    scores: dict[str, np.ndarray]
    inside: np.ndarray
    base: np.ndarray


@dataclass(frozen=True)
class Bias:
    """How one score depends on the place in the prompt; 1 is an even spread.

    Args:
        score: its name.
        curve: its mean in each of ``BINS`` stretches of the visual tokens, first to last.
        first, last: mean in the first and in the last quarter of the tokens.
        base: mean over the base view's tokens.
        slope: Spearman's rank correlation of score and place, averaged over questions.
    """

    score: str
    curve: tuple[float, ...]
    first: Estimate
    last: Estimate
    base: Estimate
    slope: Estimate


@dataclass(frozen=True)
class Alignment:
    """How well one score ranks the tokens of what is asked about above the others.

    Args:
        score: its name.
        group: of questions.
        auc: area under the ROC curve, 0.5 by chance, averaged over questions.
        recall: by fraction kept: the part of the object's tokens among the so many best.
        share: the part of the tokens that are the object's, averaged over questions.
    """

    score: str
    group: str
    auc: Estimate
    recall: dict[float, Estimate]
    share: float


@dataclass(frozen=True)
class Found:
    """The ROC-AUC of every score on one question that asks about something in its picture."""

    image: str
    question: str
    auc: dict[str, float]


@dataclass(frozen=True)
class Analysis:
    """Both analyses. ``pairs`` compares the ROC-AUC of two scores on the same questions: (first, second, group)."""

    layer: int
    questions: int
    pictures: int
    bias: tuple[Bias, ...]
    alignment: tuple[Alignment, ...]
    pairs: dict[tuple[str, str, str], Difference]
    found: tuple[Found, ...]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "layer": self.layer,
            "questions": self.questions,
            "pictures": self.pictures,
            "bias": [asdict(one) for one in self.bias],
            "alignment": [asdict(one) for one in self.alignment],
            "paired_auc": [
                {"first": first, "second": second, "group": group, **asdict(difference)}
                for (first, second, group), difference in self.pairs.items()
            ],
            "asked": [asdict(one) for one in self.found],
            "note": (
                f"{LLM}: attention of the question's last token in layer {self.layer} (from 0) of the language model, "
                "mean over heads; scores sum to the number of tokens, so 1 is an even spread. A token is the object's "
                "when its centre lies in the object's box, or where that holds no token's centre, when it holds the "
                "box's. 95 % bootstrap intervals over pictures; p_value: scores "
                "swapped picture by picture at random, two-sided, not corrected for the number of comparisons."
            ),
        }


def analyse(
    model: Any,
    processor: Any,
    items: Sequence[Item],
    folder: Path,
    *,
    layer: int = 2,
    batch: int = 16,
    located: Sequence[str] = SCENES.located,
    kept: Kept | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Analysis:
    """Reads all three scores for every question and works out both analyses.

    Every question costs one prefill with all tokens, for the attention inside the language model, and a short one.

    Args:
        model, processor: a stock transformers model of a known family, and its processor.
        items: questions of a drawn world.
        folder: where the pictures lie.
        layer: of the language model, from 0. Default 2: what FastV (arXiv 2403.06764) reads.
        batch: most questions asked at once.
        located: kinds of questions whose boxes are what is asked about, see ``World.located``. Default those of scenes.
        kept: is shown every question as well, with its picture encoded once for all.
        progress: called with the number of questions done and of those there are.

    Raises:
        ValueError: no questions, no such layer, or none that asks about something in the picture.
    """
    if not items:
        raise ValueError("no question to ask")
    scored: list[Scored] = []
    by_picture: dict[str, list[Item]] = {}
    for item in items:
        by_picture.setdefault(item.image, []).append(item)
    for image, asked in by_picture.items():
        picture = load_image(folder / image)
        session = look(model, processor, picture)
        for start in range(0, len(asked), batch):
            scored += _score(session, asked[start : start + batch], picture.size, layer)
            if kept is not None:
                kept.read(session, asked[start : start + batch], picture.size)
            if progress is not None:
                progress(len(scored), len(items))
    return summarise(scored, layer, located)


def _score(session: Session, items: Sequence[Item], size: tuple[int, int], layer: int) -> Iterator[Scored]:
    questions = [item.question for item in items]
    options: dict[str, Any] = {"max_new_tokens": 1, "do_sample": False, "num_beams": 1}
    with reading_row(session.model, layer, _tokens_after(session, questions[0])) as rows:
        whole = session.ask_many(questions, None, **options)
    (attention,) = rows
    short = session.ask_many(questions, AdaFV(keep=1), **options)
    slots = session.images[0].slots
    token = family_for(session.model).image_token_id
    for item, answer, pruned, row in zip(items, whole, short, attention, strict=True):
        prompt = answer.sequence[: len(answer.sequence) - answer.new_tokens]
        visual = row[(prompt == token).to(row.device)].cpu()
        read = {LLM: visual if slots is None else visual[slots >= 0], **pruned.selections[0].scores}
        geometry = pruned.selections[0].geometry
        scores = {name: _spread(read[name]) for name in SCORES}
        if len({len(geometry), *map(len, scores.values())}) > 1:
            raise ValueError(
                "the prompt's image placeholders are not the tokens that were scored: this model family sends tokens "
                "in another order than it scores them, and its attention cannot be told apart"
            )
        inside = tokens_of(item, geometry.boxes_in(size[1], size[0]).cpu().numpy())
        yield Scored(item, scores, inside, geometry.view.cpu().numpy() == 0)


def tokens_of(item: Item, boxes: np.ndarray) -> np.ndarray:
    """(N,) bool: the tokens of what is asked about: whose centre lies in a box of it, and of a box that is too small
    to have any, those that hold its centre.

    Args:
        item: the question.
        boxes: (N, 4) of the tokens, in pixels of the item's picture.
    """
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    inside = np.zeros(len(boxes), dtype=bool)
    for x0, y0, x1, y1 in item.boxes:
        own = ((centres >= (x0, y0)) & (centres < (x1, y1))).all(axis=1)
        if not own.any():
            middle = ((x0 + x1) / 2, (y0 + y1) / 2)
            own = ((boxes[:, :2] <= middle) & (boxes[:, 2:] > middle)).all(axis=1)
        inside |= own
    return inside


def _spread(score: torch.Tensor) -> np.ndarray:
    values = score.detach().double().cpu().numpy()
    return np.asarray(values * len(values) / values.sum())


def _tokens_after(session: Session, question: str) -> int:
    """How many tokens the template puts after a question: so far before the end stands the question's last token."""
    prompt = session.prompt(question)
    end = prompt.rindex(question) + len(question.rstrip())
    read = session.processor.tokenizer(prompt, add_special_tokens=False, return_offsets_mapping=True)
    return sum(start >= end for start, _ in read["offset_mapping"])


def area_under_roc(score: np.ndarray, inside: np.ndarray) -> float:
    """How often a token of the object has a higher score than one that is not; equal ones count half (Mann-Whitney).

    Raises:
        ValueError: all of the tokens are the object's, or none.
    """
    positive = int(inside.sum())
    negative = len(inside) - positive
    if not positive or not negative:
        raise ValueError("a ROC curve needs tokens inside and outside of the object")
    ranks = _ranks(score)
    return float((ranks[inside].sum() - positive * (positive + 1) / 2) / (positive * negative))


def recall_at(score: np.ndarray, inside: np.ndarray, keep: float) -> float:
    """The part of the object's tokens among the ``ceil(keep * N)`` of the highest score; ties go to the earlier."""
    budget = int(np.ceil(keep * len(score) - 1e-9))
    best = np.argsort(-score, kind="stable")[:budget]
    return float(inside[best].sum() / inside.sum())


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1, equal values sharing the mean of theirs."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((count.cumsum() - (count - 1) / 2)[place])


def _slope(score: np.ndarray) -> float:
    ranks = _ranks(score)
    return 0.0 if np.ptp(ranks) == 0 else float(np.corrcoef(ranks, np.arange(len(ranks)))[0, 1])


def groups_of(item: Item) -> Iterator[str]:
    """Which groups a question's alignment is reported in."""
    yield "all"
    yield item.size
    if item.size == "small" and item.clutter:
        yield "small in clutter"
    yield item.kind


def summarise(scored: Sequence[Scored], layer: int, located: Sequence[str] = SCENES.located) -> Analysis:
    """Works out both analyses; ``located`` as for ``analyse``.

    Raises:
        ValueError: no question asks about something in its picture.
    """
    pictures = Design([one.item.image for one in scored])
    bias = []
    for name in SCORES:
        curves = np.array([[part.mean() for part in np.array_split(one.scores[name], BINS)] for one in scored])
        quarters = np.array([[part.mean() for part in np.array_split(one.scores[name], 4)] for one in scored])

        def estimate(values: Sequence[float] | np.ndarray) -> Estimate:
            return bootstrap(pictures, tallied(values))

        bias.append(
            Bias(
                score=name,
                curve=tuple(curves.mean(0).round(5).tolist()),
                first=estimate(quarters[:, 0]),
                last=estimate(quarters[:, -1]),
                base=estimate([one.scores[name][one.base].mean() for one in scored]),
                slope=estimate([_slope(one.scores[name]) for one in scored]),
            )
        )
    found = [one for one in scored if one.item.kind in located and one.inside.any() and not one.inside.all()]
    if not found:
        raise ValueError("none of the questions asks about something in its picture: draw more pictures")
    alignment, pairs = [], {}
    auc = {name: np.array([area_under_roc(one.scores[name], one.inside) for one in found]) for name in SCORES}
    for group in dict.fromkeys(name for one in found for name in groups_of(one.item)):
        part = np.array([group in groups_of(one.item) for one in found])
        members = [one for one, counts in zip(found, part, strict=True) if counts]
        design = Design([one.item.image for one in members])
        for name in SCORES:
            recall = {
                keep: bootstrap(design, tallied([recall_at(one.scores[name], one.inside, keep) for one in members]))
                for keep in KEEPS
            }
            share = float(np.mean([one.inside.mean() for one in members]))
            alignment.append(Alignment(name, group, bootstrap(design, tallied(auc[name][part])), recall, share))
        for first, second in ((TEXT_TO_IMAGE, LLM), (SALIENCY, LLM), (TEXT_TO_IMAGE, SALIENCY)):
            pairs[first, second, group] = paired_difference(auc[first][part], auc[second][part], design)
    asked = tuple(
        Found(one.item.image, one.item.question, {name: round(float(auc[name][place]), 5) for name in SCORES})
        for place, one in enumerate(found)
    )
    return Analysis(layer, len(scored), len(set(pictures.pictures)), tuple(bias), tuple(alignment), pairs, asked)


def read_salience(folder: Path) -> dict[tuple[str, str], float]:
    """How well saliency ranks what is asked about, by (image, question): ROC-AUC, from what ``save`` wrote.

    Raises:
        ValueError: there is no such analysis in the folder.
    """
    file = folder / ANALYSIS_FILE
    try:
        asked = json.loads(file.read_text(encoding="utf-8"))["asked"]
    except (OSError, json.JSONDecodeError, KeyError) as error:
        raise ValueError(f"{file} is not what foveate analyze writes: {error}") from None
    return {(one["image"], one["question"]): one["auc"][SALIENCY] for one in asked}


def plot(analysis: Analysis) -> Figure:
    """Mean score by place, and recall over the fraction kept, for all questions and for small things in clutter.

    Returns:
        A matplotlib figure that no global state knows of.
    """
    from matplotlib.figure import Figure

    shown = [name for name in ("all", "small in clutter") if any(one.group == name for one in analysis.alignment)]
    figure = Figure(figsize=(5.2 + 3.9 * len(shown), 4.2), layout="constrained")
    axes = figure.subplots(1, 1 + len(shown), width_ratios=[1.35, *[1] * len(shown)], squeeze=False)[0]
    places = (np.arange(BINS) + 0.5) / BINS * 100
    for bias in analysis.bias:
        axes[0].plot(places, bias.curve, color=COLOURS[bias.score], label=TITLES[bias.score], marker="o", markersize=3)
    axes[0].axhline(1, color="#333333", linestyle="--", linewidth=1)
    axes[0].set_xlabel("place among the visual tokens, %")
    axes[0].set_ylabel("mean score, 1 = even spread")
    axes[0].set_title(f"by place in the prompt, n = {analysis.questions}", fontsize=10, loc="left")
    for panel, group in zip(axes[1:], shown, strict=True):
        for one in analysis.alignment:
            if one.group == group:
                values = list(one.recall.values())
                panel.errorbar(
                    [100 * keep for keep in one.recall],
                    [100 * value.value for value in values],
                    yerr=[
                        [100 * (value.value - value.low) for value in values],
                        [100 * (value.high - value.value) for value in values],
                    ],
                    color=COLOURS[one.score], marker="o", markersize=4, capsize=2, elinewidth=1,
                    label=f"AUC {one.auc.value:.3f}",
                )  # fmt: skip
                count = one.auc.count
        panel.plot([100 * keep for keep in KEEPS], [100 * keep for keep in KEEPS], color="#333333", linestyle="--")
        panel.set_xlabel("tokens kept, %")
        panel.set_ylabel("of the object's tokens, %")
        panel.set_ylim(0, 100)
        panel.set_title(f"{'asked objects' if group == 'all' else group}, n = {count}", fontsize=10, loc="left")
        panel.legend(frameon=False, fontsize=8, loc="lower right")
    for panel in axes:
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure


def save(analysis: Analysis, out: Path, maps: Sequence[Lying] = (), title: str = "") -> list[Path]:
    """Writes ``analysis.json`` and, where matplotlib is installed, ``analysis.png``; with maps of what is kept, these
    too, and ``kept.png``. Returns the files written."""
    out.mkdir(parents=True, exist_ok=True)
    files = [out / ANALYSIS_FILE]
    told = {**analysis.as_dict(), **({"kept": [one.as_dict() for one in maps]} if maps else {})}
    files[0].write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    try:
        figures = {"analysis.png": plot(analysis)}
        if maps:
            figures["kept.png"] = plot_kept(maps, title)
    except ModuleNotFoundError:  # the plot is an extra; the figures are in the JSON
        return files
    for name, figure in figures.items():
        files.append(out / name)
        figure.savefig(files[-1], dpi=150)
    return files
