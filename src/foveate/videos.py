"""Video files as users have them, turned into what a processor expects: upright RGB frames and when they are shown.

Animated pictures (APNG, GIF, WebP) are read with Pillow; other files need PyAV, which comes with the extra ``video``.
A video is sampled by time and not by the number of a frame, so that one whose frames are not equally long is seen as it
is shown.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image, ImageSequence, UnidentifiedImageError

from foveate.images import MAX_PIXELS, checked_file, to_rgb

SUFFIXES = frozenset({
    ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".m2ts", ".wmv", ".flv", ".3gp", ".ogv",
    ".y4m", ".apng",
})  # fmt: skip
"""What is a video by its name."""
ANIMATED = frozenset({".apng", ".png", ".gif", ".webp"})
"""What Pillow reads. By its name only ``.apng`` is a video; the others are where one asks for their frames."""

FPS = 2.0
"""Frames seen in a second unless asked otherwise, as Qwen-VL has it."""
LEAST = 4
"""Frames seen of the shortest video; one that is a single picture is seen so often."""
MOST = 64
"""Frames seen of the longest, unless a number is asked for."""
CLOCK = 1000
"""Parts of a second in which processors are told when frames are shown."""
_UNTOLD = 0.1
"""Seconds that a frame of an animated picture is shown which says 0, as in browsers."""
_CLOSE = 1e-6
"""Seconds within which a frame begins when it is asked for."""

Shown = Iterator[tuple[float, Any]]
"""Frames of a file in the order in which they are shown: when each begins, seconds, and itself."""


@dataclass(frozen=True, eq=False)
class Video:
    """Some frames of a video.

    Args:
        frames: RGB, upright, all of one size.
        times: when each is shown, seconds from the video's start, ascending.
        duration: of the whole video, seconds.
        name: of its file, for people.
    """

    frames: tuple[Image.Image, ...]
    times: tuple[float, ...]
    duration: float
    name: str = "the video"

    def __post_init__(self) -> None:
        if not self.frames or len(self.frames) != len(self.times):
            raise ValueError(f"a video needs a time per frame and one at least, got {len(self.frames)} frames and "
                             f"{len(self.times)} times")  # fmt: skip
        if len({frame.size for frame in self.frames}) > 1:
            raise ValueError(f"the frames of a video have one size, got {sorted({one.size for one in self.frames})}")

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of its frames, pixels."""
        return self.frames[0].size

    @property
    def metadata(self) -> dict[str, Any]:
        """What transformers' processors take as ``video_metadata``, on a clock of ``CLOCK`` parts of a second: the
        numbers of the frames are their times, whatever rate the file has."""
        return {
            "total_num_frames": max(1, round(self.duration * CLOCK)),
            "fps": float(CLOCK),
            "duration": self.duration,
            "width": self.size[0],
            "height": self.size[1],
            "frames_indices": [round(time * CLOCK) for time in self.times],
        }


def is_video(path: str | os.PathLike[str]) -> bool:
    """Whether a file is a video by its name."""
    return Path(path).suffix.lower() in SUFFIXES


def load_video(path: str | os.PathLike[str], *, frames: int | None = None, fps: float | None = None) -> Video:
    """Reads some frames of a video file.

    Args:
        path: a local file.
        frames: so many, from the middles of equally long parts of it.
        fps: so many a second, from its start on. Default: 2, but no fewer than 4 frames and no more than 64 in all,
            which are taken from the middles of equal parts then.

    Raises:
        ValueError: both are given or one is not positive; a URL, a folder, no video, a damaged one, one without a video
            stream or without frames, or more pixels than are read. The message names the cause and what to do.
        FileNotFoundError: there is no such file.
        ModuleNotFoundError: PyAV is not installed, and the file is no animated picture.
    """
    if frames is not None and fps is not None:
        raise ValueError("give the number of frames, or frames per second, not both")
    if frames is not None and (isinstance(frames, bool) or not isinstance(frames, int) or frames < 1):
        raise ValueError(f"frames must be a number of at least 1, got {frames!r}")
    if fps is not None and not (math.isfinite(fps) and fps > 0):
        raise ValueError(f"fps must be a number above 0, got {fps!r}")
    file = checked_file(path, "video")
    name = os.fspath(path)
    reader = _Animation(file, name) if file.suffix.lower() in ANIMATED else _opened(file, name)
    wanted = sample_times(reader.duration, frames, fps)
    found = list(_at(reader.shown(), wanted, name))
    return Video(tuple(found), wanted, reader.duration, name)


def sample_times(duration: float, frames: int | None = None, fps: float | None = None) -> tuple[float, ...]:
    """When a video of so many seconds is looked at; see ``load_video``."""
    if frames is None:
        count = math.ceil(duration * (FPS if fps is None else fps) - _CLOSE)
        if fps is not None or LEAST <= count <= MOST:
            return tuple(number / (fps or FPS) for number in range(max(1, count)))
        frames = min(max(count, LEAST), MOST)
    return tuple((number + 0.5) * duration / frames for number in range(frames))


def _at(shown: Shown, wanted: Sequence[float], name: str) -> Iterator[Image.Image]:
    """The frame that is shown at each of some ascending times, as a picture; one that is wanted twice is made once."""
    before: Any = None
    made: Image.Image | None = None
    left = list(wanted)
    for start, frame in shown:
        while left and before is not None and start > left[0] + _CLOSE:
            made = before() if made is None else made
            yield made
            left.pop(0)
        if not left:
            return
        before, made = frame, None
    if before is None:
        raise ValueError(f"{name} holds no frames: copy or download it again")
    made = before() if made is None else made
    yield from [made] * len(left)


class _Animation:
    """An animated picture, or one that stands still."""

    def __init__(self, file: Path, name: str) -> None:
        self.file, self.name = file, name
        try:
            with Image.open(file) as opened:
                if opened.width * opened.height > MAX_PIXELS:
                    raise ValueError(_too_large(name, opened.size))
                self.lengths = [_length(frame) for frame in ImageSequence.Iterator(opened)]
        except UnidentifiedImageError:
            raise ValueError(f"{name} is no animated picture that Pillow can read: convert it to MP4 or GIF") from None
        except (OSError, SyntaxError, EOFError) as error:
            raise ValueError(_damaged(name, error)) from None

    @property
    def duration(self) -> float:
        return sum(self.lengths)

    def shown(self) -> Shown:
        """Its frames. A picture is made of the file's one at once: Pillow goes on to the next in place."""
        start = 0.0
        with Image.open(self.file) as opened:
            for length, frame in zip(self.lengths, ImageSequence.Iterator(opened), strict=True):
                picture = to_rgb(frame.copy(), self.name)
                yield start, partial(_itself, picture)
                start += length


def _itself(picture: Image.Image) -> Image.Image:
    return picture


def _length(frame: Image.Image) -> float:
    frame.load()  # only then it says how long it is shown; and what is damaged is found
    told = float(frame.info.get("duration") or 0) / 1000
    return told if told > 0 else _UNTOLD


def _opened(file: Path, name: str) -> Any:
    try:
        from foveate.decoding import Decoded
    except ModuleNotFoundError as error:
        if error.name != "av":
            raise
        raise ModuleNotFoundError(
            f"reading {name} needs PyAV, which is not installed: pip install 'foveate[video]' (APNG, GIF and WebP need "
            "nothing)",
            name="av",
        ) from None
    return Decoded(file, name)


def _damaged(name: str, error: Exception) -> str:
    return f"{name} is truncated or damaged and cannot be decoded ({error}): copy or download it again"


def _too_large(name: str, size: Iterable[int]) -> str:
    return f"{name} has frames of {'x'.join(map(str, size))} pixels, more than the {MAX_PIXELS} that are read"
