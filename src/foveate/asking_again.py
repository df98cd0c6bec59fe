"""Asking again when unsure: few tokens first, more only where the model itself says that they were too few."""

from __future__ import annotations

import ast
import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from foveate.arguments import cache_in, setting
from foveate.pruners import Method, Uniform, Wrapper, get_pruner
from foveate.tokens import Keep

if TYPE_CHECKING:
    from foveate.session import Answer, Session

NAME = "ask-again"
"""What evaluation calls it: see ``Spelled``."""
MEASURES = ("least", "first")
GREEDY: Mapping[str, tuple[Any, ...]] = {
    "do_sample": (None, False),
    "num_beams": (None, 1),
    "num_return_sequences": (None, 1),
    "penalty_alpha": (None,),
    "dola_layers": (None,),
    "prompt_lookup_num_tokens": (None,),
    "assistant_model": (None,),
    "custom_generate": (None,),
}
"""Settings of ``generate``, and what they are in plain greedy decoding."""


@dataclass(frozen=True)
class AskAgain:
    """A way to ask a session's questions: with few tokens, and where the model is unsure of its answer with more.

    How sure it is, is the margin between the probabilities of the two likeliest tokens, after the logits processors of
    the call (a token that they force is sure). Both passes share what the vision tower gave. For greedy decoding: with
    sampling or beams, the likeliest tokens are not those of the answer.

    Args:
        first: what stays in the first pass; a method, or its name as for ``foveate.get_pruner``.
        then: what stays where it is unsure, likewise. None: all tokens.
        margin: in (0, 1]; a question is asked again where the measured margin is below it. Default 0.5.
        measure: ``"least"`` (default), the least margin over the answer's tokens, its end included; ``"first"``, that
            of its first token, which tells less of an answer of several tokens.

    Raises:
        TypeError: ``first`` or ``then`` is neither, ``margin`` is no number.
        ValueError: no such method or measure, ``margin`` outside (0, 1], or a second pass of the same method with no
            larger budget.
    """

    first: Any
    then: Any = None
    margin: float = 0.5
    measure: str = "least"

    def __post_init__(self) -> None:
        for name in ("first", "then"):
            given = getattr(self, name)
            if isinstance(given, str):
                given = get_pruner(given)
            if given is None and name == "then":
                given = Uniform(keep=1.0)
            if not isinstance(given, Method):
                what = given.__name__ if isinstance(given, type) else type(given).__name__
                raise TypeError(f"{name} is a pruner such as foveate.CDPruner(keep=0.02) or its name, got {what}")
            object.__setattr__(self, name, given)
        if isinstance(self.margin, bool) or not isinstance(self.margin, (int, float)):
            raise TypeError(f"margin must be a number in (0, 1], got {self.margin!r} ({type(self.margin).__name__})")
        if not 0 < self.margin <= 1:
            raise ValueError(f"margin must be a difference of probabilities in (0, 1], got {self.margin!r}")
        if self.measure not in MEASURES:
            raise ValueError(f"unknown measure {self.measure!r}; known: {', '.join(MEASURES)}")
        if self._is_no_more():
            every = "; 1.0 is all tokens, 1 a single one" if repr(self.then.keep) == "1" else ""
            raise ValueError(
                f"the second pass would see no more than the first: keep={self.first.keep} and then "
                f"keep={self.then.keep}{every}. Give both a budget, such as Cover(keep=0.02) and Cover(keep=0.25)"
            )

    def _is_no_more(self) -> bool:
        """Whether the second pass is the same method's with no larger budget; of one that chooses its own number of
        tokens, with the same options."""
        if _kinds(self.first) != _kinds(self.then) or Keep(self.then.keep).exceeds(Keep(self.first.keep)):
            return False
        return not self.first.adaptive or replace(self.first, keep=self.then.keep) == self.then

    def __call__(self, model: Any, **options: Any) -> NoReturn:
        """Raises TypeError: it is no pruner."""
        raise TypeError(NO_PRUNER)

    def ask(self, session: Session, questions: Sequence[str], options: Mapping[str, Any]) -> list[Answer]:
        """What ``Session.ask_many`` does with it.

        Args:
            session: whose images are asked about.
            questions: at least one.
            options: the other arguments of ``Session.ask_many``. Where rows are numbered (``prefix_allowed_tokens_fn``)
                the second pass keeps the numbers of the questions; the call's own logits processors and stopping
                criteria see the rows of the questions that are asked again, and no others.

        Returns:
            The answers, in order; each that was asked again with the first pass's as ``before``.

        Raises:
            ValueError: another decoding than greedy; a streamer or a cache.
        """
        _refuse(session.model, options)
        margins = Margins()
        given = options.get("logits_processor") or ()
        answers = session.ask_many(
            questions, self.first, **{**options, "logits_processor": LogitsProcessorList([*given, margins])}
        )
        ends, pad = (setting(session.model, options, f"{name}_token_id") for name in ("eos", "pad"))
        lengths = [answer_length(one.sequence[len(one.sequence) - one.new_tokens :], ends, pad) for one in answers]
        measured = margins.of(lengths, self.measure)
        answers = [replace(one, margin=margin) for one, margin in zip(answers, measured, strict=True)]
        unsure = [place for place, margin in enumerate(measured) if margin < self.margin]
        if unsure:
            again = session.ask_many([questions[place] for place in unsure], self.then, **_for_rows(options, unsure))
            for place, one in zip(unsure, again, strict=True):
                answers[place] = replace(one, margin=measured[place], before=answers[place])
        return answers


NO_PRUNER = (
    "AskAgain is no pruner but a way to ask, and takes a session, which keeps what the vision tower gave: "
    "foveate.look(model, processor, images).ask(question, AskAgain(...))"
)
"""Why it cannot be put on a model."""


class Margins(LogitsProcessor):
    """Changes nothing and notes, for every step, how far apart the two likeliest tokens of every row are."""

    def __init__(self) -> None:
        self.steps: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        likeliest = scores.detach().float().softmax(dim=-1).topk(2, dim=-1).values
        self.steps.append(likeliest[:, 0] - likeliest[:, 1])
        return scores

    def of(self, lengths: Sequence[int], measure: str) -> list[float]:
        """One margin per row.

        Args:
            lengths: tokens of each row's answer, each >= 1.
            measure: see ``AskAgain``.
        """
        table = torch.stack(self.steps, dim=1).cpu()
        counted = [1] * len(lengths) if measure == "first" else lengths
        return [float(row[:count].min()) for row, count in zip(table, counted, strict=True)]


def answer_length(tokens: Tensor, ends: int | Sequence[int] | Tensor | None, pad: int | None) -> int:
    """How many of a row's new tokens are its answer: to its end token, that included, else without padding behind it.

    Args:
        tokens: (n,) int64, n >= 1.
        ends: end tokens, if any.
        pad: the padding token, if any.

    Returns:
        At least 1.
    """
    ids = tokens.tolist()
    stops = set() if ends is None else set(torch.as_tensor(ends, device="cpu").flatten().tolist())
    for place, token in enumerate(ids):
        if token in stops:
            return place + 1
    length = len(ids)
    while length > 1 and pad is not None and ids[length - 1] == int(pad):
        length -= 1
    return length


@dataclass(frozen=True)
class Spelled:
    """What evaluation calls a way of asking again: ``ask-again:first=0.02:margin=0.5:cdpruner``.

    The method stands last, with options of its own; ``keep`` is said elsewhere and is the second budget, of which
    ``1.0`` is all tokens.

    Args:
        method: the method's name.
        first: the first budget. Default 0.02.
        margin, measure: see ``AskAgain``.
        given: which of these the name sets.
    """

    method: str
    first: float | int = 0.02
    margin: float = 0.5
    measure: str = "least"
    given: frozenset[str] = field(default=frozenset(), compare=False)

    def __post_init__(self) -> None:
        try:
            Keep(self.first)
        except (TypeError, ValueError) as error:
            raise type(error)(f"first is a budget: {error}") from None

    @classmethod
    def read(cls, text: str) -> Spelled:
        """Raises ValueError for another name, or options that it does not have or refuses."""
        known = [one.name for one in fields(cls) if one.name not in ("method", "given")]
        written, method = taken_apart(text, NAME, known, "first=0.02:margin=0.5:cdpruner")
        options: dict[str, Any] = dict(written)
        for option, value in written.items():
            with contextlib.suppress(SyntaxError, ValueError):  # a text
                options[option] = ast.literal_eval(value)
        if "first" in written:
            options["first"] = Keep.read(written["first"], f"{NAME}: first is a budget: first").value
        try:
            found = cls(method, **options, given=frozenset(options))
            found.asking(1.0)
        except TypeError as error:
            raise ValueError(f"{text!r}: {error}") from None
        return found

    def asking(self, keep: float | int, seed: int | None = None) -> AskAgain:
        """The way of asking, with a second budget; ``seed`` for methods that have one."""
        name = self.method if seed is None else f"{self.method}:seed={seed}"
        every = isinstance(keep, float) and keep == 1.0
        then = None if every else get_pruner(name, keep=keep)
        return AskAgain(get_pruner(name, keep=self.first), then, self.margin, self.measure)


def _kinds(method: Method) -> list[type[Method]]:
    """A method's class, and those of the methods that it holds."""
    return [type(method), *(_kinds(method.method) if isinstance(method, Wrapper) else [])]


def taken_apart(text: str, name: str, known: Sequence[str], example: str) -> tuple[dict[str, str], str]:
    """A name of evaluation's that holds a method: its options as they are written, and the method's name with its own.

    Args:
        text: ``name:option=value:...:method``.
        name: what it must begin with.
        known: options that there are.
        example: what may stand behind the name.

    Raises:
        ValueError: another name, no method, or an option that is unknown or stands there twice.
    """
    first, *parts = text.split(":")
    place = next((place for place, one in enumerate(parts) if "=" not in one), None)
    if first != name or place is None:
        raise ValueError(f"{text!r}: the method stands behind, as in {name}:{example}")
    options: dict[str, str] = {}
    for one in parts[:place]:
        option, _, value = one.partition("=")
        if option not in known:
            raise ValueError(f"{text!r}: {name} has no option {option!r}; known: {', '.join(known)}")
        if option in options:
            raise ValueError(f"{text!r}: {name} is given {option} twice")
        options[option] = value
    return options, ":".join(parts[place:])


def is_spelled(name: str) -> bool:
    """Whether a name stands for a way of asking again."""
    return name.split(":")[0] == NAME


def _for_rows(options: Mapping[str, Any], rows: Sequence[int]) -> dict[str, Any]:
    """Options for the second pass, in which row n is the first pass's ``rows[n]``."""
    allowed: Callable[[int, Tensor], list[int]] | None = options.get("prefix_allowed_tokens_fn")
    if allowed is None:
        return dict(options)
    return {**options, "prefix_allowed_tokens_fn": lambda row, ids: allowed(rows[row], ids)}


def _refuse(model: Any, options: Mapping[str, Any]) -> None:
    for name, plain in GREEDY.items():
        value = setting(model, options, name)
        if not any(value is one or (type(value) is type(one) and value == one) for one in plain):
            raise ValueError(
                f"AskAgain reads the margin of greedy decoding, and here {name}={value!r}: pass do_sample=False, "
                "num_beams=1, and nothing that decodes otherwise"
            )
    if options.get("streamer") is not None:
        raise ValueError("a streamer would be told a first answer that may not stand: leave it out with AskAgain")
    if cache_in(options) is not None:
        raise ValueError("a cache that the first pass fills is wrong for the second: leave it out with AskAgain")
