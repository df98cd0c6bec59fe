"""Documents and screens, drawn: pages with blocks of text, receipts, screens of apps, slides. A seed makes each."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
SYLLABLES = [first + last for first in "bcdfglmnprstvwz" for last in "aeiou"]


def font(size: int, name: str = "DejaVuSans") -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(FONTS / f"{name}.ttf"), size)


def words(chance: random.Random, count: int) -> str:
    return " ".join("".join(chance.choices(SYLLABLES, k=chance.randint(1, 4))) for _ in range(count))


def paragraph(draw: ImageDraw.ImageDraw, chance: random.Random, box: tuple[int, int, int, int], size: int) -> int:
    """Lines of text that fill a box; returns where they end."""
    left, top, right, bottom = box
    face = font(size)
    while top + size < bottom:
        line = words(chance, 1)
        while draw.textlength(line, font=face) < right - left:
            line += " " + words(chance, 1)
        line = line.rpartition(" ")[0]
        draw.text((left, top), line, fill="black", font=face)
        top += round(1.4 * size)
    return top


def page(seed: int, dpi: int = 150, filled: float = 1.0) -> Image.Image:
    """An A4 page: 25 mm of margin, a heading, paragraphs, sometimes a table or a figure, a page number.

    Args:
        seed: of everything on it.
        dpi: pixels per inch.
        filled: how much of the height holds text; a last page or a letter is not full.
    """
    chance = random.Random(seed)
    width, height = round(8.27 * dpi), round(11.69 * dpi)
    margin, size = dpi, round(11 / 72 * dpi)
    picture = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(picture)
    draw.text((margin, margin), words(chance, 3).title(), fill="black", font=font(2 * size, "DejaVuSans-Bold"))
    top, end = margin + 4 * size, margin + round((height - 2 * margin) * filled)
    while top < end - 2 * size:
        deep = chance.randint(3, 9) * round(1.4 * size)
        if chance.random() < 0.15:
            box = (margin, top, width - margin, min(end, top + 8 * size))
            draw.rectangle(box, outline="black", fill=chance.choice(["white", "lightgray", "lightblue"]), width=2)
            top = box[3]
        else:
            top = paragraph(draw, chance, (margin, top, width - margin, min(end, top + deep)), size)
        top += size
    draw.text((width // 2, height - margin // 2), str(chance.randint(1, 300)), fill="black", font=font(size))
    return picture


def receipt(seed: int) -> Image.Image:
    """A till receipt, 80 mm of paper at 203 dots per inch."""
    chance = random.Random(seed)
    items = chance.randint(4, 25)
    face = font(24, "DejaVuSansMono")
    picture = Image.new("RGB", (576, 360 + 36 * items), "white")
    draw = ImageDraw.Draw(picture)
    draw.text((140, 40), words(chance, 2).upper(), fill="black", font=font(36, "DejaVuSansMono-Bold"))
    for number in range(items):
        name, price = words(chance, 2)[:22], f"{chance.uniform(0.5, 40):.2f}"
        draw.text((30, 140 + 36 * number), f"{name:<24}{price:>8}", fill="black", font=face)
    draw.text((30, 200 + 36 * items), f"{'TOTAL':<24}{chance.uniform(20, 200):>8.2f}", fill="black", font=face)
    return picture


def screen(seed: int, size: tuple[int, int] = (1920, 1080)) -> Image.Image:
    """An app's screen: a bar, a side panel on wide ones, rows or cards on a flat background, some of it empty."""
    chance = random.Random(seed)
    dark = chance.random() < 0.4
    back, panel, ink = ("#121212", "#1e1e1e", "#dddddd") if dark else ("#ffffff", "#f3f3f3", "#222222")
    width, height = size
    picture = Image.new("RGB", size, back)
    draw = ImageDraw.Draw(picture)
    small = font(26)
    draw.rectangle((0, 0, width, 90), fill=chance.choice(["#1a73e8", "#6200ee", panel]))
    draw.text((40, 26), words(chance, 2).title(), fill=ink, font=font(34))
    left = 0
    if width > height:
        left = 320
        draw.rectangle((0, 90, left, height), fill=panel)
        for number in range(chance.randint(3, 10)):
            draw.text((40, 130 + 60 * number), words(chance, 1), fill=ink, font=small)
    for number in range(chance.randint(2, 14)):
        top = 130 + 120 * number
        if top + 100 > height:
            break
        draw.ellipse((left + 40, top, left + 110, top + 70), fill=chance.choice(["#e57373", "#81c784", "#64b5f6"]))
        draw.text((left + 140, top), words(chance, chance.randint(2, 5)), fill=ink, font=small)
        draw.text((left + 140, top + 36), words(chance, chance.randint(2, 8)), fill="#888888", font=font(22))
    return picture


def slide(seed: int) -> Image.Image:
    """A slide: a title, bullets, sometimes a chart of bars, on one colour."""
    chance = random.Random(seed)
    picture = Image.new("RGB", (1920, 1080), chance.choice(["white", "#0b1f3a", "#fafafa"]))
    draw = ImageDraw.Draw(picture)
    ink = "white" if picture.getpixel((0, 0)) == (11, 31, 58) else "black"
    draw.text((120, 90), words(chance, 4).title(), fill=ink, font=font(72, "DejaVuSans-Bold"))
    for number in range(chance.randint(1, 6)):
        draw.text((160, 280 + 110 * number), "• " + words(chance, chance.randint(3, 7)), fill=ink, font=font(44))
    if chance.random() < 0.4:
        for number in range(5):
            bar = 1300 + 110 * number
            draw.rectangle((bar, 950 - chance.randint(50, 450), bar + 80, 950), fill="#4285f4")
    return picture


def scanned(picture: Image.Image, seed: int) -> Image.Image:
    """As a scanner or a camera gives it: noise of two grey levels, then JPEG."""
    noise = np.random.default_rng(seed).normal(0, 2, (picture.height, picture.width, 3))
    noisy = np.clip(np.asarray(picture, dtype=np.float32) + noise, 0, 255).round().astype(np.uint8)
    return stored(Image.fromarray(noisy))


def stored(picture: Image.Image) -> Image.Image:
    """Written as JPEG of quality 90 and read again."""
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=90)
    return Image.open(file).convert("RGB")


KINDS: dict[str, Callable[[int], Image.Image]] = {
    "page, full": page,
    "page, full, 300 dpi": lambda seed: page(seed, dpi=300),
    "page, half full": lambda seed: page(seed, filled=0.5),
    "page, a fifth full": lambda seed: page(seed, filled=0.2),
    "page, half full, as JPEG": lambda seed: stored(page(seed, filled=0.5)),
    "page, half full, scanned": lambda seed: scanned(page(seed, filled=0.5), seed),
    "receipt": receipt,
    "screen, 1920x1080": screen,
    "screen, 1080x2340": lambda seed: screen(seed, (1080, 2340)),
    "slide": slide,
}
