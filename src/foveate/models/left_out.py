"""Model types that transformers counts among those that answer with text about images, and why they are not pruned.

``tests/models/test_coverage.py`` holds this list against transformers' own. A type that gets an adapter leaves it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Idea:
    """Models that are left out for one reason.

    Args:
        title: what they have in common, for tables.
        because: the second half of what people are told.
        types: by model type, the first half: what this one does.
        applicable: whether a picture's patches stand in a language model's prompt, so that an adapter could be written.
    """

    title: str
    because: str
    types: Mapping[str, str]
    applicable: bool = False


IDEAS = (
    Idea(
        "latent queries",
        "each has read the whole picture, so that none stands for a part of it that could be left out",
        {
            "aria": "Aria hands its language model learned queries, 128 or 256 a picture",
            "blip-2": "BLIP-2 hands its language model the learned queries of a Q-Former, 32 a picture",
            "idefics2": "Idefics2 hands its language model the latents of a perceiver resampler, 64 a picture",
            "instructblip": "InstructBLIP hands its language model the learned queries of a Q-Former, 32 a picture",
            "instructblipvideo": "InstructBLIP hands its language model the learned queries of a Q-Former, 32 a frame",
            "deepseek_ocr2": "DeepSeek-OCR2 hands its language model learned queries, 144 or 256 a view",
            "kosmos-2": "Kosmos-2 hands its language model learned queries, 64 a picture",
            "kosmos-2.5": "Kosmos-2.5 hands its language model learned queries, 2048 a picture",
        },
    ),
    Idea(
        "cross attention",
        "the prompt holds no image tokens that could be left out",
        {
            "blip": "BLIP's text decoder reads the picture by cross attention in every layer",
            "idefics": "Idefics reads pictures in layers of cross attention between those of its language model",
            "mllama": "Llama 3.2 Vision reads pictures in layers of cross attention within its language model",
        },
    ),
    Idea(
        "encoder and decoder",
        "its answer is written by a decoder that reads an encoder's output by cross attention, with no image tokens in "
        "its prompt",
        {
            "florence2": "Florence-2 is an encoder-decoder",
            "pix2struct": "Pix2Struct is an encoder-decoder",
            "pp_formulanet": "PP-FormulaNet is an encoder-decoder",
            "t5gemma2": "T5Gemma 2 is an encoder-decoder",
            "udop": "UDOP is an encoder-decoder",
            "vision-encoder-decoder": "VisionEncoderDecoder (TrOCR, Donut) is an encoder-decoder",
        },
    ),
    Idea(
        "no placeholders",
        "prompts hold no placeholders that could be left out",
        {"git": "GIT puts the picture's features in front of the text inside its own forward"},
    ),
    Idea(
        "no adapter yet",
        "there is no adapter for that yet, and one can be written (docs/adding_a_family.md)",
        {
            "got_ocr2": "GOT-OCR 2.0 makes its tokens by convolutions behind an encoder whose attention cannot be read",
            "granite_docling": "Granite Docling sends every picture along a route with another number of tokens",
            "inkling_mm_model": "Inkling folds every patch by itself, without attention, and does not say how they lie",
            "nemotron_h_omni": "Nemotron Omni has a class without an inner model before a hybrid of Mamba layers",
            "pp_chart2table": "PP-Chart2Table is GOT-OCR 2.0, whose encoder's attention cannot be read",
            "unlimited_ocr": "UnlimitedOCR generates with caches of its own",
        },
        applicable=True,
    ),
    Idea(
        "no picture or no text",
        "there is no answer about a picture whose prompt could be shortened",
        {
            "evolla": "Evolla answers questions about proteins",
            "mistral4": "Mistral 4 is a language model alone, which transformers lists among those with images",
            "pi0": "pi0 moves a robot and writes actions, not text",
            "pixtral": "pixtral names the vision tower alone (checkpoints of Pixtral that answer say llava)",
        },
    ),
    Idea(
        "pictures as words",
        "there is no vision encoder whose attention, keys or features could be read, and nobody has written an adapter",
        {
            "apertus1p5": "Apertus 1.5 turns a picture into codes that are words of its vocabulary",
            "chameleon": "Chameleon turns a picture into codes that are words of its vocabulary",
            "emu3": "Emu3 turns a picture into codes that are words of its vocabulary",
        },
        applicable=True,
    ),
    Idea(
        "raw patches",
        "there is no vision encoder whose attention, keys or features could be read, and nobody has written an adapter",
        {"fuyu": "Fuyu's language model gets the pixels of patches through one linear layer"},
        applicable=True,
    ),
    Idea(
        "written by diffusion",
        "its generate is none of those whose prompts are shortened here, and nobody has written an adapter",
        {"diffusion_gemma": "DiffusionGemma writes whole blocks of text at once, over and over"},
        applicable=True,
    ),
)
"""Every type that is left out, under the idea that keeps it out."""

REASONS: dict[str, str] = {
    model_type: f"{what}: {idea.because}" for idea in IDEAS for model_type, what in idea.types.items()
}
"""By model type, one sentence for people."""

NOT_APPLICABLE = frozenset(model_type for idea in IDEAS if not idea.applicable for model_type in idea.types)
"""Those to which pruning a prompt's image tokens does not apply at all."""

INSTEAD: dict[str, str] = {
    "internvl_chat": "this InternVL checkpoint runs code of its own; the one whose name ends in -hf says internvl",
    "llava_llama": "this LLaVA checkpoint is for the authors' own code; those of llava-hf say llava or llava_next",
    "llava_mistral": "this LLaVA checkpoint is for the authors' own code; those of llava-hf say llava_next",
    "llava_qwen": "this LLaVA checkpoint is for the authors' own code; those of llava-hf say llava_onevision",
    "ovis": "this Ovis2 checkpoint runs code of its own; the one whose name ends in -hf says ovis2",
}
"""By the model type of a checkpoint that stock transformers does not load as it is: what to load instead."""


def close_to(model_type: str, known: Iterable[str]) -> list[str]:
    """Names, at most three, that someone may have meant."""
    return difflib.get_close_matches(model_type.lower().replace("-", "_"), list(known), n=3, cutoff=0.6)
