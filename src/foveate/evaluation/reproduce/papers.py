"""Tables that were published, and what is run to have them again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from foveate.evaluation.runner import ALL

NOTHING: Mapping[str, Any] = {}


@dataclass(frozen=True)
class Task:
    """A task of lmms-eval.

    Args:
        name: there.
        title: in the table.
        metric: which of its figures.
        scale: by which that becomes the unit of the published figure.
        judged: whether answers are judged by a model behind an API.
    """

    name: str
    title: str
    metric: str
    scale: float = 100.0
    judged: bool = False


@dataclass(frozen=True)
class Line:
    """A row of the table: a method at a budget.

    Args:
        method: as it is chosen.
        title: in the table.
        keep: a fraction of each image's tokens.
        pruner: the method's registered name; ``"all"`` for every token.
        options: the method's.
        attaching: options of ``foveate.attach``.
        average: the published average over the paper's tasks, % of all tokens.
        figures: published, by title of the task.
    """

    method: str
    title: str
    keep: float
    pruner: str
    options: Mapping[str, Any] = field(default_factory=dict)
    attaching: Mapping[str, Any] = field(default_factory=dict)
    average: float | None = None
    figures: Mapping[str, float] = field(default_factory=dict)

    @property
    def slug(self) -> str:
        """Its name in a results folder."""
        return f"{self.method}-{self.keep:g}"


@dataclass(frozen=True)
class Paper:
    """A published table.

    Args:
        name: as the command knows it.
        source: where the figures stand.
        model: that they are of.
        tasks: of the table; the average is over these.
        lines: the first is the one with all tokens.
        others: tasks that may stand for one of them, with its title.
    """

    name: str
    source: str
    model: str
    tasks: Sequence[Task]
    lines: Sequence[Line]
    others: Sequence[Task] = field(default=())

    @property
    def methods(self) -> list[str]:
        """Those that are run besides all tokens."""
        return list(dict.fromkeys(line.method for line in self.lines if line.method != ALL))

    def task(self, name: str) -> Task | None:
        """The task of lmms-eval of that name, if the table has it."""
        return next((task for task in (*self.tasks, *self.others) if task.name == name), None)


KEEPS = (0.25, 0.1, 0.05)
"""720, 288 and 144 of the 2880 tokens that every image of the published runs has."""

ADAV_AT_95 = {
    "GQA": 58.53, "SQA-IMG": 68.91, "TextVQA": 55.11, "POPE": 85.25, "MME": 1452.91, "MMBench": 65.20, "MM-Vet": 36.20,
}  # fmt: skip
UNPRUNED = {
    "GQA": 62.93, "SQA-IMG": 69.66, "TextVQA": 59.59, "POPE": 86.32, "MME": 1513.78, "MMBench": 67.70, "MM-Vet": 42.60,
}  # fmt: skip
ADAV, FASTERVLM = (98.49, 96.00, 94.35), (98.14, 92.47, 87.06)
FASTV, SPARSEVLM = (97.35, 84.81, 75.46), (93.19, 82.08, None)


def _lines(
    method: str,
    title: str,
    averages: Sequence[float | None],
    pruner: str,
    options: Mapping[str, Any] = NOTHING,
    attaching: Mapping[str, Any] = NOTHING,
    least: Mapping[str, float] = NOTHING,
) -> list[Line]:
    """One line per budget; ``least`` are the figures at the smallest."""
    return [
        Line(method, title, keep, pruner, options, attaching, average, least if keep == KEEPS[-1] else NOTHING)
        for keep, average in zip(KEEPS, averages, strict=True)
    ]


RELEASED = {"variant": "released"}, {"layout": "released"}

ADAFV = Paper(
    "adafv",
    "AdaFV (arXiv 2501.09532), as AdaV in the Findings of ACL 2025",
    "LLaVA-NeXT-7B",
    (
        Task("gqa", "GQA", "exact_match"),
        Task("scienceqa_img", "SQA-IMG", "exact_match"),
        Task("textvqa_val", "TextVQA", "exact_match"),
        Task("pope", "POPE", "pope_f1_score"),
        Task("mme", "MME", "mme_perception_score", 1.0),
        Task("mmbench_en_dev_static", "MMBench", "gpt_eval_score", 1.0),
        Task("mmvet", "MM-Vet", "gpt_eval_score", 1.0, judged=True),
    ),
    (
        Line(ALL, "all tokens", 1.0, ALL, average=100.0, figures=UNPRUNED),
        *_lines("adafv-released", "AdaV, as released", ADAV, "adafv", *RELEASED, least=ADAV_AT_95),
        *_lines("adafv", "AdaV, as the paper says", ADAV, "adafv", least=ADAV_AT_95),
        *_lines("saliency", "saliency alone (FasterVLM)", FASTERVLM, "saliency"),
        *_lines("fastv", "FastV", FASTV, "fastv", {"budget": "final"}),
        *_lines("sparsevlm", "SparseVLM", SPARSEVLM, "sparsevlm"),
    ),
    (Task("mmbench_en_dev", "MMBench", "gpt_eval_score", 1.0, judged=True),),
)

PAPERS = {paper.name: paper for paper in (ADAFV,)}
