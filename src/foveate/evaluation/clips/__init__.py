"""The clips suite: short drawn films in which things appear, move and change colour. Needs numpy and Pillow only."""

from foveate.evaluation.clips.asking import KINDS
from foveate.evaluation.clips.files import CLIPS, make_sample

__all__ = ["CLIPS", "KINDS", "make_sample"]
