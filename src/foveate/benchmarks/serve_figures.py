"""Figures of a load on a server: medians over rounds, percentiles over requests, shares from the server's counters."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from foveate.benchmarks.prefill import Target
from foveate.benchmarks.report import finish
from foveate.benchmarks.serve import Arm, Block, Load
from foveate.keep import keep_label

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PERCENTS = (50, 90, 99)


@dataclass(frozen=True)
class Figures:
    """One arm's figures, of all rounds. Failed requests count in ``requests`` and ``failed`` alone.

    Args:
        pictures: "fresh", or "repeated": pictures that the server has seen, with new questions.
        loop, load: "closed" and requests at a time, or "open" and requests per second.
        method, keep, crops: what every request asked for; crops is "" where all of them are encoded.
        requests: sent.
        failed: of those.
        errors: how often for which reason.
        rates: answered requests per second, of every round.
        rate: their median.
        gain: over the arm with the largest budget in the same round, the median ratio; 1.0 of that arm itself, None
            where nothing was answered.
        ttft_ms: 50th, 90th and 99th percentile over requests, from when a request was due to its first token.
        gap_ms: the same of the time between two tokens.
        total_ms: the same of whole answers.
        processor_ms: that the server's processes took per answered request, the median over rounds. None: it was not
            started here, or its work is on an accelerator.
        encoder_share: of the time of the rounds, the server's worker in the vision tower. None: the server does not
            tell. The same for:
        select_share: choosing tokens.
        language_share: the language model.
        prefix_hits: of the prompt tokens that vLLM looked for in its prefix cache, the share it found.
        feature_hits: of the pictures that the worker looked at, the share whose features it still had.
        visual_tokens: that reached the language model, per request.
        views_encoded: base views and crops that went through the vision tower, per request, where requests choose among
            crops; None elsewhere.
    """

    pictures: str
    loop: str
    load: float
    method: str
    keep: float | int
    crops: str
    requests: int
    failed: int
    errors: dict[str, int]
    rates: list[float]
    rate: float
    gain: float | None
    ttft_ms: list[float] | None
    gap_ms: list[float] | None
    total_ms: list[float] | None
    processor_ms: float | None
    encoder_share: float | None
    select_share: float | None
    language_share: float | None
    prefix_hits: float | None
    feature_hits: float | None
    visual_tokens: float | None
    views_encoded: float | None
    key: Arm = field(repr=False)

    @property
    def way(self) -> str:
        """The method for people, with its crops where not all are encoded."""
        return f"{self.method}, crops {self.crops}" if self.crops else self.method

    def as_dict(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if name != "key"}


@dataclass(frozen=True)
class Report:
    """All figures of a run.

    Args:
        figures: one per arm, in the order of the arms.
        blocks: what they are made of.
    """

    figures: Sequence[Figures]
    blocks: Sequence[Block] = field(repr=False)

    def targets(self) -> list[Target]:
        """What should hold: no request fails; in closed loops throughput rises with every step of the budget, and with
        pictures that the server has seen; and it does not fall where fewer crops are encoded.

        A step is the median, over rounds, of one rate over the other: what slows both drops out.
        """
        sent = sum(one.requests for one in self.figures)
        found = [Target(f"failed of {sent} requests", sum(one.failed for one in self.figures), 0, True)]
        closed = [one for one in self.figures if one.loop == "closed"]
        for one in closed:
            below = [
                other
                for other in closed
                if other.key.load == one.key.load and other.key.shared == one.key.shared
                and (other.crops == one.crops or _all(other.keep))
                and (other.method == one.method or _all(other.keep)) and _above(other.keep, one.keep)
            ]  # fmt: skip
            if below:
                other = min(below, key=lambda two: _order(two.keep))
                name = (
                    f"{one.pictures}, {one.key.load}, {one.way}: requests/s at keep {keep_label(one.keep)} over "
                    f"{keep_label(other.keep)}"
                )
                found.append(Target(name, _ratio(self.blocks, one.key, other.key) or 0.0, 1.0, False))
        keys = {one.key for one in closed}
        for one in closed:
            fresh, uncut = replace(one.key, shared=0), replace(one.key, crops="")
            if one.pictures != "fresh" and fresh in keys:
                name = f"{one.key.load}, {one.way} {keep_label(one.keep)}: requests/s, repeated over fresh pictures"
                found.append(Target(name, _ratio(self.blocks, one.key, fresh) or 0.0, 1.0, False))
            if one.crops and uncut in keys:
                name = f"{one.pictures}, {one.key.load}, {one.way} {keep_label(one.keep)}: requests/s over all crops"
                found.append(Target(name, _ratio(self.blocks, one.key, uncut) or 0.0, 1.0, False))
        return found

    def as_dict(self) -> dict[str, Any]:
        return {
            "results": [one.as_dict() for one in self.figures],
            "targets": [{**asdict(one), "holds": one.holds} for one in self.targets()],
        }


def summarise(blocks: Sequence[Block]) -> Report:
    """Figures of measured blocks."""
    arms = list(dict.fromkeys(block.arm for block in blocks))
    return Report([_figures(arm, arms, blocks) for arm in arms], blocks)


def _figures(arm: Arm, arms: Sequence[Arm], blocks: Sequence[Block]) -> Figures:
    own = [block for block in blocks if block.arm == arm]
    exchanges = [one for block in own for one in block.exchanges]
    answered = [one for one in exchanges if one.error is None]
    seconds = sum(block.seconds for block in own)
    alike = [one for one in arms if (one.load, one.shared) == (arm.load, arm.shared)]
    largest = max(alike, key=lambda one: (_order(one.keep), not one.crops))

    def counted(name: str) -> float | None:
        if not all(name in block.counted for block in own):
            return None
        return sum(block.counted[name] for block in own)

    def share(name: str) -> float | None:
        spent = counted(f"foveate_{name}_seconds_total")
        return None if spent is None else spent / seconds

    language = share("language")
    kept, images = counted("foveate_visual_tokens_kept_total"), counted("foveate_images_total")
    return Figures(
        pictures="repeated" if arm.shared else "fresh",
        loop=arm.load.kind,
        load=arm.load.value,
        method=arm.method,
        keep=arm.keep,
        crops=arm.crops,
        requests=len(exchanges),
        failed=len(exchanges) - len(answered),
        errors=dict(Counter(one.error for one in exchanges if one.error is not None).most_common()),
        rates=[block.rate for block in own],
        rate=statistics.median(block.rate for block in own),
        gain=_ratio(blocks, arm, largest),
        ttft_ms=_percentiles([one.ttft_ms for one in answered if one.ttft_ms is not None]),
        gap_ms=_percentiles([gap for one in answered for gap in one.gaps_ms]),
        total_ms=_percentiles([one.total_ms for one in answered]),
        processor_ms=_processor_ms(own),
        encoder_share=share("encode"),
        select_share=share("select"),
        language_share=language or None,  # 0: hidden by CUDA graphs
        prefix_hits=_part(counted("vllm:prefix_cache_hits_total"), counted("vllm:prefix_cache_queries_total")),
        feature_hits=_part(
            counted("foveate_feature_cache_hits_total"),
            _sum(counted("foveate_feature_cache_hits_total"), counted("foveate_feature_cache_misses_total")),
        ),
        visual_tokens=_part(kept, images),
        views_encoded=_part(counted("foveate_views_encoded_total"), images) if arm.crops else None,
        key=arm,
    )


def _processor_ms(blocks: Sequence[Block]) -> float | None:
    answered = [block for block in blocks if block.rate]
    if not answered or any(block.processor_seconds is None for block in answered):
        return None
    return statistics.median(1e3 * (block.processor_seconds or 0) / (block.rate * block.seconds) for block in answered)


def _percentiles(values: Sequence[float]) -> list[float] | None:
    """The nearest ranks: values that were measured."""
    ranked = sorted(values)
    return [ranked[math.ceil(len(ranked) * percent / 100) - 1] for percent in PERCENTS] if ranked else None


def _sum(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one + other


def _part(one: float | None, whole: float | None) -> float | None:
    return None if one is None or not whole else one / whole


def _order(keep: float | int) -> tuple[bool, float]:
    """Budgets by size; fractions and numbers of tokens do not compare, all tokens are above both."""
    return _all(keep), keep


def _all(keep: float | int) -> bool:
    return type(keep) is float and keep == 1


def _above(one: float | int, other: float | int) -> bool:
    return (type(one) is type(other) or _all(one)) and _order(one) > _order(other)


def _ratio(blocks: Sequence[Block], one: Arm, other: Arm) -> float | None:
    """The median over rounds of one arm's rate over the other's."""
    rates = [{block.round: block.rate for block in blocks if block.arm == arm} for arm in (one, other)]
    ratios = [rate / rates[1][number] for number, rate in rates[0].items() if rates[1].get(number)]
    return statistics.median(ratios) if ratios else None


def table(report: Report) -> tuple[list[str], list[list[str]]]:
    """One row per arm."""
    several = len({one.method for one in report.figures}) > 1
    timed = any(one.processor_ms is not None for one in report.figures)
    cut = any(one.crops for one in report.figures)
    heads = [
        "pictures", "load", *(["method"] if several else []), "keep",
        *(["crops", "views encoded"] if cut else []), "visual tokens", "requests/s", "gain",
        *(["processor, ms"] if timed else []),
        "first token, ms: p50", "p90", "p99", "between tokens, ms: p50", "p90", "p99",
        "encoder, %", "selection, %", "LLM, %", "prefix hits, %", "feature hits, %", "requests", "failed",
    ]  # fmt: skip
    rows = []
    for one in report.figures:
        rows.append(
            [
                one.pictures, str(Load(one.key.load.kind, one.load)), *([one.method] if several else []),
                keep_label(one.keep), *([one.crops or "all", _text(one.views_encoded, ".1f")] if cut else []),
                _text(one.visual_tokens, ".0f"), _text(one.rate, ".2f"),
                _text(one.gain, ".2f"), *([_text(one.processor_ms, ".0f")] if timed else []),
                *_texts(one.ttft_ms, ".0f"), *_texts(one.gap_ms, ".1f"),
                _percent(one.encoder_share), _percent(one.select_share), _percent(one.language_share),
                _percent(one.prefix_hits), _percent(one.feature_hits), str(one.requests), str(one.failed),
            ]
        )  # fmt: skip
    return heads, rows


def targets_table(report: Report) -> tuple[list[str], list[list[str]]]:
    """One row per figure that should hold."""
    rows = [
        [one.name, f"{one.value:.3g}", f"{'at most' if one.at_most else 'at least'} {one.limit:g}",
         "yes" if one.holds else "no"]
        for one in report.targets()
    ]  # fmt: skip
    return ["target", "measured", "wanted", "holds"], rows


def errors_table(report: Report) -> tuple[list[str], list[list[str]]]:
    """Why requests failed, and how many; no rows: none did."""
    found: Counter[str] = Counter()
    for one in report.figures:
        found.update(one.errors)
    return ["failed because", "requests"], [[error, str(count)] for error, count in found.most_common()]


def _text(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _texts(values: Sequence[float] | None, form: str) -> list[str]:
    return [""] * len(PERCENTS) if values is None else [_text(value, form) for value in values]


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def plot(report: Report, title: str) -> Figure:
    """Requests per second, the median time to the first token and, where it is known, what a request costs the server's
    processors, over the budget, a line per load.

    Returns:
        A matplotlib figure that no global state knows of; save it with ``savefig``.
    """
    from matplotlib.figure import Figure

    panels: list[tuple[str, Callable[[Figures], float | None]]] = [
        ("requests per second", lambda one: one.rate),
        ("first token, median, ms", lambda one: None if one.ttft_ms is None else one.ttft_ms[0]),
    ]
    if any(one.processor_ms is not None for one in report.figures):
        panels.append(("processor time per request, ms", lambda one: one.processor_ms))
    figure = Figure(figsize=(2.4 + 4 * len(panels), 4.0), layout="constrained")
    keeps = sorted({one.keep for one in report.figures}, key=_order, reverse=True)
    lines = list(dict.fromkeys((one.pictures, one.key.load, one.way) for one in report.figures))
    several = len({one.way for one in report.figures}) > 1
    for number, (what, value) in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), number + 1)
        loads = list(dict.fromkeys(load for _, load, _ in lines))
        for pictures, load, way in lines:
            own = [one for one in report.figures if (one.pictures, one.key.load, one.way) == (pictures, load, way)]
            points = [(keeps.index(one.keep), value(one)) for one in own]
            axes.plot(
                [place for place, height in points if height is not None],
                [height for _, height in points if height is not None],
                label=f"{load}, {pictures}{f', {way}' if several else ''}",
                color=f"C{loads.index(load)}", linestyle="-" if pictures == "fresh" else "--",
                marker="o" if load.kind == "closed" else "^", markersize=4, linewidth=1.8,
            )  # fmt: skip
        axes.set_xticks(range(len(keeps)), [keep_label(keep) for keep in keeps])
        axes.set_xlabel("kept of each picture")
        axes.set_ylabel(what)
    finish(figure, title)
    return figure
