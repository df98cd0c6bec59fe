"""Write the trained model as a stock Qwen3-VL checkpoint, with tokenizer, processor and chat template."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3VLForConditionalGeneration

from training.dynamic.grid import LEAST, MEAN, MERGE, MOST, PATCH, STD, TEMPORAL
from training.dynamic.words import END, ID, MARK, PAD, PATTERN, SPECIAL

#: As Qwen3-VL's own, for user and assistant: pictures stand where they are in the message.
CHAT_TEMPLATE = """\
{% for message in messages %}<|im_start|>{{ message['role'] }}
{% if message['content'] is string %}{{ message['content'] }}\
{% else %}\
{% for part in message['content'] %}\
{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>\
{% elif part['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>\
{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}\
{% endfor %}\
{% endif %}<|im_end|>
{% endfor %}\
{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def make_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer of the dynamic model."""
    tokenizer = Tokenizer(models.WordLevel(dict(ID), unk_token=SPECIAL[0]))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Lowercase(),
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Strip(),
            normalizers.Prepend(MARK),
            normalizers.Replace(" ", MARK),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(PATTERN), "isolated")
    tokenizer.decoder = decoders.Sequence([decoders.Replace(MARK, " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=SPECIAL[0],
        eos_token=SPECIAL[END],
        pad_token=SPECIAL[PAD],
        additional_special_tokens=list(SPECIAL[2:]),
        padding_side="left",
        model_max_length=4096,
        clean_up_tokenization_spaces=False,
    )


#: A video has as many pixels, all frames together, as so many of the largest pictures: 2304 tokens.
FRAMES = 8


def video_options() -> dict[str, Any]:
    """Of the video processor, whose sizes are those of all frames together."""
    return {**image_options(), "size": {"shortest_edge": LEAST, "longest_edge": FRAMES * MOST}}


def image_options() -> dict[str, Any]:
    """Of the image processor."""
    return {
        "size": {"shortest_edge": LEAST, "longest_edge": MOST},
        "patch_size": PATCH,
        "merge_size": MERGE,
        "temporal_patch_size": TEMPORAL,
        "image_mean": [MEAN] * 3,
        "image_std": [STD] * 3,
    }


def export(model: Qwen3VLForConditionalGeneration, folder: Path, dtype: torch.dtype = torch.float16) -> None:
    """Write the checkpoint to ``folder``; what else lies there (the model card) stays."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: tensor.detach().to("cpu", dtype).contiguous()
        for name, tensor in model.state_dict().items()
        if name != "lm_head.weight"  # tied to the embeddings
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = model.config
    config.architectures = [type(model).__name__]
    config.dtype = str(dtype).removeprefix("torch.")
    config.save_pretrained(folder)
    GenerationConfig(eos_token_id=END, pad_token_id=PAD, max_new_tokens=8).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    # By hand: the stock class cannot be made without torchvision, which its videos need.
    options = {
        "processor_class": "Qwen3VLProcessor",
        "image_processor": {"image_processor_type": "Qwen2VLImageProcessor", **image_options()},
        "video_processor": {"video_processor_type": "Qwen3VLVideoProcessor", **video_options()},
    }
    (folder / "processor_config.json").write_text(json.dumps(options, indent=2) + "\n", encoding="utf-8")
