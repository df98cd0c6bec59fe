"""Tests of serving run where vLLM is: ``make test-vllm``."""

from importlib.util import find_spec

import pytest

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
