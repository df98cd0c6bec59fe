"""vLLM's own options beside pruning: chunked prefill, LoRA and preemption in one small engine; what is refused."""

from __future__ import annotations

import copy
import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoProcessor
from vllm.config import CompilationConfig, LoRAConfig, MultiModalConfig, ParallelConfig

from foveate import bundled, serving
from foveate.serving import hooks
from tests.vllm.engines import Engine, Prompt, embedder
from tests.vllm.pictures import asked, ids_of, keeping, reference

CHUNK = 48
BLOCKS = 24
RANK = 4


@pytest.fixture(scope="module")
def stock():
    return bundled.load()[0], AutoProcessor.from_pretrained(bundled.path(), local_files_only=True)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory, stock):
    """A LoRA adapter of the language model with random weights, as PEFT writes it, and the model with it merged."""
    folder = tmp_path_factory.mktemp("adapter")
    merged = copy.deepcopy(stock[0])
    draw = torch.Generator().manual_seed(0)
    weights = {}
    for name, module in merged.named_modules():
        if name.startswith("model.language_model.layers") and name.endswith(("q_proj", "v_proj", "o_proj")):
            rows, columns = module.weight.shape
            down = torch.randn(RANK, columns, generator=draw) / columns**0.5
            up = torch.randn(rows, RANK, generator=draw) * 3
            weights[f"base_model.model.{name}.lora_A.weight"] = down
            weights[f"base_model.model.{name}.lora_B.weight"] = up
            module.weight.data += up @ down
    save_file(weights, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": RANK, "bias": "none",
        "target_modules": ["q_proj", "v_proj", "o_proj"],
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return str(folder), merged


@pytest.fixture(scope="module")
def small():
    """Prompts go in chunks shorter than an image; a few requests fill the KV cache; adapters are on."""
    started = Engine(
        str(bundled.path()), hf_overrides=serving.options(keep=0.5), max_num_batched_tokens=CHUNK, max_num_seqs=8,
        num_gpu_blocks_override=BLOCKS, block_size=32, max_model_len=512, enable_prefix_caching=True,
        enable_lora=True, max_lora_rank=8, max_loras=2, disable_log_stats=False,
    )  # fmt: skip
    yield started
    started.close()


def preemptions(llm):
    return sum(metric.value for metric in llm.get_metrics() if metric.name == "vllm:num_preemptions")


def test_chunks_shorter_than_an_image(small, stock):
    for picture, question in asked(4, seed=21):
        for keep in (1.0, 0.5):
            (told,) = small.generate([Prompt(ids_of(stock[1], question), [picture], {"keep": keep})])
            assert told.prompt > 2 * CHUNK
            assert (told.tokens, told.prompt) == reference(*stock, [picture], question, keeping("adafv", keep))


def test_adapters(small, stock, adapter):
    """Requests with and without an adapter in one batch, about the same pictures."""
    folder, merged = adapter
    scenes = list(asked(4, seed=22))
    prompts, expected = [], []
    for picture, question in scenes:
        for lora, model in ((None, stock[0]), (folder, merged)):
            prompts.append(Prompt(ids_of(stock[1], question), [picture], {"keep": 0.25}, lora=lora))
            expected.append(reference(model, stock[1], [picture], question, keeping("adafv", 0.25)))
    told = small.generate(prompts)
    assert [(one.tokens, one.prompt) for one in told] == expected
    assert any(one.tokens != other.tokens for one, other in zip(told[::2], told[1::2], strict=True))


def test_preempted_requests_come_back_right(small, stock):
    """More requests than the KV cache holds, with long answers: some are thrown out and start again."""
    before = small.call(preemptions)
    scenes = list(asked(8, seed=23))
    prompts = [Prompt(ids_of(stock[1], question), [picture], {"keep": 0.5}) for picture, question in scenes]
    told = small.generate(prompts, tokens=100, ignore_eos=True)
    assert small.call(preemptions) > before
    for one, (picture, question) in zip(told, scenes, strict=True):
        tokens, length = reference(*stock, [picture], question, keeping("adafv", 0.5))
        assert (one.tokens[: len(tokens)], one.prompt) == (tokens, length)
        (alone,) = small.generate([Prompt(ids_of(stock[1], question), [picture], {"keep": 0.5})], 100, ignore_eos=True)
        assert one.tokens == alone.tokens


def overflow(llm, broken):
    """Makes every feature of a picture NaN, or mends it; nothing that was encoded is remembered."""
    worker = llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker
    bias = worker.model_runner.model.multi_modal_projector.linear_2.bias
    if broken:
        overflow.bias = bias.data.clone()
        bias.data.fill_(float("nan"))
    else:
        bias.data.copy_(overflow.bias)
    embedder(llm).forget()


def test_scores_that_are_no_numbers_do_not_end_the_engine(small, stock):
    (picture, question), (other, asks) = asked(2, seed=25)
    small.call(overflow, True)
    (told,) = small.generate([Prompt(ids_of(stock[1], question), [picture], {"keep": 0.25})], tokens=2)
    small.call(overflow, False)
    assert told.prompt == reference(*stock, [picture], question, keeping("adafv", 0.25))[1]
    (told,) = small.generate([Prompt(ids_of(stock[1], asks), [other], {"keep": 0.25})])
    assert (told.tokens, told.prompt) == reference(*stock, [other], asks, keeping("adafv", 0.25))


def profiled(llm):
    """What vLLM's memory measurement has the vision tower encode: visual tokens per call, and what is kept of an image;
    what it may at most; and what the feature cache holds afterwards."""
    runner = llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker.model_runner
    ours, calls = embedder(llm), []
    ours.forget()
    encode = ours._encode
    ours._encode = lambda stock, plain, places, batches: (
        calls.append([batches.sizes(plain)[place] for place in places]) or encode(stock, plain, places, batches)
    )
    outputs = []
    embed = runner.model.embed_multimodal
    runner.model.embed_multimodal = lambda **given: outputs.append(embed(**given)) or outputs[-1]
    try:
        runner.profile_run()
    finally:
        del ours._encode, runner.model.embed_multimodal
    return calls, [len(one) for output in outputs for one in output], ours.most, ours.cache.used


def test_memory_is_measured_with_the_largest_budget(small):
    calls, kept, most, used = small.call(profiled)
    largest = 64 * 4 + 64  # the views of the bundled model's largest canvas, and the whole picture
    assert {size for call in calls for size in call} == {largest}
    assert all(sum(call) <= max(most, largest) for call in calls)
    assert set(kept) == {largest + 16}  # all tokens, the newlines of sixteen rows too: max_keep is 1
    assert used == 0


def what_runs(llm):
    """The classes of the model and of the processor."""
    worker = llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker
    processor = llm.llm_engine.renderer.get_mm_processor()
    return [f"{type(one).__module__}.{type(one).__name__}" for one in (worker.model_runner.model, processor)]


def test_off_is_as_without_the_plugin(stock):
    """Without the option the stock classes are made, and answers, their chances included, are the same numbers."""
    scenes = list(asked(6, seed=24))
    prompts = [Prompt(ids_of(stock[1], question), [picture]) for picture, question in scenes]
    told, classes = [], []
    for plugin in (True, False):
        engine = Engine(str(bundled.path()), plugin=plugin)
        try:
            told.append(engine.generate(prompts))
            classes.append(engine.call(what_runs))
        finally:
            engine.close()
    assert told[0] == told[1]
    assert [one.logprobs for one in told[0]] == [one.logprobs for one in told[1]]
    assert classes[0] == classes[1]
    assert all(name.startswith("vllm.") for name in classes[0])


def test_a_configuration_that_is_refused():
    options = {**serving.options(), "vision_feature_select_strategy": "full"}
    with pytest.raises(RuntimeError, match="set it to 'default' in the model's config"):
        Engine(str(bundled.path()), hf_overrides=options)


@pytest.mark.parametrize(
    ("change", "rope", "error"),
    [
        ({"model_config.multimodal_config.mm_encoder_tp_mode": "data"}, False, "use 'weights'"),
        ({"model_config.multimodal_config.video_pruning_rate": 0.5}, True, "video_pruning_rate"),
        ({"model_config.runner_type": "pooling"}, False, "makes no text"),
        ({"compilation_config.compile_mm_encoder": True}, False, "leave it off"),
        ({"compilation_config.cudagraph_mm_encoder": True}, True, "leave it off"),
        ({"lora_config.enable_tower_connector_lora": True}, False, "leave it off"),
        ({"parallel_config.pipeline_parallel_size": 2}, True, "use tensor parallelism"),
    ],
)
def test_engine_options_that_are_refused(change, rope, error):
    config = _engine_config()
    assert hooks.unhonoured(config, rope=rope) is None
    for path, value in change.items():
        *folders, name = path.split(".")
        place = config
        for folder in folders:
            place = getattr(place, folder)
        assert hasattr(place, name)  # vLLM's own, not one that nobody reads
        setattr(place, name, value)
    assert error in hooks.unhonoured(config, rope=rope)


def test_pipelines_are_refused_for_m_rope_alone():
    config = _engine_config()
    config.parallel_config.pipeline_parallel_size = 2
    assert hooks.unhonoured(config, rope=False) is None


def _engine_config():
    """Real configs of vLLM's, as far as they can be made without an engine."""
    return SimpleNamespace(
        model_config=SimpleNamespace(runner_type="generate", multimodal_config=MultiModalConfig()),
        parallel_config=ParallelConfig(), compilation_config=CompilationConfig(), lora_config=LoRAConfig(),
    )  # fmt: skip
