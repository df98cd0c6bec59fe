"""The recipe of the dynamic model: its geometry, words, tokens and losses are the stock model's and processor's."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from transformers import Qwen3VLForConditionalGeneration

from foveate.bundled.processors import qwen3_vl
from foveate.evaluation.documents.faces import face
from foveate.evaluation.documents.panel import Look, Panel, Word

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))  # the training package is not installed

from training.dynamic.data import IGNORE, NO_DIGIT, NOTHING, Region, digits_of, label  # noqa: E402
from training.dynamic.drawing import make_batch  # noqa: E402
from training.dynamic.export import CHAT_TEMPLATE, export, image_options, make_tokenizer  # noqa: E402
from training.dynamic.grid import covered, lay_out, patches, resized  # noqa: E402
from training.dynamic.language import Shown, answer_loss  # noqa: E402
from training.dynamic.letters import LETTERS, NO_LETTER, spell  # noqa: E402
from training.dynamic.model import build, see  # noqa: E402
from training.dynamic.pages import make_page  # noqa: E402
from training.dynamic.presets import PRESETS  # noqa: E402
from training.dynamic.words import ID, MARK, NAMES, UNKNOWN, encode  # noqa: E402
from training.questions import pack  # noqa: E402
from training.runs import Optimizer  # noqa: E402

PRESET = PRESETS["dynamic-smoke"]


@pytest.fixture(scope="module")
def processor() -> Any:
    return qwen3_vl(image_options(), make_tokenizer(), CHAT_TEMPLATE)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run of a few steps leaves."""
    out = tmp_path_factory.mktemp("dynamic")
    command = [sys.executable, "-m", "training", "--preset", "dynamic-smoke", "--out", str(out)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    for _ in range(2):  # the second run finds everything done
        subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, timeout=600)
    return out


@pytest.fixture(scope="module")
def stock(trained: Path) -> Any:
    model, info = Qwen3VLForConditionalGeneration.from_pretrained(
        trained / "checkpoint", output_loading_info=True, dtype=torch.float32
    )
    assert not any(info.values()), info
    return model.eval()


@pytest.mark.parametrize("size", [(112, 112), (300, 217), (671, 333), (1000, 900), (40, 700), (97, 640), (28, 28)])
def test_pictures_are_cut_as_by_the_stock_processor(processor: Any, size: tuple[int, int]) -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8))
    wanted = processor.image_processor(picture, return_tensors="pt")
    grid = lay_out(size)
    assert wanted["image_grid_thw"].tolist() == [[1, 2 * grid.rows, 2 * grid.columns]]
    frames = wanted["pixel_values"].view(len(wanted["pixel_values"]), 3, 2, -1)
    assert torch.equal(frames[:, :, 0], frames[:, :, 1])
    ours = patches(torch.from_numpy(resized(picture, grid)))
    torch.testing.assert_close(ours, frames[:, :, 0].flatten(1), atol=1e-5, rtol=0)


def test_words_are_the_tokenizers(processor: Any) -> None:
    tokenizer = processor.tokenizer
    for text in ("Is there a cat?", "What costs 417?", "  How FAR is the zoo\nfrom here ", "", "it's 12."):
        assert encode(text) == tokenizer(text)["input_ids"]
    assert tokenizer.decode(encode("417")) == "417" and tokenizer.decode(encode("Bread")) == "bread"
    assert len(encode("417")) == 3


def test_no_word_of_either_world_is_unknown() -> None:
    for picture in make_batch(5, 0, 80, PRESET.mix.asked(), 0.5):
        for question in picture.questions:
            assert UNKNOWN not in encode(question.text) + encode(question.answer), question


def test_what_is_where() -> None:
    """Two words in a cell share it, a number's digits are in order, a value knows its head, the rest is background."""
    grid = lay_out((168, 112))
    regions = [
        Region(covered((0, 0, 28, 14), grid), 0, 0.7, name="tea"),
        Region(covered((0, 14, 28, 28), grid), 0, 0.7, name="milk"),
        Region(covered((56, 0, 84, 28), grid), 2, 1.0, number=47, keys=("tea",)),
        Region(covered((140, 84, 168, 112), grid), 23, 1.0, name="save", color="red"),
    ]
    picture = label(np.zeros((112, 168, 3), np.uint8), grid, regions, [])
    assert {NAMES[one] for one in picture.names[0, :2]} == {"tea", "milk"}
    assert picture.shares[0].tolist() == pytest.approx([0.5, 0.5, 0])
    assert picture.digits[2].tolist() == [7, 4, NO_DIGIT] == digits_of(47) and picture.names[2, 0] == IGNORE
    assert NAMES[picture.keys[2, 0]] == "tea" and (picture.keys[0] == IGNORE).all()
    assert picture.names[1].tolist() == [NOTHING, IGNORE, IGNORE] and picture.owner[1] == -1
    assert (picture.color >= 0).nonzero()[0].tolist() == [23] and picture.center.nonzero()[0].tolist() == [0, 2, 23]


def test_what_a_question_needs_is_where_the_picture_says() -> None:
    """A colour that is asked for is the colour of what is drawn in the cells that are to show it."""
    found = 0
    for picture in make_batch(6, 0, 60, PRESET.mix.asked(), 0.5):
        for question in picture.questions:
            named = re.fullmatch(r"Which button is (\w+)\?", question.text)
            if named is None:
                continue
            from foveate.evaluation.scenes.world import COLORS

            cells = picture.shows[question.regions[1]].nonzero()[0]
            rows, columns = np.divmod(cells, picture.grid.columns)
            drawn = np.stack([
                picture.pixels[28 * r : 28 * (r + 1), 28 * c : 28 * (c + 1)].reshape(-1, 3)
                for r, c in zip(rows, columns, strict=True)
            ])  # fmt: skip
            near = np.abs(drawn.astype(int) - COLORS[named[1]]).max(-1) < 40
            assert near.mean() > 0.1, question
            found += 1
    assert found


def test_documents_are_asked_more_than_the_suite_asks() -> None:
    """The suite's own questions and others, none twice; the answer to each is in the cells that are to show it."""
    mix = replace(PRESET.mix.asked(), documents=1.0, clutter=(1.0, 1.0))
    few, many = (make_batch(8, 0, 12, replace(mix, questions=most), 1.0) for most in (1, 30))
    read = 0
    for less, more in zip(few, many, strict=True):
        texts = [question.text for question in more.questions]
        assert [one.text for one in less.questions] == texts[:1]
        assert len(set(texts)) == len(texts) <= 30
        for question in more.questions:
            own = more.owner == question.regions[0]
            if not own.any():
                continue  # something else covers more of its cells
            if question.answer.isdecimal():
                assert digits_of(int(question.answer)) in more.digits[own].tolist(), question
            elif question.answer in NAMES:
                assert NAMES.index(question.answer) in more.names[own], question
            read += 1
    assert read > 100 and sum(len(one.questions) for one in many) > 12 * 12


def test_pages_to_read_from_are_full_of_words_where_they_say() -> None:
    """Where something is to be read there is ink beside paper. At first letters fill patches."""
    whole: dict[float, list[float]] = {0.0: [], 1.0: []}
    for hard, shares in whole.items():
        for seed in range(12):
            page = make_page(np.random.default_rng(seed), hard)
            rows, columns = page.grid.rows, page.grid.columns
            cells = (
                page.pixels.reshape(rows, 28, columns, 28, 3).transpose(0, 2, 1, 3, 4).reshape(rows * columns, -1, 3)
            )
            contrast = np.ptp(cells.astype(int), axis=1).max(-1)
            assert (contrast[page.shows.any(0)] > 90).mean() > 0.9  # the corner of a box may hold no ink
            halves = page.letters.reshape(-1, 2)  # a patch's two slots side by side
            lettered = (halves != NO_LETTER).any(1)
            shares.append(float((halves[:, 0] == halves[:, 1])[lettered].mean()))
    assert np.mean(whole[0.0]) > 0.9 > 0.6 > np.mean(whole[1.0])


@pytest.mark.parametrize(("family", "size"), [("dejavu serif", 40), ("dejavu mono", 24), ("dejavu sans", 12)])
def test_letters_are_told_where_they_are_drawn(family: str, size: int) -> None:
    """What a letter adds to what is drawn without it is in the slots that are told to show it, and nowhere else."""
    look = Look(family, False, size, "title", (0, 0, 0), (255, 255, 255), (9, 9, 9), (9, 9, 9))
    panel = Panel(look, np.random.default_rng(0))
    panel.word("a word", "museum", 9, 20)
    (mark,) = panel.marks
    assert isinstance(mark, Word)
    grid = lay_out((280, 112))
    slots = spell(grid, [(mark, 0, 31)]).reshape(4, 10, 2, 4).transpose(0, 2, 1, 3).reshape(8, 40)

    def drawn(text: str) -> np.ndarray:
        picture = Image.new("L", (280, 112), 255)
        ImageDraw.Draw(picture).text((mark.x, mark.y + 31), text, font=face(family, False, size), fill=0, anchor="ls")
        return np.array(picture).astype(int)

    assert {LETTERS[one] for one in slots.ravel() if one != NO_LETTER} == set("museum")
    places = []
    for count, letter in enumerate("Museum"):
        added = np.abs(drawn("Museum"[: count + 1]) - drawn("Museum"[:count])) > 30
        near = added.reshape(8, 14, 40, 7).any((1, 3))
        told = slots == LETTERS.index(letter.lower())
        places.append(told & near)
        assert places[-1].any(), letter
    assert (np.any(places, axis=0) == (slots != NO_LETTER)).mean() > 0.98


def test_muon_steps_the_layers_and_adamw_the_rest() -> None:
    torch.manual_seed(0)
    start = [torch.randn(6, 4), torch.randn(4), torch.randn(5, 4)]
    ours, alone = ([torch.nn.Parameter(one.clone()) for one in start] for _ in range(2))
    optimizer = Optimizer(ours, 0.1, hidden=ours[:1])
    adamw = torch.optim.AdamW(
        [{"params": alone[2:], "weight_decay": 0.1}, {"params": alone[1:2], "weight_decay": 0.0}], 0.01, (0.9, 0.98)
    )
    slopes = [torch.randn_like(one) for one in start]
    for mine, other, slope in zip(ours, alone, slopes, strict=True):
        mine.grad, other.grad = slope.clone(), slope.clone()
    optimizer.step(0.01), adamw.step()
    torch.testing.assert_close(ours[1:], alone[1:])
    # Muon's step is the orthogonal factor of the gradient, 0.2 of the square root of the longer side long.
    step = (start[0] * (1 - 0.01 * 0.1) - ours[0].detach()) / (0.01 * 0.2 * 6**0.5)
    left, _, right = torch.linalg.svd(slopes[0], full_matrices=False)
    assert torch.nn.functional.cosine_similarity(step.flatten(), (left @ right).flatten(), dim=0) > 0.97
    assert torch.linalg.svdvals(step).sub(1).abs().max() < 0.4  # Newton and Schulz's five steps come so near


def test_tokens_are_those_of_the_stock_encoder(stock: Any, processor: Any) -> None:
    batch = make_batch(3, 0, 5, PRESET.mix, 0.5)
    model = build(PRESET)
    model.load_state_dict(stock.state_dict())
    with torch.no_grad():
        tokens, deep = see(model, batch, torch.device("cpu"))
        inputs = processor.image_processor([Image.fromarray(one.pixels) for one in batch], return_tensors="pt")
        wanted = stock.model.visual(inputs["pixel_values"], grid_thw=inputs["image_grid_thw"])
    torch.testing.assert_close(tokens, wanted.pooler_output, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(deep, wanted.deepstack_features[0], atol=1e-5, rtol=1e-4)


def test_the_loss_is_that_of_the_stock_model_on_its_processors_prompt(stock: Any, processor: Any) -> None:
    """Positions of three dimensions, DeepStack, template and words, all at once: question by question."""
    model = build(PRESET)
    model.load_state_dict(stock.state_dict())
    asked = 0
    for picture in make_batch(4, 0, 4, PRESET.mix.asked(), 0.5):
        with torch.no_grad():
            planes = see(model, [picture], torch.device("cpu"))
        for question in picture.questions:
            shown = Shown(replace(picture, questions=[question]), *planes)
            message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question.text}]}
            prompt = processor.apply_chat_template([message], add_generation_prompt=True)
            inputs = processor(
                images=[Image.fromarray(picture.pixels)], text=[prompt + question.answer + "<|im_end|>"],
                return_tensors="pt",
            )  # fmt: skip
            with torch.no_grad():
                loss, _ = answer_loss(
                    model, [shown], None, np.random.default_rng(0), torch.autocast("cpu", enabled=False)
                )
                logits = stock(**inputs).logits[0].log_softmax(-1)
            count = len(encode(question.answer))
            each = -logits[-2 - count : -1].gather(1, inputs["input_ids"][0, -1 - count :, None])[:, 0]
            wanted = (each[:-1].sum() + 0.2 * each[-1]) / count
            torch.testing.assert_close(loss, wanted, atol=1e-4, rtol=1e-4)
            asked += 1
    assert asked > 8


def test_several_questions_in_a_row_do_not_see_each_other(stock: Any) -> None:
    model = build(PRESET)
    model.load_state_dict(stock.state_dict())
    picture = next(one for one in make_batch(4, 0, 9, PRESET.mix.asked(), 0.5) if len(one.questions) > 3)
    with torch.no_grad():
        planes = see(model, [picture], torch.device("cpu"))

        def loss_of(questions: list[Any]) -> float:
            shown = Shown(replace(picture, questions=questions), *planes)
            rng, off = np.random.default_rng(0), torch.autocast("cpu", enabled=False)
            return float(answer_loss(model, [shown], None, rng, off)[0])

        counts = [len(encode(one.answer)) for one in picture.questions]
        each = [loss_of([one]) * count for one, count in zip(picture.questions, counts, strict=True)]
        assert loss_of(picture.questions) == pytest.approx(sum(each) / sum(counts), rel=1e-4)


def test_questions_with_answers_of_several_words_are_packed() -> None:
    packed = pack([[([5, 6], [7, 8], "number")], []], pad=0, end=9)
    assert packed.ids.tolist() == [[5, 6, 7, 8], [0, 0, 0, 0]]
    assert packed.target.tolist() == [[IGNORE, 7, 8, 9], [IGNORE] * 4]
    assert packed.right.tolist() == [[IGNORE, 7, 8, IGNORE], [IGNORE] * 4]


def test_a_run_makes_a_checkpoint_of_its_own(trained: Path, stock: Any) -> None:
    record = json.loads((trained / "checkpoint" / "training.json").read_text("utf-8"))
    assert record["preset"]["name"] == "dynamic-smoke" and {"vision", "language", "joint"} <= set(record)
    assert stock.config.text_config.tie_word_embeddings or stock.config.tie_word_embeddings
    assert ID[MARK + "cat"] < stock.config.text_config.vocab_size == len(ID)


def test_a_checkpoint_is_written_beside_what_is_there(trained: Path, stock: Any, tmp_path: Path) -> None:
    (tmp_path / "MODEL_CARD.md").write_text("card")
    export(stock, tmp_path)
    assert (tmp_path / "MODEL_CARD.md").read_text() == "card"
    written, kept = (folder / "model.safetensors" for folder in (tmp_path, trained / "checkpoint"))
    assert written.read_bytes() == kept.read_bytes()


def test_training_goes_on_from_a_checkpoint(trained: Path) -> None:
    from safetensors.torch import load_file

    from training.__main__ import _start_from

    model = build(PRESET)
    _start_from(model, trained / "checkpoint")
    weights = model.state_dict()
    for name, stored in load_file(trained / "checkpoint" / "model.safetensors").items():
        assert torch.equal(weights[name], stored.float()), name


def test_a_checkpoint_from_before_the_vocabulary_grew_is_gone_on_from(stock: Any) -> None:
    from training.__main__ import _load

    before = {name: weight.clone() for name, weight in stock.state_dict().items()}
    for name in ("model.language_model.embed_tokens.weight", "lm_head.weight"):
        before[name] = before[name][:-20]
    model = build(PRESET)
    begun = model.model.language_model.embed_tokens.weight.detach().clone()
    _load(model, before)
    words = model.model.language_model.embed_tokens.weight
    assert torch.equal(words[:-20], before["lm_head.weight"]) and torch.equal(words[-20:], begun[-20:])
    assert model.lm_head.weight is words


def test_a_control_begins_with_random_layers(trained: Path, tmp_path: Path) -> None:
    """One step at a small rate leaves them near those that ``build`` makes, and not near those of stage 1's state."""
    name, tower = (f"model.{part}" for part in (
        "language_model.layers.1.mlp.up_proj.weight", "visual.blocks.0.mlp.linear_fc1.weight"
    ))  # fmt: skip
    state = torch.load(trained / "vision.pt", weights_only=False)
    state["model"][name] = state["model"][name] + 1.0
    torch.save(state, tmp_path / "vision.pt")
    command = [
        sys.executable, "-m", "training", "--preset", "dynamic-smoke", "--out", str(tmp_path), "--stage", "language",
        "--language-afresh", "--no-token-dropout", "--language-steps", "1",
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, timeout=600)
    after = torch.load(tmp_path / "language-control.pt", weights_only=False)["model"]
    assert (after[name] - build(PRESET).state_dict()[name]).abs().max() < 0.1
    assert torch.equal(after[tower], state["model"][tower])
