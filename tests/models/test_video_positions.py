"""Where what is kept of a video stands: positions in time, and the times that are written beside frames."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
import transformers
from packaging.version import Version
from torch import Tensor

import foveate
from foveate.models import family_for
from foveate.pruners import Choice, Pruner
from foveate.tokens import TextTokens, VisualTokens
from tests import reference
from tests.encoding import encode
from tests.tiny import END, IMAGE, ROWS, SILENT, START, VIDEO, prompts
from tests.tiny.films import TOKENS
from tests.tiny.qwen import VIDEOS, WINDOWS
from tests.tiny.rows import inner

GREEDY = {"max_new_tokens": 1, "do_sample": False, "suppress_tokens": SILENT}
COMPACT = ["internvl-video", "smolvlm-video"]
FRAMED = ["qwen2_5_vl-video", "qwen3_vl-video", "internvl-video", "llava_onevision-video"]


@dataclass
class These(Pruner):
    """Tokens by number; of other frames nothing."""

    frames: tuple[int, ...] = (0,)

    name: ClassVar[str] = "these"
    adaptive: ClassVar[bool] = True

    def choose(self, visual: VisualTokens, text: TextTokens | None, budget: int) -> Choice:
        """Every other token of the frames that are named, or of the last one."""
        last = len(visual.geometry.grids) - 1
        there = torch.isin(visual.geometry.view, torch.tensor([min(frame, last) for frame in self.frames]))
        return Choice(there.nonzero()[::2, 0])


@contextmanager
def given(model: Any) -> Iterator[list[dict[str, Tensor]]]:
    """What the language model is given."""
    seen: list[dict[str, Tensor]] = []
    base = inner(model)
    language_model = base.language_model if hasattr(base, "language_model") else base.text_model
    hook = language_model.register_forward_pre_hook(lambda module, args, kwargs: seen.append(kwargs), with_kwargs=True)
    try:
        yield seen
    finally:
        hook.remove()


def run(name: str, frames: tuple[int, ...], batch: str = "one", **options: Any) -> tuple[Any, dict[str, Tensor], Any]:
    """The inputs of a pruned call, what the language model was given, and the selections."""
    model = ROWS[name].make("sdpa")
    inputs = prompts(ROWS[name], model, batch)
    pruner = These(keep=1.0, frames=frames)
    with pruner(model, **options), given(model) as seen:
        model.generate(**inputs, **GREEDY)
    return inputs, seen[0], pruner.selections


def by_hand(ids: list[int], grid: tuple[int, int, int], step: float) -> list[tuple[int, int, int]]:
    """(time, row, column) of every token of a Qwen2.5-VL prompt up to the end of a video, as its paper has them."""
    frames, rows, columns = grid[0], grid[1] // 2, grid[2] // 2
    first = ids.index(VIDEO)
    count = frames * rows * columns
    found = [(place,) * 3 for place in range(first)]
    for n in range(count):
        frame, row, column = n // (rows * columns), n // columns % rows, n % columns
        found.append((first + int(frame * step), first + row, first + column))
    return found


@pytest.mark.parametrize("frames", [(0, 1, 2), (1,), (2,), (0, 2)])
def test_kept_tokens_keep_their_time(frames: tuple[int, ...]) -> None:
    """Qwen2.5-VL tells the time by position alone: seconds of a step x tokens a second. The text behind a video begins
    where stock has it begin, which versions of transformers do not agree on; and 5.5 multiplies the place where the
    video begins, too: what is kept there stays where that stock has it."""
    row = ROWS["qwen2_5_vl-video"]
    inputs, seen, (chosen,) = run("qwen2_5_vl-video", frames)
    ids = inputs["input_ids"][0].tolist()
    grid, seconds = VIDEOS[0], float(inputs["second_per_grid_ts"][0])
    whole = [list(place) for place in by_hand(ids, grid, seconds * WINDOWS["tokens_per_second"])]
    first = ids.index(VIDEO)
    after = first + grid[0] * grid[1] * grid[2] // 4
    columns = [*range(first), *(first + n for n in chosen.indices.tolist())]
    stock = reference.long_positions(row.make("sdpa"), row, inputs)[:, 0].T.tolist()
    if Version(transformers.__version__) < Version("5.19"):
        whole = stock[:after]
    wanted = [whole[column] for column in columns] + stock[after:]
    assert seen["position_ids"][-3:, 0].T.tolist() == wanted
    assert set(chosen.view.tolist()) == set(frames)


def test_frames_are_known_by_their_seconds() -> None:
    model = ROWS["qwen2_5_vl-video"].make("sdpa")
    inputs = prompts(ROWS["qwen2_5_vl-video"], model, "mixed")
    films = encode(model, inputs, "video")
    assert [film.tokens.geometry.frames for film in films] == [(0.0, 2.0, 4.0), (0.0,), (0.0, 1.0)]
    assert all(film.tokens.geometry.in_seconds for film in films)
    other = ROWS["qwen3_vl-video"].make("sdpa")
    film = encode(other, prompts(ROWS["qwen3_vl-video"], other, "one"), "video")[0].tokens.geometry
    assert film.frames == (0.0, 1.0, 2.0) and not film.in_seconds


@pytest.mark.parametrize("name", [name for name in ROWS if name.endswith("-video")])
def test_every_family_says_that_views_are_frames(name: str) -> None:
    row = ROWS[name]
    model = row.make("sdpa")
    inputs = prompts(row, model, "mixed")
    kinds = [kind for kind in ("image", "video") if family_for(model).has(inputs, kind)]  # type: ignore[arg-type]
    assert kinds == [row.kind]
    for film in encode(model, inputs, row.kind):
        where = film.tokens.geometry
        assert len(where.frames) == len(where.grids) and list(where.frames) == sorted(where.frames)
        assert where.view.tolist() == sorted(where.view.tolist())


def test_pictures_have_no_frames() -> None:
    for name in ("qwen2_5_vl", "internvl", "smolvlm", "llava_onevision-crops"):
        model = ROWS[name].make("sdpa")
        for picture in encode(model, prompts(ROWS[name], model, "one")):
            assert not picture.tokens.geometry.frames, name


def times_by_hand(ids: list[int], kept: dict[int, int]) -> list[int]:
    """A Qwen3-VL prompt, in which of frame f ``kept.get(f, 0)`` placeholders are left; all else stays."""
    found, frame = [], -1
    for token in ids:
        if token == START:
            frame += 1
            left = kept.get(frame, 0)
        if token != VIDEO:
            found.append(token)
        elif left:
            found.append(token)
            left -= 1
    return found


@pytest.mark.parametrize("frames", [(0, 1, 2), (1,), (2,)])
def test_times_stay_beside_their_frames(frames: tuple[int, ...]) -> None:
    """Qwen3-VL writes a time and marks around every frame: those of a frame that keeps nothing stay as well."""
    name = "qwen3_vl-video"
    inputs, seen, (chosen,) = run(name, frames)
    model, ids = ROWS[name].make("sdpa"), inputs["input_ids"][0].tolist()
    kept = {frame: int((chosen.view == frame).sum()) for frame in range(3)}
    assert set(chosen.view.tolist()) == set(frames)
    wanted = times_by_hand(ids, kept)
    words = model.get_input_embeddings()(torch.tensor(wanted))
    there = torch.tensor(wanted) != VIDEO
    assert len(seen["inputs_embeds"][0]) == len(wanted)
    assert torch.equal(seen["inputs_embeds"][0][there], words[there])
    # Every frame is a picture of its own to positions: it begins behind its mark, and its time is the text's.
    place, positions = 0, []
    rows, columns = VIDEOS[0][1] // 2, VIDEOS[0][2] // 2
    cells: list[tuple[int, int, int]] = []
    for token in ids:
        if token == VIDEO and not cells:
            cells = [(place, place + cell // columns, place + cell % columns) for cell in range(rows * columns)]
            left = list(cells)
        if token == VIDEO:
            positions.append(left.pop(0))
            if not left:
                place, cells = max(max(cell) for cell in cells) + 1, []
        else:
            positions.append((place,) * 3)
            place += 1
    placeholders = [column for column, token in enumerate(ids) if token == VIDEO]
    dropped = set(placeholders) - {placeholders[n] for n in chosen.indices.tolist()}
    wanted_positions = [list(one) for column, one in enumerate(positions) if column not in dropped]
    assert seen["position_ids"][-3:, 0].T.tolist() == wanted_positions


@pytest.mark.parametrize("positions", ["compact", "original"])
@pytest.mark.parametrize("name", COMPACT)
def test_labels_stay_beside_frames_that_stand_as_pictures(name: str, positions: str) -> None:
    inputs, seen, (chosen,) = run(name, (1,), positions=positions)
    model, ids = ROWS[name].make("sdpa"), inputs["input_ids"][0].tolist()
    placeholders = [column for column, token in enumerate(ids) if token == IMAGE]
    assert set(chosen.view.tolist()) == {1} and len(placeholders) == 3 * TOKENS
    left = set(placeholders) - {placeholders[n] for n in chosen.indices.tolist()}
    columns = [column for column in range(len(ids)) if column not in left]
    text = torch.tensor([ids[column] != IMAGE for column in columns])
    words = model.get_input_embeddings()(torch.tensor([ids[column] for column in columns]))
    assert torch.equal(seen["inputs_embeds"][0][text], words[text])
    wanted = columns if positions == "original" else list(range(len(columns)))
    found = seen.get("position_ids")
    assert found is None if found is None else found[0].tolist() == wanted
    assert END in ids or name != "internvl-video"


@pytest.mark.parametrize("name", [name for name in FRAMED if name in ROWS])
def test_what_is_asked_is_as_seen_by_frames(name: str) -> None:
    """Methods that know of frames are told of them in a call, whose budget is of the whole video."""
    model = ROWS[name].make("sdpa")
    inputs = prompts(ROWS[name], model, "one")
    pruner = foveate.Spread("divprune", floor=0, keep=3, temperature=0.001)
    with pruner(model):
        model.generate(**inputs, **GREEDY)
    (chosen,) = pruner.selections
    share = {int(view): float(one) for view, one in zip(chosen.geometry.view, chosen.scores["share"], strict=True)}
    counts = {view: int((chosen.view == view).sum()) for view in share}
    assert sum(share.values()) == pytest.approx(1.0, abs=1e-5) and sum(counts.values()) == 3
    assert counts[max(share, key=lambda view: share[view])] == max(counts.values())
