"""Picture files as users have them, turned into what a processor expects: one upright, opaque, 8-bit RGB image."""

from __future__ import annotations

import io
import os
import re
import warnings
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

MAX_PIXELS = 178_956_970
"""Largest picture that is read, in pixels (half a GiB as RGB); Pillow's own limit against decompression bombs."""

_URL = re.compile(r"^[a-zA-Z][a-zA-Z0-9+.-]+:/")  # two letters at least before the colon: C:/ is a drive
_SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N")
_TURNED = (5, 6, 7, 8)
"""EXIF orientations that swap width and height."""
_UNBOUNDED = {"I": "32-bit integer", "F": "32-bit float"}


def load_image(path: str | os.PathLike[str]) -> Image.Image:
    """Reads a picture file as 8-bit RGB, upright.

    What is done on the way: EXIF rotation is applied; transparency is composited on white; 16 bits per channel are
    scaled to 8 (65535 becomes 255); CMYK is converted without its colour profile; of an animation or a file of several
    pages the first frame is taken, with a warning. Any size up to ``MAX_PIXELS`` is read, 1x1 and 20000x20 included.

    Args:
        path: a local file.

    Returns:
        An image of mode ``RGB``, pixels loaded, the file closed.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a URL, a directory, not an image, a truncated or damaged image, more than ``MAX_PIXELS`` pixels, or
            pixels without a fixed range (32-bit integer or float). The message names the cause and what to do.
    """
    file = checked_file(path, "image")
    name = os.fspath(path)
    return _decoded(file, name)


def decode_image(data: bytes, name: str) -> Image.Image:
    """Reads a picture from a file's bytes, as ``load_image`` does.

    Args:
        data: what the file holds.
        name: for messages.

    Raises:
        ValueError: as for ``load_image``.
    """
    if not data:
        raise ValueError(f"{name} is empty (0 bytes): nothing came")
    return _decoded(io.BytesIO(data), name)


def _decoded(file: Path | io.BytesIO, name: str) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # MAX_PIXELS is the limit, checked below
            opened = Image.open(file)
    except UnidentifiedImageError:
        raise ValueError(
            f"{name} is not an image that Pillow can read: convert it to PNG or JPEG (HEIC and SVG need converting too)"
        ) from None
    except Image.DecompressionBombError:
        raise ValueError(_too_large(name)) from None
    except OSError as error:
        if error.errno is None:  # the decoder's, not the system's
            raise ValueError(_damaged(name, error)) from None
        raise ValueError(f"{name} cannot be read: {error.strerror}") from None
    with opened:
        return _upright_rgb(opened, name)


def checked_file(path: str | os.PathLike[str], kind: str) -> Path:
    """A local file that has something in it.

    Args:
        path: what the user gave.
        kind: what it should be, for messages: "image" or "video".

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a URL, a directory or an empty file.
    """
    name = os.fspath(path)
    if _URL.match(name):
        raise ValueError(f"{name} is a URL, and Foveate opens no network connection for {kind}s: download it first")
    file = Path(name)
    if file.is_dir():
        raise ValueError(f"{name} is a directory: name the {kind} files in it")
    if not file.exists():
        raise FileNotFoundError(f"no such {kind} file: {name}")
    if file.stat().st_size == 0:
        raise ValueError(f"{name} is empty (0 bytes): copy or download it again")
    return file


def size_of(path: str | os.PathLike[str]) -> tuple[int, int]:
    """(width, height) that ``load_image`` would give a file, of which only the head is read.

    Raises:
        FileNotFoundError, ValueError: as for ``load_image``, as far as the head tells.
    """
    try:
        with Image.open(path) as opened:
            width, height = opened.size
            turned = opened.getexif().get(ExifTags.Base.Orientation) in _TURNED
            if opened.format != "TIFF":  # which Pillow turns itself, now or when it is loaded
                return (height, width) if turned else (width, height)
    except Exception:  # load_image says what is wrong, or goes on without broken EXIF data
        pass
    return load_image(path).size


def _upright_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(_too_large(name, image.size))
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # an MPO is a photo with its depth or gain map, not an animation
        warnings.warn(f"{name} has {frames} frames: only the first is used", stacklevel=3)
    try:
        image.load()
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise ValueError(_damaged(name, error)) from None
    try:
        image = ImageOps.exif_transpose(image)
    except Exception as error:  # a broken EXIF block raises anything from KeyError to struct.error
        warnings.warn(f"{name} has unreadable EXIF data ({error}): shown as stored, without rotation", stacklevel=3)
    return to_rgb(image, name)


def to_rgb(image: Image.Image, name: str) -> Image.Image:
    """A loaded picture as opaque 8-bit RGB; see ``load_image``.

    Raises:
        ValueError: pixels without a fixed range, or a mode that Pillow cannot convert.
    """
    if image.mode in _UNBOUNDED:
        raise ValueError(
            f"{name} holds {_UNBOUNDED[image.mode]} pixels, which have no fixed range from black to white: "
            "convert it to 8 or 16 bits per channel"
        )
    if image.mode in _SIXTEEN_BIT:
        return _scale_16_bit(image)
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(white, layer).convert("RGB")
    try:
        converted = image.convert("RGB")
    except ValueError as error:
        raise ValueError(f"{name} has colours of mode {image.mode} ({error}): convert it to RGB first") from None
    converted.info = {}
    return converted


def _scale_16_bit(image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.float32)
    transparent = image.info.get("transparency")
    grey = np.rint(values / 257.0).astype(np.uint8)  # 65535 / 257 = 255; convert("L") would clip at 255
    if isinstance(transparent, int):
        grey[values == transparent] = 255  # composited on white, as everywhere
    return Image.fromarray(grey).convert("RGB")


def _damaged(name: str, error: Exception) -> str:
    return f"{name} is truncated or damaged and cannot be decoded ({error}): copy or download it again"


def _too_large(name: str, size: tuple[int, int] | None = None) -> str:
    what = f"{size[0]}x{size[1]} pixels" if size else "too many pixels"
    return f"{name} has {what}, more than the {MAX_PIXELS} that are read: scale it down first"
