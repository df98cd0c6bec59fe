"""HunyuanVL and Hy 4 VL: what their processors write, what their positions ask for, and what is refused."""

from __future__ import annotations

import copy
import importlib
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.utils import is_torchvision_available

import foveate
from foveate.models import family_for
from tests import reference
from tests.chat import FIRST, SECOND, TALKS, check_one_budget, guiding, moving, of_kind, tokenizer, written
from tests.dynamic import picture
from tests.tiny import END, IMAGE, ROWS, SILENT, START, VIDEO, prompts
from tests.tiny.hunyuan import NEWLINE

NAMES = [name for name in ("hunyuan_vl", "hunyuan_vl-three") if name in ROWS]
pytestmark = pytest.mark.skipif(not NAMES, reason="this transformers has no HunyuanVL that can be pruned")
GREEDY = {"max_new_tokens": 4, "do_sample": False, "suppress_tokens": [*SILENT, NEWLINE]}
NAMED = {"image_token": "<image>", "image_start_token": "<start>", "image_end_token": "<end>"}
MARKS = {
    **dict.fromkeys(("<|system|>", "<|user|>", "<|assistant|>"), -1),
    **dict(zip(NAMED.values(), (IMAGE, START, END), strict=True)),
}
# As in HunyuanOCR's checkpoint: a mark closes what each has said, and nothing opens it.
TEMPLATE = (
    "<s>{% for message in messages %}{% for part in message['content'] %}{% if part['type'] == 'text' %}"
    "{{ part['text'] }}{% else %}<start><image><end>{% endif %}{% endfor %}<|{{ message['role'] }}|>"
    "{% if message['role'] == 'assistant' %}<s>{% endif %}{% endfor %}"
)
# As for its successors.
OPENING = (
    "<s>{% for message in messages %}{% if message['role'] != 'system' %}<|{{ message['role'] }}|>{% endif %}"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}{% else %}"
    "<start><image><end>{% endif %}{% endfor %}{% if message['role'] == 'system' %}<|system|>{% endif %}"
    "{% if message['role'] == 'assistant' %}</s>{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>"
    "{% endif %}"
)
SIDES = {"shortest_edge": 2 * 56 * 56, "longest_edge": 112 * 112}


@pytest.fixture(params=NAMES)
def model(request: pytest.FixtureRequest) -> Any:
    return ROWS[request.param].make("sdpa")


def made_with(template: str) -> Any:
    folder = "transformers.models.hunyuan_vl"
    images = importlib.import_module(f"{folder}.image_processing_pil_hunyuan_vl").HunYuanVLImageProcessorPil
    made = importlib.import_module(f"{folder}.processing_hunyuan_vl").HunYuanVLProcessor
    return made(images(size=SIDES, patch_size=14), tokenizer(MARKS, NAMED), chat_template=template)


@pytest.fixture
def processor() -> Any:
    return made_with(TEMPLATE)


def pictures(count: int) -> list[Any]:
    return [picture(seed, *size) for seed, size in zip(range(count), [(90, 140), (200, 70)], strict=False)]


@pytest.mark.parametrize("template", [TEMPLATE, OPENING], ids=["closing", "opening"])
@pytest.mark.parametrize("talk", TALKS)
def test_the_question_guides(template: str, talk: str) -> None:
    said, expected = TALKS[talk]
    processor = made_with(template)
    inputs = written(processor, said, images=pictures(len(expected)))
    assert guiding(ROWS["hunyuan_vl"].make("sdpa"), processor, inputs) == expected


def test_marks_stay_and_are_no_part_of_the_budget(model: Any, processor: Any) -> None:
    said, _ = TALKS["question last"]
    inputs = written(processor, said, images=pictures(1))
    (_, rows, columns), *_ = inputs["image_grid_thw"].tolist()
    whole = rows // 2 * (columns // 2 + 1) + 2
    assert int((inputs["input_ids"] == IMAGE).sum()) == whole
    seen: list[int] = []
    hook = model.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
    )
    pruner = foveate.AdaFV(keep=3)
    try:
        with pruner(model):
            model.generate(**inputs, **GREEDY)
    finally:
        hook.remove()
    assert pruner.selections[0].total == rows * columns // 4 and len(pruner.selections[0]) == 3
    assert seen[0] == inputs["input_ids"].shape[1] - whole + 3 + rows // 2 + 2


@pytest.mark.parametrize("keep", [1.0, 3])
def test_questions_of_a_session_are_each_as_if_alone(model: Any, processor: Any, keep: float | int) -> None:
    """Although stock numbers the pictures of a batch through."""
    session = foveate.look(model, processor, pictures(2))
    pruner = foveate.AdaFV(keep=keep)
    given: list[Tensor] = []
    hook = model.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: given.append(kwargs["position_ids"]), with_kwargs=True
    )
    try:
        together = session.ask_many([FIRST, SECOND], pruner, **GREEDY)
        both = given[0]
        alone = []
        for question in (FIRST, SECOND):
            given.clear()
            alone.append(session.ask(question, pruner, **GREEDY))
            row = len(alone) - 1
            assert torch.equal(both[:, row, -given[0].shape[-1] :], given[0][:, 0])
    finally:
        hook.remove()
    assert both[-1].max() > 1 and {0, 1} <= set(both[-1, 1].tolist())
    for one, other in zip(together, alone, strict=True):
        assert one.text == other.text and one.visual_tokens == other.visual_tokens


def test_positions_that_a_caller_gives_are_kept(model: Any) -> None:
    """All of their axes are a picture's, none is for the mask code."""
    row = ROWS["hunyuan_vl"]
    inputs = prompts(row, model, "mixed")
    given = reference.long_positions(model, row, inputs)
    pruner = foveate.AdaFV(keep=0.4)
    with pruner(model):
        own = model.generate(**inputs, **GREEDY)
        theirs = model.generate(**inputs, position_ids=given, **GREEDY)
    assert torch.equal(own, theirs)


def test_a_picture_over_a_cache_is_refused(model: Any) -> None:
    row = ROWS["hunyuan_vl"]
    first, second = prompts(row, model, "one"), prompts(row, model, "several")
    with foveate.Saliency(keep=0.4)(model):
        told = model.generate(**first, **GREEDY, return_dict_in_generate=True)
        grown = torch.cat([told.sequences, second["input_ids"]], dim=1)
        more = {**second, "input_ids": grown, "attention_mask": torch.ones_like(grown), **row.per_token(grown)}
        with pytest.raises(ValueError, match="number among those of the whole prompt.*start without past_key_values"):
            model.generate(**more, **GREEDY, past_key_values=told.past_key_values)


def test_grids_left_from_an_earlier_turn_do_no_harm(model: Any) -> None:
    row = ROWS["hunyuan_vl"]
    inputs = prompts(row, model, "one")
    found = []
    for left in ({}, {"image_grid_thw": inputs["image_grid_thw"]}):
        with foveate.Saliency(keep=0.4)(model):
            told = model.generate(**inputs, **GREEDY, return_dict_in_generate=True)
            grown = torch.cat([told.sequences, torch.tensor([[50, 51]])], dim=1)
            found.append(
                model.generate(
                    input_ids=grown, attention_mask=torch.ones_like(grown), past_key_values=told.past_key_values,
                    **left, **GREEDY,
                )
            )  # fmt: skip
    assert torch.equal(*found)


def test_a_config_without_axes_is_refused() -> None:
    model = copy.deepcopy(ROWS["hunyuan_vl"].make("sdpa"))
    model.config.text_config.rope_parameters.pop("mrope_section")
    with pytest.raises(ValueError, match="mrope_section of three or four axes"):
        family_for(model)


@pytest.fixture
def hy4() -> Any:
    """Hy 4 VL's real processor."""
    folder = "transformers.models.hy_v4_vl"
    named = {"image_token": "<image>", "video_token": "<video>"}
    words = tokenizer({**MARKS, "<video>": VIDEO}, named)
    images = importlib.import_module(f"{folder}.image_processing_pil_hy_v4_vl").HYV4VLImageProcessorPil
    videos = importlib.import_module(f"{folder}.video_processing_hy_v4_vl").HYV4VLVideoProcessor
    made = importlib.import_module(f"{folder}.processing_hy_v4_vl").HYV4VLProcessor
    template = OPENING.replace("<image>", "<{{ part['type'] }}>")
    return made(
        images(size=SIDES, patch_size=14), words,
        videos(size={"longest_edge": 28 * 28 * 60}, patch_size=14), chat_template=template,
    )  # fmt: skip


needs_torchvision = pytest.mark.skipif(not is_torchvision_available(), reason="videos are processed by torchvision")


def films(processor: Any, talk: str, count: int) -> dict[str, Any]:
    videos = [moving(seed, 4, 60 + 40 * seed, 90) for seed in range(count)]
    return written(
        processor,
        of_kind(TALKS[talk][0], "video"),
        videos=videos,
        do_sample_frames=False,
        return_mm_token_type_ids=True,
    )


@needs_torchvision
@pytest.mark.parametrize("kind", ["image", "video"])
@pytest.mark.parametrize("talk", TALKS)
def test_the_question_guides_hy_4(hy4: Any, talk: str, kind: str) -> None:
    said, expected = TALKS[talk]
    count = len(expected)
    inputs = films(hy4, talk, count) if kind == "video" else written(hy4, said, images=pictures(count))
    assert guiding(ROWS["hy_v4_vl"].make("sdpa"), hy4, inputs, kind) == expected


@needs_torchvision
@pytest.mark.parametrize("talk", ["question last", "turns"])
def test_a_video_is_one_budget_and_its_rows_stay_marked(hy4: Any, talk: str) -> None:
    inputs = films(hy4, talk, len(TALKS[talk][1]))
    model = ROWS["hy_v4_vl"].make("sdpa")
    grids = inputs["video_grid_thw"].tolist()
    assert grids[0][0] == 4
    check_one_budget(model, inputs, 4, GREEDY)
    seen: list[Tensor] = []
    hook = model.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    try:
        with foveate.AdaFV(keep=5)(model):
            model.generate(**{name: value for name, value in inputs.items() if name != "video_metadata"}, **GREEDY)
    finally:
        hook.remove()
    newline = model.model.vision_tower.patch_merger.image_newline
    rows = sum(times * height // 2 for times, height, _ in grids)
    assert int((seen[0] == newline).all(dim=-1).sum()) == rows
    text = int((inputs["input_ids"] != VIDEO).sum())
    assert seen[0].shape[1] == text + 5 * len(grids) + rows


def test_marks_around_pictures_of_hy_4_are_known_by_its_vocabulary() -> None:
    model = copy.deepcopy(ROWS["hy_v4_vl"].make("sdpa"))
    released = type(model.config)()
    model.config.image_token_id, model.config.video_token_id = released.image_token_id, released.video_token_id
    assert family_for(model).structure_token_ids == {120118, 120119, 120122, 120123}
