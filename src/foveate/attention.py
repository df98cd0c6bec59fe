"""One layer's attention, read while the encoder stays on SDPA or FlashAttention.

``output_attentions`` would push the whole encoder to eager attention and materialise every (heads, N, N) matrix.
Instead one layer's attention module gets another face of its config that names a tapped attention function: it sees the
queries and keys (after norms and rotary positions), keeps the one row that is wanted, and calls the real function. The
encoder's output stays bit-identical. Everything here is inert unless the running thread has a ``Recorder`` open.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from foveate.attention_rows import cls_attention, over_patches, parts, received_attention, shared_out
from foveate.modelling_files import beside, eager_name

if TYPE_CHECKING:
    from foveate.models.view_store import ViewStore

Read = Literal["cls", "cls_last", "received"]
_PATCHES = {"cls": slice(1, None), "cls_last": slice(None, -1)}
_Function = TypeVar("_Function", bound=Callable[..., Any])


def untraced(function: _Function) -> _Function:
    """Keeps a function out of ``torch.compile``'s graphs, which would bake in what a context variable held once."""
    reason = "foveate asks here what the running call wants of the model: compile it with fullgraph=False to prune it"
    told = {"reason": reason} if "reason" in inspect.signature(torch.compiler.disable).parameters else {}  # torch 2.7
    disabled: _Function = torch.compiler.disable(function, **told)  # type: ignore[no-untyped-call]
    return disabled


class Recorder:
    """What one ``encode`` wants from the instrumented encoder, and where it is put.

    Args:
        read: which attention is saliency there ("cls": the first token is CLS, and no patch; "cls_last": the last one
            is), or None to keep none.
        at: the attention module it is read at.
        skip: layers and what follows them, whose output nobody reads; they pass their input on.
        project: the module that reads the encoder's features (projector, merger); its output per view is kept before
            the model packs or unpads it.
        keys: whether to keep the keys of that module too, averaged over heads.
        saliency: whether to keep that attention, or the keys alone.
        encoded: whether to keep what ``project`` is given.
        patches: what it is given to (..., d), one row per patch in the order of the encoder's attention; None: it is
            that already.
        views: which views run, where only some of them do.
        segments: lengths of the sequences that are packed into one and attend only within themselves, for encoders
            that pack (an implementation may hand them over packed, or one by one); or of the views that are filled up
            to one length behind their patches, which are then numbered without what fills them.
    """

    def __init__(
        self,
        read: Read | None = None,
        at: nn.Module | None = None,
        skip: Iterable[nn.Module] = (),
        project: nn.Module | None = None,
        keys: bool = False,
        saliency: bool = True,
        encoded: bool = False,
        patches: Callable[[Tensor], Tensor] | None = None,
        segments: Sequence[int] | None = None,
        views: ViewStore | None = None,
    ) -> None:
        self.read = read
        self.at = at
        self.skip = {id(layer) for layer in skip}
        self.project = project
        self.keys = keys
        self.wants_saliency = saliency
        self.encoded = encoded
        self.patches = patches
        self.segments = segments
        self.views = views
        self.rows: list[Tensor] = []
        self.key_rows: list[Tensor] = []
        self.encoded_rows: list[Tensor] = []
        self.projected: list[Tensor] = []

    def note(self, query: Tensor, key: Tensor, scaling: float, mask: Tensor | None) -> None:
        """Keeps what is wanted of one call of the attention function, (V, H, P, d) each; float32 under autocast too."""
        with torch.autocast(query.device.type, enabled=False):
            self._note(query, shared_out(key, query.shape[1]), scaling, mask)

    def _note(self, query: Tensor, key: Tensor, scaling: float, mask: Tensor | None) -> None:
        for part, other, hidden in parts(query, key, mask, self.segments):
            if self.wants_saliency and self.read in ("cls", "cls_last"):
                self.rows.append(cls_attention(part, other, scaling, last=self.read == "cls_last").flatten())
            elif self.wants_saliency and self.read == "received":
                self.rows.append(received_attention(part, other, scaling, hidden).flatten())
            if self.keys:
                patches = other[:, :, _PATCHES[self.read]] if self.read in _PATCHES else other
                self.key_rows.append(patches.float().mean(dim=1).flatten(0, 1))

    def note_encoded(self, given: Tensor) -> None:
        """Keeps what the encoder hands to ``project`` in one call, if that is wanted."""
        if self.encoded:
            with torch.no_grad():
                rows = given if self.patches is None else self.patches(given)
                self.encoded_rows.append(rows.float().reshape(-1, rows.shape[-1]))

    def saliency(self, sources: Tensor, device: torch.device) -> Tensor | None:
        """(N,) float32 on ``device``: what was read, summed over the patches that make up each token.

        Args:
            sources: (N,) or (N, m) int64: the patches of each token, numbered through all tower calls of the
                recording. A negative one stands for none.
            device: of the tokens.
        """
        return over_patches(self.rows, sources, device, mean=False)

    def keys_of(self, sources: Tensor, device: torch.device) -> Tensor | None:
        """(N, d) float32: the keys, averaged likewise; None when they were not asked for."""
        return over_patches(self.key_rows, sources, device, mean=True)

    def encoded_of(self, sources: Tensor, device: torch.device) -> Tensor | None:
        """(N, d) float32: what the encoder hands over, averaged likewise; None when it was not asked for."""
        return over_patches(self.encoded_rows, sources, device, mean=True)


# Per thread (and per async task): two threads may encode with one model at once.
_recorder: ContextVar[Recorder | None] = ContextVar("foveate_recorder", default=None)


@contextmanager
def recording(recorder: Recorder) -> Iterator[Recorder]:
    """Opens ``recorder`` for the encoder calls made by this thread inside the block."""
    token = _recorder.set(recorder)
    try:
        yield recorder
    finally:
        _recorder.reset(token)


@contextmanager
def suspended() -> Iterator[None]:
    """Code in the block is none of the open recorder's business."""
    token = _recorder.set(None)
    try:
        yield
    finally:
        _recorder.reset(token)


def open_recorder() -> Recorder | None:
    """The recorder that is open for the running thread."""
    return _recorder.get()


def tapped_config(attention: Any) -> Any:
    """The attention module's config, but that it names the tap of whatever implementation is set there.

    It is the config's other face: both read and write the same attributes, so that switching the implementation
    (``model.set_attn_implementation``) reaches the tapped module too.
    """
    for implementation in {"eager", *ALL_ATTENTION_FUNCTIONS.keys()} - _seen:  # now: a compiled graph registers nothing
        _tap_name(implementation)
        _seen.add(implementation)
    kind: Any = type(attention.config)
    tapped = object.__new__(_tapped_class(kind))
    # Past what a config does whenever an attribute is read, even this one.
    object.__setattr__(tapped, "__dict__", object.__getattribute__(attention.config, "__dict__"))
    return tapped


@functools.cache
def _tapped_class(kind: Any) -> Any:
    """A subclass of a config's class whose implementation is the tap."""
    plain = kind._attn_implementation

    def implementation(config: Any) -> str:
        return _tap_name(plain.fget(config) or "eager")  # none set: what stock falls back to

    body = {"_attn_implementation": property(implementation, plain.fset), "__module__": kind.__module__}
    return type(kind.__name__, (kind,), body)


_TAP = "_tap"
_taps: dict[str, str] = {}
_seen: set[str] = set()  # implementations that have a tap, or are one


def _tap_name(implementation: str) -> str:
    """The name that an implementation's tap has among the attention functions, where it is put if it is not there yet.

    It begins with the implementation's own, since modelling code asks it whether it is flash.
    """
    if implementation not in _taps:
        if implementation.endswith(_TAP):
            return implementation
        _taps[implementation] = implementation + _TAP
        ALL_ATTENTION_FUNCTIONS.register(implementation + _TAP, functools.partial(_tapped, implementation))
    return _taps[implementation]


def _tapped(
    implementation: str,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,
) -> Any:
    _tap(module, query, key, kwargs.get("scaling"), attention_mask)
    if implementation == "eager":  # each modelling file has its own, Llama 4's one for each of its halves
        kind: Any = type(module)
        real = beside(module, eager_name(kind))
    else:
        real = ALL_ATTENTION_FUNCTIONS[implementation]
    return real(module, query, key, value, attention_mask, **kwargs)


@untraced
def _tap(module: nn.Module, query: Tensor, key: Tensor, scaling: float | None, mask: Tensor | None) -> None:
    recorder = _recorder.get()
    if recorder is not None and recorder.at is module:
        with torch.no_grad():
            recorder.note(query, key, query.shape[-1] ** -0.5 if scaling is None else scaling, mask)


@untraced
def _is_skipped(layer: nn.Module) -> bool:
    recorder = _recorder.get()
    # In training it draws random numbers (dropout), which would be others for all that comes after.
    return recorder is not None and id(layer) in recorder.skip and not layer.training


@untraced
def _keep_projected(module: nn.Module, given: Any, output: Any) -> None:
    recorder = _recorder.get()
    if recorder is not None and recorder.project is module:
        recorder.note_encoded(given)
        recorder.projected.append(output)


@untraced
def _keep_handed(module: nn.Module, output: Any, patches: Callable[[Any], Tensor | None]) -> None:
    recorder = _recorder.get()
    if recorder is not None and recorder.project is module and (found := patches(output)) is not None:
        recorder.note_encoded(found)


def skippable(layer: nn.Module) -> Callable[..., Any]:
    """A forward for a layer, norm or head that passes its input on when the open recording says nobody reads it."""
    forward = layer.forward

    def maybe_skip(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        if _is_skipped(layer):
            return hidden_states
        return forward(hidden_states, *args, **kwargs)

    return maybe_skip


def projecting(module: nn.Module) -> Callable[..., Any]:
    """A forward for the projector that leaves what it is given first, and its output, with the open recording."""
    forward = module.forward

    def keep_projected(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        _keep_projected(module, args[0] if args else next(iter(kwargs.values())), output)
        return output

    return keep_projected


def handing(tower: nn.Module, patches: Callable[[Any], Tensor | None]) -> Callable[..., Any]:
    """A forward for a vision tower that leaves what it hands over with the open recording, where that is to be seen.

    Args:
        tower: named as ``project``, since nobody knows the module behind it.
        patches: its output to (views, patches, d), or None.
    """
    forward = tower.forward

    def keep_handed(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        _keep_handed(tower, output, patches)
        return output

    return keep_handed
