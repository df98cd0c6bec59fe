"""Checkpoint folders as vLLM loads them: tiny random models of every family that serving prunes, no hub needed.

Built from the pieces of ``tests.tiny``, with heads as wide as vLLM's attention on a CPU takes, and at least two of
everything that is split, so that two tensor-parallel ranks have something each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    CLIPImageProcessor,
    Gemma3ImageProcessor,
    Gemma3Processor,
    GenerationConfig,
    Glm4vImageProcessor,
    Glm4vProcessor,
    Glm4vVideoProcessor,
    GotOcr2ImageProcessor,
    Idefics3ImageProcessor,
    Idefics3Processor,
    InternVLProcessor,
    InternVLVideoProcessor,
    Llama4ImageProcessor,
    Llama4Processor,
    LlavaNextImageProcessor,
    LlavaNextProcessor,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    LlavaProcessor,
    PixtralImageProcessor,
    PixtralProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
    SiglipImageProcessor,
    SmolVLMImageProcessor,
    SmolVLMProcessor,
    SmolVLMVideoProcessor,
)

from tests.checkpoint import WORDS
from tests.tiny import BOS, END, IMAGE, PAD, SILENT, START, VIDEO
from tests.tiny.glm import IDS as GLM_IDS
from tests.tiny.glm import MOE as GLM_MOE
from tests.tiny.mistral import _vision as pixtral_vision
from tests.tiny.qwen import IDS, QWEN3
from tests.tiny.rows import TEXT, VISION, finish

EOS = 2
LETTERS = [*"abcdefghijklmnopqrstuvwxyz:?", "\u0120"]
"""Words of models whose tokenizer transformers makes by a class of its own, of bytes: the last is a space."""
# norm_topk_prob: as in the checkpoints on the hub; vLLM reads it, transformers takes it for granted.
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "norm_topk_prob": True}
WIDE = {**TEXT, "hidden_size": 128, "eos_token_id": EOS}
"""Four heads of 32."""
LINEAR = {
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
ROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 6, 6]}
PATCH, SIDE = 14, 84
PINPOINTS = [[SIDE, 2 * SIDE], [2 * SIDE, SIDE], [2 * SIDE, 2 * SIDE], [SIDE, 3 * SIDE]]
TOWER = {**VISION, "hidden_size": 64, "image_size": SIDE}
CLIP = {"model_type": "clip_vision_model", **TOWER, "projection_dim": 32, "initializer_range": 0.3}
SIGLIP = {"model_type": "siglip_vision_model", **TOWER, "vision_use_head": False}
ONEVISION_SIDE = 70
# Up to 4 x 4 crops, which are more patches than anyres_max_9 leaves: shrunk.
ONEVISION_PINPOINTS = [[70, 140], [140, 70], [140, 140], [70, 210], [210, 70], [280, 280]]
PER_TILE = 16
"""Tokens of one of InternVL's tiles: 8 x 8 patches, put together by squares of 2 x 2."""
QWEN_MARK = ("<|vision_start|>", "<|image_pad|>", "<|vision_end|>")
TEMPLATE = """\
{{{{ '<s> ' }}}}{{% for message in messages %}}{{{{ message['role'] }}}} : \
{{% if message['content'] is string %}}{{{{ message['content'] }}}}\
{{% else %}}{{% for part in message['content'] %}}\
{{% if part['type'] == 'image' %}}{image} {{% else %}}{{{{ part['text'] }}}}{{% endif %}}\
{{% endfor %}}{{% endif %}} </s> {{% endfor %}}{{% if add_generation_prompt %}}assistant :{{% endif %}}"""


def tokenizer(
    image: str = "<image>",
    video: str = "<video>",
    marks: tuple[str, ...] = (),
    others: tuple[str, ...] = (),
    words: Sequence[str] = WORDS,
    **named: str,
) -> Any:
    """Words and digits, lower case; every id that a model may answer with is a word, or one of ``others``.

    Args:
        image, video: the placeholders, as text.
        marks: what stands before and after an image.
        others: further tokens that are no words.
        words: what there is beside digits.
        named: further attributes of the tokenizer that a processor reads, such as ``start_image_token``.
    """
    special = {"<pad>": PAD, "<s>": BOS, "</s>": EOS, "<unk>": 3, image: IMAGE, video: VIDEO}
    special |= dict(zip(marks, (START, END), strict=False))
    free = (number for number in range(4, TEXT["vocab_size"]) if number not in special.values())
    vocabulary = special | dict(zip([*words, *map(str, range(10)), *others], free, strict=False))
    vocabulary |= {f"w{number}": number for number in free}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        padding_side="left",
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
        extra_special_tokens={
            "image_token": image,
            "video_token": video,
            **{f"mark_{number}": mark for number, mark in enumerate((*marks, *others))},
            **named,
        },
    )


def _config(model_type: str, **values: Any) -> Any:
    return AutoConfig.for_model(model_type, **values)


def _llava(model_type: str, vision: dict[str, Any], **values: Any) -> Any:
    cls = vision["model_type"] == "clip_vision_model"
    return _config(
        model_type,
        vision_config=vision,
        text_config={"model_type": "llama", **WIDE},
        image_token_index=IMAGE,
        vision_feature_layer=-2 if cls else -1,
        **{"vision_feature_select_strategy": "default" if cls else "full", **values},
    )


def _llava_processor(processor: Any, images: Any, cls: bool, **values: Any) -> Any:
    return processor(
        images,
        tokenizer(),
        patch_size=PATCH,
        vision_feature_select_strategy="default" if cls else "full",
        num_additional_image_tokens=int(cls),
        chat_template=TEMPLATE.format(image="<image>"),
        **values,
    )


SQUARE = {"height": SIDE, "width": SIDE}


def _llava_clip() -> tuple[Any, Any]:
    images = CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=SQUARE)
    return _llava("llava", CLIP), _llava_processor(LlavaProcessor, images, cls=True)


def _llava_full() -> tuple[Any, Any]:
    """CLS goes to the LLM along with the patches."""
    config, processor = _llava_clip()
    config.vision_feature_select_strategy = processor.vision_feature_select_strategy = "full"
    return config, processor


def _llava_siglip() -> tuple[Any, Any]:
    images = SiglipImageProcessor(size=SQUARE)
    return _llava("llava", SIGLIP), _llava_processor(LlavaProcessor, images, cls=False)


def _pixtral(model_type: str, side: int, **values: Any) -> tuple[Any, Any]:
    config = _config(
        model_type,
        vision_config={**pixtral_vision().to_dict(), "hidden_size": 64, "head_dim": 16},
        text_config={"model_type": "mistral", **WIDE, "head_dim": 32},
        image_token_index=IMAGE,
        **values,
    )
    images = PixtralImageProcessor(size={"longest_edge": 224}, patch_size=side * PATCH)
    marks = ("[IMG_BREAK]", "[IMG_END]")
    words = tokenizer("[IMG]", "<video>", marks)
    return config, PixtralProcessor(
        images, words, patch_size=PATCH, spatial_merge_size=side, chat_template=TEMPLATE.format(image="[IMG]")
    )


def _llava_pixtral() -> tuple[Any, Any]:
    return _pixtral("llava", 1, vision_feature_layer=-1, vision_feature_select_strategy="full")


def _mistral3() -> tuple[Any, Any]:
    """The last layer but one is read, which is the last that vLLM has."""
    return _pixtral("mistral3", 2, vision_feature_layer=-2, spatial_merge_size=2, tie_word_embeddings=False)


def _llava_next() -> tuple[Any, Any]:
    images = LlavaNextImageProcessor(size={"shortest_edge": SIDE}, crop_size=SQUARE, image_grid_pinpoints=PINPOINTS)
    config = _llava("llava_next", SIGLIP, image_grid_pinpoints=PINPOINTS)
    return config, _llava_processor(LlavaNextProcessor, images, cls=False)


def _llava_onevision() -> tuple[Any, Any]:
    square = {"height": ONEVISION_SIDE, "width": ONEVISION_SIDE}
    config = _config(
        "llava_onevision",
        vision_config={**SIGLIP, "image_size": ONEVISION_SIDE},
        text_config={"model_type": "qwen2", **WIDE},
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        image_grid_pinpoints=ONEVISION_PINPOINTS,
        vision_aspect_ratio="anyres_max_9",
    )
    processor = LlavaOnevisionProcessor(
        LlavaOnevisionImageProcessor(size=square, image_grid_pinpoints=ONEVISION_PINPOINTS),
        tokenizer(),
        LlavaOnevisionVideoProcessor(size=square),
        num_image_tokens=(ONEVISION_SIDE // PATCH) ** 2,
        vision_feature_select_strategy="full",
        chat_template=TEMPLATE.format(image="<image>"),
    )
    return config, processor


def _vision(patch: int, depth: int, **values: Any) -> dict[str, Any]:
    shape = {"depth": depth, "intermediate_size": 64, "num_heads": 4, "patch_size": patch}
    return {**shape, "spatial_merge_size": 2, "temporal_patch_size": 2, **values}


def _qwen(processor: Any, videos: Any, patch: int, known: Sequence[str] = WORDS) -> Any:
    # 2 x 2 to 8 x 8 tokens
    pixels = {"shortest_edge": (4 * patch) ** 2, "longest_edge": (16 * patch) ** 2}
    images = Qwen2VLImageProcessor(size=pixels, patch_size=patch)
    words = tokenizer(QWEN_MARK[1], "<|video_pad|>", (QWEN_MARK[0], QWEN_MARK[2]), words=known)
    template = TEMPLATE.format(image=" ".join(QWEN_MARK))
    if known is LETTERS:  # a blank is a token there: as on the hub, none stands between marks and a user's words
        bare = TEMPLATE.replace("{image} ", "{image}").replace(" </s> ", "</s> ")
        template = bare.format(image="".join(QWEN_MARK))
    # As on the hub; vLLM normalizes pixels of both as the processor of images says.
    levels = {"image_mean": images.image_mean, "image_std": images.image_std}
    return processor(images, words, videos(size=pixels, patch_size=patch, **levels), chat_template=template)


def _qwen2_vl() -> tuple[Any, Any]:
    vision = _vision(PATCH, 3, embed_dim=64, hidden_size=128, mlp_ratio=2)
    config = _config("qwen2_vl", vision_config=vision, text_config={**WIDE, "rope_parameters": ROPE}, **IDS)
    return config, _qwen(Qwen2VLProcessor, Qwen2VLVideoProcessor, PATCH)


def _qwen2_5_vl() -> tuple[Any, Any]:
    """Windows of 2 x 2 tokens, which most pictures here are not a multiple of; the last layer but one sees it all."""
    vision = _vision(
        PATCH, 4, hidden_size=64, out_hidden_size=128, window_size=56, fullatt_block_indexes=[0, 2], tokens_per_second=2
    )
    config = _config("qwen2_5_vl", vision_config=vision, text_config={**WIDE, "rope_parameters": ROPE}, **IDS)
    return config, _qwen(Qwen2_5_VLProcessor, Qwen2VLVideoProcessor, PATCH)


def _qwen3(model_type: str, **more: Any) -> tuple[Any, Any]:
    text = {**WIDE, "head_dim": 32, "rope_parameters": {**ROPE, "mrope_interleaved": True}, **more}
    vision = _vision(16, 3, **{**QWEN3, "hidden_size": 64, "out_hidden_size": 128})
    config = _config(model_type, vision_config=vision, text_config=text, tie_word_embeddings=False, **IDS)
    return config, _qwen(Qwen3VLProcessor, Qwen3VLVideoProcessor, 16)


def _qwen3_5(model_type: str, **more: Any) -> tuple[Any, Any]:
    """Full attention alone: vLLM's linear attention on a CPU takes bfloat16 only, in which nothing compares."""
    rope = {**ROPE, "mrope_interleaved": True, "partial_rotary_factor": 1.0}
    layers = ["full_attention"] * WIDE["num_hidden_layers"]
    # Its attention is gated: with smaller weights little of a picture would reach the answer.
    text = {**WIDE, "head_dim": 32, "rope_parameters": rope, "layer_types": layers, "initializer_range": 0.5}
    text |= {**LINEAR, **more}
    vision = _vision(16, 3, hidden_size=64, out_hidden_size=128, num_position_embeddings=64)
    config = _config(model_type, vision_config=vision, text_config=text, tie_word_embeddings=False, **IDS)
    return config, _qwen(Qwen3VLProcessor, Qwen3VLVideoProcessor, 16, LETTERS)


def _internvl() -> tuple[Any, Any]:
    side = 112
    config = _config(
        "internvl",
        vision_config={**TOWER, "image_size": [side, side], "patch_size": [PATCH, PATCH]},
        text_config={"model_type": "qwen2", **WIDE},
        image_token_id=IMAGE,
        image_seq_length=PER_TILE,
        tie_word_embeddings=False,
    )
    square = {"height": side, "width": side}
    marks = ("<img>", "</img>")
    words = tokenizer(
        "<IMG_CONTEXT>", "<video>", marks,
        start_image_token=marks[0], end_image_token=marks[1], context_image_token="<IMG_CONTEXT>",
    )  # fmt: skip
    images = GotOcr2ImageProcessor(size=square, crop_to_patches=True, min_patches=1, max_patches=6)
    processor = InternVLProcessor(
        images,
        words,
        InternVLVideoProcessor(size=square),
        image_seq_length=PER_TILE,
        chat_template=TEMPLATE.format(image="<IMG_CONTEXT>"),
    )
    return config, processor


def _glm(model_type: str, **more: Any) -> tuple[Any, Any]:
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3], "partial_rotary_factor": 0.5}
    text = {**WIDE, "head_dim": 32, "rope_parameters": rope, **more}
    vision = _vision(PATCH, 3, hidden_size=64, out_hidden_size=128, image_size=112)
    config = _config(model_type, vision_config=vision, text_config=text, tie_word_embeddings=False, **GLM_IDS)
    pixels = {"shortest_edge": (4 * PATCH) ** 2, "longest_edge": (16 * PATCH) ** 2}
    marks = ("<|begin_of_image|>", "<|end_of_image|>")
    words = tokenizer("<|image|>", "<|video|>", marks, ("<|begin_of_video|>", "<|end_of_video|>"))
    template = TEMPLATE.format(image=f"{marks[0]} <|image|> {marks[1]}")
    images = Glm4vImageProcessor(size=pixels, patch_size=PATCH)
    videos = Glm4vVideoProcessor(size=pixels, patch_size=PATCH)
    return config, Glm4vProcessor(images, words, videos, chat_template=template)


def _gemma3() -> tuple[Any, Any]:
    side = 112
    text = {
        **WIDE, "model_type": "gemma3_text", "head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 64,
        "tie_word_embeddings": False,  # or it would say the last word over and over
        "layer_types": ["sliding_attention", "full_attention"],
    }  # fmt: skip
    vision = {**SIGLIP, "image_size": side}
    config = _config(
        "gemma3", vision_config=vision, text_config=text, mm_tokens_per_image=16, image_token_index=IMAGE,
        boi_token_index=START, eoi_token_index=END, tie_word_embeddings=False,
    )  # fmt: skip
    marks = ("<start_of_image>", "<end_of_image>")
    words = tokenizer(
        "<image_soft_token>", "<video>", marks, ("\n", "\n\n", "\n\n\n", "\n\n\n\n"),
        boi_token=marks[0], eoi_token=marks[1],
    )  # fmt: skip
    images = Gemma3ImageProcessor(size={"height": side, "width": side})
    template = TEMPLATE.replace("{image} ", "{image}").format(image=marks[0])  # its blank lines meet
    return config, Gemma3Processor(images, words, chat_template=template, image_seq_length=16)


def _idefics3(model_type: str) -> tuple[Any, Any]:
    """Tiles of 4 x 4 tokens; what is left over of 58 pixels is in no patch."""
    side, fence = 116, "<fake_token_around_image>"
    config = _config(
        model_type,
        vision_config={**TOWER, "image_size": side},
        text_config={"model_type": "llama", **WIDE},
        image_token_id=IMAGE,
        scale_factor=2,
        pad_token_id=PAD,
        tie_word_embeddings=False,
    )
    tags = [f"<row_{row}_col_{column}>" for row in range(1, 4) for column in range(1, 4)]
    others = ("\n", "\n\n", "<global-img>", "<end_of_utterance>", *tags)
    words = tokenizer("<image>", "<video>", (fence,), others, fake_image_token=fence)
    settings: dict[str, Any] = {"size": {"longest_edge": 3 * side}, "max_image_size": {"longest_edge": side}}
    more: dict[str, Any] = {"image_seq_len": PER_TILE, "chat_template": TEMPLATE.format(image="<image>")}
    if model_type == "idefics3":
        return config, Idefics3Processor(Idefics3ImageProcessor(**settings), words, **more)
    videos = SmolVLMVideoProcessor(**settings)
    return config, SmolVLMProcessor(SmolVLMImageProcessor(**settings), words, videos, **more)


def _llama4() -> tuple[Any, Any]:
    side = 112
    vision: dict[str, Any] = {"vision_output_dim": 48, "projector_input_dim": 48, "projector_output_dim": 48}
    vision["intermediate_size"] = 256  # what four patches come to
    vision["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e4}
    text: dict[str, Any] = {
        "head_dim": 32,
        "intermediate_size_mlp": 128,
        "num_local_experts": 4,
        "interleave_moe_layer_step": 2,
    }
    text["initializer_range"] = 0.05  # with larger weights it says few words, over and over
    config = _config(
        "llama4",
        vision_config={**TOWER, **vision, "image_size": side},
        text_config={**WIDE, **text, "no_rope_layers": [1, 0], "attention_chunk_size": 1024},
        image_token_index=IMAGE, boi_token_index=START, eoi_token_index=END, tie_word_embeddings=False,
    )  # fmt: skip
    others = ("<|image|>", "<|tile_x_separator|>", "<|tile_y_separator|>")
    words = tokenizer("<|patch|>", "<video>", ("<|image_start|>", "<|image_end|>"), others)
    images = Llama4ImageProcessor(size={"height": side, "width": side}, max_patches=6)
    template = TEMPLATE.format(image="<|image|>")
    return config, Llama4Processor(images, words, patch_size=PATCH, chat_template=template)


FAMILIES: dict[str, Callable[[], tuple[Any, Any]]] = {
    "llava-clip": _llava_clip,
    "llava-siglip": _llava_siglip,
    "llava_next-siglip": _llava_next,
    "llava_onevision": _llava_onevision,
    "internvl": _internvl,
    "qwen2_vl": _qwen2_vl,
    "qwen2_5_vl": _qwen2_5_vl,
    "qwen3_vl": lambda: _qwen3("qwen3_vl"),
    "qwen3_vl_moe": lambda: _qwen3("qwen3_vl_moe", **MOE),
    "qwen3_5": lambda: _qwen3_5("qwen3_5"),
    "qwen3_5_moe": lambda: _qwen3_5("qwen3_5_moe", **MOE, shared_expert_intermediate_size=32),
    "glm4v": lambda: _glm("glm4v"),
    # use_qk_norm: as in the checkpoints on the hub; vLLM reads it, transformers has none.
    "glm4v_moe": lambda: _glm("glm4v_moe", **{**GLM_MOE, "head_dim": 32, "use_qk_norm": False}),
    "gemma3": _gemma3,
    "idefics3": lambda: _idefics3("idefics3"),
    "smolvlm": lambda: _idefics3("smolvlm"),
    "mistral3": _mistral3,
    "llama4": _llama4,
}
"""Families that serving prunes: configs and processors."""
REFUSED = {"llava-full": _llava_full, "llava-pixtral": _llava_pixtral}
"""Such as are refused."""


def write(name: str, folder: Path) -> Path:
    """Writes one of ``FAMILIES`` or ``REFUSED``."""
    config, processor = {**FAMILIES, **REFUSED}[name]()
    torch.manual_seed(0)
    model = finish(AutoModelForImageTextToText.from_config(config), "sdpa")
    with torch.no_grad():
        model.get_output_embeddings().weight[[*SILENT, PAD, BOS, EOS]] = 0.0  # never generated
    model.save_pretrained(folder)
    GenerationConfig(bos_token_id=BOS, eos_token_id=EOS, pad_token_id=PAD).save_pretrained(folder)
    processor.save_pretrained(folder)
    weights = folder / "model.safetensors"
    shorter = config.vision_config.model_type in ("clip_vision_model", "siglip_vision_model")
    save_file(dict(_on_hub(*item, shorter) for item in load_file(weights).items()), weights, {"format": "pt"})
    return folder


def _on_hub(key: str, value: torch.Tensor, shorter: bool) -> tuple[str, torch.Tensor]:
    """A weight as in checkpoints on the hub, which vLLM reads; save_pretrained writes some in another way.

    Args:
        key, value: as save_pretrained writes it.
        shorter: whether the tower's names lack a level (CLIP, SigLIP). Experts' matrices are transposed.
    """
    head, tower, rest = key.partition("vision_tower.")
    if tower and shorter:
        key = f"{head}{tower}vision_model.{rest}"
    stacked = ".mlp.experts." in key and value.ndim == 3
    return key, value.transpose(1, 2).contiguous() if stacked else value
