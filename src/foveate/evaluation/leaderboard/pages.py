"""The leaderboard as a page of Markdown, and as one of HTML that needs nothing else; no chance, no date in either."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from importlib.resources import files

from foveate.evaluation.blind import NAME as BLIND
from foveate.evaluation.leaderboard.board import Board, Line, Table
from foveate.evaluation.leaderboard.checked import Measured, Result
from foveate.evaluation.over_budget import MEANING, marked
from foveate.evaluation.report import GROUP_A, group_title, method_title
from foveate.evaluation.runner import ALL
from foveate.evaluation.saving import percent
from foveate.evaluation.statistics import Estimate
from foveate.resizing import NAME as RESIZE

TITLE = "Leaderboard"
INTRODUCTION = (
    "Every table is of one model, one suite and one budget: what it says holds there. Accuracy is in %, tokens and "
    "milliseconds are means per question, and brackets hold 95 % intervals.",
    "In place of ranks, methods stand in groups. Group 1 is the method with the best figure and all that are not told "
    "apart from it; group 2 is the best of the rest and all that are not told apart from that one; and so on. Two "
    "methods are told apart where swapping their answers, picture by picture at random, gives a difference as large in "
    "fewer than 5 % of the draws, after Holm's correction for all methods that are compared with a group's best. "
    "Within a group the order means nothing. A method in no group sent more tokens than the budget.",
)
NOTES = {
    "accuracy": "of questions, each counting alike; of drawn suites with Wilson's interval, of others with the "
    "bootstrap's over pictures",
    "to the best": "the difference to the method with the best figure of the table on the same questions, points, with "
    "its bootstrap interval over pictures",
    "mean of kinds": "of a drawn suite, the mean over the kinds that it is about (of scenes, presence, attribute, "
    "reading and biggest; counting, position and relation are left out)",
    "not guessed": "accuracy on the questions that are not answered rightly without the picture",
    "group A": "accuracy on what all tokens answer rightly, and the picture made smaller to the same budget (resize) "
    "does not",
    "resize, not run": "nobody asked for it, or a version left it out that could not exceed the budget",
    "resize, over budget": f"{MEANING}; it stands in a group as long as the mean of its tokens is within the budget",
    "tokens": "visual tokens that reached the language model",
    "ms": "from picture to answer, vision tower included, on the machine that is named; questions that were asked as "
    "one batch share its time, so compare within a table only",
    "encoder, selection, prefill, ms": "of that, medians: the vision tower; choosing and shortening; from there to the "
    "first token",
    "resize in the same time": "what smaller pictures reach in the milliseconds that the method takes",
}
WRITTEN = (
    "`foveate leaderboard` writes this page; nobody does by hand. Results of others are welcome: see "
    "[how to contribute them](../CONTRIBUTING.md#results-for-the-leaderboard)."
)
NOT_RUN = "not run"


def budget_title(keep: float | int) -> str:
    """What a table of a budget is called."""
    if isinstance(keep, int):
        return f"{keep} tokens"
    return "no limit" if keep == 1 else f"{100 * keep:g} % of the tokens"


def settings_of(result: Result) -> str:
    """What else made a result what it is, in a line."""
    told = {name: value for name, value in result.settings.items() if value not in (None, "", {})}
    return ", ".join(f"{name.replace('_', ' ')} {_plain(value)}" for name, value in told.items())


def _plain(value: object) -> str:
    if isinstance(value, dict):
        return "(" + ", ".join(f"{name} {one}" for name, one in value.items() if one) + ")"
    return f"{value:g}" if isinstance(value, float) else str(value)


def versions_of(result: Result) -> str:
    """Of the packages, in a line."""
    return ", ".join(f"{name} {value}" for name, value in result.told["versions"].items())


def markdown(boards: Sequence[Board]) -> str:
    """The page ``docs/leaderboard.md``."""
    lines = [f"# {TITLE}", "", *(part for text in INTRODUCTION for part in (text, ""))]
    lines += [f"- *{name}*: {text}." for name, text in NOTES.items()]
    lines += ["", WRITTEN, ""]
    heads = ["model", "suite", "questions", "pictures", "settings", "machine", "versions"]
    lines += [_line(heads), _line(["---"] * len(heads))]
    for one in boards:
        result = one.result
        counts = str(len(result.items)), str(result.pictures)
        told = settings_of(result), str(result.told["machine"]), versions_of(result)
        lines.append(_line([_cell(result.model), _cell(result.suite), *counts, *map(_cell, told)]))
    for one in boards:
        for table in one.tables:
            heading = f"## {one.result.model} on {one.result.suite}, {budget_title(table.keep)}"
            lines += ["", heading, "", *_table(one, table)]
    return "\n".join(lines) + "\n"


def _columns(board: Board) -> list[str]:
    return [group_title(name) for name in board.groups[1:]]


def _table(board: Board, table: Table) -> list[str]:
    in_time = ["resize in the same time"] if GROUP_A in board.groups else []
    heads = [
        "group",
        "method",
        "accuracy",
        "to the best",
        *_columns(board),
        "tokens",
        "ms",
        *map(_stage, board.stages),
        *in_time,
    ]
    lines = [_line(heads), _line(["---:", "---", *["---:"] * (len(heads) - 2)])]
    for line in table.lines:
        if line.run.method == BLIND and not table.resized:
            lines.append(_line(["", f"`{RESIZE}`", NOT_RUN, *[""] * (len(heads) - 3)]))
        cells = _figures(board, line)
        lines.append(_line([_group(line), _method(line.run), *cells[: len(heads) - 2]]))
    return lines


def _figures(board: Board, line: Line) -> list[str]:
    """Of a row, as texts: accuracy, difference, the other groups, tokens, milliseconds, resize in the same time."""
    others = [percent(line.cells[name].value) if name in line.cells else "" for name in board.groups[1:]]
    return [
        interval(line.cells[board.groups[0]]),
        difference(line),
        *others,
        f"{line.run.kept:.0f}",
        f"{line.run.latency_ms:.0f}",
        *(_milliseconds(line.run.stages.get(name, math.nan)) for name in board.stages),
        percent(line.resize_in_time),
    ]


def _stage(name: str) -> str:
    return f"{name}, ms"


def _milliseconds(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.1f}"


def interval(estimate: Estimate) -> str:
    """A figure with its interval, in %."""
    return f"{100 * estimate.value:.1f} [{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]"


def difference(line: Line) -> str:
    """A method's difference to the best of its table, in points; nothing of the best itself."""
    if line.standing is None:
        return ""
    one = line.standing.difference
    if one.value == one.low == one.high == 0:
        return "0"
    return f"{_signed(one.value)} [{_signed(one.low)}, {_signed(one.high)}]"


def _signed(share: float) -> str:
    text = f"{100 * share:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text


def _group(line: Line) -> str:
    return str(line.standing.group) if line.standing else ""


def _method(run: Measured) -> str:
    if run.method in (ALL, BLIND):
        return method_title(run.method)
    return marked(f"`{run.method}`", run.over_budget, len(run.tallies))


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def page(boards: Sequence[Board]) -> str:
    """One page of HTML with its style and script in it: rows can be sorted and chosen by model, suite and budget."""
    template = files("foveate.evaluation.leaderboard").joinpath("page.html").read_text(encoding="utf-8")
    columns = list(dict.fromkeys(name for one in boards for name in one.groups[1:]))
    heads = ["model", "suite", "budget", "group", "method", "accuracy", "to the best"]
    stages = list(dict.fromkeys(name for one in boards for name in one.stages))
    heads += [*map(group_title, columns), "tokens", "ms", *map(_stage, stages), "resize in the same time"]
    texts = ("model", "suite", "method")
    told = {
        "title": TITLE,
        "introduction": "".join(f"<p>{escape(text)}</p>\n" for text in INTRODUCTION),
        "notes": "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>\n" for name, text in NOTES.items()),
        "heads": "".join(
            f'<th scope="col" aria-sort="none"{"" if name in texts else _NUMBER}><button>{escape(name)}</button></th>'
            for name in heads
        ),
        "rows": "\n".join(row for one in boards for table in one.tables for row in _rows(one, table, columns, stages)),
        "results": "\n".join(map(_about, boards)),
        "models": _options([one.result.model for one in boards]),
        "suites": _options([one.result.suite for one in boards]),
        "budgets": _options([budget_title(table.keep) for one in boards for table in one.tables]),
    }
    for name, value in told.items():
        template = template.replace(f"<!-- {name} -->", value)
    return template


_NUMBER = ' class="number"'


def _options(names: Sequence[str]) -> str:
    return "".join(f"<option>{escape(name)}</option>" for name in dict.fromkeys(names))


def _rows(board: Board, table: Table, columns: Sequence[str], stages: Sequence[str]) -> list[str]:
    result = board.result
    budget = table.keep if isinstance(table.keep, float) else 1 + table.keep  # numbers of tokens after fractions
    known = _sorted(result.model), _sorted(result.suite), _sorted(budget_title(table.keep), budget)
    rows = []
    for line in table.lines:
        if line.run.method == BLIND and not table.resized:
            cells = [_sorted("", math.nan), _sorted(RESIZE), _sorted(NOT_RUN, math.nan)]
            rows.append([*cells, *[_sorted("", math.nan)] * (len(columns) + len(stages) + 4)])
        main = line.cells[board.groups[0]]
        others = [line.cells[name].value if name in line.cells else math.nan for name in columns]
        gap = line.standing.difference.value if line.standing else math.nan
        taken = [line.run.stages.get(name, math.nan) for name in stages]
        rows.append([
            _sorted(_group(line), line.standing.group if line.standing else math.nan),
            _sorted(marked(method_title(line.run.method), line.run.over_budget, len(line.run.tallies))),
            _sorted(interval(main), main.value),
            _sorted(difference(line), gap),
            *(_sorted(percent(value), value) for value in others),
            _sorted(f"{line.run.kept:.0f}", line.run.kept),
            _sorted(f"{line.run.latency_ms:.0f}", line.run.latency_ms),
            *(_sorted(_milliseconds(value), value) for value in taken),
            _sorted(percent(line.resize_in_time), line.resize_in_time),
        ])  # fmt: skip
    return [f"<tr>{''.join([*known, *cells])}</tr>" for cells in rows]


def _sorted(text: str, value: float | None = None) -> str:
    """A cell, and what it is sorted by: its text, or a number, NaN being last in either order."""
    if value is None:
        return f"<td>{escape(text)}</td>"
    key = "" if math.isnan(value) else f"{value:.6g}"
    return f'<td class="number" data-value="{key}">{escape(text)}</td>'


def _about(board: Board) -> str:
    result = board.result
    told = [
        f"{len(result.items)} questions about {result.pictures} pictures",
        settings_of(result),
        str(result.told["machine"]),
        versions_of(result),
    ]
    return f"<li><b>{escape(result.model)}</b> on <b>{escape(result.suite)}</b>: {escape('; '.join(told))}</li>"
