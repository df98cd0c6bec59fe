"""What the vision encoder's first block makes of a picture; nothing behind it is run."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor, nn

from foveate.inputs import probe_inputs
from foveate.instrumented import looking_through
from foveate.models.encoded import Request

_wanted: ContextVar[nn.Module | None] = ContextVar("foveate_first_block", default=None)


class _FirstBlockError(Exception):
    """The first block has run."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output = output


def _stop(block: nn.Module, given: Any, output: Any) -> None:
    if _wanted.get() is block:  # other threads and tasks run on
        raise _FirstBlockError(output)


def first_block_tokens(model: Any, processor: Any, picture: Image) -> Tensor:
    """The tokens of one picture behind the first block of the model's own encoder, which runs no further.

    Args:
        model: a stock transformers model of a known family.
        processor: its processor.
        picture: what is looked at.

    Returns:
        (N, d): patches of all views, without CLS.

    Raises:
        ValueError: the family's first block is not known.
    """
    inputs, prompt = probe_inputs(processor, model, [picture])
    with looking_through(model) as instrumented, torch.no_grad():
        family = instrumented.family
        block = family.first_block
        if block is None:
            raise ValueError(
                f'pixels="auto" reads the tokens behind the first block of the vision encoder, and {family.title} does '
                "not say which that is: give a scale such as 0.5, or a number of pixels"
            )
        hook = block.register_forward_hook(_stop)
        token = _wanted.set(block)
        try:
            family.encode(family.named(inputs), Request(instrumented.features["image"], saliency=False, prompt=prompt))
        except _FirstBlockError as reached:
            output = reached.output[0] if isinstance(reached.output, tuple) else reached.output
            return family.first_tokens(output)
        finally:
            _wanted.reset(token)
            hook.remove()
    raise RuntimeError(f"{family.title}: the vision encoder never ran its first block")
