"""Videos over HTTP: the dynamic model behind ``foveate serve``, against transformers."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor

import foveate
from foveate import bundled
from foveate.evaluation.clips.composing import RATE
from foveate.evaluation.clips.files import make_sample
from foveate.inputs import question_prompt
from tests.vllm.servers import Server, data_url

METHODS = ("evs", "vidcom2", "changing:cover", "text")
FPS = 2


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    started = Server(
        tmp_path_factory.mktemp("server") / "log", "dynamic", "--keep", "0.25", "--max-keep", "0.5", "--methods",
        ",".join(METHODS), "--feature-cache", "64", "--max-model-len", "4096", "--enforce-eager", "--dtype", "float32",
        "--limit-mm-per-prompt", '{"image": 1, "video": 2}', "--block-size", "32", "--num-gpu-blocks-override", "512",
        "--media-io-kwargs", f'{{"video": {{"fps": {FPS}}}}}',
        space=None,
    )  # fmt: skip
    yield started
    started.close()


@pytest.fixture(scope="module")
def stock() -> tuple[Any, Any]:
    return bundled.load("dynamic")[0], AutoProcessor.from_pretrained(bundled.path("dynamic"), local_files_only=True)


def frames_of(number: int) -> list[Image.Image]:
    """Every second frame of one of the drawn clips: two a second."""
    return list(make_sample("test", 50, number).frames[:: RATE // FPS])


def jpegs(frames: list[Image.Image]) -> tuple[str, np.ndarray]:
    """Frames as clients send them one by one, and what is in them."""
    files = []
    for frame in frames:
        file = io.BytesIO()
        frame.convert("RGB").save(file, "JPEG", quality=95)
        files.append(file)
    url = "data:video/jpeg;base64," + ",".join(base64.b64encode(file.getvalue()).decode() for file in files)
    return url, np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])


def mp4(frames: list[Image.Image], file: Path) -> str:
    """Frames as a file, of which the server takes its own."""
    import cv2

    width, height = (side // 2 * 2 for side in frames[0].size)
    writer = cv2.VideoWriter(str(file), cv2.VideoWriter_fourcc(*"mp4v"), float(RATE), (width, height))
    for frame in frames:
        writer.write(np.ascontiguousarray(np.asarray(frame.convert("RGB"))[:height, :width, ::-1]))
    writer.release()
    return "data:video/mp4;base64," + base64.b64encode(file.read_bytes()).decode()


def read(url: str) -> tuple[np.ndarray, dict[str, Any]]:
    """The frames that vLLM takes of a file for this model."""
    from vllm.multimodal.video import VIDEO_LOADER_REGISTRY

    loader = VIDEO_LOADER_REGISTRY.load("qwen3_vl")
    return loader.load_bytes(base64.b64decode(url.split(",")[1]), num_frames=32, fps=FPS)


def told(count: int) -> dict[str, Any]:
    """What vLLM says of frames that came one by one."""
    return {"total_num_frames": count, "fps": float(FPS), "duration": count / FPS, "frames_indices": list(range(count))}


def body(question: str, parts: list[tuple[str, str]], asks: dict[str, Any] | None = None) -> dict[str, Any]:
    content = [{"type": f"{kind}_url", f"{kind}_url": {"url": url}} for kind, url in parts]
    found: dict[str, Any] = {
        "model": "dynamic", "max_tokens": 8, "temperature": 0,
        "messages": [{"role": "user", "content": [*content, {"type": "text", "text": question}]}],
    }  # fmt: skip
    return found if asks is None else {**found, "mm_processor_kwargs": {"foveate": asks}}


def answer(server: Server, sent: dict[str, Any]) -> tuple[str, int]:
    """The answer, and how long its prompt was."""
    response = httpx.post(f"{server.url}/v1/chat/completions", json=sent, timeout=120)
    assert response.status_code == 200, response.text[:500]
    found = response.json()
    return found["choices"][0]["message"]["content"].strip(), found["usage"]["prompt_tokens"]


def expected(
    stock: tuple[Any, Any], question: str, videos: list[tuple[np.ndarray, dict[str, Any]]], pruner: Any,
    pictures: list[Image.Image] | None = None,
) -> tuple[str, int]:  # fmt: skip
    """What transformers with Foveate answers, pictures before videos, and how long the prompt is."""
    model, processor = stock
    mark = "<|vision_start|><|{}_pad|><|vision_end|>"
    prompt = question_prompt(processor, question, 1, kind="video")
    marks = mark.format("image") * len(pictures or []) + mark.format("video") * len(videos)
    inputs = processor(
        images=pictures, videos=[frames for frames, _ in videos], text=prompt.replace(mark.format("video"), marks),
        video_metadata=[metadata for _, metadata in videos], do_sample_frames=False, return_tensors="pt",
        add_special_tokens=False,
    )  # fmt: skip
    with torch.no_grad(), pruner(model):
        output = model.generate(**inputs, max_new_tokens=8, do_sample=False, return_dict_in_generate=True)
    generated = output.sequences[0, inputs["input_ids"].shape[1] :]
    length = int(output.past_key_values.get_seq_length()) - len(generated) + 1
    return processor.tokenizer.decode(generated, skip_special_tokens=True).strip(), length


def test_frames(server: Server, stock: tuple[Any, Any]) -> None:
    """Frames as JPEG, per request a budget and a method."""
    told_apart = 0
    for number, place in ((2, 2), (2, 4), (3, 4), (3, 6)):
        url, frames = jpegs(frames_of(number))
        question = make_sample("test", 50, number).questions[place].text
        answers = set()
        for method, keep in (("adafv", 0.25), ("adafv", 40), *((method, 0.1) for method in METHODS)):
            asks = None if (method, keep) == ("adafv", 0.25) else {"keep": keep, "method": method}
            pruner = foveate.get_pruner(method, keep=keep)
            got = answer(server, body(question, [("video", url)], asks))
            assert got == expected(stock, question, [(frames, told(len(frames)))], pruner)
            answers.add(got)
        told_apart += len({text for text, _ in answers}) > 2
    assert told_apart >= 2  # what is said depends on what is kept, so that equal answers say something


def test_a_file(server: Server, stock: tuple[Any, Any], tmp_path: Path) -> None:
    sample = make_sample("test", 50, 4)
    url = mp4(list(sample.frames), tmp_path / "clip.mp4")
    frames, metadata = read(url)
    assert not metadata.pop("do_sample_frames")
    assert len(frames) < len(sample.frames)
    for question in sample.questions[:2]:
        got = answer(server, body(question.text, [("video", url)], {"keep": 0.1}))
        assert got == expected(stock, question.text, [(frames, metadata)], foveate.get_pruner("adafv", keep=0.1))


def test_several_and_a_picture(server: Server, stock: tuple[Any, Any]) -> None:
    (first, one), (second, other) = (jpegs(frames_of(number)[:length]) for number, length in ((5, 4), (6, 9)))
    picture = make_sample("test", 50, 7).frames[0].convert("RGB")
    question = "Is there a cat in the video?"  # of two steps a time is no label that is known, and guides
    sent = body(question, [("image", data_url(picture)), ("video", first), ("video", second)], {"keep": 0.2})
    videos = [(frames, told(len(frames))) for frames in (one, other)]
    pruner = foveate.get_pruner("adafv", keep=0.2)
    assert answer(server, sent) == expected(stock, question, videos, pruner, [picture])


def test_metrics_and_the_second_question(server: Server) -> None:
    url, _ = jpegs(frames_of(8))
    before = server.metrics()
    questions = make_sample("test", 50, 8).questions
    answers = [answer(server, body(question.text, [("video", url)])) for question in questions]
    grown = {name: value - before.get(name, 0) for name, value in server.metrics().items()}
    assert grown["foveate_videos_total"] == len(answers) > 1
    assert grown["foveate_images_total"] == 0
    pieces = grown["foveate_feature_cache_misses_total"]
    assert pieces >= 1
    assert grown["foveate_feature_cache_hits_total"] >= pieces * (len(answers) - 1)
    kept, dropped = (grown[f"foveate_visual_tokens_{name}_total"] for name in ("kept", "dropped"))
    assert kept / (kept + dropped) == pytest.approx(0.25, abs=0.01)


def test_refused(server: Server) -> None:
    url, _ = jpegs(frames_of(9)[:4])
    for asks, words in (
        ({"keep": 0.6}, "0 < keep <= 0.5"),
        ({"pixels": 0.5}, "concern pictures"),
        ({"method": "saliency"}, "is not served here"),
    ):
        response = httpx.post(
            f"{server.url}/v1/chat/completions", json=body("Is there a cat?", [("video", url)], asks), timeout=60
        )
        assert response.status_code == 400
        assert words in response.json()["error"]["message"]
    more = {**body("Is there a cat?", [("video", url)]), "media_io_kwargs": {"video": {"fps": 3}}}
    response = httpx.post(f"{server.url}/v1/chat/completions", json=more, timeout=60)
    assert response.status_code == 400 and "--trust-request-mm-kwargs" in response.json()["error"]["message"]
    for rubbish in ("data:video/jpeg;base64,AAAA", "data:video/mp4;base64,AAAA", url[:200]):
        response = httpx.post(
            f"{server.url}/v1/chat/completions", json=body("Is there a cat?", [("video", rubbish)]), timeout=60
        )
        assert 400 <= response.status_code < 500, response.text[:300]
    assert server.healthy()
