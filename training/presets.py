"""What is trained, and for how long: configuration as data."""

from __future__ import annotations

from dataclasses import dataclass

from training.views import Canvas


@dataclass(frozen=True)
class Stage:
    """A schedule: steps of ``batch`` pictures, a learning rate that falls from ``rate`` to ``floor`` of it."""

    steps: int
    batch: int
    rate: float
    warmup: int = 40
    floor: float = 0.02


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a run of either model depends on, beside the code, the artwork and what is drawn.

    Attributes:
        bfloat16: matrix products in bfloat16 (weights, losses and optimizer stay float32).
        workers: processes that draw; 0 draws in the training process. The result does not depend on it.
        fresh: stage 2 asks again about pictures already drawn: this many of each batch are new.
        memory: how many pictures' visual tokens stage 2 keeps for that.
    """

    name: str
    vision_width: int
    vision_layers: int
    text_width: int
    text_layers: int
    vision: Stage
    language: Stage
    joint: Stage
    fresh: int
    memory: int
    workers: int
    bfloat16: bool = True
    seed: int = 20
    log_every: int = 25
    save_every: int = 200

    def going_on(self) -> Recipe:
        """The same for a model that has been trained before."""
        return self


@dataclass(frozen=True, kw_only=True)
class Preset(Recipe):
    """Of the first model. ``canvases`` are (height, width) of those a picture may be resized into, multiples of the
    view."""

    canvases: tuple[Canvas, ...]


_TWO_BY_TWO: tuple[Canvas, ...] = ((112, 224), (224, 112), (224, 224), (112, 336), (336, 112))

PRESETS: dict[str, Preset] = {
    "cpu": Preset(
        name="cpu",
        vision_width=192,
        vision_layers=6,
        text_width=256,
        text_layers=4,
        canvases=_TWO_BY_TWO,
        vision=Stage(steps=2400, batch=16, rate=1.5e-3),
        language=Stage(steps=2800, batch=14, rate=1.5e-3, warmup=100),
        # In the time there is on two cores, the finish costs the vision tower more than it gains.
        joint=Stage(steps=0, batch=10, rate=5e-4),
        fresh=5,
        memory=6000,
        workers=1,
    ),
    "gpu": Preset(
        name="gpu",
        vision_width=256,
        vision_layers=8,
        text_width=320,
        text_layers=6,
        canvases=(*_TWO_BY_TWO, (224, 336), (336, 224), (336, 336)),
        vision=Stage(steps=2500, batch=256, rate=1.5e-3, warmup=100),
        language=Stage(steps=4000, batch=128, rate=1e-3, warmup=200),
        joint=Stage(steps=1500, batch=128, rate=5e-4, warmup=100),
        fresh=48,
        memory=30_000,
        workers=14,
    ),
    "smoke": Preset(
        name="smoke",
        vision_width=64,
        vision_layers=3,
        text_width=64,
        text_layers=2,
        canvases=_TWO_BY_TWO,
        vision=Stage(steps=4, batch=2, rate=1e-3, warmup=1),
        language=Stage(steps=4, batch=4, rate=1e-3, warmup=1),
        joint=Stage(steps=3, batch=2, rate=1e-4, warmup=1),
        fresh=2,
        memory=8,
        workers=0,
        log_every=1,
        save_every=2,
    ),
}
