"""Stand-ins of Gemma."""

from __future__ import annotations

from vllm.model_executor.models import gemma3_mm

from foveate.serving.models.stand_in import Pruned, stands_for


@stands_for(gemma3_mm.Gemma3ForConditionalGeneration, "Squares")
class Gemma3(Pruned, gemma3_mm.Gemma3ForConditionalGeneration):
    """Gemma 3, whose kept tokens see each other where vLLM's attention can do so."""
