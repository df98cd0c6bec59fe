"""Models with the geometry of released checkpoints (sides, patch sizes, pinpoints, scales, tiles) and tiny widths.

Each comes with the image processor that its checkpoint names, in the form that works on PIL alone, and with the sizes
from the checkpoint's own preprocessor config.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import (
    AyaVisionConfig,
    AyaVisionForConditionalGeneration,
    CLIPVisionConfig,
    Cohere2VisionConfig,
    Cohere2VisionForConditionalGeneration,
    DeepseekVLConfig,
    DeepseekVLForConditionalGeneration,
    DeepseekVLHybridConfig,
    DeepseekVLHybridForConditionalGeneration,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Glm4vConfig,
    Glm4vForConditionalGeneration,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    InternVLConfig,
    InternVLForConditionalGeneration,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    Ovis2Config,
    Ovis2ForConditionalGeneration,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PixtralVisionConfig,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    SiglipVisionConfig,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)
from transformers.image_utils import OPENAI_CLIP_MEAN
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.deepseek_vl.image_processing_pil_deepseek_vl import DeepseekVLImageProcessorPil
from transformers.models.deepseek_vl_hybrid.image_processing_pil_deepseek_vl_hybrid import (
    DeepseekVLHybridImageProcessorPil,
)
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.glm4v.image_processing_pil_glm4v import Glm4vImageProcessorPil
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil
from transformers.models.ovis2.image_processing_pil_ovis2 import Ovis2ImageProcessorPil
from transformers.models.pixtral.image_processing_pil_pixtral import PixtralImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from tests.tiny import real_kin, real_llama4
from tests.tiny.glm import IDS as GLM_IDS
from tests.tiny.glm import ROPE as GLM_ROPE
from tests.tiny.qwen import IDS as QWEN_IDS
from tests.tiny.rows import BOS, IMAGE, TEXT, finish, inner
from tests.tiny.siglip import write_grid
from tests.tiny.tiles import COLUMN, GRID, INDICATORS, LINE, TAG, WHOLE
from tests.tiny.tiles import END as LAST
from tests.tiny.tiles import START as FIRST

# (height, width) of pictures
SIZES = [(3000, 4000), (2000, 300), (28, 28), (336, 336), (768, 1024)]
NEXT_PINPOINTS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
ONEVISION_PINPOINTS = [[384 * rows, 384 * columns] for rows in range(1, 7) for columns in range(1, 7)]
GRANITE_PINPOINTS = [
    [384 * rows, 384 * columns] for rows in range(1, 11) for columns in range(1, 11) if rows * columns <= 10
]
_WIDTHS = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
_TEXT = {**TEXT, "num_hidden_layers": 1}


@dataclass(frozen=True)
class Real:
    """One checkpoint's geometry.

    Args:
        make: () -> model.
        process: a picture -> the model's image inputs.
        write: (image inputs, placeholders of the one image) -> the ids that stand for it.
        counts: (height, width) of a picture -> its placeholders, where known from public repositories.
    """

    make: Callable[[], Any]
    process: Callable[[Image.Image], dict[str, Any]]
    write: Callable[[dict[str, Any], int], list[int]] = lambda _, count: [IMAGE] * count
    counts: dict[tuple[int, int], int] = field(default_factory=dict)

    def features(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """(n, D) what stock transformers puts into the placeholders of one image."""
        names = (
            "pixel_values", "pixel_values_images", "pixel_values_local", "high_res_pixel_values", "image_sizes",
            "image_grid_thw", "pixel_attention_mask", "batch_num_images", "image_merge_sizes", "image_position_ids",
            "target_sizes", "spatial_shapes", "num_local_patches", "image_token_pooling", "image_grids",
        )  # fmt: skip
        with torch.no_grad():
            owner = model if hasattr(model, "get_image_features") else model.model
            output = owner.get_image_features(
                **{name: inputs[name] for name in names if name in inputs}, return_dict=True
            )
            if hasattr(output, "deepstack_features") and output.get("pooler_output") is None:  # Granite Vision 4
                output = dict(output.deepstack_features)[0]
            elif getattr(output, "pooler_output", None) is None:  # Llama 4, whose forward projects
                output = model.multi_modal_projector(output.last_hidden_state)
            else:
                output = output.pooler_output
        if torch.is_tensor(output) and output.ndim == 2:  # PaddleOCR-VL in 5.5
            return output
        return torch.cat([one.flatten(0, -2) for one in output])

    def inputs(self, model: Any, picture: Image.Image) -> dict[str, Any]:
        """With a prompt that holds nothing else."""
        images = self.process(picture)
        ids = torch.tensor([[BOS, *self.write(images, len(self.features(model, images))), 5]])
        return {**images, "input_ids": ids, "attention_mask": torch.ones_like(ids)}


def seeing_only_its_own(model: Any) -> Any:
    """The model, with an encoder whose tokens know of their own patches' brightness and nothing else.

    Layers pass on what they get, and what a patch brings is small beside what its place does, so that a token changes
    as much as its patches do.
    """
    tower = next(
        getattr(inner(model), name)
        for name in ("vision_tower", "vision_model", "visual", "vision_encoder", "image_tower")
        if isinstance(getattr(inner(model), name, None), nn.Module)
    )
    stacks = [
        module
        for name, module in tower.named_modules()
        if isinstance(module, nn.ModuleList) and name.rpartition(".")[2] in ("layers", "layer", "blocks")
    ]
    assert len(stacks) == 1
    for layer in stacks[0]:
        layer.forward = lambda hidden_states, *args, **kwargs: hidden_states
    kinds = (nn.Conv2d, nn.Conv3d, nn.Linear)  # where there is no convolution, patches come flat
    weight = next(module.weight for module in tower.modules() if isinstance(module, kinds))
    scale = 1e-4 / weight[0].numel()
    row = torch.randn(len(weight), generator=torch.Generator().manual_seed(1))
    weight.data.copy_((row * scale).view(-1, *[1] * (weight.ndim - 1)).expand_as(weight))
    return model


def _finished(make: Callable[[], Any], attention: str = "sdpa") -> Callable[[], Any]:
    @cache
    def made() -> Any:
        torch.manual_seed(0)
        return seeing_only_its_own(finish(make(), attention))

    return made


def _siglip(size: int, patch: int = 14) -> SiglipVisionConfig:
    return SiglipVisionConfig(**_WIDTHS, image_size=size, patch_size=patch, vision_use_head=False)


def _clip(size: int = 336) -> CLIPVisionConfig:
    return CLIPVisionConfig(**_WIDTHS, image_size=size, patch_size=14, projection_dim=32)


def _llama() -> dict[str, Any]:
    return {"model_type": "llama", **_TEXT}


def _cohere() -> dict[str, Any]:
    return {"model_type": "cohere2", **_TEXT, "layer_types": ["full_attention"], "logit_scale": 1.0}


def _llava(vision: Any) -> Any:
    full = vision.model_type != "clip_vision_model"
    return LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=vision,
            text_config=_llama(),
            image_token_index=IMAGE,
            vision_feature_layer=-1 if full else -2,
            vision_feature_select_strategy="full" if full else "default",
        )
    )


def _next(vision: Any, pinpoints: list[list[int]], layer: Any, strategy: str) -> Any:
    return LlavaNextForConditionalGeneration(
        LlavaNextConfig(
            vision_config=vision,
            text_config=_llama(),
            image_token_index=IMAGE,
            vision_feature_layer=layer,
            vision_feature_select_strategy=strategy,
            image_grid_pinpoints=pinpoints,
        )
    )


def _onevision() -> Any:
    return LlavaOnevisionForConditionalGeneration(
        LlavaOnevisionConfig(
            vision_config=_siglip(384),
            text_config={"model_type": "qwen2", **_TEXT},
            image_token_index=IMAGE,
            image_grid_pinpoints=ONEVISION_PINPOINTS,
            vision_aspect_ratio="anyres_max_9",
        )
    )


def _idefics3(size: int, patch: int, scale: int, smol: bool = True) -> Any:
    config, model = (
        (SmolVLMConfig, SmolVLMForConditionalGeneration) if smol else (Idefics3Config, Idefics3ForConditionalGeneration)
    )
    vision = {**_WIDTHS, "image_size": size, "patch_size": patch}
    return model(config(vision_config=vision, text_config=_llama(), image_token_id=IMAGE, scale_factor=scale))


def _gemma3() -> Any:
    text = {**_TEXT, "head_dim": 16, "query_pre_attn_scalar": 16, "layer_types": ["full_attention"]}
    return Gemma3ForConditionalGeneration(
        Gemma3Config(vision_config=_siglip(896), text_config=text, mm_tokens_per_image=256, image_token_index=IMAGE)
    )


def _paligemma(size: int) -> Any:
    vision = {**_WIDTHS, "model_type": "siglip_vision_model", "vision_use_head": False, "projection_dim": 64}
    return PaliGemmaForConditionalGeneration(
        PaliGemmaConfig(
            vision_config={**vision, "image_size": size, "patch_size": 14},
            text_config={"model_type": "gemma", "head_dim": 16, **_TEXT},
            image_token_index=IMAGE,
            projection_dim=64,
            hidden_size=64,
        )
    )


def _internvl() -> Any:
    vision = {**_WIDTHS, "image_size": [448, 448], "patch_size": [14, 14]}
    return InternVLForConditionalGeneration(
        InternVLConfig(vision_config=vision, text_config={"model_type": "qwen2", **_TEXT}, image_token_id=IMAGE)
    )


def _aya() -> Any:
    return AyaVisionForConditionalGeneration(
        AyaVisionConfig(vision_config=_siglip(364), text_config=_cohere(), image_token_index=IMAGE)
    )


def _cohere2_vision() -> Any:
    return Cohere2VisionForConditionalGeneration(
        Cohere2VisionConfig(
            vision_config=_siglip(512, 16),
            text_config=_cohere(),
            image_token_id=IMAGE,
            downsample_factor=2,
            alignment_intermediate_size=64,
        )
    )


def _ovis2() -> Any:
    return Ovis2ForConditionalGeneration(
        Ovis2Config(
            vision_config={**_WIDTHS, "image_size": 448, "patch_size": 14, "hidden_stride": 2, "vocab_size": 64},
            text_config={"model_type": "qwen2", **_TEXT},
            image_token_id=IMAGE,
            visual_indicator_token_ids=INDICATORS,
            vocab_size=TEXT["vocab_size"],
            hidden_size=TEXT["hidden_size"],
        )
    )


def _pixtral(patch: int, size: int) -> PixtralVisionConfig:
    return PixtralVisionConfig(**_WIDTHS, image_size=size, patch_size=patch)


def _mistral3() -> Any:
    return Mistral3ForConditionalGeneration(
        Mistral3Config(
            vision_config=_pixtral(14, 1540),
            text_config={"model_type": "mistral", **_TEXT, "head_dim": 16},
            image_token_index=IMAGE,
            spatial_merge_size=2,
            vision_feature_layer=-1,
        )
    )


def _deepseek() -> Any:
    return DeepseekVLForConditionalGeneration(
        DeepseekVLConfig(vision_config=_siglip(384, 16), text_config=_llama(), image_token_id=IMAGE)
    )


def _deepseek_hybrid() -> Any:
    sam = {
        "model_type": "sam_vision_model", "hidden_size": 8, "output_channels": 4, "num_hidden_layers": 1,
        "num_attention_heads": 2, "image_size": 1024, "patch_size": 16, "window_size": 14, "global_attn_indexes": [0],
        "mlp_dim": 8,
    }  # fmt: skip
    return DeepseekVLHybridForConditionalGeneration(
        DeepseekVLHybridConfig(
            vision_config=_siglip(384, 16), high_res_vision_config=sam, text_config=_llama(), image_token_id=IMAGE
        )
    )


def _without_sam() -> Any:
    """What SAM adds is left out: its layers mix places."""
    model = _finished(_deepseek_hybrid)()
    torch.nn.init.zeros_(model.model.aligner.high_res_vision_proj.weight)
    return model


_VISION = {"depth": 2, "intermediate_size": 64, "num_heads": 4, "spatial_merge_size": 2, "temporal_patch_size": 2}
_ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}}


def _qwen2_vl() -> Any:
    vision = {**_VISION, "patch_size": 14, "embed_dim": 32, "hidden_size": 64, "mlp_ratio": 2}
    return Qwen2VLForConditionalGeneration(
        Qwen2VLConfig(vision_config=vision, text_config={**_TEXT, **_ROPE}, **QWEN_IDS)
    )


def _qwen2_5_vl() -> Any:
    windows = {"window_size": 112, "fullatt_block_indexes": [1]}
    vision = {**_VISION, "patch_size": 14, "hidden_size": 32, "out_hidden_size": 64, **windows}
    return Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(vision_config=vision, text_config={**_TEXT, **_ROPE}, **QWEN_IDS)
    )


def _qwen3_vl() -> Any:
    deep = {"num_position_embeddings": 2304, "deepstack_visual_indexes": [0]}
    vision = {**_VISION, "patch_size": 16, "hidden_size": 32, "out_hidden_size": 64, **deep}
    text = {**_TEXT, "head_dim": 16, **_ROPE}
    return Qwen3VLForConditionalGeneration(Qwen3VLConfig(vision_config=vision, text_config=text, **QWEN_IDS))


def _glm4v() -> Any:
    vision = {**_VISION, "patch_size": 14, "hidden_size": 32, "out_hidden_size": 64, "image_size": 336}
    return Glm4vForConditionalGeneration(
        Glm4vConfig(vision_config=vision, text_config={**_TEXT, "rope_parameters": GLM_ROPE}, **GLM_IDS)
    )


def _by(processor: Any, **options: Any) -> Callable[[Image.Image], dict[str, Any]]:
    def process(picture: Image.Image) -> dict[str, Any]:
        return dict(processor(picture, return_tensors="pt", **options))

    return process


def _square(side: int) -> dict[str, int]:
    return {"height": side, "width": side}


def _write_tiles(inputs: dict[str, Any], count: int) -> list[int]:
    """As Idefics3's processor, told rows and columns."""
    rows, columns = inputs["rows"][0][0], inputs["cols"][0][0]
    return write_grid((rows, columns), count // (rows * columns + 1))


def _write_tagged(inputs: dict[str, Any], count: int) -> list[int]:
    tiles = len(inputs["pixel_values"])
    run = [IMAGE] * (count // tiles)
    crops = [token for number in range(tiles - 1) for token in (TAG, TAG + 1 + number % 5, *run)]
    return [FIRST, *crops, TAG, WHOLE, *run, LAST]


def _write_breaks(inputs: dict[str, Any], count: int) -> list[int]:
    tiles = len(inputs["pixel_values"])
    return [FIRST, *[*[IMAGE] * (count // tiles), LINE] * tiles, LAST]


def _write_lines(inputs: dict[str, Any], count: int) -> list[int]:
    rows, columns = inputs["grids"][0].tolist()
    run = [IMAGE] * (count // len(inputs["pixel_values"]))
    line = [token for _ in range(columns) for token in (*run, COLUMN)][:-1]
    crops = [token for _ in range(rows) for token in (*line, LINE)][:-1] if rows * columns > 1 else []
    return [FIRST, *run, GRID, *crops, LAST]


def _counts(*numbers: int) -> dict[tuple[int, int], int]:
    """Of 336x336, 1024x768, 4000x3000, 300x2000 and 28x28 (width x height)."""
    return dict(zip([(336, 336), (768, 1024), (3000, 4000), (2000, 300), (28, 28)], numbers, strict=False))


def _tiles(side: int, most: int) -> Any:
    return GotOcr2ImageProcessorPil(size=_square(side), crop_to_patches=True, max_patches=most)


def _idefics3_images(processor: Any, side: int, times: int) -> Any:
    return _by(
        processor(size={"longest_edge": times * side}, max_image_size={"longest_edge": side}), return_row_col_info=True
    )


def _qwen_images(patch: int, shortest: int, longest: int) -> Any:
    return _by(Qwen2VLImageProcessorPil(size={"shortest_edge": shortest, "longest_edge": longest}, patch_size=patch))


REAL: dict[str, Real] = {
    "llava-1.5": Real(
        _finished(lambda: _llava(_clip())),
        _by(CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size=_square(336))),
        counts=_counts(576, 576, 576, 576, 576),
    ),
    "llava-interleave": Real(
        _finished(lambda: _llava(_siglip(384))),
        _by(SiglipImageProcessorPil(size=_square(384))),
        counts=_counts(729, 729, 729, 729, 729),
    ),
    "llava-next": Real(
        _finished(lambda: _next(_clip(), NEXT_PINPOINTS, -2, "default")),
        _by(
            LlavaNextImageProcessorPil(
                size={"shortest_edge": 336}, crop_size=_square(336), image_grid_pinpoints=NEXT_PINPOINTS
            )
        ),
        counts=_counts(1176, 2340, 2340, 1368, 1176),
    ),
    "granite-vision": Real(
        _finished(lambda: _next(_siglip(384), GRANITE_PINPOINTS, [-2, -1], "full")),
        _by(
            LlavaNextImageProcessorPil(
                size=_square(384), crop_size=_square(384), image_grid_pinpoints=GRANITE_PINPOINTS
            )
        ),
    ),
    "onevision": Real(
        _finished(_onevision),
        _by(LlavaOnevisionImageProcessorPil(size=_square(384), image_grid_pinpoints=ONEVISION_PINPOINTS)),
        counts=_counts(1485, 4725, 7309, 4941, 1485),
    ),
    "internvl3": Real(_finished(_internvl), _by(_tiles(448, 12)), counts=_counts(256, 3328, 3328, 2048, 256)),
    "ovis2": Real(
        _finished(_ovis2),
        _by(Ovis2ImageProcessorPil(size=_square(448), crop_to_patches=True, max_patches=9)),
        _write_lines,
    ),
    "idefics3-8b": Real(
        _finished(lambda: _idefics3(364, 14, 2, smol=False)),
        _idefics3_images(Idefics3ImageProcessorPil, 364, 4),
        _write_tiles,
    ),
    "smolvlm-2.2b": Real(
        _finished(lambda: _idefics3(384, 14, 3)), _idefics3_images(SmolVLMImageProcessorPil, 384, 4), _write_tiles
    ),
    "smolvlm2-500m": Real(
        _finished(lambda: _idefics3(512, 16, 4)),
        _idefics3_images(SmolVLMImageProcessorPil, 512, 4),
        _write_tiles,
        counts=_counts(1088, 832, 832, 320, 1088),
    ),
    "gemma3": Real(
        _finished(_gemma3), _by(Gemma3ImageProcessorPil(size=_square(896))), counts=_counts(256, 256, 256, 256, 256)
    ),
    "paligemma-224": Real(
        _finished(lambda: _paligemma(224)),
        _by(SiglipImageProcessorPil(size=_square(224))),
        counts=_counts(256, 256, 256, 256, 256),
    ),
    "paligemma-448": Real(_finished(lambda: _paligemma(448)), _by(SiglipImageProcessorPil(size=_square(448)))),
    "pixtral-12b": Real(
        _finished(lambda: _llava(_pixtral(16, 1024))),
        _by(PixtralImageProcessorPil(size={"longest_edge": 1024}, patch_size=_square(16))),
        counts=_counts(441, 3072, 3072, 640, 4),
    ),
    "mistral3": Real(
        _finished(_mistral3),
        _by(PixtralImageProcessorPil(size={"longest_edge": 1540}, patch_size=_square(28))),
        counts=_counts(144, 1036, 2310, 495),
    ),
    "qwen2-vl": Real(_finished(_qwen2_vl), _qwen_images(14, 3136, 12845056), counts=_counts(144, 999, 15301, 781, 4)),
    "qwen2.5-vl": Real(
        _finished(_qwen2_5_vl), _qwen_images(14, 3136, 12845056), counts=_counts(144, 999, 15301, 781, 4)
    ),
    "qwen3-vl": Real(_finished(_qwen3_vl), _qwen_images(16, 65536, 16777216), counts=_counts(100, 768, 11750, 558, 64)),
    "glm-4.1v": Real(
        _finished(_glm4v),
        _by(Glm4vImageProcessorPil(size={"shortest_edge": 12544, "longest_edge": 9633792})),
        counts=_counts(144, 999, 6030, 781, 9),
    ),
    # Its background is the mean colour; a black or white picture's own edges are not.
    "deepseek-vl-1.3b": Real(
        _finished(_deepseek),
        _by(DeepseekVLImageProcessorPil(size=_square(384))),
        counts=_counts(576, 576, 576, 576, 576),
    ),
    "deepseek-vl-7b": Real(
        cache(_without_sam),
        _by(
            DeepseekVLHybridImageProcessorPil(
                size=_square(384),
                high_res_size=_square(1024),
                image_mean=OPENAI_CLIP_MEAN,
                high_res_image_mean=OPENAI_CLIP_MEAN,
            )
        ),
        counts=_counts(576, 576, 576, 576, 576),
    ),
    "aya-vision": Real(_finished(_aya), _by(_tiles(364, 12)), _write_tagged),
    # Its own image processor needs torchvision; tiles of the same sides, put together in the same way.
    "command-a-vision": Real(_finished(_cohere2_vision), _by(_tiles(512, 12)), _write_breaks),
}
if real_llama4.RUNS:
    REAL["llama-4"] = Real(
        real_llama4.llama4,
        real_llama4.process,
        real_llama4.write,
        counts={(336, 336): 144, (28, 28): 144},  # a single tile
    )

from tests.tiny import real_views  # noqa: E402 - it needs what stands above

REAL |= real_views.REAL


REAL |= real_kin.rows(sys.modules[__name__])


def spots(geometry: Any, few: int) -> Sequence[int]:
    """Tokens to look at: the corners and the middle of the first, the second and the last view."""
    views = sorted({0, 1, len(geometry.grids) - 1} & set(geometry.view.unique().tolist()))
    found: list[int] = []
    for view in views:
        shown = (geometry.boxes[:, 2:] > geometry.boxes[:, :2]).all(dim=1)  # no padding
        inside = (shown & (geometry.view == view)).nonzero()[:, 0]
        if not len(inside):
            continue
        places = [len(inside) - 1, len(inside) // 2, 0, len(inside) // 3, len(inside) - len(inside) // 5 - 1]
        found += inside[places[:few]].tolist()
    return list(dict.fromkeys(found))


from tests.tiny import real_plain  # noqa: E402

REAL |= real_plain.REAL
