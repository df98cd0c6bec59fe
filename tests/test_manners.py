"""How the command behaves when something is wrong, odd or missing, and what it does before it takes long."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

import foveate
from foveate import method_names
from foveate.cli import app, console
from foveate.cli.settling import check_device
from foveate.coverage import in_transformers
from tests import checkpoint
from tests.bundled.test_photographs import like_a_photograph
from tests.tiny import ROWS

QUESTION = "What color is the card of the cat?"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(checkpoint.save(tmp_path_factory.mktemp("checkpoint")))


@pytest.fixture
def photo(tmp_path: Path) -> str:
    path = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 50, 3), dtype=np.uint8)).save(path)
    return str(path)


def call(*arguments: object, status: int = 0, **options: Any) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], **options)
    assert result.exit_code == status, (result.stdout, result.stderr, result.exception)
    return result


def ask(folder: str, *arguments: object, **options: Any) -> Result:
    return call("ask", *arguments, "--model", folder, "--max-new-tokens", 3, **options)


@pytest.mark.parametrize(
    "words, said",
    [
        (("ask", "--json"), "Missing argument"),
        (("ask", "a.png", "b", "--json", "--nope"), "No such option"),
        (("ask", "a.png", "b", "--json", "--repeats", "0"), "repeats"),
        (("ask", "a.png", "b", "--json"), "no such image file: a.png"),
        (("eval", "--json", "--keep", "1"), "may mean all tokens"),
        (("bench", "--json", "--shape", "none"), "none"),
        (("methods", "cove", "--json"), "did you mean 'cover'?"),
        (("models", "--check", "no_such_type", "--json"), "no_such_type"),
        (("nothing", "--json"), "nothing"),
    ],
)
def test_an_error_is_json_too(words: tuple[str, ...], said: str) -> None:
    result = call(*words, status=2)
    error = json.loads(result.stdout)["error"]
    assert said in error["message"] and error["status"] == 2 and error["kind"]
    assert "foveate: error: " in result.stderr and "Traceback" not in result.stderr
    plain = CliRunner().invoke(app, [word for word in words if word != "--json"])
    assert plain.exit_code == 2 and plain.stdout == ""


@pytest.mark.parametrize(
    "words, said",
    [
        (("none.png", QUESTION), "no such image file: none.png"),
        (("none.mp4", QUESTION), "no such video file: none.mp4"),
        (("https://a.b/c.png", QUESTION), "is a URL"),
        (("PHOTO", QUESTION, "--keep", "7"), None),
        (("PHOTO", QUESTION, "--keep", "140%"), "--keep 140%"),
        (("PHOTO", QUESTION, "--keep", "1"), "may mean all tokens or a single one"),
        (("PHOTO", QUESTION, "--again", "half"), "--again 'half' is no budget"),
        (("PHOTO", QUESTION, "--method", "cove:power=4"), "unknown method 'cove'; known: adafv, cover, "),
        (("PHOTO", QUESTION, "--method", "resize"), "resize is not available: it is no method but a baseline"),
        (("PHOTO", " "), "the question is empty"),
        (("PHOTO",), "give at least one image and then the question"),
    ],
)
def test_what_is_plainly_wrong_is_said_before_torch_is_imported(
    words: tuple[str, ...], said: str | None, photo: str
) -> None:
    """``said`` None: nothing is plainly wrong, and what comes next would import it."""
    code = (
        "import sys; from foveate.cli import app; import foveate.cli.asked as asked\n"
        "if not int(sys.argv.pop(1)): asked.run = asked.check\n"
        "try: app()\n"
        "finally: print(*({'torch', 'transformers', 'scipy', 'matplotlib'} & set(sys.modules)))"
    )
    given = [photo if word == "PHOTO" else word for word in words]
    command = [sys.executable, "-c", code, str(int(said is not None)), "ask", *given]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout.strip() == "", done.stderr
    assert done.returncode == (0 if said is None else 2), done.stderr
    assert said is None or said in done.stderr


def test_names_are_those_of_the_methods_that_ship() -> None:
    """In the order in which they are listed, so that a wrong one is told in the same words early and late."""
    code = (
        "from foveate import INSIDE_METHODS, METHODS, WRAPPERS, get_pruner\n"
        "from foveate.method_names import NAMES, check_name\n"
        "assert list(NAMES) == [*METHODS, *INSIDE_METHODS, *WRAPPERS]\n"
        "def said(of):\n"
        "    try: of('cove')\n"
        "    except ValueError as error: return str(error)\n"
        "assert said(check_name) == said(get_pruner) and 'did you mean' in said(check_name)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_method_of_ones_own_has_a_name_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = dataclasses.dataclass(type("Mine", (foveate.Saliency,), {"name": "of-mine"}))
    with pytest.raises(ValueError, match="unknown method 'of-mine'"):
        method_names.check_name("of-mine:a=1")
    try:
        foveate.register(mine)
        method_names.check_name("of-mine:a=1")
    finally:
        foveate.METHODS.pop("of-mine", None)
        method_names.NAMES.pop("of-mine", None)
    monkeypatch.setattr("foveate.method_names.entry_points", lambda **_: ["another package's"])
    method_names.check_name("of-mine:a=1")  # theirs are known once they are imported
    with pytest.raises(ValueError, match="trim is not available"):
        method_names.check_name("trim")


def test_a_fault_of_our_own_is_json_and_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch, photo: str) -> None:
    def broken(*given: object) -> None:
        raise RuntimeError("out of luck")

    monkeypatch.setattr("foveate.cli.ask.run", broken)
    result = call("ask", photo, QUESTION, "--json", status=1)
    assert json.loads(result.stdout)["error"] == {"message": "out of luck", "kind": "RuntimeError", "status": 1}
    assert isinstance(result.exception, RuntimeError)


def test_vllm_s_own_options_are_not_read_as_ours() -> None:
    result = call("eval", "--keep", "1", "--", "--json", status=2)
    assert result.stdout == ""


def test_json_in_a_locale_without_letters_and_with_an_odd_name(folder: str, photo: str, tmp_path: Path) -> None:
    odd = os.fsencode(tmp_path) + b"/ph\xff\xc3.png"
    os.rename(photo, odd)
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "HF_HUB_OFFLINE": "1"}
    words = [sys.executable, "-m", "foveate", "ask", odd, "Is there a caf\u00e9?".encode(), "--model", folder, "--json"]
    done = subprocess.run(
        [*words, "--show", os.fsencode(tmp_path) + b"/k\xfe.png"], env={**os.environ, **plain}, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.decode("ascii"))
    assert os.fsencode(told["images"][0]["path"]) == odd and told["question"] == "Is there a caf\u00e9?"
    assert os.path.exists(os.fsencode(told["show"]))


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
def test_json_is_json_in_every_encoding(monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    value = {"answer": "\u00e9 \u732b", "path": "ph\udcff.png", "none": [float("nan"), {"a": float("inf")}], "x": 0.5}
    for given in (value, {**value, "path": "a.png"}):
        raw = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
        console.print_json(given)
        read = json.loads(raw.getvalue().decode("utf-8"), parse_constant=pytest.fail)
        assert read == {**given, "none": [None, {"a": None}]}


def test_an_answer_is_not_lost_with_its_picture(folder: str, photo: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*given: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    answer = ask(folder, photo, QUESTION).stdout
    monkeypatch.setattr("foveate.show.save", full)
    out = Path(photo).with_name("kept.png")
    result = ask(folder, photo, QUESTION, "--show", out, status=1)
    assert result.stdout == answer and f"the picture {out} could not be written" in result.stderr
    assert result.stderr.index("visual tokens kept") < result.stderr.index("No space left")
    told = json.loads(ask(folder, photo, QUESTION, "--show", out, "--json", status=1).stdout)
    assert told["answer"] == answer.strip() and told["show"] is None and "No space left" in told["show_error"]


def test_standard_input(folder: str, photo: str) -> None:
    whole = json.loads(ask(folder, photo, QUESTION, "--json").stdout)
    piped = json.loads(ask(folder, "-", QUESTION, "--json", input=Path(photo).read_bytes()).stdout)
    assert piped["images"][0].pop("path") == "-" and whole["images"][0].pop("path") == photo and piped == whole
    assert json.loads(ask(folder, photo, "-", "--json", input=f"{QUESTION}\n").stdout)["question"] == QUESTION
    for words, given, said in (
        (("-", QUESTION), b"", "standard input is empty"),
        (("-", QUESTION), b"no picture", "standard input is not an image"),
        ((photo, "-"), b" \n", "where the question should be, is empty"),
        (("-", "-"), b"", "not both"),
        (("-", photo, "-"), b"", "not both"),
    ):
        assert said in ask(folder, *words, input=given, status=2).stderr


@pytest.mark.parametrize("positions, newlines", [("original", None), ("compact", "rows")])
def test_positions_newlines_and_device(folder: str, photo: str, positions: str, newlines: str | None) -> None:
    options: tuple[object, ...] = ("--positions", positions, "--device", "cpu", "--keep", "60%")
    options += () if newlines is None else ("--newlines", newlines)
    told = json.loads(ask(folder, photo, QUESTION, *options, "--json").stdout)
    session = foveate.look(checkpoint.model(), checkpoint.processor(), Image.open(photo))
    expected = session.ask(
        QUESTION, foveate.AdaFV(keep=0.6), max_new_tokens=3, do_sample=False, positions=positions,  # type: ignore[arg-type]
        newlines=newlines or "drop",  # type: ignore[arg-type]
    )  # fmt: skip
    assert (told["answer"], told["visual_tokens"]) == (expected.text, expected.visual_tokens)
    assert (told["visual_tokens"] > told["images"][0]["kept"]) is (newlines == "rows")
    compared = json.loads(ask(folder, photo, QUESTION, *options, "--compare", "--repeats", 1, "--json").stdout)
    assert compared["compare"]["kept"]["visual_tokens"] == expected.visual_tokens
    assert compared["answer"] == expected.text


def test_what_is_wrong_is_told_before_a_model_is_loaded(
    monkeypatch: pytest.MonkeyPatch, folder: str, photo: str, tmp_path: Path
) -> None:
    monkeypatch.setattr("foveate.loading.load", lambda *given, **options: pytest.fail("a model was loaded"))
    plain = tmp_path / "llava"
    ROWS["llava-clip"].make("sdpa").save_pretrained(plain)
    checkpoint.llava_processor().save_pretrained(plain)
    for model, words, said in (
        (folder, ("--positions", "old"), "unknown positions 'old'"),
        (folder, ("--newlines", "some"), "unknown newlines 'some'"),
        (folder, ("--device", "gpu"), "unknown device 'gpu'"),
        (folder, ("--device", "cuda:99"), "no device cuda:99"),
        (folder, ("--option", "min_shar=0.1"), "did you mean 'min_share'?"),
        (folder, ("--option", "min_share=x"), "min_share must be a number"),
        (folder, ("--option", "keep=0.1"), "one of the command"),
        (folder, ("--dtype", "int3"), "unknown dtype"),
        (folder, ("--method", "fastv", "--crops", "0.5"), "no crops="),
        (plain, ("--crops", "0.5"), "does not cut a picture into crops"),
        (plain, ("--config", tmp_path / "none.yaml"), "no such configuration file"),
    ):
        assert said in call("ask", photo, QUESTION, "--model", model, *words, status=2).stderr, words
    monkeypatch.setattr("foveate.cli.evaluate.open_suite", lambda *given: pytest.fail("pictures were drawn"))
    assert "does not exist" in call("eval", "--model", tmp_path / "no", "--count", 2, status=2).stderr
    assert check_device("auto") is None and check_device("cpu") == "cpu"


def test_a_configuration_file_and_what_is_typed_before_it(folder: str, photo: str, tmp_path: Path) -> None:
    file = tmp_path / "prune.yaml"
    file.write_text("method: cover\nkeep: 7t\noptions:\n  power: 2.0\nnewlines: rows\n")
    told = json.loads(ask(folder, photo, QUESTION, "--config", file, "--json").stdout)
    assert (told["method"], told["keep"], told["options"], told["newlines"]) == ("cover", 7, {"power": 2.0}, "rows")
    assert told["images"][0]["kept"] == 7
    told = json.loads(ask(folder, photo, QUESTION, "--config", file, "--keep", "3t", "--json").stdout)
    assert told["images"][0]["kept"] == 3 and told["options"] == {"power": 2.0}
    told = json.loads(ask(folder, photo, QUESTION, "--config", file, "--method", "saliency", "--json").stdout)
    assert told["method"] == "saliency" and "options" not in told
    file.write_text("metod: cover\n")
    assert "did you mean 'method'?" in ask(folder, photo, QUESTION, "--config", file, status=2).stderr


def test_eval_measures_what_a_file_says(folder: str, tmp_path: Path) -> None:
    file = tmp_path / "prune.json"
    file.write_text(json.dumps({"method": "cover", "options": {"power": 2.0}, "keep": "20%", "crops": 0.5}))
    options = ["eval", "--model", folder, "--count", 2, "--max-new-tokens", 1, "--out", tmp_path / "out"]
    told = json.loads(call(*options, "--config", file, "--json").stdout)
    assert {(run["method"], run["keep"]) for run in told["runs"]} == {
        ("all", 1.0), ("crops:amount=0.5:all", 1.0), ("crops:amount=0.5:cover:power=2.0", 0.2)
    }  # fmt: skip
    file.write_text(json.dumps({"positions": "original"}))
    assert "positions is not measured" in call(*options, "--config", file, status=2).stderr


def test_serve_reads_the_same_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    served: list[Any] = []
    monkeypatch.setattr("foveate.serving.server.serve", lambda *given: served.append(given))
    file = tmp_path / "prune.yaml"
    file.write_text("method: cover\nkeep: 20%\noptions: {power: 2.0}\npixels: 0.5\n")
    call("serve", "bundled", "--config", file, "--max-keep", "50%", "--port", 8001, "--", "--config", "vllm.yaml")
    ((model, rest, pruning),) = served
    assert model == "bundled" and [*rest] == ["--port", "8001", "--config", "vllm.yaml"]
    assert (pruning["method"], pruning["keep"], pruning["max_keep"], pruning["power"]) == ("cover", 0.2, 0.5, 2.0)
    assert pruning["pixels"] == 0.5
    file.write_text("newlines: rows\n")
    assert "family's own in a server" in call("serve", "bundled", "--config", file, status=2).stderr
    assert "lays the prompt out" in call("serve", "bundled", "--keep", "auto", "--method", "cover", status=2).stderr


def test_broken_pictures_of_a_data_set_are_named_up_front(
    monkeypatch: pytest.MonkeyPatch, folder: str, photo: str, tmp_path: Path
) -> None:
    monkeypatch.setattr("foveate.loading.load", lambda *given, **options: pytest.fail("a model was loaded"))
    (tmp_path / "cut.png").write_bytes(Path(photo).read_bytes()[:-500])
    (tmp_path / "text.png").write_text("no picture")
    names = ("photo.png", "cut.png", "text.png", "cut.png")
    lines = [json.dumps({"image": name, "question": QUESTION, "answer": "no"}) for name in names]
    (tmp_path / "asked.jsonl").write_text("\n".join(lines))
    words = "eval", "--suite", tmp_path / "asked.jsonl", "--model", folder, "--out", tmp_path / "out"
    said = call(*words, status=2).stderr
    assert "2 of 3 pictures of asked cannot be read" in said and "cut.png is truncated" in said and "text.png" in said


@pytest.mark.parametrize("methods, first", [("saliency,uniform", "saliency"), ("uniform,cover", "cover")])
def test_methods_are_paired_whichever_they_are(folder: str, tmp_path: Path, methods: str, first: str) -> None:
    options = ["eval", "--model", folder, "--count", 2, "--max-new-tokens", 1, "--methods", methods, "--keep", "0.25"]
    result = call(*options, "--out", tmp_path / "out")
    table = result.stdout[result.stdout.index("paired on the same questions") :]
    pairs = [line.split() for line in table.splitlines()]
    others = next(name for name in methods.split(",") if name != first)
    assert any(first in words and others in words and words.index(first) < words.index(others) for words in pairs)
    assert all(any(name in words and "all" in words for words in pairs) for name in methods.split(","))


def test_only_the_bundled_model_is_warned_of_photographs(folder: str, tmp_path: Path) -> None:
    like_a_photograph(3).save(tmp_path / "photo.jpg")
    told = call("ask", tmp_path / "photo.jpg", "Is there a cat?", "--max-new-tokens", 1).stderr
    assert "photo.jpg does not look like the drawn scenes" in told and "--model" in told
    assert "drawn scenes" not in ask(folder, tmp_path / "photo.jpg", "Is there a cat?").stderr
    drawn = Path(__file__).parents[1] / "examples" / "pictures" / "cards.png"
    assert "drawn scenes" not in call("ask", drawn, "Is there a cat?", "--max-new-tokens", 1).stderr


def test_nothing_that_draws_is_imported_for_help() -> None:
    heavy = "matplotlib", "datasets", "pandas", "pyarrow"
    for words, others in ((["--help"], ("torch",)), (["ask", "--help"], ("torch",)), (["methods"], ())):
        code = (
            f"import sys; sys.argv = ['foveate', *{words!r}]\nfrom foveate.__main__ import main\n"
            f"try: main()\nexcept SystemExit: pass\n"
            f"print([name for name in {heavy + others!r} if name in sys.modules], file=sys.stderr)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert (done.stderr.strip() == "[]" and "foveate" in done.stdout) or "adafv" in done.stdout, done.stderr


def test_lists_tell_options_and_what_is_not_installed() -> None:
    listed = call("methods").stdout
    assert "options: power=8.0" in listed and "where keep is the mean over all layers" in listed
    shown = call("models").stdout
    told = json.loads(call("models", "--json").stdout)["models"]
    lacking = [name for entry in told for name in entry["not_in_transformers"]]
    assert shown.count("(not in transformers") == len(lacking)
    assert not any(map(in_transformers, lacking)) and max(map(len, shown.splitlines())) <= 80
    for words in (("ask",), ("eval",), ("bench",)):
        assert "mean over all its layers" in " ".join(call(*words, "--help").stdout.replace("│", " ").split())


def test_tables_fit_a_terminal(monkeypatch: pytest.MonkeyPatch, folder: str, photo: str, tmp_path: Path) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    options = "--model", folder, "--count", 2, "--max-new-tokens", 1
    shown = call("eval", *options, "--methods", "cover,text", "--keep", "20%", "--out", tmp_path / "out").stdout
    assert "visual" in shown and "20%" in shown and "100%" in shown
    shown += ask(folder, photo, QUESTION, "--compare", "--repeats", 1).stdout + call("methods").stdout
    assert "first token, ms" in shown and "answer, all tokens:" in shown
    assert max(map(len, shown.splitlines())) <= 80
