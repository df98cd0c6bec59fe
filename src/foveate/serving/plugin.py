"""What vLLM calls in every one of its processes, by the entry point ``vllm.general_plugins``."""

from __future__ import annotations

ARCHITECTURES = {
    "LlavaForConditionalGeneration": "Llava",
    "LlavaNextForConditionalGeneration": "LlavaNext",
    "LlavaOnevisionForConditionalGeneration": "LlavaOnevision",
    "Qwen2VLForConditionalGeneration": "Qwen2Vl",
    "Qwen2_5_VLForConditionalGeneration": "Qwen25Vl",
    "Qwen3VLForConditionalGeneration": "Qwen3Vl",
    "Qwen3VLMoeForConditionalGeneration": "Qwen3VlMoe",
    "InternVLForConditionalGeneration": "InternVl",
}
"""Stock architectures, and the class in ``foveate.serving.models`` that stands in for each."""


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

    Where the options are not given, a stand-in makes the stock model and processor, so that nothing changes.
    """
    from vllm import ModelRegistry

    for architecture, name in ARCHITECTURES.items():
        ModelRegistry.register_model(architecture, f"foveate.serving.models:{name}")
