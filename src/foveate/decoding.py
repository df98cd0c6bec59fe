"""Video files by PyAV, which brings FFmpeg: what the extra ``video`` is for."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import av
from PIL import Image

from foveate.images import MAX_PIXELS

_SHORT = 0.9
"""A file whose frames end before this part of what its head promises is truncated."""


class Decoded:
    """A video file whose packets have been looked at.

    Args:
        file: there is one.
        name: for messages.

    ``duration`` is from its first frame's begin to its last one's end, seconds.

    Raises:
        ValueError: it is no video, or damaged; the message says which.
    """

    def __init__(self, file: Path, name: str) -> None:
        self.file, self.name = file, name
        with self._opened() as (container, stream):
            starts, lengths = [], []
            for packet in container.demux(stream):
                if packet.size and not packet.is_discard:
                    starts.append(packet.pts)
                    lengths.append(packet.duration or 0)
            if not starts:
                raise ValueError(f"{name} holds no frames: copy or download it again")
            self._rate = _rate(stream)
            if any(start is None for start in starts):  # a bare stream, without a container that tells times
                self._first, self._unit = None, None
                if not self._rate:
                    raise ValueError(
                        f"{name} does not say when its frames are shown: put it into a container, such as MP4"
                    )
                self.duration = len(starts) / self._rate
                return
            order = sorted(range(len(starts)), key=lambda number: starts[number])
            self._first, self._unit = starts[order[0]], float(stream.time_base)
            gaps = [starts[b] - starts[a] for a, b in pairwise(order)]
            last = lengths[order[-1]] or (median(gaps) if gaps else 0)
            self.duration = (starts[order[-1]] + last - self._first) * self._unit or 1 / (self._rate or 25)
            promised = _promised(container, stream)
        # Some count from 0, and some from the first frame.
        if max(self.duration, self.duration + self._first * self._unit) < _SHORT * promised:
            warnings.warn(
                f"{name} ends after {self.duration:.1f} of the {promised:.1f} s that it announces: it is truncated or "
                "damaged, and what there is of it is used",
                stacklevel=4,
            )

    def shown(self) -> Iterator[tuple[float, Callable[[], Image.Image]]]:
        """Its frames in the order of their times: when each begins, seconds, and what makes a picture of it."""
        with self._opened() as (container, stream):
            stream.thread_type = "AUTO"
            for number, frame in enumerate(container.decode(stream)):
                if self._unit is None or self._first is None:
                    start = number / self._rate
                elif frame.pts is None:
                    raise ValueError(f"{self.name} does not say when frame {number} is shown: convert it to MP4 again")
                else:
                    start = (frame.pts - self._first) * self._unit
                yield start, partial(self._picture, frame)

    def _picture(self, frame: Any) -> Image.Image:
        if frame.is_corrupt:
            raise ValueError(f"{self.name} is damaged at {frame.time or 0:.1f} s: copy or download it again")
        picture: Image.Image = frame.to_image()
        # What the display matrix of a phone's video says, which is counterclockwise as Pillow's turns are.
        return picture.rotate(frame.rotation, expand=True) if frame.rotation else picture

    @contextmanager
    def _opened(self) -> Iterator[tuple[Any, Any]]:
        """The container and its video stream."""
        name = self.name
        try:
            with av.open(str(self.file)) as container:
                streams = [one for one in container.streams.video if not _is_cover(one)]
                if not streams:
                    kinds = sorted({str(one.type) for one in container.streams}) or ["nothing"]
                    raise ValueError(f"{name} has no video stream, only {' and '.join(kinds)}: give a file with moving "
                                     "pictures")  # fmt: skip
                stream = streams[0]
                if stream.codec_context is None:
                    raise ValueError(
                        f"{name} is truncated, or coded in a way that this FFmpeg cannot read: copy or download it "
                        "again, or convert it to H.264"
                    )
                if stream.width * stream.height > MAX_PIXELS:
                    raise ValueError(
                        f"{name} has frames of {stream.width}x{stream.height} pixels, more than the {MAX_PIXELS} that "
                        "are read: scale it down first"
                    )
                yield container, stream
        except av.FFmpegError as error:
            if isinstance(error, av.error.EOFError):
                raise ValueError(f"{name} holds no frames: copy or download it again") from None
            if isinstance(error, av.error.InvalidDataError):
                raise ValueError(
                    f"{name} is no video that FFmpeg can read, or truncated or damaged ({error.strerror}): copy or "
                    "download it again, or convert it to MP4"
                ) from None
            raise ValueError(f"{name} cannot be decoded ({error.strerror}): copy or download it again") from None


def _is_cover(stream: Any) -> bool:
    """Whether a video stream is the picture on a record's cover."""
    return bool(stream.disposition & av.stream.Disposition.attached_pic)


def _rate(stream: Any) -> float:
    """Frames in a second, as far as the file says; 0 where it does not."""
    told = stream.average_rate or stream.guessed_rate or stream.base_rate
    return float(told) if told else 0.0


def _promised(container: Any, stream: Any) -> float:
    """How long the file says that its video is, seconds; 0 where it does not."""
    if stream.duration is not None:
        return float(stream.duration * stream.time_base)
    # Else of the longest stream, which a sound may be.
    return float(container.duration / av.time_base) if container.duration and len(container.streams) == 1 else 0.0
