"""Make the artwork sheets of the scenes suite from unpacked npm packages (see SOURCES.md).

npm pack emoji-datasource-google@16.0.0 emoji-datasource-twitter@16.0.0      # then unpack each of them
python -m training.artwork --google google/package --twitter twitter/package
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from PIL import Image

from foveate.evaluation.scenes.artwork import SHEETS, SPRITE, sheet_path
from foveate.evaluation.scenes.world import SHORT_NAMES

COLUMNS = 8


def make_sheet(package: Path, vendor: str, out: Path) -> None:
    """Write one sheet of 64-pixel pictures, in the order of ``SHORT_NAMES``, as an optimised PNG."""
    entries = {entry["short_name"]: entry for entry in json.loads((package / "emoji.json").read_text("utf-8"))}
    rows = -(-len(SHORT_NAMES) // COLUMNS)
    sheet = Image.new("RGBA", (COLUMNS * SPRITE, rows * SPRITE))
    for i, short_name in enumerate(SHORT_NAMES.values()):
        picture = Image.open(package / "img" / vendor / str(SPRITE) / entries[short_name]["image"]).convert("RGBA")
        sheet.paste(picture, (i % COLUMNS * SPRITE, i // COLUMNS * SPRITE))
    out.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(out, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--google", type=Path, required=True, help="unpacked emoji-datasource-google")
    parser.add_argument("--twitter", type=Path, required=True, help="unpacked emoji-datasource-twitter")
    arguments = parser.parse_args()
    for style, (_, vendor) in SHEETS.items():
        make_sheet(getattr(arguments, vendor), vendor, sheet_path(style))


if __name__ == "__main__":
    main()
