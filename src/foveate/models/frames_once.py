"""Frames of a video that do not change go through the tower once, where it sees each by itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from foveate.models.alike import alike_views
from foveate.models.base import Family, frames_in
from foveate.models.view_store import ViewStore

if TYPE_CHECKING:
    from foveate.crops import Crops


def frames_once(family: Family, crops: Crops | None, inputs: Mapping[str, Any]) -> ViewStore | None:
    """All frames of a call's ``pixel_values_videos``, of those with the same pixels the first wanted.

    None where all are encoded as stock does it: that is not asked for (``crops="distinct"``), or the family does not
    take frames one by one (``Family.frame_by_frame``).
    """
    if crops is None or crops.ranks or not family.frame_by_frame:
        return None
    frames = frames_in(family.title, inputs).flatten(0, 1)
    store = ViewStore(len(frames), alike_views(frames), whole=True)
    store.wanted = store.missing(range(store.total))
    return store
