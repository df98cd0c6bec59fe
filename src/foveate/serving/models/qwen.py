"""Stand-ins of Qwen-VL."""

from __future__ import annotations

from vllm.model_executor.models import qwen2_5_vl, qwen2_vl, qwen3_5, qwen3_vl, qwen3_vl_moe

from foveate.serving.models.stand_in import PrunedRope, stands_for


@stands_for(qwen2_vl.Qwen2VLForConditionalGeneration, "Packed")
class Qwen2Vl(PrunedRope, qwen2_vl.Qwen2VLForConditionalGeneration):
    """Qwen2-VL, images and videos."""


@stands_for(qwen2_5_vl.Qwen2_5_VLForConditionalGeneration, "Packed")
class Qwen25Vl(PrunedRope, qwen2_5_vl.Qwen2_5_VLForConditionalGeneration):
    """Qwen2.5-VL, images and videos."""


@stands_for(qwen3_vl.Qwen3VLForConditionalGeneration, "Timed")
class Qwen3Vl(PrunedRope, qwen3_vl.Qwen3VLForConditionalGeneration):
    """Qwen3-VL, images and videos; DeepStack features go along with their tokens."""


@stands_for(qwen3_vl_moe.Qwen3VLMoeForConditionalGeneration, "Timed")
class Qwen3VlMoe(PrunedRope, qwen3_vl_moe.Qwen3VLMoeForConditionalGeneration):
    """Qwen3-VL-MoE, images and videos."""


@stands_for(qwen3_5.Qwen3_5ForConditionalGeneration, "Timed")
class Qwen35(PrunedRope, qwen3_5.Qwen3_5ForConditionalGeneration):
    """Qwen3.5, images and videos; layers of linear attention see the kept tokens as any others."""


@stands_for(qwen3_5.Qwen3_5MoeForConditionalGeneration, "Timed")
class Qwen35Moe(PrunedRope, qwen3_5.Qwen3_5MoeForConditionalGeneration):
    """Qwen3.5-MoE, images and videos."""
