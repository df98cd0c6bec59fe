"""The documents suite: drawn receipts, tables, signs, forms, charts and screens. Needs numpy, Pillow and fonts only."""

from foveate.evaluation.documents.sample import DOCUMENTS, KINDS, make_sample

__all__ = ["DOCUMENTS", "KINDS", "make_sample"]
