"""Do answers differ when kept tokens keep their places in the prompt? Both ways, on the same questions.

    python -m benchmarks.positions --count 60 > benchmarks/results/positions.md

prints accuracy with positions="compact" and "original" for some methods over budgets, and on how many questions only
one of the two is right.
"""

from __future__ import annotations

import argparse
from collections import Counter

import foveate
from foveate import bundled
from foveate.evaluation.metrics import is_correct
from foveate.evaluation.statistics import mcnemar
from foveate.evaluation.worlds import get_world

METHODS = ("adafv", "cover", "cdpruner", "mmtok", "saliency", "uniform")
KEEPS = (0.25, 0.1, 0.05, 0.02)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=60, help="scenes of the split test")
    count = parser.parse_args().count
    model, processor = bundled.load()
    world = get_world("scenes")
    right: Counter[tuple[str, float, str]] = Counter()
    won: Counter[tuple[str, float, str]] = Counter()
    asked = 0
    for index in range(count):
        drawing = world.draw(0, index=index)
        questions = [one for one in drawing.questions if one.kind in world.core]
        asked += len(questions)
        session = foveate.look(model, processor, drawing.picture)
        for method in METHODS:
            for keep in KEEPS:
                good = {}
                for positions in ("compact", "original"):
                    answers = session.ask_many(
                        [one.text for one in questions], foveate.get_pruner(method, keep=keep), positions=positions,
                        max_new_tokens=8, do_sample=False,
                    )  # fmt: skip
                    good[positions] = [
                        is_correct(answer.text, one.answers) for answer, one in zip(answers, questions, strict=True)
                    ]
                    right[method, keep, positions] += sum(good[positions])
                for compact, original in zip(good["compact"], good["original"], strict=True):
                    if compact != original:
                        won[method, keep, "compact" if compact else "original"] += 1
    print(f"{asked} questions about {count} scenes\n")
    print("| method | keep | compact | original | only one right | p (McNemar) |\n|---|---|---|---|---|---|")
    for method in METHODS:
        for keep in KEEPS:
            compact, original = (100 * right[method, keep, name] / asked for name in ("compact", "original"))
            one, other = won[method, keep, "compact"], won[method, keep, "original"]
            print(
                f"| `{method}` | {keep} | {compact:.1f} | {original:.1f} | {one}:{other} | {mcnemar(one, other):.2g} |"
            )


if __name__ == "__main__":
    main()
