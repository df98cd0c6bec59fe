"""Stand-ins of the LLaVA families."""

from __future__ import annotations

from vllm.model_executor.models import llava, llava_next, llava_onevision

from foveate.serving.models.stand_in import Pruned, stands_for


@stands_for(llava.LlavaForConditionalGeneration, "Views")
class Llava(Pruned, llava.LlavaForConditionalGeneration):
    """LLaVA-1.5 with CLIP or SigLIP."""


@stands_for(llava_next.LlavaNextForConditionalGeneration, "Views")
class LlavaNext(Pruned, llava_next.LlavaNextForConditionalGeneration):
    """LLaVA-NeXT."""


@stands_for(llava_onevision.LlavaOnevisionForConditionalGeneration, "Onevision")
class LlavaOnevision(Pruned, llava_onevision.LlavaOnevisionForConditionalGeneration):
    """LLaVA-OneVision, images and videos."""
