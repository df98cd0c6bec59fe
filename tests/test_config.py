"""A configuration as data: from a mapping and from files, what it makes, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import foveate
from foveate import bundled
from foveate.config import KEYS

GIVEN = {"method": "cover", "keep": "10%", "options": {"power": 4.0}, "crops": "0.5:by=text", "newlines": "rows"}


def picture() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((320, 240))


def test_a_mapping_and_both_files_say_the_same(tmp_path: Path) -> None:
    config = foveate.from_config(GIVEN)
    assert config.pruner == foveate.Cover(keep=0.1, power=4.0) and config.pruner.keep == 0.1
    assert config.attaching["newlines"] == "rows" and config.crops == "0.5:by=text"
    (tmp_path / "a.json").write_text(json.dumps(GIVEN))
    lines = "method: cover\nkeep: 10%\noptions: {power: 4.0}\ncrops: 0.5:by=text\nnewlines: rows\npixels:\n"
    (tmp_path / "a.yaml").write_text(lines)
    assert foveate.from_config(tmp_path / "a.json") == config == foveate.from_config(str(tmp_path / "a.yaml"))


@settings(max_examples=30, deadline=None)
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "method": st.sampled_from(["cover", "cdpruner:words=max", "centered:cdpruner", "saliency"]),
            "keep": st.sampled_from(["10%", "1t", "64t", 0.3, 7, "auto"]),
            "positions": st.sampled_from(["compact", "original"]),
            "crops": st.sampled_from([0.5, 2, "auto", "distinct", "0.5:by=text"]),
            "pixels": st.sampled_from([0.5, "0.25", 4000, "auto"]),
            "calibrate": st.sampled_from([True, 0.5]),
        },
    )
)
def test_what_it_says_of_itself_makes_the_same(given_: dict[str, Any]) -> None:
    if given_.get("keep") == "auto" and given_.get("method") not in ("cover", "saliency"):
        return
    config = foveate.from_config(given_)
    again = foveate.from_config(json.loads(json.dumps(config.as_dict())))
    assert again.pruner == config.pruner and again.attaching == config.attaching and again.pixels == config.pixels


def test_it_goes_around_a_model_as_its_pruner_does() -> None:
    model, processor = bundled.load()
    session = foveate.look(model, processor, picture())
    inputs = processor(images=picture(), text=session.prompt("Is there a dog?"), return_tensors="pt")
    options: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False}
    config = foveate.from_config(method="cover", keep="9t", given={"crops": 0.5})
    with config(model):
        ours = model.generate(**inputs, **options)
    with foveate.Cover(keep=9)(model, crops=0.5):
        assert torch.equal(ours, model.generate(**inputs, **options))
    assert len(config.selections[0]) == 9
    with config(model, crops="all"):
        model.generate(**inputs, **options)
    assert config.selections[0].encoded is None  # what is said last holds
    resized = foveate.from_config({"pixels": 0.25, "keep": "9t"})
    with pytest.raises(ValueError, match="foveate.resized"):
        resized(model)
    session = resized.look(model, processor, picture())
    assert session.pictures[0].size == (160, 120) and resized.ask(session, "Is there a dog?").visual_tokens == 9


def test_changes_go_before_what_is_given() -> None:
    config = foveate.from_config(GIVEN, keep="5t", newlines=None)
    assert (config.keep, config.newlines, config.options) == (5, "rows", {"power": 4.0})
    assert foveate.from_config(GIVEN, method="saliency").options == {}  # which were of cover
    assert foveate.from_config(GIVEN, options={"power": 2.0}).options["power"] == 2.0
    assert foveate.from_config(config, keep=0.2).keep == 0.2


@pytest.mark.parametrize(
    "given_, name",
    [
        (GIVEN, "cover:power=4.0"),
        ({"method": "centered:cdpruner", "options": {"words": "max"}}, "centered:cdpruner:words=max"),
        ({"method": "saliency", "keep": "auto"}, "auto:saliency"),
        ({"method": "auto:cover", "options": {"share": 0.5}}, "auto:share=0.5:cover"),
    ],
)
def test_its_name_in_lists_of_methods(given_: dict[str, Any], name: str) -> None:
    config = foveate.from_config(given_)
    assert config.name == name
    keep = {} if config.keep == "auto" else {"keep": config.keep}
    assert foveate.get_pruner(name, **keep) == config.pruner


@pytest.mark.parametrize(
    "given_, said",
    [
        ({"metod": "cover"}, "unknown key 'metod' (did you mean 'method'?)"),
        ({"method": "cover", "power": 2}, "an option of cover stands under options"),
        ({"method": "cover", "powr": 2}, "did you mean 'power' among the options of cover?"),
        ({"zzz": 2}, f"known: {', '.join(KEYS)}"),
        ({"method": "cover", "options": {"powr": 2}}, "cover has no option 'powr' (did you mean 'power'?)"),
        ({"options": {"keep": 2}}, "'keep' stands beside options"),
        ({"options": 3}, "options must be"),
        ({"keep": 1}, "keep 1 may mean all tokens or a single one"),
        ({"keep": "x"}, "is no budget"),
        ({"method": "cove"}, "did you mean 'cover'?"),
        ({"positions": "old"}, "unknown positions 'old'"),
        ({"crops": 1.5}, "crops=1.5"),
        ({"pixels": 2}, "number of pixels"),
    ],
)
def test_what_is_refused(tmp_path: Path, given_: dict[str, Any], said: str) -> None:
    with pytest.raises((ValueError, TypeError)) as caught:
        foveate.from_config(given_)
    assert said in str(caught.value)
    (tmp_path / "a.json").write_text(json.dumps(given_))
    with pytest.raises((ValueError, TypeError)) as caught:
        foveate.from_config(tmp_path / "a.json")
    assert said in str(caught.value) and str(tmp_path / "a.json") in str(caught.value)


@pytest.mark.parametrize(
    "name, text, said",
    [
        ("a.yaml", "keep: 0.1\nkeep: 0.2\n", "'keep' stands there twice"),
        ("a.json", '{"keep": 0.1, "keep": 0.2}', "'keep' stands there twice"),
        ("a.yaml", "keep: [", "not YAML"),
        ("a.json", "{", "Expecting"),
        ("a.yaml", "- keep\n", "a configuration is a mapping"),
        ("a.yml", "keep: 1\n", "may mean all tokens"),
        ("a.toml", "", "ends with .json, .yaml, .yml"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, name: str, text: str, said: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises((ValueError, TypeError)) as caught:
        foveate.from_config(tmp_path / name)
    assert said in str(caught.value) and name in str(caught.value)


def test_a_file_that_is_not_there_and_an_empty_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such configuration file"):
        foveate.from_config(tmp_path / "a.yaml")
    (tmp_path / "a.yaml").write_text("")
    assert foveate.from_config(tmp_path / "a.yaml") == foveate.Config()
