"""Putting a pruner on a model, and taking it off without a trace."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from foveate import ownership
from foveate.asking_again import NO_PRUNER, AskAgain
from foveate.crops import Crops
from foveate.inside import check_inside
from foveate.instrumented import InstrumentedModel
from foveate.locks import lock_of
from foveate.models import stock_model
from foveate.models.encoded import Layout, Newlines, Positions
from foveate.options import Options
from foveate.pruners.base import Method
from foveate.readable import check_readable
from foveate.tokens import Selection

# By attachment, the results of the last call of this thread or task. Never changed, only replaced: tasks that were
# started from here hold the same one.
_results: ContextVar[Mapping[Attachment, list[Selection]] | None] = ContextVar("foveate_results", default=None)


class Attachment:
    """A pruner on a model: what ``foveate.attach`` returns and ``with pruner(model) as ...`` gives.

    It belongs to the thread or asyncio task that made it and to those started from there with its context
    (``asyncio.to_thread``, child tasks). Others use it while it is the model's only one.

    Args:
        model: a stock transformers model of a known family.
        pruner: which tokens stay.
        options: positions, newlines, layout, where turns end.

    Raises:
        TypeError: ``model`` or ``pruner`` is something else; the message says what to write.
    """

    def __init__(self, model: Any, pruner: Method, options: Options) -> None:
        check_handed(model, pruner)
        self.model = model
        self.pruner = pruner
        self.options = options
        self.running: dict[object, str] = {}
        self.used = False
        self._on: InstrumentedModel | None = None
        self._owner: weakref.ref[Any] | None = None
        self._latest: list[Selection] = []

    @property
    def active(self) -> bool:
        """Whether the model is being pruned by this attachment."""
        return self._on is not None

    @property
    def selections(self) -> list[Selection]:
        """One ``Selection`` per image of the last call that this thread or task made, in prompt order; of the last call
        anywhere where it made none. Threads that share a pruner do not see one another's here."""
        return (_results.get() or {}).get(self, self._latest)

    def note(self, selections: list[Selection]) -> None:
        """Takes note of a call's result, for the running thread or task."""
        self._latest = selections
        mine = WeakKeyDictionary(_results.get() or {})
        mine[self] = selections
        _results.set(mine)

    def activate(self) -> Attachment:
        """Attaches: the model is pruned from here on, or, after any error or interrupt, as it was.

        Raises:
            RuntimeError: this thread or task has a pruner on the model already.
            ValueError: the model cannot be pruned faithfully, or not with these options.
        """
        if self._on is not None:
            raise RuntimeError("this attachment is active already; remove() it first")
        self.used = True
        model = stock_model(self.model)
        try:
            with lock_of(model):
                instrumented = InstrumentedModel.of(model)
                here = ownership.own(instrumented.attachments)
                if here is not None and here._owner is not None and here._owner() is ownership.owner():
                    raise RuntimeError(
                        f"this model has a pruner on it already ({here.pruner}): leave its `with` block, remove() it "
                        "or foveate.detach(model) before attaching another"
                    )
                self.options.check(instrumented.family)
                check_inside(instrumented.family, self.pruner, self.options)
                check_readable(instrumented.family, self.pruner, self.options)
                instrumented.patches.acquire(self)
                instrumented.attachments.append(self)
                instrumented.pruned = True
                self._owner = weakref.ref(ownership.owner())
                self._on = instrumented
                ownership.add(self)
            return self
        except BaseException:
            self._drop(model)
            raise

    def remove(self) -> None:
        """Detaches; the model object is as it was before. Calling it again does nothing.

        Raises:
            RuntimeError: other threads are in the middle of a call under it. They finish it, pruned; the model is as it
                was before when the last of them has.
        """
        running: list[str] = []
        try:
            running = list(self.running.values())
            self._drop(stock_model(self.model))
        except BaseException:  # an interrupt: what is half done is finished first
            self._drop(stock_model(self.model))
            raise
        if running:
            raise RuntimeError(
                f"the `with` block of {self.pruner} was left (or remove() called) while {', '.join(running)} still "
                "ran a call under it: join such threads, or read their streamers to the end, before leaving. They "
                "finish their calls pruned; whatever they start after that is not"
            )

    def _drop(self, model: Any) -> None:
        with lock_of(model):
            found = self._on or InstrumentedModel.on(model)
            self._on = None
            if found is not None:
                found.patches.release(self)
                if self in found.attachments:  # last: detach() finds by it what an interrupt has left half done
                    found.attachments.remove(self)
        ownership.drop(self)

    def __enter__(self) -> Attachment:
        return self if self.active else self.activate()

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        try:
            self.remove()
        except RuntimeError:
            if kind is None:  # else what happened in the block is the news
                raise

    def __del__(self) -> None:
        if not getattr(self, "used", True):  # True where the constructor refused
            warnings.warn(
                f"{self.pruner}(model) by itself prunes nothing: write `with pruner(model): model.generate(...)`, or "
                "foveate.attach(model, pruner)",
                stacklevel=1,
            )


def attach(
    model: Any,
    pruner: Method,
    *,
    positions: Positions | None = None,
    newlines: Newlines = "drop",
    layout: Layout = "stock",
    turn_end: Sequence[Sequence[int]] | None = None,
    processor: Any = None,
    calibrate: bool | float = False,
    crops: Crops | float | int | str | None = None,
) -> Attachment:
    """Makes ``model.generate`` and ``model.forward`` prune images, until ``remove()`` is called on what is returned.

    The attachment belongs to the thread or asyncio task that made it. One without an attachment of its own (a streaming
    worker, say) uses the model's only one; when there are several, it gets an error rather than a guess.

    Args:
        model: a stock transformers model of a known family (``foveate models`` lists them).
        pruner: which tokens stay; see ``foveate.METHODS``.
        positions: ``"compact"`` renumbers the shortened prompt; ``"original"`` leaves every kept token its position.
            Default: the family's own: compact, or original where positions have three dimensions (M-RoPE).
        newlines: LLaVA-NeXT's ``image_newline`` tokens: ``"drop"`` them, or keep those of ``"rows"`` that keep a patch.
            When every patch is kept, they all stay.
        layout: ``"stock"`` sends what stock transformers would send; ``"released"`` (LLaVA-NeXT) chooses from every
            view's full grid, as the published runs had it.
        turn_end: token id sequences that end a user's turn, for pruners with ``text_span="turn"``;
            ``foveate.turn_end(processor)`` reads them from a chat template.
        processor: the model's processor or tokenizer: its chat template says where user turns begin and end. By default
            the one beside the model's weights is read, where that lies on this machine; else a turn ends with the
            model's EOS tokens.
        calibrate: whether the LLM adds ``log(n)`` to the attention logits of a token that was merged from n patches, in
            every layer, while it reads the prompt and while it generates, as RESTORE does (ICML 2026; it goes with
            ``positions="original"`` there). A number in [0, 1] weakens it: ``calibrate * log(n)``. Tokens that go as
            they are get nothing, and methods that do not merge are as without. For ``attn_implementation`` sdpa and
            eager. What was merged into a KV cache keeps its bias in later turns. Default False.

        crops: how many of a picture's crops are encoded at all, for families that cut a picture into crops beside a
            base view: a fraction, a number, ``"auto"``, or a ``foveate.Crops``, which says how they are chosen. The
            base view is encoded first, and the question and saliency choose among the crops; the vision tower then
            takes less time. ``keep`` still counts the whole picture's tokens, and where more are asked for than were
            encoded, all that were encoded stay. Of videos, all frames are encoded. Crops with the same pixels are
            encoded once; ``"distinct"`` encodes all, but for that. Default None: all crops, as stock does.

    Raises:
        ValueError: unknown model family, unknown option, or a model that cannot be pruned faithfully.
        TypeError: what is handed over is no model or no pruner.
        RuntimeError: this thread or task has a pruner on the model already.
    """
    options = Options(positions, newlines, layout, turn_end, processor, calibrate, crops)
    return Attachment(model, pruner, options).activate()


def detach(model: Any) -> int:
    """Takes every pruner off a model, whoever attached it: for those who lost the handle.

    Returns:
        How many there were.

    Raises:
        RuntimeError: as for ``Attachment.remove``; all are off nevertheless.
    """
    instrumented = InstrumentedModel.on(stock_model(model))
    attachments = [] if instrumented is None else list(instrumented.attachments)
    told = []
    for one in attachments:
        try:
            one.remove()
        except RuntimeError as error:
            told.append(str(error))
    if told:
        raise RuntimeError("; ".join(told))
    return len(attachments)


def check_handed(model: Any, pruner: Any) -> None:
    """Raises TypeError, in one line that says what to write, unless there are a model and a pruner."""
    if isinstance(pruner, type) and issubclass(pruner, Method):
        raise TypeError(f"{pruner.__name__} is a class: hand over an instance, foveate.{pruner.__name__}(keep=0.1)")
    if isinstance(model, Method) and not isinstance(pruner, Method):
        raise TypeError("model and pruner are swapped: the model comes first")
    if isinstance(pruner, AskAgain):
        raise TypeError(NO_PRUNER)
    if not isinstance(pruner, Method):
        named = f": write foveate.get_pruner({pruner!r}, keep=0.1)" if isinstance(pruner, str) else ""
        raise TypeError(f"expected a pruner such as foveate.AdaFV(keep=0.1), got {type(pruner).__name__}{named}")
    check_model(model)


def check_model(model: Any) -> None:
    """Raises TypeError, in one line that says what to write, where a model was meant and something else came."""
    name = type(model).__name__
    if isinstance(model, type):
        raise TypeError(f"{model.__name__} is a class: hand over a model, {model.__name__}.from_pretrained(...)")
    if isinstance(model, (str, bytes)) or hasattr(model, "__fspath__"):
        raise TypeError(
            f"expected a model, got a path: load it first, AutoModelForImageTextToText.from_pretrained({model!r})"
        )
    if not isinstance(model, nn.Module):
        if hasattr(model, "apply_chat_template") or hasattr(model, "image_processor"):
            raise TypeError(f"expected a model, got its processor ({name}): the model goes here")
        return  # a wrapper of somebody's: the family says what is missing
    inner = getattr(model, "module", None)
    if isinstance(inner, nn.Module) and not hasattr(model, "generate"):
        if isinstance(model, nn.DataParallel):
            raise TypeError(
                "DataParallel copies the model to every device for every call, and a pruner is on one model only: use "
                "one process and one model per device (DistributedDataParallel)"
            )
        raise TypeError(
            f"{name} wraps the model: put the pruner on what it wraps, pruner(model.module), and call {name}"
        )
