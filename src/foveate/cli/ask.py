"""``foveate ask``: one question about image files, perhaps beside the unpruned model, perhaps with a picture.

What is asked about a video goes on in ``foveate.cli.watch``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL.Image import Image
from rich.table import Table

from foveate import show
from foveate.asking_again import AskAgain
from foveate.cli.console import load_model, note, parse_keep, print_json, progress_bar, stdout, warn_when_busy, working
from foveate.compare import Comparison, compare
from foveate.crops import Crops, encoded_tokens
from foveate.images import load_image
from foveate.inputs import question_prompt
from foveate.models import family_for
from foveate.pixels import Pixels, resized, warn_fixed
from foveate.pruners import Method, get_pruner
from foveate.pruners.registry import AUTO
from foveate.session import Session, look
from foveate.tokens import Selection
from foveate.videos import is_video


@dataclass(frozen=True)
class Request:
    """The command's arguments, as typed; ``again`` is the budget of a second pass, None where there shall be none, and
    ``margin`` its dial."""

    images: Sequence[str]
    question: str
    model: str | None
    method: str
    keep: str
    show: Path | None
    compare: bool
    as_json: bool
    max_new_tokens: int
    repeats: int
    dtype: str
    again: str | None = None
    margin: float | None = None
    pixels: str | None = None
    crops: str | None = None
    frames: int | None = None
    fps: float | None = None

    @property
    def unsure(self) -> float:
        """The margin below which is asked again."""
        return 0.5 if self.margin is None else self.margin

    @property
    def filmed(self) -> bool:
        """Whether it is about a video: by a file's name, or because some of its frames are asked for."""
        return self.frames is not None or self.fps is not None or any(map(is_video, self.images))


def run(request: Request) -> None:
    """Checks everything that is cheap to check, then loads, answers and prints.

    Raises:
        ValueError, FileNotFoundError: bad input, each with what to do.
    """
    pruner = _check(request)
    if request.filmed:
        from foveate.cli import watch

        watch.run(request, pruner)
        return
    if request.show is not None:
        show.check_path(request.show)
    pictures = [load_image(path) for path in request.images]
    pixels = None if request.pixels is None else Pixels.parse(request.pixels)
    if request.compare:
        warn_when_busy()
    model, processor = load_model(request.model, request.dtype)
    unknown = unknown_words(processor.tokenizer, request.question)
    if unknown:
        note(
            f"warning: the model's vocabulary lacks {', '.join(unknown)}: it cannot see what they mean "
            "and will answer all the same"
        )
    if request.compare:
        assert isinstance(pruner, Method)  # _check has refused another
        seen = pictures
        if pixels is not None:
            warn_fixed(family_for(model))
            seen = resized(pictures, pixels, model, processor)
        with progress_bar("measuring") as progress:
            compared = compare(
                model,
                processor,
                seen,
                question_prompt(processor, request.question, len(pictures), model),
                pruner,
                max_new_tokens=request.max_new_tokens,
                repeats=request.repeats,
                crops=request.crops,
                progress=progress,
            )
        _finish(request, pictures, seen, compared.selections, _of_comparison(compared), compared)
    else:
        with working("looking"):
            session = look(
                model, processor, pictures, pixels=None if pixels is None else pixels.value, crops=request.crops
            )
        _finish(request, pictures, session.pictures, *_answer(session, request, pruner), None)


def _answer(
    session: Session, request: Request, pruner: Method | AskAgain
) -> tuple[Sequence[Selection], dict[str, Any]]:
    with working("answering"):
        answer = session.ask(
            request.question, pruner, max_new_tokens=request.max_new_tokens, do_sample=False, num_beams=1
        )
    told: dict[str, Any] = {
        "answer": answer.text,
        "visual_tokens": answer.visual_tokens,
        "prompt_tokens": answer.prompt_tokens,
    }
    if answer.margin is not None:
        told |= {"asked_again": answer.asked_again, "margin": answer.margin, "tokens_spent": answer.tokens_spent}
    return answer.selections, told


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


def unknown_words(tokenizer: Any, question: str) -> list[str]:
    """The words of a question that a tokenizer can only read as its unknown token."""
    if getattr(tokenizer, "unk_token_id", None) is None or not tokenizer.is_fast:
        return []
    read = tokenizer(question, add_special_tokens=False, return_offsets_mapping=True)
    spans = zip(read["input_ids"], read["offset_mapping"], strict=True)
    words = [question[start:end] for token, (start, end) in spans if token == tokenizer.unk_token_id]
    return list(dict.fromkeys(words))


def _check(request: Request) -> Method | AskAgain:
    if not request.images:
        raise ValueError('give at least one image and then the question: foveate ask photo.jpg "What is this?"')
    if not request.question.strip():
        raise ValueError("the question is empty")
    if Path(request.question).is_file():
        raise ValueError(
            f"the last argument is the question, and {request.question} is a file: add the question after it"
        )
    pruner: Method | AskAgain = get_pruner(request.method, keep=keep_of(request))
    if request.again is None and request.margin is not None:
        raise ValueError("--margin says when to ask again: give the second budget with --again")
    if request.again is not None:
        if request.compare:
            raise ValueError(
                "--compare measures one pass: leave --again out, or measure both with `foveate eval --methods "
                f"ask-again:first={request.keep}:{request.method} --keep {request.again}`"
            )
        pruner = AskAgain(pruner, get_pruner(request.method, keep=parse_keep(request.again)), request.unsure)
    if request.keep == "1":
        note("--keep 1 keeps a single token per image; 1.0 keeps all of them")
    Crops.of(request.crops)
    if request.crops == "1":
        note("--crops 1 encodes a single crop of each image; all encodes all of them")
    return pruner


def keep_of(request: Request) -> float | int | str:
    """The budget, or ``"auto"``."""
    return AUTO if request.keep == AUTO else parse_keep(request.keep)


def method_of(request: Request) -> str:
    """The method's name, which says so where the budget makes it another one."""
    wraps = request.keep == AUTO and request.method.split(":")[0] != AUTO
    return f"{AUTO}:{request.method}" if wraps else request.method


def _finish(
    request: Request,
    pictures: Sequence[Image],
    seen: Sequence[Image],
    selections: Sequence[Selection],
    result: dict[str, Any],
    compared: Comparison | None,
) -> None:
    if request.show is not None:
        with working("drawing"):
            show.save(
                request.show,
                pictures,
                selections,
                question=request.question,
                answer=result["answer"],
                method=method_of(request),
            )
    if request.as_json:
        images = [
            {
                "path": path,
                "width": picture.width,
                "height": picture.height,
                "kept": len(selection),
                "total": selection.total,
            }
            for path, picture, selection in zip(request.images, pictures, selections, strict=True)
        ]
        if request.crops is not None:
            for told, selection in zip(images, selections, strict=True):
                told |= _encoded(selection)
        head = {
            "question": request.question,
            "model": request.model or "bundled",
            "method": method_of(request),
            "keep": keep_of(request),
            **({} if request.crops is None else {"crops": request.crops}),
        }
        if request.pixels is not None:
            head["pixels"] = Pixels.parse(request.pixels).value
            for told, small in zip(images, seen, strict=True):
                told |= {"seen_width": small.width, "seen_height": small.height}
        shown = {"show": str(request.show)} if request.show else {}
        print_json({**head, **result, "images": images, **shown})
        return
    if request.pixels is not None:
        note("pictures seen at " + ", ".join(f"{small.width}x{small.height} pixels" for small in seen))
    if compared is not None:
        stdout().print(_table(compared))
        note(
            f"times are medians of {compared.repeats} after a warm-up; prefill is vision tower, selection and first "
            f"token, total is {compared.full.new_tokens} and {compared.kept.new_tokens} new tokens"
        )
        for line in _crops(request, selections):
            note(line)
    else:
        stdout().print(result["answer"] or "(the model gave an empty answer)", markup=False, soft_wrap=True)
        kept, total = sum(map(len, selections)), sum(selection.total for selection in selections)
        encoded = "".join(f", {told}" for told in _crops(request, selections))
        prompt = f"prompt of {result['prompt_tokens']} tokens"
        note(f"{kept} of {total} visual tokens kept by {method_of(request)}{encoded}, {prompt}")
        if request.again is not None:
            again, than = ("asked again", "below") if result["asked_again"] else ("not asked again", "not below")
            note(
                f"{again}: margin {result['margin']:.2f}, {than} {request.unsure:g}; {result['tokens_spent']} visual "
                "tokens in all"
            )
    if request.show is not None:
        note(f"what was kept: {request.show}")


def _crops(request: Request, selections: Sequence[Selection]) -> list[str]:
    """What was encoded, for people; nothing where all was to be."""
    if request.crops is None:
        return []
    told = [_encoded(selection) for selection in selections]
    crops, of, tokens = (sum(one[name] for one in told) for name in ("crops_encoded", "crops", "encoded"))
    return [f"{crops} of {of} crops encoded ({tokens} tokens with the base view{'s' * (len(told) > 1)})"]


def _encoded(selection: Selection) -> dict[str, Any]:
    """``encoded_views`` are numbered as in ``Geometry``: 0 is the base view, crops follow."""
    views = selection.encoded_views
    return {
        "encoded": encoded_tokens(selection),
        "encoded_views": list(views),
        "crops_encoded": len(views) - 1,
        "crops": len(selection.geometry.grids) - 1,
    }


def _table(compared: Comparison) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("", "all tokens", "kept", "ratio"):
        table.add_column(name, justify="left" if not name else "right")
    full, kept = compared.full, compared.kept
    table.add_row("answer", full.answer or "(empty)", kept.answer or "(empty)", "")
    for name, one, two, form in (
        *([("tokens encoded", full.encoded_tokens, kept.encoded_tokens, "d")] if compared.crops else []),
        ("visual tokens", full.visual_tokens, kept.visual_tokens, "d"),
        ("prompt, tokens", full.prompt_tokens, kept.prompt_tokens, "d"),
        ("KV cache, MiB", full.kv_cache_mib, kept.kv_cache_mib, ".2f"),
        ("prefill, ms", full.prefill_ms, kept.prefill_ms, ".1f"),
        ("total, ms", full.total_ms, kept.total_ms, ".1f"),
    ):
        table.add_row(name, format(one, form), format(two, form), f"{one / two:.2f}x" if two else "")
    return table
