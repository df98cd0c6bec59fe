"""Downsampling alone: never more tokens than the budget, and what is recorded is what the model got."""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from PIL import Image

import foveate
from foveate import loading
from foveate.benchmarks import prefill, shapes
from foveate.benchmarks.report import plot, results_table
from foveate.evaluation.runner import SETTINGS_FILE, Transformers, budgets_of, evaluate, factory
from foveate.resizing import Counts, Resize, shrunk
from foveate.tokens import Keep
from tests import checkpoint
from tests.benchmarks.tinier import tiny
from tests.dynamic import UNITS, pair, picture
from tests.test_cli import call, refused
from tests.tiny import ROWS

QUESTIONS = ["is there a cat ?", "how many ?", "what color is the card ?"]


@dataclass
class Asked:
    image: str
    question: str
    answers: Any = ("yes",)


def grid(unit: int) -> Counts:
    """A model that makes a token of every square of a picture, as Qwen-VL does."""
    return Counts(lambda size: max(1, round(size[0] / unit)) * max(1, round(size[1] / unit)))


@pytest.mark.parametrize("size", [(640, 480), (1000, 90), (57, 333), (28, 28), (13, 7)])
def test_never_more_and_hardly_less_than_the_budget(size: tuple[int, int]) -> None:
    counts = grid(14)
    whole = counts(size)
    for keep in (0.9, 0.5, 0.25, 0.1, 0.03, 1, 5, 64):
        most = Keep(keep).budget(whole)
        least = 8 / min(size)  # of the shorter side, below which nothing is tried
        if counts((round(size[0] * least), round(size[1] * least))) > most:
            with pytest.raises(ValueError, match="leave resize out"):
                Resize(keep).size(size, counts)
            continue
        found = Resize(keep).size(size, counts)
        assert counts(found) <= most and found[0] <= size[0] and found[1] <= size[1]
        if found != size:  # the next larger size of the same proportions is too much, or the next but few
            above = max(found[0] * 1.02, found[0] + 2) / size[0]
            assert counts((round(size[0] * above), round(size[1] * above))) > most or above >= 1
    assert Resize(1.0).size(size, counts) == size


def test_every_size_is_counted_once() -> None:
    asked: list[Any] = []

    def count(size: tuple[int, int]) -> int:
        asked.append(size)
        return size[0] * size[1] // 100

    counts = Counts(count)
    for _ in range(3):
        assert Resize(0.1).size((640, 480), counts) == Resize(0.1).size((640, 480), counts)
    assert len(asked) == len(set(asked)) < 16


def test_row_ends_cost_too() -> None:
    """A smaller picture comes with its row ends, and pruned ones without."""
    counts = Counts(lambda size: (size[0] // 10 + 1) * (size[1] // 10), lambda size: size[1] // 10)
    assert counts.patches((100, 100)) == 100
    found = Resize(0.5).size((100, 100), counts)
    assert counts(found) <= 50 and found == (69, 69)
    assert Resize(1.0).size((100, 100), counts) == (100, 100)


def test_out_of_reach() -> None:
    with pytest.raises(ValueError, match=r"576 of any picture, .* one resolution: leave resize out, .* Qwen-VL"):
        Resize(0.5).size((640, 480), Counts(lambda size: 576))
    with pytest.raises(ValueError, match=r"is 30 tokens, and of the smaller sizes tried, down to 11x8, .* 64 at least"):
        shrunk((640, 480), 30, lambda size: max(64, size[0] * size[1] // 400))
    with pytest.raises(ValueError, match="no size between none and more than 1"):
        shrunk((300, 50), 1, lambda size: round(size[0] / 50) * round(size[1] / 50))
    for wrong in (0, -0.1, 1.5, float("nan"), True, "half"):
        with pytest.raises((ValueError, TypeError), match="keep"):
            Resize(wrong)  # type: ignore[arg-type]


def enlarged(unit: int, least: int) -> Counts:
    """A model that makes a token of every square, and enlarges pictures of fewer than ``least`` of them."""

    def count(size: tuple[int, int]) -> int:
        side = max(1.0, (least * unit * unit / (size[0] * size[1])) ** 0.5)
        return round(size[0] * side / unit + 0.25) * round(size[1] * side / unit + 0.25)

    return Counts(count)


@pytest.mark.parametrize("size", [(640, 480), (301, 299), (200, 900), (112, 112), (60, 90), (42, 28)])
@pytest.mark.parametrize("least", [1, 16, 64])
def test_as_few_tokens_as_can_be(size: tuple[int, int], least: int) -> None:
    """Of all sizes of a picture's proportions, a pixel apart, it is the largest of those with the fewest tokens."""
    counts, known = enlarged(28, least), {}
    for width in range(8, size[0] + 1):
        for height in range(8, size[1] + 1):
            if abs(width * size[1] / (height * size[0]) - 1) < 0.01:
                known[width, height] = counts((width, height))
    few = min(known.values())
    largest = max(one[0] for one, count in known.items() if count == few)
    for keep in (0.5, 0.1, 2):
        most = Keep(keep).budget(counts(size))
        found = Resize(keep, or_fewest=True).size(size, counts)
        if few > most:
            assert counts(found) == few
            assert largest / 1.02 - 1 <= found[0] <= largest and known[found] == few
            with pytest.raises(ValueError, match="leave resize out"):
                Resize(keep).size(size, counts)
        else:
            assert found == Resize(keep).size(size, counts)


def test_where_the_size_does_not_matter_the_picture_stays() -> None:
    """LLaVA-1.5 makes 576 tokens of any; and a picture that has the fewest already is not made smaller for nothing."""
    seen = Image.new("RGB", (640, 480))
    for counts in (Counts(lambda size: 576), Counts(lambda size: 576 + (size[0] > 700))):
        assert Resize(0.1, or_fewest=True).picture(seen, counts) is seen


def test_a_larger_picture_with_as_few_tiles_is_found() -> None:
    """Of tiles, a smaller picture may have more tokens: between 200 and 400 pixels there are few, below more again."""
    counts = Counts(lambda size: 100 if size[0] > 400 else 40 if size[0] > 200 else 60)
    assert Resize(0.5).size((1000, 1000), counts)[0] == pytest.approx(400, rel=0.01)
    assert Resize(0.1, or_fewest=True).size((1000, 1000), counts)[0] == pytest.approx(400, rel=0.01)


def test_by_name() -> None:
    make = factory("resize")
    assert make(0.25, 7) == Resize(0.25, or_fewest=True) != Resize(0.25) and budgets_of(make, [1.0, 0.5, 1, 64]) == [
        0.5,
        1,
        64,
    ]
    with pytest.raises(ValueError, match="resize has no options"):
        factory("resize:seed=3")
    with pytest.raises(ValueError, match="no method but a baseline"):
        foveate.get_pruner("resize", keep=0.1)
    with pytest.raises(ValueError, match="not available|no method but a baseline"):
        foveate.register(type("Taken", (foveate.Saliency,), {"name": "resize", "__dataclass_params__": None}))


@pytest.fixture
def asked(tmp_path: Any) -> list[Asked]:
    for number, size in enumerate([(112, 84), (60, 112)]):
        picture(number, *size).save(tmp_path / f"{number}.png")
    return [Asked(f"{number}.png", question) for number in range(2) for question in QUESTIONS]


@pytest.mark.parametrize("name", UNITS)
@pytest.mark.parametrize("few", [False, True])
def test_evaluation(name: str, few: bool, asked: list[Asked], tmp_path: Any) -> None:
    """By picture and across pictures: answers and counts are those of a stock model on the smaller picture."""
    model, processor = pair(name)
    items = asked[::3] if few else asked
    rows = evaluate(
        Transformers(model, processor), items, ["resize", "saliency"], [0.5, 0.25], tmp_path / "out", folder=tmp_path,
        max_new_tokens=3, batch=2,
    )  # fmt: skip
    assert {(row.method, row.keep) for row in rows} == {
        ("all", 1.0), ("resize", 0.5), ("resize", 0.25), ("saliency", 0.5), ("saliency", 0.25),
    }  # fmt: skip
    by = {(row.item, row.method, row.keep): row for row in rows}
    counts = Counts.of(model, processor)
    for place, item in enumerate(items):
        whole = by[str(place), "all", 1.0]
        for keep in (0.5, 0.25):
            row, pruned = by[str(place), "resize", keep], by[str(place), "saliency", keep]
            assert row.total == pruned.total == whole.total == whole.kept and row.latency_ms > 0
            assert 0 < row.kept <= pruned.kept == Keep(keep).budget(whole.total)
            assert row.encoded == row.kept and pruned.encoded is None and whole.encoded is None
            with Image.open(tmp_path / item.image) as opened:
                small = opened.resize(Resize(keep).size(opened.size, counts), Image.Resampling.LANCZOS)
            answer = foveate.look(model, processor, small).ask(item.question, max_new_tokens=3, do_sample=False)
            assert (answer.text, answer.visual_tokens) == (row.answer, row.kept)


def test_evaluation_of_resized_pictures(asked: list[Asked], tmp_path: Any) -> None:
    """pixels= comes first: what is kept, and what resize makes smaller, is the resized picture."""
    model, processor = pair("qwen2_5_vl")
    asking = {"folder": tmp_path, "max_new_tokens": 2, "methods": ["saliency", "resize"], "keeps": [0.5]}
    rows = evaluate(Transformers(model, processor, 0.25), asked, out=tmp_path / "out", **asking)
    settings = json.loads((tmp_path / "out" / SETTINGS_FILE).read_text(encoding="utf-8"))
    assert settings["pixels"] == 0.25
    for row in rows:
        item = asked[int(row.item)]
        with Image.open(tmp_path / item.image) as opened:
            session = foveate.look(model, processor, opened, pixels=0.25)
        assert row.total == len(session.images[0].tokens) < 12
        if row.method == "saliency":
            answer = session.ask(item.question, foveate.Saliency(keep=0.5), max_new_tokens=2, do_sample=False)
            assert (answer.text, answer.visual_tokens) == (row.answer, row.kept)
        assert row.kept == row.total or row.kept <= Keep(0.5).budget(row.total)
    with pytest.raises(ValueError, match=r"other settings \(pixels: 0.25 then, None now\)"):
        evaluate(Transformers(model, processor), asked, out=tmp_path / "out", **asking)
    with pytest.raises(ValueError, match=r"pixels: 0.25 then, 'auto' now"):
        evaluate(Transformers(model, processor, "auto"), asked, out=tmp_path / "out", **asking)
    each = evaluate(Transformers(model, processor, "auto"), asked, out=tmp_path / "auto", **asking)
    assert {row.method for row in each} == {"all", "saliency", "resize"}


def test_out_of_reach_is_refused_before_anything_is_asked(asked: list[Asked], tmp_path: Any) -> None:
    engine = Transformers(ROWS["llava-clip"].make("sdpa"), checkpoint.llava_processor())
    strict = {"saliency": factory("saliency"), "resize": lambda keep, picture: Resize(keep)}
    with pytest.raises(ValueError, match="brings all of them to one resolution"):
        evaluate(engine, asked, strict, [1.0, 0.5], tmp_path / "out", folder=tmp_path)
    assert not (tmp_path / "out").exists()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        Transformers(engine.model, engine.processor, 0.5)
    assert ["the same square" in str(one.message) for one in caught] == [True]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(checkpoint.save(tmp_path_factory.mktemp("checkpoint")))


@pytest.fixture
def photo(tmp_path: Any) -> str:
    path = tmp_path / "photo.png"
    picture(0, 120, 240).save(path)
    return str(path)


def test_ask(folder: str, photo: str) -> None:
    options = ["ask", photo, "Is there a cat?", "--model", folder, "--max-new-tokens", 2, "--pixels"]
    told = json.loads(call(*options, 0.25, "--json").stdout)
    assert told["pixels"] == 0.25
    (one,) = told["images"]
    assert (one["width"], one["height"], one["seen_width"], one["seen_height"]) == (120, 240, 60, 120)
    session = foveate.look(*loading.load(folder), Image.open(photo), pixels=0.25)
    assert one["total"] == len(session.images[0].tokens)
    assert "pictures seen at 60x120 pixels" in call(*options, 0.25).stderr
    assert json.loads(call(*options, 7200, "--json").stdout)["images"][0]["seen_width"] == 60
    auto = json.loads(call(*options, "auto", "--json").stdout)
    assert auto["pixels"] == "auto" and auto["images"][0]["seen_width"] <= 120
    compared = json.loads(call(*options, 0.25, "--compare", "--repeats", 1, "--json").stdout)
    assert compared["images"][0]["seen_width"] == 60 and compared["images"][0]["total"] == one["total"]
    for wrong in ("half", 0, -1, "nan", 4, "true"):
        assert "pixels=" in refused(*options, wrong)


def test_eval_command(folder: str, photo: str, tmp_path: Any) -> None:
    suite = tmp_path / "suite.jsonl"
    lines = [{"image": "photo.png", "question": f"What is {n}?", "answers": ["1"]} for n in range(2)]
    suite.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    options = ["eval", "--suite", suite, "--model", folder, "--max-new-tokens", 1, "--methods", "uniform,resize"]
    options += ["--out", tmp_path / "out"]
    told = json.loads(call(*options, "--keep", "0.9", "--pixels", "0.5", "--json").stdout)
    kept = {(run["method"], run["keep"]): run["kept"] for run in told["runs"]}
    assert kept["resize", 0.9] <= kept["uniform", 0.9] < kept["all", 1.0]
    page = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert page.splitlines()[0].endswith(", pixels 0.5") and "`resize`" in page
    assert "pixels: 0.5 then, None now" in refused(*options, "--keep", "0.9")
    few = json.loads(call(*options[:-2], "--out", tmp_path / "few", "--keep", "0.05", "--json").stdout)
    (over,) = (run for run in few["runs"] if run["method"] == "resize")
    assert over["over_budget"] == 2 and 0.05 * over["total"] + 1 < over["kept"] < over["total"]
    assert "pixels=" in refused(*options, "--pixels", "half")
    vllm = [*options[:-4], "--engine", "vllm"]
    assert "use --engine transformers" in refused(*vllm, "--methods", "resize")
    assert "use --engine transformers" in refused(*vllm, "--methods", "uniform", "--pixels", "auto")
    assert "no method but a baseline" in refused("tune", suite, "--methods", "resize", "--model", folder)
    assert "no method but a baseline" in refused("bench", "--selection", "--methods", "resize")
    assert "no method but a baseline" in refused("bench", "--serve", "--methods", "resize")


def test_bench_beside_methods(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    shape = tiny(shapes.SHAPES["qwen2.5-vl-7b"])
    monkeypatch.setitem(shapes.SHAPES, "qwen2.5-vl-7b", shape)
    options = ["bench", "--shape", "qwen2.5-vl-7b", "--methods", "saliency,resize", "--keep", "0.1", "--repeats", 1]
    options += ["--max-new-tokens", 1, "--clock", "process", "--out", tmp_path, "--json", "--device", "cpu"]
    found = json.loads(call(*options).stdout)
    by = {(one["kind"], one["keep"]): one for one in found["results"]}
    small, pruned = by["resize", 0.1], by["foveate", 0.1]
    assert small["prompt_tokens"] <= pruned["prompt_tokens"] < by["stock", 1.0]["prompt_tokens"]
    assert small["flops"] < pruned["flops"]  # the encoder has less to do as well
    assert small["over_bound"] is not None
    assert ("resize", 1.0) not in by
    assert {one["name"].split(":")[0] for one in found["targets"]} == {"saliency"}
    alone = json.loads(call(*["resize" if one == "saliency,resize" else one for one in options]).stdout)
    assert {one["kind"] for one in alone["results"]} >= {"stock", "bound", "resize"} and not alone["targets"]


def test_bench_report(tmp_path: Any) -> None:
    shape = tiny(shapes.SHAPES["qwen2-vl-7b"])
    model = shape.build()
    inputs = shape.inputs(model)
    small = shape.inputs(model, 1, (56, 84))
    report = prefill.measure(
        model, inputs, methods=["uniform"], keeps=[0.2], new_tokens=1, repeats=1, clock="process",
        smaller=lambda keep: small,
    )  # fmt: skip
    one = report.find("resize", 0.2)
    assert one is not None and one.prompt_tokens == small["input_ids"].shape[1]
    assert ["resize", "20%"] in [row[:2] for row in results_table(report)[1]]
    plot(report, "title").savefig(tmp_path / "plot.png")
    with pytest.raises(RuntimeError, match="more than the"):
        prefill.measure(
            model, inputs, methods=["uniform"], keeps=[0.2], new_tokens=1, repeats=1, clock="process",
            smaller=lambda keep: inputs,
        )  # fmt: skip


def test_bench_of_a_checkpoint(folder: str, tmp_path: Any) -> None:
    options = ["bench", "--model", folder, "--image", "240x120", "--methods", "resize", "--repeats", 1, "--json"]
    options += ["--max-new-tokens", 1, "--clock", "process", "--out", tmp_path, "--device", "cpu"]
    found = json.loads(call(*options, "--keep", "0.9").stdout)
    by = {one["kind"]: one for one in found["results"]}
    assert by["resize"]["prompt_tokens"] < by["stock"]["prompt_tokens"]
    assert "leave resize out" in refused(*options[:-4], *options[-2:], "--keep", "0.05")


def test_counting_runs_no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = pair("qwen3_vl")
    monkeypatch.setattr(torch.nn.Module, "__call__", lambda *_: pytest.fail("a module was run"))
    counts = Counts.of(model, processor)
    assert counts((256, 128)) == 32 == counts.patches((256, 128))
    assert counts(Resize(0.25).size((256, 128), counts)) <= 8
