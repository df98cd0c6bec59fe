"""Loads on an OpenAI-compatible server: pictures and questions that no cache can answer, sent in a closed or open loop.

Nothing here knows how the server was started; ``foveate.benchmarks.serve_figures`` makes figures of what comes back.
"""

from __future__ import annotations

import asyncio
import base64
import importlib
import io
import itertools
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from PIL import Image

from foveate.keep import Keep

WORDS = ("cat", "dog", "cow", "owl", "red", "blue", "green", "yellow")
"""What questions are made of: common, and one token each for most tokenizers, so that all are of about one length."""
QUESTION_WORDS = 6
DONE = "[DONE]"
PATIENCE = 600.0
"""Seconds without a byte after which a request has failed."""


@dataclass(frozen=True)
class Load:
    """How requests come.

    Args:
        kind: ``"closed"``: so many at any time, the next one sent when one is answered. ``"open"``: so many per second
            on average, by chance (Poisson), whether or not the server keeps up.
        value: requests at any time, or per second.

    Raises:
        ValueError: a value that is not positive, or a fraction of a request at a time.
    """

    kind: Literal["closed", "open"]
    value: float

    def __post_init__(self) -> None:
        if not self.value > 0 or (self.kind == "closed" and self.value != int(self.value)):
            raise ValueError(f"a {self.kind} loop of {self.value:g} requests is none")

    def __str__(self) -> str:
        return f"{self.value:g} at a time" if self.kind == "closed" else f"{self.value:g} per second"


@dataclass(frozen=True)
class Arm:
    """One of the things that are measured side by side.

    Args:
        load: how requests come.
        shared: 0: every picture is new. Else so many pictures, which the server has seen before, take turns.
        method, keep, crops: what every request asks for; see ``foveate.serving``. "" stands for all crops.
    """

    load: Load
    shared: int
    method: str
    keep: float | int
    crops: str = ""

    @property
    def asks(self) -> dict[str, Any]:
        """What a request says."""
        return {"method": self.method, "keep": Keep(self.keep).written, **({"crops": self.crops} if self.crops else {})}


@dataclass(frozen=True)
class Exchange:
    """One request and what came of it.

    Args:
        ttft_ms: from when it was due to the first generated token; None: it failed before.
        gaps_ms: between tokens; of tokens that came together, each has its share.
        total_ms: from when it was due to its end.
        tokens: generated.
        error: why it failed, a few words that are the same for the same cause; None: it did not.
    """

    ttft_ms: float | None
    gaps_ms: Sequence[float]
    total_ms: float
    tokens: int
    error: str | None = None


@dataclass(frozen=True)
class Block:
    """One arm in one round.

    Args:
        arm: what was asked.
        round: its number, from 0.
        seconds: from the first request to the end of the last.
        exchanges: all of them, the failed ones included.
        counted: by how much the server's own counters rose meanwhile.
        processor_seconds: that the server's processes took meanwhile; None: not known.
    """

    arm: Arm
    round: int
    seconds: float
    exchanges: Sequence[Exchange] = field(repr=False)
    counted: Mapping[str, float] = field(repr=False)
    processor_seconds: float | None = None

    @property
    def rate(self) -> float:
        """Answered requests per second."""
        return sum(one.error is None for one in self.exchanges) / self.seconds


def http() -> Any:
    """The HTTP library: httpx, or httpx2, which newer releases of transformers' own dependencies bring.

    Raises:
        ModuleNotFoundError: neither is installed.
    """
    for name in ("httpx", "httpx2"):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError:
            continue
    raise ModuleNotFoundError(
        'foveate bench --serve needs httpx: pip install httpx, or "foveate[vllm]" for the server too'
    )


class Traffic:
    """Makes requests, none of which was ever made before.

    Args:
        model: as the server names it.
        size: (height, width) of pictures, pixels.
        tokens: length of every answer; the model's own end of an answer does not count.
        seed: of the pictures.
    """

    def __init__(self, model: str, size: tuple[int, int], tokens: int, seed: int = 0) -> None:
        self.model = model
        self.size = size
        self.tokens = tokens
        self.seed = seed
        self._numbers = itertools.count()
        self._shared: list[str] = []

    def bodies(self, arm: Arm, count: int) -> list[bytes]:
        """``count`` request bodies."""
        return [self._body(arm, place) for place in range(count)]

    def known(self, arm: Arm) -> list[bytes]:
        """A request about each of the pictures that an arm shares, so that the server has seen them."""
        return [self._body(arm, place) for place in range(arm.shared)]

    def _body(self, arm: Arm, place: int) -> bytes:
        number = next(self._numbers)
        if arm.shared:
            while len(self._shared) < arm.shared:
                self._shared.append(data_url((self.seed, 1, len(self._shared)), self.size))
            picture = self._shared[place % arm.shared]
        else:
            picture = data_url((self.seed, 0, number), self.size)
        content = [{"type": "image_url", "image_url": {"url": picture}}, {"type": "text", "text": question(number)}]
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": self.tokens,
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
            "mm_processor_kwargs": {"foveate": arm.asks},
        }
        return json.dumps(body).encode()


def question(number: int) -> str:
    """The question of a number; another one for every number."""
    words = []
    for _ in range(QUESTION_WORDS):
        number, place = divmod(number, len(WORDS))
        words.append(WORDS[place])
    return f"what is {' '.join(words)}?" if not number else f"what is {' '.join(words)} {number}?"


def data_url(seed: Sequence[int], size: tuple[int, int]) -> str:
    """A picture of smooth colours as a JPEG in a URL; of about the size in bytes that a photograph has."""
    coarse = np.random.default_rng(list(seed)).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    picture = Image.fromarray(coarse).resize((size[1], size[0]), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=90)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


async def exchange(client: Any, body: bytes, tokens: int, due: float | None = None) -> Exchange:
    """Sends one request and reads its answer to the end. Whatever goes wrong is its ``error``.

    Args:
        client: an ``httpx.AsyncClient`` with the server as base URL.
        body: as ``Traffic`` makes it.
        tokens: the length that the answer must have.
        due: when it should have been sent, ``time.perf_counter``; default now. A client that is late does not make the
            server look faster.
    """
    began = time.perf_counter() if due is None else due
    reader = _Reader(began)
    error = None
    try:
        async with client.stream(
            "POST", "/v1/chat/completions", content=body, headers={"Content-Type": "application/json"}
        ) as response:
            if response.status_code != 200:
                text = (await response.aread()).decode(errors="replace")
                error = f"status {response.status_code}: {_message(text)}"
            else:
                async for line in response.aiter_lines():
                    reader.line(line)
                error = reader.missing(tokens)
    except http().TimeoutException:
        error = f"nothing came for {PATIENCE:g} s"
    except http().HTTPError as broken:
        error = f"connection: {type(broken).__name__}"
    except _MalformedError as malformed:
        error = str(malformed)
    total = (time.perf_counter() - began) * 1e3
    return Exchange(reader.ttft_ms, tuple(reader.gaps_ms), total, reader.tokens, error)


class _MalformedError(Exception):
    pass


class _Reader:
    """Reads the lines of a streamed answer and notes when its tokens came."""

    def __init__(self, began: float) -> None:
        self.ttft_ms: float | None = None
        self.gaps_ms: list[float] = []
        self.tokens = 0
        self._last = began
        self._done = False

    def line(self, line: str) -> None:
        """Takes one line of server-sent events."""
        if not line.startswith("data:"):
            return
        now = time.perf_counter()
        text = line.removeprefix("data:").strip()
        if text == DONE:
            self._done = True
            return
        try:
            event = json.loads(text)
            if "error" in event:
                raise _MalformedError(f"error in the stream: {_message(text)}")
            choices, usage = event["choices"], event.get("usage")
            new = 0
            if usage is not None:
                new = int(usage["completion_tokens"]) - self.tokens
            elif any(choice["delta"].get("content") for choice in choices):
                new = 1
        except (ValueError, KeyError, TypeError, AttributeError):
            raise _MalformedError("malformed stream") from None
        if new <= 0:
            return
        since = (now - self._last) * 1e3
        if self.ttft_ms is None:
            self.ttft_ms = since
            self.gaps_ms += [0.0] * (new - 1)
        else:
            self.gaps_ms += [since / new] * new
        self.tokens += new
        self._last = now

    def missing(self, tokens: int) -> str | None:
        """What is wrong with an answer that came to its end; None: nothing."""
        if not self._done:
            return f"cut off: the stream ended without {DONE}"
        if self.tokens != tokens:
            return f"{self.tokens} of {tokens} tokens"
        return None


def _message(text: str) -> str:
    """The message of an OpenAI-like error, one short line."""
    try:
        found = json.loads(text)["error"]
        text = found["message"] if isinstance(found, dict) else str(found)
    except (ValueError, KeyError, TypeError):
        pass
    return " ".join(text.split())[:200]


def arrivals(rate: float, count: int, seed: int) -> list[float]:
    """Seconds at which requests are due, ``rate`` per second on average, the first one at once."""
    gaps = np.random.default_rng(seed).exponential(1 / rate, count - 1)
    return [0.0, *np.cumsum(gaps).tolist()]


async def send(
    client: Any, load: Load, bodies: Sequence[bytes], tokens: int, seed: int = 0,
    progress: Callable[[], None] = lambda: None,
) -> tuple[float, list[Exchange]]:  # fmt: skip
    """Sends requests as a load says.

    Returns:
        Seconds from the first to the end of the last, and what came of each.
    """
    found: list[Exchange] = []
    began = time.perf_counter()

    async def one(body: bytes, due: float | None = None) -> None:
        if due is not None:
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
        found.append(await exchange(client, body, tokens, due))
        progress()

    async def worker(left: Iterator[bytes]) -> None:
        for body in left:
            await one(body)

    if load.kind == "closed":
        queue = iter(bodies)
        await asyncio.gather(*(worker(queue) for _ in range(int(load.value))))
    else:
        times = arrivals(load.value, len(bodies), seed)
        await asyncio.gather(*(one(body, began + at) for body, at in zip(bodies, times, strict=True)))
    return time.perf_counter() - began, found


_SAMPLE = re.compile(r"^([A-Za-z_:][\w:]*)(?:\{.*\})?\s+(\S+)")


def parse_metrics(page: str) -> dict[str, float]:
    """Prometheus' text format, each name summed over its labels. Histograms: their sums and counts, not the buckets."""
    found: dict[str, float] = {}
    for line in page.splitlines():
        match = _SAMPLE.match(line)
        if match is not None and not match[1].endswith("_bucket"):
            found[match[1]] = found.get(match[1], 0.0) + float(match[2])
    return found


async def _metrics(client: Any) -> dict[str, float]:
    response = await client.get("/metrics")
    return parse_metrics(response.text) if response.status_code == 200 else {}


async def served_model(client: Any) -> str:
    """What a server calls its model.

    Raises:
        ConnectionError: nobody answers, or not as an OpenAI-compatible server does.
    """
    try:
        response = await client.get("/v1/models")
        response.raise_for_status()
        return str(response.json()["data"][0]["id"])
    except (http().HTTPError, ValueError, KeyError, IndexError, TypeError) as error:
        raise ConnectionError(f"{client.base_url} does not answer as an OpenAI-compatible server: {error}") from None


def requests_of(load: Load, wished: int) -> int:
    """Requests of a block: as many as wished, and in a closed loop at least twice as many as there are at a time."""
    return max(wished, 2 * int(load.value)) if load.kind == "closed" else wished


async def measure(
    client: Any,
    arms: Sequence[Arm],
    size: tuple[int, int],
    *,
    rounds: int,
    requests: int,
    tokens: int,
    seed: int = 0,
    spent: Callable[[], float] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Block]:
    """Measures every arm once per round; arms that differ in the budget alone stand next to each other in time, each
    round beginning with another one, so that drift treats them alike.

    Args:
        client: an ``httpx.AsyncClient`` with the server as base URL.
        arms: what is asked; a warm-up of two requests each comes first.
        size: (height, width) of pictures, pixels.
        rounds: >= 1.
        requests: per arm and round; see ``requests_of``.
        tokens: length of every answer.
        seed: of pictures and arrivals; the same numbers ask for the same ones.
        spent: says the processor seconds that the server has taken so far; None: nobody knows.
        progress: called with the number of requests done and of those there are.

    Raises:
        ConnectionError: there is no such server, it answers none of the warm-up, or it does not prune.
        ValueError: ``rounds`` < 1.
    """
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {rounds}")
    traffic = Traffic(await served_model(client), size, tokens, seed)
    groups: dict[tuple[Load, int], list[Arm]] = {}
    for arm in arms:
        groups.setdefault((arm.load, arm.shared), []).append(arm)
    total = rounds * sum(requests_of(arm.load, requests) for arm in arms)
    done = itertools.count(1)

    def step() -> None:
        number = next(done)
        if progress is not None:
            progress(number, total)

    ways = {(arm.method, arm.keep, arm.crops): arm for arm in arms}
    warm = [body for arm in ways.values() for body in traffic.bodies(replace(arm, shared=0), 2)]
    _, tried = await send(client, Load("closed", 2), warm, tokens)
    if all(one.error for one in tried):
        raise ConnectionError(f"{client.base_url} answers no request: {tried[0].error}")
    if "foveate_images_total" not in await _metrics(client):
        raise ConnectionError(
            f"{client.base_url}/metrics shows no counters of foveate: start the server with foveate serve"
        )
    blocks = []
    for number in range(rounds):
        for (load, shared), group in groups.items():
            first = number % len(group)
            for arm in group[first:] + group[:first]:
                if shared:
                    await send(client, Load("closed", 4), traffic.known(arm), tokens)
                bodies = traffic.bodies(arm, requests_of(load, requests))
                before, taken = await _metrics(client), spent() if spent else None
                seconds, found = await send(client, load, bodies, tokens, seed + number, step)
                taken = None if spent is None or taken is None else spent() - taken
                after = await _metrics(client)
                counted = {name: value - before.get(name, 0.0) for name, value in after.items()}
                blocks.append(Block(arm, number, seconds, found, counted, taken))
    return blocks


def connect(url: str) -> Any:
    """An ``httpx.AsyncClient`` for a server, without limits of its own on connections."""
    library = http()
    return library.AsyncClient(
        base_url=url.rstrip("/"),
        timeout=library.Timeout(PATIENCE, connect=30.0),
        limits=library.Limits(max_connections=None, max_keepalive_connections=None),
        trust_env=False,  # a proxy would be measured along
    )
