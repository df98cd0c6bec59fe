"""The kinds of documents."""

from foveate.evaluation.documents.papers.bars import Bars
from foveate.evaluation.documents.papers.form import Form
from foveate.evaluation.documents.papers.lines import Line
from foveate.evaluation.documents.papers.paper import Ask, Paper
from foveate.evaluation.documents.papers.receipt import Receipt
from foveate.evaluation.documents.papers.screen import Screen
from foveate.evaluation.documents.papers.sign import Sign
from foveate.evaluation.documents.papers.table import Table

PAPERS: tuple[type[Paper], ...] = (Receipt, Table, Sign, Form, Bars, Line, Screen)

__all__ = ["PAPERS", "Ask", "Bars", "Form", "Line", "Paper", "Receipt", "Screen", "Sign", "Table"]
