"""What an evaluation with vLLM asks for and refuses, without vLLM; ``tests/vllm/test_eval.py`` runs it."""

from __future__ import annotations

from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

import foveate
from foveate import bundled
from foveate.cli import app
from foveate.evaluation.runner import factory
from foveate.evaluation.vllm_engine import Vllm, overrides
from foveate.pruners import METHODS
from foveate.serving import Policy

SERVABLE = [name for name in METHODS if name != "random"]
Question = namedtuple("Question", "image question answers")


def policy(methods: list[str]) -> Policy:
    return Policy(**overrides(methods)["foveate"])


def test_every_method_runs_with_the_options_that_it_has_with_transformers() -> None:
    made = policy(SERVABLE)
    assert sorted(made.names) == sorted(SERVABLE)
    for name in SERVABLE:
        assert made.pruner(name, 0.25) == factory(name)(0.25, 7)
    assert policy([]).names  # a run with all tokens alone


@pytest.mark.parametrize(
    ("name", "message"),
    [("random", "carry no seed"), ("fastv", "between the layers of the LLM"), ("none", "unknown method 'none'")],
)
def test_methods_that_vllm_cannot_run_are_refused(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        overrides(["adafv", name])


class Model:
    """A ``vllm.LLM`` as far as the engine sees it: prompts come back with as many placeholders as ``seen`` says."""

    def __init__(self, seen: Any) -> None:
        config = bundled.load()[0].config
        model = SimpleNamespace(hf_config=config, dtype="torch.float32")
        self.llm_engine = SimpleNamespace(vllm_config=SimpleNamespace(model_config=model))
        self.seen, self.asked, self.token = seen, [], config.image_token_index

    def get_default_sampling_params(self) -> Any:
        return SimpleNamespace(temperature=1.0, max_tokens=1)

    def generate(self, requests: list[Any], parameters: Any, use_tqdm: bool) -> list[Any]:
        self.asked += [(request["mm_processor_kwargs"]["foveate"], parameters.max_tokens) for request in requests]
        assert parameters.temperature == 0
        return [
            SimpleNamespace(
                prompt_token_ids=[1, *[self.token] * self.seen(request["mm_processor_kwargs"]["foveate"]["keep"]), 2],
                outputs=[SimpleNamespace(token_ids=[57, 2])],
            )
            for request in requests
        ]


@pytest.fixture
def items(tmp_path: Path) -> tuple[Path, list[Question]]:
    Image.new("RGB", (224, 224)).save(tmp_path / "a.png")
    return tmp_path, [Question("a.png", f"what is {number}?", ["yes"]) for number in range(2)]


def engine(seen: Any) -> Vllm:
    return Vllm(Model(seen), bundled.load()[1], policy(["adafv", "uniform"]), "print")


def test_tokens_are_counted_as_with_transformers(items: tuple[Path, list[Question]]) -> None:
    """Row ends come with a whole picture and are no patches."""
    made = engine(lambda keep: {1.0: 336, 0.25: 80, 16: 16}[keep])
    asker = made.asker(items[0], True)
    # Nothing said yet how many patches there are: one short question does.
    answers, spent = asker.ask(items[1], foveate.AdaFV(keep=0.25), 8)
    assert answers == [("yes", 80, 320, None)] * 2 and spent.latency > 0
    assert made.llm.asked == [
        ({"keep": 0.25, "method": "adafv"}, 8), ({"keep": 0.25, "method": "adafv"}, 8), ({"keep": 1.0}, 1)
    ]  # fmt: skip
    assert asker.ask(items[1], foveate.Uniform(keep=1.0), 8)[0] == [("yes", 320, 320, None)] * 2
    assert asker.ask(items[1], foveate.AdaFV(keep=16), 8)[0] == [("yes", 16, 320, None)] * 2
    assert len(made.llm.asked) == 7


def test_an_engine_that_did_not_prune_is_caught(items: tuple[Path, list[Question]]) -> None:
    asker = engine(lambda keep: 336).asker(items[0], True)
    with pytest.raises(RuntimeError, match=r"a\.png: vLLM saw 336 visual tokens, not 80 of 320"):
        asker.ask(items[1], foveate.AdaFV(keep=0.25), 8)


def test_options_that_no_request_can_carry_are_refused() -> None:
    made = engine(lambda keep: 1)
    made.require("adafv", [foveate.AdaFV(keep=0.1), foveate.AdaFV(keep=0.1)])
    for pruner in (foveate.AdaFV(keep=0.1, text_span="prompt"), foveate.get_pruner("saliency", keep=0.1)):
        with pytest.raises(ValueError, match="mine: a request to vLLM carries a method's name"):
            made.require("mine", [pruner])
    with pytest.raises(ValueError, match=r"crops:adafv: vLLM does not say which crops"):
        made.require("crops:adafv", [factory("crops:adafv")(0.1, 0)])


def call(*words: Any) -> Any:
    result = CliRunner().invoke(app, ["eval", *map(str, words)])
    assert result.exit_code == 2, (result.stdout, result.stderr)
    return result.stderr


def test_the_command_refuses_before_anything_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    assert "unknown engine 'tgi'" in call("--engine", "tgi", "--out", out)
    assert "go with --engine vllm" in call("--out", out, "--", "--enforce-eager")
    assert "between the layers" in call("--engine", "vllm", "--methods", "fastv", "--out", out)
    assert "carry no seed" in call("--engine", "vllm", "--methods", "adafv,random", "--out", out)
    for crops in (["--methods", "crops:amount=0.5:adafv"], ["--methods", "adafv", "--crops", 0.5], ["--crops", "1,0"]):
        assert "does not say which crops it encoded" in call("--engine", "vllm", *crops, "--out", out).replace(
            "\n", " "
        )
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert "without accelerate launch" in call("--engine", "vllm", "--out", out)
    assert not out.exists()


def test_vllm_is_named_where_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("foveate.serving.server.find_spec", lambda name: None)
    told = call("--engine", "vllm", "--count", 1, "--out", tmp_path / "out")
    assert "serving needs vLLM: pip install" in told and "left out under --engine vllm" in told
