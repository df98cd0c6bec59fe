"""What is on the page as code: Python for transformers, curl for a server."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath

from foveate.app.engine import ALL, GREEDY, Explorer, Side

MEDIA = {".png": "png", ".gif": "gif", ".webp": "webp", ".bmp": "bmp", ".tif": "tiff", ".tiff": "tiff"}
URL = "http://localhost:8000"
"""Where ``foveate serve`` listens by default."""


@dataclass(frozen=True)
class Source:
    """Where a picture came from.

    Args:
        file: its name.
        world, index: of a drawn one, which; of seed 0, split "test".
    """

    file: str
    world: str | None = None
    index: int = 0

    @classmethod
    def drawn(cls, world: str, index: int) -> Source:
        """Of a drawn picture."""
        return cls(f"{world}-{index}.png", world, index)


def as_python(explorer: Explorer, sources: Sequence[Source], question: str, side: Side) -> str:
    """A program that gives the same answer."""
    drawn = any(source.world is not None for source in sources)
    loaded = any(source.world is None for source in sources)
    pictures = ", ".join(
        f"load_image({source.file!r})"
        if source.world is None
        else f"get_world({source.world!r}).draw(0, index={source.index}).picture"
        for source in sources
    )
    options = "" if explorer.crops_given is None else f", crops={explorer.crops_given!r}"
    options += "" if explorer.pixels is None else f", pixels={explorer.pixels!r}"
    dtype = "" if explorer.dtype == "auto" else f", dtype={explorer.dtype!r}"
    method = "" if side.method == ALL else f"foveate.get_pruner({side.method!r}, keep={side.keep!r}), "
    greedy = ", ".join(f"{name}={value!r}" for name, value in GREEDY.items())
    lines = [
        "import foveate",
        *(["from foveate.evaluation.worlds import get_world"] if drawn else []),
        *(["from foveate.images import load_image"] if loaded else []),
        "from foveate.loading import load",
        "",
        f"model, processor = load({explorer.name!r}{dtype})",
        f"session = foveate.look(model, processor, [{pictures}]{options})",
        f"answer = session.ask({question!r}, {method}max_new_tokens={explorer.max_new_tokens}, {greedy})",
        "print(answer.text)",
    ]
    return "\n".join(lines) + "\n"


def as_curl(explorer: Explorer, sources: Sequence[Source], question: str, side: Side, url: str = URL) -> str:
    """A shell command that asks a server the same; above it, how to start one."""
    method = "adafv" if side.method == ALL else side.method
    keep = repr(side.keep)
    name = shlex.quote(explorer.name)
    lines = [
        "# The server, in another shell:",
        f"# foveate serve {name} --method {shlex.quote(method)} --keep {keep}{_options(explorer)}",
    ]
    for source in sources:
        if source.world is not None:
            draw = (
                "from foveate.evaluation.worlds import get_world; "
                f"get_world({source.world!r}).draw(0, index={source.index}).picture.save({source.file!r})"
            )
            lines.append(f"python -c {shlex.quote(draw)}")
    body = {
        "model": explorer.name,
        "messages": [{"role": "user", "content": [*map(_image, range(len(sources))), _text(question)]}],
        "max_tokens": explorer.max_new_tokens,
        "temperature": 0,
        "mm_processor_kwargs": {"foveate": {"method": method, "keep": side.keep}},
    }
    # Within a here-document the shell fills in the pictures; what it would take for its own is not its own.
    text = json.dumps(body, ensure_ascii=False, indent=2)
    for sign in "\\$`":
        text = text.replace(sign, f"\\{sign}")
    for number, source in enumerate(sources):
        file = shlex.quote(source.file if not source.file.startswith("-") else f"./{source.file}")
        kind = MEDIA.get(PurePath(source.file).suffix.lower(), "jpeg")
        filled = f"data:image/{kind};base64,$(base64 < {file} | tr -d '\\n')"
        text = text.replace(_mark(number), filled, 1)
    lines += [f"curl -s {url}/v1/chat/completions -H 'Content-Type: application/json' -d @- <<REQUEST", text, "REQUEST"]
    return "\n".join(lines) + "\n"


def _options(explorer: Explorer) -> str:
    crops = "" if explorer.crops_given is None else f" --crops {shlex.quote(explorer.crops_given)}"
    return crops + ("" if explorer.pixels is None else f" --pixels {explorer.pixels}")


def _mark(number: int) -> str:
    return f"\ue000picture {number}\ue000"


def _image(number: int) -> dict[str, object]:
    return {"type": "image_url", "image_url": {"url": _mark(number)}}


def _text(question: str) -> dict[str, object]:
    return {"type": "text", "text": question}
