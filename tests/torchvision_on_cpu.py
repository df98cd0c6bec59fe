"""For the test environments that need it: lets PyPI's torchvision, built for CUDA, load beside a CPU torch.

It asks for the two operators below when it is imported, and lacks the library that brings them. Nobody calls them: they
are declared, with nothing behind them, right before torchvision is looked for.
"""

import importlib.abc
import sys

OPERATORS = ("nms", "qnms")
SIGNATURE = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"

declared = []  # what is collected is undeclared


class _Declare(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "torchvision" and not declared:
            import torch

            declared.append(torch.library.Library("torchvision", "FRAGMENT"))
            for operator in OPERATORS:
                declared[0].define(operator + SIGNATURE)


sys.meta_path.insert(0, _Declare())
