"""What is trained of the dynamic model, and for how long."""

from __future__ import annotations

from dataclasses import dataclass, replace

from training.presets import Recipe, Stage


@dataclass(frozen=True)
class Mix:
    """What pictures are drawn for training.

    Attributes:
        pages: the part that is pages of words to learn to read from, at the beginning and at the end of stage 1. They
            are asked nothing about, so stage 2 has none.
        documents: of the rest, the part that is documents; the others are scenes.
        clips: the part of all that is clips, which only stage 2 is shown.
        clutter: the part that is cluttered, at the beginning and at the end.
        sides: pixels that no side of a picture is longer than, one of these: scenes are made smaller for it, documents
            have less on them.
        often: how often each.
        questions: most questions about one document, those that the suite would ask first: encoding a picture costs
            more than asking about it.
    """

    pages: tuple[float, float] = (0.6, 0.2)
    documents: float = 0.5
    clutter: tuple[float, float] = (0.85, 0.5)
    clips: float = 0.0
    sides: tuple[int, ...] = (336, 448, 672)
    often: tuple[float, ...] = (0.4, 0.3, 0.3)
    questions: int = 20

    def asked(self) -> Mix:
        """The same without what cannot be asked about."""
        return replace(self, pages=(0.0, 0.0))


@dataclass(frozen=True, kw_only=True)
class Preset(Recipe):
    """Of the dynamic model. ``letters`` comes before stage 1, ``mix`` is what is drawn, and ``asked`` what stage 2 is
    asked about: larger pictures, whose encoding it shares over several questions. In ``heads`` only the readouts learn,
    which no checkpoint holds: a model that goes on unlearns within a hundred steps what it knew if they begin at
    random."""

    letters: Stage
    heads: Stage | None = None
    mix: Mix = Mix()
    asked: Mix = Mix(pages=(0.0, 0.0), clips=0.2)
    seed: int = 30

    def going_on(self) -> Preset:
        """Without the letters, which such a model knows, with pictures as they are at the end, and in smaller steps."""
        return replace(
            self,
            letters=replace(self.letters, steps=0),
            heads=replace(self.vision, steps=80, warmup=10),
            vision=replace(self.vision, rate=self.vision.rate / 2),
            mix=replace(self.mix, pages=self.mix.pages[-1:] * 2, clutter=self.mix.clutter[-1:] * 2),
        )


PRESETS: dict[str, Preset] = {
    "dynamic": Preset(
        name="dynamic",
        vision_width=192,
        vision_layers=6,
        text_width=256,
        text_layers=4,
        letters=Stage(steps=2000, batch=16, rate=3e-3),
        vision=Stage(steps=1700, batch=12, rate=2e-3),
        language=Stage(steps=900, batch=14, rate=1.5e-3, warmup=100),
        joint=Stage(steps=900, batch=12, rate=1e-3),
        fresh=8,
        memory=1500,
        workers=1,
        mix=Mix(documents=0.7, sides=(308, 448, 672), often=(0.35, 0.35, 0.3)),
        # What is learned last, and takes most questions, are documents: a scene has a dozen things, a page any numbers.
        asked=Mix(
            pages=(0.0, 0.0),
            documents=0.8,
            clips=0.12,
            clutter=(0.45, 0.45),
            sides=(308, 448, 672),
            often=(0.4, 0.4, 0.2),
        ),
    ),
    "dynamic-gpu": Preset(
        name="dynamic-gpu",
        vision_width=256,
        vision_layers=8,
        text_width=320,
        text_layers=6,
        letters=Stage(steps=1500, batch=64, rate=3e-3),
        vision=Stage(steps=2500, batch=96, rate=1.5e-3, warmup=100),
        language=Stage(steps=2500, batch=96, rate=1e-3, warmup=200),
        joint=Stage(steps=1200, batch=64, rate=4e-4, warmup=100),
        fresh=48,
        memory=20_000,
        workers=14,
    ),
    "dynamic-smoke": Preset(
        name="dynamic-smoke",
        vision_width=64,
        vision_layers=3,
        text_width=64,
        text_layers=2,
        letters=Stage(steps=3, batch=2, rate=1e-3, warmup=1),
        vision=Stage(steps=4, batch=2, rate=1e-3, warmup=1),
        language=Stage(steps=4, batch=4, rate=1e-3, warmup=1),
        joint=Stage(steps=3, batch=2, rate=1e-4, warmup=1),
        fresh=2,
        memory=8,
        workers=0,
        mix=Mix(sides=(280,), often=(1.0,)),
        asked=Mix(pages=(0.0, 0.0), clips=0.2, sides=(280,), often=(1.0,)),
        log_every=1,
        save_every=2,
    ),
}
#: Stage 2 once more, to compare what it is given: scenes and small documents only, so that showing it every token takes
#: no longer than dropping them. Beside it ``python -m training --preset dynamic-small`` without ``--no-token-dropout``.
PRESETS["dynamic-small"] = replace(
    PRESETS["dynamic"],
    name="dynamic-small",
    asked=Mix(pages=(0.0, 0.0), documents=0.2, sides=(224, 308), often=(0.5, 0.5)),
)
