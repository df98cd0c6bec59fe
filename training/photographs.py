"""How ``foveate.bundled.photographs`` got its weights: ``python -m training.photographs FOLDER_OF_PHOTOGRAPHS``.

A linear discriminant between drawn scenes and photographs, of what ``photographs.features`` measures. Whole photographs
and eight random cut-outs of each stand for those that people ask about. Prints the weights and the threshold, and what
leaving one photograph out finds of it. Those in the package come from 19 photographs of the packages
scikit-image, scikit-learn and matplotlib and of the Rust documentation, and from 400 scenes; leaving one out, 17 of
the 19 were found.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np

from foveate.bundled.photographs import features
from foveate.evaluation.drawn import Split
from foveate.evaluation.worlds import get_world
from foveate.images import load_image

SCENES = 100
"""Drawn with each seed and split."""
SEEDS = (7, 99)
CUTS = 8
RIDGE = 0.2
"""Added to the covariance, as a part of its mean variance."""
MARGIN = 0.05
"""Between the scene that looks most like a photograph and the threshold, as a part of the distance of the means."""


def of_scenes() -> np.ndarray:
    """(400, F): features of drawn scenes of both splits."""
    found = []
    splits: tuple[Split, ...] = ("test", "style")
    for seed in SEEDS:
        for split in splits:
            with tempfile.TemporaryDirectory() as folder:
                questions = get_world("scenes").write(Path(folder), SCENES, seed, split)
                files = sorted(one for one in questions.parent.iterdir() if one.suffix in (".png", ".jpg", ".webp"))
                found += [features(load_image(one)) for one in files]
    return np.array(found)


def of_photographs(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """(P, F) and (P,): features of photographs and of their cut-outs, and which photograph each is of."""
    rng = np.random.default_rng(0)
    found, which = [], []
    for number, path in enumerate(sorted(folder.iterdir())):
        image = load_image(path)
        found.append(features(image))
        for _ in range(CUTS):
            part = rng.uniform(0.45, 0.9)
            width, height = int(image.width * part), int(image.height * part)
            left, top = rng.integers(0, image.width - width + 1), rng.integers(0, image.height - height + 1)
            found.append(features(image.crop((left, top, left + width, top + height))))
        which += [number] * (1 + CUTS)
    return np.array(found), np.array(which)


def fit(scenes: np.ndarray, photographs: np.ndarray) -> tuple[np.ndarray, float]:
    """(F,) weights, scaled so that the means lie 1 apart, and the threshold above which a picture is a photograph."""
    spread = (np.cov(scenes.T) + np.cov(photographs.T)) / 2
    spread += RIDGE * np.trace(spread) / len(spread) * np.eye(len(spread))
    weights = np.linalg.solve(spread, photographs.mean(0) - scenes.mean(0))
    weights /= (photographs @ weights).mean() - (scenes @ weights).mean()
    return weights, float((scenes @ weights).max() + MARGIN)


def main(folder: Path) -> None:
    """Fits and prints."""
    scenes = of_scenes()
    photographs, which = of_photographs(folder)
    found = []
    for number in range(which.max() + 1):
        weights, threshold = fit(scenes, photographs[which != number])
        found.append(photographs[which == number] @ weights > threshold)
    whole, cuts = sum(one[0] for one in found), np.mean([one[1:].mean() for one in found])
    print(f"left out and found: {whole} of {len(found)}, of their cut-outs {100 * cuts:.0f} %")
    weights, threshold = fit(scenes, photographs)
    print("WEIGHTS =", [round(float(one), 3) for one in weights])
    print("THRESHOLD =", round(threshold, 3))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
