"""What shares a cache and what must not: pictures x questions x budgets, and a control that would be caught."""

from __future__ import annotations

import itertools

import pytest
from PIL import Image
from transformers import AutoProcessor

from foveate import bundled, serving
from tests.vllm.engines import Engine, Prompt, embedder
from tests.vllm.pictures import FIRST, asked, ids_of, keeping, reference, written

BLOCK = 32
QUESTIONS = (
    "Is there a cat?", "Is there a red card?", "What is the biggest object?", "What number is on the sign?",
    "What color is the card of the dog?", "What color is the card of the cat?", "How many cards are there?",
    "Is there a dog?",
)  # fmt: skip


@pytest.fixture(scope="module")
def engine():
    options = serving.options(keep=0.1, methods=["saliency"], feature_cache_mib=64)
    started = Engine(
        str(bundled.path()), hf_overrides=options, limit_mm_per_prompt={"image": 2}, block_size=BLOCK,
        enable_prefix_caching=True,
    )  # fmt: skip
    yield started
    started.close()


@pytest.fixture(scope="module")
def stock():
    return bundled.load()[0], AutoProcessor.from_pretrained(bundled.path(), local_files_only=True)


def counters(llm):
    """Hits and misses of the feature cache."""
    return tuple(embedder(llm).counters.values[:2].tolist())


def forget(llm):
    """Empties every cache but vLLM's blocks and processor cache, as a restart would."""
    llm.reset_prefix_cache()
    embedder(llm).forget()


def share_identities(llm, shared):
    """Breaks the identity on purpose: what is asked about a picture, and how much is kept of it, no longer count."""
    from foveate.serving.processing import ProcessorMixin

    if shared:
        ProcessorMixin.honest = ProcessorMixin._identity
        ProcessorMixin._identity = lambda self, request, kind="image": "0" * 8 + request.picture[:56]
    else:
        ProcessorMixin._identity = ProcessorMixin.honest


def cases(stock, count, seed):
    """Prompts of every question about every picture, at two budgets, and who asks what."""
    pictures = [picture for picture, _ in asked(count, seed=seed)]
    found = list(itertools.product(pictures, QUESTIONS, (0.1, 0.25)))
    prompts = [Prompt(ids_of(stock[1], question), [picture], {"keep": keep}) for picture, question, keep in found]
    return found, prompts


def test_equal_requests_share_and_others_do_not(engine, stock):
    picture = next(asked(1, seed=11))[0]
    engine.call(forget)

    def cached(question, keep=0.25, method="adafv"):
        ids = ids_of(stock[1], question)
        (told,) = engine.generate([Prompt(ids, [picture], {"keep": keep, "method": method})], tokens=2)
        return told.cached, told.prompt

    assert cached(QUESTIONS[0])[0] == 0
    shared, length = cached(QUESTIONS[0])
    assert shared == (length - 1) // BLOCK * BLOCK  # all but the last token, which must be computed
    assert cached(QUESTIONS[1])[0] == 0
    assert cached(QUESTIONS[0], keep=0.2)[0] == 0
    assert cached(QUESTIONS[0], method="saliency")[0] == 0
    assert cached(QUESTIONS[3], method="saliency")[0] > 0  # which reads no question, so the picture is the same
    assert cached(QUESTIONS[0])[0] == shared


def test_the_prefix_before_a_picture_is_shared(engine, stock):
    first, second = (picture for picture, _ in asked(2, seed=12))
    engine.call(forget)
    text = "Is there a cat? " * 12
    ids = stock[1].tokenizer(f"<s>system: {text}user: <image> Is there a dog? assistant:", add_special_tokens=False)
    ids = ids["input_ids"]
    before = ids.index(stock[0].config.image_token_index)
    assert before > BLOCK
    told = [engine.generate([Prompt(ids, [picture])], tokens=2)[0] for picture in (first, second)]
    assert [one.cached for one in told] == [0, before // BLOCK * BLOCK]


def test_the_tower_runs_once_for_a_picture(engine, stock):
    pictures = [picture for picture, _ in asked(3, seed=13)]
    engine.call(forget)
    hits, misses = engine.call(counters)
    prompts = [
        Prompt(ids_of(stock[1], question), [picture], {"keep": keep})
        for question in QUESTIONS[:4] for keep in (0.1, 0.3) for picture in pictures
    ]  # fmt: skip
    engine.generate(prompts)
    later = engine.call(counters)
    assert (later[0] - hits, later[1] - misses) == (len(prompts) - 3, 3)


OPENINGS = {
    "behind": "<s>user: <image> {} assistant:",
    "in front": FIRST,
    "in the next message": "<s>user: <image> assistant: a red car</s>user: {} assistant:",
}


@pytest.mark.parametrize("opening", OPENINGS)
def test_a_conversation_keeps_its_picture(engine, stock, opening):
    """Later turns ask for the same tokens of the picture, wherever the question stood: they come from the prefix
    cache."""
    picture = next(asked(1, seed=14))[0]
    engine.call(forget)
    first = written(stock[1], OPENINGS[opening].format(QUESTIONS[0]))
    (told,) = engine.generate([Prompt(first, [picture], {"keep": 0.25})])
    more = written(stock[1], f"yes</s>user: {QUESTIONS[3]} assistant:")
    (later,) = engine.generate([Prompt([*first, *more], [picture], {"keep": 0.25})])
    assert later.cached >= (told.prompt - 1) // BLOCK * BLOCK - BLOCK
    assert later.prompt == told.prompt + len(more)


def test_64_mixed_requests_at_once_equal_each_alone(engine, stock):
    found, prompts = cases(stock, 4, seed=15)
    assert len(prompts) == 64
    engine.call(forget)
    told = engine.generate(prompts)
    for one, (picture, question, keep) in zip(told, found, strict=True):
        assert (one.tokens, one.prompt) == reference(*stock, [picture], question, keeping("adafv", keep))
    alone = [engine.generate([prompt])[0] for prompt in prompts]  # and from the caches that the first pass has filled
    assert [one.tokens for one in alone] == [one.tokens for one in told]


def test_shared_identities_would_be_caught(engine, stock):
    """The negative control of the tests above: with the picture alone as the identity, answers go wrong."""
    found, prompts = cases(stock, 4, seed=16)
    expected = [reference(*stock, [picture], question, keeping("adafv", 0.1)) for picture, question, _ in found[::2]]
    engine.call(forget)
    engine.call(share_identities, True)
    try:
        told = engine.generate(prompts[::2])
    finally:
        engine.call(share_identities, False)
        engine.call(forget)
    wrong = sum(one.tokens != tokens for one, (tokens, _) in zip(told, expected, strict=True))
    assert wrong >= 2
    right = engine.generate(prompts[::2])
    assert [(one.tokens, one.prompt) for one in right] == expected


def test_a_uuid_alone_stands_for_its_picture(engine, stock):
    picture = next(asked(1, seed=17))[0]
    for number, question in enumerate(QUESTIONS[:3]):
        prompt = Prompt(ids_of(stock[1], question), [None if number else picture], {"keep": 0.2}, ["a picture"])
        (told,) = engine.generate([prompt])
        assert (told.tokens, told.prompt) == reference(*stock, [picture], question, keeping("adafv", 0.2))
    with pytest.raises(RuntimeError, match="does not remember the picture"):
        engine.generate([Prompt(ids_of(stock[1], QUESTIONS[0]), [None], None, ["another picture"])])
    assert engine.generate([prompt])[0].tokens == told.tokens  # the engine lives on


def test_pictures_at_other_sizes(engine, stock):
    """The same picture and question at several sizes, by hash and by UUID, with every cache warm: each as transformers
    answers about the picture that Pillow has resized."""
    picture = next(asked(1, seed=19))[0]
    sizes = {0.25: 0.5, 30_000: (30_000 / (picture.width * picture.height)) ** 0.5, 1: 1, 0.04: 0.2}
    engine.call(forget)
    hits, misses = engine.call(counters)
    answers = set()
    for uuids in (None, ["a resized picture"]):
        for number, (pixels, side) in enumerate(sizes.items()):
            rounded = int if isinstance(pixels, int) else round
            by_hand = (rounded(picture.width * side), rounded(picture.height * side))
            small = picture.resize(by_hand, Image.Resampling.LANCZOS) if side != 1 else picture
            expected = reference(*stock, [small], QUESTIONS[4], keeping("adafv", 0.2))
            given = None if uuids and number else picture
            asks = {"keep": 0.2, "pixels": pixels}
            (told,) = engine.generate([Prompt(ids_of(stock[1], QUESTIONS[4]), [given], asks, uuids)])
            assert (told.tokens, told.prompt) == expected, (uuids, pixels)
            answers.add(expected)
    later = engine.call(counters)
    assert len(answers) > 1  # or sharing one identity would go unseen
    assert later[1] - misses == 2 * len(sizes) and later[0] == hits  # no size's features were another's


@pytest.mark.parametrize(
    ("asks", "error"),
    [
        ({"pixels": 0}, "a number of pixels"), ({"pixels": "auto"}, "looks at a picture"), ({"pixels": 2.0}, "up to 1"),
        ({"pixels": True}, "got True"), ({"pixels": "half"}, "unknown"),
        ({"keep": 1.5}, "no fraction"), ({"keep": float("nan")}, "no fraction"), ({"keep": True}, "keep must be"),
        ({"keep": None}, "keep must be"), ({"keep": "1"}, "all tokens or"), ({"method": "uniform"}, "not served here"),
        ({"method": ["adafv"]}, "not served here"), ({"budget": 3}, "may set keep and method"),
    ],
)  # fmt: skip
def test_what_a_request_may_not_ask_for(engine, stock, asks, error):
    picture = next(asked(1, seed=18))[0]
    with pytest.raises(RuntimeError, match=error):
        engine.generate([Prompt(ids_of(stock[1], QUESTIONS[0]), [picture], asks)])


def test_prompts_that_do_not_fit_their_pictures(engine, stock):
    picture = next(asked(1, seed=18))[0]
    ids, token = ids_of(stock[1], QUESTIONS[0]), stock[0].config.image_token_index
    with pytest.raises(RuntimeError, match="1 image placeholders for 2"):
        engine.generate([Prompt(ids, [picture, picture])])
    with pytest.raises(RuntimeError, match="0 image placeholders for 1"):
        engine.generate([Prompt([one for one in ids if one != token], [picture])])
    with pytest.raises(RuntimeError, match="there is no text"):
        engine.generate([Prompt([1, token], [picture])])
