"""Pruned generation for servers and async code: nothing is attached that another thread or task could see."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from foveate.attachment import check_handed
from foveate.call import Call
from foveate.crops import Crops
from foveate.delivery import outside
from foveate.inside import InsideCall, check_inside
from foveate.instrumented import looking_through
from foveate.models.encoded import Layout, Newlines, Positions
from foveate.models.view_store import Views
from foveate.options import Options
from foveate.pruners.base import Method
from foveate.tokens import Selection


@dataclass(frozen=True, eq=False)
class Generated:
    """What one pruned ``generate`` gave.

    Args:
        output: what the model's own ``generate`` returns: (B, S + new) ids that begin with the prompt as it was passed,
            or with ``return_dict_in_generate=True`` an output object.
        selections: one per image, in prompt order.
        visual_tokens: per prompt, how many visual tokens (newlines included, where kept) reached the LLM.
        prompt_tokens: length of the prompt that reached the LLM, padding included.
        tokens_per_layer: for methods that prune inside the LLM, per image how many visual tokens every layer held.
    """

    output: Any
    selections: Sequence[Selection] = field(repr=False)
    visual_tokens: Sequence[int]
    prompt_tokens: int
    tokens_per_layer: Sequence[Sequence[int]] = field(default=(), repr=False)


def generate(
    model: Any,
    pruner: Method,
    *args: Any,
    positions: Positions | None = None,
    newlines: Newlines = "drop",
    layout: Layout = "stock",
    turn_end: Sequence[Sequence[int]] | None = None,
    processor: Any = None,
    calibrate: bool | float = False,
    crops: Crops | float | int | str | None = None,
    **arguments: Any,
) -> Generated:
    """One ``model.generate`` under a pruner, which belongs to this call alone.

    Any number of threads and tasks may run it at once, with pruners of their own or one that they share, also beside
    attached pruners and sessions: none sees another's tokens or results, and whoever calls ``model.generate`` meanwhile
    gets the bare model. The pruner's own ``selections`` stay as they were.

    Args:
        model: a stock transformers model of a known family.
        pruner: which tokens stay.
        args, arguments: for the model's own ``generate``.
        positions, newlines, layout, turn_end, processor, calibrate, crops: see ``foveate.attach``.

    Raises:
        TypeError, ValueError: as ``foveate.attach``, and for arguments that cannot be honoured.
    """
    options = Options(positions, newlines, layout, turn_end, processor, calibrate, crops)
    call, output = run(model, pruner, options, args, arguments)
    return Generated(
        output, call.selections, call.visual_tokens, call.prompt_tokens, getattr(call, "tokens_per_layer", ())
    )


def run(
    model: Any,
    pruner: Method,
    options: Options,
    args: Sequence[Any],
    arguments: Mapping[str, Any],
    views: Views | None = None,
) -> tuple[Call | InsideCall, Any]:
    """The same, with the pictures of a session where there is one: the call with its results, and the output."""
    check_handed(model, pruner)
    with looking_through(model) as instrumented, outside():
        options.check(instrumented.family)
        check_inside(instrumented.family, pruner, options)
        call = instrumented.call(pruner, options, views)
        return call, call.generate(instrumented.originals["generate"], *args, **arguments)
