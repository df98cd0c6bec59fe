"""Draws the animation at the top of the README: a keep slider moved over a crowded scene, question by question.

``python examples/slider.py`` asks the bundled model at every step and writes ``docs/images/slider.webp``. Nothing in it
is staged: kept patches, token counts and answers are those of the call at that budget, with the default method.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

import foveate
from foveate import bundled
from foveate.images import load_image
from foveate.show import overlay

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "examples" / "pictures" / "crowd.jpg"
OUT = ROOT / "docs" / "images" / "slider.webp"
QUESTIONS = ["What color is the card behind the owl?", "Is there a dog?", "What color is the card behind the bell?"]
STEPS = (1.0, 0.75, 0.5, 0.35, 0.25, 0.18, 0.13, 0.1, 0.07, 0.05)
SIDE = 520
"""Of the picture, pixels."""
MARGIN, HEAD, FOOT = 16, 62, 66
MOVE, HOLD, REST = 220, 1500, 1100
"""Milliseconds: of a step of the slider, of an answer to be read, of everything before it moves."""
INK, QUIET, ACCENT, PAPER = "#1f2430", "#6b7280", "#3f51b5", "#ffffff"


@dataclass(frozen=True)
class Frame:
    """What one step shows, and for how long."""

    question: str
    keep: float
    answer: foveate.Answer
    ms: int


def frames(session: foveate.Session, method: str, questions: list[str]) -> list[Frame]:
    """The slider goes down for the first question, stays for the others, and goes back for the last."""

    def ask(question: str, keep: float, ms: int) -> Frame:
        return Frame(question, keep, session.ask(question, foveate.get_pruner(method, keep=keep), max_new_tokens=4), ms)

    first, *others = questions
    least = STEPS[-1]
    shown = [ask(first, keep, REST if keep == STEPS[0] else MOVE) for keep in STEPS[:-1]]
    shown.append(ask(first, least, HOLD))
    shown += [ask(question, least, HOLD) for question in others]
    shown += [ask(questions[-1], keep, MOVE) for keep in reversed(STEPS[1:-1])]
    return shown


def drawn(frame: Frame, picture: Image.Image, method: str) -> Image.Image:
    """One frame: the question and the model's answer, the picture with what was kept, the slider."""
    page = Image.new("RGB", (SIDE + 2 * MARGIN, HEAD + SIDE + FOOT), PAPER)
    pen = ImageDraw.Draw(page)
    large, small = ImageFont.load_default(22), ImageFont.load_default(15)
    selection = frame.answer.selections[0]
    pen.text((MARGIN, 8), frame.question, INK, large)
    pen.text((MARGIN, 36), frame.answer.text, ACCENT, large)
    told = f"{len(selection)} of {selection.total} visual tokens, {method}"
    pen.text((page.width - MARGIN, 42), told, QUIET, small, anchor="ra")
    page.paste(overlay(picture, selection).resize((SIDE, SIDE), Image.Resampling.LANCZOS), (MARGIN, HEAD))
    line = HEAD + SIDE + 24
    # The square root spreads the small budgets, where all happens.
    knob = MARGIN + round(SIDE * frame.keep**0.5)
    pen.line((MARGIN, line, MARGIN + SIDE, line), "#d6d9e0", 6)
    pen.line((MARGIN, line, knob, line), ACCENT, 6)
    pen.ellipse((knob - 10, line - 10, knob + 10, line + 10), ACCENT, PAPER, 3)
    pen.text((MARGIN, line + 16), f"keep {100 * frame.keep:g} %", INK, large)
    return page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", default="adafv")
    parser.add_argument("--picture", type=Path, default=PICTURE)
    parser.add_argument("--questions", nargs="+", default=QUESTIONS)
    parser.add_argument("--out", type=Path, default=OUT)
    asked = parser.parse_args()
    picture = load_image(asked.picture)
    session = foveate.look(*bundled.load(), picture)
    shown = frames(session, asked.method, asked.questions)
    for frame in shown:
        print(f"{frame.keep:<5g} {frame.question} {frame.answer.text}")
    pages = [drawn(frame, picture, asked.method) for frame in shown]
    pages[0].save(
        asked.out, save_all=True, append_images=pages[1:], duration=[frame.ms for frame in shown], loop=0, quality=70,
        method=6,
    )  # fmt: skip
    print(f"{asked.out}: {len(pages)} frames, {asked.out.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
