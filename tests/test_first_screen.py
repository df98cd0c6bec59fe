"""The five lines at the top of the README, as they stand there, with small models in place of the released ones."""

from __future__ import annotations

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
