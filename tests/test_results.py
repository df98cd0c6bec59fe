"""Results belong to the call that made them, whoever else uses the pruner, the model or the session meanwhile."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

import foveate
from tests import checkpoint
from tests.tiny import ROWS, SILENT, prompts

NEW: dict[str, Any] = {"max_new_tokens": 3, "do_sample": False, "suppress_tokens": SILENT}


def at_once(*work: Callable[[], None]) -> None:
    """Runs all in threads of their own that start together; raises what any of them raised."""
    barrier = threading.Barrier(len(work))
    errors: list[BaseException] = []

    def run(one: Callable[[], None]) -> None:
        try:
            barrier.wait(timeout=60)
            one()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(one,)) for one in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def indices(selections: Sequence[foveate.Selection]) -> list[list[int]]:
    return [one.indices.tolist() for one in selections]


@pytest.mark.parametrize("method", ["adafv", "visionzip"])
def test_answers_of_threads_that_share_a_pruner(method: str) -> None:
    session = foveate.look(checkpoint.model(), checkpoint.processor(), Image.effect_noise((110, 70), 90).convert("RGB"))
    shared = foveate.get_pruner(method, keep=0.2)
    questions = ["is there a cat?", "what color is the sign?"]
    alone = {
        one: indices(session.ask(one, foveate.get_pruner(method, keep=0.2), **NEW).selections) for one in questions
    }
    assert method != "adafv" or alone[questions[0]] != alone[questions[1]]

    def work(question: str) -> Callable[[], None]:
        def run() -> None:
            for _ in range(10):
                assert indices(session.ask(question, shared, **NEW).selections) == alone[question]

        return run

    at_once(*map(work, questions))
    assert indices(shared.selections) in alone.values()


def test_plain_calls_of_threads_that_share_an_attachment() -> None:
    """handle.selections are this thread's; two models' handles do not mix either."""
    row = ROWS["llava_next-clip"]
    model = row.make("sdpa")
    several = [prompts(row, model, "several"), prompts(row, model, "one"), prompts(row, model, "mixed")]
    other_row = ROWS["qwen2_5_vl"]
    other = other_row.make("sdpa")
    other_inputs = prompts(other_row, other, "one")
    pruner = foveate.AdaFV(keep=0.3)
    alone = []
    for inputs in several:
        with pruner(model) as handle:
            model.generate(**inputs, **NEW)
            alone.append(indices(handle.selections))
    assert len({len(one) for one in alone}) == 3
    with pruner(model) as handle, foveate.Saliency(keep=2)(other) as second:

        def work(number: int) -> Callable[[], None]:
            def run() -> None:
                for _ in range(6):
                    model.generate(**several[number], **NEW)
                    other.generate(**other_inputs, **NEW)
                    assert indices(handle.selections) == alone[number]
                    assert [len(one) for one in second.selections] == [2]

            return run

        at_once(*map(work, range(3)))
        # This thread made none: it sees the last of all.
        assert indices(handle.selections) == indices(pruner.selections)
        assert indices(handle.selections) in alone


def test_selections_of_tasks() -> None:
    row = ROWS["llava_next-clip"]
    model = row.make("sdpa")
    batches = [prompts(row, model, "several"), prompts(row, model, "one")]

    async def work(handle: foveate.Attachment, inputs: dict[str, Tensor], images: int) -> None:
        for _ in range(3):
            model.generate(**inputs, **NEW)
            await asyncio.sleep(0)  # the other one calls now
            assert len(handle.selections) == images

    async def both() -> None:
        with foveate.Saliency(keep=0.3)(model) as handle:
            await asyncio.gather(work(handle, batches[0], 2), work(handle, batches[1], 1))

    asyncio.run(both())


def test_the_pruner_mirrors_the_last_call() -> None:
    row = ROWS["llava-clip"]
    model = row.make("sdpa")
    pruner = foveate.Saliency(keep=3)
    with pruner(model) as handle:
        for batch, images in (("several", 2), ("one", 1), ("mixed", 3)):
            inputs = prompts(row, model, batch)
            model.generate(**inputs, **NEW)
            assert handle.selections is pruner.selections
            assert len(pruner.selections) == images
            with torch.no_grad():
                model(**inputs)
            assert handle.selections is pruner.selections
        kept = handle.selections
        foveate.generate(model, pruner, **prompts(row, model, "one"), **NEW)
        assert pruner.selections is kept and handle.selections is kept
    assert handle.selections is kept


def everyone(row: Any, model: Any) -> list[tuple[foveate.Pruner, dict[str, Any]]]:
    """Eight pruners with prompts and options of their own."""
    one, several, mixed = (prompts(row, model, batch) for batch in ("one", "several", "mixed"))
    return [
        (foveate.AdaFV(keep=2), mixed),
        (foveate.Saliency(keep=7), mixed),
        (foveate.VisionZip(keep=0.4), several),
        (foveate.FastV(keep=0.6, layer=1), mixed),
        (foveate.CDPruner(keep=0.3), one),
        (foveate.Uniform(keep=1.0), several),
        (foveate.AdaFV(keep=0.3), {**one, "num_beams": 2}),
        (foveate.PruMerge(keep=0.5), several),
    ]


@pytest.mark.parametrize("name", ["llava_next-clip", "qwen2_5_vl"])
def test_eight_threads_with_pruners_of_their_own(name: str) -> None:
    """Each as alone, and model.generate meanwhile is the bare model: nobody attached anything."""
    row = ROWS[name]
    model = row.make("sdpa")
    cases = everyone(row, model)
    alone = [foveate.generate(model, pruner, **inputs, **NEW) for pruner, inputs in cases]
    inputs = prompts(row, model, "mixed")
    bare = model.generate(**inputs, **NEW)
    with torch.no_grad():
        logits = model(**inputs).logits
    assert not torch.equal(alone[0].output, alone[1].output)

    def work(number: int) -> Callable[[], None]:
        def run() -> None:
            pruner, given = cases[number]
            for _ in range(3):
                got = foveate.generate(model, pruner, **given, **NEW)
                assert torch.equal(got.output, alone[number].output)
                assert indices(got.selections) == indices(alone[number].selections)
                assert got.visual_tokens == alone[number].visual_tokens
                assert got.prompt_tokens == alone[number].prompt_tokens
                assert got.tokens_per_layer == alone[number].tokens_per_layer

        return run

    def plain() -> None:
        for _ in range(3):
            assert torch.equal(model.generate(**inputs, **NEW), bare)
            with torch.no_grad():
                assert torch.equal(model(**inputs).logits, logits)
                model.model(**inputs)  # not refused: this thread has no pruner

    at_once(*map(work, range(8)), plain)
    assert all(pruner.selections == [] for pruner, _ in cases)
    assert "generate" not in vars(model)


def test_beside_an_attachment_and_a_session() -> None:
    """Stateless calls, an attached thread, one that uses this only attachment, and a session, all at once."""
    model = checkpoint.model()
    row = ROWS["llava_next-clip"]
    inputs = prompts(row, model, "mixed")
    cases = everyone(row, model)[:3]
    session = foveate.look(model, checkpoint.processor(), Image.new("RGB", (90, 60), "blue"))
    answer = session.ask("is there a dog?", foveate.AdaFV(keep=0.3), **NEW)
    alone = [foveate.generate(model, pruner, **given, **NEW).output for pruner, given in cases]
    attached = foveate.Saliency(keep=4)
    with attached(model):
        pruned = model.generate(**inputs, **NEW)
    ready, done = threading.Event(), threading.Event()
    finished = threading.Semaphore(0)

    def stateless(number: int) -> Callable[[], None]:
        def run() -> None:
            pruner, given = cases[number]
            for _ in range(4):
                assert torch.equal(foveate.generate(model, pruner, **given, **NEW).output, alone[number])
            finished.release()

        return run

    def attaching() -> None:
        with attached(model) as handle:
            ready.set()
            for _ in range(4):
                assert torch.equal(model.generate(**inputs, **NEW), pruned)
                assert [len(one) for one in handle.selections] == [4, 4, 4]
            done.wait(timeout=60)

    def worker() -> None:
        try:
            ready.wait(timeout=60)
            for _ in range(4):
                assert torch.equal(model.generate(**inputs, **NEW), pruned)
            for _ in range(4):
                assert finished.acquire(timeout=60)
        finally:
            done.set()

    def asking() -> None:
        for _ in range(4):
            got = session.ask("is there a dog?", foveate.AdaFV(keep=0.3), **NEW)
            assert torch.equal(got.sequence, answer.sequence)
            assert indices(got.selections) == indices(answer.selections)
        finished.release()

    at_once(*map(stateless, range(3)), attaching, worker, asking)
    assert "generate" not in vars(model)


def test_async_tasks_with_stateless_calls() -> None:
    row = ROWS["llava-clip"]
    model = row.make("sdpa")
    cases = [(foveate.Saliency(keep=count), prompts(row, model, "mixed")) for count in (2, 5, 9)]
    alone = [foveate.generate(model, pruner, **given, **NEW).output for pruner, given in cases]

    async def all_of_them() -> list[foveate.Generated]:
        return await asyncio.gather(
            *(asyncio.to_thread(foveate.generate, model, pruner, **given, **NEW) for pruner, given in cases)
        )

    for got, wanted, (pruner, _) in zip(asyncio.run(all_of_them()), alone, cases, strict=True):
        assert torch.equal(got.output, wanted)
        assert {len(one) for one in got.selections} == {pruner.keep}
