"""HunyuanVL (HunyuanOCR) and Hy 4 VL: dynamic resolution, marks among a picture's tokens, positions of several axes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import transformers
from packaging.version import Version
from torch import Tensor

from foveate.arguments import cache_in
from foveate.models.encoded import Rope
from foveate.models.packed_rope import PackedRopeFamily
from foveate.models.row_marks import RowMarksFamily
from foveate.prompts import cached_length


class HunyuanVl(RowMarksFamily, PackedRopeFamily):
    """``HunYuanVLForConditionalGeneration``.

    Of a patch's positions the last three are its column, its row and its picture's number; they do not count what
    stands before the picture. All others are places in the prompt.
    """

    title = "HunyuanVL"
    model_types = ("hunyuan_vl",)
    since = "5.24"
    checkpoints = {"hunyuan_vl": "tencent/HunyuanOCR"}
    fenced = True
    text_row = False
    numbers_through = True

    def check(self) -> None:
        super().check()
        if Version(transformers.__version__) < Version("5.24"):
            raise ValueError(
                f"{self.title}: in transformers {transformers.__version__} its encoder gives all pictures of a call as "
                "one, which beam search then mixes up: install transformers 5.24 or newer"
            )
        axes = (self.config.text_config.rope_parameters or {}).get("mrope_section") or ()
        if len(axes) not in (3, 4):
            raise ValueError(
                f"{self.title}: text_config.rope_parameters name no mrope_section of three or four axes (got "
                f"{list(axes)}), without which stock transformers itself cannot number a picture: put the one of the "
                "checkpoint's config there"
            )

    def rope(self, arguments: Mapping[str, Any], ids: Tensor, mask: Tensor, types: Tensor | None) -> Rope | None:
        if not bool((ids == self.image_token_id).any()):  # grids left from an earlier turn, which stock would look for
            arguments = {name: value for name, value in arguments.items() if name != "image_grid_thw"}
        return super().rope(arguments, ids, mask, types)

    def apart(self, rope: Rope, ids: Tensor) -> Rope:
        """Stock numbers the pictures of a batch through, row after row."""
        here = torch.nn.functional.pad(ids == self.image_token_id, (1, 1))
        inside = here[:, 1:-1] & here[:, :-2] & here[:, 2:]  # the marks around a picture have places in the prompt
        pictures = (here[:, 1:] & ~here[:, :-1]).sum(dim=1)
        before = pictures.cumsum(dim=0) - pictures
        positions = rope.positions.clone()
        positions[-1] -= inside * before[:, None]
        return Rope(positions, rope.following)

    @property
    def structure_token_ids(self) -> frozenset[int]:
        """Also the marks by the names that this config has for them."""
        named = (self.config.im_start_id, self.config.im_end_id, self.config.im_newline_id)
        return super().structure_token_ids.union(named)

    def refuse(self, inputs: Mapping[str, Any]) -> None:
        super().refuse(inputs)
        if self.has(inputs, "image") and cached_length(cache_in(inputs)):
            raise ValueError(
                f"{self.title}: a picture's number among those of the whole prompt is one of its positions, and the "
                "cache does not tell how many came before: start without past_key_values"
            )


class HyV4Vl(RowMarksFamily, PackedRopeFamily):
    """``HYV4VLForConditionalGeneration``: a mark behind every row alone, in every frame of a video too; positions are
    as in Qwen-VL, marks included."""

    title = "Hy 4 VL"
    model_types = ("hy_v4_vl",)
    video_inputs = ("pixel_values_videos", "video_grid_thw")
    checkpoints = {"hy_v4_vl": "tencent/Hy4"}

    @property
    def structure_token_ids(self) -> frozenset[int]:
        """Also the marks around pictures and videos, which its config does not name: in HunyuanVL's vocabulary, from
        which its placeholders are, the two before each of these."""
        around = (token - before for token in self.placeholder_ids.values() for before in (1, 2))
        return super().structure_token_ids.union(around)
