"""Tokens compared by what is their own, and weighed by how much that is."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from foveate.functional import centered, distinctiveness
from foveate.functional.common import require_known
from foveate.pruners.base import FEATURES, Choice, Pruner
from foveate.pruners.wrapper import Wrapper
from foveate.tokens import TextTokens, VisualTokens


@dataclass
class Centered(Wrapper):
    """A diversity method on centered tokens, weighed by distinctiveness: Cen-Prune (arXiv 2608.30263).

    The held method compares tokens by the cosines of ``x_i - mean(x)``, and each token weighs
    ``g_i = - mean over j != i of cos(x_i, x_j)``, of the tokens as they are. DivPrune starts as ever, with the token
    whose nearest other one is farthest, and then takes ``argmax g_i min over s in S of (1 - cos_i,s)``; CDPruner's
    kernel is ``diag(r g) cos diag(r g)``, with its relevance ``r`` of the tokens as they are. The paper finds that
    centering alone makes DivPrune worse: both parts belong together. Its figures, in % of the unpruned model: DivPrune
    94.8 to 96.2 and CDPruner 96.3 to 97.0 (LLaVA-1.5-7B, 64 tokens); DivPrune 85.1 to 88.9 and CDPruner 79.5 to 84.4
    (Qwen2.5-VL-7B, 10 %).

    Where the paper gives every crop of an image the same part of the budget and its own mean, here all views have one.

    Args:
        method: the held method, or its name as for ``foveate.get_pruner``: one that weighs tokens.
        features: what is ``x``. ``"projected"`` (default), the paper's way for LLaVA: the tokens that enter the LLM,
            with ``g`` min-max scaled. ``"encoded"``, its way for Qwen2.5-VL: what the vision encoder hands on, averaged
            over the patches merged into a token, each dimension divided by its standard deviation over the tokens
            first, with ``g`` the sigmoid of its z-score.
        keep: as for ``Pruner``. Default: the held method's.

    Raises:
        TypeError: as for ``Wrapper``.
        ValueError: as for ``Wrapper``; a method that does not weigh tokens, unknown ``features``.
    """

    features: str = "projected"

    name: ClassVar[str] = "centered"
    takes_weight: ClassVar[bool] = False  # it sets the weight: held by another of its kind its own would be lost

    def __post_init__(self) -> None:
        super().__post_init__()
        require_known(FEATURES, features=self.features)

    @property
    def reads_encoded(self) -> bool:  # type: ignore[override]
        """Whether the encoder's features are read, here or by the held method."""
        return self.features == "encoded" or self.method.reads_encoded

    def refuse(self, method: Pruner) -> str | None:
        """Methods that do not weigh tokens."""
        if method.takes_weight:
            return None
        from foveate.pruners.registry import METHODS

        known = [name for name, kind in METHODS.items() if kind.takes_weight is True]
        return f"it does not compare tokens by weight, as {', '.join(known)} do"

    def choose(self, visual: VisualTokens, text: TextTokens | None, budget: int) -> Choice:
        """The held method's choice; ``distinctiveness`` is recorded beside its scores."""
        encoded = self.features == "encoded"
        source = visual.encoded if encoded else visual.features
        assert source is not None  # Pruner.select has refused tokens without
        compared, raw = centered(source.detach(), standardized=encoded)
        weight = distinctiveness(raw, "sigmoid" if encoded else "min-max")
        choice: Choice = self.method.choose(replace(visual, compared=compared, weight=weight), text, budget)
        return replace(choice, scores={**choice.scores, "distinctiveness": weight})
