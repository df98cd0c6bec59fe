"""What vLLM calls in every one of its processes, by the entry point ``vllm.general_plugins``."""

from __future__ import annotations

ARCHITECTURES = {
    "LlavaForConditionalGeneration": "llava:Llava",
    "LlavaNextForConditionalGeneration": "llava:LlavaNext",
    "LlavaOnevisionForConditionalGeneration": "llava:LlavaOnevision",
    "Qwen2VLForConditionalGeneration": "qwen:Qwen2Vl",
    "Qwen2_5_VLForConditionalGeneration": "qwen:Qwen25Vl",
    "Qwen3VLForConditionalGeneration": "qwen:Qwen3Vl",
    "Qwen3VLMoeForConditionalGeneration": "qwen:Qwen3VlMoe",
    "Qwen3_5ForConditionalGeneration": "qwen:Qwen35",
    "Qwen3_5MoeForConditionalGeneration": "qwen:Qwen35Moe",
    "InternVLForConditionalGeneration": "internvl:InternVl",
    "Glm4vForConditionalGeneration": "glm:Glm4v",
    "Glm4vMoeForConditionalGeneration": "glm:Glm4vMoe",
    "Gemma3ForConditionalGeneration": "gemma:Gemma3",
    "Idefics3ForConditionalGeneration": "idefics:Idefics3",
    "SmolVLMForConditionalGeneration": "idefics:SmolVlm",
    "Llama4ForConditionalGeneration": "llama:Llama4",
    "Mistral3ForConditionalGeneration": "mistral:Mistral3",
}
"""Stock architectures, and the class in ``foveate.serving.models`` that stands in for each."""

UNSERVED = {
    "Gemma4ForConditionalGeneration": "vLLM runs transformers' own encoder of it, which nothing here reads",
    "KimiK25ForConditionalGeneration": "vLLM takes its pictures as chunks of videos, with a config of its own",
    "MiniCPMV4_6ForConditionalGeneration": "it numbers a prompt's pictures, and what is cached of one holds its number",
}
"""Why architectures are left out whose models transformers prunes."""


NAMED_OTHERWISE: dict[str, tuple[str, ...]] = {}
"""The model types of architectures whose names do not follow from theirs."""


def serves(model_type: str) -> bool:
    """Whether models of a type are pruned in vLLM: it, but for marks and case, is an architecture's name."""
    ending = "ForConditionalGeneration"
    served = {_plain(name.removesuffix(ending)) for name in ARCHITECTURES.keys() - NAMED_OTHERWISE.keys()}
    return _plain(model_type) in served or any(model_type in types for types in NAMED_OTHERWISE.values())


def _plain(name: str) -> str:
    return name.replace("_", "").lower()


def register() -> None:
    """Names the stand-ins to vLLM; nothing of them is imported before a model of theirs is loaded.

    Where the options are not given, a stand-in makes the stock model and processor, so that nothing changes. Where they
    are, every other model is refused.
    """
    from vllm import ModelRegistry

    from foveate.serving import hooks

    for architecture, place in ARCHITECTURES.items():
        ModelRegistry.register_model(architecture, f"foveate.serving.models.{place}")
    hooks.refuse_all_but(ARCHITECTURES, UNSERVED)
