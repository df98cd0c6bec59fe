"""Tests of serving run where vLLM is: ``make test-vllm``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.vllm.test_families import Process

if find_spec("vllm") is None:
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="session", autouse=True)
def known_to_vllm() -> None:
    """vLLM asks every model class once on a machine what it can do, and remembers that in its cache. It does so in a
    process of its own for each, some seven seconds of imports; here in this one, where all are imported together: its
    own classes, and those that stand in for them."""
    from vllm import ModelRegistry
    from vllm.model_executor.models import registry
    from vllm.plugins import load_general_plugins

    from foveate.serving.plugin import ARCHITECTURES

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "_run_in_subprocess", lambda function: function())
        own = [ModelRegistry.models[name] for name in ARCHITECTURES]
        load_general_plugins()
        for model in [*own, *(ModelRegistry.models[name] for name in ARCHITECTURES)]:
            model.inspect_model_cls()


@pytest.fixture(scope="module")
def processes() -> Iterator[dict[bool, Process]]:
    """With the plugin and without, one process each, in which a file's engines follow each other."""
    from tests.vllm.test_families import Process

    both = {plugin: Process(plugin) for plugin in (True, False)}
    yield both
    for one in both.values():
        if one.engine is not None:
            one.engine.close()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Family -> its tiny checkpoint, written when it is asked for first."""
    from tests.vllm import checkpoints

    root = tmp_path_factory.mktemp("checkpoints")

    def folder(name: str) -> Path:
        return root / name if (root / name).exists() else checkpoints.write(name, root / name)

    return folder
