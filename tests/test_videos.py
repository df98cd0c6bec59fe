"""Videos as users have them: which frame is seen when, and one clear error for everything that is none."""

from __future__ import annotations

import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from foveate.videos import Video, is_video, load_video, sample_times

GREYS = [10, 60, 110, 160, 210, 250]
SIZE = (48, 32)


def grey(value: int) -> Image.Image:
    """One that is told apart by its mean, and has a white upper left corner."""
    pixels = np.full((*SIZE[::-1], 3), value, dtype=np.uint8)
    pixels[:8, :8] = 255
    return Image.fromarray(pixels)


def animation(path: Path, lengths: list[int], **options: Any) -> Path:
    """Frame by frame one of ``GREYS``, shown so many ms."""
    first, *others = map(grey, GREYS[: len(lengths)])
    first.save(path, save_all=True, append_images=others, duration=lengths, loop=0, **options)
    return path


def film(path: Path, starts: list[float], codec: str = "ffv1", pixels: str = "bgr0", noise: float = 0.0) -> Path:
    """A video file whose frames, noisy or not, are shown from some seconds on."""
    random = np.random.default_rng(0)
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=30)
        stream.width, stream.height = SIZE
        stream.pix_fmt = pixels
        stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        container.start_encoding()
        for start, value in zip(starts, GREYS * 20, strict=False):
            picture = np.asarray(grey(value)) + random.normal(0, noise, (*SIZE[::-1], 3))
            frame = av.VideoFrame.from_ndarray(picture.clip(0, 255).astype(np.uint8), format="rgb24")
            frame = frame.reformat(format=pixels)
            frame.pts, frame.time_base = round(1000 * start), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def seen(video: Video) -> list[int]:
    """Which of ``GREYS`` each frame is nearest to."""
    middles = [float(np.asarray(frame)[16:, 16:].mean()) for frame in video.frames]
    return [min(range(len(GREYS)), key=lambda number: abs(GREYS[number] - middle)) for middle in middles]


@pytest.mark.parametrize(
    "duration, asked, times",
    [
        (3.0, {}, [0, 0.5, 1, 1.5, 2, 2.5]),
        (2.9, {"fps": 1}, [0, 1, 2]),
        (0.04, {}, [0.005, 0.015, 0.025, 0.035]),
        (0.04, {"fps": 2}, [0]),
        (8.0, {"frames": 2}, [2, 6]),
    ],
)
def test_when_a_video_is_looked_at(duration: float, asked: dict[str, Any], times: list[float]) -> None:
    assert sample_times(duration, **asked) == pytest.approx(times)


def test_a_long_video_is_seen_evenly() -> None:
    times = sample_times(3600.0)
    assert len(times) == 64 and times[0] == pytest.approx(3600 / 128)
    assert np.allclose(np.diff(times), 3600 / 64)
    assert len(sample_times(3600.0, fps=1)) == 3600  # asked for, it is so


@pytest.mark.parametrize("suffix, options", [("apng", {"format": "PNG"}), ("gif", {}), ("webp", {"lossless": True})])
def test_frames_of_an_animated_picture_go_by_their_own_lengths(
    tmp_path: Path, suffix: str, options: dict[str, Any]
) -> None:
    path = animation(tmp_path / f"a.{suffix}", [100, 700, 200, 1000], **options)
    video = load_video(path, fps=4)
    assert video.duration == pytest.approx(2.0) and video.size == SIZE
    assert seen(video) == [0, 1, 1, 1, 3, 3, 3, 3]  # at 1 s the fourth begins
    assert np.asarray(video.frames[0])[:8, :8].min() > 240


def test_a_picture_stands_still(tmp_path: Path) -> None:
    grey(60).save(tmp_path / "a.png")
    video = load_video(tmp_path / "a.png")
    assert seen(video) == [1] * 4 and video.duration == pytest.approx(0.1)


def test_what_processors_are_told_is_when_frames_are_shown(tmp_path: Path) -> None:
    video = load_video(animation(tmp_path / "a.gif", [100, 700, 200, 1000]), frames=4)
    told = video.metadata
    assert [number / told["fps"] for number in told["frames_indices"]] == list(video.times) == [0.25, 0.75, 1.25, 1.75]
    assert told["total_num_frames"] / told["fps"] == told["duration"] == 2.0


@pytest.mark.parametrize("suffix, codec, pixels", [("mkv", "ffv1", "bgr0"), ("mp4", "mpeg4", "yuv420p")])
def test_frames_of_a_file_are_seen_when_they_are_shown(tmp_path: Path, suffix: str, codec: str, pixels: str) -> None:
    """Of a file of no constant rate, too: a frame lasts until the next."""
    path = film(tmp_path / f"a.{suffix}", [0, 0.1, 0.2, 1.2, 1.3, 3.0], codec, pixels)
    video = load_video(path, fps=4)
    assert video.size == SIZE and 3.0 < video.duration < 3.25
    starts = [0, 0.1, 0.2, 1.2, 1.3, 3.0]
    assert seen(video) == [max(n for n, start in enumerate(starts) if start <= time + 1e-6) for time in video.times]


def test_a_file_that_begins_late_begins_at_0(tmp_path: Path) -> None:
    video = load_video(film(tmp_path / "a.mkv", [5.0, 6.0, 7.0]), fps=1)
    assert seen(video)[:3] == [0, 1, 2] and video.times[0] == 0


def test_a_drawn_clip_reads_alike_by_either(tmp_path: Path) -> None:
    pytest.importorskip("av")
    from foveate.decoding import Decoded
    from foveate.videos import _at

    path = animation(tmp_path / "a.apng", [250] * 6, format="PNG")
    video = load_video(path, fps=4)
    other = list(_at(Decoded(path, "a").shown(), video.times, "a"))
    assert all(np.array_equal(one, two) for one, two in zip(video.frames, other, strict=True))


def test_phones_videos_stand_upright(tmp_path: Path) -> None:
    """A quarter turn clockwise, as a track's header says it."""
    path = film(tmp_path / "a.mp4", [0, 0.5, 1], "mpeg4", "yuv420p")
    data = bytearray(path.read_bytes())
    place = data.index(b"tkhd") + 4 + 40  # version 0: the matrix stands behind 40 bytes
    one = (1 << 16).to_bytes(4, "big")
    assert data[place : place + 4] == one
    minus, zero = (-(1 << 16)).to_bytes(4, "big", signed=True), bytes(4)
    data[place : place + 20] = zero + one + zero + minus + zero
    path.write_bytes(data)
    (frame, *_) = load_video(path).frames
    assert frame.size == SIZE[::-1]
    corners = np.asarray(frame.convert("L"))
    assert corners[:6, -6:].min() > 200 and corners[:6, :6].max() < 100  # upper left went to the upper right


def sound(path: Path) -> Path:
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
    return path


def cut(path: Path, part: float) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])
    return path


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def junk(path: Path) -> Path:
    pytest.importorskip("av")
    return written(path, b"hello world " * 99)


BAD: dict[str, tuple[Any, str]] = {
    "no video stream": (lambda at: sound(at / "a.wav"), "a.wav has no video stream, only audio"),
    "no frames": (lambda at: film(at / "a.mkv", []), "a.mkv holds no frames"),
    "no video": (lambda at: junk(at / "a.mp4"), "a.mp4 is no video that FFmpeg can read"),
    "truncated": (lambda at: cut(film(at / "a.mp4", [0, 1, 2], "mpeg4", "yuv420p"), 0.5), "a.mp4 is .*truncated"),
    "no animation": (lambda at: written(at / "a.gif", b"GIF"), "no animated picture"),
    "truncated animation": (lambda at: cut(animation(at / "a.webp", [100] * 4), 0.5), "a.webp is (truncated|no anim)"),
    "empty": (lambda at: written(at / "a.mp4", b""), r"a.mp4 is empty \(0 bytes\)"),
    "folder": (lambda at: at, "is a directory: name the video files in it"),
    "url": (lambda at: "https://example.org/a.mp4", "is a URL, and Foveate opens no network connection for videos"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_video_is_told(tmp_path: Path, case: str) -> None:
    make, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        load_video(make(tmp_path))


def test_a_file_that_breaks_off_is_told(tmp_path: Path) -> None:
    path = cut(film(tmp_path / "a.mkv", [number / 10 for number in range(40)]), 0.6)
    with pytest.warns(
        UserWarning, match=r"ends after \d\.\d of the \d\.\d s that it announces: it is truncated or damaged"
    ):
        load_video(path)


def test_a_damaged_file_is_told(tmp_path: Path) -> None:
    """Some bytes of its middle are others."""
    path = film(tmp_path / "a.mp4", [number / 4 for number in range(40)], "mpeg4", "yuv420p", noise=40.0)
    data = bytearray(path.read_bytes())
    begin = data.index(b"mdat")
    for place in range(begin + 2000, begin + 4000, 7):
        data[place] ^= 0x55
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"a\.mp4 is .*damaged"):
        load_video(path)


def test_bad_arguments(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no such video file: .*none\.mp4"):
        load_video(tmp_path / "none.mp4")
    path = animation(tmp_path / "a.gif", [100] * 3)
    for asked, message in (
        ({"frames": 3, "fps": 2}, "not both"),
        ({"frames": 0}, "at least 1, got 0"),
        ({"fps": -1.0}, "above 0, got -1.0"),
        ({"fps": float("nan")}, "above 0, got nan"),
    ):
        with pytest.raises(ValueError, match=message):
            load_video(path, **asked)
    with pytest.raises(ValueError, match="one size"):
        Video((grey(1), grey(2).resize((9, 9))), (0.0, 1.0), 2.0)
    with pytest.raises(ValueError, match="1 frames and 2 times"):
        Video((grey(1),), (0.0, 1.0), 2.0)


def test_without_pyav_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    monkeypatch.delitem(sys.modules, "foveate.decoding", raising=False)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'foveate\[video\]'"):
        load_video(written(tmp_path / "a.mp4", b"something"))
    assert seen(load_video(animation(tmp_path / "a.gif", [500] * 4), fps=2)) == [0, 1, 2, 3]


def test_videos_by_name() -> None:
    assert is_video("a/b.MP4") and is_video("c.apng") and not is_video("d.gif") and not is_video("e.png")
