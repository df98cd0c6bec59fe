"""What Inkling 2 has beyond the matrix: places that scale queries, its own processor and prompts, refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers.utils import is_torchvision_available

import foveate
from tests import reference
from tests.chat import TALKS, guiding, tokenizer, written
from tests.dynamic import picture
from tests.encoding import encode
from tests.tiny import IMAGE, ROWS, Row, inkling2, prompts

pytestmark = pytest.mark.skipif("inkling2" not in ROWS, reason="this transformers has no Inkling 2")
needs_torchvision = pytest.mark.skipif(not is_torchvision_available(), reason="its image processor needs torchvision")
NAMES = {"inkling2": "Inkling2", "inkling2_loop": "Inkling2Loop"}


@pytest.mark.parametrize("name", NAMES)
def test_places_are_those_of_the_shortened_prompt(name: str) -> None:
    """Queries are scaled up with their position: what is left counts, as in a prompt that never held more."""
    row: Row = ROWS[name]
    model = inkling2.inkling2(NAMES[name], "sdpa", floor=6)
    inputs = prompts(row, model, "one")
    pruner = foveate.AdaFV(keep=2)
    with torch.no_grad(), pruner(model):
        logits = model(**inputs).logits[:, -1]
    assembled = reference.assemble(row, model, inputs, [one.indices for one in pruner.selections])
    with torch.no_grad():
        hidden = row.hidden(model, assembled.embeddings, assembled.mask, assembled.positions, assembled)
        farther = row.hidden(model, assembled.embeddings, assembled.mask, assembled.positions + 20, assembled)
        wanted, other = row.scores(model, hidden)[:, -1], row.scores(model, farther)[:, -1]
    torch.testing.assert_close(logits, wanted, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(wanted, other, atol=1e-3)  # positions do count


def test_original_positions_are_refused() -> None:
    row: Row = ROWS["inkling2"]
    model = row.make("sdpa")
    with pytest.raises(ValueError, match="compact"), foveate.AdaFV(keep=2)(model, positions="original"):
        model(**prompts(row, model, "one"))


def test_frames_are_refused() -> None:
    row: Row = ROWS["inkling2"]
    model = row.make("sdpa")
    inputs = prompts(row, model, "one")
    inputs["image_grid_thw"] = torch.tensor([[2, 1, 3]])
    with pytest.raises(ValueError, match="several frames"):
        encode(model, inputs)


MARKS = {**dict.fromkeys(("<|user|>", "<|assistant|>", "<|system|>", "<|end|>"), -1), "<|unused_200054|>": IMAGE}
TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% else %}<|unused_200054|>{% endif %}{% endfor %}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def processor() -> Any:
    from transformers import Inkling2ImageProcessor, Inkling2Processor

    side = inkling2.PATCH * inkling2.MERGE
    words = tokenizer(MARKS, {"image_token": "<|unused_200054|>"})
    return Inkling2Processor(
        Inkling2ImageProcessor(size={"height": side, "width": side}), words, chat_template=TEMPLATE
    )


@needs_torchvision
@pytest.mark.parametrize("talk", TALKS)
def test_the_question_guides(talk: str) -> None:
    said, expected = TALKS[talk]
    pictures = [picture(seed, *size) for seed, size in zip(range(len(expected)), [(20, 31), (16, 9)], strict=False)]
    ours = processor()
    inputs = written(ours, said, images=pictures)
    assert guiding(inkling2.inkling2("Inkling2", "sdpa"), ours, inputs) == expected


@needs_torchvision
@pytest.mark.parametrize(("height", "width"), [(31, 20), (16, 24), (5, 70)])
def test_boxes_end_where_the_picture_does(height: int, width: int) -> None:
    """The processor pads to whole tokens to the right and below, and never scales."""
    found: Any = processor().image_processor(Image.new("RGB", (width, height), "red"), return_tensors="pt")
    grid = found["image_grid_thw"][0].tolist()
    side = inkling2.PATCH * inkling2.MERGE
    assert grid == [1, -(-height // side), -(-width // side)]
    ids = torch.tensor([[1, *[IMAGE] * (grid[1] * grid[2]), 5]])
    inputs = {**found, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
    (image,) = encode(inkling2.inkling2("Inkling2", "sdpa"), inputs)
    boxes: Tensor = image.tokens.geometry.boxes_in(height, width)
    places = zip(image.tokens.geometry.row.tolist(), image.tokens.geometry.column.tolist(), boxes.tolist(), strict=True)
    for row, column, box in places:
        wanted = [column * side, row * side, min(width, (column + 1) * side), min(height, (row + 1) * side)]
        assert box == pytest.approx(wanted)
