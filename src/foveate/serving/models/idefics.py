"""Stand-ins of Idefics3 and SmolVLM."""

from __future__ import annotations

from vllm.model_executor.models import idefics3, smolvlm

from foveate.serving.models.stand_in import Pruned, stands_for


@stands_for(idefics3.Idefics3ForConditionalGeneration, "Fenced")
class Idefics3(Pruned, idefics3.Idefics3ForConditionalGeneration):
    """Idefics3."""


@stands_for(smolvlm.SmolVLMForConditionalGeneration, "Fenced")
class SmolVlm(Pruned, smolvlm.SmolVLMForConditionalGeneration):
    """SmolVLM, images."""
