"""Foveate in lmms-eval (tested with 0.7.3): a model, found by an entry point, and task files for the drawn scenes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

TASK = "foveate_scenes"


def manifest() -> Any:
    """What the entry point ``lmms_eval.models`` names: where lmms-eval finds the model called ``foveate``."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="foveate", chat_class_path="foveate.evaluation.lmms.model.Foveate")


def write_task(folder: Path) -> Path:
    """Makes a folder of scenes a folder of lmms-eval's: ``lmms-eval --include_path FOLDER --tasks foveate_scenes``.

    Args:
        folder: holds ``scenes.jsonl`` and its pictures, as ``foveate scenes`` writes them.

    Returns:
        The path of the task's YAML; ``utils.py`` stands beside it.

    Raises:
        FileNotFoundError: the folder holds no scenes.
    """
    from foveate.evaluation.lmms.task import UTILITIES, yaml
    from foveate.evaluation.scenes.files import QUESTIONS_FILE

    questions = folder.resolve() / QUESTIONS_FILE
    if not questions.is_file():
        raise FileNotFoundError(f"{folder} holds no {QUESTIONS_FILE}: draw the scenes first")
    (folder / "utils.py").write_text(UTILITIES, encoding="utf-8")
    path = folder / f"{TASK}.yaml"
    path.write_text(yaml(questions), encoding="utf-8")
    return path
