"""The released variant against the choices that the authors' code made on fixed tensors (tests/golden)."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from foveate.functional import adafv_released, released_mixture, text_to_image_attention

FILES = sorted((Path(__file__).parent / "golden").glob("*.safetensors"))


def load(path):
    with safe_open(path, "pt") as file:
        return load_file(path), {key: int(value) for key, value in file.metadata().items()}


def test_there_are_golden_files():
    assert len(FILES) == 6


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def golden(request):
    return load(request.param)


def test_kept(golden):
    tensors, numbers = golden
    kept = adafv_released(tensors["cls_attention"], tensors["visual"], tensors["text"], numbers["budget"])
    assert torch.equal(kept, tensors["kept"])
    assert len(kept) == numbers["kept_tokens"] <= numbers["budget"]


def test_text_to_image(golden):
    tensors, _ = golden
    score = text_to_image_attention(tensors["text"], tensors["visual"])
    # Both sides are float32. A cosine's last bits (2e-7, by the order a BLAS sums in) count 100-fold in the exponent.
    torch.testing.assert_close(score, tensors["text_to_image"], rtol=5e-5, atol=0)


def test_batched(golden):
    """Two in a batch, the second one with its text reversed, keep what each keeps alone."""
    tensors, numbers = golden
    kept = adafv_released(
        tensors["cls_attention"].expand(2, -1, -1),
        tensors["visual"].expand(2, -1, -1),
        torch.stack([tensors["text"], tensors["text"].flip(0)]),
        numbers["budget"],
    )
    assert torch.equal(kept, tensors["kept"].expand(2, -1))


def test_shares(golden):
    tensors, numbers = golden
    kept, k_s, k_t = released_mixture(tensors["cls_attention"], tensors["text_to_image"], numbers["budget"])
    assert torch.equal(kept, tensors["kept"])
    assert int(k_s + k_t) == numbers["kept_tokens"]
    assert min(int(k_s), int(k_t)) >= numbers["kept_tokens"] // 4


@pytest.mark.parametrize("views, patches, budget", [(1, 16, 2), (2, 16, 31), (3, 8, 24), (5, 36, 10), (4, 1, 3)])
def test_budget_is_rounded_per_view(views, patches, budget):
    generator = torch.Generator().manual_seed(budget)
    saliency = torch.rand(views, patches, generator=generator)
    text = torch.rand(views * patches, generator=generator)
    if budget < 2 * views:
        with pytest.raises(ValueError, match="even number of tokens per view"):
            released_mixture(saliency, text, budget)
        return
    kept, _, _ = released_mixture(saliency, text, budget)
    assert len(kept) == int(int(budget / 2) / views) * 2 * views
    assert bool((kept.diff() >= 0).all()) and int(kept[0]) >= 0 and int(kept[-1]) < views * patches


def test_released_refuses_a_budget_above_the_tokens():
    with pytest.raises(ValueError, match=r"\[4, 16\], got 17"):
        released_mixture(torch.rand(2, 8), torch.rand(16), 17)


def test_released_refuses_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match="one shape"):
        released_mixture(torch.rand(2, 8), torch.rand(15), 8)
    with pytest.raises(ValueError, match=r"\(..., V, P\)"):
        released_mixture(torch.rand(16), torch.rand(16), 8)
