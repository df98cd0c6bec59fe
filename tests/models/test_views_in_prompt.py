"""Overviews and slices, tiles and wholes: what the processors of MiniCPM, LFM2-VL and Step 3.7 write, read by the
adapters."""

from __future__ import annotations

import importlib
from functools import partial
from typing import Any

import pytest
import torch
from transformers import ProcessorMixin

import foveate
from foveate.models import family_for
from foveate.models.lfm2_vl import tile_grid
from tests.chat import TALKS, guiding, tokenizer, written
from tests.dynamic import picture
from tests.encoding import encode
from tests.tiny import BOS, END, IMAGE, ROWS, SILENT, START, VIDEO, gemma4, lfm2, minicpm, prompts, step3p7
from tests.tiny.rows import known

GREEDY = {"max_new_tokens": 3, "do_sample": False, "suppress_tokens": SILENT}
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% else %}MARK{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MINICPM = {
    "<|im_start|>": 81, "<|im_end|>": 82, "<|image_pad|>": IMAGE, "<|video_pad|>": VIDEO, "<image>": START,
    "</image>": END, "<slice>": minicpm.SLICE, "</slice>": minicpm.SLICED, "\n": minicpm.LINE,
    "<image_id>": minicpm.NUMBER, "</image_id>": minicpm.NUMBERED,
}  # fmt: skip
MINICPM_NAMED = {
    "image_token": "<|image_pad|>", "video_token": "<|video_pad|>", "image_start_token": "<image>",
    "image_end_token": "</image>", "slice_start_token": "<slice>", "slice_end_token": "</slice>",
    "image_id_start_token": "<image_id>", "image_id_end_token": "</image_id>",
}  # fmt: skip
SIZES = [(90, 30), (30, 30), (70, 64)]
"""(width, height): three slices or two and an overview, an overview alone, four slices."""


class Videos:
    """What the processor asks of the one for videos, which needs torchvision."""

    slice_mode, downsample_mode = True, "16x"


def minicpm_processor(name: str, monkeypatch: pytest.MonkeyPatch, **options: Any) -> Any:
    folder = {"minicpmv4_6": "minicpmv4_6", "minicpmv4_7": "minicpmv4_7", "minicpm_ocr": "minicpm_ocr"}[name]
    pil = pytest.importorskip("transformers.models.minicpmv4_6.image_processing_pil_minicpmv4_6")
    mode = "4x" if name == "minicpm_ocr" else "16x"
    images = pil.MiniCPMV4_6ImageProcessorPil(
        patch_size=minicpm.PATCH, scale_resolution=32, downsample_mode=mode, max_slice_nums=4
    )
    module = importlib.import_module(f"transformers.models.{folder}.processing_{folder}")
    made = next(getattr(module, one) for one in dir(module) if one.startswith("MiniCPM") and one.endswith("Processor"))
    monkeypatch.setattr(ProcessorMixin, "check_argument_for_proper_class", lambda *_: None)
    words = tokenizer(MINICPM, MINICPM_NAMED)
    return made(images, Videos(), words, chat_template=CHATML.replace("MARK", "<|image_pad|>"), **options)


def lfm2_processor(name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    pytest.importorskip("torchvision", reason="LFM2-VL's image processor has no form without torchvision")
    from transformers import Lfm2VlImageProcessor, Lfm2VlProcessor

    tags = {
        f"<|img_row_{row + 1}_col_{column + 1}|>": lfm2.TAG + lfm2.STRIDE * row + column
        for row in range(3)
        for column in range(3)
    }
    marks = {
        "<|im_start|>": 81, "<|im_end|>": 82, "<image>": IMAGE, "<|image_start|>": START, "<|image_end|>": END,
        "<|img_thumbnail|>": lfm2.THUMBNAIL, **tags,
    }  # fmt: skip
    named = {
        "image_token": "<image>", "image_start_token": "<|image_start|>", "image_end_token": "<|image_end|>",
        "image_thumbnail_token": "<|img_thumbnail|>",
    }  # fmt: skip
    images = Lfm2VlImageProcessor(
        encoder_patch_size=lfm2.PATCH, tile_size=16, min_image_tokens=2, max_image_tokens=8, max_tiles=4
    )
    return Lfm2VlProcessor(images, tokenizer(marks, named), chat_template="<s>" + CHATML.replace("MARK", "<image>"))


def step3p7_processor(name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    pytest.importorskip("torchvision", reason="Step 3.7's image processor has no form without torchvision")
    from transformers import Step3p7ImageProcessor, Step3p7Processor

    marks = {
        "<|im_start|>": 81, "<|im_end|>": 82, "<im_patch>": IMAGE, "<im_start>": START, "<im_end>": END,
        "<patch_start>": step3p7.CROP, "<patch_end>": step3p7.CROPPED, "<patch_newline>": step3p7.LINE,
    }  # fmt: skip
    images = Step3p7ImageProcessor(
        size={"height": step3p7.WHOLE, "width": step3p7.WHOLE},
        patch_size=step3p7.LOCAL,
        vision_patch_size=step3p7.PATCH,
    )
    words = tokenizer(marks, {"image_token": "<im_patch>"})
    return Step3p7Processor(images, words, chat_template="<s>" + CHATML.replace("MARK", "<im_patch>"))


MADE = {
    "minicpmv4_6": minicpm_processor,
    "minicpmv4_7": minicpm_processor,
    "minicpm_ocr": minicpm_processor,
    "lfm2_vl": lfm2_processor,
    "step3p7": step3p7_processor,
}


@pytest.fixture(params=[name for name in MADE if name in ROWS])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def processor(name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    return MADE[name](name, monkeypatch)


def views_in(inputs: Any) -> int:
    if "num_local_patches" in inputs:
        return len(inputs["pixel_values"]) + int(torch.as_tensor(inputs["num_local_patches"]).sum())
    return len(inputs["target_sizes" if "target_sizes" in inputs else "spatial_shapes"])


@pytest.mark.parametrize("sizes", [SIZES, SIZES[1:], [SIZES[1]] * 3], ids=["cut first", "whole first", "whole"])
@pytest.mark.parametrize("talk", TALKS)
def test_the_question_guides(name: str, processor: Any, talk: str, sizes: Any) -> None:
    """Neither the marks around views, nor their tags, line breaks and numbers, do."""
    said, expected = TALKS[talk]
    pictures = [picture(seed, *size) for seed, size in zip(range(len(expected)), sizes, strict=False)]
    inputs = written(processor, said, images=pictures)
    assert guiding(ROWS[name].make("sdpa"), processor, inputs) == expected


def test_the_views_of_a_picture_are_one_image_with_one_budget(name: str, processor: Any) -> None:
    model = ROWS[name].make("sdpa")
    said, _ = TALKS["question last"]
    said = [(role, [{"type": "image"}] * 2 + list(parts)) for role, parts in said]
    inputs = written(processor, said, images=[picture(seed, *size) for seed, size in enumerate(SIZES)])
    found = encode(model, inputs)
    assert len(found) == 3 < views_in(inputs)
    counts = [len(image.tokens.geometry.grids) for image in found]
    assert counts[1] == 1
    assert sum(counts) == views_in(inputs)
    assert min(counts[0], counts[2]) >= 3
    width, height = SIZES[0]
    for image, (width, height) in zip(found, SIZES, strict=True):
        geometry = image.tokens.geometry
        assert abs(geometry.image_size[1] / geometry.image_size[0] / (width / height) - 1) < 0.5
        for view in range(len(geometry.grids)):  # the whole is covered by view 0, and once by the others
            boxes = geometry.boxes[geometry.view == view]
            corners = boxes[:, :2].amin(dim=0).tolist() + boxes[:, 2:].amax(dim=0).tolist()
            assert (corners == [0, 0, *geometry.image_size[::-1]]) == (view == 0)
        areas = (geometry.boxes[:, 2:] - geometry.boxes[:, :2]).prod(dim=1)
        whole = geometry.image_size[0] * geometry.image_size[1]
        assert float(areas[geometry.view == 0].sum()) == pytest.approx(whole)
        if len(geometry.grids) > 1:
            assert float(areas[geometry.view > 0].sum()) == pytest.approx(whole)
    pruner = foveate.Saliency(keep=3)
    with pruner(model):
        model.generate(**inputs, **GREEDY)
    assert [len(one) for one in pruner.selections] == [3, 3, 3]


def test_a_prompt_without_the_views_marks_is_refused(name: str) -> None:
    row = ROWS[name]
    model = row.make("sdpa")
    inputs = prompts(row, model, "one")
    count = int((inputs["input_ids"] == IMAGE).sum())
    inputs["input_ids"] = torch.tensor([[BOS, 5, START, *[IMAGE] * count, END, 41, 42]])
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    inputs |= row.per_token(inputs["input_ids"])
    with foveate.AdaFV(keep=0.5)(model), pytest.raises(ValueError, match="marks around every view among it"):
        model.generate(**inputs, **GREEDY)


@pytest.mark.skipif("minicpmv4_6" not in ROWS, reason="this transformers has no MiniCPM-V 4.6")
def test_minicpm_reads_both_modes_by_the_call() -> None:
    """The mode of a call goes before the config's; a prompt of the other mode is refused, not cut."""
    model, row = ROWS["minicpmv4_6"].make("sdpa"), ROWS["minicpmv4_6-4x"]
    inputs = prompts(row, row.make("sdpa"), "several")
    with foveate.AdaFV(keep=0.5)(model), pytest.raises(ValueError, match="pass all that the processor returned"):
        model.generate(**inputs, **GREEDY)
    pruner = foveate.AdaFV(keep=1.0)
    with pruner(model):
        result = model.generate(**inputs, **GREEDY, downsample_mode="4x")
    assert torch.equal(result, model.generate(**inputs, **GREEDY, downsample_mode="4x"))
    assert sum(one.total for one in pruner.selections) == int((inputs["input_ids"] == IMAGE).sum())


@pytest.mark.skipif("minicpmv4_6" not in ROWS, reason="this transformers has no MiniCPM-V 4.6")
def test_minicpms_slices_in_uneven_rows_are_refused() -> None:
    row = ROWS["minicpmv4_6"]
    model = row.make("sdpa")
    inputs = prompts(row, model, "several")
    ids = inputs["input_ids"][0].tolist()
    place = ids.index(minicpm.LINE)
    line = ids.pop(place)
    ids.insert(ids.index(minicpm.SLICED, place) + 1, line)  # three slices, then one
    inputs["input_ids"] = torch.tensor([ids])
    with foveate.AdaFV(keep=0.5)(model), pytest.raises(ValueError, match=r"rows of \[3, 1\] crops"):
        model.generate(**inputs, **GREEDY)


@pytest.mark.parametrize("number", [0, 7, 12, 345])
def test_a_pictures_number_is_no_text(number: int) -> None:
    if "minicpmv4_6" not in ROWS:
        pytest.skip("this transformers has no MiniCPM-V 4.6")
    family = family_for(ROWS["minicpmv4_6"].make("sdpa"))
    digits = [minicpm.FIRST + int(digit) for digit in str(number)]
    ids = [BOS, 5, 6, minicpm.NUMBER, *digits, minicpm.NUMBERED, START, IMAGE, IMAGE, END, 40, 41]
    left = [token for token, mark in zip(ids, family.marks(torch.tensor([ids]))[0].tolist(), strict=True) if not mark]
    assert left == [BOS, 5, 6, 40, 41]
    bare = torch.tensor([[BOS, 5, 6, 7, 8, START, IMAGE, IMAGE, END, 40, 41]])
    assert family.marks(bare)[0].tolist() == [False] * 5 + [True] * 4 + [False] * 2


@pytest.mark.parametrize(
    "tags, grid",
    [
        ([397, 398, 497], (1, 2)),
        ([397, 407, 497], (2, 1)),
        ([397, 398, 399, 407, 408, 409, 497], (2, 3)),
        ([397, 398, 407, 408, 417, 418, 497], (3, 2)),
        ([*range(397, 407), 497], (1, 10)),
        ([397, 398, 407, 408], (2, 2)),  # without the whole behind them
        ([5, 9, 2, 8, 7, 3, 4], (2, 3)),  # of an unknown vocabulary: like the whole
    ],
)
def test_tags_tell_how_tiles_lie(tags: list[int], grid: tuple[int, int]) -> None:
    assert tile_grid(tags, [(32, 32)] * (len(tags) - 1) + [(28, 38)]) == grid


@pytest.mark.parametrize("name, make", [("gemma4", partial(gemma4.gemma4, "large")), ("lfm2_vl", lfm2.lfm2_vl)])
def test_refused_where_stock_itself_fails(name: str, make: Any) -> None:
    if name in ROWS or not known(name):
        pytest.skip("not an old one that has it")
    with pytest.raises(ValueError, match=r"known to work from 5\.19 on"):
        family_for(make("sdpa"))


def test_a_session_answers_as_a_call_does(name: str, processor: Any) -> None:
    model = ROWS[name].make("sdpa")
    pictures = [picture(seed, *size) for seed, size in enumerate(SIZES)]
    session = foveate.look(model, processor, pictures)
    said = [("user", [{"type": "image"}] * 3 + [{"type": "text", "text": "is there a cat ?"}])]
    inputs = written(processor, said, images=pictures)
    for keep in (1.0, 3):
        answers = session.ask_many(["is there a cat ?", "what color is the card ?"], foveate.AdaFV(keep=keep), **GREEDY)
        with foveate.AdaFV(keep=keep)(model):
            called = model.generate(**inputs, **GREEDY)
        assert answers[0].sequence.tolist()[-3:] == called[0].tolist()[-3:]
