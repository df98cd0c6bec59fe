"""Questions from anywhere: JSONL and data set folders end as pictures and questions, and bad ones are named."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import datasets
import numpy as np
import pytest
from PIL import Image

from foveate.evaluation.metrics import METRICS
from foveate.evaluation.suites import Columns, Source, as_answers, hub_suite, jsonl_suite

EXACT, YESNO = METRICS["exact"], METRICS["yesno"]


def picture(number: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(number).integers(0, 256, (40, 30, 3), dtype=np.uint8))


def write(folder, lines):
    (folder / "p").mkdir(exist_ok=True)
    for number in range(2):
        picture(number).save(folder / "p" / f"{number}.png")
    path = folder / "asked.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in lines) + "\n", encoding="utf-8")
    return path


def line(number=0, **fields):
    return {"image": f"p/{number}.png", "question": "Is there a cat?", "answers": ["no"], **fields}


def test_a_jsonl_is_read(tmp_path):
    lines = [line(), line(1, answers=None, answer=3), line(1, answers="red", kept="as it is")]
    suite = jsonl_suite(write(tmp_path, lines), EXACT, suffix="\nOne word.")
    assert suite.folder == tmp_path and [item.image for item in suite.items] == ["p/0.png", "p/1.png", "p/1.png"]
    assert [item.answers for item in suite.items] == [["no"], ["3"], ["red"]]
    assert suite.items[0].question == "Is there a cat?\nOne word." and [item.id for item in suite.items] == list("012")
    assert len(jsonl_suite(tmp_path / "asked.jsonl", EXACT, count=2).items) == 2


def test_fields_may_have_other_names(tmp_path):
    lines = [{"file": "p/0.png", "q": "What?", "gt": [{"answer": "a", "who": 1}], "n": 7, "kind": "easy"}]
    suite = jsonl_suite(write(tmp_path, lines), EXACT, Columns("file", "q", "gt", "n", "kind"))
    (item,) = suite.items
    assert (item.image, item.question, item.answers, item.id, item.group) == ("p/0.png", "What?", ["a"], "7", "easy")


@pytest.mark.parametrize(
    "bad,message",
    [
        ({"image": None}, r"line 2: no 'image' in it, which has: image, question, answers. .*--image-column"),
        ({"question": ""}, r"line 2: no 'question'.*--question-column"),
        ({"question": " "}, "line 2: question must be a text"),
        ({"answers": []}, r"line 2: no 'answers'.*--answers-column"),
        ({"answers": [None]}, "line 2: answers must be a text, a number or a list"),
        ({"image": "p/9.png"}, r"line 2: there is no picture .*p/9.png"),
        ({"answers": "a cat"}, "line 2: the metric yesno needs yes or no as the answer, got 'a cat'"),
    ],
)
def test_a_bad_line_is_named(tmp_path, bad, message):
    with pytest.raises(ValueError, match=message):
        jsonl_suite(write(tmp_path, [line(), line(**bad)]), YESNO)


def test_bad_files_are_named(tmp_path):
    path = write(tmp_path, [line(id=1), line(id=1)])
    with pytest.raises(ValueError, match="line 2: the id '1' stood in line 1 already"):
        jsonl_suite(path, EXACT, Columns(id="id"))
    with pytest.raises(ValueError, match="line 1: no 'nr' in it"):
        jsonl_suite(path, EXACT, Columns(id="nr"))
    path.write_text("[1]\n")
    with pytest.raises(ValueError, match="line 1: not a JSON object"):
        jsonl_suite(path, EXACT)
    path.write_text("{")
    with pytest.raises(ValueError, match="line 1: not JSON"):
        jsonl_suite(path, EXACT)
    path.write_text("\n")
    with pytest.raises(ValueError, match="no questions in it"):
        jsonl_suite(path, EXACT)
    with pytest.raises(FileNotFoundError, match="no such file of questions"):
        jsonl_suite(tmp_path / "none.jsonl", EXACT)


def test_answers_of_every_shape():
    assert as_answers("a") == ["a"] and as_answers(2) == ["2"] and as_answers(True) == ["yes"]
    assert as_answers(["a", 2]) == ["a", "2"] and as_answers([{"answer": "a", "id": 1}]) == ["a"]
    for bad in ([], None, [None], [["a"]], {"text": "a"}):
        with pytest.raises(ValueError, match="answers must be"):
            as_answers(bad)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A data set of four rows about two pictures, as ``save_to_disk`` leaves it."""
    data = datasets.Dataset.from_dict(
        {
            "photo": [picture(0), picture(1), picture(0), picture(0)],
            "ask": ["Is there a cat?", "Is there a dog?", "What color?", "How many?"],
            "truth": [1, 0, 1, 0],
            "kind": ["a", "b", "a", "b"],
        },
        features=datasets.Features(
            {
                "photo": datasets.Image(),
                "ask": datasets.Value("string"),
                "truth": datasets.ClassLabel(names=["no", "yes"]),
                "kind": datasets.Value("string"),
            }
        ),
    )
    path = tmp_path_factory.mktemp("data") / "set"
    datasets.DatasetDict({"validation": data}).save_to_disk(path)
    return path


COLUMNS = Columns("photo", "ask", "truth", None, "kind")


def test_a_data_set_folder_is_written_as_pictures_and_questions(folder, tmp_path):
    seen = []
    suite = hub_suite(
        str(folder),
        tmp_path,
        YESNO,
        COLUMNS,
        split="validation",
        progress=lambda done, total: seen.append((done, total)),
    )
    assert [item.answers for item in suite.items] == [["yes"], ["no"], ["yes"], ["no"]]  # names, not numbers
    assert [item.group for item in suite.items] == ["a", "b", "a", "b"] and seen[-1] == (4, 4)
    names = [item.image for item in suite.items]
    assert names[0] == names[2] == names[3] != names[1]  # a picture of several rows is one file
    assert len(list((tmp_path / "data" / "pictures").iterdir())) == 2
    with Image.open(suite.folder / names[1]) as read:
        assert np.array_equal(np.asarray(read), np.asarray(picture(1)))


def test_a_data_set_is_written_once(folder, tmp_path, monkeypatch):
    options = {"split": "validation", "count": 3}
    first = hub_suite(str(folder), tmp_path, EXACT, COLUMNS, **options)
    monkeypatch.setattr(datasets, "load_from_disk", lambda *args: pytest.fail("read again"))
    again = hub_suite(str(folder), tmp_path, EXACT, COLUMNS, suffix=" In a word.", **options)
    assert len(first.items) == 3 and [item.id for item in again.items] == [item.id for item in first.items]
    assert again.items[0].question == "Is there a cat? In a word."


def test_parquet_files_and_bytes_are_read_too(tmp_path):
    buffer = io.BytesIO()
    picture(1).save(buffer, "jpeg")
    data = datasets.Dataset.from_dict(
        {"image": [{"bytes": buffer.getvalue(), "path": None}], "question": ["What?"], "answer": ["red"]}
    )
    (tmp_path / "set").mkdir()
    data.to_parquet(tmp_path / "set" / "test-00000.parquet")
    suite = hub_suite(str(tmp_path / "set"), tmp_path / "out", EXACT)
    assert suite.items[0].answers == ["red"] and suite.items[0].image.endswith(".jpeg")
    assert (suite.folder / suite.items[0].image).read_bytes() == buffer.getvalue()  # byte for byte


def test_bad_data_sets_are_named(folder, tmp_path):
    with pytest.raises(ValueError, match="no split 'test'; it has: validation"):
        hub_suite(str(folder), tmp_path, EXACT, COLUMNS)
    with pytest.raises(ValueError, match=r"no column 'image'; it has: photo, ask, truth, kind. Give --image-column"):
        hub_suite(str(folder), tmp_path, EXACT, split="validation")
    with pytest.raises(ValueError, match="no column 'level'.*--group-column"):
        hub_suite(str(folder), tmp_path, EXACT, replace(COLUMNS, group="level"), split="validation")
    with pytest.raises(ValueError, match=r"cannot be loaded: .* give a folder that holds it"):
        hub_suite("nobody/no-such-data", tmp_path, EXACT)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="cannot be loaded"):
        hub_suite(str(tmp_path / "empty"), tmp_path, EXACT)
    pictures = {"image": [[picture(0), picture(1)]], "question": ["What?"], "answers": ["red"]}
    datasets.Dataset.from_dict(pictures).save_to_disk(tmp_path / "two")
    with pytest.raises(ValueError, match="row 0 of the data set: one picture per question is asked about, got 2"):
        hub_suite(str(tmp_path / "two"), tmp_path, EXACT)
    assert not (tmp_path / "data" / "questions.jsonl").exists()


@pytest.mark.parametrize(
    "options,message",
    [
        (
            {"suite": "pope"},
            "unknown suite 'pope'; known: scenes, documents, clips, the path of a .jsonl file, or hf:NAME",
        ),
        ({"suite": "a.jsonl", "metric": "bleu"}, "unknown metric"),
        ({"count": 3, "metric": "vqa"}, "scenes have their own questions and metric"),
        ({"count": 3, "split": "train"}, "unknown split 'train'"),
        ({}, "how many scenes"),
    ],
)
def test_impossible_sources_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Source(**options)


def test_results_have_a_folder_of_their_own():
    assert Source(count=300).slug() == "scenes-test-0-300"
    assert Source("x/asked.jsonl", 5).slug() == "asked-5" and Source("x/asked.jsonl").slug() == "asked"
    assert Source("hf:lab/POPE", split="test").slug() == "POPE-test"
