"""A video's budget, spread over its frames by what the question is about."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from foveate.functional import frame_ratios, shared_by_frames, text_to_image_attention, uniqueness
from foveate.functional.common import accumulator, require_known, require_positive
from foveate.pruners.base import TEXT_TO_IMAGE, Choice, Pruner, require_count
from foveate.pruners.text import ReadsQuestion
from foveate.pruners.wrapper import Wrapper
from foveate.tokens import TextTokens, VisualTokens

BY = ("question", "uniqueness", "even")
"""What frames share a budget by."""


@dataclass
class Spread(ReadsQuestion, Wrapper):
    """A method that chooses within frames, whose budgets follow the question: frames it is not about may keep nothing.

    The budget is of the whole video. Frames share it in proportion to how much of the question's attention (AdaFV's,
    arXiv 2501.09532, over all tokens of the video) lies in each, by Webster's method, none more than it has; then the
    held method chooses in every frame by itself. A ``floor`` keeps some tokens of every stretch of time, whatever is
    asked. Ours. ``by="uniqueness"`` is VidCom2's share (arXiv 2505.14454), which its paper puts around other methods
    too.

    A picture has no frames: the held method's own choice. On an accelerator the frames' budgets are waited for, once
    per video.

    Args:
        method: the held method, or its name as for ``foveate.get_pruner``.
        by: ``"question"`` (default), ``"uniqueness"``, or ``"even"``: every frame alike.
        floor: tokens that every stretch of time keeps, as far as the budget goes. Default 1; 0: none.
        seconds: how long such a stretch is, where the call says when frames are (Qwen2.5-VL, Qwen2.5-Omni, Qwen3-Omni).
            Default 2.
        frames: how many frames it has elsewhere. Default 4.
        temperature: of the question's attention, as for ``ReadsText``. Default 0.01.
        keep: as for ``Pruner``. Default: the held method's.

    Raises:
        TypeError: as for ``Wrapper``; ``floor`` or ``frames`` no int.
        ValueError: as for ``Wrapper``; unknown ``by``, ``floor`` < 0, ``frames`` < 1, ``seconds`` or ``temperature``
            not positive and finite.
    """

    by: str = "question"
    floor: int = 1
    seconds: float = 2.0
    frames: int = 4
    temperature: float = 0.01

    name: ClassVar[str] = "spread"
    over_time: ClassVar[bool] = True
    example: ClassVar[str] = "cover"

    def __post_init__(self) -> None:
        require_known(BY, by=self.by)
        super().__post_init__()
        require_count(0, floor=self.floor)
        require_count(frames=self.frames)
        require_positive(seconds=self.seconds, temperature=self.temperature)

    @property
    def reads_text(self) -> bool:  # type: ignore[override]
        """Whether the question is read, here or by the held method."""
        return self.by == "question" or bool(self.method.reads_text)

    @property
    def text_span(self) -> str:  # type: ignore[override]
        """The held method's; of one that reads no text, the image's own turn."""
        return str(self.method.text_span) if self.method.reads_text or self.by != "question" else "turn"

    @property
    def special_tokens(self) -> bool:  # type: ignore[override]
        """The held method's."""
        return bool(self.method.special_tokens)

    def refuse(self, method: Pruner) -> str | None:
        """What compares frames, decides on its own budget, or merges across them."""
        if method.over_time:
            return "it looks across frames, and here every frame is chosen from by itself" + (
                f"; put it outside instead, as in {method.name}:{self.name}:{self.example}"
                if isinstance(method, Wrapper) and not isinstance(method, Spread)
                else ""
            )
        if method.adaptive:
            return "it chooses its own number of tokens, and here every frame is told its own"
        if method.merges:
            return f"it merges tokens; put merging outside instead, as in merged:{self.name}:{self.example}"
        return None if method.exact else "it does not keep exactly as many tokens as it is told"

    def choose(self, visual: VisualTokens, text: TextTokens | None, budget: int) -> Choice:
        """The held method's choices in the frames; ``share`` is the mass of a token's frame, of that of the video."""
        where = visual.geometry
        if not where.frames:
            return self.method.choose(visual, text, budget)  # type: ignore[no-any-return]
        count = torch.zeros(len(where.frames), dtype=torch.int64, device=where.view.device)
        count = count.scatter_add(0, where.view, torch.ones_like(where.view))
        mass, scores = self._masses(visual, text, budget, count)
        mass = mass / mass.sum()
        most = max(rows * columns for rows, columns in where.grids)
        share = shared_by_frames(mass, count, most, budget, self._stretches(visual), self.floor)
        scores["share"] = mass.float().index_select(0, where.view)
        order = where.view.sort(stable=True).indices
        parts, start = [], 0
        for frame, (have, some) in enumerate(torch.stack([count, share], dim=1).tolist()):
            ours = order[start : start + have]
            start += have
            if some == have:
                parts.append(ours)
            elif some:
                chosen = self.method.choose(visual.some(ours, [frame]), text, some)
                parts.append(ours.index_select(0, chosen.indices))
        return Choice(torch.cat(parts).sort().values, scores)

    def _masses(
        self, visual: VisualTokens, text: TextTokens | None, budget: int, count: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """(T,) how much lies in each frame, and what it was read from."""
        frame, frames = visual.geometry.view, len(count)
        if self.by == "question":
            assert text is not None  # Pruner.select has refused a video without text
            asked = text_to_image_attention(
                text.embeddings.detach(), visual.features.detach(), 1 / self.temperature, text_mask=self.text_mask(text)
            )
            order = frame.sort(stable=True).indices
            # Row by row: a scatter_add of floats would depend on the order in which an accelerator adds.
            starts = count.cumsum(0) - count
            sums = torch.nn.functional.embedding_bag(
                order, asked.to(accumulator(asked.device)).unsqueeze(1), starts, mode="sum"
            )
            return sums[:, 0], {TEXT_TO_IMAGE: asked}
        if self.by == "even":
            return torch.ones(frames, device=frame.device), {}
        in_video, _ = uniqueness(visual.features.detach(), frame, frames)
        return frame_ratios(in_video, frame, frames, budget / len(visual)) * count, {"uniqueness": in_video}

    def _stretches(self, visual: VisualTokens) -> Tensor:
        """(T,) int64: which stretch of time every frame lies in."""
        where = visual.geometry
        length = self.seconds if where.in_seconds else self.frames
        found = [math.floor(time / length + 1e-6) for time in where.frames]
        numbers = {stretch: number for number, stretch in enumerate(sorted(set(found)))}
        return torch.tensor([numbers[one] for one in found], device="cpu").to(where.view.device)
