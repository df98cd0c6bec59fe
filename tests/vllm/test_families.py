"""Every family that serving prunes, tiny and random: vLLM's answers and choices against those of transformers."""

from __future__ import annotations

import contextlib
import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

import foveate
from foveate import serving
from tests.vllm import checkpoints
from tests.vllm.engines import Engine, Prompt, Told, embedder

NEW = 8
TOLERANCE = 1e-3
"""Between logprobs of the two libraries. Logits here are some tens wide; in float32, sums of another order over a few
layers move them by some 1e-5, at most 1e-4 (measured over all cases). Another selection moves them by more than 0.1:
``test_pruned`` checks that, so that agreement within the tolerance says something."""
DIFFERENCE = 100 * TOLERANCE
BLOCK, CHUNK = 32, 24
METHODS = [("adafv", 0.25), ("adafv", 0.1), ("adafv", 5), ("saliency", 0.1), ("visionzip", 0.25),
           ("cover", 0.2), ("merged:centered:cdpruner", 0.25)]  # fmt: skip
CHUNKED = ["llava_next-siglip", "qwen2_5_vl", "qwen3_vl", "mistral3"]
CROPPED = ["llava_next-siglip", "llava_onevision", "internvl", "idefics3", "llama4"]
VARIANTS = ["qwen3_vl_moe", "qwen3_5_moe", "glm4v_moe", "smolvlm"]
"""Whose part of serving is another family's, around another language model or under another name: less is asked."""
ONE_WAY = ["gemma3"]
"""Whose images' tokens see each other, but in vLLM on a CPU: told so, it serves them, and transformers can be told the
same."""
OPTIONS: dict[str, Any] = {
    "limit_mm_per_prompt": {"image": 3, "video": 0},
    "block_size": BLOCK,
    "num_gpu_blocks_override": 512,
    "max_model_len": 1024,
}
WITHOUT_PREFIXES = ["qwen3_5", "qwen3_5_moe"]
"""Whose linear attention vLLM computes on a CPU in bfloat16 alone, and not on every CPU: they have full attention here,
and no prefix cache, which wants layers of both kinds."""
PRUNING = serving.options(
    keep=0.25, methods=("saliency", "visionzip", "cover", "merged:centered:cdpruner"), feature_cache_mib=16
)


def picture(number: int, width: int, height: int) -> Image.Image:
    """Soft blotches of random colours; 0 is a white page with one in its lower right corner."""
    if number == 0:
        page = Image.new("RGB", (width, height), "white")
        page.paste(picture(1, width // 8, height // 8), (width - width // 8, height - height // 8))
        return page
    cells = np.random.default_rng(number).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(cells).resize((width, height), Image.Resampling.BICUBIC)


@dataclass(frozen=True)
class Case:
    """A prompt as messages; its pictures, by (number, width, height)."""

    pictures: tuple[tuple[int, int, int], ...]
    messages: tuple[tuple[str, tuple[str, ...]], ...]
    """(role, parts): a part is a text, empty for a picture."""

    @property
    def images(self) -> list[Image.Image]:
        return [picture(*one) for one in self.pictures]

    def text(self, processor: Any) -> str:
        messages = [
            {"role": role, "content": [{"type": "text", "text": part} if part else {"type": "image"} for part in parts]}
            for role, parts in self.messages
        ]
        written: str = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        return written

    def prompt(self, processor: Any, asks: dict[str, Any] | None) -> Prompt:
        ids = processor.tokenizer(self.text(processor), add_special_tokens=False)["input_ids"]
        return Prompt(ids, self.images, asks)


def user(*parts: str) -> tuple[str, tuple[str, ...]]:
    return "user", parts


CARD, CAT, SIGN = "what color is the card of the cat ?", "is there a cat on the left ?", "what number is on the sign ?"
TALK = (user("", CARD + " and how many cat of the dog ?"), ("assistant", ("red",)), user("how many dog ?"))
CASES = {
    "one": Case(((1, 300, 110),), (user("", CARD),)),
    "another": Case(((2, 77, 160),), (user("", CAT),)),
    # Of different numbers of views or patches, whatever the family
    "two": Case(((3, 90, 200), (4, 160, 150)), (user("", "", SIGN),)),
    "between": Case(((5, 333, 77), (6, 120, 120)), (user("", CAT, "", CARD),)),
    "talk": Case(((7, 280, 200),), TALK),
    "first": Case(((1, 300, 110),), (user(CARD, ""),)),
    "alone": Case(((12, 200, 250),), (user(""), ("assistant", ("a red car",)), user(SIGN))),
    "three": Case(((8, 60, 70), (9, 280, 290), (10, 130, 64)), (user("", "", "", CARD),)),
}


@dataclass(frozen=True)
class Answer:
    """What transformers says.

    Args:
        tokens, logprobs: generated ones.
        prompt: length of the prompt as the language model sees it.
        chosen: what was kept of every picture.
    """

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    prompt: int
    chosen: tuple[tuple[int, ...], ...]


@dataclass
class Served:
    """A family in transformers and in vLLM."""

    name: str
    folder: Path
    model: Any
    processor: Any
    engine: Engine
    known: dict[Any, Answer] = dataclasses.field(default_factory=dict)

    def expected(self, case: Case, method: str | None, keep: float | int = 1.0, crops: Any = None) -> Answer:
        asked = (case, method, keep, crops)
        if asked not in self.known:
            self.known[asked] = self._expected(*asked)
        return self.known[asked]

    def _expected(self, case: Case, method: str | None, keep: float | int, crops: Any) -> Answer:
        inputs = self.processor(
            images=case.images, text=case.text(self.processor), return_tensors="pt", add_special_tokens=False
        )
        inputs = inputs.to(self.model.dtype)  # Llama 4's processor makes pixels in bfloat16
        if self.name in ONE_WAY:
            inputs["token_type_ids"] = torch.zeros_like(inputs["input_ids"])
        pruner: Any = None
        attached: Any = contextlib.nullcontext()
        if method is not None:
            pruner = foveate.get_pruner(method, keep=keep)
            attached = pruner(self.model, crops=crops)
        with torch.no_grad(), attached:
            output = self.model.generate(
                **inputs, max_new_tokens=NEW, do_sample=False, eos_token_id=None,
                return_dict_in_generate=True, output_logits=True,
            )  # fmt: skip
        tokens = output.sequences[0, inputs["input_ids"].shape[1] :].tolist()
        logprobs = tuple(
            float(step[0].log_softmax(-1)[token]) for step, token in zip(output.logits, tokens, strict=True)
        )
        chosen = () if pruner is None else tuple(tuple(one.indices.tolist()) for one in pruner.selections)
        return Answer(tuple(tokens), logprobs, output.past_key_values.get_seq_length() - NEW + 1, chosen)

    def ask(self, cases: list[Case], asks: dict[str, Any] | None, engine: Engine | None = None) -> list[Told]:
        prompts = [case.prompt(self.processor, asks) for case in cases]
        return (engine or self.engine).generate(prompts, NEW, ignore_eos=True)


def agree(told: Told, answer: Answer) -> None:
    assert (told.prompt, told.tokens) == (answer.prompt, answer.tokens)
    assert told.logprobs == pytest.approx(answer.logprobs, abs=TOLERANCE, rel=0)


# In the engine's process:


def watch(llm: Any) -> None:
    """From now on keeps what is chosen."""
    ours = embedder(llm)
    ours.seen = []
    choose = ours._choose

    def noted(image: Any, request: Any, text: Any) -> Any:
        features, selection = choose(image, request, text)
        ours.seen.append((ours.policy.names[request.method], request.keep.value, tuple(selection.indices.tolist())))
        return features, selection

    ours._choose = noted


def seen(llm: Any) -> set[Any]:
    """What was chosen since the last time: (method, keep, indices)."""
    ours = embedder(llm)
    found = set(ours.seen)
    ours.seen.clear()
    return found


def forget(llm: Any, mib: int | None = None) -> None:
    """Empties every cache, and gives the features' another size."""
    from foveate.serving.features import FeatureCache

    assert llm.reset_prefix_cache()
    llm.llm_engine.reset_encoder_cache()
    llm.reset_mm_cache()
    ours = embedder(llm)
    ours.forget()
    ours.seen.clear()
    if mib is not None:
        ours.cache = FeatureCache(mib << 20, ours.device)
    ours.cache.hits = ours.cache.misses = 0
    ours.counters.values[:] = 0


def lookups(llm: Any) -> tuple[int, int]:
    """(hits, misses) of the features' cache."""
    return embedder(llm).cache.hits, embedder(llm).cache.misses


def count_views(llm: Any) -> tuple[int, int]:
    """Views that were encoded and found encoded since the last ``forget``, for requests that choose among crops."""
    from foveate.serving.metrics import WORKER

    values = dict(zip(WORKER, embedder(llm).counters.values.tolist(), strict=True))
    return int(values["views_encoded"]), int(values["views_cached"])


def break_next(llm: Any) -> None:
    """The next pictures' saliency is no number."""
    ours = embedder(llm)
    encode = ours._encode

    def broken(*args: Any) -> Any:
        ours._encode = encode
        return [
            dataclasses.replace(
                image, tokens=dataclasses.replace(image.tokens, saliency=image.tokens.saliency * np.nan)
            )
            for image in encode(*args)
        ]

    ours._encode = broken


def forget_indices(llm: Any) -> None:
    """Of M-RoPE: what was chosen is worked out again."""
    embedder(llm)._indices.clear()


def mend(llm: Any) -> None:
    """vLLM's Llama 4 hands its own product for CPUs rows that are columns when it encodes one tile alone, which that
    refuses, pruned or not: the engine ends."""
    runner = llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker.model_runner
    for module in runner.model.modules():
        if type(module).__name__ == "Llama4UnfoldConvolution":
            module.linear.register_forward_pre_hook(lambda _, given: (given[0].contiguous(), *given[1:]))


def profile(llm: Any) -> None:
    """vLLM's own run with the largest pictures that it may get, which it leaves out where nothing is compiled."""
    llm.collective_rpc(_profile)


def _profile(worker: Any) -> None:
    worker.model_runner.profile_run()


# Shared by the tests of this file, one engine after another in one process each:


class Process:
    """One process, whatever engine it holds."""

    def __init__(self, plugin: bool) -> None:
        self.plugin = plugin
        self.engine: Engine | None = None

    def load(self, folder: Path, **options: Any) -> Engine:
        if self.engine is None:
            self.engine = Engine(str(folder), plugin=self.plugin, **{**OPTIONS, **options})
        else:
            self.engine.load(str(folder), **{**OPTIONS, **options})
        return self.engine


def own_options(name: str) -> dict[str, Any]:
    """Of ``LLM``, for one family alone."""
    return {"enable_prefix_caching": False} if name in WITHOUT_PREFIXES else {}


def serve(name: str, folder: Path, process: Process, **options: Any) -> Served:
    overrides = {**PRUNING, "is_mm_prefix_lm": False} if name in ONE_WAY else PRUNING
    engine = process.load(folder, hf_overrides=overrides, **own_options(name), **options)
    engine.call(watch)
    engine.call(mend)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    return Served(name, folder, model, AutoProcessor.from_pretrained(folder), engine)


@pytest.fixture(scope="module", params=[name for name in checkpoints.FAMILIES if name not in VARIANTS])
def family(request: pytest.FixtureRequest, folders: Any, processes: dict[bool, Process]) -> Served:
    return serve(request.param, folders(request.param), processes[True])


@pytest.fixture(scope="module", params=VARIANTS)
def variant(request: pytest.FixtureRequest, folders: Any, processes: dict[bool, Process]) -> Served:
    if request.param == "smolvlm":
        pytest.importorskip("num2words", reason="SmolVLM's processor wants it, for videos")
    return serve(request.param, folders(request.param), processes[True])


def test_everything_kept(family: Served, processes: dict[bool, Process]) -> None:
    everything_kept(family, processes)


def test_variants(variant: Served, processes: dict[bool, Process]) -> None:
    everything_kept(variant, processes)
    for method, keep in METHODS[:2]:
        pruned(variant, method, keep)


def everything_kept(family: Served, processes: dict[bool, Process]) -> None:
    """At keep=1 vLLM is what it is without the plugin, and transformers."""
    cases = list(CASES.values())
    stock = processes[False].load(family.folder, **own_options(family.name))
    stock.call(mend)
    without = family.ask(cases, None, stock)
    told = family.ask(cases, {"keep": 1.0})
    assert told == without
    assert [one.logprobs for one in told] == [pytest.approx(one.logprobs, abs=TOLERANCE, rel=0) for one in without]
    for one, case in zip(told, cases, strict=True):
        agree(one, family.expected(case, None))
    assert len({token for one in told for token in one.tokens}) > NEW  # they are not one word over and over


@pytest.mark.parametrize("method, keep", METHODS)
def test_pruned(family: Served, method: str, keep: float | int) -> None:
    pruned(family, method, keep)


def pruned(family: Served, method: str, keep: float | int) -> None:
    """All cases in one batch: answers, their logprobs, and the very tokens that are kept."""
    family.engine.call(forget)
    told = family.ask(list(CASES.values()), {"keep": keep, "method": method})
    chosen, by_case = set(), {}
    for one, (name, case) in zip(told, CASES.items(), strict=True):
        answer = family.expected(case, method, keep)
        agree(one, answer)
        by_case[name] = answer.chosen
        chosen |= {(method, keep, indices) for indices in answer.chosen}
        full = family.expected(case, None)
        assert full.prompt > answer.prompt
        assert max(abs(a - b) for a, b in zip(full.logprobs, one.logprobs, strict=True)) > DIFFERENCE
    assert family.engine.call(seen) == chosen
    assert by_case["first"] == by_case["one"]  # wherever the question stands
    assert len(chosen) > len(CASES)  # one for each picture, where not two small ones keep the same


CROPS = [("adafv", 0.1, 0.5), ("cover", 0.1, 1), ("saliency", 0.1, "0.5:by=text"), ("visionzip", 4, "auto:share=0.5"),
         ("merged:centered:cdpruner", 0.1, "2:by=saliency"), ("adafv", 0.1, "1:by=random")]  # fmt: skip


@pytest.fixture
def cropped(family: Served) -> Served:
    if family.name not in CROPPED:
        pytest.skip("it cuts no picture into crops")
    return family


@pytest.mark.parametrize("method, keep, crops", CROPS)
def test_crops(cropped: Served, method: str, keep: float | int, crops: Any) -> None:
    """As with transformers, the base view and some crops are encoded, and tokens are chosen among theirs."""
    cropped.engine.call(forget)
    asks = {"keep": keep, "method": method, "crops": crops}
    chosen = set()
    for one, case in zip(cropped.ask(list(CASES.values()), asks), CASES.values(), strict=True):
        answer = cropped.expected(case, method, keep, crops)
        agree(one, answer)
        chosen |= {(method, keep, indices) for indices in answer.chosen}
    assert cropped.engine.call(seen) == chosen
    whole = {(method, keep, one) for case in CASES.values() for one in cropped.expected(case, method, keep).chosen}
    assert chosen != whole  # it makes a difference


def test_crops_are_encoded_once(cropped: Served) -> None:
    """A second question about a picture encodes what the first did not need, and a third nothing any more."""
    cropped.engine.call(forget)
    views = cropped.engine.call(count_views)
    assert views == (0, 0)
    pictures = CASES["one"].pictures
    crops = 0
    for number, question in enumerate((CARD, CAT, SIGN, CARD + " " + SIGN)):
        case = Case(pictures, (user("", question),))
        agree(*cropped.ask([case], {"keep": 0.1, "crops": 1}), cropped.expected(case, "adafv", 0.1, 1))  # type: ignore[call-arg]
        encoded, cached = cropped.engine.call(count_views)
        assert encoded <= 2 + number  # the base view, and a crop a question at most
        assert (cached > 0) == (number > 0)
        crops = encoded
    assert crops >= 2
    case = Case(pictures, (user("", SIGN + " " + CARD),))
    agree(*cropped.ask([case], {"keep": 0.1, "crops": "all"}), cropped.expected(case, "adafv", 0.1))  # type: ignore[call-arg]


def test_crops_that_are_alike_are_encoded_once(cropped: Served) -> None:
    page = Case(((0, 333, 333),), (user("", CARD),))
    views = cropped.processor(images=page.images, text=page.text(cropped.processor), return_tensors="pt")[
        "pixel_values"
    ]
    views = views.flatten(0, -4)
    distinct = {view.float().numpy().tobytes() for view in views}
    assert len(distinct) < len(views)
    for keep in (0.25, 1.0):
        cropped.engine.call(forget)
        agree(*cropped.ask([page], {"keep": keep, "crops": "distinct"}), cropped.expected(page, "adafv", keep))  # type: ignore[call-arg]
        assert cropped.engine.call(count_views) == (len(distinct), 0)
    for one, case in zip(cropped.ask(list(CASES.values()), {"crops": "distinct"}), CASES.values(), strict=True):
        agree(one, cropped.expected(case, "adafv", 0.25))


def test_more_tokens_than_crops(cropped: Served) -> None:
    """A budget that may exceed what is encoded is refused: the prompt is laid out before."""
    with pytest.raises(RuntimeError, match="may be encoded"):
        cropped.ask([CASES["one"]], {"keep": 0.9, "crops": 1})


def test_no_crops_to_choose_from(family: Served) -> None:
    if family.name in CROPPED:
        pytest.skip("it has crops")
    with pytest.raises(RuntimeError, match="does not cut a picture into crops"):
        family.ask([CASES["one"]], {"keep": 0.2, "crops": 0.5})


def test_profile(family: Served) -> None:
    """The run that memory is measured with: vLLM checks the tokens of dummy pictures against what it counted on."""
    family.engine.call(forget)
    family.engine.call(profile)
    chosen = family.engine.call(seen)
    assert chosen
    assert {keep for _, keep, _ in chosen} == {1.0}  # the most that a request may ask for


@pytest.mark.parametrize("mib", [16, 0])
def test_further_questions(family: Served, mib: int) -> None:
    """About the same pictures, encoded once where they are remembered, and each time where they are not."""
    family.engine.call(forget, mib)
    for number, question in enumerate((CARD, CAT, SIGN)):
        for name in ("one", "two"):
            pictures = CASES[name].pictures
            case = Case(pictures, (user(*[""] * len(pictures), question),))
            agree(*family.ask([case], {"keep": 0.2}), family.expected(case, "adafv", 0.2))  # type: ignore[call-arg]
        hits, misses = family.engine.call(lookups)
        if mib:
            assert misses == 3
            assert hits >= 3 * number  # with M-RoPE twice as many: once for the positions
        else:
            assert hits == 0
            assert misses >= 3 * (number + 1)
    family.engine.call(forget, 16)


def test_prefix_cache(family: Served) -> None:
    """A later turn finds the first one's image in the prefix cache; another question does not."""
    if family.name in WITHOUT_PREFIXES:
        pytest.skip("it has no prefix cache here")
    family.engine.call(forget)
    (first,) = family.ask([Case(CASES["talk"].pictures, TALK[:1])], {"keep": 0.75})
    (second,) = family.ask([CASES["talk"]], {"keep": 0.75})
    agree(second, family.expected(CASES["talk"], "adafv", 0.75))
    assert first.cached == 0
    assert second.cached >= first.prompt // BLOCK * BLOCK > 0
    family.engine.call(forget_indices)
    (again,) = family.ask([CASES["talk"]], {"keep": 0.75})
    assert again.cached >= second.cached
    agree(again, family.expected(CASES["talk"], "adafv", 0.75))
    other = Case(CASES["talk"].pictures, (user("", SIGN), *TALK[1:]))
    (fresh,) = family.ask([other], {"keep": 0.75})
    assert fresh.cached == 0
    agree(fresh, family.expected(other, "adafv", 0.75))


def test_broken_picture(family: Served) -> None:
    """Scores that are no numbers end no engine: the picture's tokens are taken evenly, and the next one is as ever."""
    family.engine.call(forget)
    family.engine.call(break_next)
    agree(*family.ask([CASES["one"]], {"keep": 0.3}), family.expected(CASES["one"], "uniform", 0.3))  # type: ignore[call-arg]
    agree(*family.ask([CASES["two"]], {"keep": 0.3}), family.expected(CASES["two"], "adafv", 0.3))  # type: ignore[call-arg]


@pytest.mark.parametrize("size", [(2, 900), (900, 2)])
def test_thin_pictures(family: Served, size: tuple[int, int]) -> None:
    """Such that unpadding leaves nothing of their crops."""
    if family.name.startswith(("qwen", "glm", "mistral3")):
        pytest.skip("their own processors take no picture so many times as long as wide")
    case = Case(((11, *size),), (user("", CARD),))
    for keep in (1.0, 0.3):
        agree(*family.ask([case], {"keep": keep}), family.expected(case, "adafv", keep))  # type: ignore[call-arg]


@pytest.fixture(scope="module", params=CHUNKED)
def chunked(request: pytest.FixtureRequest, folders: Any, processes: dict[bool, Process]) -> Served:
    return serve(
        request.param, folders(request.param), processes[True],
        max_num_batched_tokens=CHUNK, max_num_seqs=4, enable_chunked_prefill=True,
    )  # fmt: skip


@pytest.mark.parametrize("keep", [1.0, 0.5])
def test_chunked_prefill(chunked: Served, keep: float) -> None:
    """Chunks that end inside images, twice: with nothing in the prefix cache, and with much."""
    chunked.engine.call(forget)
    for time in range(2):
        told = chunked.ask(list(CASES.values()), {"keep": keep})
        for one, case in zip(told, CASES.values(), strict=True):
            assert one.prompt > CHUNK or keep < 1
            agree(one, chunked.expected(case, "adafv", keep))
            assert bool(one.cached) == (time == 1 and one.prompt > BLOCK)
        if not time:
            assert any(one.prompt > CHUNK for one in told)
