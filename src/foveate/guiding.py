"""Where the images of a prompt stand, and which of its text guides the choice among an image's tokens.

The one place where that is decided, for transformers and for vLLM. Bookkeeping over token ids on the CPU.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from foveate.turns import Turns


@dataclass(frozen=True, eq=False)
class ImageSpan:
    """Where one image stands in a batch of prompts.

    Args:
        row: its row in the batch.
        positions: (n,) int64 on the CPU, its placeholders' columns, ascending.
    """

    row: int
    positions: Tensor


def locate_images(
    ids: Tensor, mask: Tensor, image_token_id: int, placeholders: Sequence[int], kind: str = "image"
) -> list[ImageSpan]:
    """Assigns placeholders to images, row by row, in order.

    Args:
        ids: (B, S) int64 on the CPU.
        mask: (B, S) bool on the CPU, False where padding stands.
        image_token_id: the placeholder's id.
        placeholders: n of every image, in the order of ``pixel_values``.
        kind: what to call them in errors.

    Raises:
        ValueError: the prompts' placeholders are not those of the images; the message counts both.
    """
    everywhere = ids.numpy() == image_token_id
    spots = everywhere & mask.numpy()
    per_row = spots.sum(axis=1).tolist()
    if sum(per_row) != sum(placeholders):
        hidden = int(everywhere.sum()) - sum(per_row)
        if hidden and sum(per_row) + hidden == sum(placeholders):
            raise ValueError(masked_placeholders(hidden, sum(placeholders), kind))
        raise ValueError(
            f"the prompts hold {sum(per_row)} {kind} placeholders, but the {len(placeholders)} {kind}(s) given need "
            f"{sum(placeholders)} ({', '.join(map(str, placeholders))}). Pass every {kind} with its prompt through the "
            f"model's own processor, with one {kind} token in the text for each {kind}."
        )
    spans: list[ImageSpan] = []
    image = 0
    for row, count in enumerate(per_row):
        columns = torch.from_numpy(np.flatnonzero(spots[row]))
        used = 0
        while used < count:
            take = placeholders[image]
            if used + take > count:
                raise ValueError(
                    f"row {row} of the batch holds {count} {kind} placeholders, which does not end at the border of "
                    f"one: {kind} {image} needs {take} and only {count - used} are left. They must come in prompt "
                    "order."
                )
            spans.append(ImageSpan(row, columns[used : used + take]))
            used, image = used + take, image + 1
    return spans


def masked_placeholders(hidden: int, count: int, kind: str) -> str:
    """What an error says where a mask hides placeholders."""
    return (
        f"attention_mask hides {hidden} of the {count} {kind} placeholders: a masked {kind} cannot be pruned. Leave "
        f"the {kind} and its placeholders out, or let the mask show them all."
    )


@dataclass(frozen=True, eq=False)
class GuidingText:
    """The text that guides the choice for one image.

    Args:
        columns: (T,) int64 on the CPU, T >= 1, where it stands in its row, ascending.
        ids: (T,) int64 on the CPU.
        special: (T,) bool on the CPU, which of them are special tokens.
    """

    columns: Tensor
    ids: Tensor
    special: Tensor


class Guide:
    """Says for each image of a batch of prompts which text guides its selection.

    With ``text_span="turn"`` it is the text of the image's own user turn, before and after the image, without marks and
    role names. Where that turn has none (a picture sent alone, whatever blank lines stand around it), it is the next
    user turn that has some. With ``"prompt"``, as in AdaFV's released code, it is all that follows the image, to the
    prompt's end. Where neither finds any, the row's other text guides, with a warning.

    Args:
        ids: (B, S) int64 on the CPU, negative where a token is not known.
        text: (B, S) bool on the CPU, True for text: no padding, no placeholder, no mark.
        turns: how user turns are written.
        text_span: ``"turn"`` or ``"prompt"``.
        answer: (B, S) bool on the CPU, True for text with a label: the answer to be learned, which must not choose.
            Where nothing but labelled text is left, it chooses all the same.
    """

    def __init__(
        self, ids: Tensor, text: Tensor, turns: Turns, text_span: str = "turn", answer: Tensor | None = None
    ) -> None:
        self.ids = ids
        self.text = text
        self.turns = turns
        self.text_span = text_span
        self.answer = torch.zeros_like(text) if answer is None else answer
        self.special, self.blank = (
            torch.isin(ids, torch.tensor(sorted(known), dtype=ids.dtype, device="cpu"))
            for known in (turns.special, turns.blank)
        )
        self._marks: dict[int, tuple[list[tuple[int, int]], list[tuple[int, int]]]] = {}
        self._found: dict[tuple[int, int], GuidingText] = {}

    def of(self, span: ImageSpan) -> GuidingText:
        """The text for one image.

        Raises:
            ValueError: its row has no text, or none of the ends of turns that the caller named follows it.
        """
        place = (span.row, int(span.positions[0]))
        if place not in self._found:
            self._found[place] = self._find(span)
        return self._found[place]

    def _find(self, span: ImageSpan) -> GuidingText:
        # All of it in NumPy, whose operations on so few numbers take a fraction of a tensor's.
        row = span.row
        first, last = span.positions.numpy()[[0, -1]].tolist()
        everything = self.text.numpy()[row]
        asked = everything & ~self.answer.numpy()[row]
        if self.text_span == "prompt":
            behind = np.arange(len(everything)) > last
            candidates = [asked & behind, everything & behind]
            said = everything
        else:
            worded = ~self.special.numpy()[row]
            own, *later = self._turns_from(row, first, last)
            candidates = [asked & worded & self._between(row, own)]
            candidates += [asked & worded & self._between(row, turn) for turn in later]
            candidates.append(everything & worded & self._between(row, own))
            said = ~self.blank.numpy()[row]
        found = next((one for one in candidates if (one & said).any()), None)
        if found is None:
            found = everything
            if not found.any():
                raise ValueError(f"row {row} of the batch has no text")
            where = "follows the image" if self.text_span == "prompt" else "stands in the image's turn or a later one"
            warnings.warn(
                f"no text {where} in row {row}: the other text of the prompt guides the selection", stacklevel=3
            )
        columns = np.flatnonzero(found)
        ids, special = self.ids.numpy()[row, columns], self.special.numpy()[row, columns]
        return GuidingText(torch.from_numpy(columns), torch.from_numpy(ids), torch.from_numpy(special))

    def _turns_from(self, row: int, first: int, last: int) -> list[tuple[int, int]]:
        """(begin, end) columns of the turn of the image from ``first`` to ``last``, then those of later user turns."""
        if row not in self._marks:
            ids = self.ids[row]
            self._marks[row] = (find(ids, self.turns.starts), find(ids, self.turns.ends))
        starts, ends = self._marks[row]
        length = len(self.ids[row])
        if self.turns.named and not any(begin > last for begin, _ in ends):
            raise ValueError(
                f"none of the turn ends {[list(one) for one in self.turns.ends]} follows the image in row {row}: give "
                "the ids that end a user's turn, foveate.turn_end(processor) reads them from a chat template"
            )
        opened = [end for _, end in [*starts, *ends] if end <= first]
        closed = min((begin for begin, _ in ends if begin > last), default=length)
        found = [(max(opened, default=0), closed)]
        # Without a known start, what stands between two ends is a turn, the assistant's words in it included.
        for begin in [end for begin, end in (starts or ends) if begin >= closed]:
            found.append((begin, min((begin_ for begin_, _ in ends if begin_ >= begin), default=length)))
        return found

    def _between(self, row: int, turn: tuple[int, int]) -> Any:
        inside = np.zeros(self.text.shape[1], dtype=bool)
        inside[turn[0] : turn[1]] = True
        return inside


def find(ids: Tensor, patterns: Sequence[Sequence[int]]) -> list[tuple[int, int]]:
    """(begin, end) columns of every place where one of the patterns stands in (S,) ids, by where they begin."""
    found: set[tuple[int, int]] = set()
    row = ids.numpy()
    for pattern in patterns:
        size = len(pattern)
        if size:
            begins = np.flatnonzero(row == pattern[0]).tolist()  # of a mark there are few
            found.update(
                (begin, begin + size) for begin in begins if row[begin : begin + size].tolist() == list(pattern)
            )
    return sorted(found)
