"""Stand-in of InternVL."""

from __future__ import annotations

from vllm.model_executor.models import interns1

from foveate.serving.models.stand_in import Pruned, stands_for


@stands_for(interns1.InternS1ForConditionalGeneration, "Tiles")
class InternVl(Pruned, interns1.InternS1ForConditionalGeneration):
    """InternVL in its transformers form."""
