"""Nothing of an encoder runs whose output nobody reads: found out by spoiling every module's output in turn."""

from __future__ import annotations

import copy
import inspect
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.models.siglip.modeling_siglip import SiglipMultiheadAttentionPoolingHead
from transformers.utils.output_capturing import capture_outputs

from tests.encoding import encode
from tests.tiny import ROWS, Row, plain, prompts
from tests.tiny.rows import features_of


def parts(model: Any) -> dict[str, nn.Module]:
    """The modules that compute something themselves, by name."""
    attention = nn.MultiheadAttention  # never calls its children
    inner = {id(child) for module in model.modules() if isinstance(module, attention) for child in module.children()}
    return {
        name: module
        for name, module in model.named_modules()
        if id(module) not in inner and (isinstance(module, attention) or not any(True for _ in module.children()))
    }


@contextmanager
def through(modules: dict[str, nn.Module], seen: Callable[[str, Any], Any]) -> Iterator[None]:
    """Forwards whose output goes through ``seen``; what is skipped in their stead does not."""

    def led(name: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **kwargs: seen(name, forward(*args, **kwargs))

    for name, module in modules.items():
        module.forward = led(name, module.forward)
    try:
        yield
    finally:
        for module in modules.values():
            del module.forward


def spoilt(output: Any) -> Any:
    if torch.is_tensor(output):
        numbers = output.is_floating_point() or output.is_complex()
        return torch.full_like(output, torch.nan) if numbers else output
    return tuple(map(spoilt, output)) if isinstance(output, tuple) else output


def count(calls: Counter[str], name: str, output: Any) -> Any:
    calls[name] += 1
    return output


def flat(thing: Any) -> list[Tensor]:
    if torch.is_tensor(thing):
        return [thing]
    if thing is None or isinstance(thing, int):  # Granite Vision 4 names the layer that features are for
        return []
    return [tensor for one in thing for tensor in flat(one)]


def read_by_the_model(row: Row, model: Any, inputs: dict[str, Tensor]) -> list[Tensor]:
    """What stock models take of the features: nothing but these."""
    if model.config.model_type in ("llama4", "molmo2"):  # what its forward makes of them
        return row.streams(model, inputs, row.kind)
    output = features_of(model, inputs, row.kind)
    names = ("pooler_output", "deepstack_features", "visual_indicator_features")
    return [tensor for name in names for tensor in flat(getattr(output, name, None))]


def with_head(model: Any) -> Any:
    """The model, its SigLIP tower with the head that pools, as it has it unless its config says otherwise."""
    base = model.model
    tower = base.vision_tower if hasattr(base, "vision_tower") else base.vision_model
    tower = getattr(tower, "vision_model", tower)
    torch.manual_seed(1)
    tower.head, tower.use_head = SiglipMultiheadAttentionPoolingHead(tower.config).eval(), True
    return model


def reading(layer: int) -> Callable[[Any], Any]:
    def changed(model: Any) -> Any:
        model.config.vision_feature_layer = layer
        return model

    return changed


def tied(model: Any) -> Any:
    """The last hidden state is the tower's output, norm and all."""
    model.model.vision_tower.config.tie_last_hidden_states = True
    return reading(-1)(model)


def same(model: Any) -> Any:
    return model


def _siglip(model: Any) -> bool:
    return getattr(model.config.vision_config, "model_type", "") == "siglip_vision_model"


# Not the generic adapter: it does not know what is read, and runs all that stock runs.
KNOWN = {name: row for name, row in ROWS.items() if not name.startswith("generic")}
CASES: dict[str, tuple[str, Callable[[Any], Any]]] = {name: (name, same) for name in KNOWN}
CASES |= {f"{name}, head": (name, with_head) for name, row in KNOWN.items() if _siglip(row.make("sdpa"))}
CASES |= {
    f"{name}, {layer}": (name, reading(layer))
    for name in ("internvl", "aya_vision", "mistral3", "llava-clip", "llava-siglip")
    for layer in (-1, -2, 3)
}
if 'self.config, "tie_last_hidden_states"' in inspect.getsource(capture_outputs):  # newer than 5.5
    CASES |= {f"{name}, tied": (name, tied) for name in ("llava-siglip", "llava_next-siglip", "aya_vision")}
COMPLETE = {
    "qwen2_vl", "qwen2_vl-video", "qwen2_5_vl", "qwen2_5_vl-video", "qwen3_vl", "qwen3_vl-video", "qwen3_vl_moe",
    "qwen2_5_omni",
    "qwen2_5_omni-video",
    "qwen3_omni_moe",
    "qwen3_omni_moe-video",
    "cosmos3_edge",
    "cosmos3_edge-video",
    "cosmos3_omni",
    "cohere_compass",
    "cohere_compass-video",
    "qwen3_5",
    "qwen3_5-video",
    "qwen3_5_moe",
    "qwen4_exp",
    "qwen4_exp-video",
    "inkling2",
    "inkling2_loop",
    "glm4v",
    "glm4v-video",
    "glm4v_moe",
    "glm4v_moe-video",
    "glm46v",
    "glm46v-video",
    "glm46v_moe",
    "glmga",
    "glm_ocr",
    "ernie4_5_vl_moe",
    "ernie4_5_vl_moe-video",
    "idefics3",
    "smolvlm",
    "smolvlm-uneven",
    "gemma3",
    "shieldgemma2",
    "paligemma",
    "cohere2_vision",
    "ovis2",
    "llama4",
    "internvl",
    "internvl-video",
    "smolvlm-video",
    "lighton_ocr",
    "qianfan_ocr",
    "internvl, -1",
    "mistral3, -1",
    "mistral3, 3",
    "glm5_next",
    "glm5_next-video",
    "lfm3_vl",
    "lfm3_vl-video",
    "paddleocr_vl",
    "hunyuan_vl",
    "hunyuan_vl-three",
    "hy_v4_vl",
    "hy_v4_vl-video",
    "gemma3n",
    "perception_lm",
    "deepseek_vl",
    "deepseek_vl_hybrid",
    "janus",
    "step3p7",
    "llava-siglip, tied", "llava_next-siglip, tied", "aya_vision, tied",
    *(name for name in ROWS if name.startswith(("gemma4", "minicpm"))),
}  # fmt: skip
"""Those of which stock models read all that they compute."""
COMPLETE |= set(plain.ROWS)


@pytest.mark.parametrize("case", CASES)
def test_what_nobody_reads_does_not_run(case: str) -> None:
    name, change = CASES[case]
    row: Row = ROWS[name]
    model = change(copy.deepcopy(row.make("sdpa")))
    inputs = prompts(row, model, "mixed")
    modules = parts(model)
    called: Counter[str] = Counter()
    with through(modules, partial(count, called)):
        wanted = read_by_the_model(row, model, inputs)
    unread = set()
    for part in called:
        with through({part: modules[part]}, lambda name, output: spoilt(output)):
            found = read_by_the_model(row, model, inputs)
        if all(map(torch.equal, found, wanted)):
            unread.add(part)
    ours: Counter[str] = Counter()
    with through(modules, partial(count, ours)):
        images = encode(model, inputs, row.kind)
    assert (not unread) == (case in COMPLETE), sorted(unread)
    assert ours == Counter({part: times for part, times in called.items() if part not in unread})
    theirs = row.streams(model, inputs, row.kind)
    assert all(torch.equal(image.stream, one) for image, one in zip(images, theirs, strict=True))
