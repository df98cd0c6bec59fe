"""Which visual tokens to keep: pure functions of tensors, without models and without host syncs.

They take any floating dtype, on CPU and GPU. Half precision is upcast before anything is compared, and ties go to the
earlier token. ``mixture`` and ``grid`` take leading batch dimensions (written ``...``).
"""

from foveate.functional.budgets import effective_tokens, least_reaching, mass_budget
from foveate.functional.common import require_finite
from foveate.functional.coverage import holistic_context, saliency_coverage
from foveate.functional.diversity import conditional_dpp, least_duplicated, max_min_diversity
from foveate.functional.duplicates import important_and_diverse
from foveate.functional.facility import cosine_cover, facility_location
from foveate.functional.focus import focus_scan_refine
from foveate.functional.grid import spatial_crops, uniform_grid
from foveate.functional.in_llm import (
    attention_of_queries,
    density_peaks,
    keep_and_recycle,
    stage_budgets,
    text_raters,
)
from foveate.functional.merge import Merge, Weights, merged
from foveate.functional.merging import (
    dominant_and_contextual,
    outliers_with_neighbours,
    salient_and_spread,
    spatial_pooling,
)
from foveate.functional.mixture import adafv, adafv_split, fixed_mix, top_k
from foveate.functional.nearest import merge_into_nearest
from foveate.functional.preservation import optimal_preservation
from foveate.functional.released import adafv_released, released_mixture
from foveate.functional.runs import attention_in_runs
from foveate.functional.text import relevance_to_text, text_to_image_attention

__all__ = [
    "Merge",
    "Weights",
    "adafv",
    "adafv_released",
    "adafv_split",
    "attention_in_runs",
    "attention_of_queries",
    "conditional_dpp",
    "cosine_cover",
    "density_peaks",
    "dominant_and_contextual",
    "effective_tokens",
    "facility_location",
    "fixed_mix",
    "focus_scan_refine",
    "holistic_context",
    "important_and_diverse",
    "keep_and_recycle",
    "least_duplicated",
    "least_reaching",
    "mass_budget",
    "max_min_diversity",
    "merge_into_nearest",
    "merged",
    "optimal_preservation",
    "outliers_with_neighbours",
    "released_mixture",
    "relevance_to_text",
    "require_finite",
    "saliency_coverage",
    "salient_and_spread",
    "spatial_crops",
    "spatial_pooling",
    "stage_budgets",
    "text_raters",
    "text_to_image_attention",
    "top_k",
    "uniform_grid",
]
