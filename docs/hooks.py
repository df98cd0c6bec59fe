"""What the site needs beyond its pages: the repository's own pages and notebooks, links that hold, formulas as MathML.

``make docs`` runs MkDocs with these hooks in strict mode: a link that leads nowhere ends it, wherever it is written,
the README and CONTRIBUTING included.
"""

from __future__ import annotations

import html
import json
import logging
import posixpath
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = "examples/notebooks"
BESIDE = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
"""Pages of the repository's root that are pages of the site as well, and their names there."""
NOT_YET = ("app.md", "leaderboard.md")
"""Pages that the navigation has a place for; where one is not there, its place is left out."""

log = logging.getLogger("mkdocs.plugins.foveate")
_LINK = re.compile(r"(\]\(|(?:src|srcset|href)=\")([^)\s\"#]*)(#[^)\s\"]*)?(?=[)\"])")
_FENCE = re.compile(r"(^```.*?^```$|`[^`\n]+`)", re.MULTILINE | re.DOTALL)
_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Leaves out of the navigation what is not there yet."""
    missing = {name for name in NOT_YET if not (Path(config.docs_dir) / name).exists()}
    config.nav = _without(config.nav or [], missing)
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the repository's own pages, and the notebooks as pages."""
    for name, page in BESIDE.items():
        files.append(File.generated(config, page, content=(ROOT / name).read_text(encoding="utf-8")))
    for path in sorted((ROOT / NOTEBOOKS).glob("*.ipynb")):
        files.append(File.generated(config, f"notebooks/{path.stem}.md", content=_as_page(path, config)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turns links that hold in the repository into such that hold on the site."""
    source = _source(page.file.src_uri)
    parts = _FENCE.split(markdown)  # code stands at the odd places
    parts[::2] = [
        _LINK.sub(lambda found: f"{found[1]}{_resolved(found[2], page, source, config)}{found[3] or ''}", part)
        for part in parts[::2]
    ]
    return "".join(parts)


def on_page_content(content: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Formulas as MathML, which browsers draw without a script from elsewhere."""
    return _FORMULA.sub(
        lambda found: convert(html.unescape(found[3]), display="inline" if found[2] == "(" else "block"), content
    )


def _without(entries: list[Any], names: set[str]) -> list[Any]:
    """The same navigation without some pages."""
    kept: list[Any] = []
    for entry in entries:
        inner = next(iter(entry.values())) if isinstance(entry, dict) else entry
        if isinstance(inner, list):
            kept.append({next(iter(entry)): _without(inner, names)})
        elif inner not in names:
            kept.append(entry)
    return kept


def _source(page: str) -> str:
    """Where in the repository a page of the site stands."""
    named = {there: here for here, there in BESIDE.items()}
    if page.startswith("notebooks/"):
        return f"{NOTEBOOKS}/{Path(page).stem}.ipynb"
    return named.get(page, f"docs/{page}")


def _site_page(path: str) -> str | None:
    """The site's page for a file of the repository; None where there is none."""
    if path in BESIDE:
        return BESIDE[path]
    if path.startswith(f"{NOTEBOOKS}/") and path.endswith(".ipynb"):
        return f"notebooks/{Path(path).stem}.md"
    return path.removeprefix("docs/") if path.startswith("docs/") else None


def _resolved(target: str, page: Page, source: str, config: MkDocsConfig) -> str:
    """A link's target, as the page must name it on the site; a warning, which ends a strict build, where it is dead."""
    if not target or re.match(r"[a-z]+:", target):
        return target
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
    there = ROOT / path
    if not there.exists():
        log.warning("%s: the link to %r leads nowhere", source, target)
        return target
    name = _site_page(path)
    if name is not None and there.is_file():
        return posixpath.relpath(name, posixpath.dirname(page.file.src_uri) or ".")
    return f"{config.repo_url.rstrip('/')}/{'tree' if there.is_dir() else 'blob'}/main/{path}"


def _as_page(path: Path, config: MkDocsConfig) -> str:
    """A notebook's cells as Markdown, its code as code; below its title, where it can be had."""
    parts = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        text = "".join(cell["source"]).strip()
        parts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
    where = f"{config.repo_url.rstrip('/')}/blob/main/{NOTEBOOKS}/{path.name}"
    title, _, rest = parts[0].partition("\n")
    note = f"*This page is the notebook [{path.name}]({where}); the tests run it on the bundled model.*"
    return "\n\n".join([title, note, rest.strip(), *parts[1:]])
