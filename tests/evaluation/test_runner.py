"""The runner asks everything once, whatever kills it in between, and never mixes what does not belong together."""

from __future__ import annotations

import json
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import pytest
from PIL import Image

import foveate
from foveate.evaluation import plots, runner, saving
from foveate.evaluation import report as reporting
from foveate.evaluation.metrics import METRICS
from foveate.evaluation.processes import Processes
from foveate.evaluation.runner import ROWS_FILE, SETTINGS_FILE, Transformers, evaluate, write_parquet
from foveate.evaluation.scenes import SCENES, Item
from foveate.evaluation.suites import Question
from foveate.pruners import get_pruner
from tests import checkpoint

METHODS = ["adafv", "random"]
KEEPS = [1.0, 0.5, 1]


def item(image: str, question: str, answer: str, kind: str, size: str, clutter: bool) -> Item:
    return Item(image, question, [answer], kind, size, clutter, [])


@pytest.fixture
def suite(tmp_path):
    rng = np.random.default_rng(0)
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name, size in (("a.png", (90, 50)), ("b.png", (60, 120))):
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(folder / name)
    items = [
        item("a.png", "Is there a cat?", "yes", "presence", "small", False),
        item("b.png", "Is there a dog?", "no", "presence", "none", True),
        item("a.png", "What color is the card?", "red", "attribute", "large", False),
        item("b.png", "How many?", "2", "counting", "small", True),
        item("b.png", "What number is on the sign?", "7", "reading", "small", True),
    ]
    return folder, items


@pytest.fixture(scope="module")
def loaded():
    return checkpoint.model(), checkpoint.processor()


def ask(loaded, suite, out, **options):
    folder, items = suite
    options = {"methods": METHODS, "keeps": KEEPS, "max_new_tokens": 2, **options}
    return evaluate(Transformers(*loaded), options.pop("items", items), out=out, folder=folder, **options)


def lines(out):
    return [json.loads(line) for line in (out / ROWS_FILE).read_text(encoding="utf-8").splitlines()]


def stable(rows):
    times = dict.fromkeys(("latency_ms", "encoder_ms", "selection_ms", "prefill_ms"), 0.0)
    return [replace(row, **times) for row in rows]


def test_every_question_with_every_method_once(loaded, suite, tmp_path):
    seen = []
    rows = ask(loaded, suite, tmp_path / "out", progress=lambda done, total: seen.append((done, total)))
    # all tokens once, not once per method; 1 (one token) is not 1.0 (all)
    assert Counter((row.method, repr(row.keep)) for row in rows) == {
        ("all", "1.0"): 5, ("adafv", "0.5"): 5, ("adafv", "1"): 5, ("random", "0.5"): 5, ("random", "1"): 5,
    }  # fmt: skip
    assert sorted(map(str, lines(tmp_path / "out"))) == sorted(str(vars(row)) for row in rows)
    assert seen[0] == (0, 25) and seen[-1] == (25, 25)
    for row in rows:
        expected = {"1.0": row.total, "0.5": -(-row.total // 2), "1": 1}[repr(row.keep)]
        assert row.kept == expected and row.latency_ms > 0


def test_answers_are_those_of_separate_questions(loaded, suite, tmp_path):
    folder, items = suite
    rows = ask(loaded, suite, tmp_path / "out", methods=["adafv"], keeps=[0.5])
    for row in rows:
        asked = items[int(row.item)]
        session = foveate.look(*loaded, Image.open(folder / asked.image))
        pruner = None if row.method == "all" else foveate.AdaFV(keep=row.keep)
        assert session.ask(asked.question, pruner, max_new_tokens=2, do_sample=False).text == row.answer


def test_a_kill_loses_nothing_and_a_rerun_repeats_nothing(loaded, suite, tmp_path, monkeypatch):
    whole = ask(loaded, suite, tmp_path / "whole", batch=2)

    class Killed(BaseException):
        pass

    def kill(done, total):
        if done >= 9:
            raise Killed

    out = tmp_path / "out"
    with pytest.raises(Killed):
        ask(loaded, suite, out, batch=2, progress=kill)
    before = lines(out)
    assert 9 <= len(before) < 25
    with (out / ROWS_FILE).open("a", encoding="utf-8") as file:
        file.write('{"item": "4", "method": "ada')  # the kill came in the middle of a line

    asked = []
    original = foveate.Session.ask_many

    def counted(session, questions, *args, **options):
        asked.extend(questions)
        return original(session, questions, *args, **options)

    monkeypatch.setattr(foveate.Session, "ask_many", counted)
    rows = ask(loaded, suite, out, batch=2)
    assert len(asked) == 25 - len(before)
    assert lines(out)[: len(before)] == before and len(lines(out)) == 25
    assert len({(row["item"], row["method"], repr(row["keep"])) for row in lines(out)}) == 25
    assert stable(rows) == stable(whole)


def test_a_finished_run_looks_at_no_picture(loaded, suite, tmp_path, monkeypatch):
    first = ask(loaded, suite, tmp_path / "out")
    monkeypatch.setattr(runner, "look", lambda *args, **options: pytest.fail("looked again"))
    assert ask(loaded, suite, tmp_path / "out") == first


def test_the_vision_tower_runs_once_per_picture(loaded, suite, tmp_path, monkeypatch):
    looked = []
    monkeypatch.setattr(runner, "look", lambda *args, **options: looked.append(1) or foveate.look(*args, **options))
    ask(loaded, suite, tmp_path / "out")
    assert len(looked) == 2


def test_methods_and_budgets_can_be_added_later(loaded, suite, tmp_path):
    first = ask(loaded, suite, tmp_path / "out", methods=["adafv"], keeps=[0.5])
    more = ask(loaded, suite, tmp_path / "out", methods=["adafv", "text"], keeps=[0.5, 0.25])
    assert len(more) == 25 and all(row in more for row in first)


@pytest.mark.parametrize(
    "changed",
    [{"settings": {"seed": 1}}, {"max_new_tokens": 3}],
    ids=["suite settings", "answer length"],
)
def test_other_settings_are_refused(loaded, suite, tmp_path, changed):
    ask(loaded, suite, tmp_path / "out", settings={"seed": 0}, methods=[])
    with pytest.raises(ValueError, match=r"other settings \(.*(seed: 0 then, 1 now|max_new_tokens: 2 then, 3 now)"):
        ask(loaded, suite, tmp_path / "out", **{"settings": {"seed": 0}, "methods": [], **changed})


def test_other_questions_are_refused(loaded, suite, tmp_path):
    ask(loaded, suite, tmp_path / "out", methods=[])
    with pytest.raises(ValueError, match="other settings .*items"):
        ask(loaded, suite, tmp_path / "out", methods=[], items=suite[1][:-1])


def test_another_model_is_refused(loaded, suite, tmp_path):
    ask(loaded, suite, tmp_path / "out", methods=[])
    weight = loaded[0].get_input_embeddings().weight
    weight.data[0, 0] += 1
    try:
        with pytest.raises(ValueError, match="other settings .*model"):
            ask(loaded, suite, tmp_path / "out", methods=[])
    finally:
        weight.data[0, 0] -= 1


def test_resume_can_be_ruled_out(loaded, suite, tmp_path):
    ask(loaded, suite, tmp_path / "out", methods=[])
    with pytest.raises(ValueError, match="holds answers already"):
        ask(loaded, suite, tmp_path / "out", methods=[], resume=False)


def test_damage_before_the_end_is_named_not_overwritten(loaded, suite, tmp_path):
    out = tmp_path / "out"
    ask(loaded, suite, out, methods=[])
    text = (out / ROWS_FILE).read_text(encoding="utf-8").splitlines()
    (out / ROWS_FILE).write_text("\n".join([text[0], "garbage", *text[2:]]) + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match="line 2 is damaged"):
        ask(loaded, suite, out, methods=[])


def test_rows_without_settings_are_refused(loaded, suite, tmp_path):
    out = tmp_path / "out"
    ask(loaded, suite, out, methods=[])
    (out / SETTINGS_FILE).unlink()
    with pytest.raises(ValueError, match="without settings.json"):
        ask(loaded, suite, out, methods=[])


def test_bad_arguments(loaded, suite, tmp_path):
    with pytest.raises(ValueError, match="no question"):
        ask(loaded, suite, tmp_path / "a", items=[])
    with pytest.raises(ValueError, match="unknown method 'nope'; known: adafv"):
        ask(loaded, suite, tmp_path / "a", methods=["nope"])
    with pytest.raises(ValueError, match="keep=0"):
        ask(loaded, suite, tmp_path / "a", keeps=[0])
    with pytest.raises(TypeError, match="list of names"):
        ask(loaded, suite, tmp_path / "a", methods="adafv")
    with pytest.raises(ValueError, match="leave it out"):
        ask(loaded, suite, tmp_path / "a", methods={"all": None})
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="is a file"):
        ask(loaded, suite, tmp_path / "file")
    assert not (tmp_path / "a").exists()


def test_items_with_ids_and_variants_of_methods(loaded, suite, tmp_path):
    @dataclass(frozen=True)
    class Plain:
        id: str
        image: str
        question: str
        answers: tuple[str, ...]

    items = [Plain(f"q{number}", one.image, one.question, tuple(one.answers)) for number, one in enumerate(suite[1])]
    variants = {"half": lambda keep, picture: foveate.AdaFV(keep=keep, min_share=0.5)}
    rows = ask(loaded, suite, tmp_path / "out", items=items, methods=variants, keeps=[0.5])
    assert {row.item for row in rows} == {"q0", "q1", "q2", "q3", "q4"} and {row.method for row in rows} == {
        "all",
        "half",
    }
    with pytest.raises(ValueError, match="different ids"):
        ask(loaded, suite, tmp_path / "b", items=[items[0], items[0]])


def rows_of(right: dict[tuple[str, float], list[bool]], items) -> list[runner.Row]:
    return [
        runner.Row(str(place), method, keep, "q", items[place].answers[0] if good else "?", 10, 100, 1.0)
        for (method, keep), answers in right.items()
        for place, good in enumerate(answers)
    ]


def test_report_weighs_presence_and_kinds(suite):
    items = [
        *[item("a.png", "q", "yes", "presence", "small", True)] * 4,
        *[item("a.png", "q", "no", "presence", "none", True)] * 2,
        *[item("b.png", "q", "red", "attribute", "large", False)] * 2,
        *[item("b.png", "q", "3", "counting", "small", False)] * 2,
    ]
    right = {
        ("all", 1.0): [True] * 10,
        ("adafv", 0.1): [True, True, True, True, True, False, True, False, False, False],
        ("text", 0.1): [True] * 6 + [False] * 4,
    }
    made = reporting.summarise(
        rows_of(right, items),
        items,
        reporting.world_groups(SCENES),
        [("adafv", "text"), ("adafv", "saliency")],
        reporting.PAIRED_GROUPS,
    )
    value = {name: made.cell("adafv", 0.1, name).estimate.value for name in made.groups}
    assert value["presence"] == pytest.approx((1 + 0.5) / 2) and value["attribute"] == 0.5 and value["counting"] == 0
    assert value["overall"] == pytest.approx((0.75 + 0.5) / 2)  # counting stands apart, reading was not asked
    assert value["pooled"] == pytest.approx(6 / 8)  # each question alike
    assert value["clutter"] == pytest.approx(0.75) and value["sparse"] == 0.5
    assert value["small in clutter"] == 1 and value["large"] == 0.5
    assert made.cell("adafv", 0.1, "small").estimate.count == 4  # counting is not a thing's own size
    assert "reading" not in made.groups
    assert made.cell("adafv", 0.1, "overall").relative == pytest.approx(0.625)
    pairs = {(pair.first, pair.second, pair.group): pair.difference for pair in made.pairs}
    assert pairs["adafv", "text", "overall"].value == pytest.approx(0.625 - 0.5)
    assert (pairs["adafv", "text", "overall"].first_only, pairs["adafv", "text", "overall"].second_only) == (1, 1)
    assert pairs["text", "all", "overall"].value == pytest.approx(-0.5)
    with pytest.raises(KeyError):
        made.cell("nope", 0.1, "overall")


def test_report_by_salience_takes_the_best_and_the_worst_ranked_third():
    items = [item(f"{n}.png", "q", "yes", "presence", "small", True) for n in range(7)]
    items += [
        item("0.png", "other", "no", "presence", "none", True),
        item("0.png", "n", "2", "counting", "small", True),
    ]
    salience = {(f"{n}.png", "q"): 0.1 * n for n in range(7)} | {("0.png", "n"): 0.9, ("0.png", "other"): 0.9}
    right = {("all", 1.0): [n >= 5 for n in range(7)] + [False, False]}
    groups = reporting.salience_groups(items, salience)
    made = reporting.summarise(rows_of(right, items), items, groups)
    salient, other = (made.cell("all", 1.0, name).estimate for name in ("salient", "not salient"))
    assert (salient.value, salient.count, other.value, other.count) == (1.0, 2, 0.0, 2)
    with pytest.raises(ValueError, match="analysis is of other questions"):
        reporting.salience_groups(items, {("9.png", "q"): 0.5})


def test_report_is_written_and_strict_json(suite, tmp_path):
    right = {("all", 1.0): [False] * 5, ("adafv", 0.1): [True] * 5}  # nothing to be relative to
    made = reporting.summarise(rows_of(right, suite[1]), suite[1], reporting.world_groups(SCENES))
    files = saving.save(made, tmp_path, ["overall", "small in clutter", "not there"], ["pooled", "not there"], "title")
    assert [file.name for file in files] == ["report.json", "report.md", "accuracy.png"]
    read = json.loads(files[0].read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert read["accuracy"][0]["relative"] is None
    assert Image.open(files[2]).size[0] > 500
    written = files[1].read_text().splitlines()
    assert (
        written[0] == "# title" and "| method | keep | visual tokens | per question | of all tokens | ms |" in written
    )
    adafv = next(line for line in written if line.startswith("| `adafv` | 10% |"))
    assert " 100.0 [" in adafv


def test_rows_of_written_tables_have_a_cell_for_every_head(suite):
    right = {("all", 1.0): [False] * 5, ("adafv", 0.1): [True] * 5, ("text", 0.1): [True, False, True, True, False]}
    groups = reporting.world_groups(SCENES)
    made = reporting.summarise(rows_of(right, suite[1]), suite[1], groups, [("adafv", "text")], ["pooled"])
    tables = [[]]
    for line in saving.tables(made, ["pooled", "overall"]).splitlines():
        if line.startswith("|"):
            tables[-1].append([cell.strip() for cell in line.strip("|").split("|")])
        elif tables[-1]:
            tables.append([])
    runs, pairs = (table for table in tables if table)
    for heads, _, *rows in (runs, pairs):
        assert rows and {len(row) for row in rows} == {len(heads)}
    told = [dict(zip(pairs[0], row, strict=True)) for row in pairs[2:]]
    assert [(row["group"], row["keep"], row["first"], row["second"]) for row in told] == [
        ("per question", "10%", "`adafv`", "`text`"),
        ("per question", "10%", "`adafv`", "all tokens"),
        ("per question", "10%", "`text`", "all tokens"),
    ]
    (pair,) = [pair for pair in made.pairs if (pair.first, pair.second) == ("adafv", "text")]
    assert float(told[0]["p"]) == pytest.approx(pair.difference.p_value, rel=0.05)
    assert told[0]["won:lost"] == f"{pair.difference.first_only}:{pair.difference.second_only}"


def test_a_budget_that_a_method_refuses_is_refused_before_anything_is_asked(loaded, suite, tmp_path):
    with pytest.raises(ValueError, match="above the ceiling"):
        evaluate(
            Transformers(*loaded), suite[1], ["adafv", "auto:floor=0.3:cover"], [0.5, 0.1], tmp_path / "out",
            folder=suite[0],
        )  # fmt: skip
    assert not list(tmp_path.glob("out/*"))


@pytest.fixture
def single(tmp_path):
    """Pictures with one question each: batches go across them."""
    rng = np.random.default_rng(1)
    folder = tmp_path / "pictures"
    folder.mkdir()
    questions = ["Is there a cat?", "What number is on the sign?", "What color is the card of the dog?", "How many?"]
    items = []
    for number, question in enumerate([*questions, "Is there a dog on the left?"]):
        size = ((90, 50), (60, 120), (56, 56))[number % 3]
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(folder / f"{number}.png")
        items.append(Question(f"{number}.png", question, ["yes"], f"q{number}", "first" if number < 2 else "second"))
    return folder, items


def test_batches_across_pictures_answer_as_one_by_one(loaded, single, tmp_path, monkeypatch):
    alone = ask(loaded, single, tmp_path / "alone", methods=["adafv", "saliency"], batch=1)
    monkeypatch.setattr(runner, "look", lambda *args: pytest.fail("a batch of one"))
    together = ask(loaded, single, tmp_path / "together", methods=["adafv", "saliency"], batch=2)
    assert stable(together) == stable(alone) and all(row.latency_ms > 0 for row in together)
    with pytest.raises(ValueError, match="batch: 2 then, 3 now"):  # seeds follow from the batches
        ask(loaded, single, tmp_path / "together", batch=3)
    with pytest.raises(ValueError, match="batch must be at least 1"):
        ask(loaded, single, tmp_path / "none", batch=0)


def test_methods_inside_the_llm_count_what_its_layers_held(loaded, suite, tmp_path):
    assert runner.factory("fastv")(0.6, 0) == get_pruner("fastv", keep=0.6)  # known by name, as the others
    assert runner.factory("fastv:budget=final:layer=1")(0.1, 7) == get_pruner(
        "fastv", keep=0.1, budget="final", layer=1
    )
    assert runner.factory("random")(0.1, 7).seed == 7 and runner.factory("random:seed=3")(0.1, 7).seed == 3
    with pytest.raises(ValueError, match="unknown budget 'least'"):
        runner.factory("fastv:budget=least")
    shallow = {"fastv": lambda keep, picture: get_pruner("fastv", keep=keep, layer=1)}  # the model has two layers
    rows = ask(loaded, suite, tmp_path / "out", methods=shallow, keeps=[0.6])
    inside = [row for row in rows if row.method == "fastv"]
    assert len(inside) == 5  # what the layers held on average, row ends of the first one included
    assert all(0.5 * row.total < row.kept < 0.75 * row.total for row in inside)


class Threads:
    """Processes as threads of this one, that meet at a barrier."""

    def __init__(self, size):
        self.barrier = threading.Barrier(size, timeout=60)
        barrier = self.barrier

        class Thread(Processes):
            def wait(self):
                barrier.wait()

        self.members = [Thread(rank, size) for rank in range(size)]

    def run(self, function):
        with ThreadPoolExecutor(len(self.members)) as pool:
            return [future.result() for future in [pool.submit(function, member) for member in self.members]]


@pytest.mark.parametrize("pictures", ["suite", "single"])
def test_processes_share_the_work_and_another_number_goes_on(loaded, tmp_path, request, pictures):
    asked = request.getfixturevalue(pictures)
    whole = ask(loaded, asked, tmp_path / "whole", batch=2)
    out = tmp_path / "out"
    first = Threads(2).run(lambda one: ask(loaded, asked, out, methods=["adafv"], batch=2, processes=one))
    files = sorted(path.name for path in out.glob("rows*"))
    assert files == ["rows-1.jsonl", "rows.jsonl"] and all((out / name).stat().st_size for name in files)
    assert stable(first[0]) == stable(first[1])
    with (out / "rows-1.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"item": "4", "method": "ada')  # a kill came in the middle of a line
    more = Threads(3).run(lambda one: ask(loaded, asked, out, batch=2, processes=one))
    assert stable(more[0]) == stable(whole)
    written = [line for path in out.glob("rows*.jsonl") for line in path.read_text(encoding="utf-8").splitlines()]
    keys = [(row["item"], row["method"], repr(row["keep"])) for row in map(json.loads, written)]
    assert len(keys) == len(set(keys)) == len(whole)
    assert stable(ask(loaded, asked, out, batch=2)) == stable(whole)  # one process alone reads them all


def test_progress_is_of_the_process_s_own_share(loaded, suite, tmp_path):
    seen = {0: [], 1: []}

    def run(one):
        told = seen[one.rank]
        ask(loaded, suite, tmp_path / "out", processes=one, progress=lambda done, total: told.append((done, total)))

    Threads(2).run(run)
    assert [told[0] for told in seen.values()] == [(0, 10), (0, 15)]  # a.png has two questions, b.png three
    assert [told[-1] for told in seen.values()] == [(10, 10), (15, 15)]


def test_parquet_has_a_row_per_answer(loaded, single, tmp_path):
    import pyarrow.parquet as pq

    rows = ask(loaded, single, tmp_path / "out", methods=["adafv"])
    table = pq.read_table(write_parquet(rows, single[1], METRICS["exact"], tmp_path / "answers.parquet")).to_pylist()
    assert len(table) == len(rows) == 15
    for line, row in zip(table, rows, strict=True):
        item = next(item for item in single[1] if item.id == row.item)
        assert (line["item"], line["image"], line["question"]) == (item.id, item.image, item.question)
        assert line["answers"] == ["yes"] and line["answer"] == row.answer and line["score"] == (row.answer == "yes")
        assert (line["kept"], line["total"], line["group"]) == (row.kept, row.total, item.group)
        assert (line["keep"], line["keep_tokens"]) == (
            (None, 1) if row.keep == 1 and row.kept == 1 else (row.keep, None)
        )


def test_a_plain_report_has_its_own_groups_and_any_metric(single, tmp_path):
    items = [Question(f"{n}.png", "q", ["yes" if n % 2 else "no"], str(n), "ab"[n // 6]) for n in range(12)]
    right = {("all", 1.0): [True] * 11 + [False], ("adafv", 0.1): [True] * 4 + [False] * 8}
    made = reporting.summarise(
        rows_of(right, items), items, reporting.plain_groups(items), [], ["all"], METRICS["yesno"], bootstrapped=True
    )
    assert made.groups == ("all", "a", "b")
    cell = made.cell("adafv", 0.1, "all")
    # yes is asked for six times; adafv says it twice, rightly, and "?" else
    assert cell.estimate.value == pytest.approx(2 * 2 / (2 + 6)) and cell.extras["precision"] == 1
    assert cell.estimate.low < cell.estimate.value < cell.estimate.high <= 1
    (pair,) = made.pairs
    assert pair.second == "all" and pair.difference.second_only == 7
    assert pair.difference.p_value == pytest.approx(2 / 2**3, abs=0.02)  # three pictures make a difference to F1
    told = made.as_dict()
    assert told["metric"] == "yesno" and "swapped" in told["note"] and told["accuracy"][0]["extras"]


@pytest.mark.parametrize("count", [10, 11])
def test_many_methods_are_drawn_in_rows_and_few_as_lines(suite, count):
    names = [f"method{number}" for number in range(count)]
    right = {("all", 1.0): [True] * 5, **{(name, 0.1): [n % count > 2] * 5 for n, name in enumerate(names)}}
    made = reporting.summarise(rows_of(right, suite[1]), suite[1], reporting.world_groups(SCENES))
    figure = plots.plot(made, ["pooled", "not there"])
    (axes,) = figure.axes
    labels = [label.get_text() for label in axes.get_yticklabels()]
    told = {text.get_text() for text in figure.legends[0].get_texts()}
    if count > plots.MANY:
        assert sorted(labels) == sorted(names) and told == {"keep 0.1", "all tokens"}
        assert set(labels[:3]) == {"method0", "method1", "method2"}  # the best stand on top
    else:
        assert told == {*names, "all tokens"}
