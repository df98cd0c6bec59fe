"""The vLLM versions that this plugin was tested with."""

from __future__ import annotations

import os

TESTED = ("0.32.0",)
OVERRIDE = "FOVEATE_ANY_VLLM"
"""Environment variable that lets an untested version through, at the user's risk."""


def require_tested(version: str) -> None:
    """Raises RuntimeError for a vLLM that was not tested, unless ``FOVEATE_ANY_VLLM=1``.

    Args:
        version: as vLLM says it; build labels after ``+`` do not count.
    """
    if version.split("+")[0] in TESTED or os.environ.get(OVERRIDE) == "1":
        return
    raise RuntimeError(
        f"foveate was tested with vLLM {', '.join(TESTED)}, and this is {version}: its hooks may have moved: images "
        'could be pruned wrongly. Install a tested version (pip install "foveate[vllm]"), or set '
        f"{OVERRIDE}=1 and check the answers yourself"
    )
