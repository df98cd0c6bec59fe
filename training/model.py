"""The model: a stock LLaVA-NeXT of a CLIP vision tower and a Llama, initialised to learn fast."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, LlamaConfig, LlavaNextConfig, LlavaNextForConditionalGeneration

from training.data import make_batch
from training.presets import Preset
from training.views import GRID, PATCH, VIEW
from training.words import BEGIN, END, IMAGE, PAD, VOCABULARY

MEAN, STD = 0.5, 0.25
HEAD_WIDTH = 32
TEXT_HEAD_WIDTH = 64


def build(preset: Preset) -> LlavaNextForConditionalGeneration:
    """A model of the preset's size, not trained, for training: plain attention, which is fastest at these sizes."""
    vision = CLIPVisionConfig(
        hidden_size=preset.vision_width,
        intermediate_size=4 * preset.vision_width,
        num_hidden_layers=preset.vision_layers,
        num_attention_heads=preset.vision_width // HEAD_WIDTH,
        image_size=VIEW,
        patch_size=PATCH,
        projection_dim=64,
        hidden_act="gelu",
    )
    heads = preset.text_width // TEXT_HEAD_WIDTH
    text = LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=preset.text_width,
        intermediate_size=2 * preset.text_width,
        num_hidden_layers=preset.text_layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=2048,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        bos_token_id=BEGIN,
        eos_token_id=END,
        pad_token_id=PAD,
        tie_word_embeddings=True,
    )
    config = LlavaNextConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=IMAGE,
        image_grid_pinpoints=[list(canvas) for canvas in preset.canvases],
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_seq_length=GRID * GRID,
        tie_word_embeddings=True,
    )
    config._attn_implementation = "eager"
    torch.manual_seed(preset.seed)
    model = LlavaNextForConditionalGeneration(config)
    model.tie_weights()
    _initialise(model, preset)
    return model


@torch.no_grad()
def _initialise(model: LlavaNextForConditionalGeneration, preset: Preset) -> None:
    width = preset.text_width
    nn.init.normal_(embeddings(model), std=1 / math.sqrt(width))
    nn.init.normal_(model.model.image_newline, std=1 / math.sqrt(width))
    tower = model.model.vision_tower
    for layer in tower.encoder.layers:
        for weight in layer.parameters():
            if weight.ndim == 2:
                nn.init.xavier_uniform_(weight, gain=0.7)
    nn.init.normal_(tower.embeddings.class_embedding, std=0.2)
    _whiten_patches(model, preset)
    _place_patches(tower.embeddings.position_embedding.weight)
    for layer in model.model.language_model.layers:
        for name, weight in layer.named_parameters():
            if weight.ndim == 2:
                out = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(weight, std=(0.5 if out else 1.0) / math.sqrt(weight.shape[1]))
    # Half of the heads of the first two layers begin by attending to equal content (queries = keys): with weak gain
    # this lets a question's word find its visual tokens early; with a strong one the model never leaves it.
    half = max(TEXT_HEAD_WIDTH, width // 2)
    for layer in model.model.language_model.layers[:2]:
        rotation = torch.linalg.qr(torch.randn(width, width))[0][:half] * 0.75
        layer.self_attn.q_proj.weight[:half] = rotation
        layer.self_attn.k_proj.weight[:half] = rotation


def _whiten_patches(model: LlavaNextForConditionalGeneration, preset: Preset) -> None:
    """Patch embedding: the patches' principal components, weighted equally down to a floor, rotated at random."""
    weight = model.model.vision_tower.embeddings.patch_embedding.weight
    scenes = make_batch(preset.seed + 1, 0, 40, preset.canvases, 0.8)
    pixels = normalise(torch.cat([torch.from_numpy(scene.pixels) for scene in scenes]))
    patches = pixels.unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(0, 2)
    values, vectors = torch.linalg.eigh((patches.T @ patches / len(patches)).double())
    values, vectors = values.flip(0), vectors.flip(1)
    count = weight.shape[0]
    components = (vectors[:, :count] / (values[:count] + 0.5 * values[60]).sqrt()).T.float()
    rotation = torch.linalg.qr(torch.randn(count, count))[0]
    weight.copy_((rotation @ components).view_as(weight) * 0.5)


def _place_patches(weight: Tensor) -> None:
    """Position embedding: sines and cosines of row and column."""
    quarter = weight.shape[1] // 4
    row, column = torch.meshgrid(torch.arange(float(GRID)), torch.arange(float(GRID)), indexing="ij")
    waves = 1.5 * torch.exp(-torch.arange(quarter) / quarter * math.log(30.0))
    angles = [place.reshape(-1, 1) * waves for place in (row, column)]
    weight[0] = 0.2 * torch.randn(weight.shape[1])
    weight[1:] = 0.35 * torch.cat([wave for angle in angles for wave in (angle.sin(), angle.cos())], 1)


def embeddings(model: LlavaNextForConditionalGeneration) -> nn.Parameter:
    """The word embeddings, (words, D), which are also the output layer."""
    return model.model.language_model.embed_tokens.weight


def normalise(pixels: Tensor) -> Tensor:
    """(V, H, W, 3) uint8 -> (V, 3, H, W) as the processor normalises."""
    return pixels.permute(0, 3, 1, 2).float().div_(255).sub_(MEAN).div_(STD)


def see(model: LlavaNextForConditionalGeneration, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Views (V, 3, H, W) -> CLS states (V, width) and projected patches (V, TOKENS, D).

    Runs the layers that LLaVA reads (all but the last) and no more.
    """
    tower = model.model.vision_tower
    hidden = tower.pre_layrnorm(tower.embeddings(pixels))
    for layer in tower.encoder.layers[:-1]:
        hidden = layer(hidden, None)
        hidden = hidden[0] if isinstance(hidden, tuple) else hidden
    return hidden[:, 0], model.model.multi_modal_projector(hidden[:, 1:])
