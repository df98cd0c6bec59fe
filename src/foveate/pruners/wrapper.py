"""Methods that hold a method: they change what it is shown, or what becomes of its choice."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from foveate.pruners.base import Choice, Method, Pruner
from foveate.tokens import TextTokens, VisualTokens


@dataclass
class Wrapper(Pruner):
    """What they share: the held method, whose flags and budget are theirs. A subclass has ``choose``.

    Args:
        method: the held method, or its name as for ``foveate.get_pruner``. It may be a wrapper too.
        keep: as for ``Pruner``. Default: the held method's.

    Raises:
        TypeError: ``method`` is neither; a method that prunes inside the LLM.
        ValueError: no such method, or one that cannot be held; see ``refuse``.
    """

    method: Any
    keep: Any = field(default=None, kw_only=True)

    example: ClassVar[str] = "cdpruner"
    """A method that can be held, for messages."""

    def __post_init__(self) -> None:
        if isinstance(self.method, str):
            from foveate.pruners.registry import get_pruner  # it knows the wrappers too

            self.method = get_pruner(self.method)
        if not isinstance(self.method, Pruner):
            inside = isinstance(self.method, Method)
            what = f"{self.method.name} prunes inside the LLM" if inside else f"got {type(self.method).__name__}"
            raise TypeError(f"{self.name} holds a method that prunes before the LLM, such as {self.example!r}: {what}")
        reason = self.refuse(self.method)
        if reason is not None:
            raise ValueError(f"{self.name} cannot hold {self.method.name}: {reason}")
        if self.keep is None:
            self.keep = self.method.keep
        super().__post_init__()
        self.method = replace(self.method, keep=self.keep)

    def refuse(self, method: Pruner) -> str | None:
        """Why a method cannot be held; None where it can."""
        return None

    @property
    def options(self) -> tuple[str, ...]:
        """Its own options, then those of the method it holds."""
        return tuple(name for name in super().options if name != "method") + tuple(self.method.options)

    @property
    def innermost(self) -> Pruner:
        """The method at the bottom."""
        held: Pruner = self.method
        return held.innermost if isinstance(held, Wrapper) else held

    def keep_all(self, visual: VisualTokens, text: TextTokens | None) -> Choice:
        """As the held method."""
        return self.method.keep_all(visual, text)  # type: ignore[no-any-return]


def _held(flag: str) -> property:
    return property(lambda self: getattr(self.method, flag), doc=f"``{flag}`` of the held method.")


for _flag in (
    "reads_saliency", "reads_keys", "reads_encoded", "reads_text", "text_span", "special_tokens", "merges",
    "takes_weight", "over_time", "exact", "adaptive",
):  # fmt: skip
    setattr(Wrapper, _flag, _held(_flag))
