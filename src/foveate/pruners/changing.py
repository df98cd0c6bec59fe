"""What stands still in a video is kept once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from foveate.functional import kept_once, top_k
from foveate.functional.merge import spread
from foveate.functional.video import NEW, require_threshold
from foveate.pruners.base import Choice
from foveate.pruners.wrapper import Wrapper
from foveate.tokens import TextTokens, VisualTokens


@dataclass
class Changing(Wrapper):
    """A method that chooses among what changes: what stands still in its place is kept once, where it first stood.

    From frame to frame, a token that is like the one that last stood for its place (cosine of projected features of at
    least ``threshold``) is stood for by that one, and the held method never sees it. Of a video that moves little the
    budget goes to what is new in it. Ours; TimeChat-Online (arXiv 2504.17343) and others drop tokens by the same rule.

    Where fewer change than the budget has room for, all of them stay, and the others that changed most join, so that
    the budget is exact; ``fill=False`` leaves them out. Of a picture all tokens are new: the held method's choice. On
    an accelerator, which tokens change is waited for, once per video.

    Args:
        method: the held method, or its name as for ``foveate.get_pruner``.
        threshold: in [-1, 1]. Default 0.9, which was not tuned; 1 finds only what is the same but for rounding.
        fill: see above. With False fewer tokens than the budget may stay, how many is known only once the video is
            encoded, and a server, which lays the prompt out before, cannot run it. Default True.
        keep: as for ``Pruner``. Default: the held method's.

    Raises:
        TypeError: as for ``Wrapper``.
        ValueError: as for ``Wrapper``; ``threshold`` outside [-1, 1].
    """

    threshold: float = 0.9
    fill: bool = True

    name: ClassVar[str] = "changing"
    over_time: ClassVar[bool] = True
    example: ClassVar[str] = "cover"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_threshold(self.threshold)

    @property
    def adaptive(self) -> bool:  # type: ignore[override]
        """Whether fewer tokens than the budget may stay."""
        return not self.fill or bool(self.method.adaptive)

    def choose(self, visual: VisualTokens, text: TextTokens | None, budget: int) -> Choice:
        """The held method's choice among tokens that stand for themselves; ``change`` is recorded beside its scores.

        Of the others the scores are those of the tokens that stand for them.
        """
        where = visual.geometry
        if not where.frames:
            if budget == len(visual) and not self.method.adaptive:  # which its ``choose`` need not expect
                choice: Choice = self.method.keep_all(visual, text)
                return choice
            return self.method.choose(visual, text, budget)  # type: ignore[no-any-return]
        stands, change = kept_once(visual.features.detach(), where.view, where.row, where.column, self.threshold)
        here = torch.arange(len(visual), device=stands.device)
        new = (stands == here).nonzero()[:, 0]
        count = len(new)
        if count > budget or self.method.adaptive:
            choice = self.method.choose(visual.some(new), text, min(budget, count))
        else:
            choice = Choice(torch.arange(count, device=new.device))
            if count < budget and self.fill:
                return Choice(top_k(change.index_fill(0, new, NEW + 1), budget), {"change": change})
        places = new.new_zeros(len(visual)).index_copy(0, new, torch.arange(count, device=new.device))
        whose = places.index_select(0, stands)
        scores = {name: score.index_select(0, whose) for name, score in choice.scores.items()}
        weights = None if choice.weights is None else spread(choice.weights, new, len(visual))
        return Choice(new.index_select(0, choice.indices), {**scores, "change": change}, choice.shares, weights)
