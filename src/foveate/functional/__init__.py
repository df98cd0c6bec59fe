"""Which visual tokens to keep: pure functions of tensors, without models and without host syncs.

Two factorise a matrix, for which torch waits for an accelerator: ``effective_rank`` and ``principal_groups``.

They take any floating dtype, on CPU and GPU. Half precision is upcast before anything is compared, and ties go to the
earlier token. ``mixture`` and ``grid`` take leading batch dimensions (written ``...``).
"""

from foveate.functional.apart import effective_rank, salient_and_apart
from foveate.functional.budgets import effective_tokens, least_reaching
from foveate.functional.centering import centered, distinctiveness
from foveate.functional.common import require_finite
from foveate.functional.coverage import holistic_context, saliency_coverage
from foveate.functional.crops import crops_holding, mass_in_boxes, mixed_masses
from foveate.functional.diversity import conditional_dpp, least_duplicated, max_min_diversity
from foveate.functional.duplicates import important_and_diverse
from foveate.functional.entropy import focused_relevance
from foveate.functional.facility import cosine_cover, facility_location, shifted_cosine_cover
from foveate.functional.focus import focus_scan_refine
from foveate.functional.grid import smooth_on_grid, spatial_crops, uniform_grid
from foveate.functional.in_llm import (
    attention_of_queries,
    density_peaks,
    keep_and_recycle,
    stage_budgets,
    text_raters,
)
from foveate.functional.merge import Merge, Weights, merged, sizes
from foveate.functional.merging import (
    dominant_and_contextual,
    outliers_with_neighbours,
    salient_and_spread,
    spatial_pooling,
)
from foveate.functional.mixture import adafv, adafv_split, fixed_mix, top_k
from foveate.functional.multimodal import multimodal_cover
from foveate.functional.nearest import merge_into_nearest
from foveate.functional.preservation import optimal_preservation
from foveate.functional.principal import different_in_groups, principal_groups
from foveate.functional.released import adafv_released, released_mixture
from foveate.functional.runs import attention_in_runs
from foveate.functional.text import relevance_to_text, text_to_image_attention
from foveate.functional.video import (
    change_in_place,
    frame_ratios,
    kept_once,
    shared_by_frames,
    unique_in_frames,
    uniqueness,
)

__all__ = [
    "Merge",
    "Weights",
    "adafv",
    "adafv_released",
    "adafv_split",
    "attention_in_runs",
    "attention_of_queries",
    "centered",
    "change_in_place",
    "conditional_dpp",
    "cosine_cover",
    "crops_holding",
    "density_peaks",
    "different_in_groups",
    "distinctiveness",
    "dominant_and_contextual",
    "effective_rank",
    "effective_tokens",
    "facility_location",
    "fixed_mix",
    "focus_scan_refine",
    "focused_relevance",
    "frame_ratios",
    "holistic_context",
    "important_and_diverse",
    "keep_and_recycle",
    "kept_once",
    "least_duplicated",
    "least_reaching",
    "mass_in_boxes",
    "max_min_diversity",
    "merge_into_nearest",
    "merged",
    "mixed_masses",
    "multimodal_cover",
    "optimal_preservation",
    "outliers_with_neighbours",
    "principal_groups",
    "released_mixture",
    "relevance_to_text",
    "require_finite",
    "saliency_coverage",
    "salient_and_apart",
    "salient_and_spread",
    "shared_by_frames",
    "shifted_cosine_cover",
    "sizes",
    "smooth_on_grid",
    "spatial_crops",
    "spatial_pooling",
    "stage_budgets",
    "text_raters",
    "text_to_image_attention",
    "top_k",
    "uniform_grid",
    "unique_in_frames",
    "uniqueness",
]
