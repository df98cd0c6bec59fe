"""Crops as an axis of an evaluation: who is asked with which, what it took, and what is compared with what."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import foveate
from foveate.evaluation import report as reporting
from foveate.evaluation import runner, saving
from foveate.evaluation.cropped import Spelled, counterparts, spread
from foveate.evaluation.metrics import METRICS
from foveate.evaluation.plots_of_crops import over_crops
from foveate.evaluation.runner import ROWS_FILE, Row, Transformers, evaluate, factory, write_parquet
from foveate.models.view_store import ViewStore
from tests import checkpoint
from tests.test_cli import call, not_json, refused
from tests.tiny import ROWS

PLAIN = {"max_new_tokens": 2, "do_sample": False, "num_beams": 1}
HALF, RANDOM = "crops:amount=1:adafv", "crops:amount=1:by=random:adafv"


@dataclass(frozen=True)
class Asked:
    image: str
    question: str
    answers: tuple[str, ...] = ("yes",)
    group: str = ""


@pytest.fixture(scope="module")
def pair() -> tuple[Any, Any]:
    return checkpoint.model(), checkpoint.processor()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(4):
        coarse = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        size = (50, 90) if number % 2 else (90, 50)
        Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(folder / f"{number}.png")
    return folder


QUESTIONS = ["is there a cat ?", "what color is the dog ?", "how many ?"]
SEVERAL = [Asked(f"{number}.png", question) for number in range(2) for question in QUESTIONS]
SINGLE = [Asked(f"{number}.png", QUESTIONS[number % 3]) for number in range(4)]


def test_names_are_read_and_written_in_one_way() -> None:
    one = Spelled.read("crops:amount=0.50:by=text:cdpruner:words=max")
    assert (one.crops, one.method) == (foveate.Crops(0.5, "text"), "cdpruner:words=max")
    assert str(one) == "crops:amount=0.5:by=text:cdpruner:words=max" and str(Spelled.read(str(one))) == str(one)
    assert one.title == "cdpruner:words=max, crops 0.5:by=text" and not one.lucky
    assert Spelled.read("crops:cover").crops == foveate.Crops()
    assert Spelled.read("crops:amount=auto:share=0.9:cover").crops == foveate.Crops("auto", share=0.9)
    assert Spelled.read("crops:amount=1:cover").crops == foveate.Crops(1)
    for every in ("1.0", "all"):
        assert str(Spelled.read(f"crops:amount={every}:cover")) == "cover"
    assert Spelled.read("crops:amount=2:ask-again:first=0.1:cover").method == "ask-again:first=0.1:cover"
    drawn = Spelled.read("crops:by=random:cover")
    assert drawn.of(7).seed == 7 and Spelled.read("crops:by=random:seed=3:cover").of(7).seed == 3


@pytest.mark.parametrize(
    "name, match",
    [
        ("crops", "the method stands behind"),
        ("crops:amount=0.5", "the method stands behind"),
        ("crops:amount=0.5:", "the method stands behind"),
        ("crops:crops:cover", "stand there twice"),
        ("crops:amount=0:amount=1:cover", "given amount twice"),
        ("crops:of=0.5:cover", "no option 'of'; known: amount, by, share, seed"),
        ("crops:amount=1.5:cover", "crops=1.5 must be a fraction"),
        ("crops:amount=some:cover", "write a fraction such as 0.5"),
        ("crops:by=luck:cover", "'luck' are not known"),
        ("crops:amount=auto:by=random:cover", "have|has none"),
        ("crops:amount=0.5:nope", "unknown method 'nope'"),
        ("crops:amount=all:all", "the run with all tokens"),
        ("auto:crops:amount=0.5:cover", "crops is not available: it is no method"),
    ],
)
def test_bad_names(name: str, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        factory(name)


def test_methods_are_run_under_every_amount() -> None:
    amounts = [None, foveate.Crops(0.5), foveate.Crops(0)]
    found = spread(["cover", "ask-again:cover"], amounts, whole=True)
    assert found[2:] == [
        "cover", "ask-again:cover", "crops:amount=0.5:cover", "crops:amount=0.5:ask-again:cover",
        "crops:amount=0:cover", "crops:amount=0:ask-again:cover",
    ]  # fmt: skip
    assert found[:2] == ["crops:amount=0.5:all", "crops:amount=0:all"] and spread(["cover"], [None], True) == ["cover"]
    with pytest.raises(ValueError, match="and so does --crops"):
        spread(["cover", "crops:cover"], amounts, whole=False)


def test_what_is_compared_with_what() -> None:
    names = ["cover", "crops:amount=0.5:cover", "crops:amount=0.5:by=random:cover", "crops:amount=1:by=random:cover",
             "crops:amount=0.5:by=random:adafv", "crops:amount=0.5:adafv"]  # fmt: skip
    assert counterparts("cover", names) == []
    assert counterparts(names[1], names) == ["cover", names[2]]
    assert counterparts(names[2], names) == ["cover"]
    assert counterparts(names[5], names) == [names[4]]


def by_run(rows: list[Row]) -> dict[tuple[str, str, str], Row]:
    return {row.key: row for row in rows}


def test_answers_are_those_of_sessions_that_encode_some_crops(pair: Any, pictures: Path, tmp_path: Path) -> None:
    whole = "crops:amount=0:all"
    rows = evaluate(
        Transformers(*pair), SEVERAL, ["adafv", HALF, RANDOM, whole], [1.0, 0.25, 3], tmp_path / "out",
        folder=pictures, max_new_tokens=2,
    )  # fmt: skip
    assert {(row.method, repr(row.keep)) for row in rows} == {
        ("all", "1.0"), (whole, "1.0"), *((name, keep) for name in ("adafv", HALF, RANDOM) for keep in ("0.25", "3"))
    }  # fmt: skip
    chosen = set()
    for row in rows:
        item = SEVERAL[int(row.item)]
        number = int(item.image[0])
        crops = {HALF: 1, RANDOM: f"1:by=random:seed={number}", whole: 0}.get(row.method)
        session = foveate.look(*pair, Image.open(pictures / item.image), crops=crops)
        pruner = None if row.keep == 1.0 else foveate.AdaFV(keep=row.keep)
        answer = session.ask(item.question, pruner, **PLAIN)
        (selection,) = answer.selections
        assert (row.answer, row.kept, row.total) == (answer.text, len(selection), selection.total)
        if crops is None:
            assert row.encoded is None and row.tokens_encoded == row.total
        else:
            assert row.encoded == int(selection.encoded.sum()) < row.total
            chosen.add((row.method, selection.encoded_views))
    assert {views for name, views in chosen if name == whole} == {(0,)}
    assert {views for name, views in chosen if name != whole} == {(0, 1), (0, 2)}
    table = write_parquet(rows, SEVERAL, METRICS["exact"], tmp_path / "answers.parquet")
    assert read_parquet(table) == [row.tokens_encoded for row in rows]


def read_parquet(path: Path) -> list[int]:
    import pyarrow.parquet as pq

    found: list[int] = pq.read_table(path)["encoded"].to_pylist()
    return found


def test_batches_across_pictures_encode_the_same(pair: Any, pictures: Path, tmp_path: Path) -> None:
    across, alone = (
        by_run(
            evaluate(
                Transformers(*pair), SINGLE, ["adafv", HALF], [0.25], tmp_path / name, folder=pictures,
                max_new_tokens=2, by_picture=name == "alone",
            )
        )
        for name in ("across", "alone")
    )  # fmt: skip
    assert across.keys() == alone.keys()
    for key, row in across.items():
        other = alone[key]
        assert (row.kept, row.total, row.encoded) == (other.kept, other.total, other.encoded)
        assert (row.encoded is None) == (row.method != HALF)


def test_every_question_pays_for_its_own_crops(pair: Any, pictures: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """On a clock that only the encoder moves, ten seconds a view: whoever came first, and in whatever batch."""
    clock = [0.0]
    put = ViewStore.put

    def slowly(store: ViewStore, record: Any, features: Any) -> Any:
        clock[0] += 10.0 * len(store.wanted)
        return put(store, record, features)

    monkeypatch.setattr(ViewStore, "put", slowly)
    monkeypatch.setattr(runner, "_now", lambda model: clock[0])
    names = [HALF, RANDOM, "crops:amount=0:adafv", "crops:amount=2:adafv"]
    for batch in (1, 4):
        rows = evaluate(
            Transformers(*pair), SEVERAL, names, [0.25, 3], tmp_path / str(batch), folder=pictures, max_new_tokens=1,
            batch=batch,
        )  # fmt: skip
        for row in rows:
            views = {HALF: 2, RANDOM: 2, names[2]: 1, names[3]: 3, "all": 0}[row.method]  # all: by another way
            assert row.latency_ms == pytest.approx(10e3 * views)


def test_asking_again_under_crops(pair: Any, pictures: Path, tmp_path: Path) -> None:
    name = "crops:amount=1:ask-again:first=2:margin=1.0:cdpruner"
    rows = evaluate(
        Transformers(*pair), SINGLE, [name], [9, 2, 1.0], tmp_path / "out", folder=pictures, max_new_tokens=2
    )
    own = [row for row in rows if row.method == name]
    assert {repr(row.keep) for row in own} == {"9", "1.0"}
    for row in own:
        assert row.encoded is not None and row.encoded < row.total
        assert row.kept == 2 + (9 if row.keep == 9 else row.encoded)


def test_folders_from_before_there_were_crops_are_gone_on_with(
    pair: Any, pictures: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    def run(methods: list[str]) -> list[Row]:
        return evaluate(Transformers(*pair), SEVERAL, methods, [3], tmp_path / "out", folder=pictures, max_new_tokens=1)

    first = run(["adafv"])
    path = tmp_path / "out" / ROWS_FILE
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert all(line.pop("encoded") is None for line in lines)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    more = run(["adafv", HALF])
    assert [row for row in more if row.method != HALF] == first


@pytest.mark.parametrize(
    "model, name, match",
    [
        ("llava-clip", "crops:adafv", "does not cut a picture into crops"),
        ("llava-clip", "crops:ask-again:first=2:adafv", "does not cut a picture into crops"),
        (None, "crops:fastv", "prunes inside the LLM and has no crops"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_asked(
    pair: Any, pictures: Path, tmp_path: Path, model: str | None, name: str, match: str
) -> None:
    engine = Transformers(*pair) if model is None else Transformers(ROWS[model].make("sdpa"), None)
    with pytest.raises(ValueError, match=match):
        evaluate(engine, SEVERAL, [name], [3], tmp_path / "out", folder=pictures)
    assert not (tmp_path / "out").exists()


CROPPED = "crops:amount=0.5:cover", "crops:amount=0:cover", "crops:amount=0.5:by=random:cover"


def made_report(names: tuple[str, ...] = CROPPED, keeps: tuple[float, ...] = (0.1, 0.05)) -> reporting.Report:
    """Of 20 questions, fewer are answered rightly with fewer crops, and by chance."""
    encoded = {"cover": 100, CROPPED[0]: 60, CROPPED[1]: 20, CROPPED[2]: 60, "crops:amount=0.5:all": 60, "all": 100}
    right = {"cover": 18, CROPPED[0]: 17, CROPPED[1]: 10, CROPPED[2]: 14, "crops:amount=0.5:all": 18, "all": 19}
    items = [Asked(f"{number % 5}.png", f"{number} ?") for number in range(20)]
    rows = [
        Row(str(place), name, keep, "q", "yes" if place < right[name] else "no", 10, 100, 5.0, None
            if encoded[name] == 100 else encoded[name])
        for name in ("all", "cover", *names)
        for keep in ((1.0,) if name.endswith("all") else keeps)
        for place in range(20)
    ]  # fmt: skip
    pairs = [(name, other) for name in names for other in counterparts(name, ["cover", *names])]
    groups = reporting.plain_groups(items)
    return reporting.summarise(rows, items, groups, pairs, ["all"], METRICS["exact"], bootstrapped=True)


def test_reports_say_what_was_encoded(tmp_path: Path) -> None:
    made = made_report()
    files = saving.save(made, tmp_path, ["all"], ["all"], "title")
    assert [file.name for file in files] == ["report.json", "report.md", "accuracy.png", "crops.png"]
    told = json.loads(files[0].read_text(), parse_constant=not_json)
    assert {(run["method"], run["encoded"]) for run in told["runs"]} == {
        ("all", 100), ("cover", 100), (CROPPED[0], 60), (CROPPED[1], 20), (CROPPED[2], 60)
    }  # fmt: skip
    compared = {(pair["first"], pair["second"]): pair["value"] for pair in told["paired"] if pair["keep"] == 0.1}
    assert compared[CROPPED[0], "cover"] == pytest.approx(-0.05)
    assert compared[CROPPED[0], CROPPED[2]] == pytest.approx(0.15)
    lines = [line.strip("| ").split(" | ") for line in files[1].read_text().splitlines() if line.startswith("| ")]
    heads, *rows = (line for line in lines if len(line) == len(lines[0]))
    assert heads[:4] == ["method", "keep", "encoded, %", "visual tokens"]
    shown = {(row[0], row[1]): row[2] for row in rows}
    assert shown["`crops:amount=0:cover`", "5%"] == "20" and shown["all tokens", "100%"] == "100"


def test_without_crops_nothing_is_said_of_them(tmp_path: Path) -> None:
    files = saving.save(made_report(()), tmp_path, ["all"], ["all"])
    assert [file.name for file in files] == ["report.json", "report.md", "accuracy.png"]
    assert "encoded" not in files[1].read_text()


def test_accuracy_over_crops() -> None:
    """A line per budget, its right end with all crops; what was drawn by chance is dashed."""
    figure = over_crops(made_report((*CROPPED, "crops:amount=0.5:all")), ["all", "not there"])
    assert figure is not None
    (axes,) = figure.axes
    drawn = {bars.get_label(): bars.lines[0] for bars in axes.containers}
    assert set(drawn) == {
        "cover, keep 0.1", "cover, keep 0.05", "cover, keep 0.1, by=random", "cover, keep 0.05, by=random", "all tokens"
    }  # fmt: skip
    line = drawn["cover, keep 0.1"]
    assert [float(x) for x in line.get_xdata()] == pytest.approx([20, 60, 100], abs=2)
    assert np.allclose(line.get_ydata(), [50, 85, 90]) and line.get_linestyle() == "-"
    drawn_by_chance = drawn["cover, keep 0.1, by=random"]
    assert drawn_by_chance.get_linestyle() == "--" and np.allclose(drawn_by_chance.get_ydata(), [70, 90])
    assert drawn_by_chance.get_color() == line.get_color() != drawn["cover, keep 0.05"].get_color()
    assert np.allclose(drawn["all tokens"].get_ydata(), [90, 95])
    assert over_crops(made_report(()), ["all"]) is None


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(checkpoint.save(tmp_path_factory.mktemp("checkpoint")))


@pytest.fixture
def suite(pictures: Path) -> Path:
    path = pictures / "asked.jsonl"
    items = [{"image": item.image, "question": item.question, "answer": "yes"} for item in SEVERAL]
    path.write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")
    return path


def test_the_command(folder: str, suite: Path, tmp_path: Path) -> None:
    asked = ["eval", "--suite", suite, "--model", folder, "--out", tmp_path / "out", "--max-new-tokens", 2]
    options = ["--methods", "cover,crops:amount=all:adafv", "--keep", "1.0,0.2", "--crops", "1,0.5,0,0.5:by=random"]
    told = json.loads(call(*asked, *options, "--json").stdout, parse_constant=not_json)
    shares = {run["method"]: run["encoded"] / run["total"] for run in told["runs"]}
    assert set(shares) == {
        "all", *(f"crops:amount={crops}:all" for crops in ("0.5", "0", "0.5:by=random")), "cover", "adafv",
        *(f"crops:amount={crops}:{name}" for crops in ("0.5", "0", "0.5:by=random") for name in ("cover", "adafv")),
    }  # fmt: skip
    assert shares["all"] == shares["cover"] == 1 > shares["crops:amount=0.5:cover"] > shares["crops:amount=0:cover"] > 0
    pairs = {(pair["first"], pair["second"]) for pair in told["paired"]}
    assert {("crops:amount=0:cover", "cover"), ("crops:amount=0.5:cover", "crops:amount=0.5:by=random:cover")} <= pairs
    assert {("adafv", "cover"), ("crops:amount=0:all", "all")} <= pairs
    assert not any(first == "adafv" and "crops" in second for first, second in pairs)
    assert (tmp_path / "out" / "crops.png").exists()
    shown = call(*asked, *options).stdout
    assert "encoded" in shown and "cover, crops 0.5:by=random" in shown
    call(*asked, "--methods", "crops:amount=2:cover", "--keep", "0.2", "--json")
    assert "encoded" not in call(*asked, "--methods", "cover", "--keep", "0.2").stdout


def test_the_commands_refuse(folder: str, suite: Path, tmp_path: Path) -> None:
    asked = ["eval", "--suite", suite, "--model", folder, "--out", tmp_path / "out"]
    assert "and so does --crops" in refused(*asked, "--methods", "crops:cover", "--crops", "0.5")
    assert "must be a fraction" in refused(*asked, "--crops", "1,1.5")
    assert "or name a method beside it" in refused(*asked, "--methods", "resize", "--keep", "0.9", "--crops", "1,0.5")
    assert "none of 0.1 exceeds" in refused(
        *asked, "--methods", "ask-again:first=0.2:cover", "--crops", "0.5", "--keep", "0.1"
    )
    assert not (tmp_path / "out").exists()
    for command in (["tune", suite], ["bench"], ["bench", "--serve"]):
        told = refused(*command, "--methods", "crops:amount=0.5:cover")
        assert "crops is not available: it is no method but which crops are encoded under one" in told
    assert "crops is not available" in refused("ask", suite.parent / "0.png", "What?", "--method", "crops:cover")
