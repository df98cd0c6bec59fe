"""Stand-in of Llama 4."""

from __future__ import annotations

from vllm.model_executor.models import mllama4

from foveate.serving.models.stand_in import Pruned, stands_for


@stands_for(mllama4.Llama4ForConditionalGeneration, "Separated")
class Llama4(Pruned, mllama4.Llama4ForConditionalGeneration):
    """Llama 4."""
