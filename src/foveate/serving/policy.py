"""What a server keeps of an image, and what a single request may ask for instead. Knows nothing of vLLM."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from foveate.crops import Crops
from foveate.pixels import LARGEST, Pixels
from foveate.pruners import Pruner, Wrapper, get_pruner, replaced, takes
from foveate.tokens import Keep

CONFIG_KEY = "foveate"
"""The name under which the options travel: in ``hf_overrides``, and in a request's ``mm_processor_kwargs``."""
FROM_REQUEST = ("keep", "method", "crops", "pixels")

AS_IT_IS = Pixels(1.0)
"""No resizing."""


@dataclass(frozen=True)
class Wish:
    """What one request keeps of each of its images.

    Args:
        method: a method's name.
        keep: see ``Keep``.
        crops: which of its crops are encoded; None: all.
        pixels: how large each image is when the processor sees it, never ``"auto"``.
    """

    method: str
    keep: Keep
    crops: Crops | None = None
    pixels: Pixels = AS_IT_IS


@dataclass(frozen=True)
class Policy:
    """How a server prunes.

    Args:
        method: the method when a request names none; any of ``foveate methods`` that prunes before the LLM, options
            behind its name as for ``parse_method``.
        keep: a fraction of each image's patch tokens, in (0, 1], or an int, tokens per image; or a text as for
            ``Keep.read``, such as ``"10%"``. Default 0.1.
        max_keep: the most a request may ask for, likewise. Default 1.0: everything.
        methods: further methods that a request may name. Default none.
        options: of the method, by name, such as ``{"min_share": 0.3}``. ``methods`` run with their defaults, but for
            ``text_span``, which holds for all that read the question.
        feature_cache_mib: memory for encoded images that wait for further questions, MiB, allocated when the model is
            loaded, so that vLLM's memory profile counts it. Default 512; 0 turns the cache off.
        image_cache_mib: memory of every API server process for pictures that a request named with a UUID, MiB, so that
            it may send the UUID alone with its next question. Default 256; 0 turns it off.
        trust_request_mm_kwargs: whether requests may bring other ``mm_processor_kwargs`` than Foveate's own, and
            ``media_io_kwargs``: what vLLM's option of that name says. Default False.
        stats: folder of the counters that worker processes share with the API server; None: they log them.
        crops: how many of a picture's crops are encoded when a request says nothing of it: a fraction, a number,
            ``"auto"``, ``"distinct"`` or a text as for ``foveate.Crops.of``. Default None: all.
        chat_template: the text of the template that prompts are written with, where it is not the checkpoint's own.
        pixels: how large each picture is when the processor sees it, unless a request says otherwise; see
            ``foveate.Pixels``, but for ``"auto"``. Requests may enlarge pictures up to this scale, and not at all where
            it is 1 or less, or a number of pixels. Default 1.0.

    Raises:
        TypeError, ValueError: an unknown method or option, a method that prunes inside the LLM, ``keep`` above
            ``max_keep``, a negative size.
    """

    method: str = "adafv"
    keep: float | int = 0.1
    max_keep: float | int = 1.0
    methods: Sequence[str] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    feature_cache_mib: int = 512
    image_cache_mib: int = 256
    trust_request_mm_kwargs: bool = False
    stats: str | None = None
    chat_template: str | None = None
    crops: float | int | str | None = None
    pixels: float | int = 1.0

    def __post_init__(self) -> None:
        if isinstance(self.methods, str):
            raise TypeError(f"methods must be a list of names, got {self.methods!r}")
        for name in ("keep", "max_keep"):
            value = getattr(self, name)
            object.__setattr__(self, name, (Keep.read(value, name) if isinstance(value, str) else Keep(value)).value)
        crops = Crops.of(self.crops)
        object.__setattr__(self, "crops", None if crops is None else str(crops))
        object.__setattr__(self, "pixels", self.allowed_pixels(self.pixels, LARGEST).value)
        for name in ("feature_cache_mib", "image_cache_mib"):
            size = getattr(self, name)
            if isinstance(size, bool) or not isinstance(size, int) or size < 0:
                raise ValueError(f"{name} must be a number of MiB >= 0, got {size!r}")
        for name in self.names:
            pruner = self.pruner(name, self.keep)
            if pruner.adaptive:
                raise ValueError(
                    f"{name} knows how many tokens stay once the image is encoded, and a server lays the prompt out "
                    "before: serve the method that it holds, at a keep of its own"
                )
            innermost = pruner.innermost if isinstance(pruner, Wrapper) else pruner
            if getattr(innermost, "variant", "paper") == "released":
                raise ValueError(
                    "variant='released' needs every view's full grid, and rounds budgets its own way: it is for "
                    "checking published numbers with transformers, not for serving"
                )
        self.require_allowed(Keep(self.keep))

    @property
    def names(self) -> tuple[str, ...]:
        """Every method that may run, the default one first."""
        return tuple(dict.fromkeys([self.method, *self.methods]))

    @property
    def reads_saliency(self) -> bool:
        """Whether any method that may run reads visual saliency."""
        return any(self.pruner(name, 1).reads_saliency for name in self.names)

    @property
    def reads_keys(self) -> bool:
        """Whether any method that may run reads the encoder's keys."""
        return any(self.pruner(name, 1).reads_keys for name in self.names)

    @property
    def reads_encoded(self) -> bool:
        """Whether any method that may run reads what the encoder hands to the projector."""
        return any(self.pruner(name, 1).reads_encoded for name in self.names)

    def pruner(self, method: str, keep: float | int) -> Pruner:
        """The pruner of an allowed method.

        Raises:
            ValueError, TypeError: no such method, or options it does not have.
        """
        pruner = get_pruner(method, keep=keep)
        if not isinstance(pruner, Pruner):
            raise ValueError(
                f"{method} prunes between the layers of the LLM, and vLLM runs those itself: serve a method that "
                "prunes before the LLM"
            )
        given = dict(self.options) if method == self.method else {}
        if "text_span" in self.options and takes(method, "text_span"):
            given["text_span"] = self.options["text_span"]
        try:
            return replaced(pruner, **given)
        except TypeError as error:
            raise TypeError(
                f"options of {method} are {', '.join(pruner.options) or 'none'}, got {given}: {error}"
            ) from None

    def wish(self, request: object) -> Wish:
        """What a request asks for, the server's own values where it is silent.

        Args:
            request: the value of ``foveate`` in its ``mm_processor_kwargs``; None where there is none.

        Raises:
            ValueError: not a mapping, unknown names, a method that is not allowed, ``keep`` that is no budget or
                above ``max_keep``. The message says what is allowed.
        """
        if request is None:
            request = {}
        if not isinstance(request, Mapping):
            raise ValueError(f'{CONFIG_KEY} must be an object such as {{"keep": 0.2}}, got {request!r}')
        unknown = [str(name) for name in request if name not in FROM_REQUEST]
        if unknown:
            raise ValueError(f"a request may set keep and method, crops and pixels, not {', '.join(unknown)}")
        method = request.get("method", self.method)
        if method not in self.names:
            raise ValueError(f"method {method!r} is not served here; known: {', '.join(self.names)}")
        try:
            keep = Keep.read(request["keep"]) if "keep" in request else Keep(self.keep)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{error}. This server allows {self.range}") from None
        self.require_allowed(keep)
        try:
            crops = Crops.of(request.get("crops", self.crops))
        except TypeError as error:
            raise ValueError(str(error)) from None
        most = max(1.0, self.pixels) if isinstance(self.pixels, float) else 1.0
        return Wish(method, keep, crops, self.allowed_pixels(request.get("pixels", self.pixels), most))

    @staticmethod
    def allowed_pixels(given: object, most: float) -> Pixels:
        """How large pictures shall be.

        Args:
            given: see ``Pixels``.
            most: the largest scale.

        Raises:
            ValueError: not what ``Pixels`` takes, a larger scale, or ``"auto"``.
        """
        try:
            pixels = Pixels(given)  # type: ignore[arg-type]
        except TypeError as error:
            raise ValueError(str(error)) from None
        if pixels.is_auto:
            raise ValueError(
                'pixels="auto" looks at a picture with the encoder, and a server lays the prompt out before, in a '
                "process without a model: give a scale such as 0.5, or a number of pixels"
            )
        if isinstance(pixels.value, float) and pixels.value > most:
            raise ValueError(
                f"pixels={pixels.value:g} is more than this server allows: a scale up to {most:g}, or a number of "
                "pixels, which enlarges nothing. The server's own pixels= is what allows more"
            )
        return pixels

    @property
    def range(self) -> str:
        """For people: what ``keep`` may be."""
        if isinstance(self.max_keep, int):
            return f"keep up to {self.max_keep} tokens of an image"
        return f"0 < keep <= {self.max_keep:g} (a fraction of an image's tokens), or as many tokens as an int"

    def require_allowed(self, keep: Keep, tokens: int | None = None, kind: str = "image") -> None:
        """Raises ValueError when ``keep`` is above ``max_keep``.

        Args:
            keep: what is asked for.
            tokens: N of the image, or whatever ``kind`` it is; without it, a fraction and a number are not compared.
        """
        most = Keep(self.max_keep)
        if tokens is None:
            if type(keep.value) is not type(most.value):
                return
            above = keep.value > most.value
        else:
            above = keep.budget(tokens) > most.budget(tokens)
        if above:
            of = "" if tokens is None else f" of {'an' if kind == 'image' else 'a'} {kind} of {tokens} tokens"
            raise ValueError(f"keep={keep.value}{of} is more than this server allows: {self.range}")

    def as_dict(self) -> dict[str, Any]:
        """For ``hf_overrides``: plain values, those that differ from the defaults and the method itself."""
        values = {one.name: getattr(self, one.name) for one in dataclasses.fields(self)}
        values |= {"methods": list(self.methods), "options": dict(self.options)}
        values |= {name: Keep(values[name]).written for name in ("keep", "max_keep")}
        usual = {one.name: one.default for one in dataclasses.fields(self)} | {"methods": [], "options": {}}
        return {name: value for name, value in values.items() if name in ("method", "keep") or value != usual[name]}

    @classmethod
    def of(cls, config: Any) -> Policy | None:
        """The policy that a model's config carries; None where it has none.

        Raises:
            ValueError, TypeError: it carries one that is wrong.
        """
        given = getattr(config, CONFIG_KEY, None)
        if given is None:
            return None
        if isinstance(given, cls):
            return given
        if not isinstance(given, Mapping):
            raise TypeError(f"hf_overrides: {CONFIG_KEY!r} must be an object of options, got {given!r}")
        known = {one.name for one in dataclasses.fields(cls)}
        unknown = [name for name in given if name not in known]
        if unknown:
            raise ValueError(f"unknown serving options {', '.join(unknown)}; known: {', '.join(sorted(known))}")
        # What was typed as JSON: a bare 1 is refused there, and ``as_dict`` writes none.
        read = {name: Keep.read(given[name], name).value for name in ("keep", "max_keep") if name in given}
        return cls(**{**given, **read})


def options(
    method: str = "adafv",
    keep: float | int = 0.1,
    *,
    max_keep: float | int = 1.0,
    methods: Sequence[str] = (),
    feature_cache_mib: int = 512,
    image_cache_mib: int = 256,
    trust_request_mm_kwargs: bool = False,
    stats: str | None = None,
    chat_template: str | None = None,
    crops: float | int | str | None = None,
    pixels: float | int = 1.0,
    **method_options: Any,
) -> dict[str, Any]:
    """``hf_overrides`` that switch pruning on: ``vllm.LLM(model, hf_overrides=foveate.serving.options(keep=0.1))``.

    Args:
        method_options: of the method, such as ``min_share=0.3`` or ``text_span="prompt"``.
        method, keep, max_keep, methods, crops, pixels: see ``Policy``.
        feature_cache_mib, image_cache_mib, trust_request_mm_kwargs, stats, chat_template: likewise.

    Raises:
        TypeError, ValueError: see ``Policy``.
    """
    policy = Policy(
        method, keep, max_keep, tuple(methods), method_options, feature_cache_mib, image_cache_mib,
        trust_request_mm_kwargs, stats, chat_template, crops, pixels,
    )  # fmt: skip
    return {CONFIG_KEY: policy.as_dict()}
