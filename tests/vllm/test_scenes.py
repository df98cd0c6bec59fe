"""The bundled model in vLLM: the tokens that transformers and Foveate generate, on drawn scenes."""

from __future__ import annotations

import pytest
from transformers import AutoProcessor

from foveate import METHODS, bundled, serving
from tests.vllm.engines import Engine, Prompt, embedder
from tests.vllm.pictures import FIRST, asked, ids_of, keeping, reference, written

COUNT = 200
KEEPS = (1.0, 0.25, 0.1)
WRAPPED = ("centered:cdpruner", "centered:features=encoded:divprune", "merged:centered:cover:saliency=0.5")
OTHERS = (*(name for name in METHODS if name != "adafv"), *WRAPPED)


@pytest.fixture(scope="module")
def engine():
    options = serving.options(keep=0.1, methods=OTHERS)
    started = Engine(str(bundled.path()), hf_overrides=options, limit_mm_per_prompt={"image": 3})
    yield started
    started.close()


def watch(llm):
    """From now on keeps what is chosen, and why."""
    ours = embedder(llm)
    ours.seen, choose = [], type(ours)._choose

    def noted(image, request, text):
        features, selection = choose(ours, image, request, text)
        ours.seen.append((request, tuple(selection.indices.tolist())))
        return features, selection

    ours._choose = noted


def seen(llm):
    """What was chosen since."""
    del embedder(llm)._choose
    return embedder(llm).seen


@pytest.fixture(scope="module")
def stock():
    """The model, with the processor that vLLM loads: where torchvision is installed, its resizing gives other pixels
    than Pillow's."""
    return bundled.load()[0], AutoProcessor.from_pretrained(bundled.path(), local_files_only=True)


@pytest.mark.parametrize("keep", KEEPS)
def test_scenes(engine, stock, keep):
    scenes = list(asked(COUNT))
    prompts = [Prompt(ids_of(stock[1], question), [picture], {"keep": keep}) for picture, question in scenes]
    told = engine.generate(prompts)
    pruner = keeping("adafv", keep)
    expected = [reference(*stock, [picture], question, pruner) for picture, question in scenes]
    assert [one.prompt for one in told] == [length for _, length in expected]
    assert [one.tokens for one in told] == [tokens for tokens, _ in expected]
    assert len({one.tokens for one in told}) >= 15  # the answers tell scenes apart


@pytest.mark.parametrize("method", ["adafv", "text", "cdpruner"])
def test_the_question_in_front(engine, stock, method):
    """It chooses as with transformers, and keeps what it keeps from behind: its own words choose, and no others."""
    scenes = list(asked(60, seed=4))
    asks = {"keep": 0.1, "method": method}
    prompts = [
        Prompt(written(stock[1], prompt.format(question)), [picture], asks)
        for prompt in (FIRST, "<s>user: <image> {} assistant:") for picture, question in scenes
    ]  # fmt: skip
    engine.call(watch)
    told = engine.generate(prompts)
    kept = engine.call(seen)
    for one, (picture, question) in zip(told, scenes, strict=False):
        prompt = FIRST.format(question)
        assert (one.tokens, one.prompt) == reference(*stock, [picture], question, keeping(method, 0.1), prompt=prompt)
    assert kept
    # By picture and guiding text: the same from either side.
    assert len({(request.picture, request.text) for request, _ in kept}) == len(scenes)
    assert len(set(kept)) == len(scenes)


@pytest.mark.parametrize("method", OTHERS)
def test_methods(engine, stock, method):
    scenes = list(asked(6, seed=1))
    for keep in (0.25, 0.1, 20):
        pruner = keeping(method, keep)
        prompts = [
            Prompt(ids_of(stock[1], question), [picture], {"keep": keep, "method": method})
            for picture, question in scenes
        ]
        told = engine.generate(prompts)
        expected = [reference(*stock, [picture], question, pruner) for picture, question in scenes]
        assert [(one.tokens, one.prompt) for one in told] == expected


def test_several_images(engine, stock):
    """Two and three pictures of different shapes in a prompt, each pruned by the text after it."""
    pictures = [picture for picture, _ in asked(6, seed=2)]
    shapes = [pictures[0], pictures[1].resize((300, 90)), pictures[2].resize((80, 260))]
    for count in (2, 3):
        question = "Is there a cat?"
        ids = ids_of(stock[1], question, count)
        for keep in (1.0, 0.25):
            (told,) = engine.generate([Prompt(ids, shapes[:count], {"keep": keep})])
            assert (told.tokens, told.prompt) == reference(*stock, shapes[:count], question, keeping("adafv", keep))


def test_mixed_batch(engine, stock):
    """Pictures x questions x budgets x methods at once, each as it is alone in transformers."""
    pictures = [picture for picture, _ in asked(4, seed=3)]
    questions = ["Is there a cat?", "What is the biggest object?", "What number is on the sign?"]
    cases = [
        (picture, question, keep, method)
        for picture in pictures for question in questions for keep in (1.0, 0.3, 24) for method in ("adafv", "text")
    ]  # fmt: skip
    prompts = [
        Prompt(ids_of(stock[1], question), [picture], {"keep": keep, "method": method})
        for picture, question, keep, method in cases
    ]
    told = engine.generate(prompts)
    for one, (picture, question, keep, method) in zip(told, cases, strict=True):
        assert (one.tokens, one.prompt) == reference(*stock, [picture], question, keeping(method, keep))
