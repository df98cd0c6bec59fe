"""Clips: what is drawn is where and when the questions say, and the answers follow from that."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from foveate.evaluation.clips import CLIPS, KINDS, make_sample
from foveate.evaluation.clips.composing import RATE, compose
from foveate.evaluation.clips.drawing import pixel_box, times_of
from foveate.evaluation.drawn import FilmedItem
from foveate.evaluation.lmms import write_task
from foveate.evaluation.scenes.world import COLORS
from foveate.evaluation.suites import drawn_suite
from foveate.videos import load_video

COUNT = 9


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    return drawn_suite(CLIPS, tmp_path_factory.mktemp("clips"), COUNT, 3, "test")


@pytest.fixture(scope="module")
def films(suite):
    """Every frame of every clip, (frames, height, width, 3)."""
    names = dict.fromkeys(item.image for item in suite.items)
    read = {name: load_video(suite.folder / name, fps=RATE) for name in names}
    return {name: np.stack([np.asarray(frame) for frame in one.frames]).astype(int) for name, one in read.items()}


def test_files_hold_what_was_drawn(suite, films):
    """Bit by bit, at their rate; the same arguments give the same bytes."""
    for index in range(0, COUNT, 5):
        drawing = CLIPS.draw(3, "test", index)
        name = f"test-3-{index:05d}.apng"
        assert np.array_equal(films[name], np.stack([np.asarray(frame) for frame in drawing.frames]))
        own = [item for item in suite.items if item.image == name]
        assert [(one.question, one.boxes, one.times) for one in own] == [
            (one.text, [list(box) for box in one.boxes], [list(time) for time in one.times])
            for one in drawing.questions
        ]
        assert all(one.clutter is (index % 2 == 1) for one in own)


def test_the_same_arguments_give_the_same_bytes(suite, tmp_path: Path):
    again = CLIPS.write(tmp_path, 2, 3)
    assert again.read_text("utf-8") == "".join(
        line + "\n" for line in (suite.folder / "clips.jsonl").read_text("utf-8").splitlines()
        if json.loads(line)["image"] < "test-3-00002"
    )  # fmt: skip
    for name in ("test-3-00000.apng", "test-3-00001.apng"):
        assert (tmp_path / name).read_bytes() == (suite.folder / name).read_bytes()
    assert CLIPS.draw(3, "style").picture.tobytes() != CLIPS.draw(3, "test").picture.tobytes()


@pytest.mark.parametrize("index", [0, 1, 4, 7])
def test_frames_change_where_somebody_does_something(index: int):
    """And nowhere else, but for the tick in the corner; whoever comes, goes, moves or turns is seen to."""
    sample = make_sample("test", 3, index)
    frames = [np.asarray(frame).astype(int) for frame in sample.frames]
    times = times_of(sample.play)
    assert len(frames) == sample.play.seconds * RATE
    for (one, before), (other, after) in pairwise(zip(frames, times, strict=True)):
        changed = (one != other).any(axis=2)
        assert changed[0, 0]
        changed[0, 0] = False
        expected = np.zeros_like(changed)
        for actor in sample.play.actors:
            states = [(actor.is_there(t), pixel_box(actor, t, sample.zoom), actor.color_at(t)) for t in (before, after)]
            if states[0] != states[1] and (states[0][0] or states[1][0]):
                for _, (x0, y0, x1, y1), _ in states:
                    expected[max(0, y0) : y1, max(0, x0) : x1] = True
                assert (changed & expected).any()
        assert not (changed & ~expected).any()


def test_actors_share_no_place():
    for seed in range(30):
        play = compose(np.random.default_rng(seed), clutter=seed % 2 == 1)
        assert play.actors and len({actor.name for actor in play.actors}) == len(play.actors)
        covered = np.zeros((play.height, play.width), dtype=int)
        for actor in play.actors:
            x0, y0, x1, y1 = actor.swept
            assert x0 >= 0 and y0 >= 0 and x1 <= play.width and y1 <= play.height
            covered[int(np.ceil(y0)) : int(y1), int(np.ceil(x0)) : int(x1)] += 1
            assert all(0 <= start < end <= play.seconds for start, end in actor.spells)
        assert covered.max() == 1


def spells(item: FilmedItem) -> int:
    """Unbroken stretches of time."""
    return 1 + sum(before[1] < after[0] for before, after in pairwise(sorted(item.times)))


def test_answers_follow_from_places_and_times(suite, films):
    checked: Counter[str] = Counter()
    for item in suite.items:
        film = films[item.image]
        seconds, width = len(film) / RATE, film.shape[2]
        boxes, times = np.array(item.boxes, dtype=float), np.array(item.times, dtype=float)
        (answer, *_), text = item.answers, item.question
        assert item.kind in KINDS and len(boxes) == len(times)
        if not len(boxes):
            assert item.kind == "shown" and answer == "no" and item.size == "none"
            continue
        assert (times[:, 1] <= seconds).all() and (boxes[:, 2] <= width + 1).all()
        if item.kind == "often":
            assert answer == str(spells(item))
        elif "first or in the second half" in text:
            assert answer == ("first" if times.min() < seconds / 2 else "second") and np.ptp(times) <= 1
        elif "on the left or on the right" in text:
            assert answer == ("left" if boxes[0, [0, 2]].mean() < width / 2 else "right")
        elif " move " in text:
            way = boxes[times[:, 0].argmax()] - boxes[times[:, 0].argmin()]
            words = {"left": -way[0], "right": way[0], "up": -way[1], "down": way[1]}
            assert words[answer] > 5 and min(abs(way[0]), abs(way[1])) < 1
        elif item.kind == "color":
            (x0, y0, *_), (start, end) = item.boxes[0], item.times[0]
            inside = film[int(start * RATE) : int(end * RATE), y0 + 2, x0 + 2]
            shade = inside / np.array(COLORS[answer])
            assert np.allclose(inside, inside[0]) and shade.max() < 1.1 and shade.min() > 0.85
        else:
            continue
        checked[item.kind] += 1
    assert set(checked) >= {"often", "when", "where", "color"}


def test_times_are_read_and_checked(suite, tmp_path: Path):
    assert CLIPS.read(suite.folder / "clips.jsonl") == suite.items
    entry = json.loads((suite.folder / "clips.jsonl").read_text("utf-8").splitlines()[0])
    for change in ({"times": []}, {"times": [[2, 1]]}, {"times": [[0, True]]}, {"times": [[0]]}):
        (tmp_path / "clips.jsonl").write_text(json.dumps({**entry, "boxes": [[0, 0, 9, 9]], **change}), "utf-8")
        with pytest.raises(ValueError, match=r"line 1: times must be 1 of \[start, end\] in seconds"):
            CLIPS.read(tmp_path / "clips.jsonl")


def test_clips_are_no_task_of_lmms_eval(suite):
    with pytest.raises(ValueError, match="the clips are no task of lmms-eval"):
        write_task(suite.folder, "clips")
