"""What Molmo 2 has beyond the matrix: its own processor's tables and prompts, words that guide, refusals, merging."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.utils import is_torchvision_available

import foveate
from foveate.models import family_for
from foveate.models.pooling_table import pool_geometry
from tests.chat import TALKS, guiding, moving, of_kind, tokenizer, written
from tests.dynamic import picture
from tests.encoding import encode
from tests.tiny import END, IMAGE, ROWS, SILENT, START, Row, molmo2, prompts

pytestmark = pytest.mark.skipif("molmo2" not in ROWS, reason="this transformers has no Molmo 2")
needs_torchvision = pytest.mark.skipif(not is_torchvision_available(), reason="its processors need torchvision")

MARKS = {
    **dict.fromkeys(("<|im_start|>", "<|im_end|>", "<|image|>", "<|video|>", "<im_low>"), -1),
    "<im_patch>": IMAGE, "<im_start>": START, "<im_end>": END, "<low_res_im_start>": molmo2.LOW,
    "<im_col>": molmo2.COLUMN, "<frame_start>": molmo2.FRAME, "<frame_end>": molmo2.FRAMED,
}  # fmt: skip
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% else %}<|{{ part['type'] }}|>{% endif %}{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SIZE = {"height": molmo2.PATCH * molmo2.SIDE, "width": molmo2.PATCH * molmo2.SIDE}
FRAMES = 6
GREEDY = {"max_new_tokens": 3, "do_sample": False, "suppress_tokens": SILENT}


@pytest.fixture
def processor() -> Any:
    from transformers import Molmo2ImageProcessor, Molmo2Processor, Molmo2VideoProcessor

    images = Molmo2ImageProcessor(size=SIZE, overlap_margins=[1, 1], max_crops=4)
    words = tokenizer(MARKS, {"image_token": "<|image|>", "video_token": "<|video|>"})
    return Molmo2Processor(images, Molmo2VideoProcessor(size=SIZE), words, chat_template=TEMPLATE)


def films(processor: Any, said: Any, count: int) -> dict[str, Any]:
    about = {"fps": 2.0, "total_num_frames": FRAMES, "duration": FRAMES / 2, "frames_indices": [*range(FRAMES)]}
    return written(
        processor,
        of_kind(said, "video"),
        videos=[moving(seed, FRAMES, 60, 90) for seed in range(count)],
        video_metadata=[about] * count,
        do_sample_frames=False,
    )


@needs_torchvision
@pytest.mark.parametrize("talk", TALKS)
def test_the_question_guides(processor: Any, talk: str) -> None:
    said, expected = TALKS[talk]
    pictures = [picture(seed, *size) for seed, size in zip(range(len(expected)), [(90, 140), (200, 70)], strict=False)]
    inputs = written(processor, said, images=pictures)
    assert guiding(molmo2.molmo2("sdpa"), processor, inputs) == expected


@needs_torchvision
def test_our_tables_are_the_processors(processor: Any) -> None:
    """Of the matrix's pictures: sizes at which it cuts them into the same crops."""
    sizes = [(112, 70), (70, 70), (70, 112)]  # width, height
    ours = molmo2.images([[0, 1], [2]])
    theirs = processor.image_processor([picture(n, *size) for n, size in enumerate(sizes)], return_tensors="pt")
    for name in ("image_token_pooling", "image_grids", "image_num_crops"):
        assert torch.equal(theirs[name].long(), ours[name])
    assert theirs["pixel_values"].shape == ours["pixel_values"].shape


@needs_torchvision
@pytest.mark.parametrize("talk", [name for name, (_, expected) in TALKS.items() if len(expected) == 1])
def test_times_of_frames_do_not_guide(processor: Any, talk: str) -> None:
    said, expected = TALKS[talk]
    inputs = films(processor, said, 1)
    assert guiding(molmo2.molmo2("sdpa"), processor, inputs, "video") == expected


@needs_torchvision
def test_a_video_is_one_budget(processor: Any) -> None:
    inputs = films(processor, TALKS["question last"][0], 1)
    model = molmo2.molmo2("sdpa")
    whole, few = foveate.AdaFV(keep=1.0), foveate.AdaFV(keep=5)
    with whole(model):
        result = model.generate(**inputs, **GREEDY)
    assert torch.equal(result, model.generate(**inputs, **GREEDY))
    with few(model):
        model.generate(**inputs, **GREEDY)
    (selection,) = few.selections
    assert (len(selection), selection.total, len(selection.geometry.grids)) == (5, 4 * FRAMES, FRAMES)


def test_words_between_the_videos_of_two_turns_are_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """A conversation that goes on with another video: no part of either, and its own first time is a label."""
    model = molmo2.molmo2("sdpa")
    monkeypatch.setattr(model.generation_config, "eos_token_id", 2)
    film = [
        token
        for tenth in range(3)
        for token in (*([68] if tenth else []), 70, 69, 70 + tenth, 68, molmo2.FRAME, IMAGE, molmo2.FRAMED)
    ]
    ids = torch.tensor([[1, 40, *film, 41, 2, 42, *film, 43]])
    marks = family_for(model).marks(ids)
    assert ids[~marks].tolist() == [1, 40, 41, 2, 42, 43]


def test_boxes_where_padding_stands_on_both_sides() -> None:
    """Windows of 3 x 3 on 4 patches: one column of padding on either side, which no box reaches into."""
    table, grid = molmo2.squares([[4 * row + column for column in range(4)] for row in range(4)], 3)
    geometry = pool_geometry([grid], [torch.tensor(table)], 4, molmo2.PATCH, torch.device("cpu"))
    patch = molmo2.PATCH
    assert geometry.image_size == (4 * patch, 4 * patch)
    edges = {0: (0, 2 * patch), 1: (2 * patch, 4 * patch)}
    for row, column, box in zip(geometry.row.tolist(), geometry.column.tolist(), geometry.boxes.tolist(), strict=True):
        assert box == [edges[column][0], edges[row][0], edges[column][1], edges[row][1]]


def changed(name: str, value: Any) -> dict[str, Any]:
    row: Row = ROWS["molmo2"]
    return {**prompts(row, row.make("sdpa"), "one"), name: value}


STRAY = molmo2.images([[0]])["image_token_pooling"]
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no table": ({"image_token_pooling": None}, "needs image_token_pooling and image_grids"),
    "half a table": ({"image_token_pooling": STRAY[:7]}, "speak of 21 tokens and image_token_pooling of 7"),
    "another whole view": (
        {"image_token_pooling": torch.cat([STRAY[1:9], STRAY[:1], STRAY[9:]])},
        "first view is no whole crop",
    ),
    "a hole": (
        {"image_token_pooling": torch.cat([STRAY[:-6], STRAY[-6:].where(torch.arange(4) > 0, -1)])},
        "a view has holes",
    ),
    "a table as a list": ({"image_token_pooling": STRAY.tolist()}, "as a tensor of whole numbers.*return_tensors"),
    "a table of floats": ({"image_token_pooling": STRAY.float()}, "as a tensor of whole numbers"),
    "crops apart": ({"pixel_values": torch.zeros(1, 3, molmo2.SIDE**2, 588)}, "takes pixel_values as one tensor"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_no_processor_makes_is_refused(case: str) -> None:
    change, said = WRONG[case]
    ((name, value),) = change.items()
    with pytest.raises(ValueError, match=said):
        encode(molmo2.molmo2("sdpa"), changed(name, value))


def test_images_and_videos_in_one_call_are_refused() -> None:
    row, film = ROWS["molmo2"], ROWS["molmo2-video"]
    model = row.make("sdpa")
    mixed = {**prompts(row, model, "one"), **film.pixels([[0]])}
    with row.pruner(3)(model), pytest.raises(ValueError, match="images and videos in one call.*calls of their own"):
        model.generate(**mixed, **GREEDY)


def test_merged_tokens_get_the_placeholders_embedding_once() -> None:
    row: Row = ROWS["molmo2"]
    model = row.make("sdpa")
    inputs = prompts(row, model, "one")
    seen: list[Tensor] = []
    hook = model.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    pruner = foveate.get_pruner("pool", keep=4)
    try:
        with pruner(model), torch.no_grad():
            model(**inputs)
    finally:
        hook.remove()
    (image,), (selection,) = encode(model, inputs), pruner.selections
    wanted = selection.gather(image.handed) + molmo2.own(model)
    assert all(bool(torch.isclose(seen[0], token, atol=1e-5).all(dim=-1).any()) for token in wanted)


def test_marks_of_rows_stay_and_see_each_other() -> None:
    """A call without ``mm_token_type_ids`` is stock's causal one; with them, ends of rows are among what is seen."""
    row: Row = ROWS["molmo2"]
    model = row.make("sdpa")
    inputs = prompts(row, model, "one")
    kept: list[Tensor] = []
    hook = model.model.register_forward_pre_hook(
        lambda module, args, kwargs: kept.extend([kwargs["input_ids"], kwargs["mm_token_type_ids"]]), with_kwargs=True
    )
    pruner = foveate.AdaFV(keep=2)
    try:
        with pruner(model), torch.no_grad():
            model(**inputs)
    finally:
        hook.remove()
    ids, types = kept
    assert int((ids == IMAGE).sum()) == 2
    assert int((ids == molmo2.COLUMN).sum()) == int((inputs["input_ids"] == molmo2.COLUMN).sum()) == 6
    assert torch.equal(types, row.per_token(ids)["mm_token_type_ids"])
