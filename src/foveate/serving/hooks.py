"""Every part of vLLM that a pruned model uses and is not its documented interface. What moves in a new version moves
here; what starts and ends servers stands in ``starting``.

Importing this needs no tested vLLM: each part is looked for when it is wanted, which it is where pruning is on.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
import vllm
from torch import Tensor

from foveate.serving.policy import CONFIG_KEY, Policy
from foveate.serving.versions import require_tested


def require_version() -> None:
    """Raises RuntimeError for a vLLM that was not tested."""
    require_tested(vllm.__version__)


def factories_of(stock: Any) -> Any:
    """What vLLM makes a model class's processing info, dummy inputs and processor with."""
    return stock._processor_factory


def vision_attention(module: Any) -> Any:
    """Checks that a module is the attention of vLLM's vision towers, which sees queries and keys after norms and RoPE.

    Raises:
        RuntimeError: it is something else.
    """
    from vllm.model_executor.layers.attention.mm_encoder_attention import MMEncoderAttention

    if not isinstance(module, MMEncoderAttention):
        raise RuntimeError(
            f"foveate expected {MMEncoderAttention.__name__} in the vision tower of vLLM {vllm.__version__}, found "
            f"{type(module).__name__}"
        )
    return module


def queries_and_keys(attention: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """What ``attention`` was called with: its queries and keys, (V, H, P, d) each."""
    given = [kwargs[name] if name in kwargs else args[place] for place, name in enumerate(("query", "key"))]
    heads = (attention.num_heads, attention.num_kv_heads)
    return [
        one.view(*one.shape[:2], count, attention.head_size).transpose(1, 2)
        for one, count in zip(given, heads, strict=True)
    ]


def mean_over_ranks(values: Tensor) -> Tensor:
    """The mean over tensor-parallel ranks, each of which has as many of the vision tower's heads."""
    from vllm.distributed import get_tensor_model_parallel_world_size, tensor_model_parallel_all_reduce

    ranks = get_tensor_model_parallel_world_size()
    return values if ranks == 1 else tensor_model_parallel_all_reduce(values) / ranks


def from_first_rank(indices: Tensor) -> Tensor:
    """What the first tensor-parallel rank has chosen. All choose from the same numbers; were a last bit of them ever to
    differ, ranks with different tokens would answer nonsense without a word."""
    from vllm.distributed import get_tp_group

    group = get_tp_group()
    return indices if group.world_size == 1 else group.broadcast(indices.contiguous(), src=0)


def rank() -> int:
    """This process among those that do the same for one engine."""
    from vllm.distributed import get_tensor_model_parallel_rank

    return int(get_tensor_model_parallel_rank())


def encoder_budget(vllm_config: Any) -> int:
    """Visual tokens that vLLM would encode in one step, were none dropped."""
    return int(vllm_config.scheduler_config.max_num_encoder_input_tokens)


def embedded(model: Any, ids: Tensor) -> Tensor:
    """(T, D): the LLM's input embeddings of (T,) ids; under LoRA of the layer underneath, which needs no batch."""
    language = model.get_language_model()
    language = getattr(language, "model", language)
    table = getattr(language.embed_tokens, "base_layer", language.embed_tokens)
    rows: Tensor = table(ids)
    scale = getattr(language, "normalizer", None)  # Gemma's
    return rows if scale is None else rows * scale


def batch_of(item: Any, device: torch.device, kind: str = "image") -> dict[str, Any]:
    """The arguments of ``embed_multimodal`` for one processed image or video."""
    from vllm.multimodal.utils import group_and_batch_mm_kwargs

    return next(group_and_batch_mm_kwargs([(kind, item)], device=device))[2]


def features_of_views(model: Any, pixels: Tensor) -> Tensor:
    """(views, tokens, D): what vLLM's tower and projector make of (views, channels, height, width) pixels."""
    if hasattr(model, "extract_feature"):  # InternVL
        found: Tensor = model.extract_feature(pixels)
    else:
        found = model.multi_modal_projector(model._image_pixels_to_features(model.vision_tower, pixels))
    return found


def features_of_tiles(model: Any, pixels: Tensor, mask: Tensor | None = None) -> Tensor:
    """(tiles, tokens, D): what vLLM's Llama 4 makes of (tiles, channels, height, width) pixels, or its Idefics3 of them
    and their mask."""
    if mask is None:
        chunks: Tensor = model.encode_image_chunks(pixels, use_data_parallel=False)
        return chunks
    encoded = model.model.image_pixels_to_features(pixels, pixel_attention_mask=mask)
    found: Tensor = model.model.connector(encoded)
    return found


def blank_lines(processor: Any, prompt: Sequence[int], images: int, mark: int) -> list[int]:
    """A prompt of Gemma 3's with what vLLM writes around every image, and one placeholder within.

    Args:
        processor: vLLM's.
        prompt: ids, ``mark`` where an image goes.
        images: how many there are.
    """
    from vllm.multimodal.processing import PromptReplacement

    info = processor.info
    details = info.get_image_repl(image_width=1, image_height=1, processor=info.get_hf_processor(), mm_kwargs={})
    embeds = details.is_embed(details.full).tolist()
    around = [one for place, one in enumerate(details.full) if not (embeds[place] and embeds[place - 1])]
    updates = processor._bind_and_group_updates([PromptReplacement("image", [mark], around)], {"image": images})
    found: list[int] = processor._apply_token_matches(list(prompt), updates)[0]
    return found


def packed_views(model: Any, image_size: Tensor, features: Tensor) -> Tensor:
    """(n, D): an image's views as vLLM's LLaVA-NeXT and LLaVA-OneVision put them together.

    Args:
        model: one of the two.
        image_size: (2,), height and width in pixels.
        features: (views, tokens, D).
    """
    pack = model._merge_image_patch_embeddings
    newline = {"image_newline": model.image_newline} if "image_newline" in inspect.signature(pack).parameters else {}
    found: Tensor = pack(image_size, features, strategy="spatial_unpad", **newline)
    return found


def digest(**parts: Any) -> str:
    """A stable hash over plain values, 64 hexadecimal digits. Not the algorithm that the user chose for pictures: these
    are short strings, and the default one is always there."""
    from vllm.multimodal.hasher import MultiModalHasher

    return MultiModalHasher.hash_kwargs("sha256", **parts)


def unhonoured(vllm_config: Any, *, rope: bool) -> str | None:
    """Why a vLLM configuration cannot be pruned faithfully, and what to do; None when it can.

    Args:
        vllm_config: of the engine.
        rope: whether the model has M-RoPE positions.
    """
    model, parallel = vllm_config.model_config, vllm_config.parallel_config
    modal, compiled, lora = model.multimodal_config, vllm_config.compilation_config, vllm_config.lora_config
    if model.runner_type != "generate":
        return f"runner {model.runner_type!r} makes no text: only generation is pruned"
    if modal.mm_encoder_tp_mode == "data":
        return "mm_encoder_tp_mode='data' gives every rank other images, and none the saliency of all: use 'weights'"
    if modal.video_pruning_rate:
        return (
            "video_pruning_rate drops tokens in its own way, and changes what the encoder returns for images too: "
            "leave it out, and serve the method evs or vidcom2, which choose as vLLM does"
        )
    if getattr(compiled, "compile_mm_encoder", False):
        return "compile_mm_encoder hides the attention that saliency is read from: leave it off"
    if getattr(compiled, "cudagraph_mm_encoder", False):
        return "cudagraph_mm_encoder runs the vision tower past the pruning: leave it off"
    if lora is not None and getattr(lora, "enable_tower_connector_lora", False):
        return "enable_tower_connector_lora counts the vision tower's tokens by those of the prompt: leave it off"
    if rope and parallel.pipeline_parallel_size > 1:
        return (
            "with M-RoPE every stage needs the positions of kept tokens, and only the first has the text's embeddings "
            "that choose them: use tensor parallelism"
        )
    return None


def unseen(model_config: Any) -> str | None:
    """Why an image's tokens do not see each other as the model was trained to; None where they do, or need not."""
    from vllm.platforms import current_platform

    if model_config.is_mm_prefix_lm and current_platform.is_cpu():
        return (
            "the tokens of an image see each other in both directions in this model, and vLLM's attention on a CPU has "
            "each see only what stands before it, pruned or not: serve it on a GPU, or accept that with "
            """--hf-overrides '{"is_mm_prefix_lm": false}'"""
        )
    return None


def refuse_all_but(served: Collection[str], reasons: Mapping[str, str]) -> None:
    """Has vLLM refuse models that would be served unpruned although pruning is asked for.

    Args:
        served: architectures that have a stand-in.
        reasons: why some others have none.
    """
    from vllm import ModelRegistry

    stock = getattr(ModelRegistry, "inspect_model_cls", None)
    if stock is None or hasattr(stock, "foveate"):
        return

    @functools.wraps(stock)
    def inspected(architectures: Any, model_config: Any) -> Any:
        found = stock(architectures, model_config)
        if getattr(model_config.hf_config, CONFIG_KEY, None) is not None and found[1] not in served:
            reason = f" ({reasons[found[1]]})" if found[1] in reasons else ""
            raise ValueError(
                f"foveate: {found[1]} is not served under pruning{reason}: its images would go through unpruned. "
                f"Served are {', '.join(sorted(served))}. Start it without foveate's options, or prune it with "
                "transformers"
            )
        return found

    inspected.foveate = True  # type: ignore[attr-defined]
    ModelRegistry.inspect_model_cls = inspected


def hides_steps(vllm_config: Any) -> bool:
    """Whether some steps of the LLM are replayed as a whole, and run no Python."""
    return bool(vllm_config.compilation_config.cudagraph_mode.has_full_cudagraphs())


def without(inputs: Any, *names: str) -> Any:
    """Processor inputs whose ``hf_processor_mm_kwargs`` lack some names."""
    left = {name: value for name, value in inputs.hf_processor_mm_kwargs.items() if name not in names}
    return dataclasses.replace(inputs, hf_processor_mm_kwargs=left)


def policy_of(model_config: Any) -> Policy | None:
    """The policy of a vLLM model config, None where pruning is off."""
    return Policy.of(model_config.hf_config)
