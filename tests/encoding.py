"""A model's images as its adapter encodes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from foveate.instrumented import looking_through
from foveate.models.encoded import EncodedImage, Request


def encode(model: Any, inputs: Mapping[str, Any], kind: str = "image", **request: Any) -> list[EncodedImage]:
    """What ``Family.encode`` (or ``encode_videos``) gives for a call's inputs; ``request`` as for ``Request``."""
    if "input_ids" in inputs and "attention_mask" in inputs:
        request.setdefault("prompt", torch.where(inputs["attention_mask"].bool(), inputs["input_ids"], -1))
    with looking_through(model) as site, torch.no_grad():
        family = site.family
        run = family.encode if kind == "image" else family.encode_videos
        return run(dict(inputs), Request(site.features[kind], **request))
