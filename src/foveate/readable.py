"""Which methods can be asked of a family: some encoders have no attention that could be read, or are none at all."""

from __future__ import annotations

from foveate.models.base import Family
from foveate.options import Options
from foveate.pruners import InsidePruner, Method, Wrapper, known_methods

READINGS = {
    "saliency": "visual saliency",
    "keys": "the vision encoder's keys",
    "encoded": "the vision encoder's features",
}
"""What a family may lack, and what it is called."""


def unread_by(family: Family | type[Family], method: type[Method] | Method) -> str | None:
    """What a method reads that this family's encoder does not have, a key of ``READINGS``; None where there is all."""
    return next((reading for reading in family.unread if getattr(method, f"reads_{reading}", False)), None)


def check_readable(family: Family, pruner: Method, options: Options) -> None:
    """Raises ValueError where a method, or the choice of crops, reads what this family's encoder does not have; the
    message says why, and which methods do without."""
    for reading, reason in family.unread.items():
        if reading == unread_by(family, pruner):
            methods = [
                name
                for name, kind in known_methods().items()
                if unread_by(family, kind) is None
                and not issubclass(kind, InsidePruner)
                and not issubclass(kind, Wrapper)
            ]
            raise ValueError(
                f"{pruner.name} reads {READINGS[reading]}, and {family.title} has none to read: {reason}. Methods that "
                f"do without: {', '.join([*methods, 'cover:saliency=0'])}"
            )
        if reading == "saliency" and options.routed is not None and options.routed.reads_saliency:
            raise ValueError(
                f"crops={options.routed} ranks crops by saliency, and {family.title} has none to read: {reason}. Use "
                "by=random, or no crops"
            )
