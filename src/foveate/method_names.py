"""Which methods there are, by name alone: a wrong one is told before torch is imported, which takes seconds."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from importlib.metadata import entry_points

NAMES: dict[str, None] = dict.fromkeys((
    "adafv", "cover", "saliency", "text", "fixed-mix", "agilepruner", "cdpruner", "dart", "divprune", "eadp", "evs",
    "fsr", "holov", "mmtok", "prumerge", "prumerge-plus", "prunesid", "scope", "tops", "vidcom2", "visionzip",
    "vispruner", "random", "uniform", "pool", "fastv", "pyramiddrop", "sparsevlm", "centered", "merged", "auto",
    "changing", "spread",
))  # fmt: skip
"""Of the methods of this package, in the order in which they are listed, and of those that were registered since."""

LACKING = {
    "trim": (
        "TRIM (arXiv 2409.10994) ranks patches by CLIP's image-text similarity, and that needs CLIP's text encoder and "
        "both its projections, which a vision-language checkpoint does not hold; 'text' and 'cdpruner' rank by the "
        "language model's own embeddings of the question"
    ),
    "ask-again": (
        "it is no method but a way to ask a session's questions, for `foveate eval` and `foveate tune` with "
        "transformers, `foveate ask --again`, and session.ask(question, foveate.AskAgain(...)); what runs the model "
        "once per question (`with pruner(model)`, pipelines, bench, a server) cannot ask again"
    ),
    "resize": (
        "it is no method but a baseline without any: a smaller picture of which the model makes fewer tokens, for "
        "`foveate eval` and `foveate bench` with a model or a shape; to resize pictures yourself, see `pixels=` and "
        "foveate.resized"
    ),
    "blind": (
        "it is no method but a control without any: the question without its picture, for `foveate eval` with "
        "transformers"
    ),
    "crops": (
        "it is no method but which crops are encoded under one, for `foveate eval` with transformers; elsewhere crops "
        "stand beside the method, as in `foveate ask --method cover --crops 0.5` and pruner(model, crops=0.5)"
    ),
}
"""Methods that people ask for by name, and what stands in their way."""

AUTO = "auto"
"""The wrapper that ``keep="auto"`` stands for."""

ENTRY_POINTS = "foveate.methods"
"""The group of entry points under which other packages name their methods."""


def require_known(name: str, known: Iterable[str]) -> None:
    """Raises ValueError for a method that is none of those known, with those that there are, or with what it lacks."""
    if name in LACKING:
        raise ValueError(f"{name} is not available: {LACKING[name]}")
    known = list(known)
    if name not in known:
        meant = f"; did you mean {near[0]!r}?" if (near := get_close_matches(name, known, 1)) else ""
        meant += "; options stand behind a method's name" if "=" in name else ""
        raise ValueError(f"unknown method {name!r}; known: {', '.join(known)}{meant}")


def check_name(text: str) -> None:
    """Raises ValueError where no method can have a name, options behind it left out. Methods of other packages are
    known only once these are imported: with any installed, nothing is said here."""
    name = text.split(":")[0]
    if name in LACKING or not entry_points(group=ENTRY_POINTS):
        require_known(name, NAMES)
