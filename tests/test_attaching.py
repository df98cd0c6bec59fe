"""Attaching is all or nothing, belongs to a thread or task, and leaves nothing behind, whatever happens meanwhile."""

from __future__ import annotations

import asyncio
import copy
import gc
import linecache
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from PIL import Image
from torch import nn
from transformers import TextIteratorStreamer

import foveate
from tests import checkpoint
from tests.test_attach import fingerprint as everything_on
from tests.tiny import BOS, ROWS, SILENT, prompts

NEW: dict[str, Any] = {"max_new_tokens": 3, "do_sample": False, "suppress_tokens": SILENT}
HOME = Path(foveate.__file__).parent
WATCHED = {
    *(str(HOME / f"{name}.py") for name in ("attachment", "instrumented", "patches", "options", "turns")),
    *map(str, (HOME / "models").glob("*.py")),
    *map(str, (HOME / "inside").glob("*.py")),
}


def fresh(name: str) -> Any:
    """A model of one's own, that has generated before (stock leaves something on some models)."""
    row = ROWS[name]
    model = copy.deepcopy(row.make("sdpa"))
    model.generate(**prompts(row, model, "one"), **NEW)
    return model


def fingerprint(model: Any) -> Any:
    """The identity of everything on a model's modules, apart from what stock generate leaves there itself."""
    found = everything_on(model)
    for one in found.values():
        one.pop("rope_deltas", None)
    return found


def in_a_thread(work: Callable[[], Any]) -> Any:
    """What a function gives in a thread of its own; what it raises is raised."""
    found: list[Any] = []

    def run() -> None:
        try:
            found.append(work())
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=run, name="elsewhere")
    thread.start()
    thread.join(timeout=60)
    assert found, "the thread hangs"
    if isinstance(found[0], BaseException):
        raise found[0]
    return found[0]


# Failures on the way.


class Interruption:
    """Raises KeyboardInterrupt before the n-th line of ``WATCHED`` that an action runs.

    Python can be interrupted at each of them, apart from a ``with`` that is on its way out: that line comes up a second
    time, and then nothing can come between it and ``__exit__``.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.lines = 0
        self.where = ""
        self.entered: dict[tuple[int, int], Any] = {}

    def run(self, action: Callable[[], Any]) -> str:
        """Where it struck; empty when the action had fewer lines."""
        sys.settrace(self._frame)
        try:
            action()
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(None)
            self.entered.clear()
        return self.where

    def _frame(self, frame: Any, event: str, argument: Any) -> Any:
        return self._line if frame.f_code.co_filename in WATCHED else None

    def _line(self, frame: Any, event: str, argument: Any) -> Any:
        if event == "line" and not self._leaving(frame):
            self.lines += 1
            if self.lines == self.number:
                self.where = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} {frame.f_code.co_name}"
                raise KeyboardInterrupt
        return self._line

    def _leaving(self, frame: Any) -> bool:
        if not linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip().startswith("with "):
            return False
        key = (id(frame), frame.f_lineno)
        again = key in self.entered
        self.entered[key] = frame
        return again


def interrupted_everywhere(action: Callable[[], Callable[[], Any]], check: Callable[[str], None], least: int) -> None:
    """Runs what ``action`` prepares again and again, interrupted one line later each time, until it gets through."""
    number = 0
    while True:
        number += 1
        ready = action()
        where = Interruption(number).run(ready)
        check(where)
        if not where:
            break
    assert number > least  # else nothing was tried


@pytest.mark.parametrize("pruner", [foveate.Saliency(keep=0.3), foveate.FastV(keep=0.6, layer=1)], ids=str)
@pytest.mark.parametrize("name", ["llava_next-clip", "qwen2_5_vl"])
def test_attaching_is_all_or_nothing(name: str, pruner: foveate.Pruner) -> None:
    model = fresh(name)
    before = fingerprint(model)
    handles: list[foveate.Attachment] = []

    def action() -> Callable[[], Any]:
        handles.append(pruner(model))
        return handles[-1].activate

    def check(where: str) -> None:
        if not where:
            handles[-1].remove()
        assert not handles[-1].active, where
        assert fingerprint(model) == before, where
        pruner(model).activate().remove()
        in_a_thread(lambda: pruner(model).activate().remove())
        assert fingerprint(model) == before, where

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a handle that was interrupted before it was used prunes nothing
        interrupted_everywhere(action, check, least=200)
        handles.clear()


@pytest.mark.parametrize("name", ["llava_next-clip", "qwen2_5_vl"])
def test_detaching_can_be_interrupted(name: str) -> None:
    """In the worst case one foveate.detach(model) finishes it."""
    model, pruner = fresh(name), foveate.Saliency(keep=0.3)
    before = fingerprint(model)

    def check(where: str) -> None:
        if fingerprint(model) != before:
            foveate.detach(model)
        assert fingerprint(model) == before, where
        pruner(model).activate().remove()
        in_a_thread(lambda: pruner(model).activate().remove())
        assert fingerprint(model) == before, where

    interrupted_everywhere(lambda: pruner(model).activate().remove, check, least=100)


@pytest.mark.parametrize("name", ["llava-clip"])
def test_a_call_can_be_interrupted(name: str) -> None:
    """In the block and without one; the block is left as always, and nothing stays."""
    model, pruner = fresh(name), foveate.Saliency(keep=0.3)
    inputs = prompts(ROWS[name], model, "one")
    before = fingerprint(model)

    def in_a_block() -> None:
        with pruner(model):
            model.generate(**inputs, **NEW)

    def check(where: str) -> None:
        if fingerprint(model) != before:
            foveate.detach(model)
        assert fingerprint(model) == before, where

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a handle that was interrupted before its block prunes nothing
        for call in (in_a_block, lambda: foveate.generate(model, pruner, **inputs, **NEW)):
            number = 1
            while where := Interruption(number).run(call):
                check(where)
                number += 7  # every seventh line: the encoder's are many
            check("at the end")
            assert number > 500
    assert in_a_thread(lambda: model.generate(**inputs, **NEW)) is not None


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()])
def test_a_module_that_takes_no_patch(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    model = fresh("llava-clip")
    before = fingerprint(model)
    tower = type(model.model)
    setter = nn.Module.__setattr__

    def refusing(self: Any, name: str, value: Any) -> None:
        if name == "get_image_features":
            raise error
        setter(self, name, value)

    for _ in range(2):
        with monkeypatch.context() as patched:
            patched.setattr(tower, "__setattr__", refusing)
            with pytest.raises(type(error)):
                foveate.attach(model, foveate.AdaFV(keep=0.3))
            with pytest.raises(type(error)), foveate.AdaFV(keep=0.3)(model):
                raise AssertionError("the block was entered")
            with pytest.raises(type(error)):
                foveate.generate(model, foveate.AdaFV(keep=0.3), input_ids=torch.tensor([[BOS]]))
        assert fingerprint(model) == before
    foveate.attach(model, foveate.AdaFV(keep=0.3)).remove()
    assert fingerprint(model) == before


# Threads and tasks.


def test_a_dead_threads_attachment_blocks_nobody() -> None:
    """Threads' ids are used again; those of the dead must not count for the living."""
    model = fresh("llava-clip")
    inputs = prompts(ROWS["llava-clip"], model, "one")
    before = fingerprint(model)
    in_a_thread(lambda: foveate.attach(model, foveate.Saliency(keep=2)) and None)
    for count in (3, 4, 5):

        def own(count: int = count) -> int:
            pruner = foveate.Saliency(keep=count)
            with pruner(model):
                model.generate(**inputs, **NEW)
            return len(pruner.selections[0])

        assert in_a_thread(own) == count
        assert own() == count
    assert foveate.detach(model) == 1
    assert foveate.detach(model) == 0
    assert fingerprint(model) == before


def test_tasks_have_blocks_of_their_own() -> None:
    """Interleaved in one thread: each task its own pruner, their children and threads the parents'."""
    model = fresh("llava-clip")
    inputs = prompts(ROWS["llava-clip"], model, "one")
    before = fingerprint(model)
    entered: list[int] = []

    async def count() -> int:
        result = model.generate(**inputs, **NEW, return_dict_in_generate=True)
        return int(result.past_key_values.get_seq_length())

    async def work(keep: int) -> list[int]:
        with foveate.Saliency(keep=keep)(model):
            entered.append(keep)
            while len(entered) < 3:
                await asyncio.sleep(0)
            own = await count()
            await asyncio.sleep(0)
            child = await asyncio.create_task(count())
            threaded = await asyncio.to_thread(lambda: asyncio.run(count()))
            with pytest.raises(RuntimeError, match="has a pruner on it already"):
                foveate.attach(model, foveate.Uniform())
            return [own, child, threaded]

    async def all_of_them() -> list[list[int]]:
        return await asyncio.gather(*map(work, (2, 5, 9)))

    lengths = asyncio.run(all_of_them())
    text = inputs["input_ids"].shape[1] - 16 + NEW["max_new_tokens"] - 1
    assert lengths == [[text + keep] * 3 for keep in (2, 5, 9)]
    assert fingerprint(model) == before


def test_a_task_under_its_parents_block_may_have_its_own() -> None:
    model = fresh("llava-clip")
    inputs = prompts(ROWS["llava-clip"], model, "one")

    async def chosen(handle: foveate.Attachment) -> int:
        model.generate(**inputs, **NEW)
        return len(handle.selections[0])

    async def child() -> int:
        with foveate.Saliency(keep=7)(model) as own:
            await asyncio.sleep(0)
            return await chosen(own)

    async def parent() -> tuple[int, int]:
        with foveate.Saliency(keep=3)(model) as handle:
            task = asyncio.create_task(child())
            await asyncio.sleep(0)  # the child has attached by now
            return await chosen(handle), await task

    assert asyncio.run(parent()) == (3, 7)
    assert "generate" not in vars(model)


def test_generate_taken_inside_and_called_after() -> None:
    model = fresh("llava-clip")
    inputs = prompts(ROWS["llava-clip"], model, "one")
    with foveate.AdaFV(keep=0.1)(model):
        generate, forward = model.generate, model.forward
    streamer = TextIteratorStreamer(checkpoint.tokenizer(), timeout=10)
    with pytest.raises(RuntimeError, match=r"model.generate was taken .* come off: call model.generate inside"):
        generate(**inputs, **NEW, streamer=streamer)
    assert "".join(streamer) == ""  # it ends, instead of keeping its reader waiting
    with pytest.raises(RuntimeError, match="model.forward was taken"):
        forward(**inputs)
    with foveate.Saliency(keep=3)(model), pytest.raises(RuntimeError, match="take it anew"):
        generate(**inputs, **NEW)  # the next pruner's is another one


class Holding(foveate.Saliency):
    """Stands still where it selects, until it is told to go on."""

    name = "holding"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.reached, self.go_on = threading.Event(), threading.Event()

    def choose(self, *args: Any) -> Any:
        self.reached.set()
        assert self.go_on.wait(timeout=60)
        return super().choose(*args)


@pytest.mark.parametrize("raised", [None, ZeroDivisionError("the news")])
def test_a_block_left_while_a_worker_generates(raised: Exception | None) -> None:
    """The one who leaves is told which thread still runs; the worker finishes, pruned; then the model is clean."""
    model, pruner = fresh("llava-clip"), Holding(keep=3)
    inputs = prompts(ROWS["llava-clip"], model, "one")
    before = fingerprint(model)
    with foveate.Saliency(keep=3)(model):
        wanted = model.generate(**inputs, **NEW)
    bare = model.generate(**inputs, **NEW)
    assert not torch.equal(wanted, bare)
    found: list[Any] = []
    worker = threading.Thread(target=lambda: found.append(model.generate(**inputs, **NEW)), name="the worker")
    expected = pytest.raises(RuntimeError, match="left .* while thread 'the worker' still ran a call under it: join")
    with expected if raised is None else pytest.raises(ZeroDivisionError, match="the news"), pruner(model):
        worker.start()
        assert pruner.reached.wait(timeout=60)
        if raised is not None:
            raise raised
    assert torch.equal(model.generate(**inputs, **NEW), bare)  # this thread has no pruner any more
    assert foveate.detach(model) == 0
    pruner.go_on.set()
    worker.join(timeout=60)
    assert torch.equal(found[0], wanted)
    assert fingerprint(model) == before


def test_detach_finds_every_threads_pruner() -> None:
    model = fresh("llava-clip")
    before = fingerprint(model)
    foveate.attach(model, foveate.AdaFV())
    in_a_thread(lambda: foveate.attach(model, foveate.Saliency()) and None)
    assert foveate.detach(model) == 2
    assert fingerprint(model) == before
    with foveate.AdaFV()(model) as handle:
        assert foveate.detach(model) == 1
        assert not handle.active
    assert fingerprint(model) == before


@pytest.mark.parametrize("name", ["llava-clip", "llava_next-clip", "qwen2_5_vl"])
def test_models_that_share_a_tower(name: str) -> None:
    """The second is refused, and neither is harmed."""
    row = ROWS[name]
    first, second = fresh(name), fresh(name)
    tower = "vision_tower" if hasattr(first.model, "vision_tower") else "visual"
    setattr(second.model, tower, getattr(first.model, tower))
    inputs = prompts(row, first, "one")
    second_bare = second.generate(**inputs, **NEW)
    before = fingerprint(first), fingerprint(second)
    with foveate.AdaFV(keep=0.3)(first):
        pruned = first.generate(**inputs, **NEW)
        for attempt in (
            lambda: foveate.attach(second, foveate.AdaFV(keep=0.3)),
            lambda: foveate.generate(second, foveate.AdaFV(keep=0.3), **inputs, **NEW),
        ):
            with pytest.raises(RuntimeError, match="carries a patch already, put there for another model that shares"):
                attempt()
        assert torch.equal(first.generate(**inputs, **NEW), pruned)
        assert torch.equal(second.generate(**inputs, **NEW), second_bare)
    assert (fingerprint(first), fingerprint(second)) == before
    with foveate.AdaFV(keep=0.3)(second):
        second.generate(**inputs, **NEW)
    assert (fingerprint(first), fingerprint(second)) == before


def test_the_same_handle_again() -> None:
    model = fresh("llava-clip")
    before = fingerprint(model)
    handle = foveate.attach(model, foveate.AdaFV(keep=0.3))
    with handle as same:
        assert same is handle and handle.active
    assert not handle.active and fingerprint(model) == before
    with handle:
        assert handle.active
    assert fingerprint(model) == before


# What is handed over by mistake: one line that says what to write.


def mistakes() -> dict[str, tuple[Callable[[], Any], type[Exception], str]]:
    model, processor, pruner = checkpoint.model(), checkpoint.processor(), foveate.AdaFV(keep=0.3)
    picture = Image.new("RGB", (60, 60))
    return {
        "class": (
            lambda: foveate.attach(model, foveate.AdaFV), TypeError, r"AdaFV is a class: .*foveate.AdaFV\(keep=0.1\)",
        ),
        "class, stateless": (lambda: foveate.generate(model, foveate.AdaFV), TypeError, "AdaFV is a class"),
        "model class": (lambda: pruner(type(model)), TypeError, r"is a class: hand over a model, .*from_pretrained"),
        "with AdaFV(model)": (lambda: foveate.AdaFV(model), TypeError, "keep"),
        "swapped": (lambda: foveate.attach(pruner, model), TypeError, "swapped: the model comes first"),
        "swapped, stateless": (lambda: foveate.generate(pruner, model), TypeError, "swapped: the model comes first"),
        "processor": (lambda: pruner(processor), TypeError, "expected a model, got its processor"),
        "path of a model": (lambda: pruner("llava-hf/some-model"), TypeError, "got a path: load it first"),
        "Path of a model": (lambda: pruner(Path("some-model")), TypeError, "got a path: load it first"),
        "no pruner": (lambda: foveate.attach(model, 0.1), TypeError, "expected a pruner such as foveate.AdaFV"),
        "look, swapped": (lambda: foveate.look(processor, model, picture), TypeError, ": the model goes here"),
        "look, the model twice": (lambda: foveate.look(model, model, picture), TypeError, "got a model: look"),
        "look, path": (lambda: foveate.look(model, processor, "cat.png"), TypeError, r"load_image\('cat.png'\)"),
        "look, paths": (lambda: foveate.look(model, processor, ["cat.png"]), TypeError, r"load_image\('cat.png'\)"),
        "look, Path": (lambda: foveate.look(model, processor, Path("cat.png")), TypeError, "got a path"),
        "look, array": (
            lambda: foveate.look(model, processor, numpy.zeros((8, 8, 3), numpy.uint8)), TypeError, "fromarray",
        ),
        "look, tensor": (lambda: foveate.look(model, processor, torch.zeros(3, 8, 8)), TypeError, "PIL"),
        "an unknown option": (lambda: pruner(model, position="original"), TypeError, "position"),
    }  # fmt: skip


@pytest.mark.parametrize("mistake", list(mistakes()))
def test_mistakes_say_what_to_write(mistake: str) -> None:
    act, kind, said = mistakes()[mistake]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(kind, match=said) as caught:
            act()
    message = str(caught.value)
    assert "\n" not in message and len(message) < 300
    assert "generate" not in vars(checkpoint.model())


def test_a_forgotten_with_warns() -> None:
    model = fresh("llava-clip")

    def forgetful() -> None:
        foveate.AdaFV()(model)
        gc.collect()

    with pytest.warns(UserWarning, match=r"by itself prunes nothing: write `with pruner\(model\)"):
        forgetful()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with foveate.AdaFV()(model):
            pass
        foveate.attach(model, foveate.AdaFV()).remove()
        gc.collect()


@pytest.mark.parametrize("wrapper", ["DataParallel", "DistributedDataParallel", "a wrapper of one's own"])
def test_wrapped_models_say_where_the_pruner_goes(wrapper: str, tmp_path: Path) -> None:
    row = ROWS["llava-clip"]
    model = fresh("llava-clip")
    inputs = prompts(row, model, "one")
    pruner = foveate.Saliency(keep=3)

    class Own(nn.Module):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module

        def forward(self, **kwargs: Any) -> Any:
            return self.module(**kwargs)

    with torch.no_grad(), pruner(model):
        wanted = model(**inputs).logits
    if wrapper == "DataParallel":
        wrapped: Any = nn.DataParallel(model)
        with pytest.raises(TypeError, match="DataParallel copies the model to every device"):
            pruner(wrapped)
        # Around a model under a pruner it says so where it copies; on a CPU it does not.
        with pruner(model), pytest.raises(RuntimeError, match="DataParallel copies the model"):
            model._replicate_for_data_parallel()
        return
    if wrapper == "DistributedDataParallel":
        torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(model) if wrapper[0] == "D" else Own(model)
        with pytest.raises(
            TypeError, match=r"wraps the model: put the pruner on what it wraps, pruner\(model.module\)"
        ):
            pruner(wrapped)
        with torch.no_grad(), pruner(wrapped.module):
            assert torch.equal(wrapped(**inputs).logits, wanted)
        labels = inputs["input_ids"].masked_fill(torch.isin(inputs["input_ids"], torch.tensor(SILENT)), -100)
        with pruner(wrapped.module):
            wrapped(**inputs, labels=labels).loss.backward()
        assert float(model.lm_head.weight.grad.abs().sum()) > 0
    finally:
        if wrapper == "DistributedDataParallel":
            torch.distributed.destroy_process_group()
