"""Which visual tokens to keep: pure functions of tensors, without models and without host syncs.

They take any floating dtype, on CPU and GPU. Half precision is upcast before anything is compared, and ties go to the
earlier token. ``mixture`` and ``grid`` take leading batch dimensions (written ``...``).
"""

from foveate.functional.common import require_finite
from foveate.functional.grid import uniform_grid
from foveate.functional.mixture import (
    adafv,
    adafv_released,
    adafv_split,
    fixed_mix,
    released_mixture,
    text_to_image_attention,
    top_k,
)

__all__ = [
    "adafv",
    "adafv_released",
    "adafv_split",
    "fixed_mix",
    "released_mixture",
    "require_finite",
    "text_to_image_attention",
    "top_k",
    "uniform_grid",
]
