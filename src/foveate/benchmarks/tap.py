"""What reading saliency costs: ``encode`` against stock ``get_image_features``, and the tap switched on and off."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from foveate.attention import Recorder
from foveate.benchmarks.measure import Clock, Task, interleaved, paired
from foveate.benchmarks.shapes import SHAPES, Shape
from foveate.instrumented import InstrumentedModel, looking_through
from foveate.models.encoded import Request

ENCODERS = tuple(name for name in SHAPES if name not in ("llava-next-13b", "llava-next-34b"))
"""One shape for every encoder of the families that have one: larger LLaVA-NeXT have the same one."""
QUICK_LAYERS = 3
BOUNDS = {"cls": 1.03, "received": 1.05}
"""What reading one row, or what every token receives, may cost: times stock."""


@dataclass(frozen=True)
class TapCost:
    """One encoder's figures. Times in ms, medians of ``repeats`` interleaved rounds, of the layers that were run.

    Args:
        shape: its name.
        read: "cls" or "received".
        patches: the encoder's patches, all views.
        layers: encoder layers that were run.
        whole: encoder layers of the checkpoint.
        stock_ms: stock ``get_image_features``.
        on_ms: the family's ``encode`` with saliency.
        off_ms: the same without; layers that nobody reads are skipped in both.
        tap_ms: time inside the tap itself, taken within the runs of ``on_ms``.
        layers_ms: time of the encoder's layers within stock runs.
        whole_ms: stock, whole encoder: ``stock_ms``, with ``layers_ms`` scaled up when layers were left out.
        ratio: whole encoder, ``encode`` over stock: 1 + median difference within rounds / ``whole_ms``.
        tap_ratio: the same for the tap on over the tap off.
        tap_share: the same from ``tap_ms``.
        repeats: rounds.
    """

    shape: str
    read: str
    patches: int
    layers: int
    whole: int
    stock_ms: float
    on_ms: float
    off_ms: float
    tap_ms: float
    layers_ms: float
    whole_ms: float
    ratio: float
    tap_ratio: float
    tap_share: float
    repeats: int

    @property
    def extrapolated(self) -> bool:
        """Whether the whole encoder's time is scaled up from fewer layers."""
        return self.layers != self.whole

    @property
    def bound(self) -> float:
        """What both ratios may be at most."""
        return BOUNDS[self.read]

    @property
    def holds(self) -> bool:
        """Whether both are."""
        return self.ratio <= self.bound and self.tap_ratio <= self.bound

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "extrapolated": self.extrapolated, "bound": self.bound, "holds": self.holds}


def measure(
    name: str,
    *,
    shape: Shape | None = None,
    quick: bool = False,
    repeats: int = 3,
    clock: str = "wall",
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    attention: str = "sdpa",
    picture: tuple[int, int] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> TapCost:
    """Measures one encoder.

    Args:
        name: of the shape, one of ``SHAPES`` unless ``shape`` is given.
        shape: another shape.
        quick: run 3 layers (Qwen2.5-VL: 8, one period of its windows) and scale the rest up.
        repeats: rounds, >= 1.
        clock: see ``Clock``.
        dtype, device, attention: see ``Shape.build``.
        picture: see ``Shape.inputs``.
        progress: called with the number of runs done and of those there are.

    Raises:
        ValueError: ``repeats`` < 1, or a clock that does not go with the device.
    """
    shape = SHAPES[name] if shape is None else shape
    layers = min(shape.vision_layers, max(shape.every, QUICK_LAYERS)) if quick else shape.vision_layers
    model = shape.build(
        llm_layers=1, vision_layers=layers, small_vocabulary=True, dtype=dtype, device=device, attention=attention
    )
    inputs = shape.inputs(model, picture=picture)
    timer = Clock(clock, torch.device(device))  # type: ignore[arg-type]
    pixels = {key: value for key, value in inputs.items() if key in ("pixel_values", "image_sizes", "image_grid_thw")}
    if "pixel_attention_mask" in inputs:
        pixels["pixel_attention_mask"] = inputs["pixel_attention_mask"]
    state: dict[str, Any] = {"layers": [], "tap": [], "patches": 0, "read": ""}

    def encode(saliency: bool) -> None:
        site: InstrumentedModel = state["site"]
        request = Request(site.features["image"], saliency=saliency, prompt=inputs["input_ids"].cpu())
        site.family.encode(inputs, request)

    @contextmanager
    def attached(note: bool) -> Iterator[None]:
        with looking_through(model) as site, _timed_notes(timer, state) if note else nullcontext():
            state["site"] = site
            yield

    tasks = {
        "stock": Task(
            lambda: model.model.get_image_features(**pixels, return_dict=True),
            lambda: _timed_layers(_encoder_layers(model), timer, state["layers"]),
        ),
        "on": Task(lambda: encode(True), lambda: attached(True)),
        "off": Task(lambda: encode(False), lambda: attached(False)),
    }
    with torch.no_grad():
        times = interleaved(tasks, repeats, timer, progress=progress)
    stock, on, off = (statistics.median(times[key]) for key in ("stock", "on", "off"))
    # The first run of each was the warm-up.
    in_layers = statistics.median(state["layers"][1:])
    tap = statistics.median(state["tap"][1:])
    whole = stock + in_layers * (shape.vision_layers / layers - 1)
    without = whole + paired(times["off"], times["stock"])
    return TapCost(
        shape=name,
        read=state["read"],
        patches=state["patches"],
        layers=layers,
        whole=shape.vision_layers,
        stock_ms=stock,
        on_ms=on,
        off_ms=off,
        tap_ms=tap,
        layers_ms=in_layers,
        whole_ms=whole,
        ratio=1 + paired(times["on"], times["stock"]) / whole,
        tap_ratio=1 + paired(times["on"], times["off"]) / without,
        tap_share=1 + tap / without,
        repeats=repeats,
    )


def _encoder_layers(model: Any) -> list[nn.Module]:
    """The layers of which the family taps one."""
    with looking_through(model) as site:
        tapped = {id(patch.owner) for patch in site.family.instruments() if patch.name == "config"}
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and any(id(part) in tapped for part in module.modules()):
            found = list(module)
    return found  # the innermost list, should there be several


@contextmanager
def _timed_layers(layers: Sequence[nn.Module], clock: Clock, sums: list[float]) -> Iterator[None]:
    """Appends the time that all layers of a run took together."""
    started: list[float] = []
    taken: list[float] = []
    hooks = [layer.register_forward_pre_hook(lambda *_: started.append(clock())) for layer in layers]
    hooks += [layer.register_forward_hook(lambda *_: taken.append(clock() - started[-1])) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        sums.append(sum(taken))


@contextmanager
def _timed_notes(clock: Clock, state: dict[str, Any]) -> Iterator[None]:
    """Appends the time a run spent inside the tap, and notes what it read there."""
    note = Recorder.note
    taken: list[float] = []
    patches: list[int] = []

    def timed(self: Recorder, *args: Any) -> None:
        start = clock()
        note(self, *args)
        taken.append(clock() - start)
        query = args[0]
        patches.append(query.shape[0] * (query.shape[2] - (self.read == "cls")))
        state["read"] = self.read

    Recorder.note = timed  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        Recorder.note = note  # type: ignore[method-assign]
        state["tap"].append(sum(taken))
        state["patches"] = sum(patches)
