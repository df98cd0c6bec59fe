"""What a request says about its images, before vLLM processes it: what is refused, and which text guides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from foveate.guiding import Guide, ImageSpan
from foveate.models.base import Family
from foveate.pruners import Pruner
from foveate.serving.image_request import ImageRequest
from foveate.serving.policy import CONFIG_KEY, Policy
from foveate.turns import Turns


def refuse_unserved(inputs: Any, policy: Policy, media_io_kwargs: Any, films: bool = False) -> None:
    """Raises ValueError for what would go through unpruned, and for options that only trusted requests may bring.

    Args:
        inputs: vLLM's ``ProcessorInputs``, Foveate's own options taken out.
        policy: of the server.
        media_io_kwargs: the server's own.
        films: whether the model's videos are pruned.
    """
    if not policy.trust_request_mm_kwargs:
        if inputs.hf_processor_mm_kwargs:
            raise ValueError(
                f"a request may set {CONFIG_KEY!r} in mm_processor_kwargs, not "
                f"{', '.join(map(str, inputs.hf_processor_mm_kwargs))}: this server was started without "
                "--trust-request-mm-kwargs (in Python: trust_request_mm_kwargs=True)"
            )
        given = inputs.media_io_kwargs or {}
        if any(value and value != media_io_kwargs.get(name) for name, value in given.items()):
            raise ValueError(
                "media_io_kwargs of a request are not taken: this server was started without --trust-request-mm-kwargs"
            )
    served = ("image", "video") if films else ("image",)
    others = [name for name, items in inputs.mm_data_items.items() if items and name not in served]
    if others:
        raise ValueError(unserved(" and ".join(others), served))
    for name in served:
        items = inputs.mm_data_items.get(name)
        if items and items.get_passthrough_data():
            raise ValueError(
                f"{name} embeddings say nothing of saliency or of where their tokens lie: send "
                f"{'pictures' if name == 'image' else 'videos'}, or use a server without foveate"
            )


def unserved(others: str, served: Sequence[str]) -> str:
    """Why a request with something else than what is served is refused, and what to do."""
    return (
        f"this server prunes {'s and '.join(served)}s of this model, and would send {others} through unpruned: send "
        "frames as images, or use a server without foveate"
    )


def refuse_for_videos(asks: Mapping[str, Any] | None) -> None:
    """Raises ValueError where a request that holds videos alone asks for what concerns pictures."""
    named = [name for name in ("pixels", "crops") if name in (asks or {})]
    if named:
        raise ValueError(
            f"{' and '.join(named)} concern pictures, and this request has videos alone: leave them out, and sample "
            "fewer or smaller frames instead"
        )


def with_videos(
    prompt: Sequence[int], shown: Sequence[Sequence[int]], family: Family
) -> tuple[Sequence[int], list[int]]:
    """A prompt with what stands in it for its videos, and how many placeholders each has there.

    Args:
        prompt: ids, one placeholder per video.
        shown: for every video, in the order of the prompt.
        family: the model's adapter.

    Raises:
        ValueError: the prompt has placeholders for more or fewer videos.
    """
    if not shown:
        return prompt, []
    token = family.placeholder_ids["video"]
    count = list(prompt).count(token)
    if count != len(shown):
        raise ValueError(
            f"the prompt holds {count} video placeholders for {len(shown)} video(s): put one video token into it for "
            "each video, or use the chat template"
        )
    waiting = iter(shown)
    written = [one for given in prompt for one in (next(waiting) if given == token else (given,))]
    return written, [list(one).count(token) for one in shown]


def guiding_texts(
    prompt: Sequence[int],
    images: int,
    pruner: Pruner,
    family: Family,
    turns: Turns,
    videos: Sequence[int] = (),
    *,
    required: bool = True,
) -> list[tuple[int, ...]]:
    """For every image of a prompt, then for every video, the ids of the text that guides its selection:
    ``foveate.guiding`` says which.

    Args:
        prompt: ids, one placeholder per image, and for videos what ``with_videos`` puts there.
        images: how many there are.
        pruner: the method.
        family: the model's adapter.
        turns: how the model's prompts write user turns.
        videos: how many placeholders there are for each video.
        required: whether an image without any is refused; it has an empty text else.

    Raises:
        ValueError: the prompt has placeholders for more or fewer images; or, where text is required, none, or none that
            the method's options leave.
    """
    ids = torch.tensor([list(prompt)], dtype=torch.int64, device="cpu")
    spots = (ids[0] == family.image_token_id).nonzero()[:, 0]
    if len(spots) != images:
        raise ValueError(
            f"the prompt holds {len(spots)} image placeholders for {images} image(s): put one image token into it for "
            "each image, or use the chat template"
        )
    spans = [*spots.split(1)] if images else []
    if videos:
        spans += (ids[0] == family.placeholder_ids["video"]).nonzero()[:, 0].split(list(videos))
    text = ~_marks(ids, family)
    guide = Guide(ids, text, turns, pruner.text_span)
    worded = bool((text & ~guide.special & ~guide.blank).any())
    found = []
    for span in spans if worded else ():
        guiding = guide.of(ImageSpan(0, span))
        taken = torch.full_like(guiding.special, True) if pruner.special_tokens else ~guiding.special
        blank = guide.blank[0, guiding.columns]
        found.append(tuple(guiding.ids[taken].tolist()) if bool((taken & ~blank).any()) else ())
    if not required and not worded:
        return [()] * len(spans)
    if required and (not worded or not all(found)):
        raise ValueError(
            f"{pruner.name} reads the question, and there is no text for {_what(images, videos)} of this prompt: add "
            "one, or use a method that does not read it (saliency, uniform, random)"
        )
    return found


def require_encoded(request: ImageRequest, family: Family, size: tuple[int, int], tokens: int) -> None:
    """Raises ValueError where as many tokens as a prompt is laid out for may not have been encoded in the end.

    Args:
        request: what is asked of the image.
        family: the model's adapter.
        size: (height, width) of the image, pixels.
        tokens: N, how many it has.
    """
    if request.crops is None or not request.crops.ranks:
        return
    kept = request.keep.budget(tokens)
    base, *others = family.tokens_of_views(size, tokens)
    count = request.crops.count(len(others))
    least = base + sum(sorted(others)[: min(1, len(others)) if count is None else count])
    if kept > least:
        raise ValueError(
            f"keep={request.keep.value} of an image of {tokens} tokens is {kept}, and with crops={request.crops} as "
            f"few as {least} may be encoded: ask for fewer tokens, or for more crops"
        )


def _marks(ids: Tensor, family: Family) -> Tensor:
    """(1, S) bool: the family's marks in a prompt of one placeholder per image, or per run of a video's.

    The family reads expanded prompts, where an image's own marks may stand right beside its tokens. Here nothing does:
    an unknown token on either side takes their place.
    """
    image = torch.isin(ids[0], torch.tensor(sorted(family.placeholder_ids.values()), device="cpu")).long()
    places = torch.arange(len(image), device="cpu") + 2 * image.cumsum(0) - image
    spread = torch.full((1, len(image) + 2 * int(image.sum())), -1, dtype=ids.dtype, device="cpu")
    spread[0, places] = ids[0]
    return family.marks(spread)[:, places]


def _what(images: int, videos: Sequence[int]) -> str:
    return "a video" if not images else "an image" if not videos else "an image or a video"
