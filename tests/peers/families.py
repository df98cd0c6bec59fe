"""transformers' common model tests over the tiny models of ``tests.tiny``: one class per supported family.

The source distribution of transformers brings the common tests, but neither the testers of the families nor the tests
of generation; its folder comes as ``FOVEATE_PEERS``. Not collected by itself: ``python -m tests.peers`` names it.
"""

from __future__ import annotations

import copy
import importlib
import importlib.abc
import importlib.machinery
import os
import sys
import types
import unittest
from pathlib import Path
from typing import Any

import torch

from foveate.models import FAMILIES
from tests.tiny import ROWS, Row, prompts

PACKAGE = "transformers_tests"


class Absent(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Stands in for the modules of transformers' tests that are not in the folder: any name is an empty class."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if not name.startswith(f"{PACKAGE}."):
            return None
        found = importlib.machinery.PathFinder.find_spec(name, path)
        return found or importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: Any) -> types.ModuleType:
        module = types.ModuleType(spec.name)
        module.__path__ = []  # type: ignore[attr-defined]
        module.__getattr__ = self.stub  # type: ignore[method-assign]
        return module

    def exec_module(self, module: types.ModuleType) -> None: ...

    @staticmethod
    def stub(name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


def common() -> Any:
    """``tests/test_modeling_common.py`` of transformers, under a name that does not collide with ours."""
    package = types.ModuleType(PACKAGE)
    package.__path__ = [str(Path(os.environ["FOVEATE_PEERS"]) / "tests")]  # type: ignore[attr-defined]
    sys.modules[PACKAGE] = package
    sys.meta_path.insert(0, Absent())
    return importlib.import_module(f"{PACKAGE}.test_modeling_common")


class Model:
    """What transformers' common tests ask about a family: a config, inputs, and a few sizes.

    Args:
        row: of the matrix; the config is that of its tiny model, the inputs are two prompts with one picture each.
    """

    is_training = True

    def __init__(self, row: Row) -> None:
        model = row.make("sdpa")
        self.inputs = {key: torch.cat([value, value]) for key, value in prompts(row, model, "one").items()}
        self.config = as_usual(model.config)
        config = self.config
        text = config.get_text_config()
        self.batch_size, self.seq_length = self.inputs["input_ids"].shape
        self.num_hidden_layers = text.num_hidden_layers
        self.num_attention_heads = text.num_attention_heads
        self.hidden_size = text.hidden_size
        vision = config.vision_config.to_dict()
        layers = vision.get("num_hidden_layers") or vision.get("depth")
        self.vision_config = {**vision, "num_hidden_layers": layers}
        self.text_config = text.to_dict()

    def get_config(self) -> Any:
        return copy.deepcopy(self.config)

    def prepare_config_and_inputs_for_common(self) -> tuple[Any, dict[str, Any]]:
        return self.get_config(), {key: value.clone() for key, value in self.inputs.items()}


def as_usual(config: Any) -> Any:
    """A copy of a tiny model's config with what transformers' testers take for granted.

    Weights are small, since the comparisons of attention implementations have a tolerance for such; where the tower's
    last layer can be left out, it is read, since every weight shall have a gradient.
    """
    config = type(config).from_dict(config.to_dict())  # without the attention implementation of the tiny model
    for part in (config, *(getattr(config, name) for name in config.sub_configs)):
        if hasattr(part, "initializer_range"):
            part.initializer_range = 0.02
    if isinstance(getattr(config, "vision_feature_layer", None), int):
        config.vision_feature_layer = -1
    return config


def case(name: str, row: Row) -> type:
    """The common tests of one family."""
    mixin = common_tests.ModelTesterMixin
    model_class = type(row.make("sdpa"))

    def set_up(self: Any) -> None:
        torch.manual_seed(0)
        self.model_tester = Model(row)

    members = {
        "all_model_classes": (model_class,),
        "_is_composite": True,
        "setUp": set_up,
        "__module__": __name__,
    }
    return type(f"Test_{name}", (mixin, unittest.TestCase), members)


common_tests = common()
_rows = {_row.make("sdpa").config.model_type: _row for _row in ROWS.values() if _row.kind == "image"}
for _model_type in sorted(_rows.keys() & FAMILIES.keys()):
    globals()[f"Test_{_model_type}"] = case(_model_type, _rows[_model_type])
