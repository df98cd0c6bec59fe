"""``foveate ask`` about a video file."""

from __future__ import annotations

from functools import partial
from typing import Any

from foveate import show_video
from foveate.asking_again import AskAgain
from foveate.cli.ask import answer_of, result_of, warn_of_unknown
from foveate.cli.asked import STDIN, Request
from foveate.cli.console import answer_line, load_model, note, stdout, working
from foveate.cli.evaluate import require_videos
from foveate.cli.settling import check_device
from foveate.cli.telling import Piece, head, method_of, of_again, write_all
from foveate.config import Config
from foveate.pruners import Method
from foveate.tokens import Selection
from foveate.videos import Video, load_video
from foveate.watching import kept_by_moment, moments, watch


def run(request: Request, config: Config, pruner: Method | AskAgain, question: str) -> None:
    """Reads the video, loads, answers and prints.

    Args:
        request: its one file is a video; what all questions have in common is checked.
        config: how it is pruned.
        pruner: which tokens stay.
        question: as asked.

    Raises:
        ValueError, FileNotFoundError, ModuleNotFoundError: bad input, each with what to do.
        typer.Exit: with status 1, after the answer, where what was kept could not be written.
    """
    _check(request, config)
    device = check_device(request.device)
    with working("reading the video"):
        video = load_video(request.images[0], frames=request.frames, fps=request.fps)
    model, processor = load_model(request.model, request.dtype, device)
    warn_of_unknown(processor.tokenizer, question)
    with working("watching"):
        session = watch(model, processor, video)
    answer = answer_of(session, request, config, question, pruner)
    (selection,) = answer.selections
    pieces = []
    if request.show is not None:
        draw = partial(
            show_video.save, request.show, video, selection,
            question=question, answer=answer.text, method=method_of(config),
        )  # fmt: skip
        pieces.append(Piece("show", "picture", request.show, "drawing", draw))
    result = result_of(answer)
    if request.as_json:
        described = {**head(question, request.model, config), **result}
        write_all(pieces, {**described, "video": _described(request.images[0], video, selection)})
        return
    stdout().print(answer_line(answer.text), markup=False, soft_wrap=True)
    kept = kept_by_moment(selection)
    note(
        f"{len(video)} frames of {video.duration:.1f} s seen as {len(kept)} moments; {len(selection)} of "
        f"{selection.total} visual tokens kept by {method_of(config)}, {kept.count(0)} moments without any, prompt of "
        f"{answer.prompt_tokens} tokens"
    )
    if answer.margin is not None:
        note(of_again(result, request.unsure))
    write_all(pieces, None)


def _check(request: Request, config: Config) -> None:
    if len(request.images) > 1:
        raise ValueError("one video is asked about at a time, and no picture beside it")
    if request.images[0] == STDIN:
        raise ValueError("a video is read from a file, not from standard input: name the file in place of -")
    for name, given in (
        ("--compare", request.compare),
        ("--html", request.html is not None),
        ("--pixels", config.pixels is not None),
        ("--crops", config.crops is not None),
        ("layout", config.layout != "stock"),
    ):
        if given:
            raise ValueError(f"{name} is for pictures: leave it out")
    require_videos(request.model)
    if request.show is not None:
        show_video.check_path(request.show)


def _described(path: str, video: Video, selection: Selection) -> dict[str, Any]:
    views = moments(selection.geometry.grids, len(video))
    counts = zip(views, kept_by_moment(selection), selection.geometry.grids, strict=True)
    return {
        "path": path,
        "width": video.size[0],
        "height": video.size[1],
        "duration": video.duration,
        "frames": list(video.times),
        "kept": len(selection),
        "total": selection.total,
        "moments": [
            {"times": [video.times[number] for number in some], "kept": kept, "total": rows * columns}
            for some, kept, (rows, columns) in counts
        ],
    }
