"""``foveate analyze`` as a user meets it."""

from __future__ import annotations

import json

from tests import checkpoint
from tests.test_cli import call, refused


def test_analyze_prints_tables_and_writes_files(tmp_path):
    folder = checkpoint.save(tmp_path / "model")
    out = tmp_path / "out"
    options = ["analyze", "--count", 2, "--layer", 0, "--model", folder, "--out", out]
    options += ["--methods", "saliency", "--keep", 0.5]
    result = call(*options)
    for word in (
        "last quarter",
        "text-to-image attention",
        "ROC-AUC",
        "recall at 10 %",
        "p (swaps)",
        "centre",
        "crops",
    ):
        assert word in result.stdout
    told = json.loads(call(*options, "--json").stdout)
    assert told["layer"] == 0 and told["settings"]["count"] == 2 and len(told["bias"]) == 3
    assert {(one["method"], one["keep"]) for one in told["kept"]} == {("uniform", 0.5), ("saliency", 0.5)}
    assert {"analysis.json", "analysis.png", "kept.png", "scenes"} <= {path.name for path in out.iterdir()}
    assert "seed: 0 then, 1 now" in refused(*options, "--seed", 1)
    assert "layer 9 is not one of the 2" in refused(*options[:3], "--layer", 9, *options[5:])
    assert "unknown split" in refused("analyze", "--split", "train")
    assert "takes drawn pictures" in refused("analyze", "--suite", "mine.jsonl")
    assert "resize is not available" in refused("analyze", "--methods", "resize")
