"""What can be imported by name is on a page of the reference, and what the pages quote is what the code says."""

from __future__ import annotations

import ast
import importlib
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml

import foveate
from tests.test_docs import PAGES, ROOT, python_blocks

REFERENCE = sorted((ROOT / "docs" / "reference").glob("*.md"))
NOTEBOOKS = sorted((ROOT / "examples" / "notebooks").glob("*.ipynb"))
WHOLE = (
    "foveate.show",
    "foveate.compare",
    "foveate.bundled",
    "foveate.serving",
    "foveate.pruners",
    "foveate.functional",
)
"""Modules of which every public name is for users."""


def documented() -> set[str]:
    """The names that pages of the reference have an entry for."""
    texts = [page.read_text(encoding="utf-8") for page in REFERENCE]
    return {name for text in texts for name in re.findall(r"^::: (\S+)$", text, re.MULTILINE)}


def found(name: str) -> Any:
    """The object of a dotted name."""
    module, _, rest = name.rpartition(".")
    try:
        return getattr(importlib.import_module(module), rest)
    except ModuleNotFoundError:
        return getattr(found(module), rest)


def own(module: ModuleType) -> set[str]:
    """The public names of a module: those it lists, else the functions and classes that it defines."""
    if hasattr(module, "__all__"):
        return set(module.__all__)
    return {
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and callable(value) and getattr(value, "__module__", "") == module.__name__
    }


def is_there(value: Any, objects: list[Any]) -> bool:
    return any(value is one for one in objects)


def test_every_entry_is_a_public_name_that_there_is() -> None:
    names = documented()
    assert len(names) > 150
    for name in names:
        assert not any(part.startswith("_") for part in name.split("."))
        assert found(name) is not None, name


def test_every_public_name_has_an_entry() -> None:
    entries = documented()
    assert {f"foveate.{name}" for name in foveate.__all__} - entries == {
        f"foveate.{module}" for module in ("bundled", "functional", "serving")
    }  # whose names have entries
    objects = [found(name) for name in entries]
    for name in WHOLE:
        module = importlib.import_module(name)
        missing = {
            one
            for one in own(module)
            if one not in ("check_path", "text_config") and not is_there(getattr(module, one), objects)
        }
        assert not missing, f"{name}: {missing}"


def imports(code: str) -> set[tuple[str, str]]:
    """(module, name) of what a piece of code imports from Foveate by ``from ... import ...``."""
    plain = "\n".join(line for line in code.splitlines() if not line.startswith("%"))
    nodes = [node for node in ast.walk(ast.parse(plain)) if isinstance(node, ast.ImportFrom)]
    return {
        (node.module, one.name)
        for node in nodes
        if node.module and node.module.startswith("foveate")
        for one in node.names
    }


def test_what_pages_and_notebooks_import_has_an_entry() -> None:
    """Whatever a reader is told to import can be looked up."""
    told: set[tuple[str, str]] = set()
    for page in PAGES:
        for _, code, _ in python_blocks(page):
            told |= imports(code)
    for path in NOTEBOOKS:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        for cell in cells:
            if cell["cell_type"] == "code":
                told |= imports("".join(cell["source"]))
    assert ("foveate.show", "overlay") in told
    objects = [found(name) for name in documented()]
    missing = []
    for module, name in sorted(told):
        value = getattr(importlib.import_module(module), name, None) or importlib.import_module(f"{module}.{name}")
        if not isinstance(value, ModuleType) and not is_there(value, objects):
            missing.append(f"{module}.{name}")
    assert not missing


def test_every_field_of_a_selection_is_described() -> None:
    """The site shows the docstring: of fields in ``Args``, of properties their own."""
    described = foveate.Selection.__doc__ or ""
    for field in foveate.Selection.__dataclass_fields__:
        assert re.search(rf"^ +{field}: ", described, re.MULTILINE), field
    for name, value in vars(foveate.Selection).items():
        if not name.startswith("_") and (callable(value) or isinstance(value, property)):
            assert (value.fget if isinstance(value, property) else value).__doc__, name


class Loader(yaml.SafeLoader):
    """Of mkdocs.yml, whose one tag names a function."""


Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, suffix, node: suffix)


def navigation(entries: list[Any]) -> set[str]:
    inner = [next(iter(one.values())) if isinstance(one, dict) else one for one in entries]
    return {page for one in inner for page in (navigation(one) if isinstance(one, list) else [one])}


def test_the_site_has_a_place_for_every_page() -> None:
    site = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), Loader)
    there = {str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")}
    there |= {f"notebooks/{path.stem}.md" for path in NOTEBOOKS} | {"index.md", "contributing.md", "changelog.md"}
    assert navigation(site["nav"]) - {"app.md", "leaderboard.md"} == there - {"app.md", "leaderboard.md"}


def spoken(path: Path) -> list[str]:
    """The texts of a module, f-strings whole, with a mark where a value stands."""
    texts = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.JoinedStr):
            texts.append("".join(one.value if isinstance(one, ast.Constant) else "\0" for one in node.values))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            texts.append(node.value)
    return texts


def test_quoted_messages_are_those_of_the_code() -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    quoted = re.findall(r"^> `(.*)`$", page, re.MULTILINE)
    assert len(quoted) > 15
    said = "\n".join(text for path in (ROOT / "src").rglob("*.py") for text in spoken(path)).replace("`", "")
    for message in quoted:
        parts = [part.strip(" .") for part in message.split("...")]
        assert [part for part in parts if part and part not in said] == [], message


def test_troubleshooting_asks() -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    headings = re.findall(r"^### (.*)$", page, re.MULTILINE)
    assert len(headings) > 30 and all(heading.endswith("?") for heading in headings)
