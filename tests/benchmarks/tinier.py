"""Shapes of checkpoints with everything small but what decides how prompts are written."""

from __future__ import annotations

import dataclasses

from foveate.benchmarks.shapes import Shape


def tiny(shape: Shape, layers: int = 3) -> Shape:
    """The same family, picture layout and kinds of layers; few narrow layers, patches and heads."""
    vision = dict(shape.vision)
    heads = "num_heads" if "num_heads" in vision else "num_attention_heads"
    width = "embed_dim" if "embed_dim" in vision else "hidden_size"
    depth = max(layers, shape.every)
    vision |= {heads: 2, width: 32, shape.depth_name: depth}
    if "intermediate_size" in vision:
        vision["intermediate_size"] = 48
    if "vocab_size" in vision:  # Ovis2's visual vocabulary
        vision["vocab_size"] = 64
    text = dict(shape.text)
    size = text.get("head_dim", 128)
    text |= {"num_attention_heads": 2, "num_key_value_heads": 1, "hidden_size": 2 * size, "intermediate_size": 64}
    if not shape.encoder_only:
        text |= {"num_hidden_layers": 2, "vocab_size": 256}
    for name in ("out_hidden_size", "hidden_size" if "embed_dim" in vision else "out_hidden_size", "projection_dim"):
        if name in vision:
            vision[name] = 2 * size
    top = {name: 2 * size if name in ("hidden_size", "projection_dim") else value for name, value in shape.top.items()}
    if "alignment_intermediate_size" in top:
        top["alignment_intermediate_size"] = 64
    unit = 2 * vision["patch_size"] if isinstance(vision["patch_size"], int) else 28
    # Where the encoder takes any size, few patches will do.
    picture = (8 * unit, 12 * unit) if "image_size" not in vision or "depth" in vision else shape.picture
    return dataclasses.replace(shape, vision=vision, text=text, top=top, picture=picture)
