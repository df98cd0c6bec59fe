"""A model's adapter without its weights: serving asks it how prompts and images are laid out, and how to encode."""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers import AutoModelForImageTextToText

from foveate.models import FAMILIES, check_left_out
from foveate.models.base import Family


def family_of(config: Any) -> Family:
    """The adapter of the transformers model of a config, built on the meta device: no memory, a second at most.

    Raises:
        ValueError: no adapter takes such a model; the message says why.
    """
    family = FAMILIES.get(config.model_type)
    if family is None:
        check_left_out(config.model_type)
        raise ValueError(f"model family {config.model_type!r} is not supported; known: {', '.join(FAMILIES)}")
    plain = copy.deepcopy(config)
    plain._attn_implementation = "sdpa"
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(plain)
    return family(model)
