"""``foveate methods``: what the registry of methods holds."""

from __future__ import annotations

import dataclasses
import inspect
import re
from typing import Any

from rich.markup import escape

from foveate.cli.console import print_json, print_wrapped, stdout
from foveate.pruners import InsidePruner, Method, Wrapper, known_methods, parse_method

MARKS = {"adafv": "the default", "cover": "ahead of or level with every other on the drawn scenes: docs/choosing.md"}
"""What is said of a method beside what it does."""
INDENT = " " * 4
KEEP_INSIDE = ", where keep is the mean over all layers"
_ARXIV = re.compile(r"arXiv:?\s*(\d{4}\.\d{4,5})")


def describe(method: type[Method]) -> dict[str, Any]:
    """A method's name, class, place, what it reads, its first docstring sentence and the paper named there."""
    text = inspect.getdoc(method) or ""
    first = " ".join(text.split("\n\n")[0].split())
    paper = _ARXIV.search(first)
    inside = issubclass(method, InsidePruner)
    wraps = issubclass(method, Wrapper)
    words = {"saliency": "saliency", "keys": "keys", "encoded": "encoder features", "text": "text"}
    reads = ["what its method reads"] if wraps else [w for key, w in words.items() if getattr(method, f"reads_{key}")]
    reads += ["the LLM's attention"] if inside else []
    return {
        "name": f"{method.name}:METHOD" if wraps else method.name,
        "class": method.__name__,
        "prunes": "inside the LLM" if inside else "before the LLM",
        "reads": reads,
        "does": first,
        "mark": MARKS.get(method.name),
        "paper": f"arXiv:{paper[1]}" if paper else None,
        "options": [f"{name}={value}" for name, value in options_of(method).items()],
    }


def options_of(method: type[Method]) -> dict[str, Any]:
    """A method's options beside ``keep``, and their defaults; of a wrapper its own."""
    return {
        one.name: None if one.default is dataclasses.MISSING else one.default
        for one in dataclasses.fields(method)
        if one.init and one.name not in ("method", "keep")
    }


def list_methods(as_json: bool) -> None:
    """Prints every registered method."""
    described = [describe(method) for method in known_methods().values()]
    if as_json:
        print_json({"methods": described})
        return
    for entry in described:
        does = re.sub(r" \((, )?(.*?)\)(?=[.:])", r" (\2)", _ARXIV.sub("", entry["does"])).replace(" ()", "")
        does = does.removeprefix("Inside the LLM, ")
        does = does[:1].upper() + does[1:]
        does += f" {entry['mark'][:1].upper()}{entry['mark'][1:]}." if entry["mark"] else ""
        facts = [
            entry["prunes"] + KEEP_INSIDE * (entry["prunes"] != "before the LLM"),
            f"reads {', '.join(entry['reads']) or 'the tokens alone'}",
            entry["paper"] or "",
        ]
        stdout().print(f"[bold]{escape(entry['name'])}[/]")
        print_wrapped(does, INDENT)
        print_wrapped("; ".join(filter(None, facts)), INDENT)
        if entry["options"]:
            print_wrapped(f"options: {', '.join(entry['options'])}", INDENT, INDENT + " " * 9)


def show_method(name: str, as_json: bool) -> None:
    """Prints a method's own words: what it does, where it deviates from its paper, its options and their defaults.

    Raises:
        ValueError: no such method.
    """
    name = name.removesuffix(":METHOD")
    methods = known_methods()
    if name not in methods:
        parse_method(name)  # says what there is
    method = methods[name.split(":")[0]]
    keep = next(one.default for one in dataclasses.fields(method) if one.name == "keep")
    options = {"keep": keep, **options_of(method)}
    text = inspect.getdoc(method) or ""
    if as_json:
        print_json({**describe(method), "text": text, "options": options})
        return
    stdout().print(f"[bold]{method.name}[/]\n\n{escape(text)}\n", highlight=False)
    stdout().print(escape("Defaults: " + ", ".join(f"{one}={value!r}" for one, value in options.items())))
