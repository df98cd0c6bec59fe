"""Families by ``config.model_type``. One family, one file; a new one is imported and listed here."""

from __future__ import annotations

from typing import Any

from foveate.models.aya_vision import AyaVision
from foveate.models.base import Family
from foveate.models.cohere2_vision import Cohere2Vision
from foveate.models.deepseek_vl import DeepseekVl, DeepseekVlHybrid
from foveate.models.encoded import EncodedImage
from foveate.models.gemma3 import Gemma3
from foveate.models.generic import REMEDY, Generic
from foveate.models.glm4v import Glm4v
from foveate.models.idefics3 import Idefics3, SmolVlm
from foveate.models.internvl import InternVl
from foveate.models.llama4 import Llama4
from foveate.models.llava import Llava
from foveate.models.llava_next import LlavaNext
from foveate.models.llava_onevision import LlavaOnevision
from foveate.models.mistral3 import Mistral3
from foveate.models.ovis2 import Ovis2
from foveate.models.paligemma import PaliGemma
from foveate.models.qwen_vl import Qwen2Vl, Qwen3Vl, Qwen25Vl
from foveate.models.timm_towers import FastVlm, Gemma3n, PerceptionLm

FAMILIES: dict[str, type[Family]] = {
    model_type: family
    for family in (
        AyaVision, Cohere2Vision, DeepseekVl, DeepseekVlHybrid, FastVlm, Gemma3, Gemma3n, Glm4v, Idefics3, InternVl,
        Llama4, Llava, LlavaNext, LlavaOnevision, Mistral3, Ovis2, PaliGemma, PerceptionLm, Qwen25Vl, Qwen2Vl,
        Qwen3Vl, SmolVlm,
    )
    for model_type in family.model_types
}  # fmt: skip


def stock_model(model: Any) -> Any:
    """The transformers model inside ``torch.compile`` and PEFT wrappers: what they call in the end.

    Raises:
        ValueError: a PEFT method that works by tokens of its own in front of the prompt.
    """
    while True:
        if getattr(model, "_orig_mod", None) is not None:
            model = model._orig_mod
        elif callable(getattr(model, "get_base_model", None)):
            if model.active_peft_config.is_prompt_learning:
                raise ValueError(
                    f"PEFT's {model.active_peft_config.peft_type.value} puts virtual tokens before the prompt, and "
                    "pruning would not know of them: use an adapter inside the layers (LoRA, say), or no pruner"
                )
            model = model.get_base_model()
        else:
            return model


def family_for(model: Any) -> Family:
    """The adapter for a model; the generic one, which warns, where none knows its type.

    Raises:
        ValueError: no adapter takes this model, or it is not one that generates; the message names the families there
            are, and says what the generic adapter misses.
    """
    model = stock_model(model)
    model_type = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    family = FAMILIES.get(model_type)
    if family is None:
        try:
            return Generic(model)
        except ValueError as error:
            raise unsupported(model_type, error) from error
    if not hasattr(model, "generate") or not _has_inner(family, model):
        raise ValueError(
            f"{type(model).__name__} has no language-modelling head to generate with; "
            f"load the {family.title} checkpoint with AutoModelForImageTextToText"
        )
    return family(model)


def _has_inner(family: type[Family], model: Any) -> bool:
    try:
        return family.inner(model) is not None
    except AttributeError:
        return False


def unsupported(model_type: str, reason: object) -> ValueError:
    """What to raise for a model type that has no adapter and does not fit the generic one."""
    return ValueError(
        f"model family {model_type!r} is not supported; known: {', '.join(FAMILIES)}. The generic adapter does not "
        f"fit: {reason}. {REMEDY}"
    )


__all__ = ["FAMILIES", "EncodedImage", "Family", "family_for", "stock_model", "unsupported"]
