"""Pages that stand by themselves: they say what was kept, name nothing outside, and take any text as text."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from foveate.looking_ahead import Pointing
from foveate.webpage import Column, check_path, document, figure
from foveate.webpage.outline import outline
from tests.test_show import picture, selection


class Read(HTMLParser):
    """Tags with their attributes, and the texts between them."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.texts = [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.texts.append(data)


@given(arrays(bool, st.tuples(st.integers(1, 6), st.integers(1, 6))))
def test_an_outline_is_crossed_between_what_is_clear_and_what_is_not(clear):
    """Read back: along every row and column, the area changes sides just where a line of the path runs."""
    height, width = clear.shape
    level = np.zeros((height + 1, width), dtype=bool)
    upright = np.zeros((height, width + 1), dtype=bool)
    for x, y, way, end in re.findall(r"M(\d+) (\d+)([HV])(\d+)", outline(clear)):
        if way == "H":
            level[int(y), int(x) : int(end)] = True
        else:
            upright[int(y) : int(end), int(x)] = True
    np.testing.assert_array_equal(np.cumsum(level, axis=0)[:-1] % 2 == 1, clear)
    np.testing.assert_array_equal(np.cumsum(upright, axis=1)[:, :-1] % 2 == 1, clear)
    assert not (np.cumsum(level, axis=0)[-1] % 2).any()


def data_of(page):
    return json.loads(next(known["data-fv"] for _, known in Read(page).tags if "data-fv" in known))


def test_a_figure_holds_every_patch_and_what_is_known_of_it():
    scores = {"saliency": torch.arange(12) / 7, "relevance": torch.full((12,), math.nan)}
    pointing = Pointing(("a", "cat"), torch.tensor([1] * 11 + [-1]), torch.tensor([0.5] * 11 + [math.nan]))
    encoded = torch.tensor([True] * 8 + [False] * 4)
    chosen = replace(selection([0, 5], scores), encoded=encoded)
    page = figure(picture(), chosen, pointing, label="<one>")
    told = data_of(page)
    assert told["kept"] == [0, 5] and told["missing"] == [8, 9, 10, 11]
    assert told["view"] == chosen.geometry.view.tolist() and told["row"] == chosen.geometry.row.tolist()
    assert told["scores"]["visual saliency"] == pytest.approx([n / 7 for n in range(12)], rel=1e-3)
    assert told["scores"]["relevance"] == [None] * 12
    assert told["words"] == ["a", "cat"] and told["word"][-1] == -1 and told["strength"][-1] is None
    # 40 x 20 pixels shown 720 wide: the crops' patches are 10 x 10 there, 180 x 180 here.
    assert told["boxes"][4 * 5 : 4 * 6] == [180, 0, 360, 180]
    read = Read(page)
    assert "<one>" in read.texts and any("1 crops not encoded" in text for text in read.texts)
    layers = {known["data-name"]: known for _, known in read.tags if "data-name" in known}
    assert list(layers) == ["all views", "base view", "2 crops"]
    assert [known["data-told"] for known in layers.values()] == [
        "2 of 12 patches kept",
        "1 of 4 patches kept",
        "1 of 8 patches kept",
    ]


def test_a_page_names_nothing_outside_itself_and_takes_texts_as_texts():
    bad = "<script>alert('é&\"')</script>"
    column = Column(bad, [selection([1])], bad, figures={bad: bad}, note=bad)
    page = document(bad, [picture()], [column], model=bad, code={bad: bad})
    read = Read(page)
    assert sum(tag == "script" for tag, _ in read.tags) == 1
    assert read.texts.count(bad) == 9  # its title, heading and column's title among them
    links = [known[name] for _, known in read.tags for name in ("src", "href") if name in known]
    assert links and all(link.startswith("data:") for link in links)
    assert not re.search(r"url\(|@import", page)
    policy = next(known["content"] for _, known in read.tags if known.get("http-equiv"))
    assert policy.startswith("default-src 'none'")


def test_columns_need_not_have_kept_or_answered_anything():
    page = document("Why?", [picture()], [Column("all tokens", answer=""), Column("other")], model="m")
    assert Read(page).texts.count("(empty)") == 1 and 'class="fv-figure"' not in page
    with pytest.raises(ValueError, match="2 selections for 1 pictures in 'x'"):
        document("Why?", [picture()], [Column("x", [selection([1])] * 2)], model="m")


def test_paths_that_cannot_be_written_are_refused_before(tmp_path):
    with pytest.raises(ValueError, match=r"the suffix \.html"):
        check_path(tmp_path / "page.png")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        check_path(tmp_path / "none" / "page.html")
