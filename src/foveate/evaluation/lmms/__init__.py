"""Foveate in lmms-eval (tested with 0.7.3): a model, found by an entry point, and task files for the drawn worlds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

TASK = "foveate_scenes"
"""The scenes' task; those of other worlds are called the same way."""


def manifest() -> Any:
    """What the entry point ``lmms_eval.models`` names: where lmms-eval finds the model called ``foveate``."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="foveate", chat_class_path="foveate.evaluation.lmms.model.Foveate")


def write_task(folder: Path, world: str = "scenes") -> Path:
    """Makes a folder of scenes a folder of lmms-eval's: ``lmms-eval --include_path FOLDER --tasks foveate_scenes``.

    Args:
        folder: holds ``scenes.jsonl`` and its pictures, as ``foveate scenes`` writes them.
        world: of the pictures; documents are ``foveate_documents``.

    Returns:
        The path of the task's YAML; ``utils.py`` stands beside it.

    Raises:
        FileNotFoundError: the folder holds no such pictures.
        ValueError: no such world, or one of clips.
    """
    from foveate.evaluation.lmms.task import Figures
    from foveate.evaluation.worlds import get_world

    drawn = get_world(world)
    if drawn.filmed:
        raise ValueError(f"the {world} are no task of lmms-eval: scenes and documents are")
    questions = folder.resolve() / drawn.questions_file
    if not questions.is_file():
        raise FileNotFoundError(f"{folder} holds no {drawn.questions_file}: draw the {world} first")
    figures = Figures(drawn)
    (folder / "utils.py").write_text(figures.utilities(), encoding="utf-8")
    path = folder / f"{figures.task}.yaml"
    path.write_text(figures.yaml(questions), encoding="utf-8")
    return path
