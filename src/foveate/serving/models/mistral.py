"""Stand-in of Mistral 3."""

from __future__ import annotations

from vllm.model_executor.models import mistral3

from foveate.serving.models.stand_in import Pruned, stands_for


@stands_for(mistral3.Mistral3ForConditionalGeneration, "Rows")
class Mistral3(Pruned, mistral3.Mistral3ForConditionalGeneration):
    """Mistral 3 in its transformers form."""
