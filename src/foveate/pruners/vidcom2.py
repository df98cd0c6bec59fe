"""More of the frames that are unlike the others, and of each what is unlike the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from foveate.functional import unique_in_frames
from foveate.functional.common import require_positive
from foveate.functional.video import require_channels
from foveate.pruners.base import Choice, Pruner
from foveate.tokens import TextTokens, VisualTokens


@dataclass
class VidCom2(Pruner):
    """What is least like its frame and the video, more of unusual frames: VidCom2 (arXiv 2505.14454).

    Frames share the budget by how unlike the video's mean their tokens are, through a softmax, and within a frame the
    tokens least like the means of the video and of the frame stay. Comparing by the half of the channels that vary
    least is the released code's (and vLLM's) first step. The budget is exact: rounding is evened out as in vLLM, by
    the tokens' own uniqueness.

    A picture is one frame, as the formulas have it, all its views together: its tokens least like its mean stay.

    Args:
        keep: as for ``Pruner``.
        channels: part of the channels that is compared, in (0, 1]. Default 0.5; 1.0 compares all.
        temperature: of the softmax over frames, > 0. Default 0.01.

    Raises:
        ValueError: ``channels`` outside (0, 1], ``temperature`` not positive and finite.
    """

    channels: float = 0.5
    temperature: float = 0.01

    name: ClassVar[str] = "vidcom2"
    over_time: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require_channels(self.channels)
        require_positive(temperature=self.temperature)

    def choose(self, visual: VisualTokens, text: TextTokens | None, budget: int) -> Choice:
        """Budgets by frame, then the most unique of each."""
        where = visual.geometry
        frame = where.view if where.frames else torch.zeros_like(where.view)
        kept, score = unique_in_frames(
            visual.features.detach(), frame, len(where.frames) or 1, budget, self.channels, self.temperature
        )
        return Choice(kept, {"uniqueness": score})
