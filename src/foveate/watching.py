"""Watch once, ask often: a session about a video. The vision tower runs once, the selection once per question."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from foveate.attachment import check_model
from foveate.inputs import PROBE, mark_of, process, question_prompt
from foveate.instrumented import looking_through
from foveate.locks import lock_of
from foveate.models.encoded import EncodedImage, Kind, Layout, Request
from foveate.models.view_store import Views
from foveate.options import Options
from foveate.session import PER_TOKEN, Session
from foveate.stopwatch import stage
from foveate.tokens import Selection
from foveate.videos import Video


class VideoSession(Session):
    """An encoded video that questions can be asked about; made by ``foveate.watching.watch``.

    As ``Session``, with one selection per answer; its views are the video's moments, see ``moments``.

    Args:
        video: as it was read.
    """

    def __init__(
        self, model: Any, processor: Any, video: Video, views: Views, inputs: Mapping[str, Tensor], kind: Kind
    ) -> None:
        self.video = video
        self._read: dict[tuple[str, ...], dict[str, Any]] = {}
        super().__init__(model, processor, video.frames[:1], views, inputs, "stock", kind=kind)

    @property
    def moments(self) -> list[range]:
        """Of every view of a selection, which of the video's frames it shows: some models put two or more in one."""
        return moments(self.images[0].tokens.geometry.grids, len(self.video))

    def prompt(self, question: str) -> str:
        return question_prompt(self.processor, question, 1, self.model, kind="video")

    def _count_marks(self, prompt: str) -> list[str]:
        return _count_marks(prompt, mark_of(self.processor, "video"))

    def _tokenize(self, prompts: Sequence[str]) -> dict[str, Any]:
        """The processor writes what stands for a video; the pixels it makes again are thrown away, so that the same
        questions are not written twice in a row."""
        for prompt in prompts:
            self._count_marks(prompt)
        key = tuple(prompts)
        with lock_of(self.processor.tokenizer):
            if key not in self._read:
                inputs = _processed(self.processor, self.model, prompts, self.video)
                self._read = {key: {name: inputs[name] for name in PER_TOKEN if name in inputs}}
            return dict(self._read[key])

    def _write_runs(self, prompts: Sequence[str]) -> dict[str, Any]:
        raise ValueError("what stands for a video is written by its processor")


def watch(model: Any, processor: Any, video: Video) -> VideoSession:
    """Runs the vision tower over a video and keeps what it gave, so that many questions can be asked.

    Args:
        model: a stock transformers model of a family that takes videos.
        processor: its processor.
        video: what ``foveate.videos.load_video`` read. All of its frames are seen: the processor drops none.

    Raises:
        ValueError: the family takes no videos, or these are too few frames for it.
        TypeError: what is handed over is no model, no processor or no video.
        ModuleNotFoundError: the processor's part for videos needs torchvision, which is not installed.
    """
    check_model(model)
    if hasattr(processor, "generate"):
        raise TypeError("expected the model's processor, got a model: watch(model, processor, video)")
    if not isinstance(video, Video):
        raise TypeError(
            f"expected a foveate.videos.Video, got {type(video).__name__}: foveate.videos.load_video reads one"
        )
    with looking_through(model) as instrumented, torch.no_grad():
        family = instrumented.family
        Options().check(family)
        if not family.filmed and not family.video_inputs:
            raise ValueError(f"{family.title} takes no videos: `foveate models` lists those that do")
        prompt = question_prompt(processor, PROBE, 1, model, kind="video")
        _count_marks(prompt, mark_of(processor, "video"))
        inputs = family.named(_processed(processor, model, [prompt], video))
        ids = torch.where(inputs["attention_mask"].bool(), inputs["input_ids"], -1).cpu()
        kind: Kind = "video" if family.video_inputs and family.has(inputs, "video") else "image"
        layout: Layout = "stock"
        request = Request(instrumented.features[kind], keys=True, encoded=True, layout=layout, prompt=ids)
        with stage("encoder"):
            images = family.encode_videos(inputs, request) if kind == "video" else family.encode(inputs, request)
    _require_one(images, len(video), family.title)
    moments(images[0].tokens.geometry.grids, len(video))
    return VideoSession(model, processor, video, Views.of(images), inputs, kind)


def moments(grids: Sequence[tuple[int, int]], frames: int) -> list[range]:
    """Which of so many frames every view shows, where each shows equally many and the last perhaps fewer.

    Args:
        grids: of every view, see ``Geometry``.
        frames: that the model saw.

    Raises:
        ValueError: they cannot be told apart so.
    """
    each = -(-frames // len(grids))
    if -(-frames // each) != len(grids):
        raise ValueError(
            f"the model made {len(grids)} moments of {frames} frames, and which of them is in which is not known: "
            "sample another number of frames"
        )
    return [range(start, min(start + each, frames)) for start in range(0, frames, each)]


def kept_by_moment(selection: Selection) -> list[int]:
    """How many tokens stay of every view."""
    return torch.bincount(selection.view.cpu(), minlength=len(selection.geometry.grids)).tolist()


def _require_one(images: Sequence[EncodedImage], frames: int, title: str) -> None:
    if len(images) != 1:
        raise ValueError(
            f"{title} tells a video of few frames from so many pictures only from three frames on, and this one has "
            f"{frames}: sample more"
        )


def _count_marks(prompt: str, mark: str) -> list[str]:
    parts = prompt.split(mark)
    if len(parts) < 2:
        raise ValueError(f"the model's chat template has no place for a video: {mark!r} is not in what it wrote")
    if len(parts) > 2:
        raise ValueError(f"the question must not contain {mark!r} itself")
    return parts


def _processed(processor: Any, model: Any, prompts: Sequence[str], video: Video) -> dict[str, Tensor]:
    try:
        return process(
            processor, model, prompts, (),
            videos=[list(video.frames) for _ in prompts],
            video_metadata=[dict(video.metadata) for _ in prompts],
            do_sample_frames=False,
        )  # fmt: skip
    except Exception as error:
        if getattr(processor, "video_processor", None) is not None or find_spec("torchvision") is not None:
            raise
        raise ModuleNotFoundError(
            f"{type(processor).__name__} reads videos with torchvision, which is not installed: pip install "
            "torchvision (from where the installed torch came, so that the two go together)",
            name="torchvision",
        ) from error
