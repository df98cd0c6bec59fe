"""Vision towers as the LLaVA families use them: which layers are read, what saliency there is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from foveate.attention import Read, Recorder, projecting, skippable, tapped_config
from foveate.models.base import Family
from foveate.models.encoded import Request, recorder_for
from foveate.patches import Patch

TOWERS: dict[str, Read] = {"clip_vision_model": "cls", "siglip_vision_model": "received"}
PIXTRAL: dict[str, Read] = {"pixtral": "received"}
INTERN: dict[str, Read] = {"internvl_vision": "cls", "qianfan_ocr_vision": "cls"}
NAMES = {"clip_vision_model": "CLIP", "siglip_vision_model": "SigLIP", "pixtral": "Pixtral"}


@dataclass(frozen=True)
class Reading:
    """How one call reads the tower.

    Args:
        saliency_layer: index of the layer whose output is the deepest hidden state the projector reads.
        strategy: "default" (the first token, CLS, is left out) or "full".
        layers: how many hidden states the projector reads, one behind the other.
        deepest: which of them is the deepest.
        normed: whether the encoder's last norm stands between that layer and the projector.
    """

    saliency_layer: int
    strategy: str
    layers: int = 1
    deepest: int = 0
    normed: bool = False


class Tower:
    """The vision tower of a LLaVA-like model.

    Args:
        base: the model's ``.model``, with ``vision_tower`` and ``multi_modal_projector``.
        config: the model's config.
        known: the towers that the family takes, and what is read of each.
        names: what tower and projector are called there.

    ``side`` is how many patches a view of the configured size has along a side, ``covered`` how many pixels these see:
    all, or all but a rest at the right and lower edge that is narrower than a patch.

    Raises:
        ValueError: the tower is none of them.
    """

    def __init__(
        self,
        base: Any,
        config: Any,
        known: Mapping[str, Read] = TOWERS,
        names: tuple[str, str] = ("vision_tower", "multi_modal_projector"),
    ) -> None:
        self.kind: str = config.vision_config.model_type
        if self.kind not in known:
            raise ValueError(
                f"vision tower {self.kind!r} is not supported in a {config.model_type!r} model; "
                f"known: {', '.join(known)}"
            )
        self.read: Read = known[self.kind]
        self.config = config
        self.projector: nn.Module = getattr(base, names[1])
        tower: Any = getattr(base, names[0])
        # The path lost its ``vision_model`` level between transformers 5.4 and 5.10.
        tower = getattr(tower, "vision_model", tower)
        encoder = getattr(tower, "transformer" if self.kind == "pixtral" else "encoder", tower)
        self.layers: Sequence[Any] = encoder.layer if self.kind == "internvl_vision" else encoder.layers
        self.norm: nn.Module | None = getattr(tower, "layernorm" if self.kind in INTERN else "post_layernorm", None)
        self.head: nn.Module | None = getattr(tower, "head", None)
        named = "attention" if self.kind in (*PIXTRAL, *INTERN) else "self_attn"
        self.attentions = [getattr(layer, named) for layer in self.layers]
        size, patch = config.vision_config.image_size, config.vision_config.patch_size
        patch = patch if isinstance(patch, int) else patch[0]
        self.side: int = (size if isinstance(size, int) else size[0]) // patch
        self.covered: int = self.side * patch

    def reading(self, inputs: Mapping[str, Any]) -> Reading:
        """Which layer and strategy this call reads: the call's own arguments before the config's.

        Raises:
            ValueError: the embedding layer is asked for (it has no attention), or CLS is mishandled by stock code.
        """
        layers: Any = inputs.get("vision_feature_layer")
        if layers is None:  # ViP-LLaVA's config said layers once; LightOnOCR has no choice
            layers = getattr(self.config, "vision_feature_layer", getattr(self.config, "vision_feature_layers", -1))
        depth = len(self.layers)
        states = [layer % (depth + 1) for layer in ([layers] if isinstance(layers, int) else layers)]
        if max(states) == 0:
            raise ValueError(
                f"vision_feature_layer={layers} reads the patch embeddings, before any attention: no saliency"
            )
        strategy: Any = inputs.get("vision_feature_select_strategy")
        if strategy is None:
            strategy = getattr(self.config, "vision_feature_select_strategy", "full")  # Mistral 3 has no choice
        if self.read == "received" and strategy == "default":
            raise ValueError(
                "vision_feature_select_strategy='default' drops the first token as CLS, and a "
                f"{NAMES[self.kind]} tower has none: stock transformers would lose the top-left patch of every view. "
                "Set it to 'full' in the model's and the processor's config."
            )
        # A last hidden state is taken before the norm, unless the tower's config ties it to the output.
        tied = getattr(self.config.vision_config, "tie_last_hidden_states", None) or (
            self.kind in INTERN and layers == -1  # it takes the output itself
        )
        return Reading(
            max(states) - 1, strategy, len(states), states.index(max(states)), bool(tied) and max(states) == depth
        )

    def instruments(self) -> list[Patch]:
        """A tapped config on every attention, a skippable forward on all that may go unread, a projector shown."""
        patches = [Patch(self.projector, "forward", projecting(self.projector))]
        behind = [part for part in (self.norm, self.head) if part is not None]
        patches += [Patch(part, "forward", skippable(part)) for part in (*self.layers, *behind)]
        patches += [Patch(attention, "config", tapped_config(attention)) for attention in self.attentions]
        return patches

    def recorder(self, reading: Reading, request: Request, segments: Sequence[int] | None = None) -> Recorder:
        """A recorder that taps the read layer and skips what comes after it and is not read.

        That is the layers behind it, the head that pools what nobody asks for, and the norm where it is not on the way.
        """
        behind = (None if reading.normed else self.norm, self.head)
        return recorder_for(
            request,
            self.read,
            self.attentions[reading.saliency_layer],
            skip=[*self.layers[reading.saliency_layer + 1 :], *(part for part in behind if part is not None)],
            project=self.projector,
            patches=partial(self._patches, reading),
            segments=segments,
        )

    def _patches(self, reading: Reading, given: Tensor) -> Tensor:
        """What the projector is given, (..., d) without CLS; of several layers, the deepest."""
        if self.kind in INTERN:
            return unshuffled(given, int(1 / self.config.downsample_ratio))
        if self.read == "cls" and reading.strategy == "full":
            given = given[:, 1:]
        return given.chunk(reading.layers, dim=-1)[reading.deepest]


def unshuffled(given: Tensor, factor: int) -> Tensor:
    """(views, n * n, factor * factor * d) to (views, patches, d), row by row: takes pixel shuffle back.

    Args:
        given: n x n tokens of a view, each with the patches of a square, row by row, one behind the other.
        factor: patches per side of a token.
    """
    side = math.isqrt(given.shape[1])
    squares = given.reshape(len(given), side, side, factor, factor, -1)
    return squares.transpose(2, 3).reshape(len(given), (side * factor) ** 2, -1)


class TowerFamily(Family):
    """What families around such a tower share."""

    saliency = "CLS row (CLIP), mean received attention (SigLIP)"

    def check(self) -> None:
        self.tower = Tower(self.base, self.config)

    def instruments(self) -> Sequence[Patch]:
        return self.tower.instruments()

    @property
    def first_block(self) -> nn.Module | None:
        block: nn.Module = self.tower.layers[0]
        return block

    def first_tokens(self, output: Tensor) -> Tensor:
        return (output[:, 1:] if self.tower.read == "cls" else output).flatten(0, -2)
