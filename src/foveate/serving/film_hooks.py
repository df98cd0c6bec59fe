"""What ``hooks`` is for images, for videos: the parts of vLLM that are not its documented interface."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any


def timed(processor: Any, inputs: Any) -> list[list[int]]:
    """What vLLM writes for every video of a request to Qwen3-VL, with one placeholder in each of its steps.

    Args:
        processor: vLLM's.
        inputs: its ``ProcessorInputs``.
    """
    info = processor.info
    config, tokenizer = info.get_hf_config(), info.get_tokenizer()
    told = info._merge_and_resolve_mm_processor_kwargs(inputs.hf_processor_mm_kwargs).get("videos_kwargs", {})
    found = []
    videos = inputs.mm_data_items["video"]
    for place in range(len(videos)):
        item = videos.get(place)
        if item is None:  # named by its UUID alone: as good as short, whoever asked before was told apart by that
            found.append([config.video_token_id])
            continue
        metadata = item[1]
        mine = {name: told.get(name) for name in ("fps", "num_frames")}
        mine = {name: value[place] if isinstance(value, list) else value for name, value in mine.items()}
        times = info._get_video_second_idx(
            metadata=metadata,
            do_sample_frames=told.get("do_sample_frames", metadata.get("do_sample_frames", False)),
            sampled_fps=mine["fps"],
            sampled_num_frames=mine["num_frames"],
        )
        written = processor.get_video_repl(
            tokens_per_frame=[1] * len(times),
            timestamps=times,
            tokenizer=tokenizer,
            vision_start_token_id=config.vision_start_token_id,
            vision_end_token_id=config.vision_end_token_id,
            video_token_id=config.video_token_id,
        )
        found.append(list(written.full))
    return found


def most_labels(info: Any) -> int:
    """How many tokens vLLM writes between the steps of a video for Qwen3-VL, at most."""
    videos = info.get_video_processor()
    steps = -(-videos.max_frames // videos.temporal_patch_size)
    return steps * (len(info.get_tokenizer().encode("<9999.9 seconds>", add_special_tokens=False)) + 2)


def long_prompt(ids: Sequence[int], features: Sequence[Any], layouts: Sequence[Sequence[int]]) -> tuple[Any, Any]:
    """A prompt and its images and videos as vLLM would have them, were none shortened.

    Args:
        ids: the shortened prompt.
        features: vLLM's, of its images and videos, by their place.
        layouts: what is written for each when all is kept.
    """
    from vllm.multimodal.inputs import PlaceholderRange

    long: list[int] = []
    found: list[Any] = []
    start = 0
    for feature, layout in zip(features, layouts, strict=True):
        place = feature.mm_position
        long += ids[start : place.offset]
        found.append(dataclasses.replace(feature, mm_position=PlaceholderRange(offset=len(long), length=len(layout))))
        long += layout
        start = place.offset + place.length
    return [*long, *ids[start:]], found
