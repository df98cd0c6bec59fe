"""What a row of the family matrix is, and what all tiny models share."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

import foveate

IMAGE, VIDEO, END, START, PAD, BOS = 99, 98, 97, 96, 0, 1
SILENT = [IMAGE, VIDEO, END, START]
"""Never generated: a random model would write placeholders."""
SIDE = 56

# The text model of every family, as arguments of its config.
TEXT: dict[str, Any] = {
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    # Wide enough that greedy choices are far from ties.
    "initializer_range": 0.3,
    "pad_token_id": PAD,
    "bos_token_id": BOS,
    "eos_token_id": None,
}
# The vision tower of most.
VISION: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": SIDE,
    "patch_size": 14,
}


def finish(model: Any, attention: str | dict[str, str], noise: float = 0.1) -> Any:
    """Evaluation mode, every weight off its initial value (no two tokens alike), nothing that ends generation."""
    model = model.eval()
    generator = torch.Generator().manual_seed(7)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.add_(torch.randn(parameter.shape, generator=generator) * noise)
    model.set_attn_implementation(attention)
    model.generation_config.pad_token_id = PAD
    model.generation_config.eos_token_id = None
    return model


def known(*model_types: str) -> bool:
    """Whether this transformers has these types; a row of a family it does not have is left out."""
    return all(model_type in CONFIG_MAPPING_NAMES for model_type in model_types)


def encodes_apart(name: str) -> bool:
    """Whether a class is there whose forward takes encoded images from outside (5.18)."""
    found = getattr(transformers, name, None)
    return found is not None and "mm_encoder_outputs" in inspect.signature(found.forward).parameters


def noise(number: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator("cpu").manual_seed(10 + number), device="cpu")


def flat(numbers: list[list[int]]) -> list[int]:
    return [number for images in numbers for number in images]


def inner(model: Any) -> Any:
    """Where its ``get_image_features`` is: the inner model, or the model itself where there is none inside."""
    base = getattr(model, "model", model)
    return base if hasattr(base, "get_image_features") else model


def llm(model: Any) -> Any:
    """Its language model, without the head."""
    return getattr(inner(model), "language_model", None) or model.model


def features_of(model: Any, inputs: dict[str, Tensor], kind: str) -> Any:
    """The output of the stock model's own ``get_image_features`` or ``get_video_features``."""
    names = {
        "image": (
            "pixel_values", "pixel_values_images", "pixel_values_local", "high_res_pixel_values", "image_sizes",
            "image_grid_thw", "pixel_attention_mask", "batch_num_images", "image_merge_sizes", "image_position_ids",
            "target_sizes", "spatial_shapes", "num_local_patches", "image_token_pooling", "image_grids",
        ),
        "video": (
            "pixel_values_videos", "video_grid_thw", "video_merge_sizes", "video_position_ids", "num_frames_per_video",
            "video_token_pooling", "video_grids",
        ),
    }[kind]  # fmt: skip
    images = {name: inputs[name] for name in names if name in inputs}
    owner = model if hasattr(model, f"get_{kind}_features") else model.model
    features = getattr(owner, f"get_{kind}_features")
    if "vision_feature_select_strategy" in inspect.signature(features).parameters and inner(model) is model:
        images["vision_feature_select_strategy"] = None  # Llama 4 in 5.5: without a default, and unused
    with torch.no_grad():
        return features(**images, return_dict=True)


def given_by(module: Callable[[Any], Any]) -> Callable[[Any, dict[str, Tensor], str], Tensor]:
    """What a module of the stock encoder gives."""

    def encoded(model: Any, inputs: dict[str, Tensor], kind: str) -> Tensor:
        found: list[Tensor] = []
        hook = module(model).register_forward_hook(lambda module, args, output: found.append(output))
        try:
            features_of(model, inputs, kind)
        finally:
            hook.remove()
        (output,) = found
        return output

    return encoded


def one_each(model: Any, inputs: dict[str, Tensor], kind: str) -> list[Tensor]:
    """Per image its (n, D) features: the families whose ``pooler_output`` has an entry per image."""
    return list(features_of(model, inputs, kind).pooler_output)


def language_model(model: Any, embeddings: Tensor, mask: Tensor, positions: Tensor, prompt: Any) -> Tensor:
    """(B, S, D) hidden states of the language model alone, without a cache."""
    return llm(model)(
        inputs_embeds=embeddings, attention_mask=mask, position_ids=positions, use_cache=False
    ).last_hidden_state


def ids_of(model: Any, embeddings: Tensor, prompt: Any) -> Tensor:
    """(B, S) ids of a prompt assembled by hand and of what was generated since, which is known by its embeddings."""
    width = prompt.mask.shape[1]
    words = model.get_input_embeddings()(torch.arange(TEXT["vocab_size"]))
    rows = [[PAD] * (width - len(ids)) + ids for ids in prompt.ids]
    for row, vectors in zip(rows, embeddings[:, width:], strict=True):
        row += [int((words == vector).all(dim=1).nonzero()[0, 0]) for vector in vectors]
    return torch.tensor(rows)


def table(model: Any, ids: Tensor) -> Tensor:
    """The text's embeddings."""
    embeddings: Tensor = model.get_input_embeddings()(ids)
    return embeddings


def scaled(model: Any, hidden: Tensor) -> Tensor:
    """The logits of (..., D) hidden states."""
    scores: Tensor = model.get_output_embeddings()(hidden)
    return scores * model.logit_scale if hasattr(model, "logit_scale") else scores


@dataclass(frozen=True)
class Row:
    """One line of the family matrix: how to build the model, and its inputs.

    Args:
        make: attention implementation -> model.
        pixels: image numbers of every prompt -> the model's image inputs.
        newlines: whether some placeholders carry ``model.model.image_newline``.
        marks: (model, (n, D) of an image's placeholders) -> (n,) bool: which of them show nothing, and stay.
        kind: "image" or "video".
        write: (image number, its placeholders) -> the ids that stand for it in a prompt, marks included.
        per_token: ids -> further inputs with one entry per token.
        streams: (model, inputs, kind) -> per image the (n, D) that stock transformers puts into its placeholders.
        planes: (model, inputs, kind) -> per image what joins deeper layers, (n, D) each.
        embed: (model, an id as a 0-d tensor) -> (D,) what stands for a token of the prompt that is no placeholder.
        hidden: the language model run by hand; see ``language_model``.
        static: the same with a static cache, for which stock's ``generate`` makes another mask than without one.
        read: model -> the attention module whose attention is saliency.
        saliency: (model, inputs, that module's whole attention matrices in call order, averaged over heads, the
            encoded images) -> per image (N,) float64, worked out by hand.
        hands: model -> the module whose output the projector reads; None: ``tests/models/test_encoded.py`` knows it.
        rope: whether positions have three dimensions.
        text_row: whether stock takes those of text in front of them.
        alone: whether stock gives a prompt of a batch the positions that it has alone.
        positions: how they may be numbered where they have one dimension.
        mixes_beams: whether stock ``generate`` itself hands the images of a prompt with several to the wrong beams, or
            the patches of one (PaddleOCR-VL in 5.19).
        looks_up: whether stock prompt lookup is greedy decoding (5.19 gives looked-up tokens the prompt's last token
            type, which puts them into PaliGemma's bidirectional prefix).
        fails: by mode of the matrix, or "forward", the error with which stock transformers itself fails in it.
        hybrid: whether some layers of the LLM have no attention logits (linear attention, convolutions), to which
            nothing can be added.
        unread: what no method can read of this encoder: "saliency", "keys".
        cap: softcapping of the logits, where stock's head has any.
        scores: (model, (..., D) hidden states) -> logits.
        encoded: (model, inputs, kind) -> what the stock tower hands to its projector, patches in the order of its
            attention, where its output is not that.
        packs: inputs -> lengths of the sequences that this is packed of, where they are not the grids' frames.
        slices: whether stock's forward takes ``logits_to_keep``, rather than passing it over.
        only_pruned: the same where a pruned call, which hands over features by itself, does not.
        embeds: whether stock ``generate(inputs_embeds=...)`` is the same model (no planes, no masks made from ids).
        hand: (model, output of ``get_image_features``, per image what is to stand in the prompt, per plane and image
            what is to join deeper layers) -> None: writes these into that output, where it is not built as most are.
        placeholder: its id; None: the one that everybody uses for its kind.
        repeats: whether stock ``generate`` can repeat the prompt for beams (5.19 counts the placeholders of GLM's
            videos under an id that no prompt holds, and has none left).
        grows: whether stock ``generate`` grows the per-token inputs with the prompt, where it reads them again: without
            a cache and in prompt lookup (ERNIE's own stay as long as they came, and its experts fail).
        runs: how often stock's encoder runs for the images of one call (Step 3.7's for the crops by themselves).
    """

    make: Callable[[str], Any]
    pixels: Callable[[list[list[int]]], dict[str, Tensor]]
    read: Callable[[Any], Any]
    saliency: Callable[[Any, dict[str, Tensor], list[Tensor], Any], list[Tensor]]
    newlines: bool = False
    marks: Callable[[Any, Tensor], Tensor] = lambda _, stream: torch.zeros(len(stream), dtype=torch.bool)
    kind: str = "image"
    write: Callable[[int, int], list[int]] = lambda _, count: [IMAGE] * count
    per_token: Callable[[Tensor], dict[str, Tensor]] = lambda _: {}
    streams: Callable[[Any, dict[str, Tensor], str], list[Tensor]] = one_each
    planes: Callable[[Any, dict[str, Tensor], str], list[list[Tensor]]] | None = None
    embed: Callable[[Any, Tensor], Tensor] = table
    hidden: Callable[[Any, Tensor, Tensor, Tensor, Any], Tensor] = language_model
    static: Callable[[Any, Tensor, Tensor, Tensor, Any], Tensor] | None = None
    hands: Callable[[Any], Any] | None = None
    scores: Callable[[Any, Tensor], Tensor] = scaled
    encoded: Callable[[Any, dict[str, Tensor], str], Tensor] | None = None
    rope: bool = False
    text_row: bool = True
    alone: bool = True
    positions: tuple[str, ...] = ("compact", "original")
    mixes_beams: bool = False
    looks_up: bool = True
    hybrid: bool = False
    fails: Mapping[str, str] = field(default_factory=dict)
    only_pruned: Mapping[str, str] = field(default_factory=dict)
    unread: tuple[str, ...] = ()
    cap: float | None = None
    packs: Callable[[dict[str, Tensor]], list[int]] | None = None
    slices: bool = True
    embeds: bool = True
    hand: Callable[[Any, Any, list[Tensor], list[list[Tensor]]], None] | None = None
    placeholder: int | None = None
    repeats: bool = True
    grows: bool = True
    runs: int = 1

    def pruner(self, keep: float | int) -> Any:
        """The method that the matrix's tests are run with: one that reads all there is to read."""
        return foveate.get_pruner("cdpruner" if "saliency" in self.unread else "adafv", keep=keep)

    def steady(self, keep: float | int) -> Any:
        """One that does not read the text, which grows from turn to turn."""
        return foveate.get_pruner("divprune" if "saliency" in self.unread else "saliency", keep=keep)

    @property
    def token(self) -> int:
        if self.placeholder is not None:
            return self.placeholder
        return IMAGE if self.kind == "image" else VIDEO


# Image numbers per prompt of the batch.
BATCHES: dict[str, list[list[int]]] = {"one": [[0]], "several": [[1, 2]], "mixed": [[0], [], [1, 2]]}


def prompts(row: Row, model: Any, batch: str, only: int | None = None) -> dict[str, Tensor]:
    """Model inputs for a batch of prompts, padded on the left; or for one of them alone."""
    numbers = BATCHES[batch]
    places = range(len(numbers)) if only is None else [only]
    pixels = row.pixels([numbers[place] for place in places])
    lengths = iter([len(one) for one in row.streams(model, pixels, row.kind)])
    rows = []
    for place in places:
        ids = [BOS, 5 + place, 6]
        for image in numbers[place]:
            ids += [*row.write(image, next(lengths)), 20 + image, 30 + place]
        rows.append([*ids, 40 + place, 41, 42, 40 + place, 41])
    width = max(map(len, rows))
    ids = torch.tensor([[PAD] * (width - len(one)) + one for one in rows])
    mask = torch.tensor([[0] * (width - len(one)) + [1] * len(one) for one in rows])
    return {"input_ids": ids, "attention_mask": mask, **row.per_token(ids), **pixels}
