"""Granite Vision 4: LLaVA-NeXT's views, shrunk by queries that each have a place, for several layers of the LLM."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from foveate.modelling_files import beside
from foveate.models.encoded import EncodedImage, Kept, Kind, Request
from foveate.models.llava_next import LlavaNext
from foveate.models.squares import square_sources
from foveate.models.towers import Reading, Tower
from foveate.patches import Patch


class LayersTower(Tower):
    """A tower whose layers are read by a projector each: the deepest of these counts."""

    def __init__(self, base: Any, config: Any) -> None:
        self.states = [layer for layer, _ in config.deepstack_layer_map]
        projectors = list(base.layerwise_projectors)
        if config.spatial_target_layers:
            self.states.append(config.spatial_vision_layer)
            projectors.append(base.spatial_projectors[0])
        depth = config.vision_config.num_hidden_layers + 1
        deepest = max(range(len(self.states)), key=lambda number: self.states[number] % depth)
        parts = SimpleNamespace(vision_tower=base.vision_tower, multi_modal_projector=projectors[deepest])
        super().__init__(parts, config)

    def reading(self, inputs: Mapping[str, Any]) -> Reading:
        """The layers come from the config, whatever a call says."""
        reading = super().reading({**inputs, "vision_feature_layer": self.states})
        return dataclasses.replace(reading, layers=1, deepest=0)


class Granite4Vision(LlavaNext):
    """``Granite4VisionForConditionalGeneration``.

    A token is what a query of a small Q-Former makes of a window of patches. The query starts from the patches of its
    own square, a part of the window (their mean, or one of them), and the model lays the tokens out by these squares:
    they are what a token stands for here. There are several such tokens for a place, of several layers of the encoder
    or parts of the square; each joins another layer of the LLM, where the placeholder itself is nothing.
    """

    title = "Granite Vision 4"
    model_types = ("granite4_vision",)
    checkpoints = {"granite4_vision": "ibm-granite/granite-4.0-3b-vision"}
    layouts = ("stock",)
    crops = False  # the projectors are many, and pack views by the picture
    merge = "2x2, by queries in windows"

    def check(self) -> None:
        queries, window = (int(side) for side in str(self.config.downsample_rate).split("/"))
        if not self.config.deepstack_layer_map:
            raise ValueError(f"{self.title}: a config without deepstack_layer_map is not known; the released ones have")
        self.tower = LayersTower(self.base, self.config)
        if window % queries or self.tower.side % window:
            raise ValueError(
                f"{self.title}: with downsample_rate={self.config.downsample_rate!r} on {self.tower.side} patches a "
                "side, queries stand for no whole squares of patches; released: '4/8'"
            )
        self.factor = window // queries

    @property
    def side(self) -> int:
        return self.tower.side // self.factor

    @property
    def cell(self) -> int:
        return super().cell * self.factor

    def sources(self, order: Tensor) -> Tensor:
        squares = square_sources((self.tower.side,) * 2, self.factor)
        return squares[order % len(squares)] + (order // len(squares) * self.tower.side**2)[:, None]

    @property
    def _first(self) -> int:
        """Which of the features joins the LLM first: what is nearest to standing in the prompt."""
        return min(range(len(self._layers)), key=lambda number: (self._layers[number], -number))

    @property
    def _layers(self) -> list[int]:
        """Which layer of the LLM each joins. Of two for one layer, stock takes the last."""
        return [*(layer for _, layer in self.config.deepstack_layer_map), *self.config.spatial_target_layers]

    def instruments(self) -> Sequence[Patch]:
        return self.tower.instruments()

    def encode(self, inputs: Mapping[str, Any], request: Request) -> list[EncodedImage]:
        planes: list[Sequence[Tensor]] = []

        def features(**given: Any) -> Any:
            planes.extend(features for _, features in request.features(**given).deepstack_features)
            return BaseModelOutputWithPooling(pooler_output=planes.pop(self._first))  # type: ignore[arg-type]

        images = super().encode(inputs, dataclasses.replace(request, features=features))
        return [
            dataclasses.replace(image, planes=tuple(plane[number] for plane in planes))
            for number, image in enumerate(images)
        ]

    def package(self, kept: Sequence[Kept], kind: Kind) -> Any:
        levels = [[one.planes[level] for one in kept] for level in range(len(self._layers) - 1)]
        levels.insert(self._first, [one.features for one in kept])
        output = beside(self.base, "Granite4VisionImageFeaturesOutput")
        return output(deepstack_features=list(zip(self._layers, levels, strict=True)))
