"""Shapes of released checkpoints, built with random weights, so that cost can be measured without a download.

Time, memory and FLOPs of a model depend on its shape, not on what its weights have learned. The figures are those of
the published ``config.json`` that each shape names, written down by hand; ids and token limits that cost nothing are
left out. A shape can be built with fewer layers than it has, and says so.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText
from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

from foveate.models import Family, family_for
from foveate.models.stock import accepted

PAD, BOS, TAG, BREAK, END, START, VIDEO, IMAGE = range(8)
IDS = {
    "image_token_id": IMAGE,
    "video_token_id": VIDEO,
    **dict.fromkeys(("vision_start_token_id", "image_start_token_id", "boi_token_id"), START),
    **dict.fromkeys(("vision_end_token_id", "image_end_token_id", "eoi_token_id"), END),
}
"""Ids in the prompts of shapes. Which they are costs nothing; small ones fit every vocabulary."""
FIRST_WORD, WORDS = 16, 64
QUESTION = 40
"""Text tokens after the picture in a shape's prompt: a question and the turn's end."""
SMALL_VOCABULARY = 256


@dataclass(frozen=True)
class Picture:
    """One picture as a family's processor hands it over.

    Args:
        inputs: the image arguments of ``forward``, for one picture.
        ids: what stands for it in the prompt, placeholders and marks.
    """

    inputs: Mapping[str, Tensor]
    ids: list[int]


def _noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def _side(model: Any) -> tuple[int, int]:
    """Pixels and patches per side of a square view."""
    vision = model.config.vision_config
    size, patch = (one if isinstance(one, int) else one[0] for one in (vision.image_size, vision.patch_size))
    return size, size // patch


def write_square(model: Any, picture: tuple[int, int]) -> Picture:
    """One square view, whatever the picture: LLaVA-1.5, Gemma 3, PaliGemma."""
    size, side = _side(model)
    count = getattr(model.config, "mm_tokens_per_image", side**2)
    return Picture({"pixel_values": _noise(1, 3, size, size)}, [START, *[IMAGE] * count, END])


def write_anyres(model: Any, picture: tuple[int, int]) -> Picture:
    """A base view and crops: LLaVA-NeXT, LLaVA-OneVision. Stock packing itself says how many placeholders they are."""
    size, side = _side(model)
    views = image_size_to_num_patches(list(picture), model.config.image_grid_pinpoints, size)
    pack = model.model.pack_image_features
    options = accepted(pack, {"vision_feature_select_strategy": "default"})
    packed, _ = pack([torch.zeros(views, side**2, 1)], torch.tensor([picture]), image_newline=torch.zeros(1), **options)
    inputs = {"pixel_values": _noise(1, views, 3, size, size), "image_sizes": torch.tensor([picture])}
    return Picture(inputs, [IMAGE] * len(packed[0]))


def _crops(model: Any, picture: tuple[int, int]) -> tuple[int, int, int]:
    """Rows, columns and tiles, the whole view counted. The processors' own search for the best grid is not repeated."""
    size, _ = _side(model)
    rows, columns = (max(1, round(length / size)) for length in picture)
    return rows, columns, rows * columns + (rows * columns > 1)


def write_run(model: Any, picture: tuple[int, int]) -> Picture:
    """Flat tiles in one run: InternVL."""
    size, side = _side(model)
    tiles = _crops(model, picture)[2]
    count = tiles * int(side * model.config.downsample_ratio) ** 2
    return Picture({"pixel_values": _noise(tiles, 3, size, size)}, [START, *[IMAGE] * count, END])


def write_tagged(model: Any, picture: tuple[int, int]) -> Picture:
    """Flat tiles, each behind a tag: Aya Vision."""
    size, side = _side(model)
    tiles = _crops(model, picture)[2]
    run = [IMAGE] * (side // model.config.downsample_factor) ** 2
    return Picture({"pixel_values": _noise(tiles, 3, size, size)}, [START, *[TAG, *run] * tiles, END])


def write_lines(model: Any, picture: tuple[int, int]) -> Picture:
    """The whole view, then tiles with marks between columns and rows: Ovis2."""
    size, side = _side(model)
    rows, columns, tiles = _crops(model, picture)
    start, grid, column, line, end = model.config.visual_indicator_token_ids
    run = [IMAGE] * (side // model.config.vision_config.hidden_stride) ** 2
    row = [*[*run, column] * (columns - 1), *run]
    crops = [*[*row, line] * (rows - 1), *row] if tiles > 1 else []
    return Picture({"pixel_values": _noise(tiles, 3, size, size)}, [start, *run, grid, *crops, end])


def write_rows(model: Any, picture: tuple[int, int]) -> Picture:
    """Rows of tiles, the whole view last, with the mark around images between all: Idefics3, SmolVLM."""
    size, side = _side(model)
    rows, columns, tiles = _crops(model, picture)
    run = [IMAGE] * (side // model.config.scale_factor) ** 2
    row = [*[START, TAG, *run] * columns, BREAK]
    ids = [*(row * rows if tiles > 1 else []), BREAK, START, TAG, *run, START]
    pixels = _noise(1, tiles, 3, size, size)
    return Picture({"pixel_values": pixels, "pixel_attention_mask": torch.ones(1, tiles, size, size).long()}, ids)


def write_packed(model: Any, picture: tuple[int, int]) -> Picture:
    """Patches in the picture's own proportions, merged by squares: Qwen-VL, GLM-4.1V."""
    vision = model.config.vision_config
    side = vision.spatial_merge_size
    rows, columns = (side * round(length / vision.patch_size / side) for length in picture)
    channels = getattr(vision, "in_channels", 3) * vision.temporal_patch_size * vision.patch_size**2
    inputs = {
        "pixel_values": _noise(rows * columns, channels),
        "image_grid_thw": torch.tensor([[1, rows, columns]]),
    }
    return Picture(inputs, [START, *[IMAGE] * (rows * columns // side**2), END])


def write_pixtral(model: Any, picture: tuple[int, int]) -> Picture:
    """The picture in its own proportions, every row of tokens ended by a mark: Pixtral, Mistral 3."""
    side = getattr(model.config, "spatial_merge_size", 1)
    unit = model.config.vision_config.patch_size * side
    rows, columns = (round(length / unit) for length in picture)
    inputs = {
        "pixel_values": _noise(1, 3, rows * unit, columns * unit),
        "image_sizes": torch.tensor([[rows * unit, columns * unit]]),
    }
    return Picture(inputs, [*[*[IMAGE] * columns, BREAK] * (rows - 1), *[IMAGE] * columns, END])


@dataclass(frozen=True)
class Shape:
    """A checkpoint's shape.

    Args:
        source: the checkpoint whose ``config.json`` the figures are from.
        model_type: of the stock config class.
        vision: of its ``vision_config``.
        text: of its ``text_config``; of encoder-only shapes just what the projector needs.
        picture: (height, width) of the picture that is measured by default, pixels.
        write: (model, (height, width)) -> what the processor would make of a picture.
        top: further arguments of the config.
        encoder_only: whether the language model's figures are left out: built with one small layer, whatever is asked.
        every: the number of encoder layers after which their kinds repeat.
    """

    source: str
    model_type: str
    vision: Mapping[str, Any]
    text: Mapping[str, Any]
    picture: tuple[int, int]
    write: Callable[[Any, tuple[int, int]], Picture]
    top: Mapping[str, Any] = field(default_factory=dict)
    encoder_only: bool = False
    every: int = 1

    @property
    def depth_name(self) -> str:
        """How the vision config calls its number of layers."""
        return "depth" if "depth" in self.vision else "num_hidden_layers"

    @property
    def vision_layers(self) -> int:
        """Encoder layers of the checkpoint."""
        return int(self.vision[self.depth_name])

    @property
    def llm_layers(self) -> int:
        """Layers of the language model of the checkpoint; 1 of an encoder-only shape."""
        return int(self.text.get("num_hidden_layers", 1))

    def build(
        self,
        *,
        llm_layers: int | None = None,
        vision_layers: int | None = None,
        small_vocabulary: bool = False,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        attention: str = "sdpa",
    ) -> Any:
        """A stock model of this shape with random weights, in evaluation mode, that never ends an answer.

        Args:
            llm_layers: layers of the language model; default all.
            vision_layers: layers of the vision encoder; default all. A multiple of ``every``.
            small_vocabulary: 256 words: where only the encoder is run, embeddings would be ballast.
            dtype: of the weights.
            device: where to make them.
            attention: as ``attn_implementation``.

        Raises:
            ValueError: a number of layers that the shape does not have.
        """
        layers = self.llm_layers if llm_layers is None else llm_layers
        depth = self.vision_layers if vision_layers is None else vision_layers
        if not 1 <= layers <= self.llm_layers or not 1 <= depth <= self.vision_layers or depth % self.every:
            raise ValueError(
                f"{self.source} has {self.llm_layers} language model layers and {self.vision_layers} encoder layers "
                f"(to be cut by multiples of {self.every}); asked for {layers} and {depth}"
            )
        text = {**TEXT, **self.text, "num_hidden_layers": layers}
        vision = {**self.vision, self.depth_name: depth}
        # What is said of single layers is only kept of those that are left.
        for name in ("fullatt_block_indexes", "deepstack_visual_indexes"):
            if name in vision:
                vision[name] = [layer for layer in vision[name] if layer < depth]
        if small_vocabulary or self.encoder_only:
            text["vocab_size"] = SMALL_VOCABULARY
        config = AutoConfig.for_model(self.model_type, vision_config=vision, text_config=text, **self.top)
        for name, value in IDS.items():
            if hasattr(config, name):
                setattr(config, name, value)
        with torch.device(device):
            model = AutoModelForImageTextToText.from_config(config, dtype=dtype, attn_implementation=attention)
        model = model.eval().requires_grad_(False)
        model.generation_config.eos_token_id = None
        model.generation_config.pad_token_id = PAD
        return model

    def inputs(self, model: Any, batch: int = 1, picture: tuple[int, int] | None = None) -> dict[str, Tensor]:
        """Inputs of ``generate``: ``batch`` prompts with a picture of noise and a question each.

        Args:
            model: as built, of any number of layers.
            batch: prompts.
            picture: (height, width) in pixels; default the shape's own.
        """
        written = self.write(model, picture or self.picture)
        words = (FIRST_WORD + torch.arange(QUESTION) % WORDS).tolist()
        row = [BOS, *words[:4], *written.ids, *words]
        ids = torch.tensor([row] * batch, device=model.device)
        found = {
            name: value.repeat(batch, *[1] * (value.ndim - 1)).to(
                model.device, model.dtype if value.is_floating_point() else value.dtype
            )
            for name, value in written.inputs.items()
        }
        image = ids == model.config.image_token_id
        found |= {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if type(family_for(model)).rope is not Family.rope:
            found["mm_token_type_ids"] = image.int()
        if self.model_type in ("gemma3", "paligemma"):
            found["token_type_ids"] = image.long() if self.model_type == "gemma3" else torch.zeros_like(ids)
        return found


TEXT: dict[str, Any] = {"pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": None}


def _clip(size: int = 336) -> dict[str, Any]:
    """CLIP ViT-L/14: openai/clip-vit-large-patch14-336."""
    return {
        "model_type": "clip_vision_model", "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
        "num_attention_heads": 16, "image_size": size, "patch_size": 14,
    }  # fmt: skip


def _so400m(size: int, layers: int = 27, **more: Any) -> dict[str, Any]:
    """SigLIP So400m/14: google/siglip-so400m-patch14-384 and its other sizes."""
    return {
        "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": layers, "num_attention_heads": 16,
        "image_size": size, "patch_size": 14, **more,
    }  # fmt: skip


def _llm(
    model_type: str, width: int, inner: int, layers: int, heads: int, groups: int, vocabulary: int, **more: Any
) -> dict[str, Any]:
    return {
        "model_type": model_type, "hidden_size": width, "intermediate_size": inner, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": groups, "vocab_size": vocabulary,
        "max_position_embeddings": 32768, **more,
    }  # fmt: skip


def _stub(model_type: str, width: int, **more: Any) -> dict[str, Any]:
    """A language model whose width is real and whose rest is not: for encoder-only shapes."""
    return {
        "model_type": model_type, "hidden_size": width, "intermediate_size": 256, "num_attention_heads": 8,
        "num_key_value_heads": 8, "max_position_embeddings": 32768, **more,
    }  # fmt: skip


def _rope(sections: list[int], theta: float, **more: Any) -> dict[str, Any]:
    rope = {"rope_type": "default", "rope_theta": theta, "mrope_section": sections, **more}
    return {"rope_parameters": rope}


LLAVA: dict[str, Any] = {"vision_feature_layer": -2, "vision_feature_select_strategy": "default"}
FULL: dict[str, Any] = {"vision_feature_layer": -1, "vision_feature_select_strategy": "full"}
CANVASES = {"image_grid_pinpoints": [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]}
SIGLIP: dict[str, Any] = {"model_type": "siglip_vision_model", "vision_use_head": False}
QWEN2_7B = ("qwen2", 3584, 18944, 28, 28, 4)
VICUNA_7B = ("llama", 4096, 11008, 32, 32, 32, 32064)
MERGED = {"patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2}


def _next(source: str, *text: Any, **more: Any) -> Shape:
    return Shape(
        source, "llava_next", _clip(), _llm(*text, **more), (672, 672), write_anyres, {**LLAVA, **CANVASES}
    )  # fmt: skip


def _encoder(source: str, model_type: str, vision: dict[str, Any], text: dict[str, Any], picture: tuple[int, int],
             write: Callable[[Any, tuple[int, int]], Picture], **top: Any) -> Shape:  # fmt: skip
    return Shape(source, model_type, vision, text, picture, write, top, encoder_only=True)


SHAPES: dict[str, Shape] = {
    "llava-1.5-7b": Shape(
        "llava-hf/llava-1.5-7b-hf", "llava", _clip(), _llm(*VICUNA_7B), (336, 336), write_square, LLAVA
    ),
    "llava-next-7b": _next("llava-hf/llava-v1.6-vicuna-7b-hf", *VICUNA_7B),
    "llava-next-13b": _next("llava-hf/llava-v1.6-vicuna-13b-hf", "llama", 5120, 13824, 40, 40, 40, 32064),
    "llava-next-34b": _next("llava-hf/llava-v1.6-34b-hf", "llama", 7168, 20480, 60, 56, 8, 64064),
    "qwen2.5-vl-7b": Shape(
        "Qwen/Qwen2.5-VL-7B-Instruct",
        "qwen2_5_vl",
        {
            **MERGED, "depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16,
            "out_hidden_size": 3584, "window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31],
        },
        {**_llm("qwen2_5_vl_text", *QWEN2_7B[1:], 152064), **_rope([16, 24, 24], 1e6)},
        (756, 1008),
        write_packed,
        every=8,
    ),
    "qwen3-vl-8b": Shape(
        "Qwen/Qwen3-VL-8B-Instruct",
        "qwen3_vl",
        {
            **MERGED, "patch_size": 16, "depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "num_heads": 16,
            "out_hidden_size": 4096, "num_position_embeddings": 2304, "deepstack_visual_indexes": [8, 16, 24],
        },
        {
            **_llm("qwen3_vl_text", 4096, 12288, 36, 32, 8, 151936, head_dim=128),
            **_rope([24, 20, 20], 5e6, mrope_interleaved=True),
        },
        (768, 1024),
        write_packed,
    ),
    "internvl-8b": Shape(
        "OpenGVLab/InternVL3-8B-hf",
        "internvl",
        {
            "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
            "attention_bias": True, "image_size": [448, 448], "patch_size": [14, 14],
        },
        _llm(*QWEN2_7B, 151674),
        (896, 896),
        write_run,
        {"downsample_ratio": 0.5, "image_seq_length": 256, "vision_feature_layer": -1, "tie_word_embeddings": False},
    ),
    "llava-onevision-7b": _encoder(
        "llava-hf/llava-onevision-qwen2-7b-ov-hf", "llava_onevision", _so400m(384, 26, **SIGLIP), _stub("qwen2", 3584),
        (384, 768), write_anyres, **FULL,
        image_grid_pinpoints=[[384 * row, 384 * column] for row in range(1, 7) for column in range(1, 7)],
        vision_aspect_ratio="anyres_max_9",
    ),
    "aya-vision-8b": _encoder(
        "CohereLabs/aya-vision-8b", "aya_vision", _so400m(364, **SIGLIP), _stub("cohere2", 4096),
        (364, 728), write_tagged, **FULL, downsample_factor=2, alignment_intermediate_size=28672,
    ),
    "ovis2-8b": _encoder(
        "thisisiron/Ovis2-8B-hf", "ovis2",
        {"hidden_size": 1536, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 12,
         "image_size": 448, "patch_size": 14, "hidden_stride": 2, "vocab_size": 65536},
        _stub("qwen2", 3584), (448, 448), write_lines,
        hidden_size=3584, vocab_size=SMALL_VOCABULARY, visual_indicator_token_ids=[START, 10, 11, 12, END],
    ),
    "smolvlm-500m": _encoder(
        "HuggingFaceTB/SmolVLM-500M-Instruct", "smolvlm",
        {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
         "image_size": 512, "patch_size": 16},
        _stub("llama", 960), (512, 1024), write_rows, scale_factor=4,
    ),
    "idefics3-8b": _encoder(
        "HuggingFaceM4/Idefics3-8B-Llama3", "idefics3", _so400m(364), _stub("llama", 4096),
        (364, 728), write_rows, scale_factor=2,
    ),
    "gemma3-4b": _encoder(
        "google/gemma-3-4b-it", "gemma3", _so400m(896, **SIGLIP), _stub("gemma3_text", 2560, head_dim=256),
        (896, 896), write_square, mm_tokens_per_image=256,
    ),
    "paligemma-3b": _encoder(
        "google/paligemma-3b-mix-448", "paligemma", _so400m(448, **SIGLIP, projection_dim=2048),
        _stub("gemma", 2048), (448, 448), write_square, projection_dim=2048,
    ),
    "mistral3-24b": _encoder(
        "mistralai/Mistral-Small-3.1-24B-Instruct-2503", "mistral3",
        {"model_type": "pixtral", "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
         "num_attention_heads": 16, "image_size": 1540, "patch_size": 14},
        _stub("mistral", 5120), (756, 1008), write_pixtral, spatial_merge_size=2, vision_feature_layer=-1,
    ),
    "pixtral-12b": _encoder(
        "mistral-community/pixtral-12b", "llava",
        {"model_type": "pixtral", "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
         "num_attention_heads": 16, "image_size": 1024, "patch_size": 16},
        _stub("mistral", 5120), (768, 1024), write_pixtral, **FULL,
    ),
    "glm-4.1v-9b": _encoder(
        "zai-org/GLM-4.1V-9B-Thinking", "glm4v",
        {**MERGED, "depth": 24, "hidden_size": 1536, "intermediate_size": 13696, "num_heads": 12,
         "out_hidden_size": 4096, "image_size": 336},
        {**_stub("glm4v_text", 4096), **_rope([8, 12, 12], 1e4, partial_rotary_factor=0.5)},
        (756, 1008), write_packed,
    ),
    "qwen2-vl-7b": _encoder(
        "Qwen/Qwen2-VL-7B-Instruct", "qwen2_vl",
        {**MERGED, "depth": 32, "embed_dim": 1280, "hidden_size": 3584, "mlp_ratio": 4, "num_heads": 16},
        {**_stub("qwen2_vl_text", 3584), **_rope([16, 24, 24], 1e6)},
        (756, 1008), write_packed,
    ),
}  # fmt: skip
"""By the name that ``foveate bench --shape`` takes."""

WIDTHS = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "projection_dim")


def shape_of(name: str, known: Collection[str] = tuple(SHAPES)) -> Shape:
    """A shape by its name; ``llava-next-7b/4`` is one whose every width is a quarter, so that what the encoder and the
    language model cost stays in proportion.

    Args:
        name: as for ``foveate bench --shape``.
        known: which shapes there are to choose from.

    Raises:
        ValueError: an unknown shape, or a divisor that does not go.
    """
    base, slash, divisor = name.partition("/")
    if base not in known:
        raise ValueError(
            f"unknown shape {name!r}; known: bundled, {', '.join(known)}, and narrower ones such as "
            f"{next(iter(known))}/4"
        )
    if not slash:
        return SHAPES[base]
    if not divisor.isdecimal() or int(divisor) < 1:
        raise ValueError(f"shape {name!r}: give the divisor of its widths as a number, such as {base}/4")
    by, shape = int(divisor), SHAPES[base]

    def narrow(part: Mapping[str, Any]) -> dict[str, Any]:
        wrong = [key for key in WIDTHS if key in part and part[key] % by]
        if wrong:
            raise ValueError(f"shape {name!r}: {', '.join(wrong)} of {base} cannot be divided by {by}")
        return {key: value // by if key in WIDTHS else value for key, value in part.items()}

    return replace(shape, vision=narrow(shape.vision), text=narrow(shape.text))
