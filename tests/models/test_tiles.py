"""InternVL, Aya Vision and Ovis2: what is refused, which tokens are no text, and sessions with their processors."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import AyaVisionProcessor, InternVLProcessor, Ovis2Processor, PreTrainedTokenizerFast

import foveate
from foveate.attention import Recorder
from foveate.models import family_for
from foveate.models.encoded import Request
from tests.encoding import encode
from tests.models.test_geometry_tiles import FAMILIES, OcrImages, OvisImages
from tests.tiny import BOS, END, IMAGE, PAD, ROWS, SIDE, SILENT, START, prompts
from tests.tiny.tiles import COLUMN, GRID, LINE, TAG, TOKENS, WHOLE, write_lines, write_tagged

GREEDY = {"max_new_tokens": 4, "do_sample": False, "suppress_tokens": SILENT}
TILE = [IMAGE] * TOKENS


def asked(family: str, batch: str = "one") -> tuple[Any, dict[str, Any]]:
    model = ROWS[family].make("sdpa")
    return model, prompts(ROWS[family], model, batch)


def generate(model: Any, inputs: dict[str, Any], **options: Any) -> Any:
    with foveate.Saliency(keep=0.5)(model):
        return model.generate(**inputs, **GREEDY, **options)


def rewritten(inputs: dict[str, Any], ids: list[int]) -> dict[str, Any]:
    prompt = torch.tensor([[BOS, 5, *ids, 40, 41]])
    return {**inputs, "input_ids": prompt, "attention_mask": torch.ones_like(prompt)}


@pytest.mark.parametrize("family", FAMILIES)
def test_tiles_of_an_image_share_its_budget(family: str) -> None:
    model, inputs = asked(family, "mixed")
    pruner = foveate.Saliency(keep=5)
    with pruner(model):
        model.generate(**inputs, **GREEDY)
    assert [(one.total, len(one)) for one in pruner.selections] == [(12, 5), (4, 4), (16, 5)]


@pytest.mark.parametrize("family", FAMILIES)
def test_pixels_of_a_wrong_shape(family: str) -> None:
    model, inputs = asked(family)
    pixels = inputs["pixel_values"]
    with pytest.raises(ValueError, match="tiles of all images, channels, side, side"):
        generate(model, {**inputs, "pixel_values": pixels[None]})
    with pytest.raises(ValueError, match="tiles of all images, channels, side, side"):
        generate(model, {**inputs, "pixel_values": pixels[..., :28]})
    with pytest.raises(ValueError, match="not a whole number of 2x2 squares of patches"):
        generate(model, {**inputs, "pixel_values": pixels[..., :42, :42]})


@pytest.mark.parametrize("family", FAMILIES)
def test_tiles_that_no_prompt_asks_for(family: str) -> None:
    model, inputs = asked(family)
    with pytest.raises(ValueError, match=r"placeholders for 3 tiles of 1 image\(s\), but pixel_values brings 2"):
        generate(model, {**inputs, "pixel_values": inputs["pixel_values"][:2]})


@pytest.mark.parametrize("family", FAMILIES)
def test_encoding_needs_a_prompt(family: str) -> None:
    model, inputs = asked(family)
    with pytest.raises(ValueError, match="only the prompt tells which tiles are one image"):
        encode(model, {"pixel_values": inputs["pixel_values"]})


def test_internvl_run_that_is_no_whole_number_of_tiles() -> None:
    model, inputs = asked("internvl")
    with pytest.raises(ValueError, match="11 placeholders is no whole number of tiles of 4"):
        generate(model, rewritten(inputs, [START, *[IMAGE] * 11, END]))


def test_aya_tiles_without_tags() -> None:
    model, inputs = asked("aya_vision")
    with pytest.raises(ValueError, match="every tile needs its tag before it"):
        generate(model, rewritten(inputs, [START, *TILE, *TILE, *TILE, END]))


def test_aya_prompt_that_breaks_off() -> None:
    model, inputs = asked("aya_vision")
    prompt = torch.tensor([[BOS, START, TAG, *TILE, TAG, *TILE, WHOLE, *TILE]])
    with pytest.raises(ValueError, match="breaks off after a tile"):
        generate(model, {**inputs, "input_ids": prompt, "attention_mask": torch.ones_like(prompt)})


@pytest.mark.parametrize(
    "ids",
    [
        [START, *TILE, *TILE, GRID, *TILE, END],
        [*TILE, GRID, *TILE, COLUMN, *TILE, END],
        [START, *TILE, GRID, *TILE, COLUMN, *TILE],
        [START, *TILE, END],
        [START, *TILE, GRID, *TILE, COLUMN, 50, *TILE, END],
        [START, *TILE, GRID, *TILE, LINE, *TILE, COLUMN, *TILE, END],
        [START, *TILE[1:], GRID, *TILE, COLUMN, *TILE, END],
    ],
    ids=["two wholes", "no start", "no end", "no grid", "text inside", "uneven lines", "a placeholder short"],
)
def test_ovis2_images_that_are_not_written_as_its_processor_does(ids: list[int]) -> None:
    model, inputs = asked("ovis2")
    with pytest.raises(ValueError, match="not an image as Ovis2's processor writes it"):
        generate(model, rewritten(inputs, ids))


def test_ovis2_with_other_indicators() -> None:
    model = copy.deepcopy(ROWS["ovis2"].make("sdpa"))
    model.config.visual_indicator_token_ids = [1, 2, 3]
    with pytest.raises(ValueError, match="five indicator tokens"):
        foveate.attach(model, foveate.AdaFV())


def test_internvl_cannot_arrange_cls() -> None:
    model, inputs = asked("internvl")
    with pytest.raises(ValueError, match="InternVL cannot arrange in a square. Set it to 'default'"):
        generate(model, inputs, vision_feature_select_strategy="full")


def test_aya_siglip_has_no_cls_to_drop() -> None:
    model, inputs = asked("aya_vision")
    with pytest.raises(ValueError, match="SigLIP tower has none.*'full'"):
        generate(model, inputs, vision_feature_select_strategy="default")


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "ovis2"])
def test_another_layer_is_read_and_those_after_it_are_skipped(family: str) -> None:
    """vision_feature_layer=-2: the saliency is that layer's, the last is not run, what is sent is stock's."""
    model, inputs = asked(family)
    tower = family_for(model).tower
    runs: list[int] = []
    hook = tower.attentions[-1].register_forward_hook(lambda *_: runs.append(1))
    try:
        (image,) = encode(model, {**inputs, "vision_feature_layer": -2})
    finally:
        hook.remove()
    assert not runs
    stock = model.get_image_features(inputs["pixel_values"], vision_feature_layer=-2, return_dict=True).pooler_output
    assert torch.equal(image.tokens.features, stock.flatten(0, -2))
    (last,) = encode(model, inputs)
    assert not torch.allclose(image.tokens.saliency, last.tokens.saliency)
    recorder: Recorder = tower.recorder(tower.reading({"vision_feature_layer": -2}), Request(lambda: None))
    assert recorder.at is tower.attentions[-2]


def test_marks_are_no_text() -> None:
    """Start, end and tags never guide; the words around an image do."""
    words = [BOS, 5, 6]
    ids = [*words, START, *TILE * 3, END, 50, START, *TILE, END, 51, 52]
    marks = family_for(ROWS["internvl"].make("sdpa")).marks(torch.tensor([ids]))[0]
    assert [token for token, mark in zip(ids, marks.tolist(), strict=True) if not mark] == [*words, 50, 51, 52]
    ids = [*words, *write_tagged(0, 3 * TOKENS), 50, *write_tagged(1, TOKENS), 51, 52]
    marks = family_for(ROWS["aya_vision"].make("sdpa")).marks(torch.tensor([ids]))[0]
    assert [token for token, mark in zip(ids, marks.tolist(), strict=True) if not mark] == [*words, 50, 51, 52]
    ids = [*words, *write_lines(0, 0), 50, *write_lines(2, 0), 51, 52]
    marks = family_for(ROWS["ovis2"].make("sdpa")).marks(torch.tensor([ids]))[0]
    assert [token for token, mark in zip(ids, marks.tolist(), strict=True) if not mark] == [*words, 50, 51, 52]


def test_marks_of_the_released_aya_vocabulary() -> None:
    model = copy.deepcopy(ROWS["aya_vision"].make("sdpa"))
    assert family_for(model).structure_token_ids == frozenset()
    model.config.image_token_index = 255036
    assert family_for(model).structure_token_ids == {255033, 255034}


def tokenizer(special: dict[str, int], words: list[str], **named: str) -> PreTrainedTokenizerFast:
    vocabulary = {"<pad>": PAD, "<s>": BOS, "</s>": 2, "<unk>": 3, **special}
    texts = ["user", "assistant", ":", "?", ".", "is", "there", "a", "cat", "dog", *words]
    free = [number for number in range(4, 100) if number not in vocabulary.values()]
    vocabulary |= dict(zip(texts, free, strict=False))
    vocabulary |= {f"w{number}": number for number in free[len(texts) :]}
    words_of = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words_of.normalizer = normalizers.Lowercase()
    words_of.pre_tokenizer = pre_tokenizers.Whitespace()
    found = PreTrainedTokenizerFast(
        tokenizer_object=words_of, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>",
        additional_special_tokens=list(special), padding_side="left",
    )  # fmt: skip
    for name, token in named.items():
        setattr(found, name, token)
        setattr(found, f"{name}_id", vocabulary[token])
    return found


def processor(family: str) -> Any:
    kind = OvisImages if family == "ovis2" else OcrImages
    images = kind(size={"height": SIDE, "width": SIDE}, crop_to_patches=True, max_patches=6)
    if family == "ovis2":
        special = {"<IMG_START>": START, "<IMG_ATOM>": IMAGE, "<IMG_GRID>": GRID, "<IMG_COL>": COLUMN}
        special |= {"<IMG_ROW>": LINE, "<IMG_END>": END}
        return Ovis2Processor(images, tokenizer(special, []), image_seq_length=TOKENS)
    if family == "aya_vision":
        special = {"<|START_OF_IMG|>": START, "<|END_OF_IMG|>": END, "<|IMG_PATCH|>": IMAGE}
        tags = ["tile_global", *[f"tile_{number}" for number in range(1, 7)]]
        return AyaVisionProcessor(images, tokenizer(special, tags), patch_size=14, img_size=SIDE, downsample_factor=2)
    special = {"<img>": START, "</img>": END, "<IMG_CONTEXT>": IMAGE, "<video>": 92}
    names = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>"}
    words = tokenizer(special, [], **names, video_token="<video>")
    with pytest.MonkeyPatch.context() as patch:
        # Its video processor needs torchvision, which pictures do not: only the check for one is left out.
        patch.setattr(InternVLProcessor, "check_argument_for_proper_class", lambda *_: None)
        return InternVLProcessor(images, words, None, image_seq_length=TOKENS)


def picture(seed: int, width: int, height: int) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_session_with_the_familys_own_processor(family: str) -> None:
    """Looked at once, asked twice: as separate calls."""
    model, words = ROWS[family].make("sdpa"), processor(family)
    pictures = [picture(0, 420, 300), picture(1, 50, 50)]
    session = foveate.look(model, words, pictures)
    mark = {"internvl": "<IMG_CONTEXT>"}.get(family, "<image>")
    questions = ["is there a cat ?", "is there a dog ."]
    for question in questions:
        pruner = foveate.AdaFV(keep=0.3)
        answer = session.ask(question, pruner, max_new_tokens=5, do_sample=False, suppress_tokens=SILENT)
        assert [one.total for one in answer.selections] == [7 * TOKENS, TOKENS]
        inputs = words(images=[pictures], text=[f"USER: {mark}\n{mark}\n{question} ASSISTANT:"], return_tensors="pt")
        names = {"input_ids", "attention_mask", "pixel_values"}
        with pruner(model):
            alone = model.generate(**{name: inputs[name] for name in names}, **GREEDY | {"max_new_tokens": 5})
        assert torch.equal(answer.sequence, alone[0])
    both = session.ask_many(
        questions, foveate.AdaFV(keep=0.3), max_new_tokens=5, do_sample=False, suppress_tokens=SILENT
    )
    assert len(both) == 2
    assert torch.equal(both[1].sequence[-5:], answer.sequence[-5:])


def test_internvl_frames_of_a_video_are_images() -> None:
    """Its processor writes a video as one marked run for each frame, and puts the frames among the tiles."""
    model, inputs = asked("internvl")
    ids = [BOS, *[token for number in range(3) for token in (70 + number, START, *TILE, END)], 40, 41]
    prompt = torch.tensor([ids])
    pruner = foveate.Saliency(keep=2)
    with pruner(model):
        model.generate(**{**inputs, "input_ids": prompt, "attention_mask": torch.ones_like(prompt)}, **GREEDY)
    assert [(one.total, len(one)) for one in pruner.selections] == [(4, 2)] * 3
