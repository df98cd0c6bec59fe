"""Stand-ins of GLM-V."""

from __future__ import annotations

from vllm.model_executor.models import glm4_1v

from foveate.serving.models.stand_in import PrunedRope, stands_for


@stands_for(glm4_1v.Glm4vForConditionalGeneration, "Convolved")
class Glm4v(PrunedRope, glm4_1v.Glm4vForConditionalGeneration):
    """GLM-4.1V, images."""


@stands_for(glm4_1v.Glm4vMoeForConditionalGeneration, "Convolved")
class Glm4vMoe(PrunedRope, glm4_1v.Glm4vMoeForConditionalGeneration):
    """GLM-4.5V, images."""
