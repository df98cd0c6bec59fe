"""Families nobody wrote an adapter for: a common pattern, tried out before it is believed, and said aloud."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from foveate.attention import recording
from foveate.models.base import Family
from foveate.models.encoded import EncodedImage, Kept, Kind, Request, grid_geometry, read_tokens, recorder_for
from foveate.models.pattern import LAYERS, Tokens, parts_of, try_out
from foveate.models.squares import square_sources, stacked
from foveate.models.tiles import runs_of
from foveate.patches import Patch

REMEDY = "docs/adding_a_family.md says how to write an adapter for it."

# By model: the layer that is read, and what was seen when it was tried. Tried once per model, not at every attachment.
_tried: WeakKeyDictionary[nn.Module, tuple[str, Tokens]] = WeakKeyDictionary()


class Generic(Family):
    """Any class with ``model.get_image_features``, one square tower and plain positions. See ``parts_of``."""

    title = "the generic adapter"
    model_types = ()
    checkpoints = {}
    """Of the types that it is known to take, by a row each in the matrix of tests."""
    saliency = "CLS row, or mean received attention"
    merge = "1, or a square"
    views = "a run of placeholders"

    def __init__(self, model: Any) -> None:
        self.parts = parts_of(model)
        super().__init__(model)

    def check(self) -> None:
        known = _tried.get(self.model)
        if known is None or known[0] != self.parts.name:
            known = _tried[self.model] = (self.parts.name, try_out(self.base, self.parts))
        self.seen = known[1]
        self.factor = self.seen.patches // self.seen.side
        parts, seen = self.parts, self.seen
        warnings.warn(
            f"no adapter knows {self.config.model_type!r}; the generic one assumes: saliency is "
            + ("the attention CLS pays" if parts.cls else "the mean attention received (no CLS)")
            + f" in {parts.name}, the deepest layer the projector reads; a view of {parts.side}x{parts.side} pixels "
            f"has {seen.patches}x{seen.patches} patches, and {self.factor}x{self.factor} of them make one of its "
            f"{seen.side}x{seen.side} tokens (both were tried out on noise); an unbroken run of image tokens in the "
            "prompt is one image, of one or more views; where the views lie in the picture is not known: boxes are "
            f"those of views put one below the other. {REMEDY}",
            stacklevel=4,
        )

    def instruments(self) -> Sequence[Patch]:
        return self.parts.instruments()

    def refuse(self, inputs: Mapping[str, Any]) -> None:
        super().refuse(inputs)
        others = inspect.signature(self.base.get_image_features).parameters.keys() - {"pixel_values"}
        # Both names of the layers: where transformers renamed them, it still takes the other one.
        given = sorted(name for name in {*others, *LAYERS} if inputs.get(name) is not None)
        if given:
            raise ValueError(
                f"{self.title} does not know what {', '.join(given)} does to the images: leave it out, or set it in "
                f"the config. {REMEDY}"
            )

    def encode(self, inputs: Mapping[str, Any], request: Request) -> list[EncodedImage]:
        pixels, shape = inputs["pixel_values"], (self.parts.channels, self.parts.side, self.parts.side)
        if not torch.is_tensor(pixels) or pixels.ndim != 4 or tuple(pixels.shape[1:]) != shape:
            got = tuple(pixels.shape) if torch.is_tensor(pixels) else type(pixels).__name__
            raise ValueError(
                f"{self.title} takes pixel_values as one tensor (views, {', '.join(map(str, shape))}), got {got}. "
                f"{REMEDY}"
            )
        shares = self._views(request.prompt, len(pixels))
        with recording(
            recorder_for(request, self.parts.read, self.parts.attention, project=self.parts.tower)
        ) as record:
            features = request.features(pixel_values=pixels, return_dict=True).pooler_output
        handed = sum(map(len, record.encoded_rows))
        if request.encoded and handed != len(pixels) * self.seen.patches**2:
            raise ValueError(
                f"{self.title} finds {handed} patches in what {type(self.parts.tower).__name__} hands to the projector "
                f"of {len(pixels)} views with {self.seen.patches**2} each: methods that read the vision encoder's "
                f"features do not work here. {REMEDY}"
            )
        squares = square_sources((self.seen.patches,) * 2, self.factor)
        found, first = [], 0
        for count in shares:
            stream = torch.cat([*features[first : first + count]])
            ours = (
                squares + torch.arange(first, first + count, device="cpu")[:, None, None] * self.seen.patches**2
            ).flatten(0, 1)
            side, first = self.parts.side, first + count
            seen = self.seen.patches * (self.parts.patch or side / self.seen.patches)
            grids = [(self.seen.side, self.seen.side)] * count
            boxes = torch.tensor([[0, n * side, seen, n * side + seen] for n in range(count)], device="cpu")
            geometry = grid_geometry(grids, boxes, (count * side, side), stream.device)
            found.append(EncodedImage.of_patches(read_tokens(record, stream, geometry, ours)))
        return found

    def package(self, kept: Sequence[Kept], kind: Kind) -> Any:
        return super().package(kept, kind) if self.seen.listed else stacked(kept)

    def _views(self, prompt: Tensor | None, views: int) -> list[int]:
        """How many views every image has: an unbroken run of placeholders is one image."""
        if prompt is None:
            raise ValueError(f"{self.title}: only the prompt tells which views are one image; encode with a prompt")
        each = self.seen.side**2
        runs = [end - first for row in prompt for first, end in runs_of(row, self.image_token_id)]
        if any(run % each for run in runs) or sum(runs) != views * each:
            raise ValueError(
                f"the prompts hold runs of {', '.join(map(str, runs)) or 'no'} image placeholders, and the {views} "
                f"views in pixel_values need {each} each, whole in one run. Pass all that the model's own processor "
                f"returned; if you did, it writes images in a way the generic adapter does not know. {REMEDY}"
            )
        return [run // each for run in runs]
