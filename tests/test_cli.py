"""The command as a user meets it: what it prints where, and one clear line for every bad input."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import foveate
from foveate import INSIDE_METHODS, METHODS, WRAPPERS
from foveate.cli import app, console
from foveate.cli.evaluate import parse_methods
from foveate.coverage import SUPPORTED
from foveate.evaluation.leaderboard.checked import check
from tests import checkpoint
from tests.tiny import ROWS

QUESTION = "What color is the card of the cat?"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(checkpoint.save(tmp_path_factory.mktemp("checkpoint")))


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 50, 3), dtype=np.uint8)).save(path)
    return str(path)


def call(*arguments, status=0):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == status, (result.stdout, result.stderr, result.exception)
    return result


def refused(*arguments) -> str:
    result = call(*arguments, status=2)
    told = json.loads(result.stdout)["error"]["message"] if "--json" in arguments else result.stdout
    assert bool(told) is ("--json" in arguments) and "Traceback" not in result.stderr
    errors = [line for line in result.stderr.splitlines() if line.startswith("foveate: error: ")]
    assert len(errors) == 1
    return errors[0]


def ask(folder, *arguments, **options):
    return call("ask", *arguments, "--model", folder, "--max-new-tokens", 3, **options)


def test_ask_prints_the_answer_alone_on_stdout(folder, photo):
    result = ask(folder, photo, QUESTION)
    session = foveate.look(checkpoint.model(), checkpoint.processor(), Image.open(photo))
    expected = session.ask(QUESTION, foveate.AdaFV(keep=0.1), max_new_tokens=3, do_sample=False)
    assert result.stdout == expected.text + "\n"
    assert (
        f"{len(expected.selections[0])} of {expected.selections[0].total} visual tokens kept by adafv" in result.stderr
    )


def test_ask_json_is_one_object_and_nothing_else(folder, photo, tmp_path):
    out = tmp_path / "kept.png"
    result = ask(folder, photo, "What is a zebra?", "--json", "--keep", 5, "--method", "saliency", "--show", out)
    told = json.loads(result.stdout)
    assert told["question"] == "What is a zebra?" and told["method"] == "saliency" and told["keep"] == 5
    assert told["visual_tokens"] == 5 and told["images"][0]["kept"] == 5
    assert (told["images"][0]["width"], told["images"][0]["height"]) == (50, 90)
    assert told["show"] == str(out) and Image.open(out).size[0] > 300
    assert "vocabulary lacks zebra" in result.stderr and "cat" not in result.stderr


def test_compare_measures_both_sides(folder, photo):
    told = json.loads(ask(folder, photo, QUESTION, "--compare", "--json", "--repeats", 1, "--keep", 0.25).stdout)
    full, kept = told["compare"]["all"], told["compare"]["kept"]
    # newlines are sent with all tokens and dropped with few
    assert full["visual_tokens"] > told["images"][0]["total"]
    assert kept["visual_tokens"] == told["images"][0]["kept"] == -(-told["images"][0]["total"] // 4)
    text = full["prompt_tokens"] - full["visual_tokens"]
    assert kept["prompt_tokens"] - kept["visual_tokens"] == text > 0
    # 2 layers, keys and values, 2 heads of 16, float32
    for side in (full, kept):
        assert side["kv_cache_mib"] == pytest.approx(side["prompt_tokens"] * 2 * 2 * 2 * 16 * 4 / 2**20)
        assert side["prefill_ms"] > 0 and side["total_ms"] > 0
    ratio = told["compare"]["prefill_speedup"]
    assert ratio == pytest.approx(full["prefill_ms"] / kept["prefill_ms"])
    assert told["answer"] == kept["answer"]


def test_compare_answers_are_the_stock_model_s_and_the_pruned_one_s(folder, photo):
    told = json.loads(ask(folder, photo, QUESTION, "--compare", "--json", "--repeats", 1).stdout)
    model, processor = checkpoint.model(), checkpoint.processor()
    prompt = foveate.look(model, processor, Image.open(photo)).prompt(QUESTION)
    inputs = processor(images=Image.open(photo), text=prompt, return_tensors="pt")
    stock = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    text = processor.tokenizer.decode(stock[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
    assert told["compare"]["all"]["answer"] == text
    assert told["answer"] == ask(folder, photo, QUESTION).stdout.strip()


def test_compare_prints_a_table(folder, photo, tmp_path):
    result = ask(folder, photo, QUESTION, "--compare", "--repeats", 1, "--show", tmp_path / "kept.png")
    for row in ("answer", "visual tokens", "prompt, tokens", "KV cache, MiB", "first token, ms", "answer, ms"):
        assert row in result.stdout
    assert str(tmp_path / "kept.png") in result.stderr.replace("\n", "")


def test_several_images(folder, photo, tmp_path):
    told = json.loads(ask(folder, photo, photo, "Is there a cat?", "--json", "--keep", 3).stdout)
    assert [image["kept"] for image in told["images"]] == [3, 3] and told["visual_tokens"] == 6


def test_keep_one_and_keep_all(folder, photo):
    one = ask(folder, photo, QUESTION, "--json", "--keep", "1t")
    assert json.loads(one.stdout)["visual_tokens"] == 1
    whole = json.loads(ask(folder, photo, QUESTION, "--json", "--keep", "1.0").stdout)
    assert whole["images"][0]["kept"] == whole["images"][0]["total"]


@pytest.mark.parametrize("size", [(1, 1), (20000, 20), (20, 20000)])
def test_extreme_pictures_are_answered(folder, tmp_path, size):
    Image.new("RGB", size, "red").save(tmp_path / "a.png")
    out = tmp_path / "kept.png"
    told = json.loads(
        ask(folder, tmp_path / "a.png", QUESTION, "--json", "--compare", "--repeats", 1, "--show", out).stdout
    )
    assert told["images"][0]["kept"] >= 1 and out.is_file()


def test_animated_warns_on_stderr(folder, tmp_path):
    frames = [Image.new("RGB", (60, 60), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    result = ask(folder, tmp_path / "a.gif", QUESTION, "--json")
    json.loads(result.stdout)
    assert "2 frames: only the first" in result.stderr


def test_bad_images_are_refused(photo, tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    assert "not an image" in refused("ask", tmp_path / "text.png", QUESTION)
    assert "no such image file" in refused("ask", tmp_path / "none.png", QUESTION)
    assert "is a directory" in refused("ask", tmp_path, QUESTION)
    assert "download it first" in refused("ask", photo, "https://example.org/a.png", QUESTION)


def test_bad_questions_are_refused(photo):
    assert "question is empty" in refused("ask", photo, "  ")
    assert "at least one image" in refused("ask", "What is this?")
    assert "last argument is the question" in refused("ask", photo, photo)


def test_an_image_mark_in_the_question_is_refused(folder, photo):
    assert "'<image>'" in refused("ask", photo, "what is <image> ?", "--model", folder)


@pytest.mark.parametrize("keep", ["0", "-1", "0.0", "1.5", "nan", "inf", "-0.1", "many", "true"])
def test_bad_budgets_are_refused(photo, keep):
    assert "keep" in refused("ask", photo, QUESTION, f"--keep={keep}")


def test_as_many_tokens_as_needed(folder, photo):
    told = json.loads(ask(folder, photo, QUESTION, "--json", "--keep", "auto", "--method", "cover").stdout)
    session = foveate.look(checkpoint.model(), checkpoint.processor(), Image.open(photo))
    chosen = session.ask(QUESTION, foveate.Auto("cover"), max_new_tokens=3, do_sample=False)
    assert told["keep"] == "auto" and told["visual_tokens"] == chosen.visual_tokens
    assert "auto cannot hold adafv" in refused("ask", photo, QUESTION, "--keep", "auto")
    assert "as many tokens as needed keeps the method auto:cover" in refused("eval", "--keep", "auto")
    for command in (["bench"], ["bench", "--serve"]):
        assert "chooses its own number of tokens" in refused(*command, "--methods", "auto:cover")


def not_json(name):
    pytest.fail(f"{name} is not JSON")


def test_crops_by_question(folder, photo, tmp_path):
    """The tiny checkpoint cuts the photo into two crops; what is told is what a session says."""
    session = foveate.look(checkpoint.model(), checkpoint.processor(), Image.open(photo), crops="1:by=text")
    expected = session.ask(QUESTION, foveate.AdaFV(keep=0.25), max_new_tokens=3, do_sample=False)
    (chosen,) = expected.selections
    assert len(chosen.geometry.grids) == 3 and len(chosen.encoded_views) == 2
    options = "--crops", "1:by=text", "--keep", 0.25
    result = ask(folder, photo, QUESTION, *options, "--json", "--show", tmp_path / "kept.png")
    told = json.loads(result.stdout, parse_constant=not_json)
    assert told["crops"] == "1:by=text" and told["answer"] == expected.text
    (image,) = told["images"]
    assert image["encoded_views"] == list(chosen.encoded_views)
    assert (image["crops_encoded"], image["crops"]) == (1, 2)
    assert image["kept"] == len(chosen) and image["encoded"] == int(chosen.encoded.sum()) < image["total"]
    assert min(Image.open(tmp_path / "kept.png").size) > 300
    result = ask(folder, photo, QUESTION, *options)
    assert result.stdout == expected.text + "\n"
    tokens = f"1 of 2 crops encoded ({image['encoded']} tokens with the base view)"
    assert f"visual tokens kept by adafv, {tokens}, prompt of" in " ".join(result.stderr.split())


def test_all_crops_are_the_stock_way(folder, photo):
    told, plain = (
        json.loads(ask(folder, photo, QUESTION, "--json", *more).stdout) for more in (["--crops", "all"], [])
    )
    assert told.pop("crops") == "all"
    (image,) = told["images"]
    assert image.pop("encoded") == image["total"] and image.pop("encoded_views") == [0, 1, 2]
    assert (image.pop("crops_encoded"), image.pop("crops")) == (2, 2)
    assert told == plain


def test_crops_of_several_images_and_of_both_passes(folder, photo):
    given = photo, photo, "Is there a cat?", "--crops", "1", "--keep", 3
    told = json.loads(ask(folder, *given, "--json").stdout)
    assert [image["crops_encoded"] for image in told["images"]] == [1, 1] and told["visual_tokens"] == 6
    result = ask(folder, *given, "--again", 9, "--margin", 1)
    assert "2 of 4 crops encoded" in result.stderr and "with the base views)" in " ".join(result.stderr.split())
    assert "asked again" in result.stderr and "--crops 1 encodes a single crop" in result.stderr
    told = json.loads(ask(folder, *given, "--again", 9, "--margin", 1, "--json").stdout)
    assert told["asked_again"] and [len(image["encoded_views"]) for image in told["images"]] == [2, 2]


def test_compare_encodes_some_crops_on_one_side(folder, photo):
    options = "--compare", "--repeats", 1, "--crops", 0, "--keep", 0.1
    told = json.loads(ask(folder, photo, QUESTION, *options, "--json").stdout, parse_constant=not_json)
    (image,) = told["images"]
    assert told["compare"]["all"]["encoded_tokens"] == image["total"]
    assert told["compare"]["kept"]["encoded_tokens"] == image["encoded"] < image["total"]
    assert image["encoded_views"] == [0] and image["crops_encoded"] == 0
    assert told["answer"] == ask(folder, photo, QUESTION, "--crops", 0, "--keep", 0.1).stdout.strip()
    result = ask(folder, photo, QUESTION, *options)
    assert "tokens encoded" in result.stdout and "0 of 2 crops encoded" in result.stderr
    assert "tokens encoded" not in ask(folder, photo, QUESTION, "--compare", "--repeats", 1).stdout


@pytest.mark.parametrize("crops", ["", "some", "-1", "0.0", "1.5", "nan", "0.5:by=luck", "0.5:of=2", "auto:by=random"])
def test_bad_crops_are_refused_before_anything_is_loaded(photo, crops):
    assert "crops" in refused("ask", photo, QUESTION, "--model", "/nowhere", "--crops", crops)


def test_crops_are_refused_where_there_are_none(folder, photo, tmp_path):
    assert "prunes inside the LLM and has no crops=" in refused(
        "ask", photo, QUESTION, "--model", folder, "--crops", 0.5, "--method", "fastv"
    )
    plain = tmp_path / "llava"
    model = ROWS["llava-clip"].make("sdpa")
    model.save_pretrained(plain)
    checkpoint.llava_processor().save_pretrained(plain)
    given = "ask", photo, QUESTION, "--model", plain
    assert "does not cut a picture into crops" in refused(*given, "--crops", 0.5)
    assert "does not cut a picture into crops" in refused(*given, "--crops", 0.5, "--compare")


def test_an_unknown_method_is_refused(photo):
    assert "unknown method 'fastest'; known: adafv" in refused("ask", photo, QUESTION, "--method", "fastest")


def test_a_bad_overlay_path_is_refused_before_anything_is_loaded(photo, tmp_path):
    assert "suffixes" in refused("ask", photo, QUESTION, "--show", tmp_path / "kept.doc")
    assert "does not exist" in refused("ask", photo, QUESTION, "--show", tmp_path / "no" / "kept.png")


def test_a_missing_model_folder_is_named(photo, tmp_path):
    assert "does not exist" in refused("ask", photo, QUESTION, "--model", tmp_path / "none")
    assert "is a file" in refused("ask", photo, QUESTION, "--model", photo)


@pytest.mark.parametrize("part", ["config.json", "processor_config.json", "tokenizer.json", "model.safetensors"])
def test_a_missing_part_of_a_checkpoint_is_named(photo, tmp_path, part):
    whole = checkpoint.save(tmp_path / "whole")
    (whole / part).unlink()
    assert f"lacks {part}" in refused("ask", photo, QUESTION, "--model", whole)


def test_a_missing_shard_is_named(photo, tmp_path):
    whole = checkpoint.save(tmp_path / "whole")
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (whole / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "lacks model-00002-of-00002.safetensors" in refused("ask", photo, QUESTION, "--model", whole)


def test_an_unknown_family_is_refused_before_its_weights_are_read(photo, tmp_path):
    whole = checkpoint.save(tmp_path / "whole")
    (whole / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    message = refused("ask", photo, QUESTION, "--model", whole)
    assert "family 'gpt2'" in message and "llava_next" in message


def test_a_hub_that_cannot_be_reached_says_what_to_do(photo):
    message = refused("ask", photo, QUESTION, "--model", "nobody/no-such-model")
    assert "nobody/no-such-model" in message and "give its folder" in message


def test_an_unknown_dtype_is_refused(folder, photo):
    assert "known: auto" in refused("ask", photo, QUESTION, "--model", folder, "--dtype", "int3")


def test_lists():
    listed = call("methods").stdout
    assert all(name in listed for name in METHODS) and "2501.09532" in listed
    told = json.loads(call("methods", "--json").stdout)["methods"]
    names = {*METHODS, *INSIDE_METHODS, *(f"{name}:METHOD" for name in WRAPPERS)}
    assert {entry["name"] for entry in told} == names and all(entry["does"] for entry in told)
    assert {entry["name"] for entry in told if entry["prunes"] == "inside the LLM"} == set(INSIDE_METHODS)
    assert next(entry for entry in told if entry["name"] == "saliency")["reads"] == ["saliency"]
    assert [entry["name"] for entry in told if entry["mark"] == "the default"] == ["adafv"]
    assert next(entry for entry in told if entry["name"] == "cover")["paper"] is None
    assert "LLaVA-NeXT" in call("models").stdout
    models = json.loads(call("models", "--json").stdout)["models"]
    assert {name for entry in models for name in entry["model_types"]} == set(SUPPORTED)
    assert next(entry for entry in models if entry["family"] == "Qwen3-VL")["video"] == "yes"
    assert call("--version").stdout == f"foveate {foveate.__version__}\n"


def test_scenes_are_written(tmp_path):
    out = tmp_path / "scenes"
    result = call("scenes", "--out", out, "--count", 2, "--seed", 3, "--split", "style")
    assert result.stdout.strip() == str(out / "scenes.jsonl")
    first = json.loads((out / "scenes.jsonl").read_text().splitlines()[0])
    assert (out / first["image"]).is_file()
    assert "unknown split" in refused("scenes", "--out", out, "--split", "train")
    result = call("scenes", "--out", out, "--count", 1, "--lmms-task")
    assert result.stdout.split() == [str(out / "scenes.jsonl"), str(out / "foveate_scenes.yaml")]


def test_documents_are_written(tmp_path):
    out = tmp_path / "documents"
    result = call("scenes", "--world", "documents", "--out", out, "--count", 2, "--split", "style", "--lmms-task")
    assert result.stdout.split() == [str(out / "documents.jsonl"), str(out / "foveate_documents.yaml")]
    first = json.loads((out / "documents.jsonl").read_text().splitlines()[0])
    assert (out / first["image"]).is_file() and first["kind"] in ("number", "word", "comparison", "place")
    assert "unknown world 'maps'; known: scenes, documents" in refused("scenes", "--out", out, "--world", "maps")
    assert "unknown split" in refused("scenes", "--world", "documents", "--out", out, "--split", "train")


def test_eval_of_documents(folder, tmp_path):
    out = tmp_path / "out"
    options = ["eval", "--suite", "documents", "--model", folder, "--count", 2, "--methods", "adafv", "--keep", "0.25"]
    told = json.loads(call(*options, "--out", out, "--json").stdout)
    assert told["settings"]["suite"] == "documents" and (out / "documents" / "documents.jsonl").is_file()
    groups = {cell["group"] for cell in told["accuracy"]}
    assert {"overall", "pooled", "small", "number", "word", "comparison", "place"} <= groups
    import pyarrow.parquet as pq

    table = pq.read_table(out / "answers.parquet").to_pylist()
    items = [json.loads(line) for line in (out / "documents" / "documents.jsonl").read_text().splitlines()]
    assert {row["question"] for row in table} == {item["question"] for item in items}
    printed = call(*options, "--out", out).stdout
    assert "comparison" in printed and "small in clutter" in printed and "presence" not in printed
    wrong = refused("eval", "--suite", "documents", "--analysis", tmp_path, "--out", out)
    assert "leave it out for other suites" in wrong


def test_eval_reports_resumes_and_refuses_a_mixture(folder, tmp_path):
    out = tmp_path / "out"
    options = ["eval", "--model", folder, "--count", 2, "--methods", "adafv,text", "--keep", "1.0,25%", "--out", out]
    table = call(*options)
    assert "by kind" in table.stdout and "small in clutter" in table.stdout and "McNemar" in table.stdout
    rows = (out / "rows.jsonl").read_text()
    told = json.loads(call(*options, "--json").stdout)
    assert (out / "rows.jsonl").read_text() == rows  # nothing was asked again
    assert {(run["method"], run["keep"]) for run in told["runs"]} == {("all", 1.0), ("adafv", 0.25), ("text", 0.25)}
    assert {"accuracy.png", "report.json"} <= {path.name for path in out.iterdir()}
    _, wrong = check([out / "result.json"])
    assert [fault.split(": ", 1)[1] for fault in wrong] == ["lacks the run blind at 0: add blind to --methods"]
    assert "seed: 0 then, 1 now" in refused(*options, "--seed", 1)


@pytest.fixture
def asked(photo, tmp_path):
    """A JSONL of three questions about one photo."""
    lines = [
        {"image": "photo.png", "question": question, "answer": answer, "kind": kind}
        for question, answer, kind in (
            (QUESTION, "no", "a"),
            ("Is there a dog?", "yes", "b"),
            ("Is there?", "yes", "b"),
        )
    ]
    path = tmp_path / "asked.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return path


def test_eval_of_a_jsonl_with_a_metric(folder, asked, tmp_path):
    options = ["eval", "--suite", asked, "--metric", "yesno", "--group-column", "kind", "--model", folder]
    options += ["--methods", "adafv,saliency", "--keep", "0.25,7", "--max-new-tokens", 2, "--out", tmp_path / "out"]
    result = call(*options)
    assert "F1 of yes in %" in result.stdout and "precision" in result.stdout and "p (swaps)" in result.stdout
    told = json.loads(call(*options, "--json").stdout)
    assert {run["keep"] for run in told["runs"]} == {1.0, 0.25, 7} and told["metric"] == "yesno"
    assert {cell["group"] for cell in told["accuracy"]} == {"all", "a", "b"}
    import pyarrow.parquet as pq

    table = pq.read_table(tmp_path / "out" / "answers.parquet")
    assert table.num_rows == 3 * 5 and set(table["score"].to_pylist()) <= {0.0, 1.0}
    assert "metric" not in json.loads((tmp_path / "out" / "settings.json").read_text())  # another needs no new answers
    again = json.loads(call(*options, "--metric", "exact", "--json").stdout)
    assert again["metric"] == "exact" and again["runs"] == told["runs"]


def test_eval_of_a_data_set_folder(folder, tmp_path):
    import datasets

    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 50, 3), dtype=np.uint8))
    rows = {"image": [picture] * 2, "q": [QUESTION, "Is there a dog?"], "answers": [["red"], ["yes", "no"]]}
    datasets.DatasetDict({"validation": datasets.Dataset.from_dict(rows)}).save_to_disk(tmp_path / "set")
    options = ["eval", "--suite", f"hf:{tmp_path / 'set'}", "--split", "validation", "--question-column", "q"]
    options += ["--methods", "adafv", "--keep", "0.5", "--max-new-tokens", 2, "--suffix", " In a word.", "--json"]
    wrong = [*options[:5], "--question-column", "ask", "--model", folder, "--out", tmp_path / "out"]
    assert "no column 'ask'; it has: image, q, answers" in refused(*wrong)
    told = json.loads(call(*options, "--model", folder, "--out", tmp_path / "out").stdout)
    assert [run["count"] for run in told["runs"]] == [2, 2]
    rows = (tmp_path / "out" / "rows.jsonl").read_text(encoding="utf-8")
    assert '"question": "Is there a dog? In a word."' in rows
    assert "columns: " in refused(*options, "--id-column", "q", "--model", folder, "--out", tmp_path / "out")


def test_all_methods_and_others():
    names = parse_methods("all, fastv:layer=1,uniform")
    assert names == [*METHODS, "fastv:layer=1"]


def test_eval_quick_asks_less(monkeypatch):
    asked = []
    monkeypatch.setattr("foveate.cli.evaluate.run", asked.append)
    for options in (
        (),
        ("--quick",),
        ("--quick", "--keep", "0.3"),
        ("--quick", "--count", 5),
        ("--quick", "--suite", "a.jsonl"),
        ("--suite", "documents"),
        ("--quick", "--suite", "documents"),
    ):
        call("eval", *options)
    assert [(one.source.count, one.keep) for one in asked] == [
        (300, "1.0,0.25,0.1,0.05"), (80, "1.0,0.1"), (80, "0.3"), (5, "1.0,0.1"), (400, "1.0,0.1"),
        (300, "1.0,0.25,0.1,0.05"), (80, "1.0,0.1"),
    ]  # fmt: skip


def test_eval_refuses_bad_arguments(tmp_path):
    assert "unknown suite" in refused("eval", "--suite", "all")
    assert "unknown metric" in refused("eval", "--suite", "a.jsonl", "--metric", "bleu")
    assert "no such file of questions" in refused("eval", "--suite", "a.jsonl", "--out", tmp_path / "b")
    assert "unknown method" in refused("eval", "--methods", "adafv,nope")
    assert "adafv has no option" in refused("eval", "--methods", "adafv:nope=1")
    assert "how salient" in refused("eval", "--suite", "a.jsonl", "--analysis", tmp_path)
    assert "keep" in refused("eval", "--keep", "0.1,none")
    assert "names nothing" in refused("eval", "--keep", ",")
    assert "unknown split" in refused("eval", "--split", "train", "--out", tmp_path / "a")


def test_help_names_the_options():
    helped = call("ask", "--help").stdout
    assert "compare" in helped and "keep" in helped


@pytest.mark.parametrize("load, threads, told", [(99.0, None, True), (0.1, None, False), (99.0, "1", False)])
def test_a_busy_machine_is_told_of(monkeypatch, capsys, load, threads, told):
    monkeypatch.setattr(console.os, "getloadavg", lambda: (load, load, load), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if threads is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
    console.warn_when_busy()
    assert ("OMP_NUM_THREADS=1" in capsys.readouterr().err) is told


def test_all_of_one_method():
    shown = call("methods", "cover").stdout
    assert "Foveate's own" in shown and "power=8.0" in shown
    told = json.loads(call("methods", "auto", "--json").stdout)
    assert told["options"]["share"] == 0.8 and "floor" in told["text"]
    assert "did you mean 'cdpruner'?" in refused("methods", "cdprune")
    assert "did you mean 'words'" in refused("eval", "--methods", "cdpruner:word=max")


def test_ask_writes_a_page(folder, photo, tmp_path):
    out = tmp_path / "page.html"
    result = ask(folder, photo, QUESTION, "--html", out, "--keep", 0.25, "--json")
    told = json.loads(result.stdout)
    page = out.read_text(encoding="utf-8")
    assert told["html"] == str(out)
    assert f'<div class="answer">{told["answer"]}</div>' in page and "adafv, keep 0.25" in page
    assert f"{told['images'][0]['kept']} of {told['images'][0]['total']} patch tokens kept" in page
    ask(folder, photo, QUESTION, "--html", out, "--keep", 0.25, "--compare", "--repeats", 1)
    page = out.read_text(encoding="utf-8")
    assert page.count('<div class="answer">') == 2 and page.count('class="fv-figure"') == 1
    assert "<th>KV cache, MiB</th>" in page and "pointed at most by" in page
    assert "suffix .html" in refused("ask", photo, QUESTION, "--html", tmp_path / "page.png")


def test_the_explorer_without_its_extra_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "foveate.app.page", raising=False)
    assert "the explorer needs gradio: pip install 'foveate[app]'" in refused("app")
