"""``foveate ask``: one question about pictures, perhaps beside the unpruned model, perhaps with a picture.

What is asked about a video goes on in ``foveate.cli.watch``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from PIL.Image import Image

from foveate import bundled, show, webpage
from foveate.asking_again import AskAgain
from foveate.cli import answer_page
from foveate.cli.asked import STDIN, Request
from foveate.cli.console import load_model, note, parse_keep, progress_bar, warn_when_busy, working
from foveate.cli.settling import check_device, check_fits, check_source, settled
from foveate.cli.telling import Told, tell
from foveate.compare import Comparison, compare
from foveate.config import Config
from foveate.images import decode_image, load_image
from foveate.inputs import question_prompt, warning_of_unknown
from foveate.models import family_for
from foveate.pixels import Pixels, resized, warn_fixed
from foveate.pruners import Method, get_pruner
from foveate.session import Answer, Session, look


def run(request: Request) -> None:
    """Checks everything else that is cheap to check, then loads, answers and prints; see ``asked.run``.

    Raises:
        ValueError, TypeError, FileNotFoundError: bad input, each with what to do.
    """
    config, pruner = _check(request)
    if request.filmed:
        from foveate.cli import watch

        watch.run(request, config, pruner, _question(request.question))
        return
    pictures = _pictures(request)
    question = _question(request.question)
    device = check_device(request.device)
    if request.compare:
        warn_when_busy()
    model, processor = load_model(request.model, request.dtype, device)
    warn_of_unknown(processor.tokenizer, question)
    given = partial(
        Told, request.images, question, request.model, config, request.show, request.again is not None, request.unsure,
        pictures,
    )  # fmt: skip
    session: Session | None
    if request.compare:
        assert isinstance(pruner, Method)  # _check has refused another
        seen: Sequence[Image] = pictures
        if config.pixels is not None:
            warn_fixed(family_for(model))
            seen = resized(pictures, Pixels(config.pixels), model, processor)
        with progress_bar("measuring") as progress:
            compared = compare(
                model,
                processor,
                seen,
                question_prompt(processor, question, len(pictures), model),
                pruner,
                max_new_tokens=request.max_new_tokens,
                repeats=request.repeats,
                progress=progress,
                **config.attaching,
            )
        answered = given(seen, compared.selections, _of_comparison(compared), compared)
        # Comparing keeps nothing that the question's words could be held against: the page looks again.
        session = None
        if request.html is not None:
            session = look(model, processor, seen, layout=config.layout, crops=config.crops)
    else:
        with working("looking"):
            session = config.look(model, processor, pictures)
        answer = answer_of(session, request, config, question, pruner)
        answered = given(session.pictures, answer.selections, result_of(answer))
    page = None
    if request.html is not None and session is not None:
        page = partial(answer_page.make, answered, session, question, pictures, answered.selections)
    tell(answered, request.as_json, request.html, page)


def answer_of(session: Session, request: Request, config: Config, question: str, pruner: Method | AskAgain) -> Answer:
    """What a session of pictures or of a video answers."""
    options: dict[str, Any] = {"max_new_tokens": request.max_new_tokens, "do_sample": False, "num_beams": 1}
    with working("answering"):
        return config.ask(session, question, pruner, **options)


def result_of(answer: Answer) -> dict[str, Any]:
    """An answer for JSON."""
    told: dict[str, Any] = {
        "answer": answer.text,
        "visual_tokens": answer.visual_tokens,
        "prompt_tokens": answer.prompt_tokens,
    }
    if answer.margin is not None:
        told |= {"asked_again": answer.asked_again, "margin": answer.margin, "tokens_spent": answer.tokens_spent}
    return told


def _of_comparison(compared: Comparison) -> dict[str, Any]:
    return {
        "answer": compared.kept.answer,
        "visual_tokens": compared.kept.visual_tokens,
        "prompt_tokens": compared.kept.prompt_tokens,
        "compare": {
            "all": asdict(compared.full),
            "kept": asdict(compared.kept),
            "prefill_speedup": compared.prefill_speedup,
            "total_speedup": compared.total_speedup,
            "repeats": compared.repeats,
        },
    }


def warn_of_unknown(tokenizer: Any, question: str) -> None:
    """Says so where a question has words that the model cannot read."""
    warning = warning_of_unknown(tokenizer, question)
    if warning:
        note(f"warning: {warning}")


def _check(request: Request) -> tuple[Config, Method | AskAgain]:
    """What questions about pictures and about a video have in common."""
    config = settled(
        request.config, method=request.method, keep=request.keep, option=request.option, crops=request.crops,
        pixels=request.pixels, positions=request.positions, newlines=request.newlines,
    )  # fmt: skip
    pruner: Method | AskAgain = config.pruner
    if request.again is None and request.margin is not None:
        raise ValueError("--margin says when to ask again: give the second budget with --again")
    if request.again is not None:
        if request.compare:
            raise ValueError(
                "--compare measures one pass: leave --again out, or measure both with `foveate eval --methods "
                f"ask-again:first={config.keep}:{config.method} --keep {request.again}`"
            )
        second = get_pruner(config.method, **config.options, keep=parse_keep(request.again, "--again"))
        pruner = AskAgain(pruner, second, request.unsure)
    if request.crops == "1":
        note("--crops 1 encodes a single crop of each image; all encodes all of them")
    check_source(request.model, request.dtype)
    check_fits(request.model, config)
    return config, pruner


def _pictures(request: Request) -> list[Image]:
    if request.show is not None:
        show.check_path(request.show)
    if request.html is not None:
        webpage.check_path(request.html)
    pictures = [_picture(path) for path in request.images]
    if bundled.shipped(request.model) == "bundled":
        _warn_of_photographs(request.images, pictures)
    return pictures


def _picture(path: str) -> Image:
    if path != STDIN:
        return load_image(path)
    if sys.stdin.isatty():
        raise ValueError("- reads a picture from standard input, which is a terminal: foveate ask - ... < photo.jpg")
    return decode_image(sys.stdin.buffer.read(), "standard input")


def _question(typed: str) -> str:
    """The question, from standard input where that is asked for, and with letters where the locale has none."""
    question = sys.stdin.buffer.read().decode("utf-8", "surrogateescape").strip() if typed == STDIN else typed
    if not question:
        raise ValueError("standard input, where the question should be, is empty")
    try:
        return question.encode("utf-8", "surrogateescape").decode("utf-8")
    except UnicodeError:
        raise ValueError("the question holds bytes that are not UTF-8: write it in UTF-8") from None


def _warn_of_photographs(names: Sequence[str], pictures: Sequence[Image]) -> None:
    from foveate.bundled.photographs import looks_like_photograph

    found = [name for name, picture in zip(names, pictures, strict=True) if looks_like_photograph(picture)]
    if found:
        note(
            f"warning: {', '.join(found)} does not look like the drawn scenes that the bundled model knows; its answer "
            "will mean little: give a --model for photographs"
        )
