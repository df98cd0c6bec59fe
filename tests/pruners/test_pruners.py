"""Every method through one matrix, then what is particular to each."""

import contextlib
import dataclasses
import math
from typing import ClassVar

import pytest
import torch

from foveate.functional import (
    adafv_released,
    adafv_split,
    attention_in_runs,
    conditional_dpp,
    different_in_groups,
    dominant_and_contextual,
    effective_rank,
    focus_scan_refine,
    focused_relevance,
    holistic_context,
    important_and_diverse,
    least_duplicated,
    max_min_diversity,
    multimodal_cover,
    optimal_preservation,
    outliers_with_neighbours,
    principal_groups,
    relevance_to_text,
    saliency_coverage,
    salient_and_apart,
    salient_and_spread,
    shifted_cosine_cover,
    smooth_on_grid,
    spatial_crops,
    spatial_pooling,
    text_to_image_attention,
    top_k,
    uniform_grid,
    unique_in_frames,
)
from foveate.pruners import (
    INSIDE_METHODS,
    METHODS,
    WRAPPERS,
    AdaFV,
    Choice,
    FixedMix,
    Pruner,
    Random,
    Saliency,
    Scorer,
    TextSimilarity,
    Uniform,
    get_pruner,
    parse_method,
)
from foveate.pruners.text import ReadsText
from foveate.tokens import Geometry, Selection, TextTokens, VisualTokens

READING_TEXT = [name for name, method in METHODS.items() if method.reads_text]
READING_ATTENTION = [name for name, method in METHODS.items() if issubclass(method, ReadsText)]
READING_SALIENCY = [name for name, method in METHODS.items() if method.reads_saliency]
READING_ENCODED = [name for name, method in METHODS.items() if method.reads_encoded]
READING_KEYS = [name for name, method in METHODS.items() if method.reads_keys]
OWN_SCORES = {
    "agilepruner": {"threshold"},
    "cdpruner": {"relevance"},
    "cover": {"relevance", "weight"},
    "dart": {"norm"},
    "divprune": {"distance"},
    "eadp": {"relevance", "weight"},
    "evs": {"change"},
    "fsr": {"relevance", "priority"},
    "holov": {"context"},
    "mmtok": {"coverage"},
    "prunesid": {"loading"},
    "scope": {"coverage"},
    "tops": {"coverage"},
    "vidcom2": {"uniqueness"},
    "vispruner": {"similarity"},
}
"""What a method records beside saliency and text-to-image attention."""


def geometry(*grids):
    cells = [
        (view, row, column)
        for view, (rows, columns) in enumerate(grids)
        for row in range(rows)
        for column in range(columns)
    ]
    view, row, column = (torch.tensor(part) for part in zip(*cells, strict=True))
    corner = torch.stack([column, row], dim=-1).float() * 14
    return Geometry(view, row, column, torch.cat([corner, corner + 14], dim=-1), (84, 84), grids)


def picture(*grids, seed=0, dtype=torch.float32, full_grid=True):
    where, generator = geometry(*(grids or [(6, 6)] * 3)), torch.Generator().manual_seed(seed)
    features = torch.randn(len(where), 16, generator=generator).to(dtype)
    saliency, keys = torch.rand(len(where), generator=generator), torch.randn(len(where), 8, generator=generator)
    encoded = torch.randn(len(where), 12, generator=generator).to(dtype)
    return VisualTokens(features, where, saliency, full_grid, keys.to(dtype), encoded)


def question(tokens=7, turn=5, special=(0, 4), seed=1, dtype=torch.float32):
    """Text of which the first ``turn`` tokens are the image's own turn."""
    embeddings = torch.randn(tokens, 16, generator=torch.Generator().manual_seed(seed)).to(dtype)
    marks = torch.zeros(tokens, dtype=torch.bool)
    marks[list(special)] = True
    return TextTokens(embeddings, torch.arange(tokens) < turn, marks)


@pytest.fixture(params=METHODS)
def name(request):
    return request.param


# --- the matrix -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep, budget", [(0.1, 11), (0.4, 44), (0.999, 108), (1, 1), (17, 17), (107, 107)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_exactly_the_budget(name, keep, budget, dtype):
    visual = picture(dtype=dtype)
    selection = get_pruner(name, keep=keep).select(visual, question(dtype=dtype))
    indices = selection.indices
    assert indices.dtype == torch.int64 and len(selection) == len(indices) == budget
    assert bool((indices.diff() > 0).all()) and int(indices[0]) >= 0 and int(indices[-1]) < 108
    assert selection.geometry is visual.geometry and selection.total == 108
    assert torch.equal(selection.boxes, visual.geometry.boxes[indices])
    assert int(selection.mask().sum()) == budget
    for score in selection.scores.values():
        assert score.shape == (108,) and score.dtype == torch.float32 and not score.requires_grad
    for share in selection.shares.values():
        assert share.shape == () and share.dtype == torch.int64


@pytest.mark.parametrize("keep", [1.0, 108, 109, 10_000])
def test_a_budget_that_covers_all_keeps_all(name, keep):
    selection = get_pruner(name, keep=keep).select(picture(), question())
    assert torch.equal(selection.indices, torch.arange(108)) and selection.ratio == 1.0


def test_a_single_token(name):
    selection = get_pruner(name).select(picture((1, 1)), question())
    assert selection.indices.tolist() == [0]


def test_views_of_unequal_size_and_any_order(name):
    selection = get_pruner(name, keep=0.3).select(picture((4, 4), (3, 5), (1, 2)), question())
    assert len(selection) == 10


def test_same_again(name):
    first, second = (get_pruner(name, keep=0.2).select(picture(), question()) for _ in range(2))
    assert torch.equal(first.indices, second.indices)


def test_scores_are_those_it_reads(name):
    method = METHODS[name]
    selection = get_pruner(name, keep=0.2).select(picture(), question())
    expected = {"saliency"} if method.reads_saliency else set()
    expected |= {"text_to_image"} if issubclass(method, ReadsText) else set()
    assert set(selection.scores) == expected | OWN_SCORES.get(name, set())


def test_features_that_need_gradients(name):
    visual, text = picture(), question()
    grown = dataclasses.replace(
        visual, features=visual.features.clone().requires_grad_(), encoded=visual.encoded.clone().requires_grad_()
    )
    asked = TextTokens(text.embeddings.clone().requires_grad_(), text.turn, text.special)
    selection = get_pruner(name, keep=0.2).select(grown, asked)
    assert not any(score.requires_grad for score in selection.scores.values())
    assert selection.weights is None or not selection.weights.weights.requires_grad


@pytest.mark.parametrize("keep", [0, -1, 0.0, 1.5, math.nan])
def test_bad_keep(name, keep):
    with pytest.raises(ValueError, match="keep="):
        get_pruner(name, keep=keep)


@pytest.mark.parametrize("method", READING_TEXT)
def test_no_text(method):
    nothing = TextTokens(torch.empty(0, 16), torch.empty(0, dtype=torch.bool), torch.empty(0, dtype=torch.bool))
    for text in (None, nothing):
        with pytest.raises(ValueError, match="reads the question"):
            get_pruner(method).select(picture(), text)


@pytest.mark.parametrize("method", READING_SALIENCY)
def test_no_saliency(method):
    visual = picture()
    with pytest.raises(ValueError, match="reads visual saliency"):
        get_pruner(method).select(dataclasses.replace(visual, saliency=None), question())


@pytest.mark.parametrize("method", READING_KEYS)
def test_no_keys(method):
    visual = picture()
    for keep in (0.1, 1.0):
        with pytest.raises(ValueError, match="compares the vision encoder's keys, and these tokens carry none"):
            get_pruner(method, keep=keep).select(dataclasses.replace(visual, keys=None))


@dataclasses.dataclass
class Brightest(Scorer):
    """The largest first channels of what the encoder hands over."""

    name: ClassVar[str] = "brightest"
    reads_encoded: ClassVar[bool] = True

    def score(self, visual, text):
        return {"encoded": visual.encoded[:, 0].float()}


@pytest.mark.parametrize("method", [Brightest, *(METHODS[name] for name in READING_ENCODED)])
def test_no_encoder_features(method):
    visual = picture()
    for keep in (0.1, 1.0):
        method(keep=keep).select(visual, question())
        with pytest.raises(ValueError, match="reads the vision encoder's features, and these tokens carry none"):
            method(keep=keep).select(dataclasses.replace(visual, encoded=None), question())


@pytest.mark.parametrize("method", READING_SALIENCY)
def test_broken_saliency(method):
    visual = picture()
    visual.saliency[3] = math.nan
    with pytest.raises(ValueError, match="NaN or infinity"):
        get_pruner(method).select(visual, question())


@pytest.mark.parametrize("method", READING_TEXT)
def test_broken_features(method):
    visual = picture()
    visual.features[3, 2] = math.inf
    with pytest.raises(ValueError, match="NaN or infinity in visual"):
        get_pruner(method).select(visual, question())


# --- the registry -----------------------------------------------------------------------------------------


def test_registry():
    assert all(name == method.name and issubclass(method, Pruner) for name, method in METHODS.items())
    assert next(iter(METHODS)) == "adafv" and not set(METHODS) & {*INSIDE_METHODS, *WRAPPERS}
    assert get_pruner("adafv", keep=5) == AdaFV(5)
    with pytest.raises(ValueError, match="unknown method 'fast-v'; known: adafv, cover"):
        get_pruner("fast-v")
    with pytest.raises(ValueError, match="trim is not available: .* needs CLIP's text encoder"):
        get_pruner("trim")
    with pytest.raises(TypeError):
        get_pruner("saliency", seed=1)


def test_options_in_their_order():
    assert AdaFV(0.2, 0.1, "paper", "turn", 0.02, False) == AdaFV(
        keep=0.2, min_share=0.1, variant="paper", text_span="turn", temperature=0.02, special_tokens=False
    )


# --- each ---------------------------------------------------------------------------------------------------


def test_adafv_is_the_mixture():
    visual, text = picture(), question()
    selection = AdaFV(keep=20).select(visual, text)
    score = text_to_image_attention(text.embeddings[:5], visual.features)
    kept, k_s, k_t = adafv_split(visual.saliency, score, 20)
    assert torch.equal(selection.indices, kept)
    assert torch.equal(selection.scores["text_to_image"], score)
    assert torch.equal(selection.scores["saliency"], visual.saliency)
    assert selection.shares == {"saliency": k_s, "text": k_t}
    other = AdaFV(keep=20, min_share=0.5).select(visual, text)
    assert min(int(share) for share in other.shares.values()) >= 10


def test_saliency_and_text_are_the_tops():
    visual, text = picture(), question()
    score = text_to_image_attention(text.embeddings[:5], visual.features)
    for pruner, scores in ((Saliency(9), visual.saliency), (TextSimilarity(9), score)):
        assert pruner.select(visual, text).indices.tolist() == scores.topk(9).indices.sort().values.tolist()


def test_fixed_mix_has_the_salient_half():
    visual, text = picture(), question()
    kept = set(FixedMix(9).select(visual, text).indices.tolist())
    assert set(visual.saliency.topk(5).indices.tolist()) <= kept


@pytest.mark.parametrize("method", READING_ATTENTION)
def test_which_text(method):
    visual, text = picture(), question()
    for options, chosen in [
        ({}, [0, 1, 2, 3, 4]),
        ({"text_span": "turn"}, [0, 1, 2, 3, 4]),
        ({"text_span": "prompt"}, [0, 1, 2, 3, 4, 5, 6]),
        ({"special_tokens": False}, [1, 2, 3]),
        ({"text_span": "prompt", "special_tokens": False}, [1, 2, 3, 5, 6]),
    ]:
        score = get_pruner(method, **options).select(visual, text).scores["text_to_image"]
        expected = text_to_image_attention(text.embeddings[chosen], visual.features)
        torch.testing.assert_close(score, expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("method", READING_ATTENTION)
def test_temperature(method):
    visual, text = picture(), question()
    score = get_pruner(method, temperature=0.5).select(visual, text).scores["text_to_image"]
    torch.testing.assert_close(score, text_to_image_attention(text.embeddings[:5], visual.features, 2.0))
    for temperature in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="temperature"):
            get_pruner(method, temperature=temperature)


@pytest.mark.parametrize("method", READING_TEXT)
def test_options_that_leave_no_text(method):
    with pytest.raises(ValueError, match=r"leaves none of the 3 text tokens .* special_tokens=True"):
        get_pruner(method, special_tokens=False).select(picture(), question(3, 3, (0, 1, 2)))
    with pytest.raises(ValueError, match="text_span='prompt'"):
        get_pruner(method, text_span="turn").select(picture(), question(3, 0, ()))
    with pytest.raises(ValueError, match="unknown text_span 'all'; known: turn, prompt"):
        get_pruner(method, text_span="all")


def test_released():
    visual, text = picture(), question()
    selection = AdaFV(keep=25, variant="released").select(visual, text)
    expected = adafv_released(visual.saliency.reshape(3, 36), visual.features, text.embeddings, 25)
    assert torch.equal(selection.indices, expected) and len(selection) == 24
    assert sum(int(share) for share in selection.shares.values()) == 24


@pytest.mark.parametrize("span", ["turn", "prompt"])
def test_released_reads_the_released_text(span):
    assert AdaFV(variant="released", text_span=span).text_span == "prompt"
    assert AdaFV(variant="released") == AdaFV(variant="released", text_span=span)
    assert AdaFV().text_span == "turn"


def test_which_text_is_the_default():
    for name, method in METHODS.items():
        assert get_pruner(name).text_span == ("turn" if method.reads_text else "prompt"), name


def test_released_keeps_all_when_the_budget_covers_all():
    selection = AdaFV(keep=1.0, variant="released").select(picture(full_grid=False), question())
    assert torch.equal(selection.indices, torch.arange(108))


@pytest.mark.parametrize("visual", [picture(full_grid=False), picture((6, 6), (6, 5))])
def test_released_needs_full_grids(visual):
    with pytest.raises(ValueError, match="layout='released'"):
        AdaFV(variant="released").select(visual, question())


def test_released_needs_two_tokens_per_view():
    with pytest.raises(ValueError, match=r"3 views of 36 the budget must be in \[6, 108\], got 5"):
        AdaFV(keep=5, variant="released").select(picture(), question())


@pytest.mark.parametrize(
    "options, message",
    [
        ({"variant": "best"}, "unknown variant 'best'; known: paper, released"),
        ({"min_share": 0.6}, "min_share"),
        ({"min_share": math.nan}, "min_share"),
        ({"variant": "released", "min_share": 0.1}, "leave min_share at 0.25"),
    ],
)
def test_adafv_options(options, message):
    with pytest.raises(ValueError, match=message):
        AdaFV(**options)


def test_random_depends_on_seed_and_size_alone():
    chosen = Random(20, seed=3).select(picture(seed=0)).indices
    assert torch.equal(chosen, Random(20, seed=3).select(picture(seed=9)).indices)
    assert not torch.equal(chosen, Random(20, seed=4).select(picture()).indices)
    assert set(Random(10, seed=3).select(picture()).indices.tolist()) < set(chosen.tolist())
    state = torch.get_rng_state()
    Random(20).select(picture())
    assert torch.equal(torch.get_rng_state(), state)  # the user's own randomness goes on as it was


@pytest.mark.parametrize("seed", [-1, 2**70])
def test_random_takes_any_int(seed):
    assert len(Random(20, seed=seed).select(picture())) == 20


@pytest.mark.parametrize("seed", [0.5, True, None])
def test_random_takes_nothing_else(seed):
    with pytest.raises(TypeError, match="seed must be an int"):
        Random(seed=seed)


def test_random_reaches_every_token():
    times = torch.zeros(108)
    for seed in range(400):
        times += Random(27, seed=seed).select(picture()).mask()
    assert int(times.min()) > 60 and int(times.max()) < 140  # 100 on average, deviation 9


# --- the peers: their functions, with their options --------------------------------------------------------------


def fsr(visual, text, *options):
    relevance = relevance_to_text(text.embeddings[:5], visual.features)
    return focus_scan_refine(visual.features, relevance, visual.saliency, 20, *options)[:2]


def merged(kept, saliency, keys, neighbours):
    return kept, outliers_with_neighbours(saliency, keys, kept, neighbours)


def agilepruner(visual, step=0.01, typical=93.5, limit=2.0):
    step = step / typical * effective_rank(visual.features)
    return salient_and_apart(visual.features, visual.saliency, 20, step, limit)[:1]


def prunesid(visual, members=4, slack=18.0):
    groups = 20 // members
    group, _ = principal_groups(visual.features, groups)
    return [different_in_groups(visual.features, visual.saliency, group, groups, 20, slack)]


# One row per set of options: what the pure function gives, (kept, [weights]).
PEERS = [
    ("agilepruner", {}, lambda v, t, r: agilepruner(v)),
    ("agilepruner", {"step": 1}, lambda v, t, r: agilepruner(v, 1)),
    ("agilepruner", {"typical_rank": 1.5}, lambda v, t, r: agilepruner(v, typical=1.5)),
    ("agilepruner", {"typical_rank": 1.5, "limit": 0.5}, lambda v, t, r: agilepruner(v, 0.01, 1.5, 0.5)),
    (
        "cdpruner",
        {},
        lambda v, t, r: [conditional_dpp(v.features, relevance_to_text(t.embeddings[:5], v.features), 20)],
    ),
    (
        "cdpruner",
        {"words": "max", "sign": -1},
        lambda v, t, r: [
            conditional_dpp(v.features, relevance_to_text(t.embeddings[:5], v.features, words="max", sign=-1), 20)
        ],
    ),
    ("dart", {}, lambda v, t, r: [least_duplicated(v.features, 20, 8)[0]]),
    ("dart", {"pivots": 3}, lambda v, t, r: [least_duplicated(v.features, 20, 3)[0]]),
    ("divprune", {}, lambda v, t, r: [max_min_diversity(v.features, 20)[0]]),
    ("eadp", {}, lambda v, t, r: [r(0.5, 10, 1)]),
    ("eadp", {"share": 0.2, "power": 1, "sign": -1}, lambda v, t, r: [r(0.2, 1, -1)]),
    ("evs", {}, lambda v, t, r: [r(20)]),
    ("fsr", {}, lambda v, t, r: fsr(v, t)),
    ("fsr", {"alpha": 1}, lambda v, t, r: fsr(v, t, 1)),
    ("fsr", {"beta": 0}, lambda v, t, r: fsr(v, t, 3, 0)),
    ("fsr", {"mass": 0.1}, lambda v, t, r: fsr(v, t, 3, 1, 0.1)),
    ("fsr", {"mass": 0.3, "refine": 3}, lambda v, t, r: fsr(v, t, 3, 1, 0.3, 3)),
    ("holov", {}, lambda v, t, r: [holistic_context(v.features, v.saliency, *r(4), 20, 0.09)[0]]),
    ("holov", {"crops": 2, "beta": 9}, lambda v, t, r: [holistic_context(v.features, v.saliency, *r(2), 20, 9)[0]]),
    (
        "holov",
        {"variant": "released"},
        lambda v, t, r: [attention_in_runs(v.features, v.saliency, 20, 16, 0.09)[0]],
    ),
    (
        "holov",
        {"variant": "released", "crops": 2},
        lambda v, t, r: [attention_in_runs(v.features, v.saliency, 20, 4, 0.09)[0]],
    ),
    (
        "mmtok",
        {},
        lambda v, t, r: [multimodal_cover(t.embeddings[1:4], v.features, v.encoded, 20, 0.02, 0.2, 0.5)[0]],
    ),
    (
        "mmtok",
        {"temperature": 0.5, "visual_temperature": 0.05, "visual_weight": 2},
        lambda v, t, r: [multimodal_cover(t.embeddings[1:4], v.features, v.encoded, 20, 0.5, 0.05, 2)[0]],
    ),
    (
        "mmtok",
        {"features": "projected", "special_tokens": True},
        lambda v, t, r: [multimodal_cover(t.embeddings[:5], v.features, v.features, 20)[0]],
    ),
    ("prumerge", {}, lambda v, t, r: merged(top_k(v.saliency, 20), v.saliency, v.keys, 32)),
    ("prumerge", {"neighbours": 2}, lambda v, t, r: merged(top_k(v.saliency, 20), v.saliency, v.keys, 2)),
    ("prumerge-plus", {}, lambda v, t, r: merged(r(0.25, 20), v.saliency, v.keys, 32)),
    ("prumerge-plus", {"neighbours": 2, "salient": 1}, lambda v, t, r: merged(r(1, 20), v.saliency, v.keys, 2)),
    ("prunesid", {}, lambda v, t, r: prunesid(v)),
    ("prunesid", {"members": 2}, lambda v, t, r: prunesid(v, 2)),
    ("prunesid", {"slack": 200}, lambda v, t, r: prunesid(v, 4, 200.0)),
    ("scope", {}, lambda v, t, r: [saliency_coverage(v.features, v.saliency, 20)[0]]),
    ("scope", {"alpha": 3}, lambda v, t, r: [saliency_coverage(v.features, v.saliency, 20, 3)[0]]),
    ("tops", {}, lambda v, t, r: [optimal_preservation(v.features, v.saliency, 20)[0]]),
    (
        "tops",
        {"coverage": 2, "scale": "mean"},
        lambda v, t, r: [optimal_preservation(v.features, v.saliency, 20, 2, 0.5, "mean")[0]],
    ),
    ("tops", {"diversity": 3}, lambda v, t, r: [optimal_preservation(v.features, v.saliency, 20, 0.5, 3)[0]]),
    ("vidcom2", {}, lambda v, t, r: [unique_in_frames(v.features, torch.zeros(108).long(), 1, 20)[0]]),
    (
        "vidcom2",
        {"channels": 1.0},
        lambda v, t, r: [unique_in_frames(v.features, torch.zeros(108).long(), 1, 20, 1.0)[0]],
    ),
    ("visionzip", {}, lambda v, t, r: dominant_and_contextual(v.saliency, v.keys, 20)),
    ("visionzip", {"contextual": 0.5}, lambda v, t, r: dominant_and_contextual(v.saliency, v.keys, 20, 0.5)),
    ("vispruner", {}, lambda v, t, r: [important_and_diverse(v.features, v.saliency, 20, 0.5, 8)[0]]),
    (
        "vispruner",
        {"important": 0.2, "step": 1},
        lambda v, t, r: [important_and_diverse(v.features, v.saliency, 20, 0.2, 1)[0]],
    ),
    ("pool", {}, lambda v, t, r: r(20)),
]


def cover_of_focus(visual, text, share, power, sign):
    where, features = visual.geometry, visual.features
    relevance = focused_relevance(text.embeddings[:5], features, share=share, sign=sign)
    weight = smooth_on_grid(relevance, where.view, where.row, where.column, where.grids) ** power
    return shifted_cosine_cover(features, weight, 20)[0].sort().values


@pytest.mark.parametrize("method, options, expected", PEERS)
def test_peers_are_their_functions(method, options, expected):
    visual, text = picture(), question()
    where = visual.geometry
    places = where.view, where.row, where.column
    regions = {
        "evs": lambda budget: uniform_grid(*places, budget),  # a picture is one frame; films: test_video.py
        "eadp": lambda *given: cover_of_focus(visual, text, *given),
        "holov": lambda side: spatial_crops(*places, where.grids, side),
        "prumerge-plus": lambda salient, budget: salient_and_spread(visual.saliency, *places, budget, salient),
        "pool": lambda budget: spatial_pooling(*places, budget),
    }
    kept, *weights = expected(visual, text, regions.get(method))
    selection = get_pruner(method, keep=20, **options).select(visual, text)
    assert torch.equal(selection.indices, kept)
    if weights:
        assert torch.equal(selection.weights.dense(), weights[0].dense())
        assert selection.weights.dtype == torch.float32 and selection.weights.shape == (20, 108)
    else:
        assert selection.weights is None


def test_every_peer_is_among_them():
    ours = {"adafv", "cover", "saliency", "text", "fixed-mix", "random", "uniform"}
    assert {method for method, _, _ in PEERS} == set(METHODS) - ours


def test_options_of_the_peers_matter():
    """Guards the rows above against an option that is never read."""
    visual, text = picture(), question()
    for method, options, _ in PEERS:
        if options:
            usual, other = (get_pruner(method, keep=20, **given).select(visual, text) for given in ({}, options))
            same_weights = usual.weights is None or torch.equal(usual.weights.dense(), other.weights.dense())
            assert not (torch.equal(usual.indices, other.indices) and same_weights), (method, options)


def test_cdpruner_reads_the_chosen_text():
    visual, text = picture(), question()
    for options, chosen in [
        ({}, [0, 1, 2, 3, 4]),
        ({"text_span": "prompt"}, [0, 1, 2, 3, 4, 5, 6]),
        ({"text_span": "turn", "special_tokens": False}, [1, 2, 3]),
    ]:
        score = get_pruner("cdpruner", **options).select(visual, text).scores["relevance"]
        torch.testing.assert_close(score, relevance_to_text(text.embeddings[chosen], visual.features))


@pytest.mark.parametrize(
    "method, options, error, message",
    [
        ("cdpruner", {"words": "sum"}, ValueError, "unknown words 'sum'; known: mean, max"),
        ("cdpruner", {"sign": 0}, ValueError, "sign must be 1 or -1, got 0"),
        ("agilepruner", {"step": -1}, ValueError, "step must be finite"),
        ("agilepruner", {"typical_rank": 0}, ValueError, "typical_rank must be finite"),
        ("agilepruner", {"limit": 3}, ValueError, "limit must be in"),
        ("dart", {"pivots": 0}, ValueError, "pivots must be >= 1, got 0"),
        ("dart", {"pivots": 2.0}, TypeError, "pivots must be an int"),
        ("eadp", {"share": 0}, ValueError, r"share must be in \(0, 1\], got 0"),
        ("eadp", {"power": 0.0}, ValueError, "power must be positive and finite, got 0.0"),
        ("eadp", {"sign": 2}, ValueError, "sign must be 1 or -1, got 2"),
        ("holov", {"crops": 0}, ValueError, "crops must be >= 1"),
        ("holov", {"beta": math.nan}, ValueError, "beta must be finite"),
        ("mmtok", {"temperature": 0}, ValueError, "temperature must be positive and finite, got 0"),
        ("mmtok", {"visual_temperature": math.inf}, ValueError, "visual_temperature must be positive"),
        ("mmtok", {"visual_weight": -0.1}, ValueError, "visual_weight must be finite and >= 0"),
        ("mmtok", {"features": "raw"}, ValueError, "unknown features 'raw'; known: projected, encoded"),
        ("fsr", {"alpha": -1}, ValueError, "alpha must be finite"),
        ("fsr", {"beta": math.nan}, ValueError, "beta must be finite"),
        ("fsr", {"mass": 0}, ValueError, "mass must be in"),
        ("fsr", {"refine": math.inf}, ValueError, "refine must be finite"),
        ("holov", {"variant": "runs"}, ValueError, "unknown variant 'runs'; known: squares, released"),
        ("prumerge", {"neighbours": -1}, ValueError, "neighbours must be >= 0"),
        ("prumerge-plus", {"neighbours": True}, TypeError, "neighbours must be an int"),
        ("prumerge-plus", {"salient": 1.5}, ValueError, "salient must be in"),
        ("prunesid", {"members": 0}, ValueError, "members must be >= 1"),
        ("prunesid", {"members": 4.0}, TypeError, "members must be an int"),
        ("prunesid", {"slack": -1}, ValueError, "slack must be finite"),
        ("scope", {"alpha": -1}, ValueError, "alpha must be finite"),
        ("tops", {"coverage": -1}, ValueError, "coverage must be finite"),
        ("tops", {"diversity": math.nan}, ValueError, "diversity must be finite"),
        ("tops", {"scale": "sum"}, ValueError, "unknown scale 'sum'; known: range, mean"),
        ("visionzip", {"contextual": 1.0}, ValueError, "contextual must be in"),
        ("vispruner", {"important": math.nan}, ValueError, "important must be in"),
        ("vispruner", {"step": 0}, ValueError, "step must be >= 1"),
    ],
)
def test_options_of_the_peers(method, options, error, message):
    with pytest.raises(error, match=message):
        get_pruner(method, **options)


@pytest.mark.parametrize("method", [name for name in METHODS if OWN_SCORES.get(name)])
def test_broken_features_are_seen(method):
    visual = picture()
    visual.features[3, 2] = math.inf
    with pytest.raises(ValueError, match="NaN or infinity in visual"):
        get_pruner(method).select(visual, question())


@pytest.mark.parametrize("method", READING_ENCODED)
def test_broken_encoder_features(method):
    visual = picture()
    visual.encoded[3, 2] = math.nan
    with pytest.raises(ValueError, match="NaN or infinity in encoded"):
        get_pruner(method).select(visual, question())


@pytest.mark.parametrize("method", READING_KEYS)
def test_broken_keys(method):
    visual = picture()
    visual.keys[3, 2] = math.nan
    with pytest.raises(ValueError, match="NaN or infinity in keys"):
        get_pruner(method).select(visual, question())


def test_weights_fit_the_selection():
    where, kept = geometry((2, 2)), torch.tensor([1, 2])
    assert Selection(kept, where, weights=torch.ones(2, 4)).weights is not None
    with pytest.raises(ValueError, match=r"weights must be \(kept, patch\) tokens, \(2, 4\), got \(4, 2\)"):
        Selection(kept, where, weights=torch.ones(4, 2))
    with pytest.raises(TypeError, match="weights must be float32"):
        Selection(kept, where, weights=torch.ones(2, 4, dtype=torch.float64))


def test_uniform_reaches_every_view():
    selection = Uniform(keep=12).select(picture())
    assert torch.bincount(selection.view).tolist() == [4, 4, 4]
    assert Uniform(keep=1).select(picture((5, 5))).indices.tolist() == [12]


# --- without a host sync --------------------------------------------------------------------------------------


def placed(tokens, device):
    where = tokens.geometry
    places = (tensor.to(device) for tensor in (where.view, where.row, where.column, where.boxes))
    there = Geometry(*places, where.image_size, where.grids)
    read = {name: getattr(tokens, name).to(device) for name in ("features", "saliency", "keys", "encoded")}
    return dataclasses.replace(tokens, geometry=there, **read)


def asked(text, device):
    return TextTokens(text.embeddings.to(device), text.turn.to(device), text.special.to(device))


@pytest.mark.parametrize("keep", [0.2, 1, 107])
def test_nothing_asks_for_a_value(name, keep, monkeypatch):
    """Tensors of the meta device have no values: whatever would wait for one raises, on any machine."""
    options = {"text_span": "turn", "special_tokens": False} if name in READING_TEXT else {}
    pruner = get_pruner(name, keep=keep, **options)
    expected = pruner.select(picture(), question())
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # it does not know that device
    selection = pruner.select(placed(picture(), "meta"), asked(question(), "meta"))
    assert selection.indices.is_meta and selection.indices.shape == expected.indices.shape
    assert (selection.weights is None) == (expected.weights is None)
    for score, known in expected.scores.items():
        assert selection.scores[score].is_meta and selection.scores[score].shape == known.shape


# --- whatever surrounds the call ---------------------------------------------------------------------------------


def same_selection(one, other):
    assert torch.equal(one.indices, other.indices)
    assert set(one.scores) == set(other.scores) and set(one.shares) == set(other.shares)
    for name in one.scores:
        assert one.scores[name].dtype == other.scores[name].dtype == torch.float32
        assert torch.equal(one.scores[name], other.scores[name])
    assert all(torch.equal(one.shares[name], other.shares[name]) for name in one.shares)
    assert (one.weights is None) == (other.weights is None)
    if one.weights is not None:
        assert torch.equal(one.weights.dense(), other.weights.dense())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", [*METHODS, "adafv:variant=released", "holov:variant=released"])
def test_autocast_changes_nothing(method, dtype):
    pruner = get_pruner(method, keep=0.3)
    visual, text = picture(dtype=dtype), question(dtype=dtype)
    expected = pruner.select(visual, text)
    with torch.autocast("cpu", torch.bfloat16):
        found = pruner.select(visual, text)
        together = found.gather(visual.features)
    same_selection(found, expected)
    assert torch.equal(together, expected.gather(visual.features)) and together.dtype == dtype


@pytest.mark.parametrize("method", READING_SALIENCY)
def test_saliency_of_half_precision_is_scored_in_float32(method):
    visual = picture()
    half = dataclasses.replace(visual, saliency=visual.saliency.bfloat16())
    whole = dataclasses.replace(visual, saliency=visual.saliency.bfloat16().float())
    pruner = get_pruner(method, keep=0.3)
    same_selection(pruner.select(half, question()), pruner.select(whole, question()))


@pytest.mark.parametrize("keep", [0.3, 1.0])
def test_the_default_device_does_not_matter(name, keep):
    """Nothing may be made without saying where: on the meta device it would have no values."""
    options = {"special_tokens": False} if name in READING_TEXT else {}
    pruner, visual, text = get_pruner(name, keep=keep, **options), picture(), question()
    expected = pruner.select(visual, text)
    with torch.device("meta"):
        found = pruner.select(visual, text)
        together, mask = found.gather(visual.features), found.mask()
        dense = None if found.weights is None else found.weights.dense()
    same_selection(found, expected)
    assert torch.equal(together, expected.gather(visual.features)) and torch.equal(mask, expected.mask())
    assert dense is None or torch.equal(dense, expected.weights.dense())


def test_scores_are_computed_where_the_features_are(name, monkeypatch):
    """Whatever else lies on another device (an embedding table, say) comes there; mixing devices would raise."""
    there, text = placed(picture(), "meta"), question()
    scattered = dataclasses.replace(picture(), features=there.features)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # it does not know that device
    selection = get_pruner(name, keep=0.3).select(scattered, text)
    assert selection.indices.is_meta and selection.gather(there.features).is_meta
    assert all(score.is_meta for score in selection.scores.values())


# --- misuse -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [*METHODS.values(), *INSIDE_METHODS.values()])
def test_misuse_is_told_in_a_line(method):
    model, name = torch.nn.Linear(300, 300), method.__name__
    cases = [
        (lambda: method(model), rf"keep is a number, got a Linear: write `with {name}\(keep=0.1\)\(model\):`"),
        (lambda: method("0.1"), "got '0.1', a str: write keep=0.1, say"),
        (lambda: method(torch.rand(500)), "got Tensor: write keep=0.1, say"),
        (lambda: method(method()), f"got {name}: write keep=0.1, say"),
        (lambda: method(keep=0.2).__enter__(), rf"no model to prune: write `with {name}\(keep=0.2\)\(model\):`"),
    ]
    for call, message in cases:
        with pytest.raises(TypeError, match=f"{message}$") as error:
            call()
        assert len(str(error.value)) < 160 and "\n" not in str(error.value)
    with pytest.raises(TypeError, match="no model to prune"), method(keep=0.2):
        pass


def test_methods_are_keys():
    """Equal by class and options; a hash that does not change when an option is set."""
    for method in (*METHODS.values(), *INSIDE_METHODS.values()):
        one, other, third = method(keep=0.2), method(keep=0.2), method(keep=0.3)
        assert one == other != third and hash(one) == hash(other)
        counts = {one: 1, third: 3}
        counts[other] = 2
        assert counts == {one: 2, third: 3}
        third.keep = 0.4
        assert counts[third] == 3
    assert Saliency() != Uniform() and len({Saliency(), Uniform(), Saliency()}) == 2


def test_methods_of_others_are_keys():
    @dataclasses.dataclass
    class Mine(Saliency):
        steps: list[int] = dataclasses.field(default_factory=list)

    @dataclasses.dataclass
    class Apart(Saliency):
        def __hash__(self):
            return 7

    assert {Mine(0.2, [1]): 1}[Mine(0.2, [1])] == 1 and Mine(0.2, [1]) != Mine(0.2, [2])
    assert hash(Apart()) == 7


def test_dense_weights_of_one_s_own():
    """A method may return a (K, N) float32 tensor; of another shape or dtype it is refused."""

    @dataclasses.dataclass
    class Halves(Pruner):
        name = "halves"
        dtype: torch.dtype = torch.float32

        def choose(self, visual, text, budget):
            weights = torch.zeros(budget, len(visual), dtype=self.dtype)
            weights[:, :2] = 0.5
            return Choice(torch.arange(budget), weights=weights)

    visual = picture()
    selection = Halves(keep=3).select(visual)
    torch.testing.assert_close(selection.gather(visual.features), visual.features[:2].mean(dim=0).expand(3, 16))
    with pytest.raises(TypeError, match="weights must be float32, got torch.float64"):
        Halves(keep=3, dtype=torch.float64).select(visual)


# --- on a GPU ---------------------------------------------------------------------------------------------


WAITING = {"agilepruner", "prunesid"}
"""Methods that factorise a matrix: torch looks whether that has worked, and waits for the device."""


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_no_sync_on_cuda(name):
    if name in WAITING:
        pytest.skip("torch.linalg waits for the device")
    text = question()
    there = asked(text, "cuda")
    options = {"text_span": "turn", "special_tokens": False} if name in READING_TEXT else {}
    pruner, visual = get_pruner(name, keep=0.2, **options), placed(picture(), "cuda")
    pruner.select(visual, there)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        selection = pruner.select(visual, there)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    expected = pruner.select(picture(), text)
    assert torch.equal(selection.indices.cpu(), expected.indices)
    if expected.weights is not None:
        torch.testing.assert_close(selection.weights.dense().cpu(), expected.weights.dense())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("method", [name for name in METHODS if OWN_SCORES.get(name)])
def test_broken_features_show_in_the_scores_on_cuda(method):
    """Nothing is checked there; whoever called finds it in a score."""
    visual, text = placed(picture(), "cuda"), question()
    visual.features[3, 2] = math.nan
    there = TextTokens(text.embeddings.cuda(), text.turn, text.special)
    scores = get_pruner(method, keep=0.2).select(visual, there).scores
    assert any(not bool(torch.isfinite(score).all()) for score in scores.values())


def test_options_stand_behind_a_name():
    assert get_pruner("adafv", keep=0.2) == AdaFV(keep=0.2)
    method, options = parse_method("fastv:layer=1:budget=final")
    assert method.name == "fastv" and options == {"layer": 1, "budget": "final"}
    assert get_pruner("pyramiddrop:stages=(0.25, 0.5)", keep=3).stages == (0.25, 0.5)
    assert get_pruner("random:seed=3", seed=4).seed == 4
    for text in ("adafv:kept=1", "adafv:variant", "adafv:keep=0.1", "uniform:"):
        with pytest.raises(ValueError, match="has no option"):
            parse_method(text)
    with pytest.raises(ValueError, match="unknown method 'fast'"):
        parse_method("fast:layer=1")
    with pytest.raises(ValueError, match="trim is not available"):
        parse_method("trim")
