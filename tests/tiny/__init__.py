"""Tiny random models of the real classes, one row per family and tower, and prompts for them.

A new family joins by a file here and a line in ``ROWS``.
"""

from __future__ import annotations

from tests.tiny import gemma4, generic, glm, lfm2, llava, minicpm, mistral, onevision, qwen, siglip, tiles
from tests.tiny.llava import PINPOINTS, SIZES, assistant, llava_next, text_config
from tests.tiny.rows import BATCHES, BOS, END, IMAGE, PAD, SIDE, SILENT, START, VIDEO, Row, prompts

ROWS: dict[str, Row] = {
    **llava.ROWS,
    **qwen.ROWS,
    **siglip.ROWS,
    **gemma4.ROWS,
    **minicpm.ROWS,
    **lfm2.ROWS,
    **tiles.ROWS,
    **generic.ROWS,
    **glm.ROWS,
    **mistral.ROWS,
    **onevision.ROWS,
}

__all__ = [
    "BATCHES", "BOS", "END", "IMAGE", "PAD", "PINPOINTS", "ROWS", "SIDE", "SILENT", "SIZES", "START", "VIDEO", "Row",
    "assistant", "llava_next", "prompts", "text_config",
]  # fmt: skip
