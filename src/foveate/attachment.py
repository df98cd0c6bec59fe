"""Putting a pruner on a model, and taking it off without a trace."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from foveate.attention import untraced
from foveate.delivery import checked, deliver, fill_mask, is_inside
from foveate.inside import check_inside, make_call
from foveate.models import Family, family_for, stock_model
from foveate.models.encoded import Kind, Layout, Newlines, Positions
from foveate.options import Options
from foveate.patches import Patch, Patches
from foveate.pruners.base import Method

_SITE = "_foveate_site"


class Attachment:
    """A pruner on a model: what ``foveate.attach`` returns and ``with pruner(model) as ...`` gives.

    Args:
        model: a stock transformers model of a known family.
        pruner: which tokens stay.
        options: positions, newlines, layout, turn_end.

    Raises:
        TypeError: ``pruner`` is none.
    """

    def __init__(self, model: Any, pruner: Method, options: Options) -> None:
        if not isinstance(pruner, Method):
            raise TypeError(f"expected a pruner such as foveate.AdaFV(keep=0.1), got {type(pruner).__name__}")
        self.model = model
        self.pruner = pruner
        self.options = options
        self._site: Site | None = None

    @property
    def active(self) -> bool:
        """Whether the model is being pruned by this attachment."""
        return self._site is not None

    def activate(self) -> Attachment:
        """Attaches. Raises RuntimeError when this thread has a pruner on the model already."""
        if self._site is not None:
            raise RuntimeError("this attachment is active already; remove() it first")
        self._site = Site.enter(self.model, self)
        return self

    def remove(self) -> None:
        """Detaches; the model object is as it was before. Calling it again does nothing."""
        site, self._site = self._site, None
        if site is not None:
            site.leave(self)

    def __enter__(self) -> Attachment:
        return self if self.active else self.activate()

    def __exit__(self, *error: object) -> None:
        self.remove()


def attach(
    model: Any,
    pruner: Method,
    *,
    positions: Positions | None = None,
    newlines: Newlines = "drop",
    layout: Layout = "stock",
    turn_end: Sequence[Sequence[int]] | None = None,
) -> Attachment:
    """Makes ``model.generate`` and ``model.forward`` prune images, until ``remove()`` is called on what is returned.

    The attachment belongs to the thread that made it. A thread without one of its own (a streaming worker, say) uses
    the model's only attachment; when there are several, it gets an error rather than a guess.

    Args:
        model: a stock transformers model of a known family (``foveate models`` lists them).
        pruner: which tokens stay; see ``foveate.METHODS``.
        positions: ``"compact"`` renumbers the shortened prompt; ``"original"`` leaves every kept token its position.
            Default: the family's own: compact, or original where positions have three dimensions (M-RoPE).
        newlines: LLaVA-NeXT's ``image_newline`` tokens: ``"drop"`` them, or keep those of ``"rows"`` that keep a patch.
            When every patch is kept, they all stay.
        layout: ``"stock"`` sends what stock transformers would send; ``"released"`` (LLaVA-NeXT) chooses from every
            view's full grid, as the published runs had it.
        turn_end: token id sequences that end a user's turn, for pruners with ``text_span="turn"``; by default the
            model's EOS tokens. ``foveate.turn_end(processor)`` reads them from a chat template.

    Raises:
        ValueError: unknown model family, unknown option, or a model that cannot be pruned faithfully.
        TypeError: ``pruner`` is none.
        RuntimeError: this thread has a pruner on the model already.
    """
    options = Options(positions=positions, newlines=newlines, layout=layout, turn_end=turn_end)
    return Attachment(model, pruner, options).activate()


class Site:
    """One model while somebody prunes it: its adapter, the patches, and who is attached from which thread."""

    _lock = threading.Lock()

    def __init__(self, model: Any) -> None:
        self.model = model
        self.family: Family = family_for(model)
        self.attachments: dict[int, Attachment] = {}
        self.originals: dict[str, Callable[..., Any]] = {"generate": model.generate, "forward": model.forward}
        self.features: dict[Kind, Callable[..., Any]] = {
            kind: checked(getattr(self.family.base, f"get_{kind}_features")) for kind in self.family.placeholder_ids
        }
        patches = [
            Patch(model, _SITE, self),
            Patch(model, "generate", self._routed("generate")),
            Patch(model, "forward", self._routed("forward")),
            *(
                Patch(self.family.base, f"get_{kind}_features", deliver(features, kind))
                for kind, features in self.features.items()
            ),
            *self.family.instruments(),
        ]
        owners = {id(patch.owner): patch.owner for patch in patches}.values()
        # Copying and pickling take the module alone, since a pruner is on one model only.
        patches += [Patch(one, "__getstate__", functools.partial(self._state_of, one)) for one in owners]
        self.patches = Patches(patches)

    @classmethod
    def enter(cls, model: Any, attachment: Attachment | None = None) -> Site:
        """The model's site, with one more user; the first one patches the model."""
        model = stock_model(model)
        with cls._lock:
            site: Site = getattr(model, _SITE, None) or cls(model)
            if attachment is not None:
                site._admit(attachment)
            site.patches.acquire()
            return site

    def leave(self, attachment: Attachment | None = None) -> None:
        """One user less; the last one takes the patches along."""
        with self._lock:
            for thread in [thread for thread, other in self.attachments.items() if other is attachment]:
                del self.attachments[thread]
            self.patches.release()

    def _admit(self, attachment: Attachment) -> None:
        thread = threading.get_ident()
        attachment.options.check(self.family)
        check_inside(self.family, attachment.pruner, attachment.options)
        if thread in self.attachments:
            raise RuntimeError(
                f"this model has a pruner on it already ({self.attachments[thread].pruner}): leave its `with` block or "
                "remove() it before attaching another"
            )
        self.attachments[thread] = attachment

    def current(self) -> Attachment | None:
        """The attachment that applies to the running thread; None when the model is only being looked through."""
        attachments = dict(self.attachments)
        own = attachments.get(threading.get_ident())
        if own is not None or not attachments:
            return own
        if len(attachments) == 1:
            return next(iter(attachments.values()))
        raise RuntimeError(
            f"{len(attachments)} threads have pruners on this model and this thread has none of its own: attach "
            f"one here"
        )

    def _state_of(self, owner: Any) -> dict[str, Any]:
        return self.patches.state_without(owner)

    def _routed(self, name: str) -> Callable[..., Any]:
        original = self.originals[name]

        @untraced
        def pruned(*args: Any, **kwargs: Any) -> Any:
            attachment = self.current()
            if attachment is None:
                return original(*args, **kwargs)
            call = make_call(self.family, attachment.pruner, attachment.options, self.features)
            return getattr(call, name)(original, *args, **kwargs)

        # generate() inspects forward's signature; what torch.compile left on it is not true of this one
        @functools.wraps(original, updated=())
        def routed(*args: Any, **kwargs: Any) -> Any:
            if not is_inside():
                return pruned(*args, **kwargs)
            return original(*args, **(fill_mask(kwargs) if name == "forward" else kwargs))

        return routed


@contextmanager
def looking_through(model: Any) -> Iterator[Site]:
    """The model's site without a pruner on it: what a session encodes and asks through."""
    site = Site.enter(model)
    try:
        yield site
    finally:
        site.leave()
