"""The scenes suite: procedurally drawn pictures with questions of several kinds. Needs numpy and Pillow only."""

from foveate.evaluation.drawn import SIZES, Item
from foveate.evaluation.scenes.asking import KINDS
from foveate.evaluation.scenes.files import SCENES

__all__ = ["KINDS", "SCENES", "SIZES", "Item"]
