"""Every kind of picture file a user may bring: read as it looks, or refused with the cause and a remedy."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from PIL import Image

from foveate import images
from foveate.images import load_image

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def pixel(path, at=(0, 0)):
    image = load_image(path)
    assert image.mode == "RGB"
    return image.getpixel(at)


def test_rgb_is_read_as_it_is(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert np.array_equal(np.asarray(load_image(tmp_path / "a.png")), pixels)
    assert load_image(str(tmp_path / "a.png")).size == (30, 20)


@pytest.mark.parametrize("size", [(1, 1), (20000, 20), (20, 20000)])
def test_extreme_sizes_are_read(tmp_path, size):
    Image.new("RGB", size, RED).save(tmp_path / "a.png")
    image = load_image(tmp_path / "a.png")
    assert image.size == size and image.getpixel((size[0] - 1, size[1] - 1)) == RED


def test_not_an_image(tmp_path):
    (tmp_path / "a.png").write_text("not a picture at all")
    with pytest.raises(ValueError, match="not an image.*convert it to PNG or JPEG"):
        load_image(tmp_path / "a.png")


def test_empty_file(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(ValueError, match="is empty"):
        load_image(tmp_path / "a.png")


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "webp", "tiff"])
def test_truncated(tmp_path, suffix):
    pixels = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    whole = tmp_path / f"whole.{suffix}"
    Image.fromarray(pixels).save(whole)
    data = whole.read_bytes()
    cut = tmp_path / f"cut.{suffix}"
    cut.write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match="cut.*(truncated|damaged|not an image)"):
        load_image(cut)


def test_cmyk(tmp_path):
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=95)
    red, green, blue = pixel(tmp_path / "a.jpg")
    assert red > 240 and green < 15 and blue < 15


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path, suffix):
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(1, 256)
    Image.fromarray(ramp).save(tmp_path / f"a.{suffix}")
    assert Image.open(tmp_path / f"a.{suffix}").mode.startswith("I;16")
    read = np.asarray(load_image(tmp_path / f"a.{suffix}"))
    assert np.array_equal(read, np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2))


def test_sixteen_bit_colour(tmp_path):
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    row = b"\0" + struct.pack(">3H", 65535, 32896, 0)  # one pixel of 16 bits per channel, which Pillow cannot write
    header = struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(row)) + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    assert pixel(tmp_path / "a.png") == (255, 128, 0)


@pytest.mark.parametrize("mode", ["F", "I"])
def test_pixels_without_a_range_are_refused(tmp_path, mode):
    Image.new(mode, (4, 4), 1).save(tmp_path / "a.tiff")
    with pytest.raises(ValueError, match="no fixed range.*convert it to 8 or 16 bits"):
        load_image(tmp_path / "a.tiff")


def test_transparency_is_composited_on_white(tmp_path):
    rgba = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    rgba.putpixel((1, 0), (255, 0, 0, 255))
    rgba.save(tmp_path / "rgba.png")
    assert pixel(tmp_path / "rgba.png") == (255, 255, 255)
    assert pixel(tmp_path / "rgba.png", (1, 0)) == RED

    Image.new("LA", (1, 1), (0, 0)).save(tmp_path / "la.png")
    assert pixel(tmp_path / "la.png") == (255, 255, 255)

    palette = Image.new("P", (2, 1), 0)
    palette.putpalette([0, 0, 0, 0, 0, 255])
    palette.putpixel((1, 0), 1)
    palette.save(tmp_path / "p.png", transparency=0)
    assert pixel(tmp_path / "p.png") == (255, 255, 255)
    assert pixel(tmp_path / "p.png", (1, 0)) == BLUE

    keyed = Image.new("RGB", (2, 1), GREEN)
    keyed.putpixel((1, 0), RED)
    keyed.save(tmp_path / "key.png", transparency=GREEN)
    assert pixel(tmp_path / "key.png") == (255, 255, 255)
    assert pixel(tmp_path / "key.png", (1, 0)) == RED

    Image.fromarray(np.array([[7, 65535]], dtype=np.uint16)).save(tmp_path / "grey16.png", transparency=7)
    assert pixel(tmp_path / "grey16.png") == (255, 255, 255)


@pytest.mark.parametrize("mode,colour", [("L", 200), ("1", 1), ("P", 0), ("YCbCr", (76, 85, 255))])
def test_other_modes(tmp_path, mode, colour):
    Image.new(mode, (8, 8), colour).save(tmp_path / "a.tiff")
    expected = np.asarray(Image.new(mode, (8, 8), colour).convert("RGB")).astype(int)
    assert np.abs(np.asarray(load_image(tmp_path / "a.tiff")).astype(int) - expected).max() <= 2


def test_exif_rotation_is_applied(tmp_path):
    stored = Image.new("RGB", (40, 20), RED)
    stored.paste(BLUE, (0, 0, 20, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate 90 degrees clockwise to see it upright
    stored.save(tmp_path / "a.png", exif=exif)
    image = load_image(tmp_path / "a.png")
    assert image.size == (20, 40)
    assert image.getpixel((10, 5)) == BLUE and image.getpixel((10, 35)) == RED


def test_broken_exif_warns_and_shows_the_picture(tmp_path, monkeypatch):
    Image.new("RGB", (4, 4), RED).save(tmp_path / "a.png")

    def broken(image):
        raise SyntaxError("not a TIFF file")

    monkeypatch.setattr(images.ImageOps, "exif_transpose", broken)
    with pytest.warns(UserWarning, match="unreadable EXIF"):
        assert pixel(tmp_path / "a.png") == RED


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "tiff"])
def test_animated_takes_the_first_frame_and_says_so(tmp_path, suffix):
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, BLUE)]
    options = {"lossless": True} if suffix == "webp" else {}
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:], **options)
    with pytest.warns(UserWarning, match="2 frames: only the first"):
        assert pixel(tmp_path / f"a.{suffix}") == RED


def test_a_still_picture_warns_of_nothing(tmp_path):
    Image.new("RGB", (8, 8), RED).save(tmp_path / "a.gif")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert pixel(tmp_path / "a.gif") == RED


def test_directory(tmp_path):
    with pytest.raises(ValueError, match="is a directory"):
        load_image(tmp_path)


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such image file.*nowhere.png"):
        load_image(tmp_path / "nowhere.png")


@pytest.mark.parametrize(
    "url", ["https://example.org/a.png", "http://example.org/a.png", "s3://b/a.png", "file:/a.png"]
)
def test_urls_are_refused(url):
    with pytest.raises(ValueError, match="download it first"):
        load_image(url)


def test_too_many_pixels(tmp_path, monkeypatch):
    Image.new("L", (100, 100)).save(tmp_path / "a.png")
    monkeypatch.setattr(images, "MAX_PIXELS", 9_999)
    with pytest.raises(ValueError, match="100x100 pixels.*scale it down"):
        load_image(tmp_path / "a.png")


def test_decompression_bomb(tmp_path):
    Image.new("1", (20_000, 20_000)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="more than the 178956970.*scale it down"):
        load_image(tmp_path / "a.png")


def test_unreadable_file(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(b"x")

    def refuse(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(images.Image, "open", refuse)
    with pytest.raises(ValueError, match="cannot be read: Permission denied"):
        load_image(tmp_path / "a.png")
