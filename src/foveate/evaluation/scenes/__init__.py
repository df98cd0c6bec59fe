"""The scenes suite: procedurally drawn pictures with questions of several kinds. Needs numpy and Pillow only."""

from foveate.evaluation.scenes.asking import KINDS
from foveate.evaluation.scenes.files import SIZES, Item, read_items, write_scenes

__all__ = ["KINDS", "SIZES", "Item", "read_items", "write_scenes"]
