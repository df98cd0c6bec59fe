"""How to prune, as data: one mapping, or YAML or JSON file, that Python, the commands and the app read alike."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foveate.crops import Crops
from foveate.keep import Keep
from foveate.method_names import AUTO
from foveate.models.encoded import Layout, Newlines, Positions
from foveate.options import Options
from foveate.pixels import Pixels
from foveate.pruners import Method, get_pruner
from foveate.tokens import Selection

if TYPE_CHECKING:
    from PIL.Image import Image

    from foveate.asking_again import AskAgain
    from foveate.attachment import Attachment
    from foveate.session import Answer, Session

SUFFIXES = (".json", ".yaml", ".yml")


@dataclass(frozen=True)
class Config:
    """A method and its options, and how a call is pruned; made by ``foveate.from_config``.

    Args:
        method: its name, options may stand behind. Default ``"adafv"``.
        keep: as for ``Keep.read``, which takes ``"10%"`` and ``"64t"`` beside numbers and refuses a bare 1; or
            ``"auto"``, as for ``foveate.get_pruner``. Default 0.1.
        options: of the method, by name.
        positions, newlines, layout, calibrate, crops: see ``foveate.attach``.
        pixels: see ``foveate.Pixels``.

    Raises:
        TypeError, ValueError: what these refuse.
    """

    method: str = "adafv"
    keep: float | int | str = 0.1
    options: Mapping[str, Any] = field(default_factory=dict)
    positions: Positions | None = None
    newlines: Newlines = "drop"
    layout: Layout = "stock"
    calibrate: bool | float = False
    crops: Crops | float | int | str | None = None
    pixels: float | int | str | None = None
    pruner: Method = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.options, Mapping):
            raise TypeError(f"options must be the method's, by name, such as {{'power': 4.0}}, got {self.options!r}")
        kept = self.keep if self.keep == AUTO else Keep.read(self.keep).value
        object.__setattr__(self, "keep", kept)
        if isinstance(self.pixels, str):
            object.__setattr__(self, "pixels", Pixels.parse(self.pixels).value)
        elif self.pixels is not None:
            object.__setattr__(self, "pixels", Pixels(self.pixels).value)
        reserved = {"keep", "method"} & set(self.options)
        if reserved:
            raise ValueError(f"{reserved.pop()!r} stands beside options, not among them")
        pruner = get_pruner(self.method, keep=kept)  # so that a wrong name is told before a wrong option
        known = pruner.options
        for name in self.options:
            if name not in known:
                raise ValueError(
                    f"{self.method} has no option {name!r}{_meant(name, known)}; it has: {', '.join(known) or 'none'}"
                )
        object.__setattr__(self, "pruner", get_pruner(self.method, **self.options, keep=kept))
        Options(**self.attaching)

    @property
    def attaching(self) -> dict[str, Any]:
        """What ``foveate.attach`` takes of it beside the pruner."""
        return {name: getattr(self, name) for name in ("positions", "newlines", "layout", "calibrate", "crops")}

    def __call__(self, model: Any, **more: Any) -> Attachment:
        """``with config(model): model.generate(...)``, as ``with pruner(model)``; ``more`` as for ``foveate.attach``.

        Raises:
            ValueError: ``pixels`` is set: pictures are resized before the processor sees them, which is not done here.
        """
        from foveate.attachment import Attachment

        if self.pixels is not None:
            raise ValueError(
                f"pixels={self.pixels!r} resizes pictures before the processor sees them, and attaching comes after: "
                "use config.look(model, processor, images), or leave pixels out and call foveate.resized yourself"
            )
        return Attachment(model, self.pruner, Options(**{**self.attaching, **more}))

    @property
    def selections(self) -> list[Selection]:
        """One ``Selection`` per image of the last call under it."""
        return self.pruner.selections

    def look(self, model: Any, processor: Any, images: Image | Sequence[Image]) -> Session:
        """``foveate.look`` with its layout, crops and pixels."""
        from foveate.session import look

        return look(model, processor, images, layout=self.layout, crops=self.crops, pixels=self.pixels)

    def ask(self, session: Session, question: str, pruner: Method | AskAgain | None = None, **options: Any) -> Answer:
        """Asks a session that ``look`` made, as it says, or under another ``pruner``; ``options`` as for
        ``Session.ask``."""
        given = {"positions": self.positions, "newlines": self.newlines, "calibrate": self.calibrate, **options}
        return session.ask(question, self.pruner if pruner is None else pruner, **given)

    @property
    def name(self) -> str:
        """The method with its options behind it, as lists of methods have it: ``"cover:power=4.0"``.

        Raises:
            ValueError: options that cannot be written there.
        """
        wraps = self.keep == AUTO and not get_pruner(self.method).adaptive
        held = get_pruner(self.method)
        own = {one.name for one in fields(held)}  # the others are of the method that it holds
        first, *rest = self.method.split(":")
        mine = [f"{name}={value}" for name, value in self.options.items() if name in own]
        others = [f"{name}={value}" for name, value in self.options.items() if name not in own]
        spelled = ":".join([*([AUTO] if wraps else []), first, *mine, *rest, *others])
        if get_pruner(spelled, **({} if self.keep == AUTO else {"keep": self.keep})) != self.pruner:
            raise ValueError(f"options {dict(self.options)} cannot stand behind {self.method}: write them there")
        return spelled

    def as_dict(self) -> dict[str, Any]:
        """What differs from the defaults, and method and keep: ``from_config`` makes the same of it, from JSON too."""
        keep = self.keep if isinstance(self.keep, str) else Keep(self.keep).written
        found: dict[str, Any] = {"method": self.method, "keep": keep}
        found |= {"options": dict(self.options)} if self.options else {}
        usual = Config()
        for name in KEYS[3:]:
            value = getattr(self, name)
            if value != getattr(usual, name):
                found[name] = str(value) if isinstance(value, Crops) else value
        return found


KEYS = tuple(one.name for one in fields(Config) if one.init)


def from_config(given: Mapping[str, Any] | str | os.PathLike[str] | Config, **changes: Any) -> Config:
    """A configuration from a mapping, or from a YAML or JSON file that holds one.

    ``foveate.from_config({"method": "cover", "keep": "10%", "options": {"power": 4.0}})`` gives what goes around a
    model as a pruner does: ``with config(model): ...``.

    Args:
        given: the keys are the arguments of ``Config``; one whose value is None is as if it were not there.
        changes: go before what is given; None changes nothing. Another method goes without the options given for the
            one before.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file that is neither, a key that is unknown or stands there twice, a value that is refused.
        TypeError: no mapping, or a value of another type.
        ModuleNotFoundError: YAML without PyYAML; the message says how to install it.
    """
    if isinstance(given, Config):
        return from_config({name: getattr(given, name) for name in KEYS}, **changes)
    if isinstance(given, (str, os.PathLike)):
        return read_config(Path(given), changes)
    if not isinstance(given, Mapping):
        raise TypeError(
            f"a configuration is a mapping such as {{'method': 'cover', 'keep': '10%'}}, got {type(given).__name__}"
        )
    found = {name: value for name, value in given.items() if value is not None}
    changed = {name: value for name, value in changes.items() if value is not None}
    for name in [*found, *changed]:
        if name not in KEYS:
            raise ValueError(_unknown(str(name), str(found.get("method", "adafv"))))
    if "method" in changed and changed["method"] != found.get("method"):
        found.pop("options", None)
    if "options" in changed:
        changed["options"] = {**found.get("options", {}), **changed["options"]}
    return Config(**{**found, **changed})


def read_config(path: Path, changes: Mapping[str, Any] | None = None) -> Config:
    """``from_config`` of a file; its errors name the file."""
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{path} is no configuration: give a file that ends with {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise FileNotFoundError(f"no such configuration file: {path}")
    text = path.read_text(encoding="utf-8")
    try:
        found = _json(text) if path.suffix.lower() == ".json" else _yaml(text)
        return from_config({} if found is None else found, **(changes or {}))
    except (ValueError, TypeError) as error:
        raise (
            type(error)(f"{path}: {error}")
            if type(error) in (ValueError, TypeError)
            else ValueError(f"{path}: {' '.join(str(error).split())}")
        ) from None


def _json(text: str) -> Any:
    def once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
        for place, (name, _) in enumerate(pairs):
            if name in [one for one, _ in pairs[:place]]:
                raise ValueError(f"{name!r} stands there twice")
        return dict(pairs)

    return json.loads(text, object_pairs_hook=once)


def _yaml(text: str) -> Any:
    try:
        import yaml
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            'YAML files need PyYAML: pip install "foveate[cli]", or write the same as JSON'
        ) from None

    try:
        tree = yaml.compose(text, Loader=yaml.SafeLoader)
        stack = [tree]
        while stack:
            node = stack.pop()
            if isinstance(node, yaml.MappingNode):
                names = [key.value for key, _ in node.value]
                twice = [name for place, name in enumerate(names) if name in names[:place]]
                if twice:
                    raise ValueError(f"{twice[0]!r} stands there twice")
                stack += [value for _, value in node.value]
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"not YAML: {' '.join(str(error).split())}") from None


def _unknown(name: str, method: str) -> str:
    try:
        options = get_pruner(method).options
    except (TypeError, ValueError):
        options = ()
    if name in options:
        return f"unknown key {name!r}: an option of {method} stands under options: {{'options': {{{name!r}: ...}}}}"
    near = _meant(name, KEYS) or _meant(name, options, f" among the options of {method}")
    return f"unknown key {name!r}{near}; known: {', '.join(KEYS)}"


def _meant(name: str, known: Sequence[str], where: str = "") -> str:
    near = get_close_matches(name, known, 1)
    return f" (did you mean {near[0]!r}{where}?)" if near else ""
