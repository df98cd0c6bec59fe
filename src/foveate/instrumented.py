"""A model while somebody prunes it or looks through it: its adapter, and the patches that lead its calls through us."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, NoReturn, cast

from foveate import ownership
from foveate.arguments import bind
from foveate.attention import untraced
from foveate.call import Call
from foveate.delivery import Delivery, assisting, checked, deliver, fill_mask, outside, running
from foveate.inside import InsideCall
from foveate.locks import lock_of
from foveate.models import Family, family_for, stock_model
from foveate.models.encoded import Kind
from foveate.models.view_store import Views
from foveate.options import Options
from foveate.patches import Patch, Patches, held
from foveate.pruners.base import Method, Pruner
from foveate.pruners.inside import InsidePruner
from foveate.versions import warn_untested

if TYPE_CHECKING:
    from foveate.attachment import Attachment

_NAME = "_foveate"


class InstrumentedModel:
    """One model with our patches on it, shared by all who prune it at once; without an attachment, they are inert.

    Every running call uses the ``patches`` too, beside the attachments, so that nothing is taken from under it.

    Args:
        model: a stock transformers model of a known family.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.family: Family = family_for(model)
        base = self.family.base
        self.attachments: list[Attachment] = []
        self.pruned = False
        self.originals: dict[str, Callable[..., Any]] = {"generate": model.generate, "forward": model.forward}
        self.features: dict[Kind, Callable[..., Any]] = {
            kind: checked(getattr(base, f"get_{kind}_features")) for kind in self.family.placeholder_ids
        }
        patches = [
            Patch(model, _NAME, self),
            Patch(model, "generate", self._routed("generate")),
            Patch(model, "forward", self._routed("forward")),
            Patch(model, "_get_logits_processor", self._shown("_get_logits_processor", "processors")),
            Patch(model, "_get_stopping_criteria", self._shown("_get_stopping_criteria", "criteria")),
            Patch(model, "_expand_inputs_for_generation", self._noted(model._expand_inputs_for_generation)),
            Patch(model, "_replicate_for_data_parallel", _replicated),
            *([] if base is model else [Patch(base, "forward", self._guarded(base.forward))]),
            *(
                Patch(base, f"get_{kind}_features", deliver(features, kind, self.family))
                for kind, features in self.features.items()
            ),
            *self.family.instruments(),
        ]
        owners = {id(patch.owner): patch.owner for patch in patches}.values()
        # Copying and pickling take the module alone, since a pruner is on one model only.
        patches += [Patch(one, "__getstate__", functools.partial(self._state_of, one)) for one in owners]
        self.patches = Patches(patches)

    @classmethod
    def on(cls, model: Any) -> InstrumentedModel | None:
        """What is on a model now; None where it is bare."""
        found: InstrumentedModel | None = getattr(model, "__dict__", {}).get(_NAME)
        return found

    @classmethod
    def of(cls, model: Any) -> InstrumentedModel:
        """What is on a model now, else what would be, not put on yet.

        Raises:
            ValueError: no adapter takes it.
        """
        warn_untested()
        return cls.on(model) or cls(model)

    def in_use(self) -> AbstractContextManager[None]:
        """Keeps the patches on for the time of a block."""
        return held(self.model, lambda: self.patches)

    def call(self, pruner: Method, options: Options, views: Views | None = None) -> Call | InsideCall:
        """A call that fits the method; ``views``: the pictures of a session."""
        if isinstance(pruner, InsidePruner):
            return InsideCall(self.family, pruner, options, self.features, views)
        return Call(self.family, cast(Pruner, pruner), options, self.features, views)

    def current(self) -> Attachment | None:
        """The attachment that applies to the running thread or task; None when the model is only looked through."""
        attachments = [one for one in self.attachments if one.active]
        own = ownership.own(attachments)
        if own is not None or not attachments:
            return own
        if len(attachments) == 1:
            return attachments[0]
        raise RuntimeError(
            f"{len(attachments)} threads or tasks have pruners on this model and this one has none of its own: attach "
            "one here"
        )

    def _state_of(self, owner: Any) -> dict[str, Any]:
        return self.patches.state_without(owner)

    def _prune(self, name: str, attachment: Attachment, *args: Any, **kwargs: Any) -> Any:
        key = object()
        try:
            attachment.running[key] = f"thread {threading.current_thread().name!r}"
            with self.in_use():
                call = self.call(attachment.pruner, attachment.options)
                result = getattr(call, name)(self.originals[name], *args, **kwargs)
        except BaseException:
            _end(kwargs.get("streamer"))
            raise
        finally:
            attachment.running.pop(key, None)
        attachment.note(call.selections)
        call.mirror()
        return result

    def _routed(self, name: str) -> Callable[..., Any]:
        original = self.originals[name]

        # generate() inspects forward's signature; what torch.compile left on it is not true of this one
        @functools.wraps(original, updated=())
        def routed(*args: Any, **kwargs: Any) -> Any:
            attachment, delivery, other = self._asked(name, args, kwargs)
            if other:
                return self._apart(name, attachment, delivery, args, kwargs)
            if delivery is not None:
                kwargs = fill_mask(delivery, kwargs)
            return original(*args, **kwargs)

        return routed

    @untraced
    def _asked(
        self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Attachment | None, Delivery | None, bool]:
        """The pruner that applies, or the running call that this is part of; whether it is apart from all."""
        delivery = running(self.family)
        given = self.family.named(bind(self.originals[name], args, kwargs))
        if delivery is not None and delivery.holds(given, whole=name == "generate"):
            return None, delivery, name == "generate"
        if not self.patches.users:
            self._refuse_late(name, kwargs)
            return None, None, False
        attachment = self.current()
        return attachment, None, attachment is not None or delivery is not None

    @untraced
    def _apart(
        self,
        name: str,
        attachment: Attachment | None,
        delivery: Delivery | None,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        with outside() if delivery is None else assisting(delivery):
            if attachment is None:
                return self.originals[name](*args, **kwargs)
            return self._prune(name, attachment, *args, **kwargs)

    def _refuse_late(self, name: str, kwargs: Mapping[str, Any]) -> None:
        """Raises RuntimeError when what is called was taken from a model under a pruner that is off by now."""
        if not self.pruned:
            return
        _end(kwargs.get("streamer"))
        raise RuntimeError(
            f"this model.{name} was taken from the model while a pruner was on it, and is called after the pruner has "
            f"come off: call model.{name} inside the `with` block, or take it anew to run without pruner"
        )

    def _guarded(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        """The inner model's forward, which would quietly see everything if it were called directly."""

        @functools.wraps(forward, updated=())
        def guarded(*args: Any, **kwargs: Any) -> Any:
            self._check_inner(forward, args, kwargs)
            return forward(*args, **kwargs)

        return guarded

    @untraced
    def _check_inner(self, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        if not self.patches.users:
            return
        given = self.family.named(bind(forward, args, kwargs))
        delivery = running(self.family)
        if delivery is not None and delivery.holds(given):
            return
        images = any(self.family.has(given, kind) for kind in self.features) or given.get("mm_encoder_outputs")
        if images and self.current() is not None:
            raise ValueError(
                f"{type(self.family.base).__name__}.forward was called directly, under a pruner that works on the "
                "whole model: call model(..., output_hidden_states=True), whose hidden states are those of the "
                "shortened prompt, or leave the pruner off"
            )

    def _shown(self, name: str, seen: str) -> Callable[..., Any]:
        """What generate makes its processors or criteria with: inside a pruned call, they see the long prompt."""
        made = getattr(self.model, name)

        @functools.wraps(made)
        def shown(*args: Any, **kwargs: Any) -> Any:
            delivery = running(self.family)
            if delivery is None or delivery.view is None:
                return made(*args, **kwargs)
            return getattr(delivery.view, seen)(made, bind(made, args, kwargs))

        return shown

    def _noted(self, expand: Callable[..., Any]) -> Callable[..., Any]:
        """What generate repeats its inputs with, for beams: inside a pruned call, repeated pixels are still its own."""

        @functools.wraps(expand)
        def noted(*args: Any, **kwargs: Any) -> Any:
            ids, repeated = expand(*args, **kwargs)
            delivery = running(self.family)
            if delivery is not None:
                delivery.repeated(repeated)
            return ids, repeated

        return noted


def _end(streamer: Any) -> None:
    """Whoever reads a streamer whose call has failed would wait for ever."""
    if streamer is not None:
        streamer.end()


def _replicated() -> NoReturn:
    raise RuntimeError(
        "DataParallel copies the model to every device, and a pruner is on one model only: use one process and one "
        "model per device (DistributedDataParallel)"
    )


@contextmanager
def looking_through(model: Any) -> Iterator[InstrumentedModel]:
    """A model's patches without a pruner on it: what a session encodes and asks through."""
    model = stock_model(model)
    with ExitStack() as held:
        with lock_of(model):
            instrumented = InstrumentedModel.of(model)
            held.enter_context(instrumented.in_use())
        yield instrumented
