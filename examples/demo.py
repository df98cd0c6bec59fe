"""Asks about the shipped pictures with all visual tokens and with a tenth of them. ``make demo`` runs this.

The questions stand in ``pictures/questions.json``. Each is a call of the ``foveate`` command, printed before
it runs so that it can be repeated by hand. Overlays (what was kept) go to ``build/demo``.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parent
ROOT = EXAMPLES.parent
PICTURES = Path("examples/pictures")
OUT = Path("build/demo")


def main() -> int:
    questions = json.loads((ROOT / PICTURES / "questions.json").read_text(encoding="utf-8"))
    (ROOT / OUT).mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    overlays = []
    for number, entry in enumerate(questions, start=1):
        overlay = OUT / f"{number}-{Path(entry['image']).stem}.png"
        picture = PICTURES / entry["image"]
        arguments = ["ask", str(picture), entry["question"], "--compare", "--show", str(overlay)]
        print(f"\n$ foveate {shlex.join(arguments)}", flush=True)
        status = subprocess.run([sys.executable, "-m", "foveate", *arguments], cwd=ROOT).returncode
        if status:
            print(f"demo: that call ended with status {status}", file=sys.stderr)
            return status
        overlays.append(overlay)
    print(f"\n{len(overlays)} questions in {time.monotonic() - began:.0f} s. What was kept of each picture:")
    for overlay in overlays:
        if not (ROOT / overlay).is_file():
            print(f"demo: {overlay} was not written", file=sys.stderr)
            return 1
        print(f"  {overlay}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
