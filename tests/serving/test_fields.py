"""What travels from the API server to the worker, as vLLM batches it."""

from __future__ import annotations

import torch

from foveate.serving.fields import FIELDS, Ask, pack, unpack
from foveate.tokens import Keep

ASKS = [
    Ask((5, 6, 7), Keep(0.1), 0, "ab" * 32),
    Ask((), Keep(1), 1, ""),
    Ask((9,), Keep(1.0), 0, "0" * 63 + "1"),
]


def test_there_and_back():
    found = unpack(pack(ASKS))
    assert [one.text.tolist() for one in found] == [[5, 6, 7], [], [9]]
    assert [(one.keep, type(one.keep)) for one in found] == [(0.1, float), (1, int), (1.0, float)]
    assert [one.method for one in found] == [0, 1, 0]
    assert found[1].image is None


def test_pictures_are_told_apart():
    names = [f"{number:064x}"[::-1] for number in range(1, 200)]
    keys = {one.image for one in unpack(pack([Ask((), Keep(0.1), 0, name) for name in names]))}
    assert len(keys) == len(names)


def test_stacked_or_listed():
    packed = pack([ASKS[0], ASKS[0]])
    stacked = {name: torch.stack(list(packed[name])) for name in FIELDS}
    assert [one.text.tolist() for one in unpack(stacked)] == [[5, 6, 7]] * 2
