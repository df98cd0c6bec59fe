"""A load on a server that is made up: what is sent, what is timed, and that nothing that fails is lost."""

from __future__ import annotations

import asyncio
import base64
import io
import itertools
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from transformers import AutoConfig, AutoProcessor, AutoTokenizer
from typer.testing import CliRunner

from foveate import bundled
from foveate.benchmarks import serve, serve_figures, serve_process
from foveate.benchmarks.serve import Arm, Block, Exchange, Load, Traffic
from foveate.cli import app

http = serve.http()
TOKENS = 4
ARM = Arm(Load("closed", 2), 0, "adafv", 0.1)


def event(tokens: int, text: str = "a", **more: Any) -> str:
    choices = [{"delta": {"content": text}}]
    return f"data: {json.dumps({'choices': choices, 'usage': {'completion_tokens': tokens}, **more})}\n\n"


def whole(tokens: int = TOKENS) -> list[str]:
    last = f"data: {json.dumps({'choices': [], 'usage': {'completion_tokens': tokens}})}\n\n"
    return [event(number + 1) for number in range(tokens)] + [last, "data: [DONE]\n\n"]


class Stream(http.AsyncByteStream):
    """Pieces of a body; a number among them is a pause, an exception is raised."""

    def __init__(self, *pieces: Any) -> None:
        self.pieces = pieces

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self.pieces:
            if isinstance(piece, float):
                await asyncio.sleep(piece)
            elif isinstance(piece, Exception):
                raise piece
            else:
                yield piece.encode()


class Server(http.AsyncBaseTransport):
    """An OpenAI-compatible server as far as a load sees it.

    Args:
        answer: makes the response to a chat completion, from the request's body and its number.
    """

    def __init__(self, answer: Callable[[dict[str, Any], int], Any]) -> None:
        self.answer = answer
        self.bodies: list[dict[str, Any]] = []
        self.now = self.most = 0
        self.metrics = True

    async def handle_async_request(self, request: Any) -> Any:
        if request.url.path == "/v1/models":
            return http.Response(200, json={"data": [{"id": "served"}]})
        if request.url.path == "/metrics":
            images = len(self.bodies)
            page = (
                "# HELP foveate_images_total Images.\n"
                f"foveate_images_total {images}.0\n"
                f"foveate_visual_tokens_kept_total {32 * images}.0\n"
                f'vllm:prefix_cache_queries_total{{engine="0",model_name="a b"}} {10 * images}.0\n'
                f'vllm:prefix_cache_queries_total{{engine="1",model_name="a b"}} {10 * images}.0\n'
                f'vllm:prefix_cache_hits_total{{engine="0"}} {5 * images}.0\n'
                f'foveate_encode_seconds_bucket{{le="1"}} {images}.0\n'
            )
            return http.Response(200 if self.metrics else 404, text=page)
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            body, number = json.loads(request.content), len(self.bodies)
            self.bodies.append(body)
            await asyncio.sleep(0.002)
            answer = self.answer(body, number)
            if isinstance(answer, Exception):
                raise answer
            return answer
        finally:
            self.now -= 1


def client_of(server: Server) -> Any:
    return http.AsyncClient(transport=server, base_url="http://made.up")


def ask(*pieces: Any, status: int = 200, tokens: int = TOKENS) -> Exchange:
    """What a load makes of one answer."""

    async def go() -> Exchange:
        async with client_of(Server(lambda *_: http.Response(status, stream=Stream(*pieces)))) as client:
            return await serve.exchange(client, b"{}", tokens)

    return asyncio.run(go())


def test_times_are_those_of_the_tokens():
    pieces = whole()
    found = ask(0.15, *pieces[:1], 0.1, *pieces[1:2], 0.05, *pieces[2:])
    assert found.error is None and found.tokens == TOKENS
    # Sleeps are never too short; how much too long they are is up to the machine.
    assert found.ttft_ms >= 149 and len(found.gaps_ms) == TOKENS - 1
    assert found.gaps_ms[0] >= 99 and found.gaps_ms[1] >= 49 and found.gaps_ms[2] < found.gaps_ms[0]
    assert found.total_ms >= found.ttft_ms + sum(found.gaps_ms)


def test_tokens_that_come_together_share_their_gap():
    found = ask(event(1), 0.09, event(4), "data: [DONE]\n\n")
    assert found.error is None and len(found.gaps_ms) == 3
    assert found.gaps_ms == pytest.approx([found.gaps_ms[0]] * 3) and sum(found.gaps_ms) >= 89


def test_a_server_that_was_due_earlier_is_no_faster():
    async def go() -> Exchange:
        async with client_of(Server(lambda *_: http.Response(200, stream=Stream(*whole())))) as client:
            return await serve.exchange(client, b"{}", TOKENS, due=time.perf_counter() - 0.5)

    assert asyncio.run(go()).ttft_ms >= 500


@pytest.mark.parametrize(
    ("pieces", "status", "error"),
    [
        (['{"error": {"message": "keep=2 is\\nno budget"}}'], 400, "status 400: keep=2 is no budget"),
        (["Internal Server Error"], 500, "status 500: Internal Server Error"),
        (whole()[:-1], 200, "cut off: the stream ended without [DONE]"),
        ([], 200, "cut off: the stream ended without [DONE]"),
        (whole(2), 200, "2 of 4 tokens"),
        (["data: [DONE]\n\n"], 200, "0 of 4 tokens"),
        (["data: {nonsense\n\n", *whole()], 200, "malformed stream"),
        (["data: 7\n\n", *whole()], 200, "malformed stream"),
        (['data: {"choices": [{}]}\n\n', *whole()], 200, "malformed stream"),
        (['data: {"error": {"message": "out of memory"}}\n\n'], 200, "error in the stream: out of memory"),
        ([event(1), http.ReadError("gone")], 200, "connection: ReadError"),
        ([http.RemoteProtocolError("gone")], 200, "connection: RemoteProtocolError"),
        ([event(1), http.ReadTimeout("slow")], 200, "nothing came for 600 s"),
    ],
)
def test_every_failure_is_told(pieces: list[Any], status: int, error: str) -> None:
    found = ask(*pieces, status=status)
    assert found.error == error


def test_a_stream_without_usage_counts_its_pieces():
    plain = [f"data: {json.dumps({'choices': [{'delta': {'content': text}}]})}\n\n" for text in ("", *"abcd")]
    found = ask(": a comment\n\n", *plain, "data: [DONE]\n\n")
    assert (found.error, found.tokens) == (None, TOKENS)


def test_a_closed_loop_has_so_many_at_a_time_and_sends_each_once():
    server = Server(lambda *_: http.Response(200, stream=Stream(0.005, *whole())))

    async def go() -> tuple[float, list[Exchange]]:
        async with client_of(server) as client:
            return await serve.send(client, Load("closed", 3), [b'{"n": %d}' % n for n in range(10)], TOKENS)

    seconds, found = asyncio.run(go())
    assert sorted(body["n"] for body in server.bodies) == list(range(10)) and len(found) == 10
    assert server.most == 3 and seconds >= 4 * 0.005


def test_an_open_loop_does_not_wait_for_answers():
    server = Server(lambda *_: http.Response(200, stream=Stream(0.5, *whole())))

    async def go() -> tuple[float, list[Exchange]]:
        async with client_of(server) as client:
            return await serve.send(client, Load("open", 100), [b"{}"] * 20, TOKENS, seed=1)

    seconds, found = asyncio.run(go())
    assert len(found) == 20 and serve.arrivals(100, 20, 1)[-1] + 0.5 <= seconds < 20 * 0.5 / 4


def test_arrivals_are_poisson():
    times = serve.arrivals(5.0, 4001, 0)
    gaps = [after - before for before, after in itertools.pairwise(times)]
    mean = sum(gaps) / len(gaps)
    spread = (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5
    assert times[0] == 0 and mean == pytest.approx(0.2, rel=0.05) and spread == pytest.approx(mean, rel=0.06)


def picture(body: dict[str, Any]) -> str:
    return str(body["messages"][0]["content"][0]["image_url"]["url"])


def words(body: dict[str, Any]) -> str:
    return str(body["messages"][0]["content"][1]["text"])


def test_requests_are_all_different_unless_pictures_are_shared():
    traffic = Traffic("m", (40, 60), TOKENS)
    fresh = [json.loads(body) for body in traffic.bodies(ARM, 30)]
    shared = Arm(ARM.load, 3, "text", 0.25)
    repeated = [json.loads(body) for body in [*traffic.known(shared), *traffic.bodies(shared, 9)]]
    again = [json.loads(body) for body in traffic.bodies(ARM, 30)]
    assert len({picture(body) for body in fresh + again}) == 60
    assert len({picture(body) for body in repeated}) == 3 and {picture(body) for body in repeated[:3]} == {
        picture(body) for body in repeated[3:]
    }
    assert not {picture(body) for body in repeated} & {picture(body) for body in fresh + again}
    assert len({words(body) for body in fresh + repeated + again}) == 72
    assert fresh[0]["mm_processor_kwargs"] == {"foveate": {"method": "adafv", "keep": 0.1}}
    file = io.BytesIO(base64.b64decode(picture(fresh[0]).split(",", 1)[1]))
    assert Image.open(file).size == (60, 40)
    # The same run can be made again, and another seed makes another one.
    assert picture(fresh[0]) == picture(json.loads(Traffic("m", (40, 60), 4).bodies(ARM, 1)[0]))
    assert picture(fresh[0]) != picture(json.loads(Traffic("m", (40, 60), 4, seed=1).bodies(ARM, 1)[0]))


def test_questions_differ_for_the_model_too_and_are_of_one_length():
    """A tokenizer that knows none of the words would make all questions the same, and caches would answer."""
    tokenizer = AutoTokenizer.from_pretrained(bundled.path(), local_files_only=True)
    ids = [tuple(tokenizer(serve.question(number))["input_ids"]) for number in range(600)]
    assert len(set(ids)) == 600 and {len(one) for one in ids} == {len(ids[0])}


def measured(server: Server, arms: list[Arm], **options: Any) -> list[Block]:
    async def go() -> list[Block]:
        async with client_of(server) as client:
            return await serve.measure(client, arms, (20, 20), tokens=TOKENS, **options)

    return asyncio.run(go())


ARMS = [Arm(Load("closed", 2), shared, "adafv", keep) for shared in (0, 2) for keep in (1.0, 0.1)]


def slower_when_more_is_kept(body: dict[str, Any], number: int) -> Any:
    wait = 0.1 * body["mm_processor_kwargs"]["foveate"]["keep"]
    return http.Response(200, stream=Stream(wait, *whole()))


def test_arms_take_turns_and_are_summed_up():
    server = Server(slower_when_more_is_kept)
    steps: list[tuple[int, int]] = []
    spent = iter(range(100))
    blocks = measured(
        server, ARMS, rounds=2, requests=6, spent=lambda: next(spent), progress=lambda *at: steps.append(at)
    )
    assert [(block.round, block.arm.shared, block.arm.keep) for block in blocks] == [
        (0, 0, 1.0), (0, 0, 0.1), (0, 2, 1.0), (0, 2, 0.1),
        (1, 0, 0.1), (1, 0, 1.0), (1, 2, 0.1), (1, 2, 1.0),
    ]  # fmt: skip
    assert steps[-1] == (48, 48) and len(steps) == 48
    assert len(server.bodies) == 48 + 4 + 4 * 2  # two to warm up each way, and shared pictures shown beforehand
    report = serve_figures.summarise(blocks)
    assert [(one.requests, one.failed, one.visual_tokens) for one in report.figures] == [(12, 0, 32.0)] * 4
    first, second, *_ = report.figures
    assert first.gain == 1.0 and second.gain is not None and second.gain > 1.2 and second.rate > first.rate
    assert first.prefix_hits == 0.25 and first.feature_hits is None and first.encoder_share is None
    assert first.processor_ms == pytest.approx(1000 / 6)
    assert first.ttft_ms is not None and first.ttft_ms[0] <= first.ttft_ms[1] <= first.ttft_ms[2]
    held = {target.name: target.holds for target in report.targets()}
    assert held["fresh, 2 at a time, adafv: requests/s at keep 10% over 100%"]
    assert held["failed of 48 requests"]
    assert "2 at a time, adafv 10%: requests/s, repeated over fresh pictures" in held


def test_failures_are_counted_and_no_figure_is_made_of_them():
    def answer(body: dict[str, Any], number: int) -> Any:
        if body["mm_processor_kwargs"]["foveate"]["keep"] == 0.1 and number > 8:
            return http.Response(503, text="busy") if number % 2 else http.ConnectError("no")
        return http.Response(200, stream=Stream(*whole()))

    report = serve_figures.summarise(measured(Server(answer), ARMS[:2], rounds=1, requests=6))
    good, bad = report.figures
    assert (good.failed, bad.requests, bad.failed, bad.rate) == (0, 6, 6, 0.0)
    assert bad.errors == {"status 503: busy": 3, "connection: ConnectError": 3}
    assert bad.ttft_ms is bad.gap_ms is bad.total_ms is bad.processor_ms is None
    told = serve_figures.errors_table(report)[1]
    assert sorted(told) == [["connection: ConnectError", "3"], ["status 503: busy", "3"]]
    missed = [target.name for target in report.targets() if not target.holds]
    assert missed == ["failed of 12 requests", "fresh, 2 at a time, adafv: requests/s at keep 10% over 100%"]
    heads, rows = serve_figures.table(report)
    assert dict(zip(heads, rows[1], strict=False))["requests/s"] == "0.00" and rows[1][-1] == "6"
    assert json.loads(json.dumps(report.as_dict()))["results"][1]["failed"] == 6


def test_a_server_that_is_none_is_told():
    busy = Server(lambda *_: http.Response(503, text="busy"))
    with pytest.raises(ConnectionError, match="answers no request: status 503: busy"):
        measured(busy, ARMS, rounds=1, requests=1)
    plain = Server(lambda *_: http.Response(200, stream=Stream(*whole())))
    plain.metrics = False
    with pytest.raises(ConnectionError, match="no counters of foveate: start the server with foveate serve"):
        measured(plain, ARMS, rounds=1, requests=1)
    with pytest.raises(ValueError, match="rounds must be at least 1"):
        measured(plain, ARMS, rounds=0, requests=1)


def block(arm: Arm, number: int, rate: int, seconds: float = 1.0) -> Block:
    return Block(arm, number, seconds, [Exchange(1.0, (2.0,), 3.0, 2)] * rate, {})


def test_ratios_are_those_of_a_round():
    """The second round ran on a machine half as fast: rates fall, ratios do not."""
    arms = [Arm(Load("closed", 1), 0, "adafv", keep) for keep in (1.0, 0.25, 16)]
    rates = {1.0: (10, 5, 10), 0.25: (20, 10, 18), 16: (30, 20, 27)}
    blocks = [block(arm, number, rates[arm.keep][number]) for number in range(3) for arm in arms]
    report = serve_figures.summarise(blocks)
    assert [one.rate for one in report.figures] == [10, 18, 27]
    assert [one.gain for one in report.figures] == [1.0, 2.0, 3.0]
    # A number of tokens is compared with all of them, not with a fraction.
    assert [target.name.split(": ")[1] for target in report.targets()[1:]] == [
        "requests/s at keep 25% over 100%", "requests/s at keep 16t over 100%",
    ]  # fmt: skip


def test_percentiles_are_values_that_were_measured():
    arm = ARMS[0]
    exchanges = [Exchange(float(number), (), 1000.0, 1) for number in range(1, 201)]
    (found,) = serve_figures.summarise([Block(arm, 0, 1.0, exchanges, {})]).figures
    assert found.ttft_ms == [100.0, 180.0, 198.0] and found.gap_ms is None


def test_loads_that_are_none_are_refused():
    for kind, value in (("closed", 0), ("closed", 1.5), ("open", -1.0), ("open", float("nan"))):
        with pytest.raises(ValueError, match="loop"):
            Load(kind, value)  # type: ignore[arg-type]


def test_plot_has_a_line_per_load():
    arms = [*ARMS, Arm(Load("open", 2.0), 0, "adafv", 0.1)]
    report = serve_figures.summarise([block(arm, 0, 3) for arm in arms])
    figure = serve_figures.plot(report, "title")
    labels = [line.get_label() for line in figure.axes[0].get_lines()]
    assert labels == ["2 at a time, fresh", "2 at a time, repeated", "2 per second, fresh"]
    assert list(figure.axes[0].get_lines()[0].get_ydata()) == [3, 3]


def test_a_shapes_checkpoint_is_one(tmp_path: Path) -> None:
    """As vLLM reads it: the config, the processor, and as many placeholders as the model has patches."""
    shape = serve_process.shape_of("llava-next-7b/4")
    folder = serve_process.write_checkpoint(shape, tmp_path / "next", llm_layers=4, vision_layers=3)
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    assert (config.text_config.hidden_size, config.vision_config.hidden_size) == (1024, 256)
    assert (config.text_config.num_hidden_layers, config.vision_config.num_hidden_layers) == (4, 3)
    processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
    inputs = processor(images=Image.new("RGB", (672, 672)), text="<image> what is?", return_tensors="pt")
    assert int((inputs["input_ids"] == config.image_token_id).sum()) == 5 * 576 + 48
    assert inputs["pixel_values"].shape == (1, 5, 3, 336, 336)
    plain = serve_process.write_checkpoint(serve_process.shape_of("llava-1.5-7b"), tmp_path / "plain")
    processor = AutoProcessor.from_pretrained(plain, local_files_only=True)
    inputs = processor(images=Image.new("RGB", (90, 50)), text="<image> what is?", return_tensors="pt")
    assert int((inputs["input_ids"] == 4).sum()) == 576
    with pytest.raises(ValueError, match="asked for 99 and 24"):
        serve_process.write_checkpoint(shape, tmp_path / "deep", llm_layers=99)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("qwen2.5-vl-7b", "known: bundled, llava-1.5-7b"),
        ("llava-next-7b/x", "as a number"),
        ("llava-next-7b/3", "cannot be divided by 3"),
        ("gemma3-4b", "unknown shape"),
    ],
)
def test_shapes_that_cannot_be_served_are_refused(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        serve_process.shape_of(name)


FAKE = """
import http.server, sys, os, signal, subprocess
port = int(sys.argv[sys.argv.index("--port") + 1])
if "--broken" in sys.argv:
    sys.exit("no such model")
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("child", child.pid, flush=True)
if "--stubborn" in sys.argv:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
    def log_message(self, *args):
        pass
http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


@pytest.fixture
def faked(monkeypatch: pytest.MonkeyPatch) -> None:
    """``foveate serve`` is a small program that is healthy at once and has a worker."""
    real = subprocess.Popen

    def start(words: list[str], **options: Any) -> Any:
        assert words[1:4] == ["-m", "foveate", "serve"]
        return real([sys.executable, "-c", FAKE, *words[4:]], **options)

    monkeypatch.setattr(serve_process.subprocess, "Popen", start)
    monkeypatch.setattr(serve_process, "STOPPING", 1.0)


def alive(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rsplit(")", 1)[1].split()[0] != "Z"


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
@pytest.mark.parametrize("options", [[], ["--stubborn"]])
def test_a_server_is_started_and_leaves_nothing_behind(faked: None, tmp_path: Path, options: list[str]) -> None:
    with serve_process.running("bundled", options, tmp_path / "server.log") as server:
        assert http.get(server.url).status_code == 200
        worker = int((tmp_path / "server.log").read_text().split()[1])
        assert alive(server.pid) and alive(worker)
        assert server.processor_seconds() > 0
    time.sleep(0.2)
    assert not alive(server.pid) and not alive(worker)


def test_a_server_that_does_not_start_is_quoted(faked: None, tmp_path: Path) -> None:
    message = "ended with status 1:\nno such model"
    with (
        pytest.raises(ChildProcessError, match=message),
        serve_process.running("bundled", ["--broken"], tmp_path / "log"),
    ):
        pass


def call(*arguments: Any, status: int = 0) -> Any:
    result = CliRunner().invoke(app, ["bench", *map(str, arguments)])
    assert result.exit_code == status, (result.stdout, result.stderr, result.exception)
    return result


def test_the_command_measures_a_running_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    server = Server(slower_when_more_is_kept)
    monkeypatch.setattr(serve, "connect", lambda url: client_of(server))
    options = ("--serve", "--url", "http://made.up", "--keep", "1.0,0.1", "--concurrency", "1,2", "--rate", 50)
    options += ("--requests", 4, "--repeats", 1, "--max-new-tokens", TOKENS, "--out", tmp_path)
    found = json.loads(call(*options, "--json").stdout)
    assert [(one["pictures"], one["loop"], one["load"], one["keep"]) for one in found["results"]] == [
        (pictures, *load, keep)
        for load in (("closed", 1.0), ("closed", 2.0), ("open", 50.0))
        for pictures in ("fresh", "repeated")
        for keep in (1.0, 0.1)
    ]
    assert sorted(Path(file).name for file in found["files"]) == [
        f"serve-a-running-server.{end}" for end in ("json", "md", "png")
    ]
    assert "| fresh | 2 at a time | 100% |" in (tmp_path / "serve-a-running-server.md").read_text(encoding="utf-8")
    broken = Server(lambda body, number: http.Response(500 if number == 9 else 200, stream=Stream(*whole())))
    monkeypatch.setattr(serve, "connect", lambda url: client_of(broken))
    result = call(*options, "--check", status=1)
    assert "target missed: failed of" in result.stderr and "status 500" in result.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--url", "http://x"), "go with --serve"),
        (("--rate", 2), "go with --serve"),
        (("--", "--enforce-eager"), "go with --serve"),
        (("--serve", "--tap"), "give one"),
        (("--serve", "--model", "x", "--shape", "bundled"), "give one"),
        (("--serve", "--url", "http://x", "--model", "y"), "leave --model"),
        (("--serve", "--url", "http://x", "--", "--enforce-eager"), "leave --model"),
        (("--serve", "--llm-layers", 2), "a checkpoint is served whole"),
        (("--serve", "--batch-size", 2), "say how many requests come with --concurrency"),
        (("--serve", "--concurrency", "many"), "--concurrency 'many' is no number"),
        (("--serve", "--concurrency", "0"), "is none"),
        (("--serve", "--rate", "-1"), "is none"),
        (("--serve", "--methods", "none"), "unknown method 'none'"),
        (("--serve", "--accuracy", "results"), "not beside --serve"),
        (("--serve", "--url", "http://127.0.0.1:9"), "does not answer as an OpenAI-compatible server"),
    ],
)
def test_what_makes_no_sense_is_refused(options: tuple[Any, ...], message: str, tmp_path: Path) -> None:
    assert message in call("--out", tmp_path, *options, status=2).stderr


def test_a_server_needs_vllm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("foveate.serving.server.find_spec", lambda name: None)
    assert "serving needs vLLM: pip install" in call("--serve", "--out", tmp_path, status=2).stderr


def test_the_http_library_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(serve.importlib, "import_module", missing)
    with pytest.raises(ModuleNotFoundError, match="pip install httpx"):
        serve.http()
