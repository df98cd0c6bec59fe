"""Write the trained model as a stock LLaVA-NeXT checkpoint, with tokenizer, processor and chat template."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import (
    GenerationConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessor,
    LlavaNextProcessor,
    PreTrainedTokenizerFast,
)

from training.model import MEAN, STD
from training.views import PATCH, VIEW
from training.words import BEGIN, END, ID, PAD, SPECIAL

#: "user: <image> What ...? assistant:" after the start token, as in training. The end token ends an answer.
CHAT_TEMPLATE = """\
{{ '<s>' }}{% for message in messages %}{{ message['role'] }}: \
{% if message['content'] is string %}{{ message['content'] }}\
{% else %}\
{% for part in message['content'] if part['type'] == 'image' %}<image> {% endfor %}\
{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}\
{% endif %}\
{{ '</s>' if message['role'] == 'assistant' else ' ' }}{% endfor %}\
{% if add_generation_prompt %}assistant:{% endif %}"""

#: Names as in the checkpoints on the hub, which every transformers release and vLLM read.
_HUB_NAMES = (
    ("model.vision_tower.", "vision_tower.vision_model."),
    ("model.language_model.", "language_model.model."),
    ("model.", ""),
)


def make_processor(pinpoints: list[list[int]]) -> LlavaNextProcessor:
    """Tokenizer and image processor of the bundled model."""
    tokenizer = Tokenizer(models.WordLevel(dict(ID), unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        additional_special_tokens=[SPECIAL[-1]],
        padding_side="left",
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
    )
    image_processor = LlavaNextImageProcessor(
        size={"shortest_edge": VIEW},
        crop_size={"height": VIEW, "width": VIEW},
        image_grid_pinpoints=pinpoints,
        image_mean=[MEAN] * 3,
        image_std=[STD] * 3,
    )
    return LlavaNextProcessor(
        image_processor,
        fast,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


def export(model: LlavaNextForConditionalGeneration, folder: Path, dtype: torch.dtype = torch.float16) -> None:
    """Write the checkpoint to ``folder``; what else lies there (the model card) stays."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight":  # tied to the embeddings
            continue
        old, new = next(pair for pair in _HUB_NAMES if name.startswith(pair[0]))
        tensors[new + name.removeprefix(old)] = tensor.detach().to("cpu", dtype).contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = model.config
    config.architectures = [type(model).__name__]
    config.dtype = str(dtype).removeprefix("torch.")
    config.save_pretrained(folder)
    GenerationConfig(bos_token_id=BEGIN, eos_token_id=END, pad_token_id=PAD, max_new_tokens=8).save_pretrained(folder)
    make_processor(config.image_grid_pinpoints).save_pretrained(folder)
