"""What travels from the API server to the worker, as vLLM batches it."""

from __future__ import annotations

import torch

from foveate.serving.image_request import FIELDS, ImageRequest, field, kind_of, pack, unpack
from foveate.tokens import Keep

REQUESTS = [
    ImageRequest((5, 6, 7), Keep(0.1), 0, "ab" * 32),
    ImageRequest((), Keep(1), 1, "", layout=(96, -1, -1, 97, -1)),
    ImageRequest((9,), Keep(1.0), 0, "0" * 29 + "1" * 35),
]


def test_there_and_back():
    found = unpack(pack(REQUESTS))
    assert [one.text for one in found] == [(5, 6, 7), (), (9,)]
    assert [(one.keep.value, type(one.keep.value)) for one in found] == [(0.1, float), (1, int), (1.0, float)]
    assert [one.method for one in found] == [0, 1, 0]
    assert [one.layout for one in found] == [(), (96, -1, -1, 97, -1), ()]
    assert [one.picture for one in found] == ["ab" * 15, "", "0" * 29 + "1"]


def test_pictures_are_told_apart():
    names = [f"{number:064x}"[::-1] for number in range(1, 200)]
    keys = {one.picture for one in unpack(pack([ImageRequest((), Keep(0.1), 0, name) for name in names]))}
    assert len(keys) == len(names)


def test_stacked_or_listed():
    packed = pack([REQUESTS[0], REQUESTS[0]])
    stacked = {name: torch.stack(list(packed[name])) for name in FIELDS}
    assert [one.text for one in unpack(stacked)] == [(5, 6, 7)] * 2


def test_videos_have_fields_of_their_own():
    """To vLLM a field belongs to images or to videos."""
    packed = pack(REQUESTS, "video")
    assert set(packed) == {field(name, "video") for name in FIELDS}
    assert not set(packed) & set(FIELDS)
    assert (kind_of(packed), kind_of(pack(REQUESTS)), kind_of({"pixel_values": None})) == ("video", "image", None)
    assert unpack(packed, "video") == unpack(pack(REQUESTS))
