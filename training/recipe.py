"""How the first bundled model is made: a stock LLaVA-NeXT, trained on scenes."""

from training.export import export
from training.language import train_joint, train_language
from training.model import build
from training.presets import PRESETS
from training.vision import train_vision

#: Presets whose checkpoint goes into the package -> its name there.
SHIPPED = {"cpu": "bundled", "gpu": "bundled"}
#: For the record beside the checkpoint; licences in full are in SOURCES.md.
DATA = {
    "scenes": "foveate.evaluation.scenes, split train: drawn and written by this code",
    "artwork": "Noto Emoji, 64 pixels, npm emoji-datasource-google 16.0.0 (Apache-2.0; package MIT)",
    "weights": "none: trained from random numbers",
}


__all__ = ["DATA", "PRESETS", "SHIPPED", "build", "export", "train_joint", "train_language", "train_vision"]
