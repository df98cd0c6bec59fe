"""The pattern that classes without an adapter often follow: found in the modules, then tried out on noise."""

from __future__ import annotations

import inspect
import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from foveate.attention import Read, Recorder, handing, recording, tapped_config
from foveate.models.squares import square_sources
from foveate.patches import Patch, Patches

TOWERS = ("vision_tower", "vision_model", "visual", "image_tower", "vision_encoder")
STACKS = ("layers", "layer", "blocks")
ATTENTIONS = ("self_attn", "attention", "attn")
CLS = ("class_embedding", "cls_token")
LAYERS = ("vision_feature_layer", "vision_feature_layers")
OUTPUTS = {"last_hidden_state", "pooler_output", "hidden_states", "attentions"}


@dataclass(frozen=True)
class Parts:
    """What the pattern finds in a model.

    Args:
        tower: the vision tower.
        name: what the layer that is read is called there.
        layer: that layer; the projector reads nothing deeper.
        state: its output's index among the tower's hidden states; None: the projector reads the last one.
        attention: its attention module.
        cls: whether the tower puts a class token before the patches.
        side: pixels of a view's side.
        patch: of a patch's, where the config says.
        channels: of a view.
    """

    tower: nn.Module
    name: str
    layer: nn.Module
    state: int | None
    attention: Any
    cls: bool
    side: int
    patch: int | None
    channels: int

    @property
    def read(self) -> Read:
        """Which attention is saliency."""
        return "cls" if self.cls else "received"

    def instruments(self) -> list[Patch]:
        """What taps the layer, and what the tower hands over."""
        return [
            Patch(self.attention, "config", tapped_config(self.attention)),
            Patch(self.tower, "forward", handing(self.tower, self.patches_of)),
        ]

    def patches_of(self, output: Any) -> Tensor | None:
        """(views, patches, d) what the projector reads of the tower's output; None where that is not to be seen."""
        states = getattr(output, "hidden_states", None)
        found = getattr(output, "last_hidden_state", None)
        if self.state is not None and states is not None:
            found = states[self.state]
        if not torch.is_tensor(found):
            return None
        return found[:, 1:] if self.cls else found


def parts_of(model: Any) -> Parts:
    """Looks for the pattern; the weights are not touched (they may be on the meta device).

    Raises:
        ValueError: what is missing or in the way.
    """
    config: Any = getattr(model, "config", None)
    base: Any = getattr(model, "model", None)
    title = type(model).__name__
    if not hasattr(base, "get_image_features") or not hasattr(model, "generate"):
        raise ValueError(f"{title} has no generate, or no model.get_image_features that turns images into tokens")
    if hasattr(base, "generate"):
        raise ValueError(f"{title} wraps another class that generates, {type(base).__name__}")
    if hasattr(base, "get_rope_index"):
        raise ValueError(f"{title} has positions of its own for images (get_rope_index)")
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(f"{title} is an encoder and a decoder: its prompt is not where it generates")
    if getattr(config, "image_token_id", None) is None and getattr(config, "image_token_index", None) is None:
        raise ValueError(f"its config names no image_token_id: {title} has no placeholders to shorten")
    named = inspect.signature(base.get_image_features).parameters
    if "pixel_values" not in named or "pixel_values" not in inspect.signature(model.forward).parameters:
        raise ValueError(f"{title} does not take its images as pixel_values")
    needed = [name for name, one in named.items() if one.default is one.empty and one.kind is one.POSITIONAL_OR_KEYWORD]
    if needed != ["pixel_values"]:
        raise ValueError(f"its get_image_features needs {', '.join(needed)}, and only pixel_values is known")
    place, tower = _first(base, TOWERS, f"{title} has no vision tower")
    stacks = [
        (f"{place}.{name}", module)
        for name, module in tower.named_modules()
        if isinstance(module, nn.ModuleList) and name.rpartition(".")[2] in STACKS
    ]
    if len(stacks) != 1:
        raise ValueError(f"its {type(tower).__name__} has {len(stacks)} stacks of layers, and one is expected")
    (path, layers), read, state = stacks[0], -1, None
    for name in LAYERS:
        given = getattr(config, name, None)
        if given is not None:
            states = [one % (len(layers) + 1) for one in ([given] if isinstance(given, int) else given)]
            read, state = max(states) - 1, max(states)
            if read < 0:
                raise ValueError(f"{name}={given} reads the patch embeddings, before any attention")
    read %= len(layers)
    attention = _first(layers[read], ATTENTIONS, f"the layers of its {type(tower).__name__} have no attention")[1]
    if not hasattr(getattr(attention, "config", None), "_attn_implementation"):
        raise ValueError(f"{type(attention).__name__} does not go through transformers' attention functions")
    vision = getattr(config, "vision_config", None)
    size = getattr(vision, "image_size", None)
    sides = {size} if isinstance(size, int) else set(size or ())
    if len(sides) != 1:
        raise ValueError(f"vision_config.image_size={size} does not say how large a square view is")
    cls = any(name.rpartition(".")[2] in CLS for name, _ in tower.named_parameters())
    channels = int(getattr(vision, "num_channels", 3))
    patch = getattr(vision, "patch_size", None)
    patch = patch if isinstance(patch, int) else None
    return Parts(tower, f"{path}.{read}", layers[read], state, attention, cls, sides.pop(), patch, channels)


def _first(owner: Any, names: Sequence[str], otherwise: str) -> tuple[str, Any]:
    for name in names:
        if isinstance(getattr(owner, name, None), nn.Module):
            return name, getattr(owner, name)
    raise ValueError(f"{otherwise} among {', '.join(names)}")


@dataclass(frozen=True)
class Tokens:
    """What a view of noise showed.

    Args:
        patches: per side of a view.
        side: tokens per side; each is made of a square of patches.
        listed: whether the features come as a list with an entry per view, or as one tensor.
    """

    patches: int
    side: int
    listed: bool


def try_out(base: Any, parts: Parts) -> Tokens:
    """Encodes a view of noise three times, the third time with some patches negated as they leave the layer that is
    read: the tokens made of them must differ, and no others. All would if a deeper layer were read, none if only
    shallower ones were, and wrong ones if patches were put together in another way.

    Args:
        base: the model's ``.model``.
        parts: what the pattern found in it.

    Raises:
        ValueError: the pattern does not hold, with what was seen.
    """
    generator = torch.Generator("cpu").manual_seed(0)
    turned: list[Tensor] = []
    weight = next(one for one in parts.tower.parameters() if one.is_floating_point())
    pixels = torch.randn(1, parts.channels, parts.side, parts.side, generator=generator, device="cpu").to(weight.dtype)
    pixels = pixels.expand(3, -1, -1, -1).to("cpu" if weight.is_meta else weight.device)  # offloaded: hooks move it
    forward, mine = parts.layer.forward, threading.get_ident()

    def turn(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        if threading.get_ident() != mine:
            return output
        hidden = (output[0] if isinstance(output, tuple) else output).clone()
        patches = torch.randperm(hidden.shape[1] - parts.cls, generator=generator, device="cpu")
        turned.append(patches[: max(1, len(patches) // 8)])
        hidden[2, turned[0] + parts.cls] *= -1
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    changes = [Patch(parts.layer, "forward", turn), *parts.instruments()]
    changes += [Patch(module, "training", False) for module in base.modules() if module.training]  # no dropout
    try:
        with Patches(changes), recording(Recorder(parts.read, parts.attention)) as record, torch.no_grad():
            output = base.get_image_features(pixel_values=pixels, return_dict=True)
    except (TypeError, ValueError, RuntimeError, IndexError, AttributeError) as error:
        raise ValueError(f"its get_image_features failed on {tuple(pixels.shape)} of noise: {error}") from error
    features = output.pooler_output
    if output.keys() - OUTPUTS or len(features) != 3 or any(one.ndim != 2 for one in features):
        raise ValueError(
            f"its get_image_features gives {', '.join(output.keys())}, and pooler_output with one (tokens, width) "
            "per view, and nothing else that the model reads, is expected"
        )
    patches = sum(len(row) for row in record.rows) // 3
    across, tokens = math.isqrt(patches), math.isqrt(len(features[0]))
    if len(turned) != 1 or not tokens or across**2 != patches or tokens**2 != len(features[0]) or across % tokens:
        raise ValueError(
            f"a view gives {len(features[0])} tokens, and {patches} patches were seen in {parts.name}, which ran "
            f"{len(turned)} time(s): no square of tokens, each a square of patches"
        )
    changed, noise = (features[2] - features[0]).float().norm(dim=-1), (features[1] - features[0]).float().norm(dim=-1)
    differs = (changed > 4 * noise.max() + 1e-3 * changed.max()).cpu()
    expected = torch.isin(square_sources((across, across), across // tokens), turned[0]).any(dim=1)
    if not torch.equal(differs, expected):
        raise ValueError(
            f"negating {len(turned[0])} patches as they leave {parts.name} changed {int(differs.sum())} of "
            f"{len(differs)} tokens where {int(expected.sum())} are made of them: another layer is read, or patches "
            "become tokens in another way than square by square"
        )
    return Tokens(across, tokens, not torch.is_tensor(features))
