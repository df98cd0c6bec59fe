"""The commands and their options; what they do stands beside, and is imported when they run."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from foveate.cli.console import command
from foveate.cli.group import Commands

app = typer.Typer(
    name="foveate",
    cls=Commands,
    help="Vision-language models look where the question points: training-free visual token pruning.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

Model = Annotated[
    str | None,
    typer.Option("--model", metavar="MODEL", help="A folder, a hub id, bundled (default) or dynamic: these two ship."),
]
Dtype = Annotated[str, typer.Option("--dtype", help="auto, float32, bfloat16 or float16.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, of an error too.")]
Split = Annotated[str, typer.Option("--split", help="test, or style: artwork or fonts never trained on.")]
Seed = Annotated[int, typer.Option("--seed", help="Which pictures are drawn.")]
Metric = Annotated[
    str,
    typer.Option(
        "--metric", help="exact, vqa, anls, relaxed (charts) or yesno (F1, as in POPE); not for drawn suites."
    ),
]
ImageColumn = Annotated[str, typer.Option("--image-column", help="Field or column of the picture.")]
QuestionColumn = Annotated[str, typer.Option("--question-column", help="Field or column of the question.")]
AnswersColumn = Annotated[str, typer.Option("--answers-column", help="Field or column of the answer or answers.")]
DatasetConfig = Annotated[
    str | None, typer.Option("--dataset-config", metavar="NAME", help="Configuration of a data set that has several.")
]
Config = Annotated[
    str | None,
    typer.Option(
        "--config",
        metavar="FILE",
        help="A YAML or JSON file that says method, keep, options, crops, pixels, positions ...; what is typed goes "
        "before it.",
    ),
]
Method = Annotated[
    str | None,
    typer.Option(
        "--method",
        show_default="adafv",
        help="Which tokens stay; `foveate methods` lists them and their options, which may stand behind the name: "
        "cover:power=4.",
    ),
]
MethodOption = Annotated[
    list[str] | None,
    typer.Option("--option", metavar="NAME=VALUE", help="An option of the method; may be repeated."),
]
Suffix = Annotated[str, typer.Option("--suffix", help="Text put after every question; \\n is a line break.")]
KEEP = "10% or 0.1: a part of each image's tokens. 64t or 64: tokens per image. 100% or 1.0: all."
INSIDE_KEEP = "Of fastv, pyramiddrop and sparsevlm, which prune inside the LLM, it is the mean over all its layers."
PIXELS = "0.25 scales each picture's number of pixels, 200000 is the most it may have, auto looks at it first"
AskPixels = Annotated[
    str | None, typer.Option("--pixels", help=f"Resize pictures before the model sees them: {PIXELS}.")
]
Crops = Annotated[
    str | None,
    typer.Option(
        help="Encode only the crops that the question points at, in models that cut pictures into crops: 0.5 of them, "
        "2 of them, auto (as many as hold most of the mass), all. Options stand behind: 0.5:by=text. Or distinct: all, "
        "identical ones once."
    ),
]
BatchSize = Annotated[int, typer.Option("--batch-size", min=1, help="Most questions asked at once.")]
AnswerTokens = Annotated[
    int | None,
    typer.Option("--max-new-tokens", min=1, help="Longest answer, tokens; default 8 for drawn suites, 32 for others."),
]


def main() -> int:
    """Runs the command line; ends the process with its status."""
    app()
    return 0


def _version(wanted: bool) -> None:
    if wanted:
        from foveate import __version__

        typer.echo(f"foveate {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
@command
def ask(
    images_and_question: Annotated[
        list[str],
        typer.Argument(
            metavar='IMAGE... "QUESTION"',
            help="Image files, or a video, then the question; - for a picture or the question is standard input.",
        ),
    ],
    model: Model = None,
    method: Method = None,
    option: MethodOption = None,
    keep: Annotated[
        str | None,
        typer.Option(
            show_default="0.1", help=f"{KEEP} auto: as many as needed, for cover, saliency and text. {INSIDE_KEEP}"
        ),
    ] = None,
    config: Config = None,
    again: Annotated[
        str | None, typer.Option(help="A larger budget, to ask again with where the answer is unsure; default: never.")
    ] = None,
    margin: Annotated[
        float | None,
        typer.Option(help="With --again: unsure is an answer in which two tokens' probabilities are nearer; 0.5."),
    ] = None,
    show: Annotated[
        Path | None,
        typer.Option(
            help="Write a picture of what was kept, with the maps it was chosen from; of a video a contact sheet, or "
            "as .gif, .webp, .apng the film."
        ),
    ] = None,
    html: Annotated[
        Path | None, typer.Option(help="Write a page to explore it patch by patch: one file, opens offline.")
    ] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Answer with all tokens as well, and measure both.")
    ] = False,
    as_json: Json = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, tokens.")] = 32,
    repeats: Annotated[int, typer.Option(min=1, help="Timings behind each median of --compare.")] = 3,
    dtype: Dtype = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:1.")] = "auto",
    pixels: AskPixels = None,
    crops: Crops = None,
    positions: Annotated[
        str | None,
        typer.Option(
            help="compact: the shortened prompt's places are numbered anew. original: every kept token has its own "
            "place. Default: the family's."
        ),
    ] = None,
    newlines: Annotated[
        str | None,
        typer.Option(show_default="drop", help="LLaVA-NeXT's newline tokens: drop, or rows: those of rows that stay."),
    ] = None,
    frames: Annotated[int | None, typer.Option(min=1, help="Of a video: see so many frames, evenly spread.")] = None,
    fps: Annotated[
        float | None, typer.Option(help="Of a video: see so many frames a second; default 2, in all 4 to 64.")
    ] = None,
) -> None:
    """Ask a question about image files or a video, with part of their visual tokens."""
    from foveate.cli.asked import Request, run

    *images, question = images_and_question
    given = max_new_tokens, repeats, dtype, again, margin, pixels, crops, html
    more = config, option or [], device, positions, newlines, frames, fps
    run(Request(images, question, model, method, keep, show, compare, as_json, *given, *more))


@app.command("app")
@command
def explore(
    model: Model = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 answers other machines too.")] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Default: the first that is free from 7860 on.")
    ] = None,
    share: Annotated[
        bool, typer.Option("--share", help="Open a tunnel of Gradio's, for anybody who has the address.")
    ] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, tokens.")] = 64,
    dtype: Dtype = "auto",
    pixels: AskPixels = None,
    crops: Crops = None,
    config: Annotated[
        str | None,
        typer.Option(
            "--config",
            metavar="FILE",
            help="A YAML or JSON file: its method, keep and options stand on the right side at first; its crops and "
            "pixels are the page's, and what is typed goes before them.",
        ),
    ] = None,
) -> None:
    """Open a page in the browser: ask about pictures, and see what is kept, patch by patch."""
    from foveate.cli.explore import Request, run

    run(Request(model, host, port, share, max_new_tokens, dtype, pixels, crops, config))


@app.command("eval")
@command
def evaluate(
    vllm_options: Annotated[
        list[str] | None, typer.Argument(metavar="[-- VLLM_OPTIONS]", help="With --engine vllm: its own options.")
    ] = None,
    engine: Annotated[str, typer.Option(help="What runs the model: transformers or vllm.")] = "transformers",
    suite: Annotated[
        str,
        typer.Option(
            help="scenes, documents, clips, a .jsonl file, or hf:NAME of a Hugging Face data set or its folder."
        ),
    ] = "scenes",
    methods: Annotated[
        str | None,
        typer.Option(
            help="Comma-separated names, or all (those before the LLM). Options stand behind a name: "
            "fastv:layer=1:budget=final. ask-again:first=0.02:margin=0.5:cdpruner asks again where unsure; "
            "--keep is its second budget then. resize: smaller pictures in place of pruning, at the same cost, or "
            "marked as over budget where the model makes more tokens of any. "
            "crops:amount=0.5:cdpruner encodes half of the crops. blind: the question without its picture. "
            "Default: all, resize, blind."
        ),
    ] = None,
    keep: Annotated[
        str | None,
        typer.Option(
            help=f"Comma-separated budgets. {KEEP} All tokens are always run. Default 1.0,0.25,0.1,0.05, with --quick "
            f"0.1. {INSIDE_KEEP}"
        ),
    ] = None,
    config: Config = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="80 pictures, or 400 questions: under five minutes on two cores.")
    ] = False,
    count: Annotated[
        int | None,
        typer.Option(
            min=1, help="How many pictures (default 300); of another suite, how many questions (default all)."
        ),
    ] = None,
    seed: Seed = 0,
    split: Annotated[str, typer.Option("--split", help="Of drawn pictures (test, style) or of the data set.")] = "test",
    metric: Metric = "exact",
    image_column: ImageColumn = "image",
    question_column: QuestionColumn = "question",
    answers_column: AnswersColumn = "answers",
    id_column: Annotated[str | None, typer.Option(help="Field or column of an id; default the place.")] = None,
    group_column: Annotated[
        str | None, typer.Option(help="Field or column by which accuracy is broken down as well.")
    ] = None,
    dataset_config: DatasetConfig = None,
    suffix: Suffix = "",
    batch_size: BatchSize = 16,
    max_new_tokens: AnswerTokens = None,
    analysis: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="What `foveate analyze` wrote of the same scenes: groups by salience."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Results folder; started again with the same settings, it goes on.")
    ] = None,
    model: Model = None,
    as_json: Json = False,
    dtype: Dtype = "auto",
    pixels: AskPixels = None,
    crops: Annotated[
        str | None,
        typer.Option(
            help="Comma-separated amounts of crops that are encoded, such as 1,0.5,auto,0.5:by=random: every method is "
            "run under each. 1 is all of them, distinct too (identical ones once), 0 the base view alone; models that "
            "cut pictures into crops."
        ),
    ] = None,
) -> None:
    """Measure accuracy with all tokens and under every method, with 95 % intervals; resumable.

    Under `accelerate launch -m foveate eval ...` every process answers its share, and the first one reports.
    """
    from foveate.cli.evaluate import Request, run
    from foveate.evaluation.suites import Columns, Source
    from foveate.evaluation.worlds import WORLDS

    columns = Columns(image_column, question_column, answers_column, id_column, group_column)
    if count is None and (quick or suite in WORLDS):
        count = (80 if quick else 300) if suite in WORLDS else 400
    if keep is None and config is None:
        keep = "1.0,0.1" if quick else "1.0,0.25,0.1,0.05"
    source = Source(suite, count, seed, split, metric, columns, dataset_config, suffix.replace("\\n", "\n"))
    given = analysis, engine, vllm_options or [], pixels, crops, config
    run(Request(source, methods, keep, out, model, as_json, dtype, batch_size, max_new_tokens, *given))


@app.command()
@command
def tune(
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA", help="scenes, documents, a .jsonl file, or hf:NAME of a data set or its folder."
        ),
    ],
    target: Annotated[float, typer.Option(help="The share of the accuracy with all tokens that is to be held.")] = 0.98,
    methods: Annotated[str, typer.Option(help="Comma-separated names, or all.")] = "all",
    confidence: Annotated[float, typer.Option(help="With which nothing is wrongly said to hold it.")] = 0.95,
    quick: Annotated[
        bool, typer.Option("--quick", help="120 pictures, or 400 questions: under five minutes on two cores.")
    ] = False,
    count: Annotated[
        int | None,
        typer.Option(min=1, help="How many pictures (default 300); of other data, how many questions (default all)."),
    ] = None,
    seed: Seed = 0,
    split: Annotated[str, typer.Option("--split", help="Of drawn pictures (test, style) or of the data set.")] = "test",
    metric: Metric = "exact",
    image_column: ImageColumn = "image",
    question_column: QuestionColumn = "question",
    answers_column: AnswersColumn = "answers",
    dataset_config: DatasetConfig = None,
    suffix: Suffix = "",
    batch_size: BatchSize = 16,
    max_new_tokens: AnswerTokens = None,
    out: Annotated[
        Path | None, typer.Option(help="Results folder; started again with the same settings, it goes on.")
    ] = None,
    model: Model = None,
    as_json: Json = False,
    dtype: Dtype = "auto",
) -> None:
    """Find the smallest budget, and the method, that holds the accuracy on your own questions."""
    from foveate.cli.tune import Request, run
    from foveate.evaluation.suites import Columns, Source
    from foveate.evaluation.worlds import WORLDS

    if count is None and (quick or data in WORLDS):
        count = (120 if quick else 300) if data in WORLDS else 400
    columns = Columns(image_column, question_column, answers_column)
    source = Source(data, count, seed, split, metric, columns, dataset_config, suffix.replace("\\n", "\n"))
    run(Request(source, target, methods, confidence, out, model, as_json, dtype, batch_size, max_new_tokens))


@app.command()
@command
def analyze(
    suite: Annotated[str, typer.Option(help="Which drawn pictures: scenes, documents or clips.")] = "scenes",
    out: Annotated[
        Path | None, typer.Option(help="Folder for the pictures, analysis.json, analysis.png and kept.png.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="40 pictures: well under five minutes on two cores.")] = False,
    count: Annotated[int | None, typer.Option(min=1, help="How many pictures; default 300.")] = None,
    methods: Annotated[
        str,
        typer.Option(
            help="Comma-separated names, or all: where the tokens lie that they keep, beside uniform; of "
            "clips, which part of what is asked about they keep."
        ),
    ] = "adafv,saliency,text,cover",
    keep: Annotated[
        str, typer.Option(help="Comma-separated budgets of these: fractions, or tokens per image or clip.")
    ] = "0.1",
    layer: Annotated[int, typer.Option(help="Which layer of the language model is read, from 0.")] = 2,
    seed: Seed = 0,
    split: Split = "test",
    batch_size: BatchSize = 16,
    model: Model = None,
    as_json: Json = False,
    dtype: Dtype = "auto",
) -> None:
    """Show which scores depend on the place in the prompt, which find what is asked about, and where kept tokens lie.

    On drawn pictures, where it is known what lies where.
    """
    from foveate.cli.analyze import Request, run
    from foveate.evaluation.suites import Source

    source = Source(suite, count or (40 if quick else 300), seed, split)
    run(Request(source, layer, out, model, as_json, dtype, batch_size, methods, keep))


@app.command()
@command
def bench(
    vllm_options: Annotated[
        list[str] | None, typer.Argument(metavar="[-- VLLM_OPTIONS]", help="With --serve: for the server it starts.")
    ] = None,
    tap: Annotated[
        bool, typer.Option("--tap", help="Measure what reading saliency costs, encoder by encoder, instead.")
    ] = False,
    selection: Annotated[
        bool, typer.Option("--selection", help="Measure what choosing costs instead, method by method.")
    ] = False,
    serve: Annotated[
        bool, typer.Option("--serve", help="Measure a server under load instead: requests/s, first token, caches.")
    ] = False,
    url: Annotated[
        str | None, typer.Option(help="With --serve: a running `foveate serve`; default: one is started and stopped.")
    ] = None,
    concurrency: Annotated[
        str | None,
        typer.Option(help="With --serve: comma-separated requests at a time; default 1,4,8,16,32, with --quick 8."),
    ] = None,
    rate: Annotated[
        str | None, typer.Option(help="With --serve: comma-separated requests per second, come what may (Poisson).")
    ] = None,
    requests: Annotated[
        int | None, typer.Option(min=1, help="With --serve: requests behind each figure and round; default 32.")
    ] = None,
    quick: Annotated[
        bool,
        typer.Option("--quick", help="Fewer budgets and repeats; with --tap, few encoder layers, scaled up."),
    ] = False,
    check: Annotated[bool, typer.Option("--check", help="End with status 1 when a target is missed.")] = False,
    model: Model = None,
    shape: Annotated[
        str | None,
        typer.Option(help="A checkpoint's shape with random weights, e.g. llava-next-7b; with --tap, several."),
    ] = None,
    methods: Annotated[
        str,
        typer.Option(
            help="Comma-separated names, or all; resize: beside them, smaller pictures that cost no more tokens."
        ),
    ] = "adafv",
    keep: Annotated[
        str | None,
        typer.Option(help=f"Comma-separated budgets. {KEEP} Default 1.0,0.5,0.25,0.1,0.05. {INSIDE_KEEP}"),
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Prompts at once.")] = 1,
    image: Annotated[
        str | None, typer.Option(metavar="HEIGHTxWIDTH", help="Size of the picture, pixels; it decides the views.")
    ] = None,
    llm_layers: Annotated[
        int | None, typer.Option(min=1, help="Fewer language model layers than the shape has.")
    ] = None,
    vision_layers: Annotated[int | None, typer.Option(min=1, help="Fewer encoder layers than the shape has.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    dtype: Dtype = "auto",
    attention: Annotated[str, typer.Option(help="eager, sdpa or flash_attention_2.")] = "sdpa",
    clock: Annotated[
        str, typer.Option(help="wall, or process: processor time, for a busy machine without a GPU.")
    ] = "wall",
    repeats: Annotated[
        int | None,
        typer.Option(
            min=1, help="Rounds behind each median; default 15, 7 with --quick, 3 with --tap, 5 with --selection."
        ),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Length of the answers; 1 leaves decoding out.")] = 16,
    baseline: Annotated[
        bool, typer.Option("--baseline/--no-baseline", help="Beside it, pruning as research repositories write it.")
    ] = True,
    accuracy: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="What `foveate eval` found with the same model, drawn over the times."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for JSON, Markdown and plot; default build/bench.")] = None,
    as_json: Json = False,
    crops: Annotated[
        str | None,
        typer.Option(
            help="Comma-separated choices of crops beside all of them, such as 0.5,2,auto,distinct. 1 is a single crop "
            "of each picture."
        ),
    ] = None,
) -> None:
    """Measure time to the first token, decoding, memory, KV cache and FLOPs against stock and the bound."""
    from foveate.cli import bench
    from foveate.cli.bench import Request

    run: Any = bench.run
    out = out or Path("build") / "bench"
    if serve:
        from foveate.cli import bench_serve

        run = partial(bench_serve.run, bench_serve.Serving(url, concurrency, rate, requests, vllm_options or [], crops))
    elif url or concurrency or rate or requests or vllm_options:
        raise ValueError("--url, --concurrency, --rate, --requests and vLLM's options go with --serve")
    run(
        Request(
            tap, selection, quick, check, model, shape, methods, keep, batch_size, image, llm_layers, vision_layers,
            device, dtype, attention, clock, repeats, max_new_tokens, baseline, accuracy, out, as_json, crops,
        )
    )  # fmt: skip


@app.command()
@command
def leaderboard(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[FOLDERS]",
            help="What `foveate eval` wrote, or folders of such folders; default benchmarks/results/leaderboard.",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the tables as Markdown.")] = None,
    page: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write one page of HTML to sort and choose from, offline too.")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing: name all that is wrong; status 1 where something is.")
    ] = False,
) -> None:
    """Compare committed results: models, suites, methods and budgets, with groups in place of ranks."""
    from foveate.cli.leaderboard import Request, run

    run(Request(folders or [], out, page, check))


@app.command()
@command
def reproduce(
    paper: Annotated[str, typer.Argument(metavar="PAPER", help="Whose table: adafv.")],
    model: Annotated[
        str, typer.Option("--model", metavar="FOLDER_OR_HUB_ID", help="The model; bundled: that of the package.")
    ] = "llava-hf/llava-v1.6-vicuna-7b-hf",
    tasks: Annotated[
        str | None,
        typer.Option(
            help="Comma-separated tasks of lmms-eval, of the table; scenes and documents are asked without lmms-eval. "
            "Default: the table's, with --model bundled scenes,documents."
        ),
    ] = None,
    methods: Annotated[
        str | None, typer.Option(help="Comma-separated methods of the table, beside all tokens; default all of them.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Questions of each task, from the first; default all.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder; started again with the same settings, it goes on.")] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Most questions asked at once.")] = 1,
    processes: Annotated[int, typer.Option(min=1, help="Of lmms-eval, each on a GPU of its own.")] = 1,
    dtype: Dtype = "auto",
    as_json: Json = False,
) -> None:
    """Run a paper's table again, through lmms-eval, and print it beside the published figures; resumable."""
    from foveate.cli.reproduce import Request, run

    run(Request(paper, model, tasks, methods, limit, out, batch_size, processes, dtype, as_json))


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
@command
def serve(
    context: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A folder, a hub id, bundled or dynamic.")],
    method: Method = None,
    keep: Annotated[
        str | None, typer.Option(show_default="0.1", help=f"{KEEP} A request may ask for less or more.")
    ] = None,
    max_keep: Annotated[str, typer.Option(help="The most a request may ask for, likewise.")] = "1.0",
    methods: Annotated[
        str | None, typer.Option(help="Comma-separated further methods that a request may ask for.")
    ] = None,
    option: MethodOption = None,
    config: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="A YAML or JSON file that says method, keep, options, crops and pixels; what is typed goes before it. "
            "vLLM's own --config stands behind --.",
        ),
    ] = None,
    feature_cache: Annotated[
        int, typer.Option(min=0, help="Memory for encoded images awaiting further questions, MiB.")
    ] = 512,
    image_cache: Annotated[
        int, typer.Option(min=0, help="Memory for pictures that requests name by a UUID, MiB.")
    ] = 256,
    crops: Annotated[
        str | None,
        typer.Option(help="Of each picture's crops, how many are encoded: 0.5, 2, auto or distinct. Default: all."),
    ] = None,
    pixels: Annotated[
        str | None,
        typer.Option(
            help="Resize pictures before the model sees them, unless a request says otherwise: 0.25 scales each one's "
            "number of pixels, 200000 is the most it may have."
        ),
    ] = None,
) -> None:
    """Serve a model with vLLM, OpenAI-compatible, its images pruned. Further options are vLLM's own."""
    from foveate.cli.serve import Request, run

    rest = list(context.args)
    caches = feature_cache, image_cache
    run(Request(model, rest, method, keep, max_keep, methods, option or [], *caches, crops, pixels, config))


@app.command()
@command
def scenes(
    out: Annotated[Path, typer.Option(help="Folder for the pictures and scenes.jsonl (documents.jsonl).")],
    count: Annotated[int, typer.Option(min=1, help="How many pictures.")] = 100,
    seed: Seed = 0,
    split: Split = "test",
    world: Annotated[
        str, typer.Option(help="scenes: things to see, documents: words and numbers to read, or clips: what happens.")
    ] = "scenes",
    lmms_task: Annotated[
        bool, typer.Option("--lmms-task", help="Write files that make the folder an --include_path of lmms-eval.")
    ] = False,
) -> None:
    """Draw the pictures and questions of the scenes suite, of documents, or of clips."""
    from foveate.cli.evaluate import draw

    typer.echo(draw(world, out, count, seed, split))
    if lmms_task:
        from foveate.evaluation.lmms import write_task

        typer.echo(write_task(out, world))


@app.command()
@command
def methods(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="Tell all of one: its options, its paper.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List the pruning methods, or tell all of one."""
    from foveate.cli.lists import list_methods, show_method

    if name is None:
        list_methods(as_json)
    else:
        show_method(name, as_json)


@app.command()
@command
def models(
    check: Annotated[
        str | None,
        typer.Option(
            metavar="TYPE_OR_FOLDER",
            help="Tell all of one model type, or of a checkpoint by its folder or config.json. Status 0: it can be "
            "pruned, 1: it cannot, 2: there is no such type or file.",
        ),
    ] = None,
    markdown: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the tables anew between the marks of a Markdown file.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List the models that can be pruned, or tell whether one can."""
    from foveate.cli.models import check_model, list_models, write_tables

    if markdown is not None:
        if check is not None or as_json:
            raise ValueError("--markdown goes with no other option")
        write_tables(markdown)
    elif check is not None:
        check_model(check, as_json)
    else:
        list_models(as_json)
