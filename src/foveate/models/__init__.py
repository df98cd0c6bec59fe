"""Families by ``config.model_type``. One family, one file; a new one is imported and listed here."""

from __future__ import annotations

from typing import Any

from foveate.models.aya_vision import AyaVision
from foveate.models.base import Family
from foveate.models.cohere2_vision import Cohere2Vision
from foveate.models.deepseek_vl import DeepseekVl, DeepseekVlHybrid
from foveate.models.dots3_note import Dots3Note
from foveate.models.encoded import EncodedImage
from foveate.models.ernie_vl import ErnieVl
from foveate.models.exaone4_5 import Exaone45, HyperClovaX
from foveate.models.gemma3 import Gemma3
from foveate.models.gemma4 import Gemma4
from foveate.models.gemma4_unified import Gemma4Unified
from foveate.models.generic import REMEDY, Generic
from foveate.models.glm4v import Glm4v, Glm5Next
from foveate.models.granite4_vision import Granite4Vision
from foveate.models.hunyuan_vl import HunyuanVl, HyV4Vl
from foveate.models.idefics3 import Idefics3
from foveate.models.inkling2 import Inkling2
from foveate.models.internvl import InternVl, QianfanOcr
from foveate.models.janus import Janus
from foveate.models.kimi_k25 import KimiK25
from foveate.models.left_out import INSTEAD, REASONS
from foveate.models.lfm2_vl import Lfm2Vl
from foveate.models.lfm3_vl import Lfm3Vl
from foveate.models.llama4 import Llama4
from foveate.models.llava import Llava, VipLlava
from foveate.models.llava_next import LlavaNext
from foveate.models.llava_next_video import LlavaNextVideo
from foveate.models.llava_onevision import LlavaOnevision
from foveate.models.minicpm_v import MiniCpmV
from foveate.models.minicpm_v47 import MiniCpmV47
from foveate.models.minimax_m3 import MiniMaxM3
from foveate.models.mistral3 import LightOnOcr, Mistral3
from foveate.models.molmo2 import Molmo2
from foveate.models.muse import Muse
from foveate.models.ovis2 import Ovis2
from foveate.models.paddleocr_vl import PaddleOcrVl
from foveate.models.paligemma import PaliGemma
from foveate.models.qwen_omni import Qwen3Omni, Qwen25Omni
from foveate.models.qwen_vl import CohereCompass, Cosmos3Edge, Qwen2Vl, Qwen3Vl, Qwen25Vl, Qwen35
from foveate.models.smolvlm import SmolVlm
from foveate.models.step3p7 import Step3p7
from foveate.models.timm_towers import FastVlm, Gemma3n, PerceptionLm
from foveate.models.video_llama_3 import VideoLlama3
from foveate.models.video_llava import VideoLlava

FAMILIES: dict[str, type[Family]] = {
    model_type: family
    for family in (
        AyaVision,
        Cohere2Vision,
        CohereCompass,
        Cosmos3Edge,
        DeepseekVl,
        DeepseekVlHybrid,
        Dots3Note,
        ErnieVl,
        Exaone45,
        FastVlm,
        Gemma3,
        Gemma3n,
        Gemma4,
        Gemma4Unified,
        Glm4v,
        Glm5Next,
        HunyuanVl,
        HyV4Vl,
        Granite4Vision,
        HyperClovaX,
        Idefics3,
        Inkling2,
        InternVl,
        Janus,
        KimiK25,
        Lfm2Vl,
        Lfm3Vl,
        LightOnOcr,
        Llama4,
        Llava,
        LlavaNext,
        LlavaNextVideo,
        LlavaOnevision,
        MiniCpmV,
        MiniCpmV47,
        MiniMaxM3,
        Mistral3,
        Molmo2,
        Muse,
        Ovis2,
        PaddleOcrVl,
        PaliGemma,
        PerceptionLm,
        QianfanOcr,
        Qwen25Omni,
        Qwen25Vl,
        Qwen2Vl,
        Qwen35,
        Qwen3Omni,
        Qwen3Vl,
        SmolVlm,
        Step3p7,
        VideoLlama3,
        VideoLlava,
        VipLlava,
    )
    for model_type in family.model_types
}


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
        ValueError: no adapter takes this model, or it is not one that generates; the message says why its type is left
            out, or names the families there are and says what the generic adapter misses.
    """
    model = stock_model(model)
    model_type = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    family = FAMILIES.get(model_type)
    if family is None:
        check_left_out(model_type)
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


def check_left_out(model_type: str) -> None:
    """Raises ValueError, with the reason, for a model type that is known and left out."""
    reason = REASONS.get(model_type) or INSTEAD.get(model_type)
    if reason is not None:
        raise ValueError(
            f"model family {model_type!r} is not supported: {reason}. Use a family that `foveate models` lists, or "
            "this model without a pruner"
        )


def unsupported(model_type: str, reason: object) -> ValueError:
    """What to raise for a model type that has no adapter and does not fit the generic one."""
    return ValueError(
        f"model family {model_type!r} is not supported; known: {', '.join(FAMILIES)}. The generic adapter does not "
        f"fit: {reason}. {REMEDY}"
    )


__all__ = ["FAMILIES", "EncodedImage", "Family", "check_left_out", "family_for", "stock_model", "unsupported"]
