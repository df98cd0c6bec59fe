"""How the second bundled model is made: a stock Qwen3-VL, trained on scenes and documents."""

from training.dynamic.export import export
from training.dynamic.language import train_joint, train_language
from training.dynamic.model import build
from training.dynamic.presets import PRESETS
from training.dynamic.vision import train_vision
from training.recipe import DATA as SCENES

#: Presets whose checkpoint goes into the package -> its name there.
SHIPPED = {"dynamic": "dynamic", "dynamic-gpu": "dynamic"}

#: For the record beside the checkpoint; licences in full are in SOURCES.md.
DATA = {
    **SCENES,
    "documents": "foveate.evaluation.documents, split train: drawn and written by this code",
    "clips": "foveate.evaluation.clips, split train: drawn by this code",
    "fonts": "DejaVu 2.37 of matplotlib (Bitstream Vera licence)",
}

__all__ = ["DATA", "PRESETS", "SHIPPED", "build", "export", "train_joint", "train_language", "train_vision"]
