"""A processor's tokenizer is one for all threads that ask."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image

import foveate
from foveate import bundled
from foveate.locks import OwnLock, lock_of


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    """The bundled model; its tokenizer takes its time and fails when a second thread comes in meanwhile, as the stock
    one does now and then ("Already borrowed")."""
    model, processor = bundled.load()
    inside = threading.Lock()

    def one_at_a_time(stock: Callable[..., Any]) -> Callable[..., Any]:
        def called(*args: Any, **kwargs: Any) -> Any:
            assert inside.acquire(blocking=False), "a second thread is within the tokenizer"
            try:
                time.sleep(0.002)
                return stock(*args, **kwargs)
            finally:
                inside.release()

        return called

    for name in ("_encode_plus", "_decode"):
        monkeypatch.setattr(processor.tokenizer, name, one_at_a_time(getattr(processor.tokenizer, name)))
    return model, processor


def test_threads_share_a_tokenizer(alone: tuple[Any, Any]) -> None:
    """One session asked by two threads, another session of the same processor, and a reader of its template."""
    model, processor = alone
    pictures = [Image.new("RGB", (224, 112), color) for color in ("red", "blue")]
    first, second = (foveate.look(model, processor, picture) for picture in pictures)
    question = "What color is the card?"
    expected = [one.ask(question, foveate.AdaFV(keep=0.3), max_new_tokens=2).text for one in (first, second)]
    barrier, wrong = threading.Barrier(5), []

    def asks(session: foveate.Session, answer: str) -> None:
        assert session.ask(question, foveate.AdaFV(keep=0.3), max_new_tokens=2).text == answer

    def looks() -> None:
        foveate.look(model, processor, pictures[0])

    def reads() -> None:
        foveate.turn_end(processor)

    def run(work: Callable[[], None]) -> None:
        try:
            barrier.wait(timeout=60)
            for _ in range(4):
                work()
        except BaseException as error:
            wrong.append(repr(error))

    work = [
        lambda: asks(first, expected[0]), lambda: asks(first, expected[0]), lambda: asks(second, expected[1]),
        looks, reads,
    ]  # fmt: skip
    threads = [threading.Thread(target=run, args=(one,)) for one in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_lock_of_everything() -> None:
    class Plain:
        pass

    class Slotted:
        __slots__ = ()

    one, other = Plain(), Plain()
    assert lock_of(one) is lock_of(one) is not lock_of(other)
    assert lock_of(Slotted()) is lock_of({})  # cannot be referred to weakly, has no hash


def test_a_copy_of_an_own_lock_is_another() -> None:
    import copy

    lock = OwnLock()
    with lock, copy.deepcopy(lock):
        pass
