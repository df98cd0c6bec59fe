"""Centered against its paper's equations, written out with loops in float64; what it holds and what it refuses."""

import contextlib
import dataclasses
import math

import pytest
import torch

from foveate.functional import centered, distinctiveness, max_min_diversity
from foveate.pruners import WRAPPERS, CDPruner, Centered, DivPrune, Wrapper, get_pruner, parse_method, takes
from foveate.tokens import Geometry, TextTokens, VisualTokens
from tests.functional.test_diversity import cosine, determinant, first_best


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def visual(tokens=30, seed=0, dtype=torch.float32):
    """Tokens that point much the same way, as an image's do; the encoder's with one dimension that outweighs all."""
    place = torch.arange(tokens)
    where = Geometry(place * 0, place * 0, place, torch.zeros(tokens, 4), (14, 14 * tokens), ((1, tokens),))
    features = torch.randn(tokens, 16, generator=seeded(seed)) + 0.7 * torch.randn(16, generator=seeded(seed + 1))
    features *= torch.rand(tokens, 1, generator=seeded(seed + 2)) + 0.5
    encoded = torch.randn(tokens, 12, generator=seeded(seed + 3)) + 3 * torch.randn(12, generator=seeded(seed + 4))
    encoded[:, 5] *= 50
    encoded[:, 2] = 7.0  # a dimension that does not vary
    return VisualTokens(features.to(dtype), where, encoded=encoded.to(dtype))


def question(seed=1):
    embeddings = torch.randn(5, 16, generator=seeded(seed + 100))
    return TextTokens(embeddings, torch.ones(5, dtype=torch.bool), torch.zeros(5, dtype=torch.bool))


# --- the equations ------------------------------------------------------------------------------------------


def without_mean(rows):
    """Equation 3; a token that equals the mean up to float32's rounding has no direction."""
    mean = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
    rest = [[value - m for value, m in zip(row, mean, strict=True)] for row in rows]
    least = 1e-6 * math.sqrt(sum(m * m for m in mean))
    return [row if math.sqrt(sum(a * a for a in row)) > least else [0.0] * len(row) for row in rest]


def scaled(rows):
    """Equation 9, dimensions that do not vary left out."""
    columns = []
    for column in zip(*rows, strict=True):
        mean = sum(column) / len(column)
        spread = math.sqrt(sum((value - mean) ** 2 for value in column) / len(column))
        columns.append([value / spread if spread > 1e-9 else 0.0 for value in column])
    return [list(row) for row in zip(*columns, strict=True)]


def distinct(rows):
    """Equation 5."""
    tokens = range(len(rows))
    return [-sum(cosine(rows[i], rows[j]) for j in tokens if j != i) / (len(rows) - 1) for i in tokens]


def min_max(values):
    """Equation 11, without its epsilon."""
    low, high = min(values), max(values)
    return [(value - low) / (high - low) if high - low > 1e-9 else 1.0 for value in values]


def sigmoid_of_z(values):
    """Equation 12, without its epsilon."""
    mean = sum(values) / len(values)
    spread = math.sqrt(sum((value - mean) ** 2 for value in values) / len(values))
    return [1 / (1 + math.exp(-(value - mean) / spread)) if spread > 1e-9 else 0.5 for value in values]


def divprune(rows, weight, budget):
    """Equation 7 after the selector's own first token."""
    everything = range(len(rows))
    away = [[1 - cosine(one, other) for other in rows] for one in rows]
    chosen = [first_best(everything, lambda i: min(away[i][j] for j in everything if j != i))]
    while len(chosen) < budget:
        rest = [i for i in everything if i not in chosen]
        chosen.append(first_best(rest, lambda i: weight[i] * min(away[i][j] for j in chosen)))
    return sorted(chosen)


def cdpruner(rows, quality, budget):
    """Equation 8, greedily; those in the span of the chosen last, by quality."""
    everything = range(len(rows))
    kernel = [[quality[i] * cosine(rows[i], rows[j]) * quality[j] for j in everything] for i in everything]
    chosen, now = [], 1.0
    while len(chosen) < budget:
        rest = [i for i in everything if i not in chosen]
        gain = {i: determinant([[kernel[a][b] for b in [*chosen, i]] for a in [*chosen, i]]) / now for i in rest}
        new = [i for i in rest if gain[i] > 1e-4 * kernel[i][i]]
        if not new:
            return sorted(chosen + sorted(rest, key=lambda i: (-quality[i], i))[: budget - len(chosen)])
        best = first_best(new, gain.__getitem__)
        now *= gain[best]
        chosen.append(best)
    return sorted(chosen)


def relevance(features, text):
    raw = [sum(cosine(row, word) for word in text) / len(text) for row in features]
    return min_max(raw)


def literal(tokens, text, form, method, budget):
    rows = (tokens.features if form == "projected" else tokens.encoded).double().tolist()
    if form == "encoded":
        rows = scaled(rows)
    weight = min_max(distinct(rows)) if form == "projected" else sigmoid_of_z(distinct(rows))
    if method == "divprune":
        return divprune(without_mean(rows), weight, budget), weight
    wanted = relevance(tokens.features.double().tolist(), text.embeddings.double().tolist())
    quality = [r * g for r, g in zip(wanted, weight, strict=True)]
    return cdpruner(without_mean(rows), quality, budget), weight


@pytest.mark.parametrize("form", ["projected", "encoded"])
@pytest.mark.parametrize("method", ["divprune", "cdpruner"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens, budget", [(2, 1), (12, 5), (30, 1), (30, 2), (30, 9), (30, 29)])
def test_centered(form, method, dtype, tokens, budget):
    for seed in range(3):
        shown, text = visual(tokens, seed, dtype), question(seed)
        expected, weight = literal(shown, text, form, method, budget)
        selection = get_pruner(f"centered:features={form}:{method}", keep=budget).select(shown, text)
        assert selection.indices.tolist() == expected
        found = selection.scores["distinctiveness"]
        torch.testing.assert_close(found, torch.tensor(weight, dtype=torch.float32), atol=2e-5, rtol=0)


@pytest.mark.parametrize("form", ["projected", "encoded"])
@pytest.mark.parametrize("method", ["divprune", "cdpruner"])
@pytest.mark.parametrize("budget", [1, 4, 9])
def test_both_halves_matter(form, method, budget):
    """Centering alone, or the weight alone, choose otherwise: guards the test above."""
    shown, text = visual(60, 5), question(5)
    usual = Centered(method, features=form, keep=12).select(shown, text).indices.tolist()
    source = shown.features if form == "projected" else shown.encoded
    compared, raw = centered(source, form == "encoded")
    weight = distinctiveness(raw, "sigmoid" if form == "encoded" else "min-max")
    for part in ({"compared": compared}, {"weight": weight}, {}):
        other = get_pruner(method, keep=12).select(dataclasses.replace(shown, **part), text).indices.tolist()
        assert other != usual
    both = get_pruner(method, keep=12).select(dataclasses.replace(shown, compared=compared, weight=weight), text)
    assert both.indices.tolist() == usual


def on_axes(signs):
    """Tokens of +-1 in few dimensions, again and again: cosines and means are exact, full of ties."""
    return torch.tensor(signs, dtype=torch.float32)


@pytest.mark.parametrize("budget", [1, 2, 3, 5, 7])
def test_ties_go_to_the_earlier_token(budget):
    """Each token stands beside its opposite: the mean is nothing, all weigh the same."""
    one = [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    shown = dataclasses.replace(visual(8), features=on_axes(one + [[-value for value in row] for row in one]))
    expected, weight = literal(shown, question(), "projected", "divprune", budget)
    assert weight == [1.0] * 8
    selection = Centered("divprune", keep=budget).select(shown)
    assert selection.indices.tolist() == expected and selection.scores["distinctiveness"].tolist() == weight


@pytest.mark.parametrize("form", ["projected", "encoded"])
@pytest.mark.parametrize("method", ["divprune", "cdpruner"])
@pytest.mark.parametrize("budget", [1, 3, 7])
def test_an_empty_picture(form, method, budget):
    """All tokens equal: nothing is distinct, the mean leaves nothing, and not what rounding left of it."""
    one = torch.randn(1, 16, generator=seeded(0)).expand(8, 16).contiguous()
    shown = dataclasses.replace(visual(8), features=one, encoded=one)
    selection = Centered(method, features=form, keep=budget).select(shown, question())
    assert selection.indices.tolist() == list(range(budget))
    assert set(selection.scores["distinctiveness"].tolist()) == {1.0 if form == "projected" else 0.5}


@pytest.mark.parametrize("method", ["divprune", "cdpruner"])
def test_a_token_without_a_direction_and_one_that_is_the_mean(method):
    rows = torch.randn(10, 16, generator=seeded(3)) + 0.5
    rows[4] = 0
    rows[7] = (rows.sum(dim=0) - rows[7]) / 9  # the mean of all, itself among them
    shown = dataclasses.replace(visual(10), features=rows)
    compared, _ = centered(rows)
    assert not compared[7].any() and bool(compared[4].any())
    for budget in (1, 3, 8, 9):
        expected, weight = literal(shown, question(), "projected", method, budget)
        selection = Centered(method, keep=budget).select(shown, question())
        assert selection.indices.tolist() == expected
        found = selection.scores["distinctiveness"]
        torch.testing.assert_close(found, torch.tensor(weight, dtype=torch.float32), atol=1e-5, rtol=0)


@pytest.mark.parametrize("scale", ["min-max", "sigmoid"])
def test_distinctiveness_by_hand(scale):
    """Cosines of 0 to the others: 1 and 0; of 1: 1 and 0; of 2: 0 and 0. So -1/2, -1/2, 0."""
    found = distinctiveness(torch.tensor([[1.0, 0.0], [4.0, 0.0], [0.0, 2.0]]), scale)
    third = 1 / (1 + math.exp(math.sqrt(2))), 1 / (1 + math.exp(1 / math.sqrt(2)))
    expected = [0.0, 0.0, 1.0] if scale == "min-max" else [third[1], third[1], 1 - third[0]]
    torch.testing.assert_close(found, torch.tensor(expected))
    assert distinctiveness(torch.ones(1, 2), scale).tolist() == [1.0 if scale == "min-max" else 0.5]


def test_centered_by_hand():
    rest, raw = centered(torch.tensor([[1.0, 10.0, 3.0], [3.0, 50.0, 3.0]]), standardized=True)
    torch.testing.assert_close(rest, torch.tensor([[-1.0, -1.0, 0.0], [1.0, 1.0, 0.0]]))
    torch.testing.assert_close(raw, torch.tensor([[1.0, 0.5, 0.0], [3.0, 2.5, 0.0]]))
    rest, raw = centered(torch.tensor([[1.0, 10.0, 3.0], [3.0, 50.0, 3.0]]))
    torch.testing.assert_close(rest, torch.tensor([[-1.0, -20.0, 0.0], [1.0, 20.0, 0.0]]))
    assert raw.tolist() == [[1.0, 10.0, 3.0], [3.0, 50.0, 3.0]]


def test_a_weight_of_one_changes_nothing():
    features, ones = visual(40, 2).features, torch.ones(40)
    for budget in (1, 5, 39):
        kept, distance = max_min_diversity(features, budget)
        weighed = max_min_diversity(features, budget, ones)
        assert torch.equal(weighed[0], kept) and torch.equal(weighed[1], distance)
        shown = visual(40, 2)
        same = CDPruner(budget).select(dataclasses.replace(shown, weight=ones), question()).indices
        assert torch.equal(same, CDPruner(budget).select(shown, question()).indices)


# --- what it holds ----------------------------------------------------------------------------------------------


def test_names():
    assert WRAPPERS["centered"] is Centered
    method, options = parse_method("centered:cdpruner:words=max")
    assert method is Centered and options == {"method": CDPruner(words="max")}
    pruner = get_pruner("centered:features=encoded:divprune", keep=5)
    assert pruner == Centered(DivPrune(5), features="encoded") and pruner.keep == pruner.method.keep == 5
    assert takes("centered:cdpruner", "text_span") and not takes("centered:divprune", "text_span")


def test_flags_are_those_of_the_held_method():
    assert Centered("cdpruner").reads_text and not Centered("divprune").reads_text
    assert Centered("divprune", features="encoded").reads_encoded and not Centered("divprune").reads_encoded
    assert Centered(CDPruner(text_span="prompt")).text_span == "prompt"
    assert not Centered("divprune").takes_weight and not Centered("divprune").merges


@pytest.mark.parametrize("method", ["scope", "uniform", "adafv", "visionzip"])
def test_methods_that_do_not_weigh_tokens_are_refused(method):
    message = (
        f"centered cannot hold {method}: it does not compare tokens by weight, as (?=.*cdpruner)(?=.*divprune).* do"
    )
    with pytest.raises(ValueError, match=message):
        Centered(method)
    with pytest.raises(ValueError, match=message):
        get_pruner(f"centered:{method}")


def test_it_does_not_hold_itself():
    with pytest.raises(ValueError, match="centered cannot hold centered"):
        Centered(Centered("divprune"))


def test_a_wrapper_around_a_method_that_weighs_is_held():
    @dataclasses.dataclass
    class Around(Wrapper):
        name = "around"

        def choose(self, visual, text, budget):
            return self.method.choose(visual, text, budget)

    shown = visual()
    inner, outer = Centered(Around("divprune"), keep=7), Around(Centered("divprune"), keep=7)
    expected = Centered("divprune", keep=7).select(shown).indices
    assert torch.equal(inner.select(shown).indices, expected) and torch.equal(outer.select(shown).indices, expected)


def test_options_out_of_range_are_refused():
    with pytest.raises(ValueError, match="unknown features 'raw'; known: projected, encoded"):
        Centered("divprune", features="raw")
    with pytest.raises(ValueError, match="unknown scale 'max'; known: min-max, sigmoid"):
        distinctiveness(torch.randn(3, 4), "max")
    with pytest.raises(TypeError, match="prunes inside the LLM"):
        Centered("fastv")
    with pytest.raises(ValueError, match="weight must not be negative"):
        max_min_diversity(torch.randn(3, 4), 2, torch.tensor([0.0, -1.0, 1.0]))
    with pytest.raises(ValueError, match="one value for each of the 3 tokens"):
        max_min_diversity(torch.randn(3, 4), 2, torch.ones(4))


def test_tokens_without_the_encoder_s_features_are_refused():
    shown = dataclasses.replace(visual(), encoded=None)
    with pytest.raises(ValueError, match="centered reads the vision encoder's features, and these tokens carry none"):
        Centered("divprune", features="encoded").select(shown)
    assert len(Centered("divprune").select(shown)) == 3


@pytest.mark.parametrize("form", ["projected", "encoded"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_is_refused(form, value):
    shown = visual()
    (shown.features if form == "projected" else shown.encoded)[3, 2] = value
    with pytest.raises(ValueError, match="NaN or infinity in visual"):
        Centered("divprune", features=form).select(shown)


@pytest.mark.parametrize("form", ["projected", "encoded"])
@pytest.mark.parametrize("method", ["divprune", "cdpruner"])
def test_whatever_surrounds_the_call(form, method, monkeypatch):
    """Autocast and gradients change nothing; nothing asks for a value; a budget that covers all keeps all."""
    shown, text = visual(), question()
    pruner = Centered(method, features=form, keep=7)
    expected = pruner.select(shown, text)
    with torch.autocast("cpu", torch.bfloat16):
        found = pruner.select(shown, text)
    grown = dataclasses.replace(
        shown, features=shown.features.clone().requires_grad_(), encoded=shown.encoded.clone().requires_grad_()
    )
    for other in (found, pruner.select(grown, text)):
        assert torch.equal(other.indices, expected.indices)
        for name, score in expected.scores.items():
            assert torch.equal(other.scores[name], score) and not other.scores[name].requires_grad
    assert len(Centered(method, features=form, keep=30).select(shown, text)) == 30
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # it does not know that device
    there = dataclasses.replace(
        shown,
        features=shown.features.to("meta"),
        geometry=shown.geometry.to(torch.device("meta")),
        encoded=shown.encoded.to("meta"),
    )
    asked = TextTokens(text.embeddings.to("meta"), text.turn.to("meta"), text.special.to("meta"))
    assert pruner.select(there, asked).indices.is_meta


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("form", ["projected", "encoded"])
@pytest.mark.parametrize("method", ["divprune", "cdpruner"])
def test_no_sync_on_cuda(form, method):
    shown, text = visual(300), question()
    there = dataclasses.replace(
        shown,
        features=shown.features.cuda(),
        geometry=shown.geometry.to(torch.device("cuda")),
        encoded=shown.encoded.cuda(),
    )
    asked = TextTokens(text.embeddings.cuda(), text.turn, text.special)
    pruner = Centered(method, features=form, keep=30)
    pruner.select(there, asked)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        selection = pruner.select(there, asked)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(selection.indices.cpu(), pruner.select(shown, text).indices)
