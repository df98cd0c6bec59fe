"""GLM-4.1V and what came after it: squares of patches merged by a convolution, M-RoPE positions, videos as images.

A video's frames stand under the images' placeholder, a time behind each; the video's own marks are around them all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from foveate.arguments import setting
from foveate.models.encoded import Kind, Rope
from foveate.models.packed import PackedFamily
from foveate.models.packed_rope import PackedRopeFamily


class GlmFamily(PackedFamily):
    """What GLM's families share: the convolution, and videos that are written as images between marks."""

    video_inputs = ("pixel_values_videos", "video_grid_thw")
    reader_at = "visual.downsample"  # the convolution that merges squares of patches, behind the encoder's last norm
    joins_rows = True
    mixed: ClassVar[str] = "stock transformers takes every placeholder for both"
    """Why images and videos cannot be in one call."""

    @staticmethod
    def patches_of(given: Tensor) -> Tensor:
        """From (squares, d, rows, columns)."""
        return given.permute(0, 2, 3, 1)

    @property
    def video_token_id(self) -> int:
        """The images': the one that the config names is written by nobody."""
        return self.image_token_id

    def marks(self, ids: Tensor) -> Tensor:
        """Also all that stands between a video's marks: the times of its frames."""
        return super().marks(ids) | self.inside_videos(ids)

    def inside_videos(self, ids: Tensor) -> Tensor:
        """(B, S) bool: what stands between a video's start and its end."""
        starts = (ids == self.config.video_start_token_id).long()
        ends = (ids == self.config.video_end_token_id).long()
        opened = starts.cumsum(1) > ends.cumsum(1)
        return opened & ends.flip(1).cumsum(1).flip(1).bool()  # a start that is not followed by an end opens nothing

    def refuse(self, inputs: Mapping[str, Any]) -> None:
        super().refuse(inputs)
        if self.has(inputs, "image") and self.has(inputs, "video"):
            raise ValueError(
                f"{self.title}: images and videos in one call have the same placeholder id, and {self.mixed}. "
                "Ask about them in calls of their own."
            )

    def refuse_generation(self, arguments: Mapping[str, Any]) -> None:
        repeats = any((setting(self.model, arguments, name) or 1) > 1 for name in ("num_beams", "num_return_sequences"))
        # What stock does not take for a model of videos (GLM-5.3-Flash in 5.19) is not encoded before it is repeated.
        ahead = hasattr(self.model, "_expand_multimodal_outputs") and "video" in self.model.input_modalities
        if repeats and ahead and self.has(arguments, "video"):
            raise ValueError(
                f"{self.title}: stock transformers counts a video's placeholders under an id that its prompts do not "
                "hold, and loses the video where a prompt is repeated: no num_beams or num_return_sequences above 1 "
                "with videos. Pass its frames as images."
            )


class Glm4v(GlmFamily, PackedRopeFamily):
    """``Glm4vForConditionalGeneration``, its MoE variant (GLM-4.5V), and the classes made like it."""

    title = "GLM-4.1V"
    model_types = ("glm4v", "glm4v_moe", "glm46v", "glmga", "glm_ocr")
    checkpoints = {
        "glm4v": "zai-org/GLM-4.1V-9B-Thinking",
        "glm4v_moe": "zai-org/GLM-4.5V",
        "glm46v": " (none is known: GLM-4.6V says glm4v_moe, GLM-4.6V-Flash glm4v)",
        "glmga": " (none is known)",
        "glm_ocr": "zai-org/GLM-OCR",
    }

    def rope(self, arguments: Mapping[str, Any], ids: Tensor, mask: Tensor, types: Tensor | None) -> Rope | None:
        if types is not None:
            known = types[(ids == self.image_token_id) & mask]
            numbers: dict[Kind, int] = {"image": 1, "video": 2}
            for kind, number in numbers.items():
                if self.has(arguments, kind) and not bool((known == number).all()):
                    raise ValueError(
                        f"{self.title}: the call brings {kind}s, and mm_token_type_ids do not say {number} ({kind}) at "
                        "every placeholder: a video's frames stand between <|begin_of_video|> and <|end_of_video|>, an "
                        "image outside of them. Pass all that the processor returned."
                    )
        return super().rope(arguments, ids, mask, types)


class Glm5Next(GlmFamily):
    """``Glm5NextForConditionalGeneration``: the same encoder before an LLM of linear and indexed attention."""

    title = "GLM-5.3-Flash"
    model_types = ("glm5_next",)
    mixed = "which is which is not known here"
    pads = True
    least = 16
    checkpoints = {"glm5_next": "zai-org/GLM-5.3-Flash"}
