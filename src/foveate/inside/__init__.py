"""Methods that prune inside the LLM: layers are watched, and their inputs shortened at the method's stages.

Elsewhere the prompt is shortened before ``generate``, which is right in every mode. Here the layers themselves must be
hooked, and from within them a prefill cannot be told from a chunk, a candidate or a beam: only greedy decoding and
sampling with a dynamic cache are taken, and every other mode is refused.
"""

from __future__ import annotations

from foveate.inside.call import InsideCall
from foveate.inside.supported import FAMILIES, check_inside

__all__ = ["FAMILIES", "InsideCall", "check_inside"]
