"""What was kept of a video, as a picture and as a film."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from foveate import show_video
from foveate.models.encoded import grid_geometry
from foveate.painting import DARK, LIGHT
from foveate.tokens import Selection
from foveate.videos import Video

WIDTH, HEIGHT, SIDE = 120, 80, 40
FRAMES = 5


@pytest.fixture
def video() -> Video:
    frames = [np.full((HEIGHT, WIDTH, 3), (200, 20, 40 * number), np.uint8) for number in range(FRAMES)]
    return Video(tuple(map(Image.fromarray, frames)), (0.0, 0.5, 1.0, 1.5, 2.5), 3.0)


@pytest.fixture
def selection() -> Selection:
    """Of three moments of 2 x 3 patches: two kept in the first, none in the second, one in the last."""
    boxes = torch.tensor([[0, 0, WIDTH, HEIGHT]]).expand(3, -1)
    geometry = grid_geometry([(2, 3)] * 3, boxes, (HEIGHT, WIDTH), torch.device("cpu"))
    return Selection(torch.tensor([0, 4, 14]), geometry)


def test_kept_patches_are_clear_and_outlined(video: Video, selection: Selection) -> None:
    """The outline lies on what was dropped: the two lines below a kept patch are there, where nothing is kept."""
    kept = {0: {(0, 0), (1, 1)}, 1: {(0, 0), (1, 1)}, 2: set(), 3: set(), 4: {(0, 2)}}
    for number, patches in kept.items():
        shown = np.asarray(show_video.marked(video, selection, number)).astype(int)
        for row in range(2):
            for column in range(3):
                patch = shown[SIDE * row : SIDE * (row + 1), SIDE * column : SIDE * (column + 1)]
                own = np.array([200, 20, 40 * number])
                assert bool((patch == own).all()) == ((row, column) in patches)
                assert bool((patch[4:-4, 4:-4] == own).any()) == ((row, column) in patches)
        for column in [column for row, column in patches if not row]:
            below = shown[SIDE : SIDE + 2, SIDE * column + 2 : SIDE * (column + 1) - 2]
            assert (below == np.array([DARK, LIGHT])[:, None]).all()
        assert (shown == LIGHT).all(axis=2).any() == bool(patches)


def test_a_sheet_has_a_cell_per_moment(video: Video, selection: Selection, tmp_path: Path) -> None:
    show_video.save(tmp_path / "a.png", video, selection, question="What moves?" * 20, answer="", method="adafv")
    sheet = np.asarray(Image.open(tmp_path / "a.png")).astype(int)
    found = 0
    for number in (0, 2, 4):  # the first frame of every moment, and no other
        found += bool((abs(sheet - [200, 20, 40 * number]).sum(axis=2) < 6).any())
    assert found == 2  # nothing of the second is kept
    assert not (abs(sheet - [200, 20, 40]).sum(axis=2) < 6).any()
    for suffix in ("jpg", "pdf"):
        show_video.save(tmp_path / f"a.{suffix}", video, selection)
        assert (tmp_path / f"a.{suffix}").stat().st_size > 1000


@pytest.mark.parametrize("suffix", ["gif", "webp", "apng"])
def test_a_film_is_shown_as_long(video: Video, selection: Selection, tmp_path: Path, suffix: str) -> None:
    show_video.save(tmp_path / f"a.{suffix}", video, selection)
    with Image.open(tmp_path / f"a.{suffix}") as film:
        lengths, whole = [], []
        for frame in ImageSequence.Iterator(film):
            frame.load()
            lengths.append(frame.info["duration"])
            whole.append(np.asarray(frame.convert("RGB")).astype(int))
    assert lengths == [500, 500, 500, 1000, 500]
    for number, picture in enumerate(whole):
        assert abs(picture - np.asarray(show_video.marked(video, selection, number))).mean() < 8


def test_what_cannot_be_shown(video: Video, selection: Selection, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="suffixes png, jpg, jpeg, pdf .a contact sheet., gif, webp, apng .a film."):
        show_video.save(tmp_path / "a.svg", video, selection)
    with pytest.raises(FileNotFoundError, match="the folder .* does not exist"):
        show_video.check_path(tmp_path / "none" / "a.png")
    with pytest.raises(ValueError, match="no frame 5 among the video's 5"):
        show_video.marked(video, selection, 5)
