"""``foveate bench --serve`` with servers of its own: it counts what the server did, and leaves nothing running."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil

OPTIONS = ("--concurrency", "2", "--requests", "4", "--repeats", "1", "--keep", "1.0,0.1", "--max-new-tokens", "4")
SERVER = ("--", "--enforce-eager", "--max-model-len", "2048")


MARK = "FOVEATE_TEST_OF"
"""In the environment of everything that a test starts, whoever its parent is."""


def _mark(process: psutil.Process) -> str | None:
    try:
        return process.environ().get(MARK)
    except psutil.Error:
        return None


def bench(out: Path, *options: str) -> dict[str, Any]:
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", MARK: str(out)}
    words = [
        sys.executable,
        "-m",
        "foveate",
        "bench",
        "--serve",
        "--json",
        "--out",
        str(out),
        *options,
        *OPTIONS,
        *SERVER,
    ]
    ended = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert not [one for one in psutil.process_iter() if _mark(one) == str(out)]
    found: dict[str, Any] = json.loads(ended.stdout)
    return found


def test_bundled(tmp_path: Path) -> None:
    found = bench(tmp_path, "--rate", "20")
    results = found["results"]
    assert [(one["pictures"], one["loop"], one["keep"]) for one in results] == [
        (pictures, loop, keep)
        for loop in ("closed", "open")
        for pictures in ("fresh", "repeated")
        for keep in (1.0, 0.1)
    ]
    for one in results:
        assert (one["requests"], one["failed"], one["errors"]) == (4, 0, {})
        # All tokens are 320 patches and 16 row ends; a tenth of the patches are 32.
        assert one["visual_tokens"] == {1.0: 336, 0.1: 32}[one["keep"]]
        assert one["feature_hits"] == {"fresh": 0.0, "repeated": 1.0}[one["pictures"]]
        assert (one["encoder_share"] > 0) == (one["pictures"] == "fresh")
        assert 0 < one["language_share"] < 1 and 0 < one["select_share"] < 1
        assert one["prefix_hits"] == 0  # a cache that answers would make up a gain
        assert 0 < one["ttft_ms"][0] <= one["ttft_ms"][2] <= one["total_ms"][2] and one["gap_ms"][0] > 0
        assert one["processor_ms"] > 1 and one["rate"] > 0
    assert len(list(tmp_path.glob("serve-bundled.*"))) >= 2


def test_a_shape_with_random_weights(tmp_path: Path) -> None:
    cut = ("--shape", "llava-next-7b/16", "--llm-layers", "1", "--vision-layers", "2", "--image", "336x336")
    found = bench(tmp_path, *cut)
    whole, tenth = found["results"][:2]
    assert (whole["failed"], tenth["failed"]) == (0, 0)
    assert (whole["visual_tokens"], tenth["visual_tokens"]) == (2 * 576 + 24, 116)
    assert found["llm_layers"] == "1 of 32" and found["vision_layers"] == "2 of 24"
