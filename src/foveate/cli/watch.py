"""``foveate ask`` about a video file."""

from __future__ import annotations

from typing import Any

from foveate import show_video
from foveate.asking_again import AskAgain
from foveate.cli.ask import Request, keep_of, method_of, unknown_words
from foveate.cli.console import load_model, note, print_json, stdout, working
from foveate.cli.evaluate import require_videos
from foveate.pruners import Method
from foveate.tokens import Selection
from foveate.videos import Video, load_video
from foveate.watching import kept_by_moment, moments, watch


def run(request: Request, pruner: Method | AskAgain) -> None:
    """Reads the video, loads, answers and prints.

    Args:
        request: its one file is a video; what all questions have in common is checked.
        pruner: which tokens stay.

    Raises:
        ValueError, FileNotFoundError, ModuleNotFoundError: bad input, each with what to do.
    """
    if len(request.images) > 1:
        raise ValueError("one video is asked about at a time, and no picture beside it")
    for name, given in (("--compare", request.compare), ("--pixels", request.pixels), ("--crops", request.crops)):
        if given:
            raise ValueError(f"{name} is for pictures: leave it out")
    require_videos(request.model)
    if request.show is not None:
        show_video.check_path(request.show)
    with working("reading the video"):
        video = load_video(request.images[0], frames=request.frames, fps=request.fps)
    model, processor = load_model(request.model, request.dtype)
    unknown = unknown_words(processor.tokenizer, request.question)
    if unknown:
        note(f"warning: the model's vocabulary lacks {', '.join(unknown)}: it will answer all the same")
    with working("watching"):
        session = watch(model, processor, video)
    with working("answering"):
        answer = session.ask(
            request.question, pruner, max_new_tokens=request.max_new_tokens, do_sample=False, num_beams=1
        )
    (selection,) = answer.selections
    told: dict[str, Any] = {
        "answer": answer.text,
        "visual_tokens": answer.visual_tokens,
        "prompt_tokens": answer.prompt_tokens,
    }
    if answer.margin is not None:
        told |= {"asked_again": answer.asked_again, "margin": answer.margin, "tokens_spent": answer.tokens_spent}
    if request.show is not None:
        with working("drawing"):
            show_video.save(
                request.show, video, selection, question=request.question, answer=answer.text, method=method_of(request)
            )
    if request.as_json:
        _print_json(request, told, video, selection)
        return
    stdout().print(answer.text or "(the model gave an empty answer)", markup=False, soft_wrap=True)
    kept = kept_by_moment(selection)
    note(
        f"{len(video)} frames of {video.duration:.1f} s seen as {len(kept)} moments; {len(selection)} of "
        f"{selection.total} visual tokens kept by {method_of(request)}, {kept.count(0)} moments without any, prompt of "
        f"{answer.prompt_tokens} tokens"
    )
    if answer.margin is not None:
        note(f"{'asked again' if answer.asked_again else 'not asked again'}: margin {answer.margin:.2f}")
    if request.show is not None:
        note(f"what was kept: {request.show}")


def _print_json(request: Request, told: dict[str, Any], video: Video, selection: Selection) -> None:
    views = moments(selection.geometry.grids, len(video))
    counts = zip(views, kept_by_moment(selection), selection.geometry.grids, strict=True)
    print_json(
        {
            "question": request.question,
            "model": request.model or "bundled",
            "method": method_of(request),
            "keep": keep_of(request),
            **told,
            "video": {
                "path": request.images[0],
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
            },
            **({"show": str(request.show)} if request.show else {}),
        }
    )
