"""``foveate ask`` about a video, as a user meets it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

import foveate
from foveate.cli import watch as command
from foveate.videos import load_video
from foveate.watching import kept_by_moment, watch
from tests.test_cli import call, refused
from tests.test_videos import animation
from tests.test_watching import dynamic

QUESTION = "is there a cat ?"


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return animation(tmp_path / "clip.apng", [500] * 6, format="PNG")


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "load_model", lambda *_: dynamic())


def test_the_answer_is_that_of_a_session(clip: Path, tmp_path: Path) -> None:
    out = tmp_path / "kept.png"
    options = ["ask", clip, QUESTION, "--model", "dynamic", "--keep", 5, "--max-new-tokens", 3, "--show", out]
    video = load_video(clip)
    answer = watch(*dynamic(), video).ask(QUESTION, foveate.AdaFV(keep=5), max_new_tokens=3, do_sample=False)
    result = call(*options)
    assert result.stdout.strip() == (answer.text or "(the model gave an empty answer)")
    kept = kept_by_moment(answer.selections[0])
    assert f"6 frames of 3.0 s seen as 3 moments; 5 of {answer.selections[0].total} visual" in result.stderr
    assert f"{kept.count(0)} moments without any" in result.stderr and Image.open(out).width > 500
    told = json.loads(call(*options, "--json").stdout)
    assert told["answer"] == answer.text and told["visual_tokens"] == 5
    assert [one["kept"] for one in told["video"]["moments"]] == kept
    assert told["video"]["frames"] == list(video.times) and told["video"]["duration"] == 3.0


def test_frames_are_chosen(clip: Path, tmp_path: Path) -> None:
    told = json.loads(call("ask", clip, QUESTION, "--model", "dynamic", "--frames", 2, "--json").stdout)
    assert told["video"]["frames"] == [0.75, 2.25] and len(told["video"]["moments"]) == 1
    gif = animation(tmp_path / "clip.gif", [500] * 6)
    told = json.loads(call("ask", gif, QUESTION, "--model", "dynamic", "--fps", 1, "--json").stdout)
    assert told["video"]["frames"] == [0, 1, 2]
    film = tmp_path / "kept.webp"
    call("ask", gif, QUESTION, "--model", "dynamic", "--frames", 4, "--show", film)
    with Image.open(film) as shown:
        assert shown.n_frames == 4


def test_options_and_a_file_of_them(clip: Path, tmp_path: Path) -> None:
    """As for pictures; what cannot be drawn comes after the answer."""
    (tmp_path / "how.json").write_text('{"method": "cover", "options": {"power": 4.0}, "calibrate": true}')
    out = tmp_path / "kept.png"
    out.mkdir()
    options = ["ask", clip, QUESTION, "--model", "dynamic", "--config", tmp_path / "how.json", "--keep", "20%"]
    told = json.loads(call(*options, "--show", out, "--json", status=1).stdout)
    pruner = foveate.Cover(keep=0.2, power=4.0)
    answer = watch(*dynamic(), load_video(clip)).ask(
        QUESTION, pruner, calibrate=True, max_new_tokens=32, do_sample=False
    )
    assert told["answer"] == answer.text and told["visual_tokens"] == answer.visual_tokens
    assert (told["method"], told["keep"], told["options"]) == ("cover", 0.2, {"power": 4.0})
    assert told["show"] is None and "kept.png" in told["show_error"]
    (tmp_path / "how.json").write_text('{"layout": "released"}')
    assert "layout is for pictures: leave it out" in refused(*options)


def test_bad_input(clip: Path, tmp_path: Path) -> None:
    model = ["--model", "dynamic"]
    assert "the bundled model takes pictures only: give --model dynamic" in refused("ask", clip, QUESTION)
    assert "one video is asked about at a time" in refused("ask", clip, clip, QUESTION, *model)
    for option in (["--compare"], ["--crops", "0.5"], ["--pixels", "0.5"], ["--html", tmp_path / "a.html"]):
        assert f"{option[0]} is for pictures: leave it out" in refused("ask", clip, QUESTION, *model, *option)
    assert "read from a file, not from standard input" in refused("ask", "-", QUESTION, *model, "--frames", 3)
    assert "no such video file" in refused("ask", tmp_path / "none.mp4", QUESTION, *model)
    assert "not both" in refused("ask", clip, QUESTION, *model, "--frames", 3, "--fps", 1)
    assert "a contact sheet" in refused("ask", clip, QUESTION, *model, "--show", tmp_path / "a.svg")
    (tmp_path / "bad.mp4").write_bytes(b"nothing")
    assert "bad.mp4" in refused("ask", tmp_path / "bad.mp4", QUESTION, *model)
