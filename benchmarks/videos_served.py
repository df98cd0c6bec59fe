"""Videos in vLLM: nothing dropped, vLLM's own EVS, and Foveate's methods at the number of tokens that EVS keeps.

    python -m benchmarks.videos_served > benchmarks/results/videos-served.md

Needs vLLM (``make test-vllm`` makes an environment with it). Requests are drawn clips with a question each, every clip
new to the engine, all handed to ``LLM.generate`` at once. The engines run one after the other, each in a process of its
own, forwards and backwards until there are as many rounds as asked for; the first requests to each engine are not
counted. That arms see prompts of the same length is checked.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
import platform
import time
from collections.abc import Sequence
from statistics import median
from typing import Any

import numpy as np

from foveate import __version__, bundled, serving
from foveate.evaluation.clips.composing import RATE
from foveate.evaluation.clips.files import make_sample
from foveate.inputs import question_prompt

FPS = 2
SYSTEM = "<|im_start|>system\nYou answer questions about videos, in few words.<|im_end|>\n"
"""vLLM's EVS for Qwen3-VL takes the mark before the whole video for that of its first step, and numbers the video from
too early a place: before the prompt's begin where nothing stands in front, which ends the engine."""
WARM = 4
"""Requests that are not counted, of clips of their own."""
ENVIRONMENT = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR"}


Spent = tuple[float, float, list[int]]


def requests_of(first: int, count: int, processor: Any, clips: int) -> list[dict[str, Any]]:
    """Prompts with a video each, every one of another clip.

    Args:
        first: number of the first clip.
        count: how many requests.
        processor: of the model.
        clips: how many drawn clips follow each other in a video.
    """
    found = []
    for number in range(first, first + count):
        samples = [make_sample("test", 60, number * clips + part) for part in range(clips)]
        size = samples[0].frames[0].size
        frames = [frame.convert("RGB").resize(size) for one in samples for frame in one.frames[:: RATE // FPS]]
        text = SYSTEM + question_prompt(processor, samples[0].questions[0].text, 1, kind="video")
        metadata = {
            "total_num_frames": len(frames), "fps": float(FPS), "duration": len(frames) / FPS,
            "frames_indices": list(range(len(frames))), "video_backend": "opencv", "do_sample_frames": False,
        }  # fmt: skip
        found.append(
            {
                "prompt_token_ids": processor.tokenizer(text, add_special_tokens=False)["input_ids"],
                "multi_modal_data": {"video": [(np.stack([np.asarray(frame) for frame in frames]), metadata)]},
            }
        )
    return found


def kept_by_evs(request: dict[str, Any], processor: Any, rate: float) -> int:
    """How many visual tokens vLLM's EVS keeps of a request's video: all of the first step at least."""
    ((frames, metadata),) = request["multi_modal_data"]["video"]
    told = {name: value for name, value in metadata.items() if name != "do_sample_frames"}
    made = processor.video_processor([frames], video_metadata=[told], do_sample_frames=False, return_tensors="pt")
    steps, height, width = made["video_grid_thw"][0].tolist()
    tokens = height * width // processor.video_processor.merge_size**2
    return max(tokens, int(steps * tokens * (1 - rate)))


def measured(pipe: Any, folder: str, plugin: bool, options: dict[str, Any], batches: Sequence[Any]) -> None:
    """In a process of its own: of every batch but the first, seconds, those of its processor, and prompt tokens."""
    os.environ.update(ENVIRONMENT, **({} if plugin else {"VLLM_PLUGINS": ""}))
    from vllm import LLM, SamplingParams

    llm = LLM(folder, dtype="float32", enforce_eager=True, seed=0, max_num_batched_tokens=16384,
              limit_mm_per_prompt={"image": 0, "video": 1}, **options)  # fmt: skip
    if "video_pruning_rate" in options:
        # vLLM's runner for CPUs leaves out what the one for GPUs does when it has loaded a model, and EVS ends the
        # engine there: positions come with the features, and nobody takes them off.
        runner = llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker.model_runner
        runner.is_multimodal_pruning_enabled = True
    sampling = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
    found = []
    for batch in batches:
        began = time.perf_counter(), time.process_time()
        told = llm.generate(batch, sampling, use_tqdm=False)
        spent = time.perf_counter() - began[0], time.process_time() - began[1]
        found.append((*spent, [len(one.prompt_token_ids) for one in told]))
    pipe.send(found[1:])
    pipe.recv()  # taking an engine down prints errors
    os._exit(0)


def run(folder: str, plugin: bool, options: dict[str, Any], batches: Sequence[Any]) -> list[Spent]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=measured, args=(theirs, folder, plugin, options, batches))
    process.start()
    try:
        while not ours.poll(5):
            if not process.is_alive():
                raise RuntimeError("the engine ended; its own output says why")
        found: list[Spent] = ours.recv()
        return found
    finally:
        process.kill()
        process.join()


def main() -> None:
    from transformers import AutoProcessor

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="dynamic", help="a folder, or a model that ships")
    parser.add_argument("--rate", type=float, default=0.75, help="the part that EVS drops")
    parser.add_argument("--requests", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--clips", type=int, default=2, help="drawn clips in a row in each video")
    given = parser.parse_args()
    folder = str(bundled.path(given.model)) if bundled.shipped(given.model) else given.model
    count = given.requests
    processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
    batches = [requests_of(0, WARM, processor, given.clips)]
    batches += [requests_of(WARM + one * count, count, processor, given.clips) for one in range(given.rounds)]

    def asking(method: str) -> list[Any]:
        """The same with a budget for each: what EVS keeps of it."""
        return [
            [{**one, "mm_processor_kwargs": {"foveate": {"method": method, "keep": keep}}} for one, keep in pairs]
            for pairs in (zip(batch, kept, strict=True) for batch, kept in zip(batches, budgets, strict=True))
        ]

    budgets = [[kept_by_evs(one, processor, given.rate) for one in batch] for batch in batches]
    pruning = {"hf_overrides": serving.options("evs", keep=0.25, methods=("adafv",))}
    arms: dict[str, tuple[bool, dict[str, Any], Sequence[Any]]] = {
        "vLLM, nothing dropped": (False, {}, batches),
        "vLLM, EVS": (False, {"video_pruning_rate": given.rate}, batches),
        "Foveate, `evs`": (True, pruning, asking("evs")),
        "Foveate, `adafv`": (True, pruning, asking("adafv")),
    }
    rates: dict[str, list[float]] = {name: [] for name in arms}
    costs: dict[str, list[float]] = {name: [] for name in arms}
    lengths: dict[str, list[int]] = {name: [] for name in arms}
    middle = math.ceil(given.rounds / 2)
    for order, part in ((list(arms), slice(0, middle)), (list(arms)[::-1], slice(middle, None))):
        for name in order:
            plugin, options, asked = arms[name]
            mine = [asked[0], *asked[1:][part]]
            if len(mine) > 1:
                for seconds, spent, prompts in run(folder, plugin, options, mine):
                    rates[name].append(len(prompts) / seconds)
                    costs[name].append(spent / len(prompts))
                    lengths[name] += prompts
    pruned = [name for name in arms if name != "vLLM, nothing dropped"]
    if len({tuple(sorted(lengths[name])) for name in pruned}) > 1:
        raise RuntimeError("the arms that drop tokens did not see prompts of the same length")
    import vllm

    print(f"{given.model}, {given.requests} requests at once, {given.rounds} rounds, videos of {given.clips} drawn "
          f"clips at {FPS} frames a second, EVS at a pruning rate of {given.rate:g}. Foveate {__version__}, vLLM "
          f"{vllm.__version__}, {platform.processor() or platform.machine()}, "
          f"{os.environ.get('OMP_NUM_THREADS', 'all')} thread(s), float32.\n")  # fmt: skip
    print("| | prompt tokens, mean | requests/s, median | of rounds | processor seconds a request, median |")
    print("|---|---|---|---|---|")
    for name, found in rates.items():
        spread = f"{min(found):.2f} to {max(found):.2f}"
        print(f"| {name} | {sum(lengths[name]) / len(lengths[name]):.0f} | {median(found):.2f} | {spread} | "
              f"{median(costs[name]):.3f} |")  # fmt: skip


if __name__ == "__main__":
    main()
