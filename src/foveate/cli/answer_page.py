"""The page that ``foveate ask --html`` writes of an answer."""

from __future__ import annotations

from collections.abc import Sequence

from PIL.Image import Image

from foveate import webpage
from foveate.cli.telling import Told, rows
from foveate.compare import Side
from foveate.keep import keep_label
from foveate.looking_ahead import point
from foveate.session import Session
from foveate.tokens import Selection


def make(
    answered: Told, session: Session, question: str, pictures: Sequence[Image], selections: Sequence[Selection]
) -> str:
    """The page's HTML.

    Args:
        answered: what is told of it.
        session: of the same pictures.
        question, pictures, selections: as asked, as given, and what was kept.
    """
    pointings = point(session, question, selections)
    compared, keep = answered.compared, answered.config.keep
    columns = []
    if compared is not None:
        columns.append(webpage.Column("all tokens", answer=compared.full.answer, figures=_figures(compared.full)))
    columns.append(
        webpage.Column(
            f"{answered.method}, keep {keep if isinstance(keep, str) else keep_label(keep)}",
            selections,
            answered.result["answer"],
            pointings,
            {} if compared is None else _figures(compared.kept),
        )
    )
    return webpage.document(question, pictures, columns, model=answered.model or "bundled")


def _figures(side: Side) -> dict[str, str]:
    return {name: format(value, form) for name, value, form in rows(side)}
