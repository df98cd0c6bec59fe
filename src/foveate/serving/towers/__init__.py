"""How each family lays out the arguments of vLLM's ``embed_multimodal``, and which attention of its tower is read."""

from foveate.serving.towers.base import Batches, Films
from foveate.serving.towers.packed import Convolved, Packed, Timed
from foveate.serving.towers.squares import Squares
from foveate.serving.towers.tiles import Tiles
from foveate.serving.towers.views import Onevision, Views
from foveate.serving.towers.woven import Fenced, Rows, Separated

__all__ = [
    "Batches", "Convolved", "Fenced", "Films", "Onevision", "Packed", "Rows", "Separated", "Squares", "Tiles", "Timed",
    "Views",
]  # fmt: skip
