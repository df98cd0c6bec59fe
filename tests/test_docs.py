"""The pages say what is true: their Python runs, their tables and links lead somewhere."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer
from PIL import Image, ImageDraw

import foveate
from foveate.cli.app import app
from foveate.coverage import SUPPORTED
from foveate.serving.metrics import GAUGES, WORKER

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
NOT_RUN = "<!-- not run"


def python_blocks(page: Path) -> list[tuple[int, str, bool]]:
    """(line, code, whether it can run offline) of every Python block."""
    lines = page.read_text(encoding="utf-8").splitlines()
    blocks, start = [], None
    for number, line in enumerate(lines):
        if line == "```python":
            start = number
        elif line == "```" and start is not None:
            runs = not lines[start - 1].startswith(NOT_RUN)
            blocks.append((start + 2, "\n".join(lines[start + 1 : number]), runs))
            start = None
    return blocks


WITH_PYTHON = [page for page in PAGES if python_blocks(page)]


@pytest.fixture
def beside_a_photo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working directory with the pictures the pages speak of."""
    photo = Image.new("RGB", (300, 200), "lightsteelblue")
    ImageDraw.Draw(photo).ellipse((60, 50, 130, 120), fill="orange")
    photo.save(tmp_path / "photo.png")
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def forgetful() -> Iterator[None]:
    """What a page registers is gone after it."""
    registries: tuple[dict[str, Any], ...] = (foveate.METHODS, foveate.INSIDE_METHODS, foveate.WRAPPERS)
    before = [dict(known) for known in registries]
    yield
    for known, old in zip(registries, before, strict=True):
        known.clear()
        known.update(old)


@pytest.mark.parametrize("page", WITH_PYTHON, ids=lambda page: page.name)
@pytest.mark.usefixtures("beside_a_photo", "forgetful")
def test_python_of_a_page_runs(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks of a page run one after the other, as a reader would type them; the rest compiles."""
    module = ModuleType("page")  # dataclasses look their module up by name
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for line, code, runs in python_blocks(page):
        compiled = compile("\n" * (line - 1) + code, str(page), "exec")
        if runs:
            exec(compiled, vars(module))


def test_the_pages_hold_the_examples() -> None:
    """Guards the test above against a page whose blocks are no longer found."""
    assert {"README.md", "adding_a_pruner.md"} <= {page.name for page in WITH_PYTHON}


def table_column(page: Path, heading: str, column: int) -> set[str]:
    """The backquoted entries of a column of the first table under a heading."""
    section = page.read_text(encoding="utf-8").split(f"\n## {heading}\n", 1)[1]
    rows = [line for line in section.split("\n## ", 1)[0].splitlines() if line.startswith("|")][2:]
    return {name for row in rows for name in re.findall(r"`([^`]+)`", row.split("|")[column + 1])}


def test_readme_lists_every_method_by_its_class() -> None:
    readme = ROOT / "README.md"
    assert table_column(readme, "Methods", 0) == set(foveate.METHODS)
    assert table_column(readme, "Methods", 1) == {method.__name__ for method in foveate.METHODS.values()}


def test_readme_lists_every_family() -> None:
    assert table_column(ROOT / "README.md", "Model families", 1) == set(SUPPORTED)


def test_the_serving_page_lists_every_option_and_what_workers_count() -> None:
    page = ROOT / "docs" / "serving.md"
    options = typer.main.get_command(app).commands["serve"].params  # type: ignore[attr-defined]
    given = {name for option in options for name in option.opts if name.startswith("--")}
    assert {name.split()[0] for name in table_column(page, "Start", 0)} == given
    counted = {name if name in GAUGES else f"{name}_total" for name in WORKER}
    assert table_column(page, "Metrics", 0) >= {f"foveate_{name}" for name in counted}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_within_the_repository_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\((?!https?:)([^)#]*)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    missing = [target for target in targets if target and not (page.parent / target).exists()]
    assert not missing
