"""vLLM engines in processes of their own, so that every test file starts what it needs and leaves nothing behind."""

from __future__ import annotations

import gc
import multiprocessing
import os
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "HF_HUB_OFFLINE": "1",
}
USUAL: dict[str, Any] = {"dtype": "float32", "enforce_eager": True, "max_model_len": 1024, "seed": 0}
START = 240
"""Seconds that an engine may take to start on two busy cores."""


@dataclass(frozen=True)
class Prompt:
    """One request.

    Args:
        ids: the prompt's tokens, one placeholder per image and per video.
        images: its pictures.
        asks: the value of ``foveate`` in its ``mm_processor_kwargs``; None: the server's own.
        uuids: of the pictures, where they have any.
        lora: folder of the adapter to answer with.
        videos: its videos: frames, and what vLLM is told of them.
    """

    ids: Sequence[int]
    images: Sequence[Image.Image | None] = ()
    asks: dict[str, Any] | None = None
    uuids: Sequence[str] | None = None
    lora: str | None = None
    videos: Sequence[Any] = ()

    def for_vllm(self) -> dict[str, Any]:
        """As ``LLM.generate`` takes it."""
        found: dict[str, Any] = {"prompt_token_ids": list(self.ids)}
        given = {"image": list(self.images), "video": list(self.videos)}
        if self.images or self.videos:
            found["multi_modal_data"] = {name: items for name, items in given.items() if items}
        if self.uuids is not None:
            found["multi_modal_uuids"] = {"image": list(self.uuids)}
        if self.asks is not None:
            found["mm_processor_kwargs"] = {"foveate": self.asks}
        return found


@dataclass(frozen=True)
class Told:
    """What came back.

    Args:
        tokens: generated ids.
        prompt: length of the prompt that the engine saw.
        cached: how many of its tokens came from the prefix cache.
        logprobs: of the generated ids.
    """

    tokens: tuple[int, ...]
    prompt: int
    cached: int
    logprobs: tuple[float, ...] = field(default=(), compare=False)


class Engine:
    """An ``LLM`` in a child process, until ``close``.

    Args:
        model: a checkpoint folder.
        plugin: whether vLLM finds Foveate's plugin at all.
        options: of ``LLM``.
    """

    def __init__(self, model: str, *, plugin: bool = True, **options: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        environment = {**ENVIRONMENT, **({} if plugin else {"VLLM_PLUGINS": ""})}
        self.process = context.Process(target=_run, args=(theirs, environment, model, {**USUAL, **options}))
        self.process.start()
        self.ask("ready", wait=START)

    def ask(self, what: str, *args: Any, wait: float = 600) -> Any:
        """Has the child do something; what it raises is raised here."""
        self.pipe.send((what, args))
        if not self.pipe.poll(wait):
            raise TimeoutError(f"the engine gave no answer to {what!r} in {wait} s")
        kind, value = self.pipe.recv()
        if kind == "error":
            raise RuntimeError(value)
        return value

    def load(self, model: str, **options: Any) -> None:
        """Another ``LLM`` in place of this one, in the same process: what vLLM imports is there already."""
        self.ask("load", model, {**USUAL, **options}, wait=START)

    def generate(self, prompts: Sequence[Prompt], tokens: int = 8, **sampling: Any) -> list[Told]:
        """Answers prompts, all at once; greedy unless told otherwise."""
        told: list[Told] = self.ask("generate", list(prompts), {"temperature": 0, "max_tokens": tokens, **sampling})
        return told

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Calls a function of a test module in the child, with its ``LLM`` first."""
        return self.ask("call", function, *args)

    def close(self) -> None:
        """Ends the child."""
        try:
            self.pipe.send(("stop", ()))
            self.process.join(30)
        finally:
            self.process.kill()


def embedder(llm: Any) -> Any:
    """What prunes in an engine that runs in this process."""
    return llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker.model_runner.model.foveate


def _run(pipe: Any, environment: dict[str, str], model: str, options: dict[str, Any]) -> None:
    os.environ.update(environment)
    try:
        from vllm import LLM

        gc.freeze()  # starting an engine collects five times, and goes through all that was imported every time
        llm = LLM(model, **options)
    except BaseException:
        pipe.recv()
        pipe.send(("error", traceback.format_exc()))
        return
    while True:
        what, args = pipe.recv()
        if what == "stop":
            if options.get("distributed_executor_backend") is None:
                os._exit(0)  # taking a model down tensor by tensor takes seconds, and nobody else holds on to it
            return
        try:
            if what == "load":
                llm = None
                gc.collect()
                gc.freeze()
                llm = LLM(args[0], **args[1])
                what = "ready"
            pipe.send(("value", _answer(llm, what, args)))
        except Exception:
            pipe.send(("error", traceback.format_exc()))


def _answer(llm: Any, what: str, args: Any) -> Any:
    if what == "ready":
        return None
    if what == "call":
        return args[0](llm, *args[1:])
    from vllm import SamplingParams

    prompts, sampling = args
    more: dict[str, Any] = {}
    if any(prompt.lora for prompt in prompts):
        from vllm.lora.request import LoRARequest

        numbers = {lora: number for number, lora in enumerate(sorted({one.lora for one in prompts if one.lora}), 1)}
        more["lora_request"] = [
            LoRARequest(one.lora, numbers[one.lora], one.lora) if one.lora else None for one in prompts
        ]
    outputs = llm.generate(
        [prompt.for_vllm() for prompt in prompts], SamplingParams(logprobs=0, **sampling), use_tqdm=False, **more
    )
    told = []
    for output in outputs:
        best = output.outputs[0]
        chances = tuple(chance[token].logprob for chance, token in zip(best.logprobs, best.token_ids, strict=True))
        told.append(Told(tuple(best.token_ids), len(output.prompt_token_ids), output.num_cached_tokens or 0, chances))
    return told
