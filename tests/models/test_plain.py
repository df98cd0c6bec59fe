"""Packed encoders before LLMs with plain positions, with their families' own processors and chat formats."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import foveate
from foveate.guiding import Guide, locate_images
from foveate.models import family_for
from foveate.tokens import Geometry
from foveate.turns import turns_of
from tests import reference
from tests.encoding import encode
from tests.tiny import BOS, END, IMAGE, PAD, ROWS, SILENT, START, VIDEO, prompts
from tests.tiny.plain import CONTENT, compressed_pixels, minimax_m3, video_llama_3
from tests.tiny.rows import known

WORDS = ["where", "is", "the", "cat", "be", "brief", "on", "mat", "and", "dog", "image", "video", "seconds", "time"]
GREEDY = {"max_new_tokens": 4, "do_sample": False, "suppress_tokens": SILENT}


@dataclass(frozen=True)
class Format:
    """How a family writes a conversation.

    Args:
        folder, processor: its processor's class.
        images: folder and name of its image processor's; those of the first folder need torchvision.
        roles: what opens a message of the system, the user and the assistant.
        closes: what closes one.
        image, video: what stands for one in a message.
        named: what the processor calls its tokens, by the ids that the tiny models have.
        options: of the image processor.
    """

    folder: str
    processor: str
    images: tuple[str, str]
    roles: tuple[str, str, str]
    closes: str
    image: str
    video: str
    named: dict[str, int]
    options: dict[str, Any]

    @property
    def template(self) -> str:
        system, user, assistant = (repr(role) for role in self.roles)
        return (
            "{% for message in messages %}{{ {'system': " + system + ", 'user': " + user + ", 'assistant': " + assistant
            + "}[message['role']] }}{% if message['content'] is string %}{{ message['content'] }}{% else %}"
            "{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ " + repr(self.image)
            + " }}{% elif part['type'] == 'video' %}{{ " + repr(self.video) + " }}{% else %}{{ part['text'] }}"
            "{% endif %}{% endfor %}{% endif %}{{ " + repr(self.closes) + " }}{% endfor %}"
            "{% if add_generation_prompt %}{{ " + assistant + " }}{% endif %}"
        )  # fmt: skip


QWEN_IMAGES = ("qwen2_vl", "Qwen2VLImageProcessorPil")
SIZES = {"size": {"shortest_edge": 56 * 56, "longest_edge": 112 * 112}}
CHATML = ("<|im_start|>system\n", "<|im_start|>user\n", "<|im_start|>assistant\n")
FORMATS = {
    "kimi_k25": Format(
        "kimi_k25",
        "Kimi_K25Processor",
        ("kimi_k25", "Kimi_K25ImageProcessor"),
        tuple(f"<|im_{role}|>{role}<|im_middle|>" for role in ("system", "user", "assistant")),
        "<|im_end|>",
        "<|media_begin|>image<|media_content|><|media_pad|><|media_end|>\n",
        "<|kimi_k25_video_placeholder|>",
        {
            "<|media_begin|>": START,
            "<|media_content|>": CONTENT,
            "<|media_end|>": END,
            "<|media_pad|>": IMAGE,
            "<|kimi_k25_video_placeholder|>": VIDEO,
        },
        {"size": {"max_height": 8, "max_width": 8}},
    ),
    "exaone4_5": Format(
        "exaone4_5",
        "Exaone4_5_Processor",
        QWEN_IMAGES,
        tuple(f"[|{role}|]\n" for role in ("system", "user", "assistant")),
        "[|endofturn|]\n",
        "<vision><|image_pad|></vision>",
        "<vision><|video_pad|></vision>",
        {"<|image_pad|>": IMAGE, "<|video_pad|>": VIDEO},
        SIZES,
    ),
    "hyperclovax_vision_v2": Format(
        "hyperclovax_vision_v2",
        "HyperCLOVAXVisionV2Processor",
        QWEN_IMAGES,
        CHATML,
        "<|im_end|>\n",
        "<|image_start|><|image_pad|><|image_end|>\n",
        "<|video_start|><|video_pad|><|video_end|>\n",
        {"<|image_pad|>": IMAGE, "<|video_pad|>": VIDEO},
        SIZES,
    ),
    "video_llama_3": Format(
        "video_llama_3",
        "VideoLlama3Processor",
        ("video_llama_3", "VideoLlama3ImageProcessorPil"),
        CHATML,
        "<|im_end|>\n",
        "<|image_pad|>\n",
        "<|video_pad|>\n",
        {"<|image_pad|>": IMAGE, "<|video_pad|>": VIDEO},
        SIZES,
    ),
    "minimax_m3_vl": Format(
        "minimax_m3_vl",
        "MiniMaxM3VLProcessor",
        ("minimax_m3_vl", "MiniMaxM3VLImageProcessor"),
        tuple(f"]~b]{role}\n" for role in ("system", "user", "ai")),
        "[e~[\n",
        "]<]image[>[",
        "]<]video[>[",
        {"]<]image[>[": IMAGE, "]<]video[>[": VIDEO, "]<]start of image[>[": START, "]<]end of image[>[": END},
        SIZES,
    ),
    **{
        name: Format(
            folder,
            processor,
            ("muse_glimmer", "MuseGlimmerImageProcessor"),
            tuple(f"<|header_start|>{role}<|header_end|>\n\n" for role in ("system", "user", "assistant")),
            "<|eot|>",
            "<|patch|>",
            "<|video|>",
            {"<|patch|>": IMAGE, "<|video|>": VIDEO, "<|image_start|>": START, "<|image_end|>": END},
            {"max_image_tokens": 16},
        )
        for name, folder, processor in (
            ("muse_glimmer", "muse_glimmer", "MuseGlimmerProcessor"),
            ("muse_spark", "muse_spark", "MuseSparkProcessor"),
        )
    },
    "dots3_note": Format(
        "dots3_note",
        "Dots3NoteProcessor",
        QWEN_IMAGES,
        tuple(f"<|{role}|>" for role in ("system", "user", "assistant")),
        "<|endofturn|>",
        "<|img|><|imgpad|><|endofimg|>",
        "<|video_pad|>",
        {"<|imgpad|>": IMAGE, "<|video_pad|>": VIDEO, "<|audio_comp_pad|>": 92},
        {**SIZES, "temporal_patch_size": 1},
    ),
}
"""The markers of chat formats as their templates have them, as far as they are known; those of HyperCLOVA X, MiniMax,
Muse and dots3 are made up where they are not."""


def _tokenizer(form: Format) -> PreTrainedTokenizerFast:
    """Words, digits and every mark of a format."""
    marks = [*form.named, "<vision>", "</vision>", "<|img|>", "<|endofimg|>", "<|im_start|>", "<|im_end|>"]
    marks += ["<|im_system|>", "<|im_user|>", "<|im_assistant|>", "<|im_middle|>", "<|vid_frame_separator|>"]
    marks += ["<|image_start|>", "<|image_end|>", "<|video_start|>", "<|video_end|>", "<|vid_start|>", "<|vid_end|>"]
    marks += ["<|header_start|>", "<|header_end|>", "<|eot|>", form.closes.strip()]
    marks += [role.strip() for role in form.roles if role.strip()[0] in "[]<" and role.strip()[-1] in "]>"]
    marks = list(dict.fromkeys(marks))
    taken = {"<pad>": PAD, "<s>": BOS, "</s>": 2, "<unk>": 3, **form.named}
    free = (number for number in range(4, 92) if number not in taken.values())
    vocabulary = {**taken, **{mark: next(free) for mark in marks if mark not in taken}}
    words = [*WORDS, "system", "user", "assistant", "ai", *map(str, range(10)), ":", ".", "b", "~"]
    vocabulary |= dict(zip([word for word in words if word not in vocabulary], free, strict=False))
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.Punctuation()]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>",
        additional_special_tokens=marks, padding_side="left",
    )  # fmt: skip


def _part(folder: str, name: str, **options: Any) -> Any:
    pil = "_pil" if name.endswith("Pil") else ""
    if not pil:
        pytest.importorskip("torchvision", reason=f"{name} needs torchvision")
    module = importlib.import_module(f"transformers.models.{folder}.image_processing{pil}_{folder}")
    return getattr(module, name)(**options)


@cache
def processor(name: str) -> Any:
    """The real one; a part for videos or sound only where torchvision is not needed for it."""
    form = FORMATS[name]
    with pytest.MonkeyPatch.context() as patch:
        module = importlib.import_module(f"transformers.models.{form.folder}.processing_{form.folder}")
        made = getattr(module, form.processor)
        patch.setattr(made, "check_argument_for_proper_class", lambda *_: None)
        images = _part(*form.images, **form.options)
        return made(
            image_processor=images, tokenizer=_tokenizer(form), video_processor=None, chat_template=form.template
        )


@pytest.fixture(params=[name for name in FORMATS if name in ROWS])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def picture(height: int, width: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8))


def guiding(model: Any, processor: Any, ids: torch.Tensor, counts: list[int]) -> list[str]:
    """The words that guide the choice for every image."""
    family = family_for(model)
    there = torch.ones_like(ids, dtype=torch.bool)
    guide = Guide(ids, ~family.marks(ids), turns_of(processor))
    spans = locate_images(ids, there, family.image_token_id, counts)
    return [processor.tokenizer.decode(guide.of(span).ids) for span in spans]


IMAGES = {"type": "image"}
ASKED = {"type": "text", "text": "where is the cat"}
TALKS = {
    "behind": [{"role": "user", "content": [IMAGES, ASKED]}],
    "before": [{"role": "user", "content": [ASKED, IMAGES]}],
    "system": [{"role": "system", "content": "be brief"}, {"role": "user", "content": [IMAGES, ASKED]}],
    "later": [
        {"role": "user", "content": [IMAGES, ASKED]},
        {"role": "assistant", "content": "on the mat"},
        {"role": "user", "content": [{"type": "text", "text": "and the dog"}]},
    ],
    "earlier": [
        {"role": "user", "content": [{"type": "text", "text": "and the dog"}]},
        {"role": "assistant", "content": "on the mat"},
        {"role": "user", "content": [IMAGES, ASKED]},
    ],
    "two": [{"role": "user", "content": [IMAGES, IMAGES, ASKED]}],
}


@pytest.mark.parametrize("talk", list(TALKS))
def test_the_question_guides(name: str, talk: str) -> None:
    model, made = ROWS[name].make("sdpa"), processor(name)
    text = made.apply_chat_template(TALKS[talk], add_generation_prompt=True, tokenize=False)
    pictures = [picture(84, 120), picture(100, 60)][: 2 if talk == "two" else 1]
    inputs = made(text=[text], images=pictures, return_tensors="pt")
    images = encode(model, inputs)
    counts = [image.placeholders for image in images]
    assert int((inputs["input_ids"] == IMAGE).sum()) == sum(counts)
    assert guiding(model, made, inputs["input_ids"], counts) == ["where is the cat"] * len(images)


@pytest.mark.parametrize("keep", [1.0, 0.4])
def test_answers(name: str, keep: float) -> None:
    """What the processor returns is enough, and nothing of it is in the way."""
    model, made = ROWS[name].make("sdpa"), processor(name)
    text = made.apply_chat_template(TALKS["two"], add_generation_prompt=True, tokenize=False)
    inputs = made(text=[text], images=[picture(84, 120), picture(100, 60)], return_tensors="pt")
    inputs.pop("token_type_ids", None)
    pruner = foveate.AdaFV(keep=keep)
    with pruner(model, processor=made):
        result = model.generate(**inputs, **GREEDY)
    assert len(pruner.selections) == 2
    if keep == 1.0:
        assert torch.equal(result, model.generate(**inputs, **GREEDY))
    else:
        assert all(len(one) < one.total for one in pruner.selections)


def test_missing_inputs_are_named(name: str) -> None:
    row = ROWS[name]
    model = row.make("sdpa")
    inputs = prompts(row, model, "several")
    with foveate.AdaFV(keep=0.4)(model):
        for missing in family_for(model).image_inputs[1:]:
            with pytest.raises(ValueError, match=f"needs {missing} beside pixel_values"):
                model.generate(**{key: value for key, value in inputs.items() if key != missing}, **GREEDY)
        with pytest.raises(ValueError, match="patches for image_grid_thw"):
            model.generate(**{**inputs, "pixel_values": inputs["pixel_values"][:-4]}, **GREEDY)


@pytest.mark.parametrize("size, padded", [((336, 340), (336, 364)), ((84, 28), (84, 28))])
def test_padding_is_in_no_box(size: tuple[int, int], padded: tuple[int, int]) -> None:
    """Not scaled, boxes are those of the tokens, cut where the picture ends; scaled, they are so in proportion."""
    rows, columns = padded[0] // 28, padded[1] // 28
    row, column = (torch.arange(rows * columns) // columns, torch.arange(rows * columns) % columns)
    boxes = torch.stack([column, row, column + 1, row + 1], dim=1).float() * 28
    whole = Geometry(torch.zeros_like(row), row, column, boxes, padded, ((rows, columns),), padded=28)
    height, width = size
    wanted = torch.minimum(boxes, torch.tensor([width, height, width, height]))
    assert torch.equal(whole.boxes_in(height, width), wanted)
    twice = whole.boxes_in(2 * height, 2 * width)
    assert float((twice - 2 * wanted).abs().max()) <= 28
    assert float(twice[-1, 2]) == 2 * width or float(twice[-1, 3]) == 2 * height


@pytest.mark.skipif("video_llama_3" not in ROWS, reason="refused in this transformers")
@pytest.mark.parametrize("keep", [1.0, 0.4])
def test_videos_of_which_the_processor_left_out_tokens(keep: float) -> None:
    """They are left out once; budgets are of those that there are. Stock's own beam search fails on them."""
    row = replace(ROWS["video_llama_3-video"], pixels=partial(compressed_pixels, 14))
    model = row.make("sdpa")
    inputs = prompts(row, model, "mixed")
    pruner = foveate.Saliency(keep=keep)
    with pruner(model):
        result = model.generate(**inputs, **GREEDY)
        with torch.no_grad():
            logits = model(**inputs).logits
    assert sum(one.total for one in pruner.selections) == int(inputs["video_compression_mask"].sum())
    if keep == 1.0:
        assert torch.equal(result, model.generate(**inputs, **GREEDY))
        with torch.no_grad():
            assert torch.equal(logits, model(**inputs).logits)
    assembled = reference.assemble(row, model, inputs, [one.indices for one in pruner.selections])
    expected = reference.greedy(row, model, assembled, GREEDY["max_new_tokens"])[0]
    assert torch.equal(result[:, inputs["input_ids"].shape[1] :], expected)
    for image, stream in zip(encode(model, inputs, "video"), row.streams(model, inputs, "video"), strict=True):
        assert torch.equal(image.stream, stream)


@pytest.mark.skipif(not known("minimax_m3_vl") or "minimax_m3_vl" in ROWS, reason="images are apart, or there are none")
def test_an_encoder_that_mixes_images_is_refused() -> None:
    with pytest.raises(ValueError, match="lets all images of a call see each other.*use a newer one"):
        foveate.attach(minimax_m3("sdpa"), foveate.AdaFV())


@pytest.mark.skipif("video_llama_3" not in ROWS, reason="refused in this transformers")
def test_other_merge_sizes_are_refused() -> None:
    row = ROWS["video_llama_3"]
    model = row.make("sdpa")
    inputs = prompts(row, model, "several")
    inputs["image_merge_sizes"] = torch.tensor([1, 2])
    with foveate.AdaFV(keep=0.4)(model), pytest.raises(ValueError, match="all of a call must be 1 or all 2"):
        model.generate(**inputs, **GREEDY)


@pytest.mark.skipif("video_llama_3" in ROWS or not known("video_llama_3"), reason="it works, or is not there")
def test_a_stock_class_that_counts_placeholders_for_beams_is_refused() -> None:
    with pytest.raises(ValueError, match="known to work from 5.19 on"):
        foveate.attach(video_llama_3("sdpa"), foveate.AdaFV())


@pytest.mark.skipif("exaone4_5" not in ROWS, reason="transformers has no EXAONE 4.5")
def test_positions_that_stock_would_drop_are_refused() -> None:
    with pytest.raises(ValueError, match="EXAONE 4.5 has no positions='original'"):
        foveate.attach(ROWS["exaone4_5"].make("sdpa"), foveate.AdaFV(), positions="original")
