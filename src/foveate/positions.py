"""Which positions the tokens of a shortened prompt have: renumbered, or those they had; of one dimension or three."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from foveate.models.base import Family
from foveate.models.encoded import Positions, Rope
from foveate.prompts import Plan


def position_ids(
    family: Family,
    wanted: Positions,
    arguments: Mapping[str, Any],
    plan: Plan,
    device: torch.device,
    *,
    from_mask: bool,
    apart: bool = False,
) -> Tensor | None:
    """``position_ids`` for a shortened call; None where the model numbers it itself.

    With M-RoPE, the model's ``rope_deltas`` are set too, from which it goes on.

    Args:
        family: the model's adapter.
        wanted: ``"compact"`` or ``"original"``.
        arguments: the call's.
        plan: how its prompt was shortened.
        device: where its ids are.
        from_mask: count only unmasked tokens, as ``generate`` does, and give positions of the whole prompt; else count
            columns, as a bare ``forward`` does, and give those of what is not cached.
        apart: number every prompt of the batch as if it were alone, also where stock does not.

    Raises:
        ValueError: the caller gave positions, and they are to be renumbered.
    """
    given = arguments.get("position_ids")
    if wanted == "compact":
        if given is not None:
            raise ValueError(
                "position_ids were given, and positions='compact' renumbers the prompt: leave them out, or attach with "
                "positions='original'"
            )
        return None
    if given is not None:
        if given.ndim == 3 and given.shape[0] == 4 and family.text_row:  # the first of four is for the mask code
            spatial = plan.short_ids(given[1:], 0)
            text = _counted(plan)[None, :, -spatial.shape[-1] :].to(given)
            return torch.cat([text, spatial])
        return plan.short_ids(given, 0)
    rope = _rope(family, arguments, plan, apart)
    if rope is None:
        long = torch.arange(plan.length, device="cpu").expand_as(plan.mask)
        if from_mask:
            long = (plan.mask.long().cumsum(1) - 1).clamp(min=0)
        positions = plan.shorten(long, 0)
        if not from_mask:
            positions = positions + family.first_position
    else:
        family.base.rope_deltas = (rope.following - (plan.index >= 0).sum(dim=1))[:, None].to(device)
        positions = plan.shorten(rope.positions, 0)
        if family.text_row:
            positions = torch.cat([_counted(plan)[None], positions])
    return (positions if from_mask else positions[..., plan.start :]).to(device)


def following(family: Family, plan: Plan) -> Tensor | None:
    """(B,) int64 on the CPU: the M-RoPE position of what follows a prompt, as the call left the model; else None."""
    deltas = getattr(family.base, "rope_deltas", None)
    rows = len(plan.ids)
    if deltas is None or len(deltas) < rows:
        return None
    return (plan.index >= 0).sum(dim=1) + deltas.cpu().flatten()[:: len(deltas) // rows]  # once per beam, row by row


def _counted(plan: Plan) -> Tensor:
    """(B, S') int64: every token's position in the short prompt, padding not counted."""
    return ((plan.index >= 0).long().cumsum(1) - 1).clamp(min=0)


def _rope(family: Family, arguments: Mapping[str, Any], plan: Plan, apart: bool) -> Rope | None:
    """M-RoPE positions of the whole long prompt; those of what a cache holds are not asked for and left 0."""
    types = arguments.get("mm_token_type_ids")
    types = None if types is None else types.cpu()[:, -(plan.length - plan.long_start) :]
    fresh = slice(plan.long_start, None)
    rope = family.rope(arguments, plan.ids[:, fresh], plan.mask[:, fresh], types)
    if rope is not None and apart:
        rope = family.apart(rope, plan.ids[:, fresh])
    if rope is None or not plan.long_start:
        return rope
    first = (plan.index[:, : plan.start] >= 0).sum(dim=1) if plan.following is None else plan.following
    before = torch.zeros(len(rope.positions), len(plan.ids), plan.long_start, dtype=torch.int64, device="cpu")
    return Rope(torch.cat([before, rope.positions + first[:, None]], dim=-1), rope.following + first)
