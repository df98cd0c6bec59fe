"""A model and its processor by folder or hub id, with errors that say what is missing; the bundled ones by default."""

from __future__ import annotations

import json
import os
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from foveate import bundled
from foveate.models import FAMILIES, check_left_out, unsupported
from foveate.models.pattern import parts_of

DTYPES = ("auto", "float32", "bfloat16", "float16")

TORCHVISION = "torchvision"
OPTIONAL = {
    TORCHVISION: TORCHVISION,
    "num2words": "num2words",
    "sentencepiece": "sentencepiece",
    "tiktoken": "tiktoken",
    "mistral_common": "mistral-common",
    "google.protobuf": "protobuf",
}
"""What transformers' processors and tokenizers need beyond its own requirements: module -> its name for pip."""


def load(source: str | None = None, *, dtype: str = "auto", device: str | None = None) -> tuple[Any, Any]:
    """Loads a model of a known family in evaluation mode, and its processor.

    Args:
        source: a checkpoint folder or a hub id, or a model that ships with the package: ``"bundled"`` (the default)
            or ``"dynamic"``.
        dtype: ``"auto"`` (that of the checkpoint; float32 for a bundled model), or one of ``DTYPES``.
        device: where to put it; default ``"cuda"`` where there is one, else ``"cpu"``.

    Raises:
        FileNotFoundError: the folder does not exist or lacks parts, which are named.
        ModuleNotFoundError: the processor or the weights need a package that is not installed; the message has the pip
            command that installs it.
        ValueError: an unknown dtype or model family, or a hub id that cannot be loaded, with what to do.
    """
    import torch

    if dtype not in DTYPES:
        raise ValueError(f"unknown dtype {dtype!r}; known: {', '.join(DTYPES)}")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    ships = bundled.shipped(source)
    if source is None or ships is not None:  # None ships, which a type checker does not see
        small, processor = bundled.load(ships or "bundled", torch.float32 if dtype == "auto" else getattr(torch, dtype))
        return small.to(device), processor

    from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

    local = is_folder(source)
    name = os.path.expanduser(source)
    if local:
        check_folder(Path(name))
        # Before transformers, which may not know the type, or may need more packages to load what is left out anyway.
        _check_left_out(source, declared_type(Path(name)))
    try:
        config = AutoConfig.from_pretrained(name, local_files_only=local)
        check_family(source, config)
        processor = AutoProcessor.from_pretrained(name, local_files_only=local)
        model: Any = AutoModelForImageTextToText.from_pretrained(name, dtype=dtype, local_files_only=local)
    except Exception as error:
        lacking = missing_package(source, error)
        if lacking is not None:
            raise lacking from error
        if isinstance(error, OSError):
            raise ValueError(failed(source, error, local)) from error
        raise
    return model.to(device).eval(), processor


def missing_package(source: str, error: Exception) -> ModuleNotFoundError | None:
    """The error to raise where loading failed for want of a package; None where it failed for another reason.

    Args:
        source: what was loaded.
        error: what transformers raised.
    """
    reason = " ".join(str(error).split())
    package = _named_package(error, reason)
    if package is not None:
        return ModuleNotFoundError(
            f"{source} needs the package {package}, which is not installed: {_pip(package)}", name=package
        )
    # Before 5.19, transformers finds no image or video processor without torchvision, and does not say why.
    if not _installed(TORCHVISION) and re.search(r"(image|video)[ _]?processor|NoneType", reason, re.I):
        return ModuleNotFoundError(
            f"the processor of {source} cannot be loaded ({_sentence(reason)}). Most likely it needs the package "
            f"{TORCHVISION}, which is not installed: {_pip(TORCHVISION)}",
            name=TORCHVISION,
        )
    return None


def _named_package(error: Exception, reason: str) -> str | None:
    """pip's name of the package whose lack an error tells of: by its module, its name or its install command."""
    if isinstance(error, ModuleNotFoundError) and error.name:
        return OPTIONAL.get(error.name, error.name.partition(".")[0])
    for module, package in OPTIONAL.items():
        if re.search(rf"\b({re.escape(package)}|{re.escape(module)})\b", reason, re.I) and not _installed(module):
            return package
    command = re.search(r"pip install (?:(?:-U|--upgrade) )?[\"']?([A-Za-z][\w.-]*\w)", reason)
    if command is None or not isinstance(error, ImportError) or _installed(command[1].replace("-", "_")):
        return None
    return command[1]


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # the package that should hold it
        return False


def _pip(package: str) -> str:
    command = f"pip install {package}"
    if package == TORCHVISION:
        return f"{command} (from where the installed torch came, so that the two go together)"
    return command


def _sentence(text: str) -> str:
    """The first sentence of an error's text."""
    return re.split(r"(?<=[.!?:])\s", text, maxsplit=1)[0].rstrip(".:")


def check_family(source: str, config: Any) -> None:
    """Raises ValueError, with the reason, where no adapter takes models with this config.

    Without an adapter of its own a model is built without weights, to see whether the generic one may take it.
    """
    if config.model_type in FAMILIES:
        return
    _check_left_out(source, config.model_type)
    import torch
    from transformers import AutoModelForImageTextToText

    try:
        with torch.device("meta"):
            parts_of(AutoModelForImageTextToText.from_config(config))
    except Exception as error:  # whatever keeps a class from being built, unsupported it is
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ValueError(f"{source}: {unsupported(config.model_type, reason)}") from error


def _check_left_out(source: str, model_type: str) -> None:
    try:
        check_left_out(model_type)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None


def declared_type(path: Path) -> str:
    """The ``model_type`` that a checkpoint folder, or its config.json, says it has; "" where it says none.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not JSON, or no object.
    """
    path = path / "config.json" if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}: give a checkpoint's folder, or its config.json")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a config.json: {error}") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(config, dict):
        raise ValueError(f"{path} holds no object: a checkpoint's config.json is one, with its model_type")
    return str(config.get("model_type") or "")


def is_folder(source: str) -> bool:
    """Whether a source is meant as a folder: it exists, or it cannot be a hub id."""
    path = Path(source).expanduser()
    return path.exists() or source.startswith((".", "/", "~", os.sep)) or source.count("/") > 1


def check_folder(folder: Path) -> None:
    """Raises FileNotFoundError, naming what is missing, when a checkpoint folder is absent or incomplete."""
    if not folder.is_dir():
        what = "is a file, not a checkpoint folder" if folder.exists() else "does not exist"
        raise FileNotFoundError(f"the model folder {folder} {what}")
    missing = [
        alternatives[0]
        for alternatives in (
            ("config.json",),
            ("processor_config.json", "preprocessor_config.json"),
            ("tokenizer.json", "tokenizer.model", "vocab.json"),
        )
        if not any((folder / name).is_file() for name in alternatives)
    ]
    missing += _missing_weights(folder)
    if missing:
        raise FileNotFoundError(
            f"the model folder {folder} lacks {', '.join(missing)}: copy or download the whole checkpoint"
        )


def _missing_weights(folder: Path) -> list[str]:
    for index in ("model.safetensors.index.json", "pytorch_model.bin.index.json"):
        if (folder / index).is_file():
            try:
                shards = json.loads((folder / index).read_text(encoding="utf-8"))["weight_map"].values()
            except (ValueError, KeyError, AttributeError):
                return [f"a readable {index}"]
            return sorted({shard for shard in shards if not (folder / shard).is_file()})
    if any((folder / name).is_file() for name in ("model.safetensors", "pytorch_model.bin")):
        return []
    return ["model.safetensors"]


def failed(source: str, error: OSError, local: bool) -> str:
    """What to say, with a remedy, where a model cannot be loaded from a folder (``local``), or else from a hub."""
    reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    if local:
        return f"the model in {source} cannot be loaded: {reason}"
    return (
        f"the model {source} cannot be loaded from the hub or its cache: {reason} "
        "Check the id and the network (and HF_HUB_OFFLINE), or download the checkpoint and give its folder."
    )
