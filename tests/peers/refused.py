"""What transformers' own tests ask for and a pruner refuses, at keep 1 too: the words of the error, and the reason."""

from __future__ import annotations

REFUSED: dict[str, str] = {}
"""A regular expression of the error's text -> why it is refused, and where that is documented."""
