"""What is known of model types, in one place: for ``foveate models``, for the pages and for the tests."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import transformers
from packaging.version import Version
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from foveate.inside import FAMILIES as INSIDE
from foveate.loading import check_family, declared_type, is_folder
from foveate.models import FAMILIES
from foveate.models.base import Family
from foveate.models.generic import Generic
from foveate.models.left_out import INSTEAD, NOT_APPLICABLE, REASONS, close_to
from foveate.pruners import InsidePruner, Wrapper, known_methods
from foveate.readable import READINGS, unread_by
from foveate.serving.family import family_of
from foveate.serving.plugin import serves

SUPPORTED: dict[str, type[Family]] = {**FAMILIES, **dict.fromkeys(Generic.checkpoints, Generic)}
"""By model type, the adapter that takes it: one of its own, or the generic one where that is tested."""

_ALIKE = 4
"""Letters that the names of two checkpoints share at their beginning, if one is to be mentioned beside the other."""
_NO_TYPE = "says no model_type: a checkpoint's config.json names one"


@dataclass(frozen=True)
class Coverage:
    """Of the types in the installed transformers' image-text-to-text mapping, those that are pruned.

    Args:
        supported: types with an adapter.
        applicable: types whose pictures are tokens of a prompt; the supported ones among them.
        unknown: types about which nothing is known.
    """

    supported: frozenset[str]
    applicable: frozenset[str]
    unknown: frozenset[str]


def coverage() -> Coverage:
    """How the installed transformers is covered."""
    there = frozenset(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)
    return Coverage(there & SUPPORTED.keys(), there - NOT_APPLICABLE, there - SUPPORTED.keys() - REASONS.keys())


def in_transformers(model_type: str) -> bool:
    """Whether the installed transformers has a type."""
    return model_type in CONFIG_MAPPING_NAMES


def checkpoint_of(model_type: str) -> tuple[str, str]:
    """The name of a released checkpoint of a supported type, and what one must know of it; "" where there is none."""
    name, _, note = SUPPORTED[model_type].checkpoints.get(model_type, "").partition(" (")
    return name, note.removesuffix(")")


def refused_methods(family: type[Family], model_type: str) -> dict[str, str]:
    """The methods that cannot be used with models of a type, and why. What holds another reads what that one does."""
    found = {}
    for name, method in known_methods().items():
        if issubclass(method, Wrapper):
            continue
        unread = unread_by(family, method)
        if unread is not None:
            found[name] = f"reads {READINGS[unread]}: {family.unread[unread]}"
        elif issubclass(method, InsidePruner) and model_type not in INSIDE:
            found[name] = f"prunes inside the LLM, which works with {', '.join(INSIDE)}"
    return found


def described(model_type: str) -> dict[str, Any]:
    """What one may want to know of a supported type before loading a model of it."""
    family = SUPPORTED[model_type]
    name, note = checkpoint_of(model_type)
    return {
        "model_type": model_type,
        "adapter": family.title,
        "checkpoint": name or None,
        "note": note or None,
        **family.traits(),
        "vllm": "yes" if serves(model_type) else "no",
        "unread": dict(family.unread),
        "refused_methods": refused_methods(family, model_type),
    }


@dataclass(frozen=True)
class Verdict:
    """Whether models of a type can be pruned with what is installed.

    Args:
        model_type: the type.
        supported: whether they can.
        reason: if not, why, and what to do; if so, what is still to be seen, or None.
        about: ``described``, where there is an adapter.
    """

    model_type: str
    supported: bool
    reason: str | None = None
    about: dict[str, Any] | None = None


def verdict(source: str) -> Verdict:
    """What is said of a model type, of a checkpoint folder or config.json, or of a checkpoint that is listed here.

    Raises:
        FileNotFoundError: no such folder or file.
        ValueError: no such type, a file that is no config, a hub id that is not listed.
    """
    if source in CONFIG_MAPPING_NAMES or source in SUPPORTED or source in REASONS or source in INSTEAD:
        return _of_type(source)
    listed = [name for name in SUPPORTED if checkpoint_of(name)[0] == source]
    if listed and not Path(source).exists():
        return _of_type(listed[0])
    if is_folder(source) or source.endswith(".json"):
        path = Path(source).expanduser()
        model_type = declared_type(path)
        if not model_type:
            raise ValueError(f"{source} {_NO_TYPE}")
        return _of_checkpoint(source, path, model_type)
    if "/" in source:
        raise ValueError(
            f"{source!r} is no folder, and nothing is looked up on a hub: give the model_type that its config.json has"
            f"{_kin(source)}"
        )
    raise ValueError(
        f"no model type {source!r} is known{_meant(source)}{_kin(source)}; `foveate models` lists those that work"
    )


def _of_type(model_type: str) -> Verdict:
    if model_type in SUPPORTED:
        about = described(model_type)
        if in_transformers(model_type):
            wrong = _wrong_version(SUPPORTED[model_type])
            return Verdict(model_type, wrong is None, wrong, about)
        reason = f"transformers {transformers.__version__} does not have it: pip install --upgrade transformers"
        return Verdict(model_type, False, reason, about)
    return Verdict(model_type, False, _why_not(model_type))


def _wrong_version(family: type[Family]) -> str | None:
    """Why a family cannot be pruned in the installed transformers, which has it, and what to do."""
    here = Version(transformers.__version__)
    if family.since and here < Version(family.since):
        return (
            f"in transformers {here} its class cannot be pruned faithfully: pip install "
            f'"transformers>={family.since}" (docs/families.md has the reason)'
        )
    return _fault(family)


def _fault(family: type[Family]) -> str | None:
    """The same where stock's class answers nothing."""
    here = Version(transformers.__version__)
    fault = family.fails_in.get(here.base_version)
    if fault is None:
        return None
    return (
        f"in transformers {here} every call of its class fails, with a pruner or without ({fault}): pip install "
        f'"transformers!={here.base_version}"'
    )


def _why_not(model_type: str) -> str:
    reason = REASONS.get(model_type) or INSTEAD.get(model_type)
    if reason is not None:
        return reason
    whole = model_type.removesuffix("_text")
    if whole != model_type and whole in SUPPORTED:
        return f"it is the language model of {whole} alone, without its pictures"
    if f"{model_type}_thinker" in SUPPORTED:
        return (
            f"it is a thinker and what speaks its answers, and the thinker is pruned loaded by itself: "
            f"{checkpoint_of(f'{model_type}_thinker')[1].partition(': ')[2]}.from_pretrained(...), which says "
            f"{model_type}_thinker"
        )
    if model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        return (
            "no adapter is written for it; give a checkpoint's folder to see whether the generic one may take it, or "
            "write one (docs/adding_a_family.md)"
        )
    if model_type in CONFIG_MAPPING_NAMES:
        return f"transformers does not count it among the models that answer with text about images{_meant(model_type)}"
    return f"neither Foveate nor transformers {transformers.__version__} knows it{_meant(model_type)}"


def _meant(model_type: str) -> str:
    close = close_to(model_type, SUPPORTED)
    return f" (close to it: {', '.join(close)})" if close else ""


def _kin(source: str) -> str:
    """Listed checkpoints whose names begin like a checkpoint's, with their types: a guess, and said to be one."""

    def letters(name: str) -> str:
        return re.sub(r"[^a-z0-9]", "", name.lower().rpartition("/")[2])

    alike: dict[int, list[str]] = {}
    for model_type in SUPPORTED:
        name, note = checkpoint_of(model_type)
        noted = [one for word in note.split() if "-" in (one := word.strip(",:"))]
        for one in filter(None, [name, *noted]):
            pairs = zip(letters(source), letters(one), strict=False)
            shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
            if shared >= _ALIKE:
                said = note.removeprefix("none is known: ") if one in noted else f"{one} says {model_type}"
                alike.setdefault(shared, []).append(said)
    nearest = list(dict.fromkeys(alike[max(alike)]))[:3] if alike else []
    return f" (of those with such a name, {', '.join(nearest)})" if nearest else ""


def _of_checkpoint(source: str, path: Path, model_type: str) -> Verdict:
    """Builds the model without its weights, as far as its type alone does not say no."""
    found = _of_type(model_type)
    tried = model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES and model_type not in REASONS
    if not tried or (found.about and not in_transformers(model_type)):
        return found
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(path, local_files_only=True)
        if model_type in FAMILIES:
            family_of(config)  # which knows more than the version does
            failing = _fault(SUPPORTED[model_type])
            return Verdict(model_type, failing is None, failing, found.about)
        check_family(source, config)
    except Exception as error:  # whatever keeps it from being built, it cannot be pruned
        return Verdict(model_type, False, " ".join(str(error).split()) or type(error).__name__, found.about)
    return Verdict(
        model_type, True, "the generic adapter may take it: it tries the model out when it is attached", found.about
    )
