"""What the omni thinkers have beyond the matrix: a prompt with audio beside a picture."""

from __future__ import annotations

import importlib
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import ProcessorMixin, WhisperFeatureExtractor

import foveate
from foveate.models import family_for
from tests import reference
from tests.chat import TALKS, guiding, tokenizer, written
from tests.dynamic import picture
from tests.reference import Assembled
from tests.tiny import BOS, END, IMAGE, ROWS, SILENT, START, VIDEO, prompts
from tests.tiny.omni import AUDIO, AUDIO_END, AUDIO_START
from tests.tiny.rows import inner, noise

NAMES = [name for name in ("qwen2_5_omni", "qwen3_omni_moe") if name in ROWS]
GREEDY = {"max_new_tokens": 5, "do_sample": False, "suppress_tokens": [*SILENT, AUDIO]}
TOLD = {"return_dict_in_generate": True, "output_logits": True}
FRAMES = 24


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def model(name: str) -> Any:
    return ROWS[name].make("sdpa")


@torch.no_grad()
def heard(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    """(a, D) what stock makes of the audio."""
    audio = {name: inputs[name] for name in ("input_features", "feature_attention_mask")}
    return inner(model).get_audio_features(**audio, return_dict=True).last_hidden_state


def sound_and_picture(name: str, model: Any, first: bool) -> dict[str, Tensor]:
    """One prompt: audio and a picture, in either order, a question."""
    row = ROWS[name]
    audio = {"input_features": noise(50, 1, 16, FRAMES), "feature_attention_mask": torch.ones(1, FRAMES).long()}
    pixels = row.pixels([[0]])
    sound = [AUDIO_START, *[AUDIO] * len(heard(model, audio)), AUDIO_END, 30]
    seen = [*row.write(0, len(row.streams(model, pixels, "image")[0])), 31]
    ids = torch.tensor([[BOS, 5, *(sound + seen if first else seen + sound), 40, 41, 42]])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **audio, **pixels}


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("keep", [1.0, 0.4, 2])
def test_audio_passes_through(name: str, model: Any, keep: float | int, first: bool) -> None:
    row, inputs = ROWS[name], sound_and_picture(name, model, first)
    pruner = foveate.AdaFV(keep=keep)
    with pruner(model):
        result = model.generate(**inputs, **GREEDY, **TOLD)
    if keep == 1.0:
        stock = model.generate(**inputs, **GREEDY, **TOLD)
        assert torch.equal(result.sequences, stock.sequences)
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(result.logits, stock.logits, strict=True))
        return
    ids = inputs["input_ids"][0]
    (selection,) = pruner.selections
    places = (ids == row.token).nonzero()[:, 0]
    columns = torch.cat([(ids != row.token).nonzero()[:, 0], places[selection.indices]]).sort().values
    there = (ids[columns] == row.token)[None]
    embeddings = model.get_input_embeddings()(ids[columns]).detach()[None]
    embeddings[there] = row.streams(model, inputs, "image")[0][selection.indices]
    embeddings[:, ids[columns] == AUDIO] = heard(model, inputs)
    levels = []
    for plane in row.planes(model, inputs, "image")[0] if row.planes else []:
        levels.append(torch.zeros_like(embeddings))
        levels[-1][there] = plane[selection.indices]
    positions = inner(model).get_rope_index(
        inputs["input_ids"], image_grid_thw=inputs["image_grid_thw"], attention_mask=inputs["attention_mask"],
        audio_seqlens=torch.tensor([FRAMES]),
    )[0][..., columns]  # fmt: skip
    assembled = Assembled(embeddings, torch.ones(1, len(columns)).long(), positions, [], [], there, levels)
    tokens, logits = reference.greedy(row, model, assembled, 5, suppress=GREEDY["suppress_tokens"])
    assert torch.equal(result.sequences[:, len(ids) :], tokens)
    torch.testing.assert_close(torch.stack(result.logits, dim=1), logits, atol=2e-4, rtol=1e-4)


def test_audio_does_not_guide(name: str, model: Any) -> None:
    inputs = sound_and_picture(name, model, True)
    ids = inputs["input_ids"]
    marks = family_for(model).marks(ids)
    assert ids[~marks].tolist() == [BOS, 5, 30, 31, 40, 41, 42]


def test_sound_between_frames_is_refused(name: str, model: Any) -> None:
    inputs = prompts(ROWS[f"{name}-video"], model, "one")
    with foveate.AdaFV(keep=0.4)(model), pytest.raises(ValueError, match="use_audio_in_video=True.*leave it out"):
        model.generate(**inputs, use_audio_in_video=True, **GREEDY)


PREFIXES = {"qwen2_5_omni": "Qwen2_5Omni", "qwen3_omni_moe": "Qwen3OmniMoe"}
TOKENS = {
    "image_token": ("<|IMAGE|>", IMAGE),
    "video_token": ("<|VIDEO|>", VIDEO),
    "audio_token": ("<|AUDIO|>", AUDIO),
    "vision_bos_token": ("<|vision_bos|>", START),
    "vision_eos_token": ("<|vision_eos|>", END),
    "audio_bos_token": ("<|audio_bos|>", AUDIO_START),
    "audio_eos_token": ("<|audio_eos|>", AUDIO_END),
}
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% elif part['type'] == 'audio' %}<|audio_bos|><|AUDIO|>"
    "<|audio_eos|>{% else %}<|vision_bos|><|{{ part['type'] | upper }}|><|vision_eos|>{% endif %}{% endfor %}<|im_end|>"
    "\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture
def processor(name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    pil = pytest.importorskip("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl")
    module = importlib.import_module(f"transformers.models.{name}.processing_{name}")
    # Its video processor needs torchvision, which pictures do not: only the check for one is left out.
    monkeypatch.setattr(ProcessorMixin, "check_argument_for_proper_class", lambda *_: None)
    size = {"shortest_edge": 64 * 64, "longest_edge": 160 * 160}
    images = pil.Qwen2VLImageProcessorPil(size=size, patch_size=14 if name == "qwen2_5_omni" else 16)
    marks = {"<|im_start|>": -1, "<|im_end|>": -1, **dict(TOKENS.values())}
    words = tokenizer(marks, {attribute: token for attribute, (token, _) in TOKENS.items()})
    hearing = WhisperFeatureExtractor(feature_size=16)
    made = getattr(module, f"{PREFIXES[name]}Processor")
    films = SimpleNamespace(merge_size=images.merge_size)  # asked for, without a video too
    return made(images, films, hearing, words, chat_template=TEMPLATE)


@pytest.mark.parametrize("talk", TALKS)
def test_the_question_guides(name: str, model: Any, processor: Any, talk: str) -> None:
    said, expected = TALKS[talk]
    pictures = [picture(seed, *size) for seed, size in zip(range(len(expected)), [(90, 140), (200, 70)], strict=False)]
    assert guiding(model, processor, written(processor, said, images=pictures)) == expected


def test_what_is_said_beside_a_question(name: str, model: Any, processor: Any) -> None:
    """Audio in a picture's turn: the words in writing guide, and stock's answer is kept to the bit where all is."""
    said, expected = TALKS["question last"]
    ((role, parts),) = said
    sound = np.sin(np.arange(16000 * 2) / 7).astype(np.float32)
    inputs = written(
        processor, [(role, [{"type": "audio"}, *parts])], images=[picture(0, 90, 140)], audio=[sound],
        sampling_rate=16000,
    )  # fmt: skip
    assert int((inputs["input_ids"] == AUDIO).sum()) > 10
    assert guiding(model, processor, inputs) == expected
    with foveate.AdaFV(keep=1.0)(model):
        result = model.generate(**inputs, **GREEDY)
    assert torch.equal(result, model.generate(**inputs, **GREEDY))
