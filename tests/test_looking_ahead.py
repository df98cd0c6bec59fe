"""What would be kept, and which word points where, before the language model has run."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import foveate
from foveate import bundled
from foveate.looking_ahead import choose, point, words_of

QUESTION = "What color is the card of the cat?"


@pytest.fixture(scope="module")
def pair():
    return bundled.load()


def picture(seed, width=320, height=240):
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("method", ["adafv", "cdpruner", "visionzip", "centered:cdpruner", "auto:cover"])
def test_what_is_chosen_is_what_asking_keeps(pair, method, count):
    session = foveate.look(*pair, [picture(seed) for seed in range(count)])
    pruner = foveate.get_pruner(method, keep=0.1)
    runs = []
    watched = [pair[0].model.vision_tower, pair[0].model.language_model]
    hooks = [one.register_forward_hook(lambda *_: runs.append(1)) for one in watched]
    chosen = choose(session, QUESTION, pruner)
    for hook in hooks:
        hook.remove()
    assert not runs
    asked = session.ask(QUESTION, pruner, max_new_tokens=1)
    assert [one.indices.tolist() for one in chosen] == [one.indices.tolist() for one in asked.selections]


def test_with_crops_those_that_the_question_asks_for_are_chosen_among(pair):
    chosen = choose(foveate.look(*pair, picture(3), crops=0.5), QUESTION, foveate.AdaFV(keep=0.2))[0]
    session = foveate.look(*pair, picture(3), crops=0.5)
    (asked,) = session.ask(QUESTION, foveate.AdaFV(keep=0.2), max_new_tokens=1).selections
    assert torch.equal(chosen.indices, asked.indices) and torch.equal(chosen.encoded, asked.encoded)
    (pointing,) = point(session, QUESTION, [asked])
    assert torch.equal(pointing.word >= 0, asked.encoded) and torch.equal(~pointing.strength.isnan(), asked.encoded)


def test_inside_the_language_model_nothing_is_known_before(pair):
    with pytest.raises(ValueError, match="fastv chooses while the language model reads"):
        choose(foveate.look(*pair, picture(0)), QUESTION, foveate.get_pruner("fastv"))


def test_the_word_that_points_most(pair):
    """By hand: cosines of every word's embedding to every patch, a softmax over patches, the best word of each."""
    model, processor = pair
    session = foveate.look(model, processor, picture(1))
    selections = choose(session, QUESTION, foveate.Saliency(keep=0.1))
    (pointing,) = point(session, QUESTION, selections)
    assert pointing.words == ("what", "color", "is", "the", "card", "of", "the", "cat", "?")
    ids = processor.tokenizer(QUESTION, add_special_tokens=False)["input_ids"]
    text = model.get_input_embeddings().weight[ids].detach().double().numpy()
    patches = session.images[0].tokens.features.detach().double().numpy()
    text, patches = (one / np.linalg.norm(one, axis=1, keepdims=True) for one in (text, patches))
    scores = np.exp(100 * (text @ patches.T - 1))
    scores /= scores.sum(axis=1, keepdims=True)
    np.testing.assert_array_equal(pointing.word.numpy(), scores.argmax(axis=0))
    np.testing.assert_allclose(pointing.strength.numpy(), scores.max(axis=0), rtol=1e-3)


def test_words_of_a_tokenizer_that_spells_them_in_bytes():
    alphabet = {sign: number for number, sign in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    spelling = Tokenizer(models.BPE(alphabet, merges=[]))
    spelling.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    spelling.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=spelling)
    ids = tokenizer("Größe 42, oder 猫犬? ")["input_ids"]
    words, belongs = words_of(tokenizer, ids)
    assert words == ("Größe", "42", ",", "oder", "猫", "犬", "?")
    assert len(belongs) == len(ids) and belongs == sorted(belongs)
    assert [belongs.count(n) for n in range(7)] == [7, 3, 1, 5, 4, 3, 2]
