"""The model: a stock Qwen3-VL, initialised to learn fast."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from training.dynamic.clips import Clip
from training.dynamic.data import Picture
from training.dynamic.drawing import make_batch
from training.dynamic.grid import MERGE, PATCH, TEMPORAL, patches
from training.dynamic.presets import Preset
from training.dynamic.words import END, IMAGE, PAD, START, STOP, VIDEO, VOCABULARY

HEAD_WIDTH = 32
TEXT_HEAD_WIDTH = 64
PLACES = 24
"""Learned places a side; other grids are read between them. As many as the largest square picture has cells."""
DEEP = 2
"""Behind this encoder layer tokens are made a second time, for DeepStack: the LLM adds them behind its first layer."""
SECTIONS = [12, 10, 10]
"""Pairs of a head's channels that turn with time, row and column."""


def build(preset: Preset) -> Qwen3VLForConditionalGeneration:
    """A model of the preset's size, not trained."""
    heads = preset.text_width // TEXT_HEAD_WIDTH
    config = Qwen3VLConfig(
        vision_config={
            "hidden_size": preset.vision_width,
            "intermediate_size": 4 * preset.vision_width,
            "depth": preset.vision_layers,
            "num_heads": preset.vision_width // HEAD_WIDTH,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": TEMPORAL,
            "out_hidden_size": preset.text_width,
            "num_position_embeddings": PLACES**2,
            "deepstack_visual_indexes": [min(DEEP, preset.vision_layers - 2)],
        },
        text_config={
            "vocab_size": len(VOCABULARY),
            "hidden_size": preset.text_width,
            "intermediate_size": 2 * preset.text_width,
            "num_hidden_layers": preset.text_layers,
            "num_attention_heads": heads,
            "num_key_value_heads": heads,
            "head_dim": TEXT_HEAD_WIDTH,
            "max_position_embeddings": 4096,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e6,
                "mrope_section": SECTIONS,
                "mrope_interleaved": True,
            },
            "pad_token_id": PAD,
            "eos_token_id": END,
            "tie_word_embeddings": True,
        },
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=START,
        vision_end_token_id=STOP,
        tie_word_embeddings=True,
    )
    config._attn_implementation = "sdpa"
    torch.manual_seed(preset.seed)
    model = Qwen3VLForConditionalGeneration(config)
    model.tie_weights()
    _initialise(model, preset)
    fold_frames(model)
    return model


@torch.no_grad()
def _initialise(model: Qwen3VLForConditionalGeneration, preset: Preset) -> None:
    nn.init.normal_(embeddings(model), std=1 / math.sqrt(preset.text_width))
    tower = model.model.visual
    for part in (tower.blocks, tower.merger, tower.deepstack_merger_list):
        for name, weight in part.named_parameters():
            if weight.ndim == 2:
                nn.init.xavier_uniform_(weight, gain=0.7)
            elif name.endswith("bias"):
                nn.init.zeros_(weight)
    _whiten_patches(model, preset)
    _place_patches(tower.pos_embed.weight)
    for layer in model.model.language_model.layers:
        for name, weight in layer.named_parameters():
            if weight.ndim == 2:
                out = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(weight, std=(0.5 if out else 1.0) / math.sqrt(weight.shape[1]))
    # Half of the heads of the first two layers begin by attending to equal content (queries = keys), so that a
    # question's word finds its visual tokens early. Queries and keys are normalised, so their norms' weights say how
    # strongly: at most TEXT_HEAD_WIDTH ** 0.5 times their product.
    width = preset.text_width
    half = max(TEXT_HEAD_WIDTH, width // 2)
    for layer in model.model.language_model.layers[:2]:
        rotation = torch.linalg.qr(torch.randn(width, width))[0][:half]
        layer.self_attn.q_proj.weight[:half] = rotation
        layer.self_attn.k_proj.weight[:half] = rotation
        layer.self_attn.q_norm.weight.fill_(0.9)


def _whiten_patches(model: Qwen3VLForConditionalGeneration, preset: Preset) -> None:
    """Patch embedding: the patches' principal components, weighted equally down to a floor, rotated at random."""
    weight = model.model.visual.patch_embed.proj.weight  # (width, 3, TEMPORAL, PATCH, PATCH)
    pictures = make_batch(preset.seed + 1, 0, 40, preset.mix, 0.5)
    some = torch.cat([patches(torch.from_numpy(picture.pixels)) for picture in pictures])
    values, vectors = torch.linalg.eigh((some.T @ some / len(some)).double())
    values, vectors = values.flip(0), vectors.flip(1)
    count = weight.shape[0]
    components = (vectors[:, :count] / (values[:count] + 0.5 * values[60]).sqrt()).T.float()
    rotation = torch.linalg.qr(torch.randn(count, count))[0]
    half = (rotation @ components).view(count, 3, 1, PATCH, PATCH) * (0.5 / TEMPORAL)
    weight.copy_(half.expand_as(weight))
    nn.init.zeros_(model.model.visual.patch_embed.proj.bias)


def _place_patches(weight: Tensor) -> None:
    """Position embedding: sines and cosines of row and column, as parts of the whole picture."""
    quarter = weight.shape[1] // 4
    places = torch.linspace(0, 8, PLACES)
    row, column = torch.meshgrid(places, places, indexing="ij")
    waves = 1.5 * torch.exp(-torch.arange(quarter) / quarter * math.log(30.0))
    angles = [place.reshape(-1, 1) * waves for place in (row, column)]
    weight.copy_(0.35 * torch.cat([wave for angle in angles for wave in (angle.sin(), angle.cos())], 1))


def embeddings(model: Qwen3VLForConditionalGeneration) -> nn.Parameter:
    """The word embeddings, (words, D), which are also the output layer."""
    return model.model.language_model.embed_tokens.weight


def hidden(layers: nn.Module) -> list[nn.Parameter]:
    """The matrices inside an encoder's or a language model's layers: everything two-dimensional but its embeddings."""
    return [weight for name, weight in layers.named_parameters() if weight.ndim == 2 and "embed" not in name]


def see(
    model: Qwen3VLForConditionalGeneration, pictures: Sequence[Picture | Clip], device: torch.device
) -> tuple[Tensor, Tensor]:
    """The tokens of some pictures and clips, one behind the other, and their DeepStack plane: (cells, D) each. The
    encoder sees every moment of a clip by itself."""
    frames = [(frame, picture.grid) for picture in pictures for frame in torch.from_numpy(picture.frames)]
    pixels = torch.cat([patches(frame.to(device)) for frame, _ in frames])
    grids = torch.tensor([[1, MERGE * grid.rows, MERGE * grid.columns] for _, grid in frames])
    seen = model.model.visual(pixels, grid_thw=grids.to(device))
    return seen.pooler_output, seen.deepstack_features[0]


def fold_frames(model: Qwen3VLForConditionalGeneration) -> None:
    """Let the patch embedding take one frame where the stock one takes two that are the same: half the work, and a
    matrix product in place of a convolution, which is slow on CPUs. Weights stay those of the stock model."""
    embed = model.model.visual.patch_embed

    def forward(frames: Tensor) -> Tensor:
        return F.linear(frames, embed.proj.weight.sum(dim=2).flatten(1), embed.proj.bias)

    embed.forward = forward
