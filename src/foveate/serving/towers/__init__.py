"""How each family lays out the arguments of vLLM's ``embed_multimodal``, and which attention of its tower is read."""

from foveate.serving.towers.base import Batches
from foveate.serving.towers.packed import Convolved, Packed
from foveate.serving.towers.squares import Squares
from foveate.serving.towers.tiles import Tiles
from foveate.serving.towers.views import Onevision, Views
from foveate.serving.towers.woven import Fenced, Rows, Separated

__all__ = ["Batches", "Convolved", "Fenced", "Onevision", "Packed", "Rows", "Separated", "Squares", "Tiles", "Views"]
