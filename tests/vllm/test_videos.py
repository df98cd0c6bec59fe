"""Videos in vLLM under pruning: what is chosen and answered, against transformers, and against vLLM without the
plugin."""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor
from vllm.multimodal.processing import ProcessorInputs, TimingContext

import foveate
from foveate import serving
from tests.vllm.engines import Engine, Prompt, Told, embedder
from tests.vllm.test_families import (
    DIFFERENCE,
    NEW,
    TOLERANCE,
    WITHOUT_PREFIXES,
    Answer,
    Process,
    agree,
    forget,
    lookups,
    picture,
    profile,
    seen,
    watch,
)
from tests.vllm.test_guiding import front_of

FAMILIES = ["qwen3_vl", "qwen2_5_vl", "qwen3_5", "llava_onevision", "qwen2_vl"]
PLAIN = ["llava_onevision", "qwen2_vl"]
"""Whose videos are read without being told the times."""
BEHIND = ["qwen2_5_vl", "qwen2_vl"]
"""Where the text behind a video begins, vLLM, old versions of transformers and new ones do not agree: serving is as
vLLM is, and transformers is told so here."""
METHODS = [("adafv", 0.25), ("adafv", 5), ("evs", 0.5), ("vidcom2", 0.25), ("changing:cover", 0.25),
           ("spread:saliency", 0.2), ("merged:cover", 0.25)]  # fmt: skip
PRUNING = serving.options(
    keep=0.25, methods=tuple(dict.fromkeys(name for name, _ in METHODS if name != "adafv")), feature_cache_mib=16
)
OPTIONS: dict[str, Any] = {
    "limit_mm_per_prompt": {"image": 2, "video": 2},
    "block_size": 32,
    "num_gpu_blocks_override": 512,
    "max_model_len": 1024,
}
CHUNK = 10
PIECE = 20
"""Visual tokens of a piece: videos here have several."""
CARD, CAT, SIGN = "what color is the card of the cat ?", "is there a cat on the left ?", "what number is on the sign ?"


def clip(number: int, frames: int, width: int, height: int, fps: float = 2.0) -> tuple[np.ndarray, dict[str, Any]]:
    """Soft blotches, over which something moves; and what vLLM and transformers are told."""
    page = np.asarray(picture(number, width, height))
    found = []
    for time in range(frames):
        frame = page.copy()
        left = 7 * time % (width - 24)
        frame[8:32, left : left + 24] = (40 * time % 256, 255 - 30 * time % 256, 90)
        found.append(frame)
    return np.stack(found), {
        "total_num_frames": frames, "fps": fps, "duration": frames / fps, "frames_indices": list(range(frames)),
        "video_backend": "opencv", "do_sample_frames": False,
    }  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A question about pictures, (number, width, height), and videos, (number, frames, width, height).

    Args:
        parts: "image", "video" or text.
    """

    parts: tuple[str, ...]
    pictures: tuple[tuple[int, int, int], ...] = ()
    clips: tuple[tuple[Any, ...], ...] = ()

    def text(self, processor: Any) -> str:
        """As the template writes it, which knows pictures alone."""
        kinds = [part for part in self.parts if part in ("image", "video")]
        content = [
            {"type": "image"} if part in ("image", "video") else {"type": "text", "text": part} for part in self.parts
        ]
        written = processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        head, *rest = written.split(processor.image_token)
        marks = {"image": processor.image_token, "video": processor.video_token}
        return head + "".join(marks[kind] + text for kind, text in zip(kinds, rest, strict=True))

    @property
    def videos(self) -> list[Any]:
        return [clip(*one) for one in self.clips]

    def prompt(self, processor: Any, asks: dict[str, Any] | None, plain: bool) -> Prompt:
        ids = processor.tokenizer(self.text(processor), add_special_tokens=False)["input_ids"]
        videos = [frames if plain else (frames, metadata) for frames, metadata in self.videos]
        return Prompt(ids, [picture(*one) for one in self.pictures], asks, videos=videos)


CASES = {
    "one": Case(("video", CARD), clips=((1, 6, 120, 90),)),
    "odd": Case((CAT, "video"), clips=((2, 7, 64, 96),)),
    "short": Case(("video", SIGN), clips=((3, 4, 96, 96),)),  # two steps of a grid
    "slow": Case(("video", CARD + " " + SIGN), clips=((1, 8, 120, 90, 0.7),)),
    "two": Case(("video", "video", SIGN), clips=((4, 6, 90, 70), (5, 10, 60, 80))),
    "mixed": Case(("image", CAT, "video", "image", CARD), ((6, 150, 90), (7, 80, 100)), ((8, 6, 100, 70),)),
}


@dataclass
class Served:
    """A family in transformers and in vLLM."""

    name: str
    folder: Path
    model: Any
    processor: Any
    engine: Engine
    known: dict[Any, Answer] = dataclasses.field(default_factory=dict)

    @property
    def cases(self) -> dict[str, Case]:
        """OneVision's processor takes videos of one length, and with several pictures vLLM cuts them and transformers
        does not."""
        if self.name != "llava_onevision":
            return CASES
        two = Case(("video", "video", SIGN), clips=((4, 6, 90, 70), (5, 6, 60, 80)))
        mixed = Case(("image", CAT, "video", CARD), ((6, 150, 90),), ((8, 6, 100, 70),))
        return {**CASES, "two": two, "mixed": mixed}

    def expected(self, case: Case, method: str | None, keep: float | int = 1.0) -> Answer:
        asked = (case, method, keep)
        if asked not in self.known:
            self.known[asked] = self._expected(*asked)
        return self.known[asked]

    def _expected(self, case: Case, method: str | None, keep: float | int) -> Answer:
        videos = case.videos
        told: dict[str, Any] = {}
        if self.name not in PLAIN:
            told["video_metadata"] = [{**metadata} for _, metadata in videos]
            for one in told["video_metadata"]:
                del one["do_sample_frames"]
        inputs = self.processor(
            images=[picture(*one) for one in case.pictures] or None, videos=[frames for frames, _ in videos],
            text=case.text(self.processor), return_tensors="pt", add_special_tokens=False, do_sample_frames=False,
            **told,
        )  # fmt: skip
        pruner = None if method is None else foveate.get_pruner(method, keep=keep)
        model = self.model
        with torch.no_grad():
            options = {
                "max_new_tokens": NEW, "do_sample": False, "eos_token_id": None, "return_dict_in_generate": True,
                "output_logits": True,
            }  # fmt: skip
            if pruner is None:
                output = model.generate(**inputs, **options)
            else:
                with pruner(model):
                    output = model.generate(**inputs, **options)
        tokens = output.sequences[0, inputs["input_ids"].shape[1] :].tolist()
        logprobs = tuple(
            float(step[0].log_softmax(-1)[token]) for step, token in zip(output.logits, tokens, strict=True)
        )
        chosen = () if pruner is None else tuple(tuple(one.indices.tolist()) for one in pruner.selections)
        return Answer(tuple(tokens), logprobs, output.past_key_values.get_seq_length() - NEW + 1, chosen)

    def ask(self, cases: list[Case], asks: dict[str, Any] | None, engine: Engine | None = None) -> list[Told]:
        prompts = [case.prompt(self.processor, asks, self.name in PLAIN) for case in cases]
        return (engine or self.engine).generate(prompts, NEW, ignore_eos=True)


def behind(input_ids: Any, mm_token_type_ids: Any, **given: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """M-RoPE positions of one prompt, by hand: after a picture or a video all that follows is behind its last place in
    any of the three dimensions."""
    grids = {kind: iter(given[name].tolist()) for kind, name in ((1, "image_grid_thw"), (2, "video_grid_thw"))
             if given.get(name) is not None}  # fmt: skip
    lengths = given.get("second_per_grid_ts")
    seconds = itertools.repeat(1.0) if lengths is None else iter([2 * float(one) for one in lengths])  # 2 tokens each
    found: list[list[int]] = []
    for kind, run in itertools.groupby(mm_token_type_ids[0].tolist()):
        first = max((max(place) for place in found), default=-1) + 1
        if kind == 0:
            found += [[first + number] * 3 for number, _ in enumerate(run)]
            continue
        steps, rows, columns = next(grids[kind])
        length = next(seconds) if kind == 2 else 1.0
        here = itertools.product(range(steps), range(rows // 2), range(columns // 2))
        found += [[first + int(time * length), first + row, first + column] for time, row, column in here]
    positions = torch.tensor(found).T[:, None]
    return positions, positions.max()[None, None] + 1 - input_ids.shape[1]


def cut(llm: Any, piece: int) -> None:
    """In the engine's process: videos are encoded, and cached, in pieces of so many tokens."""
    embedder(llm).piece = piece


def own_options(name: str) -> dict[str, Any]:
    return {"enable_prefix_caching": False, **OPTIONS} if name in WITHOUT_PREFIXES else OPTIONS


def serve(name: str, folder: Path, process: Process, **options: Any) -> Served:
    engine = process.load(folder, hf_overrides=PRUNING, **{**own_options(name), **options})
    engine.call(watch)
    engine.call(cut, PIECE)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    if name in BEHIND:
        model.model.get_rope_index = behind
    return Served(name, folder, model, AutoProcessor.from_pretrained(folder), engine)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, folders: Any, processes: dict[bool, Process]) -> Served:
    return serve(request.param, folders(request.param), processes[True])


def test_everything_kept(family: Served, processes: dict[bool, Process]) -> None:
    """At keep=1 vLLM is what it is without the plugin, and transformers."""
    cases = list(family.cases.values())
    stock = processes[False].load(family.folder, **own_options(family.name))
    # By themselves, since vLLM's OneVision ends its engine over videos of different lengths in one batch.
    without = [told for case in cases for told in family.ask([case], None, stock)]
    told = family.ask(cases, {"keep": 1.0})
    assert told == without
    assert [one.logprobs for one in told] == [pytest.approx(one.logprobs, abs=TOLERANCE, rel=0) for one in without]
    for one, case in zip(told, cases, strict=True):
        agree(one, family.expected(case, None))
    assert len({token for one in told for token in one.tokens}) > NEW  # they are not one word over and over


@pytest.mark.parametrize("method, keep", METHODS)
def test_pruned(family: Served, method: str, keep: float | int) -> None:
    """All cases in one batch: answers, their logprobs, and the very tokens that are kept."""
    family.engine.call(forget)
    cases = family.cases
    told = family.ask(list(cases.values()), {"keep": keep, "method": method})
    chosen = set()
    for one, case in zip(told, cases.values(), strict=True):
        answer = family.expected(case, method, keep)
        agree(one, answer)
        chosen |= {(method, keep, indices) for indices in answer.chosen}
        full = family.expected(case, None)
        assert full.prompt > answer.prompt
        assert max(abs(a - b) for a, b in zip(full.logprobs, one.logprobs, strict=True)) > DIFFERENCE
    assert family.engine.call(seen) == chosen
    assert len(chosen) >= len(cases)


def test_each_asks_for_itself(family: Served) -> None:
    """Budgets and methods of their own in one batch, about one video."""
    family.engine.call(forget)
    case = family.cases["one"]
    prompts = [
        case.prompt(family.processor, {"keep": keep, "method": method}, family.name in PLAIN)
        for method, keep in METHODS
    ]
    for told, (method, keep) in zip(family.engine.generate(prompts, NEW, ignore_eos=True), METHODS, strict=True):
        agree(told, family.expected(case, method, keep))


def test_further_questions(family: Served) -> None:
    """The pieces of a video are encoded once."""
    family.engine.call(forget)
    pieces = 0
    for number, question in enumerate((CARD, CAT, SIGN)):
        case = Case(("video", question), clips=CASES["slow"].clips)
        agree(*family.ask([case], {"keep": 0.2}), family.expected(case, "adafv", 0.2))  # type: ignore[call-arg]
        hits, misses = family.engine.call(lookups)
        pieces = pieces or misses
        assert misses == pieces > 1
        assert hits >= pieces * number


def test_partly_known(family: Served) -> None:
    """A video that vLLM's processor cache holds, beside one that it does not, in either order, and a picture."""
    family.engine.call(forget)
    one, other = (1, 6, 120, 90), (9, 6, 80, 100)
    asks = {"method": "evs", "keep": 0.5}  # which reads no question
    for clips, pictures in (((one,), ()), ((other, one), ()), ((one,), ((6, 150, 90),)), ((one, (10, 6, 64, 64)), ())):
        parts = (*["image"] * len(pictures), *["video"] * len(clips), CAT)
        case = Case(parts, pictures, clips)
        agree(*family.ask([case], asks), family.expected(case, "evs", 0.5))  # type: ignore[call-arg]


def test_profile(family: Served) -> None:
    """The run that memory is measured with."""
    family.engine.call(forget)
    family.engine.call(profile)
    assert {keep for _, keep, _ in family.engine.call(seen)} == {1.0}


@pytest.fixture(scope="module", params=["qwen3_vl", "llava_onevision"])
def chunked(request: pytest.FixtureRequest, folders: Any, processes: dict[bool, Process]) -> Served:
    return serve(
        request.param, folders(request.param), processes[True],
        max_num_batched_tokens=CHUNK, max_num_seqs=4, enable_chunked_prefill=True,
    )  # fmt: skip


@pytest.mark.parametrize("keep", [1.0, 0.5])
def test_chunked_prefill(chunked: Served, keep: float) -> None:
    """Chunks shorter than a video, twice: with nothing in the prefix cache, and with much. The vision tower sees no
    more than as much at once either."""
    chunked.engine.call(forget)
    # vLLM counts on fewer tokens of OneVision's pictures than it makes, and refuses them with so small a budget.
    cases = {name: case for name, case in chunked.cases.items() if name != "mixed" or chunked.name == "qwen3_vl"}
    for time in range(2):
        told = chunked.ask(list(cases.values()), {"keep": keep})
        for one, case in zip(told, cases.values(), strict=True):
            agree(one, chunked.expected(case, "adafv", keep))
            assert bool(one.cached) == (time == 1 and one.prompt > OPTIONS["block_size"])
        assert any(len(chunked.expected(case, "adafv", keep).chosen[0]) > CHUNK for case in cases.values())


@pytest.mark.parametrize("name", ["qwen3_vl", "internvl", "glm4v"])
def test_what_is_refused(name: str, folders: Any) -> None:
    """In the API server, before there is an engine: never a video that goes through unpruned."""
    front = front_of(folders(name))
    limits = front.ours.info.get_supported_mm_limits()
    token = front.processor.tokenizer.convert_tokens_to_ids(getattr(front.processor, "video_token", "<video>"))
    (frames, metadata), prompt = clip(1, 6, 96, 64), [*front.ids("<s>"), token, *front.ids(CARD)]

    def refused(items: Any, asks: dict[str, Any], **more: Any) -> str:
        with pytest.raises(ValueError, match=".") as error:
            front.ours.apply(
                ProcessorInputs(prompt, items, hf_processor_mm_kwargs={"foveate": asks}, **more),
                TimingContext(enabled=False),
            )
        return str(error.value)

    parsed = front.ours.info.data_parser.parse_mm_data({"video": [(frames, metadata)]})
    if name != "qwen3_vl":
        assert limits["video"] == 0
        with pytest.raises(ValueError, match="send frames as images"):
            front.ours.info.parse_mm_data({"video": [(frames, metadata)]})
        assert "send frames as images" in refused(parsed, {})
        return
    assert limits["video"] is None
    for asks in ({"pixels": 0.5}, {"crops": 1}):
        assert "concern pictures" in refused(parsed, asks)
    assert "0 < keep <= 1" in refused(parsed, {"keep": 1.5})
    assert "is not served here" in refused(parsed, {"method": "random"})
    embedded = {"video_embeds": torch.zeros(6, 128), "video_grid_thw": torch.tensor([[1, 4, 6]]), "timestamps": [[0.5]]}
    items = front.ours.info.data_parser.parse_mm_data({"video": embedded})
    assert "send videos" in refused(items, {})
    alone = front.ours.info.data_parser.parse_mm_data({"video": [None]})
    assert "send the" in refused(alone, {}, mm_uuid_items={"video": ["mine"]})
    prompt[:] = front.ids(CARD)
    assert "0 video placeholders for 1 video" in refused(parsed, {})
    prompt[:] = [token]
    assert "no text for a video" in refused(parsed, {})
