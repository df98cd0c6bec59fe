"""Pictures are resized before the processor: by hand or by us, the model sees the same."""

from __future__ import annotations

import math
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

import foveate
from foveate import bundled
from foveate.first_block import first_block_tokens
from foveate.images import size_of
from foveate.inputs import process, question_prompt
from foveate.models import family_for
from foveate.pixels import LEAST_AUTO, Pixels, auto_scale, resized, resized_to
from tests.checkpoint import llava_processor
from tests.dynamic import UNITS, pair, picture
from tests.tiny import ROWS, SILENT

QUESTION = "is there a cat ?"
FIRST_BLOCKS = {
    "llava-clip": ("vision_tower.encoder.layers.0", True),
    "llava-siglip": ("vision_tower.encoder.layers.0", False),
    "internvl": ("vision_tower.encoder.layer.0", True),
    "ovis2": ("vision_tower.transformer.encoder.layers.0", False),
    "idefics3": ("vision_model.encoder.layers.0", False),
    "smolvlm": ("vision_model.encoder.layers.0", False),
    "gemma3": ("vision_tower.encoder.layers.0", False),
}
"""By row: where its encoder's first block is, and whether CLS stands before the patches."""
OPTIONS = {"max_new_tokens": 4, "do_sample": False, "suppress_tokens": SILENT}


@pytest.mark.parametrize(
    ("given", "error"),
    [
        (0, "256"), (-1, "256"), (4, "written with a point"), (255, "256"), (0.0, "no scale"), (-0.5, "no scale"),
        (16.1, "no scale"), (math.nan, "no scale"), (math.inf, "no scale"), (True, "got True"), (None, "got None"),
        ("half", "unknown"), ("0.5", "unknown"), ("", "unknown"), ([0.5], "got list"), (np.ones(1), "got ndarray"),
    ],
)  # fmt: skip
def test_what_is_no_size(given: Any, error: str) -> None:
    for use in (Pixels, lambda value: resized(picture(0, 40, 40), value)):
        with pytest.raises((TypeError, ValueError), match=error):
            use(given)


def test_what_is_a_size() -> None:
    assert Pixels(1) == Pixels(1.0) == Pixels.parse("1") == Pixels.parse("1.0") and type(Pixels(1).value) is float
    assert Pixels(np.float32(0.1)).value == 0.1 and Pixels(np.int64(300)).value == 300
    assert Pixels.parse("0.25").value == 0.25 and Pixels.parse("auto").is_auto and Pixels(16.0).enlarges
    for wrong in ("half", "nan", "0", "-3", "4", "0,5", "1e9"):
        with pytest.raises(ValueError, match="pixels="):
            Pixels.parse(wrong)


@pytest.mark.parametrize("size", [(640, 480), (333, 777), (1, 9), (1, 1), (5000, 3)])
def test_sizes(size: tuple[int, int]) -> None:
    for scale in (0.01, 0.25, 0.5, 1.0, 2.0, 4.0):
        found = Pixels(scale).size(*size)
        for one, before in zip(found, size, strict=True):
            assert one == 1 or abs(one - before * scale**0.5) <= 0.5
    for most in (256, 1000, 12345, 10**6):
        found = Pixels(most).size(*size)
        area = size[0] * size[1]
        assert found[0] * found[1] <= most and min(found) >= 1
        assert found == size if area <= most else found != size
        if area > most and min(found) > 1:  # and no pixel of a side is given away
            assert all((one + 1) / before > (most / area) ** 0.5 for one, before in zip(found, size, strict=True))
    assert Pixels(256).size(5000, 1) == (256, 1)
    with pytest.raises(ValueError, match="give a smaller scale"):
        Pixels(16.0).size(8000, 8000)
    with pytest.raises(ValueError, match="a scale of its own"):
        Pixels("auto").size(9, 9)


def test_what_keeps_its_size_is_the_same_object() -> None:
    one, other = picture(0, 30, 20), picture(1, 50, 40)
    assert resized(one, 1) is one and resized(one, 1.0) is one and resized(one, 600) is one
    several = resized([one, other], 1000)
    assert several[0] is one and several[1].size == (35, 28)
    assert resized((one,), 0.25)[0].size == (15, 10) and resized(one, 4.0).size == (60, 40)
    with pytest.raises(ValueError, match="no image"):
        resized([], 0.5)
    with pytest.raises(TypeError, match="load_image"):
        resized("photo.png", 0.5)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "PA", "CMYK", "YCbCr", "HSV", "I;16", "I", "F"])
def test_every_mode_is_filtered_as_what_it_shows(mode: str) -> None:
    """A picture of soft stripes stays soft: the mean is kept, and no mode falls back to nearest neighbours."""
    values = (127.5 + 100 * np.sin(np.arange(64) / 3)).astype(np.uint8)
    grey = Image.fromarray(np.repeat(values[None], 48, axis=0))
    given = grey.convert("RGB").convert(mode) if mode not in ("I;16", "LA", "PA") else grey.convert(mode)
    if mode == "I;16":
        given = Image.fromarray(np.repeat(values[None], 48, axis=0).astype(np.uint16) * 256)
        assert given.mode == "I;16"
    small = resized(given, 0.25)
    assert small.size == (32, 24)

    def shown(image: Image.Image) -> np.ndarray:
        if image.mode == "I;16":
            return np.asarray(image).astype(np.float64) / 256
        return np.asarray(image if image.mode in "IF" else image.convert("L")).astype(np.float64)

    expected = np.asarray(Image.fromarray(shown(given).astype(np.float32)).resize((32, 24), Image.Resampling.LANCZOS))
    assert np.abs(shown(small) - expected).max() < (4 if mode in ("P", "PA", "HSV", "YCbCr", "CMYK") else 1.6)


def test_dropping_transparency_before_or_after_is_the_same() -> None:
    given = picture(3, 40, 40).convert("RGBA")
    given.putalpha(Image.fromarray(np.tile([0, 255], (40, 20)).astype(np.uint8)))
    assert resized(given, 0.25).convert("RGB").tobytes() == resized(given.convert("RGB"), 0.25).tobytes()
    dotted = picture(3, 40, 40).convert("1")
    assert resized(dotted, 0.25).tobytes() == resized(dotted.convert("L"), 0.25).tobytes()
    palette = picture(3, 40, 40).quantize(8)
    palette.info["transparency"] = 0
    assert resized(palette, 0.25).mode == "RGBA"
    keyed = Image.new("RGB", (40, 40), "white")
    keyed.paste("red", (0, 0, 20, 40))
    keyed.info["transparency"] = (255, 0, 0)
    small = resized(keyed, 0.25)
    assert small.mode == "RGBA" and "transparency" not in small.info
    assert (small.getpixel((2, 9))[3], small.getpixel((17, 9))[3]) == (0, 255)
    assert small.convert("RGB").tobytes() == resized(keyed.convert("RGB"), 0.25).convert("RGB").tobytes()


@pytest.mark.parametrize("suffix", ["jpg", "png", "tiff", "webp"])
def test_the_orientation_stays(tmp_path: Any, suffix: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / f"turned.{suffix}"
    picture(0, 60, 40).save(path, exif=exif)
    with Image.open(path) as opened:
        small = resized(opened, 0.25)
        turned = suffix == "tiff"  # which Pillow turns when it loads it
        assert small.size == ((20, 30) if turned else (30, 20))
        assert small.getexif().get(0x0112) == (None if turned else 6)
        assert ImageOps.exif_transpose(small).size == (20, 30)
    assert size_of(path) == foveate.images.load_image(path).size == (40, 60)  # type: ignore[attr-defined]
    with pytest.raises(FileNotFoundError):
        size_of(tmp_path / "gone.png")


def counted(model: Any, processor: Any, one: Image.Image) -> int:
    inputs = process(processor, model, [question_prompt(processor, QUESTION, 1, model)], [one])
    token = getattr(model.config, "image_token_id", None) or model.config.image_token_index
    return int((inputs["input_ids"] == token).sum())


@pytest.mark.parametrize("name", UNITS)
def test_tokens_fall_as_the_scale_says(name: str) -> None:
    model, processor = pair(name)
    unit = UNITS[name]
    side = 112 // unit if unit == 14 or name == "mistral3" else 8  # a tiny Pixtral tower sees no more
    whole = picture(0, side * unit, side * unit // 2)
    for scale, part in ((1.0, 1), (0.25, 4), (1 / 16, 16)):
        if side * side // 2 % part or side % (2 * part**0.5):
            continue
        expected = side * side // 2 // part
        assert counted(model, processor, resized(whole, scale)) == expected
        session = foveate.look(model, processor, whole, pixels=scale)
        assert [one.placeholders for one in session.images] == [expected]
    if side == 8 and name not in ("mistral3", "llava-pixtral"):  # encode finely, keep few
        assert len(foveate.look(model, processor, whole, pixels=4.0).images[0].tokens) == side * side * 2
        few = foveate.look(model, processor, whole, pixels=4.0).ask(QUESTION, foveate.Cover(keep=0.25), **OPTIONS)
        assert few.visual_tokens == side * side // 2


@pytest.mark.parametrize("name", UNITS)
@pytest.mark.parametrize("pixels", [0.3, 2000])
def test_looking_is_resizing_by_hand(name: str, pixels: float) -> None:
    """Against Pillow and the processor alone, pruned and not."""
    model, processor = pair(name)
    given = [picture(1, 100, 80), picture(2, 60, 112)]
    sides = [math.sqrt(pixels if isinstance(pixels, float) else pixels / (w * h)) for w, h in (g.size for g in given)]
    rounded = round if isinstance(pixels, float) else math.floor
    by_hand = [
        one.resize((rounded(one.width * side), rounded(one.height * side)), Image.Resampling.LANCZOS)
        for one, side in zip(given, sides, strict=True)
    ]
    session = foveate.look(model, processor, given, pixels=pixels)
    assert [one.tobytes() for one in session.pictures] == [one.tobytes() for one in by_hand]
    prompt = question_prompt(processor, QUESTION, 2, model)
    inputs = processor(text=[prompt], images=[by_hand], return_tensors="pt")
    for pruner in (None, foveate.AdaFV(keep=0.5)):
        answer = session.ask(QUESTION, pruner, **OPTIONS)
        if pruner is None:
            alone = model.generate(**inputs, **OPTIONS)[0]
        else:
            with pruner(model, processor=processor):
                alone = model.generate(**inputs, **OPTIONS)[0]
        assert torch.equal(answer.sequence, alone)


@pytest.mark.parametrize("name", ["qwen2_5_vl", "mistral3"])
def test_one_changes_nothing(name: str) -> None:
    model, processor = pair(name)
    given = picture(1, 100, 80)
    plain, same = foveate.look(model, processor, given), foveate.look(model, processor, given, pixels=1)
    assert same.pictures[0] is given
    for one, other in zip(plain.images, same.images, strict=True):
        assert torch.equal(one.tokens.features, other.tokens.features)
        assert torch.equal(one.tokens.saliency, other.tokens.saliency)
    pruner = foveate.AdaFV(keep=0.3)
    answers = [session.ask(QUESTION, pruner, **OPTIONS) for session in (plain, same)]
    assert torch.equal(answers[0].sequence, answers[1].sequence)


def reference_scale(tokens: torch.Tensor) -> float:
    """The definition, pair by pair."""
    units = tokens.double() / tokens.double().norm(dim=1, keepdim=True)
    cosines = [float(units[i] @ units[j]) for i in range(len(units)) for j in range(len(units)) if i != j]
    return 0.6 * (1 - np.mean(cosines)) + 0.4 * float(np.std([1 - one for one in cosines]))


def test_the_scale_of_auto_is_its_formula() -> None:
    for seed, shift in ((0, 1.0), (1, 0.7), (2, 1.5)):
        tokens = torch.randn(23, 5, generator=torch.Generator().manual_seed(seed)) + shift
        assert 0.1 < reference_scale(tokens) < 1
        assert auto_scale(tokens) == pytest.approx(reference_scale(tokens), abs=1e-5)
    assert auto_scale(torch.ones(9, 4)) == LEAST_AUTO
    assert auto_scale(torch.tensor([[1.0, 0], [-1, 0]])) == 1.0  # 1.2, held
    assert auto_scale(torch.ones(1, 4)) == 1.0
    with pytest.raises(ValueError, match="no numbers"):
        auto_scale(torch.tensor([[1.0, 0], [math.nan, 0]]))
    half = (torch.randn(400, 32, generator=torch.Generator().manual_seed(3)) + 1).half()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert auto_scale(half) == pytest.approx(reference_scale(half), abs=1e-5)


@pytest.mark.parametrize("name", UNITS)
def test_auto_reads_the_first_block_and_no_further(name: str) -> None:
    """Against a hook on the stock model: the first block's output, of which each patch is a row."""
    model, processor = pair(name)
    visual = getattr(model.model, "visual", None)
    blocks = visual.blocks if visual is not None else model.model.vision_tower.transformer.layers
    seen: list[Any] = []
    hooks = [blocks[0].register_forward_hook(lambda module, given, output: seen.append(output))]
    given = picture(2, 112, 84)
    foveate.look(model, processor, given)
    runs = len(seen)
    expected = seen[-1][0] if isinstance(seen[-1], tuple) else seen[-1]
    ran: list[int] = []
    before = len(blocks[0]._forward_hooks)
    hooks += [blocks[1].register_forward_hook(lambda *_: ran.append(1))]
    tokens = first_block_tokens(model, processor, given)
    assert len(blocks[0]._forward_hooks) == before
    for hook in hooks:
        hook.remove()
    assert torch.equal(tokens, expected.reshape(-1, expected.shape[-1])) and len(seen) == runs + 1 and not ran
    assert "_foveate" not in vars(model)
    small = resized(given, "auto", model, processor)
    assert small.size == Pixels(auto_scale(tokens)).size(*given.size)
    assert foveate.look(model, processor, given, pixels="auto").pictures[0].tobytes() == small.tobytes()


def test_auto_without_what_it_needs() -> None:
    model, processor = pair("qwen2_vl")
    for missing in ((), (model,), (None, processor)):
        with pytest.raises(ValueError, match="looks at pictures with the model"):
            resized(picture(0, 56, 56), "auto", *missing)


def test_auto_with_crops_and_cls() -> None:
    """The bundled model: patches of all views, CLS left out."""
    model, processor = bundled.load()
    given = picture(2, 200, 300)
    tokens = first_block_tokens(model, processor, given)
    session = foveate.look(model, processor, given)
    views = len(session.images[0].tokens.geometry.grids)
    side = model.config.vision_config.image_size // model.config.vision_config.patch_size
    assert views > 1 and len(tokens) == views * side**2


def test_a_family_whose_first_block_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = pair("qwen2_vl")
    monkeypatch.setattr("foveate.models.packed.PackedFamily.first_block", None)
    with pytest.raises(ValueError, match="Qwen2-VL does not say which"):
        foveate.look(model, processor, picture(0, 56, 56), pixels="auto")


def test_one_resolution_is_told() -> None:
    model, processor = ROWS["llava-clip"].make("sdpa"), llava_processor()
    with pytest.warns(UserWarning, match=r"LLaVA-1.5's processor makes the same square"):
        small = foveate.look(model, processor, picture(0, 90, 60), pixels=0.1)
    assert small.pictures[0].size == (28, 19)
    plain = foveate.look(model, processor, picture(0, 90, 60))
    assert small.images[0].placeholders == plain.images[0].placeholders
    assert not torch.equal(small.images[0].tokens.features, plain.images[0].tokens.features)
    dynamic, words = pair("qwen2_vl")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        foveate.look(dynamic, words, picture(0, 90, 60), pixels=0.5)


def test_exact_sizes() -> None:
    given = picture(0, 40, 30)
    assert resized_to(given, (40, 30)) is given and resized_to(given, (7, 3)).size == (7, 3)


def test_other_threads_run_on_while_one_stops_at_the_first_block() -> None:
    model, processor = pair("qwen2_5_vl")
    given = picture(2, 112, 84)
    expected = foveate.look(model, processor, given).images[0].tokens.features
    with ThreadPoolExecutor(4) as pool:
        scales = [pool.submit(resized, given, "auto", model, processor) for _ in range(8)]
        looks = [pool.submit(foveate.look, model, processor, given) for _ in range(8)]
        assert len({one.result().tobytes() for one in scales}) == 1
        assert all(torch.equal(one.result().images[0].tokens.features, expected) for one in looks)


@pytest.mark.parametrize("name", [name for name in FIRST_BLOCKS if name in ROWS])
def test_first_blocks_of_the_other_families(name: str) -> None:
    """Where the family has one it is the first of the encoder's blocks, whose output holds a row per patch."""
    model = ROWS[name].make("sdpa")
    family = family_for(model)
    path, cls = FIRST_BLOCKS[name]
    block = model.model.get_submodule(path)
    assert family.first_block is block
    output = torch.randn(2, 10, 4)
    assert torch.equal(family.first_tokens(output), output[:, int(cls) :].reshape(-1, 4))
