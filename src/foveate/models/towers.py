"""CLIP and SigLIP vision towers as the LLaVA families use them: which layers are read, what saliency there is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from foveate.attention import Read, Recorder, projecting, skippable, tapped_config
from foveate.models.base import Family, Patch, Request

TOWERS: dict[str, Read] = {"clip_vision_model": "cls", "siglip_vision_model": "received"}


@dataclass(frozen=True)
class Reading:
    """How one call reads the tower.

    Args:
        saliency_layer: index of the layer whose output is the deepest hidden state the projector reads.
        strategy: "default" (the first token, CLS, is left out) or "full".
    """

    saliency_layer: int
    strategy: str


class Tower:
    """The vision tower of a LLaVA-like model.

    Args:
        base: the model's ``.model``, with ``vision_tower`` and ``multi_modal_projector``.
        config: the model's config.

    Raises:
        ValueError: the tower is neither CLIP nor SigLIP.
    """

    def __init__(self, base: Any, config: Any) -> None:
        kind = config.vision_config.model_type
        if kind not in TOWERS:
            raise ValueError(
                f"vision tower {kind!r} is not supported in a {config.model_type!r} model; known: {', '.join(TOWERS)}"
            )
        self.read: Read = TOWERS[kind]
        self.config = config
        self.projector: nn.Module = base.multi_modal_projector
        tower: Any = base.vision_tower
        # The path lost its ``vision_model`` level between transformers 5.4 and 5.10.
        self.layers: Sequence[Any] = getattr(tower, "vision_model", tower).encoder.layers
        self.side = config.vision_config.image_size // config.vision_config.patch_size

    def reading(self, inputs: Mapping[str, Any]) -> Reading:
        """Which layer and strategy this call reads: the call's own arguments before the config's.

        Raises:
            ValueError: the embedding layer is asked for (it has no attention), or CLS is mishandled by stock code.
        """
        layers = inputs.get("vision_feature_layer")
        layers = self.config.vision_feature_layer if layers is None else layers
        depth = len(self.layers)
        states = [layer % (depth + 1) for layer in ([layers] if isinstance(layers, int) else layers)]
        if max(states) == 0:
            raise ValueError(
                f"vision_feature_layer={layers} reads the patch embeddings, before any attention: no saliency"
            )
        strategy = inputs.get("vision_feature_select_strategy")
        strategy = self.config.vision_feature_select_strategy if strategy is None else strategy
        if self.read == "received" and strategy == "default":
            raise ValueError(
                "vision_feature_select_strategy='default' drops the first token as CLS, and a SigLIP tower has "
                "none: stock transformers would lose the top-left patch of every view. Set it to 'full' in the "
                "model's and the processor's config."
            )
        return Reading(max(states) - 1, strategy)

    def instruments(self) -> list[Patch]:
        """A tapped config on every attention, a skippable forward on every layer, a projector that shows its output."""
        patches = [Patch(self.projector, "forward", projecting(self.projector))]
        patches += [Patch(layer, "forward", skippable(layer)) for layer in self.layers]
        patches += [Patch(layer.self_attn, "config", tapped_config(layer.self_attn)) for layer in self.layers]
        return patches

    def recorder(self, reading: Reading, request: Request) -> Recorder:
        """A recorder that taps the read layer and skips those after it, whose output nobody reads."""
        return Recorder(
            read=self.read if request.saliency else None,
            at=self.layers[reading.saliency_layer].self_attn if request.saliency or request.keys else None,
            skip=self.layers[reading.saliency_layer + 1 :],
            project=self.projector,
            keys=request.keys,
        )


class TowerFamily(Family):
    """What families around such a tower share."""

    saliency = "CLS row (CLIP), mean received attention (SigLIP)"

    def check(self) -> None:
        self.tower = Tower(self.base, self.config)

    def instruments(self) -> Sequence[Patch]:
        return self.tower.instruments()
