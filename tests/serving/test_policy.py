"""What a server keeps and what a request may ask for, without vLLM."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest

from foveate import serving
from foveate.pixels import Pixels
from foveate.serving.policy import AS_IT_IS, CONFIG_KEY, Policy, Wish
from foveate.serving.server import parse_options, require_vllm
from foveate.serving.versions import OVERRIDE, TESTED, require_tested
from foveate.tokens import Keep


def test_options_survive_json_and_a_config():
    given = serving.options("adafv", 0.2, max_keep=0.5, methods=["text"], feature_cache_mib=64, min_share=0.3)
    config = SimpleNamespace(**json.loads(json.dumps(given)))
    policy = Policy.of(config)
    assert policy == Policy("adafv", 0.2, 0.5, ["text"], {"min_share": 0.3}, 64)
    assert policy.names == ("adafv", "text")
    assert Policy.of(SimpleNamespace()) is None
    assert given[CONFIG_KEY] == policy.as_dict()


def test_methods_that_read_the_question_read_the_same_text():
    policy = Policy("adafv", methods=["text", "saliency"], options={"min_share": 0.3})
    assert (policy.pruner("adafv", 0.1).text_span, policy.pruner("adafv", 0.1).min_share) == ("turn", 0.3)
    assert policy.pruner("text", 0.1).text_span == "turn"
    released = Policy("adafv", methods=["text", "text:text_span=turn", "saliency"], options={"text_span": "prompt"})
    spans = [released.pruner(name, 0.1).text_span for name in ("adafv", "text", "text:text_span=turn")]
    assert spans == ["prompt", "prompt", "turn"]
    assert released.pruner("saliency", 0.1).keep == 0.1  # which has no such option


def test_options_behind_a_name():
    policy = Policy("adafv", methods=["adafv:min_share=0.4", "text:text_span=prompt"])
    assert policy.pruner("adafv:min_share=0.4", 0.1).min_share == 0.4
    assert policy.pruner("adafv:min_share=0.4", 0.1).text_span == "turn"
    assert policy.pruner("text:text_span=prompt", 0.1).text_span == "prompt"
    assert policy.wish({"method": "adafv:min_share=0.4"}).method == "adafv:min_share=0.4"
    for wrong in ("fastv:layer=1", "adafv:variant=released"):
        with pytest.raises(ValueError, match="between the layers|not for serving"):
            Policy(wrong)


def test_what_is_read_is_what_any_method_reads():
    assert Policy("adafv").reads_saliency
    assert not Policy("adafv").reads_keys
    assert not Policy("text").reads_saliency
    assert Policy("text", methods=["visionzip"]).reads_keys
    assert not Policy("text", methods=["visionzip"]).reads_encoded


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"keep": 0.5, "max_keep": 0.1}, "more than this server allows"),
        ({"keep": 0}, "keeps no token"),
        ({"method": "nope"}, "unknown method"),
        ({"method": "fastv"}, "between the layers"),
        ({"methods": ["trim"]}, "not available"),
        ({"options": {"nope": 1}}, "options of adafv are min_share"),
        ({"options": {"variant": "released"}}, "not for serving"),
        ({"method": "merged:adafv:variant=released"}, "not for serving"),
        ({"methods": ["merged:auto:cover"]}, "lays the prompt out before"),
        ({"options": {"special_tokens": "false"}}, "True or False"),
        ({"feature_cache_mib": -1}, "feature_cache_mib must be"),
        ({"image_cache_mib": 1.5}, "image_cache_mib must be"),
        ({"methods": "text"}, "must be a list"),
    ],
)
def test_policies_that_are_refused(given, error):
    with pytest.raises((ValueError, TypeError), match=error):
        Policy(**given)


def test_configs_that_are_refused():
    with pytest.raises(TypeError, match="must be an object"):
        Policy.of(SimpleNamespace(foveate=0.1))
    with pytest.raises(ValueError, match="unknown serving options budget"):
        Policy.of(SimpleNamespace(foveate={"budget": 3}))


def test_what_a_request_asks_for():
    policy = Policy("adafv", 0.2, 0.5, ["text"])
    assert policy.wish(None) == policy.wish({}) == Wish("adafv", Keep(0.2))
    assert policy.wish({"keep": 0.5, "method": "text"}) == Wish("text", Keep(0.5))
    assert policy.wish({"keep": 40}) == Wish("adafv", Keep(40))
    for asks in ({"keep": 0.6}, {"keep": "x"}, {"keep": None}, {"keep": True}, {"method": "uniform"}, {"a": 1}, [], 3):
        with pytest.raises(ValueError, match=r"0 < keep <= 0.5|not served here|may set keep and method|an object"):
            policy.wish(asks)


def test_pixels_of_a_request():
    policy = Policy("adafv", 0.2, pixels=0.5)
    assert policy.wish({}).pixels == Pixels(0.5) and policy.wish({"pixels": 1}).pixels == AS_IT_IS
    assert policy.wish({"pixels": 0.1}).pixels == Pixels(0.1) and policy.wish({"pixels": 10**7}).pixels.value == 10**7
    assert Policy().wish(None).pixels == AS_IT_IS and Policy(pixels=500_000).wish({}).pixels.value == 500_000
    assert Policy(pixels=4.0).wish({"pixels": 3.5}).pixels.value == 3.5
    for server, asks, error in (
        (1.0, 1.01, "up to 1,"), (0.5, 2.0, "up to 1,"), (500_000, 1.5, "up to 1,"), (4.0, 4.5, "up to 4,"),
        (1.0, "auto", "looks at a picture with the encoder"), (1.0, 0, "a number of pixels"), (1.0, -0.5, "no scale"),
        (1.0, float("nan"), "no scale"), (1.0, True, "got True"), (1.0, None, "got None"), (1.0, "half", "unknown"),
        (1.0, [0.5], "got list"), (1.0, 4, "written with a point"), (4.0, 17.0, "no scale"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=error):
            Policy(pixels=server).wish({"pixels": asks})
    for wrong in (0, 17.0, "auto", "half", True, None):
        with pytest.raises(ValueError, match="pixels"):
            Policy(pixels=wrong)
    given = serving.options(keep=0.2, pixels=np.float32(0.5))
    assert given[CONFIG_KEY] == {"method": "adafv", "keep": 0.2, "pixels": 0.5}
    assert Policy.of(SimpleNamespace(**json.loads(json.dumps(given)))).pixels == 0.5
    assert "pixels" not in serving.options()[CONFIG_KEY]


def test_numbers_and_fractions_are_compared_by_the_image():
    few = Policy("adafv", 0.1, 0.25)
    few.require_allowed(Keep(25), 100)
    with pytest.raises(ValueError, match="keep=26 of an image of 100 tokens"):
        few.require_allowed(Keep(26), 100)
    counted = Policy("adafv", 10, 20)
    counted.require_allowed(Keep(0.2), 100)
    with pytest.raises(ValueError, match="up to 20 tokens of an image"):
        counted.require_allowed(Keep(0.5), 100)
    with pytest.raises(ValueError, match="up to 20"):
        counted.wish({"keep": 21})


def test_options_of_the_command():
    assert parse_options(["min_share=0.3", "text-span=prompt", "special_tokens=false"]) == {
        "min_share": 0.3, "text_span": "prompt", "special_tokens": False,
    }  # fmt: skip
    for wrong in ("min_share", "=3", "keep=0.1", "stats=here", "pixels=0.5"):
        with pytest.raises(ValueError, match="--option"):
            parse_options([wrong])


def test_versions(monkeypatch):
    for version in TESTED:
        require_tested(version)
        require_tested(f"{version}+cpu")
    with pytest.raises(RuntimeError, match=f"{TESTED[0]}.*this is 0.99.1"):
        require_tested("0.99.1")
    monkeypatch.setenv(OVERRIDE, "1")
    require_tested("0.99.1")


def test_without_vllm_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr("foveate.serving.server.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "foveate\[vllm\]"'):
        require_vllm()
