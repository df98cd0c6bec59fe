"""Time to the first token, decoding, memory, KV cache and FLOPs of the pruned model, beside stock, bound and baseline.

The *bound* is what no pruning before the language model can beat with the stock vision tower: the tower as stock runs
it, then the language model on a prompt of the kept length whose embeddings were put together beforehand; nothing is
read, chosen or shortened. Where stock runs encoder layers whose output nobody reads and Foveate leaves them out, there
is a *lean bound* beside it, whose tower leaves them out as well: what is above that one is Foveate's own work.

Where only some crops are encoded, there is a *crops bound*: the base view and then as many crops through that tower,
in two runs of it, since the base view is what says which; then the language model as before.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from foveate.benchmarks import baseline, stages
from foveate.benchmarks.measure import Clock, Task, count_flops, interleaved, paired, peak_memory
from foveate.compare import cache_bytes
from foveate.crops import Crops, encoded_tokens
from foveate.instrumented import looking_through
from foveate.keep import keep_label
from foveate.models import family_for
from foveate.models.encoded import EncodedImage, Request
from foveate.models.view_store import Views, ViewStore
from foveate.pruners import InsidePruner, Method, get_pruner, parse_method
from foveate.stopwatch import Stages
from foveate.tokens import Keep

Kind = Literal["stock", "foveate", "bound", "lean-bound", "crops-bound", "baseline", "resize"]

TARGETED = 0.1
"""The budget that the targets are set for."""
TIME_TARGET = 1.03
"""Time to the first token over the bound's, at most."""
CROPS_TARGET = 0.75
"""Time to the first token with the fewest crops over the bound with all of them, at most."""
SPEEDUP_TARGET = 0.9
"""Speed-up of the first token, from all tokens to the budget, over the bound's own, at least."""
STAGED = 3
"""Runs of every case whose stages are timed, at most."""


@dataclass(frozen=True)
class Result:
    """One way of answering. Times are medians of interleaved rounds, for the whole batch.

    Args:
        kind: stock (nothing attached), foveate, bound, lean-bound (where it differs), crops-bound, baseline, or resize
            (stock, on pictures so small that there are no more visual tokens than the budget says).
        method: of foveate and the baseline, else "".
        keep: the budget; 1.0 for all tokens.
        prompt_tokens: per sequence, that reached the language model; of methods inside it, its first layer.
        ttft_ms: vision tower, selection and prefill, up to the first token.
        total_ms: to the last of ``new_tokens``; None when only the first was asked for.
        decode_rate: tokens per second after the first, all sequences; None likewise.
        peak_bytes: tensors at their peak up to the first token, beyond weights and inputs; see ``peak_memory``.
        cache_bytes: the KV cache after prefill, summed over its tensors.
        flops: up to the first token; see ``count_flops``.
        over_bound: ``ttft_ms`` over that of the bound of the same length, by the median difference within rounds; None
            for stock.
        over_stock: the same over stock.
        over_lean: the same over the lean bound of the same length; None where there is none.
        crops: how many crops were encoded, as asked; "" for all.
        over_crops: ``ttft_ms`` over the crops bound's of the same length and crops; None where there is none.
        stages: where the time goes, in a run of its own; None for the baseline, which runs parts of the model alone.
    """

    kind: Kind
    method: str
    keep: float | int
    prompt_tokens: int
    ttft_ms: float
    total_ms: float | None
    decode_rate: float | None
    peak_bytes: int
    cache_bytes: int
    flops: int
    over_bound: float | None
    over_stock: float
    over_lean: float | None = None
    stages: Stages | None = None
    crops: str = ""
    over_crops: float | None = None

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "stages": None if self.stages is None else self.stages.as_dict()}


@dataclass(frozen=True)
class Target:
    """A figure and what it should be.

    Args:
        name: what it is.
        value: as measured.
        limit: what it may be at most or at least.
        at_most: which of the two.
    """

    name: str
    value: float
    limit: float
    at_most: bool

    @property
    def holds(self) -> bool:
        return self.value <= self.limit if self.at_most else self.value >= self.limit


@dataclass(frozen=True)
class Report:
    """All results of a run.

    Args:
        results: stock first.
        methods: of foveate, in order.
        keeps: in order; 1.0 among them.
        new_tokens: per answer.
        repeats: rounds behind each median.
        crops: choices of crops beside all of them, in order.
    """

    results: Sequence[Result]
    methods: Sequence[str]
    keeps: Sequence[float | int]
    new_tokens: int
    repeats: int
    crops: Sequence[str] = ()

    def find(self, kind: Kind, keep: float | int = 1.0, method: str = "", crops: str = "") -> Result | None:
        """The result of one case, None when it was not run."""
        wanted = (kind, keep, method, crops)
        return next((one for one in self.results if (one.kind, one.keep, one.method, one.crops) == wanted), None)

    def targets(self) -> list[Target]:
        """For every method at a tenth of the tokens: time over the bound, speed-up over the bound's; peak over stock.

        With crops left out: time over the bound of all crops, and over that of the chosen ones. Where a tenth was not
        measured, the smallest budget takes its place. Methods inside the language model have no
        targets: their first layers run over all tokens.
        """
        found = []
        stock = self.find("stock")
        smallest = min((one for one in self.results if one.kind == "bound"), key=lambda one: one.prompt_tokens).keep
        few = TARGETED if TARGETED in self.keeps else smallest
        bounds = [self.find("bound", keep) for keep in (1.0, few)]
        for method in self.methods:
            if issubclass(parse_method(method)[0], InsidePruner):
                continue
            whole, least = (self.find("foveate", keep, method) for keep in (1.0, few))
            assert stock and whole and least and bounds[0] and bounds[1] and least.over_bound is not None
            ours, theirs = whole.ttft_ms / least.ttft_ms, bounds[0].ttft_ms / bounds[1].ttft_ms
            memory = max(one.peak_bytes for one in self.results if (one.kind, one.method) == ("foveate", method))
            found += [
                Target(
                    f"{method}: first token at keep {keep_label(few)}, over the bound",
                    least.over_bound, TIME_TARGET, True,
                ),
                *(
                    [Target(f"{method}: the same, over the lean bound", least.over_lean, TIME_TARGET, True)]
                    if least.over_lean is not None
                    else []
                ),
                Target(
                    f"{method}: speed-up of the first token from keep 100% to {keep_label(few)}, over the bound's own",
                    ours / theirs, SPEEDUP_TARGET, False,
                ),
                Target(f"{method}: largest peak memory at any keep, over stock", memory / stock.peak_bytes, 1.0, True),
            ]  # fmt: skip
            cut = [one for crops in self.crops if (one := self.find("foveate", few, method, crops)) is not None]
            for one in cut:
                assert one.over_bound is not None and one.over_crops is not None
                name = f"{method}, crops {one.crops}: first token at keep {keep_label(few)}"
                found.append(Target(f"{name}, over the crops bound", one.over_crops, TIME_TARGET, True))
                if one is min(cut, key=lambda other: other.flops):
                    found.append(Target(f"{name}, over the bound of all crops", one.over_bound, CROPS_TARGET, True))
        return found

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "new_tokens": self.new_tokens,
            "repeats": self.repeats,
            "results": [one.as_dict() for one in self.results],
            "targets": [{**asdict(one), "holds": one.holds} for one in self.targets()],
        }


@dataclass(frozen=True)
class _Case:
    kind: Kind
    method: str
    keep: float | int
    run: Callable[[int], Any]
    around: Callable[[], AbstractContextManager[Any]] = nullcontext
    inside: bool = False
    """Whether it prunes inside the language model, to which the whole prompt goes."""
    crops: str = ""


def measure(
    model: Any,
    inputs: Mapping[str, Tensor],
    *,
    methods: Sequence[str] = ("adafv",),
    keeps: Sequence[float | int] = (1.0, 0.25, 0.1),
    new_tokens: int = 16,
    repeats: int = 5,
    clock: str = "wall",
    with_baseline: bool = True,
    crops: Sequence[Crops] = (),
    progress: Callable[[int, int], None] | None = None,
    smaller: Callable[[float | int], Mapping[str, Tensor]] | None = None,
) -> Report:
    """Measures stock, the methods, the bound and, where there is one, the baseline, all in the same rounds.

    Args:
        model: a stock model of a known family, in evaluation mode.
        inputs: of ``generate``: prompts of equal length with one picture each, as a shape or processor gives them.
        methods: names of pruning methods.
        keeps: budgets; all tokens (1.0) are measured in any case.
        new_tokens: length of the answers, in tokens; with 1 nothing is decoded.
        repeats: rounds, >= 1.
        clock: see ``Clock``.
        with_baseline: whether to run it, for the methods and models that it exists for.
        crops: which of the picture's crops are encoded, each measured beside all of them, at the budgets that leave no
            more tokens than are encoded.
        progress: called with the number of runs done and of those there are.
        smaller: a budget -> inputs of the same prompts with smaller pictures, at equal cost; None: no ``resize``.

    Raises:
        ValueError: no ``methods`` and no ``smaller``, prompts that are padded, or what the model or a method refuses.
        RuntimeError: a pruned prompt was not as long as its budget says.
    """
    if not methods and smaller is None:
        raise ValueError("no method to measure: name one, such as adafv")
    if not bool(inputs["attention_mask"].all()):
        raise ValueError("the prompts are padded: the benchmark takes prompts of one length")
    keeps = list(dict.fromkeys([1.0, *keeps]))
    timer = Clock(clock, model.device)  # type: ignore[arg-type]
    cases = _cases(model, inputs, methods, keeps, with_baseline, smaller)
    cases += [one for some in crops for one in _crops_cases(model, inputs, methods, keeps, some)]
    observed = {}
    for number, case in enumerate(cases):
        with case.around():
            observed[number] = _observe(case, model)
    tasks = {f"{number} first": Task(lambda case=case: case.run(1), case.around) for number, case in enumerate(cases)}  # type: ignore[misc]
    if new_tokens > 1:
        tasks |= {
            f"{number} all": Task(lambda case=case: case.run(new_tokens), case.around)  # type: ignore[misc]
            for number, case in enumerate(cases)
        }
    with torch.no_grad():
        # Observing has run every first token already, and a large model on a CPU takes long for each.
        times = interleaved(tasks, repeats, timer, warmups=int(new_tokens > 1), progress=progress)
        parts = [_stages(case, model, new_tokens, timer, min(repeats, STAGED)) for case in cases]
    by_keep, lean = (
        {case.keep: times[f"{number} first"] for number, case in enumerate(cases) if case.kind == kind}
        for kind in ("bound", "lean-bound")
    )
    cut = {
        (case.keep, case.crops): times[f"{number} first"]
        for number, case in enumerate(cases)
        if case.kind == "crops-bound"
    }
    lengths = {case.keep: observed[number][0] for number, case in enumerate(cases) if case.kind == "bound"}
    results = []
    for number, case in enumerate(cases):
        length, cache, peak, flops = observed[number]
        if case.kind == "foveate" and not case.inside and length != lengths[case.keep]:
            raise RuntimeError(
                f"{case.method} at keep {keep_label(case.keep)} left a prompt of {length} tokens, its budget "
                f"{lengths[case.keep]}"
            )
        if case.kind == "resize" and length > lengths[case.keep]:
            raise RuntimeError(
                f"the smaller picture at keep {keep_label(case.keep)} made a prompt of {length} tokens, more than the "
                f"{lengths[case.keep]} of its budget"
            )
        first = times[f"{number} first"]
        ttft = statistics.median(first)
        total = statistics.median(times[f"{number} all"]) if new_tokens > 1 else None
        rate = None if total is None else (new_tokens - 1) * len(inputs["input_ids"]) / (total - ttft) * 1e3
        reference = by_keep[case.keep]
        results.append(
            Result(
                kind=case.kind, method=case.method, keep=case.keep, prompt_tokens=length, ttft_ms=ttft, total_ms=total,
                decode_rate=rate, peak_bytes=peak, cache_bytes=cache, flops=flops,
                over_bound=None if case.kind == "stock" else _over(first, reference),
                over_stock=_over(first, times["0 first"]),
                over_lean=_over(first, lean[case.keep]) if case.keep in lean and case.kind != "stock" else None,
                stages=parts[number],
                crops=case.crops,
                over_crops=_over(first, cut[case.keep, case.crops]) if (case.keep, case.crops) in cut else None,
            )
        )  # fmt: skip
    return Report(results, list(methods), keeps, new_tokens, repeats, [str(some) for some in crops])


def _over(one: Sequence[float], other: Sequence[float]) -> float:
    return 1 + paired(one, other) / statistics.median(other)


def _stages(case: _Case, model: Any, new_tokens: int, timer: Clock, repeats: int) -> Stages | None:
    if case.kind == "baseline":
        return None
    return stages.measure(model, lambda: case.run(new_tokens), timer, ours=case.kind == "foveate", repeats=repeats)


def _observe(case: _Case, model: Any) -> tuple[int, int, int, int]:
    """Prompt length, cache bytes, peak bytes and FLOPs of a case, which do not differ from run to run."""
    given = case.run(1)  # a warm-up too: what is made once and kept belongs to no run
    outputs = given if isinstance(given, list) else [given]
    caches = [output.past_key_values for output in outputs]
    length, cache = int(caches[0].get_seq_length()), sum(cache_bytes(one) for one in caches)
    del given, outputs, caches
    peak = peak_memory(lambda: case.run(1), model.device)
    attention = model.config._attn_implementation
    if attention not in ("eager", "sdpa"):  # kernels of other packages do not say what they compute
        model.set_attn_implementation("sdpa")
    try:
        return length, cache, peak, count_flops(lambda: case.run(1))
    finally:
        if attention not in ("eager", "sdpa"):
            model.set_attn_implementation(attention)


def _options(tokens: int) -> dict[str, Any]:
    return {
        "max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False, "num_beams": 1,
        "return_dict_in_generate": True,
    }  # fmt: skip


def _bound(model: Any, tower: Callable[[], None], prompt: Tensor) -> Callable[[int], Any]:
    mask = torch.ones(prompt.shape[:2], dtype=torch.int64, device=prompt.device)

    def run(tokens: int) -> Any:
        tower()
        return model.generate(inputs_embeds=prompt, attention_mask=mask, **_options(tokens))

    return run


def _foveate(
    model: Any, inputs: Mapping[str, Tensor], pruner: Method, crops: Crops | None = None
) -> Callable[[int], Any]:
    def run(tokens: int) -> Any:
        with pruner(model, crops=crops):  # as in the README: attaching counts
            return model.generate(**inputs, **_options(tokens))

    return run


def _crops_cases(
    model: Any, inputs: Mapping[str, Tensor], methods: Sequence[str], keeps: Sequence[float | int], crops: Crops
) -> list[_Case]:
    """Methods under a choice of crops, and their bound, at the budgets that it leaves enough tokens for."""
    ids_on_cpu = inputs["input_ids"].cpu()

    probe = get_pruner("uniform", keep=1.0)
    with probe(model, crops=crops):
        model.generate(**inputs, max_new_tokens=1, do_sample=False)
    encoded = [one.encoded_views for one in probe.selections]
    held = [encoded_tokens(one) for one in probe.selections]
    totals = [one.total for one in probe.selections]

    @torch.no_grad()
    def tower() -> None:
        with looking_through(model) as site:

            def encode(store: ViewStore) -> list[EncodedImage]:
                request = Request(site.features["image"], saliency=False, prompt=ids_on_cpu, views=store)
                return site.family.encode(inputs, request)

            Views(encode, site.family, inputs, ids_on_cpu, at_once=not crops.ranks).need(encoded)

    cases = []
    for keep in keeps:
        if any(Keep(keep).budget(total) > some for total, some in zip(totals, held, strict=True)):
            continue
        run = _bound(model, tower, _assembled(model, inputs, keep))
        cases.append(_Case("crops-bound", "", keep, run, crops=str(crops)))
        pruners = [(method, get_pruner(method, keep=keep)) for method in methods]
        cases += [
            _Case("foveate", method, keep, _foveate(model, inputs, pruner, crops), crops=str(crops))
            for method, pruner in pruners
            if not isinstance(pruner, InsidePruner)
        ]
    return cases


def _cases(
    model: Any,
    inputs: Mapping[str, Tensor],
    methods: Sequence[str],
    keeps: Sequence[float | int],
    with_baseline: bool,
    smaller: Callable[[float | int], Mapping[str, Tensor]] | None,
) -> list[_Case]:
    def stock(given: Mapping[str, Tensor]) -> Callable[[int], Any]:
        return lambda tokens: model.generate(**given, **_options(tokens))

    pixels = {name: inputs[name] for name in family_for(model).image_inputs if inputs.get(name) is not None}

    @torch.no_grad()
    def stock_tower() -> None:
        model.model.get_image_features(**pixels, return_dict=True)

    @torch.no_grad()
    def lean_tower() -> None:
        with looking_through(model) as site:
            site.family.encode(inputs, Request(site.features["image"], saliency=False, prompt=ids_on_cpu))

    ids_on_cpu = inputs["input_ids"].cpu()

    def research(method: str, keep: float | int) -> Callable[[int], Any]:
        return lambda tokens: baseline.generate(model, inputs, method, keep, **_options(tokens))

    cases = [_Case("stock", "", 1.0, stock(inputs))]
    leaner = count_flops(lean_tower) < count_flops(stock_tower)
    for keep in keeps:
        prompt = _assembled(model, inputs, keep)
        cases.append(_Case("bound", "", keep, _bound(model, stock_tower, prompt)))
        if leaner:
            cases.append(_Case("lean-bound", "", keep, _bound(model, lean_tower, prompt)))
        pruners = [(method, get_pruner(method, keep=keep)) for method in methods]
        cases += [
            _Case("foveate", method, keep, _foveate(model, inputs, pruner), inside=isinstance(pruner, InsidePruner))
            for method, pruner in pruners
        ]
        if smaller is not None and keep != 1.0:
            cases.append(_Case("resize", "", keep, stock(smaller(keep))))
        if with_baseline and keep != 1.0 and baseline.supports(model):
            cases += [
                _Case("baseline", method, keep, research(method, keep), lambda: baseline.eager_tower(model))
                for method in methods
                if method in baseline.METHODS
            ]
    return cases


def _assembled(model: Any, inputs: Mapping[str, Tensor], keep: float | int) -> Tensor:
    """(B, S', D) embeddings of prompts that hold as many visual tokens as a budget leaves; which ones costs nothing."""
    ids = inputs["input_ids"]
    pruner = get_pruner("uniform", keep=keep)
    with pruner(model):
        model.generate(**inputs, max_new_tokens=1, do_sample=False)
    per_row = len(pruner.selections) // len(ids)
    visual = ids == model.config.image_token_id
    length = ids.shape[1]
    totals = [selection.total for selection in pruner.selections[:per_row]]
    kept = [Keep(keep).budget(total) for total in totals]
    if kept != totals:  # with every patch kept, what stands between them stays too
        length += sum(kept) - int(visual[0].sum())
    table = model.get_input_embeddings()
    return table(ids[~visual].view(len(ids), -1)[:, :1].expand(-1, length)).clone()
