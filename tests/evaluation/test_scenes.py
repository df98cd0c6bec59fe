"""The scenes suite: files, fields, honesty of questions and tags, determinism, and bad input."""

from __future__ import annotations

import ast
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from foveate.evaluation import scenes as scenes_package
from foveate.evaluation.drawn import STREAMS
from foveate.evaluation.scenes import KINDS, SCENES, SIZES, Item
from foveate.evaluation.scenes.asking import ask
from foveate.evaluation.scenes.composing import LARGE, SMALL, Scene, Thing, compose
from foveate.evaluation.scenes.drawing import draw
from foveate.evaluation.scenes.files import make_sample
from foveate.evaluation.scenes.world import CLASSES, plural, with_article

COUNT = 40


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return SCENES.write(tmp_path_factory.mktemp("scenes"), COUNT, seed=5)


@pytest.fixture(scope="module")
def items(suite: Path) -> list[Item]:
    return SCENES.read(suite)


@pytest.fixture(scope="module")
def scenes() -> list[tuple[Scene, list]]:
    """Composed and asked about, not drawn."""
    out = []
    for index in range(400):
        rng = np.random.default_rng([9, index])
        scene = compose(rng, index % 2 == 1)
        out.append((scene, ask(scene, rng)))
    return out


def test_files_are_ordinary_pictures_of_several_shapes(suite: Path, items: list[Item]) -> None:
    names = {item.image for item in items}
    files = {path.name for path in suite.parent.iterdir()} - {suite.name}
    assert suite.name == "scenes.jsonl" and names == files and len(names) == COUNT
    assert {Path(name).suffix for name in names} == {".png", ".jpg"}
    sizes = set()
    for name in names:
        with Image.open(suite.parent / name) as picture:
            picture.load()
            assert picture.mode == "RGB"
            sizes.add(picture.size)
    assert len(sizes) > COUNT // 2
    assert min(w / h for w, h in sizes) < 0.8 and max(w / h for w, h in sizes) > 1.25


def test_lines_have_exactly_the_fields(suite: Path) -> None:
    for line in suite.read_text("utf-8").splitlines():
        assert list(json.loads(line)) == ["image", "question", "answers", "kind", "size", "clutter", "boxes"]


def test_half_of_the_pictures_are_cluttered(items: list[Item]) -> None:
    clutter = {item.image: item.clutter for item in items}
    assert sum(clutter.values()) == COUNT // 2


def test_boxes_lie_in_the_picture(suite: Path, items: list[Item]) -> None:
    for item in items:
        with Image.open(suite.parent / item.image) as picture:
            width, height = picture.size
        for x0, y0, x1, y1 in item.boxes:
            assert 0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height
        assert bool(item.boxes) == (item.size != "none")


def test_every_kind_is_asked_in_plain_english(items: list[Item]) -> None:
    assert {item.kind for item in items} == set(KINDS)
    assert {item.size for item in items} == set(SIZES)
    for item in items:
        assert item.question[0].isupper() and item.question.endswith("?") and "  " not in item.question


def test_presence_is_asked_as_often_with_yes_as_with_no(scenes: list) -> None:
    for _, questions in scenes:
        answers = Counter(q.answers[0] for q in questions if q.kind == "presence")
        assert answers["yes"] == answers["no"]


def test_answers_are_true(scenes: list) -> None:
    for scene, questions in scenes:
        names = Counter(thing.name for thing in scene.things)
        for q in questions:
            things = [scene.things[i] for i in q.things]
            if q.kind == "presence":
                asked = [
                    n for n in (*CLASSES, "sign") if f" {with_article(n)}" in q.text.rstrip("?").replace(" in the", "")
                ]
                assert any((names[n] > 0) == (q.answers[0] == "yes") for n in asked)
            elif q.kind == "attribute":
                assert q.answers == (things[0].color,) and names[things[0].name] == 1
            elif q.kind == "reading":
                assert q.answers[0] == str(things[0].number) and names["sign"] == 1
            elif q.kind == "counting":
                assert (
                    q.answers[0] == str(len(things)) == str(names[things[0].name]) and plural(things[0].name) in q.text
                )
            elif q.kind == "biggest":
                assert not scene.clutter and things[0].side == max(thing.side for thing in scene.things)
            elif q.kind == "position":
                x, y = things[0].center
                assert q.answers[0] in (
                    ("left" if x < scene.width / 2 else "right"),
                    ("top" if y < scene.height / 2 else "bottom"),
                )
            else:
                (ax, ay), (bx, by) = things[0].center, things[1].center
                word = next(word for word in ("left", "right", "above", "below") if word in q.text)
                true = {"left": ax < bx, "right": ax > bx, "above": ay < by, "below": ay > by}[word]
                assert q.answers[0] == ("yes" if true else "no")


def test_tags_are_honest(scenes: list) -> None:
    for scene, questions in scenes:
        for thing in scene.things:
            low, high = SMALL if thing.size == "small" else LARGE
            assert low <= thing.side <= high + 5
        for q in questions:
            sizes = {scene.things[i].size for i in q.things}
            assert q.size == ("none" if not sizes else "small" if "small" in sizes else "large")


def test_clutter_is_clutter(scenes: list) -> None:
    def mean(clutter: bool) -> float:
        return float(np.mean([len(scene.things) for scene, _ in scenes if scene.clutter is clutter]))

    assert mean(True) > 2 * mean(False)


def test_nothing_lies_on_a_grid(scenes: list) -> None:
    places = np.array([thing.box[:2] for scene, _ in scenes for thing in scene.things])
    histogram = np.histogram(places % 14, bins=7, range=(0, 14))[0]
    assert histogram.min() > 0.75 * histogram.mean() and histogram.max() < 1.25 * histogram.mean()


def test_relations_and_positions_are_balanced(scenes: list) -> None:
    for kind in ("relation", "position"):
        answers = Counter(q.answers[0] for _, questions in scenes for q in questions if q.kind == kind)
        assert min(answers.values()) > 0.6 * max(answers.values())


def test_same_arguments_same_bytes(tmp_path: Path) -> None:
    for name in "ab":
        SCENES.write(tmp_path / name, 6, seed=3, split="style")
    first, second = (sorted((tmp_path / name).iterdir()) for name in "ab")
    assert [path.name for path in first] == [path.name for path in second]
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(first, second, strict=True))


def test_splits_and_seeds_differ() -> None:
    things = [make_sample(split, seed, 0).scene.things for split in STREAMS for seed in (0, 1)]
    assert len(set(things)) == len(things)


def test_style_draws_the_same_things_otherwise() -> None:
    thing = Thing("dog", 100.0, (20.0, 20.0, 120.0, 120.0))
    scene = Scene(224, 168, False, (thing,))
    noto, twemoji = (np.asarray(draw(scene, 2.0, s, np.random.default_rng(0))[0], int) for s in ("noto", "twemoji"))
    inside = np.abs(noto - twemoji)[40:240, 40:240].mean()
    assert inside > 10 and np.abs(noto - twemoji)[:40].max() == 0


def test_progress_is_told(tmp_path: Path) -> None:
    told: list[int] = []
    SCENES.write(tmp_path, 3, seed=0, progress=told.append)
    assert told == [1, 2, 3]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"count": 0}, "count must be"),
        ({"count": 2.5}, "count must be"),
        ({"count": True}, "count must be"),
        ({"seed": -1}, "seed must be"),
        ({"split": "validation"}, "split must be one of test, style, train"),
    ],
)
def test_bad_arguments(tmp_path: Path, arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SCENES.write(tmp_path / "out", **{"count": 1, "seed": 0, **arguments})
    assert not (tmp_path / "out").exists()


def test_out_must_not_be_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="is a file"):
        SCENES.write(tmp_path / "file", 1, seed=0)


GOOD = {
    "image": "a.png", "question": "Is there a dog?", "answers": ["yes"], "kind": "presence", "size": "small",
    "clutter": False, "boxes": [[0, 0, 5, 5]],
}  # fmt: skip


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not JSON"),
        ("[]", "not a JSON object"),
        (json.dumps({k: v for k, v in GOOD.items() if k != "kind"}), r"missing \['kind'\]"),
        (json.dumps({**GOOD, "extra": 1}), r"unknown \['extra'\]"),
        (json.dumps({**GOOD, "kind": "colour"}), "kind must be one of"),
        (json.dumps({**GOOD, "size": "huge"}), "size must be one of"),
        (json.dumps({**GOOD, "clutter": 1}), "clutter must be"),
        (json.dumps({**GOOD, "answers": []}), "answers must be"),
        (json.dumps({**GOOD, "question": " "}), "question must be"),
        (json.dumps({**GOOD, "boxes": [[5, 0, 0, 5]]}), "boxes must be"),
    ],
)
def test_malformed_lines_are_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "scenes.jsonl"
    path.write_text(json.dumps(GOOD) + "\n" + line + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match=f"line 2: .*{message}"):
        SCENES.read(path)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "scenes.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="no questions"):
        SCENES.read(tmp_path / "scenes.jsonl")


def test_scenes_need_neither_torch_nor_transformers() -> None:
    folder = Path(scenes_package.__file__).parent
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.partition(".")[0] for name in names} & {"torch", "transformers"}, path
