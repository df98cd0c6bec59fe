"""The fonts that documents are lettered with: of packages that are installed anyway, free to use, told by their bytes.

DejaVu comes with matplotlib (a free licence of Bitstream's), STIX too (SIL Open Font License 1.1), Aileron with Pillow
(CC0). ``NOTICE`` says so as well. Text is laid out by Pillow's basic engine everywhere: the other one is not in every
Pillow.
"""

from __future__ import annotations

import hashlib
import importlib.util
from functools import lru_cache
from io import BytesIO
from pathlib import Path

from PIL import ImageFont

#: Family -> (regular, bold): name of the file in matplotlib, "" for Pillow's own; one that has no bold stands twice.
FAMILIES: dict[str, tuple[str, str]] = {
    "dejavu sans": ("DejaVuSans.ttf", "DejaVuSans-Bold.ttf"),
    "dejavu serif": ("DejaVuSerif.ttf", "DejaVuSerif-Bold.ttf"),
    "dejavu mono": ("DejaVuSansMono.ttf", "DejaVuSansMono-Bold.ttf"),
    "stix": ("STIXGeneral.ttf", "STIXGeneralBol.ttf"),
    "aileron": ("", ""),
}

#: The families of training and of the test split, and those that training never sees.
SEEN = ("dejavu sans", "dejavu serif", "dejavu mono")
UNSEEN = ("stix", "aileron")

#: SHA-256 of the files: a font of other bytes would draw other pictures under the same name.
DIGESTS: dict[str, str] = {
    "DejaVuSans.ttf": "3fdf69cabf06049ea70a00b5919340e2ce1e6d02b0cc3c4b44fb6801bd1e0d22",
    "DejaVuSans-Bold.ttf": "b184b89e3c1075f22f6b71575b6fc20d4972b3cfd3b23322ca6fd596dcaef167",
    "DejaVuSerif.ttf": "107244956e9962b9e96faccdc551825e0ae0898ae13737133e1b921a2fd35ffa",
    "DejaVuSerif-Bold.ttf": "c3753f2ed6bc673f15846dc45addbeb3b9c872f32fb18fd53a21f1bef1ed7676",
    "DejaVuSansMono.ttf": "602ec86b8948cfcd956482fe64f94c36c867770149ef2f791d4613f443bcecb3",
    "DejaVuSansMono-Bold.ttf": "baada9a5172fe20886251aff0433fc38461912d5daf07287e7bee56620a8da96",
    "STIXGeneral.ttf": "167378031e2dddc6216d67819c9260e9a06ffc4c478e4e23cb98a6fd44b183c2",
    "STIXGeneralBol.ttf": "e8533dc7083fa346bda1933d60ea4a83b67d0945bceaf1b3541f82b4a0e2c6a0",
    "": "69853909b940023570964e29cffe30da95aea8de3627736b5cd15ab30143169f",
}


@lru_cache(maxsize=256)
def face(family: str, bold: bool, size: int) -> ImageFont.FreeTypeFont:
    """A font at a size in pixels.

    Raises:
        ModuleNotFoundError: the package that the font comes with is not installed.
        RuntimeError: the font is another than documents are drawn with, or Pillow was built without FreeType.
    """
    file = FAMILIES[family][bold]
    return ImageFont.truetype(BytesIO(_bytes(file)), size, layout_engine=ImageFont.Layout.BASIC)


@lru_cache(maxsize=8192)
def ink(family: str, bold: bool, size: int, text: str) -> tuple[int, int, int, int]:
    """The box of what a text blackens, pixels from where its baseline begins: (x0, y0, x1, y1)."""
    mask, (x, y) = face(family, bold, size).getmask2(text, mode="L", anchor="ls")
    x0, y0, x1, y1 = mask.getbbox()  # Pillow's own box of a text has its margins in it
    return x + x0, y + y0, x + x1, y + y1


@lru_cache(maxsize=len(DIGESTS))
def _bytes(file: str) -> bytes:
    data = _of_matplotlib(file) if file else _of_pillow()
    if hashlib.sha256(data).hexdigest() != DIGESTS[file]:
        raise RuntimeError(
            f"documents are drawn with a certain {file or 'Aileron'}, and the installed "
            f"{'matplotlib' if file else 'Pillow'} has another one: its pictures would not be those that results are "
            "about. Install the version that constraints.txt of the repository names"
        )
    return data


def _of_matplotlib(file: str) -> bytes:
    found = importlib.util.find_spec("matplotlib")  # finds it without importing it
    if found is None or found.origin is None:
        raise ModuleNotFoundError("documents are lettered with fonts inside matplotlib: pip install 'foveate[cli]'")
    path = Path(found.origin).parent / "mpl-data" / "fonts" / "ttf" / file
    if not path.is_file():
        raise RuntimeError(
            f"the installed matplotlib has no {path.name}: documents need one with its fonts, as `pip install "
            "matplotlib` brings it"
        )
    return path.read_bytes()


def _of_pillow() -> bytes:
    font = ImageFont.load_default(20)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise RuntimeError("documents need a Pillow built with FreeType")
    return font.font_bytes
