"""The five lines at the top of the README, as they stand there, with small models in place of the released ones."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

import foveate
from foveate import bundled
from foveate.bundled import processors
from tests.chat import tokenizer
from tests.models.test_chatml import MARKS, NAMED, SIZE, TEMPLATE
from tests.test_docs import ROOT, python_blocks
from tests.tiny import ROWS


def qwen() -> tuple[Any, Any]:
    """Tiny and random, with Qwen3-VL's own processor."""
    words = tokenizer(MARKS, NAMED)
    return ROWS["qwen3_vl"].make("sdpa"), processors.qwen3_vl({"size": SIZE, "patch_size": 16}, words, TEMPLATE)


STAND_INS: dict[str, tuple[str, Callable[[], tuple[Any, Any]]]] = {
    "Qwen": ("qwen3_vl", qwen),
    "llava-hf": ("llava_next", bundled.load),
}


def lines_for(owner: str) -> list[str]:
    """What is common to both, the five lines of one of them, and what is done with what comes back."""
    blocks = [code for _, code, _ in python_blocks(ROOT / "README.md")]
    common = next(code for code in blocks if "chat = " in code)
    (five,) = [code for code in blocks if f'"{owner}/' in code]
    assert "apply_chat_template" in five
    then = next(code for code in blocks if code.startswith("print(processor.decode"))
    return [common, five, then]


@pytest.mark.parametrize("owner", STAND_INS)
def test_five_lines(
    owner: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model_type, load = STAND_INS[owner]
    model, processor = load()
    assert model.config.model_type == model_type
    Image.effect_noise((160, 128), 90).convert("RGB").save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)

    def stand_in(value: Any) -> Callable[..., Any]:
        def from_pretrained(name: str, **options: Any) -> Any:
            assert name.startswith(f"{owner}/")
            return value

        return from_pretrained

    monkeypatch.setattr(AutoModelForImageTextToText, "from_pretrained", stand_in(model))
    monkeypatch.setattr(AutoProcessor, "from_pretrained", stand_in(processor))
    known: dict[str, Any] = {}
    for code in lines_for(owner):
        exec(compile(code, "README.md", "exec"), known)
    (selection,) = known["pruned"].selections
    share = 0.25 if owner == "Qwen" else 0.1
    assert len(selection) == foveate.Keep(share).budget(selection.total) < selection.total
    prompt = known["inputs"]["input_ids"]
    assert torch.equal(known["output"][:, : prompt.shape[1]], prompt) and known["output"].shape[1] > prompt.shape[1]
    assert str(selection) in capsys.readouterr().out


def gained(row: str) -> list[float]:
    """The figures of a row of the table of what is gained: of all tokens first, empty cells left out."""
    text = (ROOT / "README.md").read_text(encoding="utf-8").split("## What is gained", 1)[1]
    (line,) = [one for one in text.splitlines() if one.startswith(f"| {row} |")]
    return [float(found[1]) for cell in line.split("|")[2:6] if (found := re.search(r"([\d.]+)", cell))]


def results(name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((ROOT / "benchmarks" / "results" / name).read_text(encoding="utf-8"))[
        "results"
    ]
    return found


@pytest.mark.parametrize(
    ("row", "figure", "unit", "digits"),
    [
        ("time to the first token", "over_stock", 1.0, 2),
        ("KV cache of a prompt", "cache_bytes", 2**20, 0),
        ("peak memory beyond the weights", "peak_bytes", 2**20, 0),
    ],
)
def test_what_is_gained_is_what_was_measured(row: str, figure: str, unit: float, digits: int) -> None:
    runs = results("h100/llava-next-7b.json")
    (stock,) = [one for one in runs if one["kind"] == "stock"]
    pruned = {
        one["keep"]: one for one in runs if (one["kind"], one["method"], one["crops"]) == ("foveate", "adafv", "")
    }
    whole = stock["ttft_ms"] if figure == "over_stock" else stock[figure] / unit
    first, *others = gained(row)
    assert first == pytest.approx(whole, abs=0.5)
    assert others == pytest.approx([pruned[k][figure] / unit for k in (0.25, 0.1, 0.05)], abs=0.5 * 10**-digits)


def test_requests_served_are_what_was_measured() -> None:
    fresh = {one["keep"]: one for one in results("serve-llava-next-7b-4.json") if one["pictures"] == "fresh"}
    expected = [round(fresh[1.0]["rate"], 2), *(round(fresh[keep]["gain"], 1) for keep in (0.25, 0.1, 0.05))]
    assert gained("requests/s of a vLLM server") == pytest.approx(expected)
    (four,) = [
        one for one in results("h100/llava-next-7b-batch-4.json")
        if (one["kind"], one["keep"], one["crops"]) == ("foveate", 0.1, "")
    ]  # fmt: skip
    assert gained("the same, four prompts at once")[1] == round(four["over_stock"], 2)


@pytest.mark.parametrize("row", ["accuracy, `cover`", "accuracy, `adafv` (the default)"])
def test_accuracies_are_those_of_the_results(row: str) -> None:
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8").split("<!-- numbers:start -->")[1]
    page = page.split("<!-- numbers:end -->")[0]
    method = row.split("`")[1]
    wanted = [("all tokens", "1"), *((f"`{method}`", keep) for keep in ("0.25", "0.1", "0.05"))]
    lines = [[cell.strip() for cell in line.split("|")[1:]] for line in page.splitlines() if line.startswith("|")]
    found = {(cells[0], cells[1]): float(cells[3].split()[0]) for cells in lines if cells[3][:1].isdigit()}
    assert gained(row) == [found[one] for one in wanted]
