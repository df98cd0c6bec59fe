"""Look once, ask often, with the real processors of Idefics3, Gemma 3 and PaliGemma around a tiny tokenizer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import Gemma3Processor, Idefics3Processor, PaliGemmaProcessor, PreTrainedTokenizerFast

import foveate
from tests.checkpoint import WORDS
from tests.models.test_siglip import Gemma3Images, Idefics3Images, SiglipImages
from tests.tiny import BOS, END, IMAGE, PAD, ROWS, SIDE, SILENT, START
from tests.tiny.siglip import FENCE

OPTIONS = {"max_new_tokens": 4, "do_sample": False, "suppress_tokens": SILENT}
SIZES = [(60, 150), (120, 90)]
MARKS = {
    "<image>": IMAGE,
    "<fake_token_around_image>": FENCE,
    "<end_of_utterance>": 92,
    "<start_of_image>": START,
    "<end_of_image>": END,
}


def tokenizer() -> PreTrainedTokenizerFast:
    """Words, signs and runs of line breaks; the tags of tiles are several tokens, as in Idefics3's own."""
    vocabulary = {"<pad>": PAD, "<s>": BOS, "</s>": 2, "<unk>": 3, **MARKS}
    taken = set(vocabulary.values())
    free = (number for number in range(4, 100) if number not in taken)
    words = [*WORDS, "\n", "\n\n", "<", ">", "row", "col", "_", "global", "-", "img", *map(str, range(1, 5))]
    vocabulary |= dict(zip(words, free, strict=False))
    vocabulary |= {f"w{number}": number for number in free}
    found = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    found.pre_tokenizer = pre_tokenizers.Split(Regex(r"\n+|[a-z]+|[0-9]|[^\w\s]|_"), "removed", invert=True)
    return PreTrainedTokenizerFast(
        tokenizer_object=found,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        additional_special_tokens=list(MARKS),
        padding_side="left",
        model_specific_special_tokens={
            "image_token": "<image>",
            "boi_token": "<start_of_image>",
            "eoi_token": "<end_of_image>",
        },
    )


def pictures(count: int) -> list[Image.Image]:
    random = np.random.default_rng(1)
    return [Image.fromarray(random.integers(0, 255, (*size, 3), dtype=np.uint8)) for size in SIZES[:count]]


def idefics3() -> Any:
    images = Idefics3Images(size={"longest_edge": 3 * SIDE}, max_image_size={"longest_edge": SIDE})
    return Idefics3Processor(images, tokenizer(), image_seq_len=4)


def gemma3() -> Any:
    images = Gemma3Images(size={"height": 2 * SIDE, "width": 2 * SIDE})
    return Gemma3Processor(images, tokenizer(), image_seq_length=16)


def paligemma() -> Any:
    images = SiglipImages(size={"height": SIDE, "width": SIDE})
    images.image_seq_length = 16
    return PaliGemmaProcessor(images, tokenizer())


PROCESSORS = {"idefics3": idefics3, "gemma3": gemma3, "paligemma": paligemma}


def separately(model: Any, processor: Any, prompt: str, images: list[Image.Image], pruner: foveate.Pruner) -> Any:
    inputs = processor(text=[prompt], images=[images], return_tensors="pt")
    inputs.pop("labels", None)  # PaliGemma's processor adds them for training
    with pruner(model):
        return model.generate(**inputs, **OPTIONS)[0]


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("name", list(PROCESSORS))
def test_session(name: str, count: int) -> None:
    """Answers are those of separate calls with the processor's own inputs; one selection per picture."""
    model, processor, images = ROWS[name].make("sdpa"), PROCESSORS[name](), pictures(count)
    session = foveate.look(model, processor, images)
    assert len(session.images) == count
    pruner = foveate.AdaFV(keep=5)
    answers = session.ask_many(["what color is the cat", "how many"], pruner, **OPTIONS)
    for answer in answers:
        prompt = session.prompt(answer.question)
        alone = separately(model, processor, prompt, images, foveate.AdaFV(keep=5))
        added = len(answer.sequence) - len(alone)  # padding of the shorter question
        assert torch.equal(answer.sequence[added:], alone)
        assert [len(one) for one in answer.selections] == [5] * count
    whole = session.ask("how many", **OPTIONS)
    inputs = processor(text=[session.prompt("how many")], images=[images], return_tensors="pt")
    inputs.pop("labels", None)
    assert torch.equal(whole.sequence, model.generate(**inputs, **OPTIONS)[0])


def test_tiles_of_a_picture_share_its_budget() -> None:
    """Idefics3's own processor: 2 x 3 and 3 x 3 tiles, the whole picture after them."""
    session = foveate.look(ROWS["idefics3"].make("sdpa"), idefics3(), pictures(2))
    tiles = [len(image.tokens.geometry.grids) for image in session.images]
    assert tiles == [2 * 3 + 1, 3 * 3 + 1]
    answer = session.ask("how many", foveate.Saliency(keep=0.25), **OPTIONS)
    assert [len(one) for one in answer.selections] == tiles  # a quarter of four per tile, over all of them together
    assert any((one.view.bincount(minlength=len(one.geometry.grids)) != 1).any() for one in answer.selections)


class PanAndScan(Gemma3Processor):
    """Gemma 3's, always with crops."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return super().__call__(*args, **kwargs, do_pan_and_scan=True, pan_and_scan_min_crop_size=32)


def test_session_with_pan_and_scan() -> None:
    """A wide picture and its three crops are four images behind one mark in the text."""
    images = Gemma3Images(size={"height": 2 * SIDE, "width": 2 * SIDE})
    processor = PanAndScan(images, tokenizer(), image_seq_length=16)
    model, wide = ROWS["gemma3"].make("sdpa"), pictures(1)
    session = foveate.look(model, processor, wide)
    assert len(session.images) == 4
    answer = session.ask("how many", foveate.Saliency(keep=3), **OPTIONS)
    assert [len(one) for one in answer.selections] == [3] * 4
    alone = separately(model, processor, session.prompt("how many"), wide, foveate.Saliency(keep=3))
    assert torch.equal(answer.sequence, alone)


def test_paligemma_is_asked_as_it_was_trained() -> None:
    session = foveate.look(ROWS["paligemma"].make("sdpa"), paligemma(), pictures(2))
    assert session.prompt("how many") == "<image><image>how many"
