"""Which text guides the choice for an image, on prompts of plain numbers."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor

from foveate.guiding import Guide, ImageSpan, find, locate_images
from foveate.turns import Turns

IMG, BOS, END = 99, 1, 2
USER, BOT = (10, 11), (12, 11)
# As templates write it: a user's turn opens with 10 11 and ends where 12 11 opens the answer; 2 ends an answer.
TURNS = Turns(starts=(USER,), ends=(BOT,), special=frozenset({BOS, END}))


def guide(rows: list[list[int]], turns: Turns = TURNS, span: str = "turn", answer: Tensor | None = None) -> Guide:
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    return Guide(ids, (ids != IMG) & (ids != 0), turns, span, answer)


def chosen(of: Guide, image: int = 0, row: int = 0, size: int = 2) -> list[int]:
    """The ids that guide the image-th picture of a row, each of ``size`` placeholders."""
    spots = (of.ids[row] == IMG).nonzero()[:, 0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = of.of(ImageSpan(row, spots[image * size : (image + 1) * size]))
    assert torch.equal(of.ids[row, found.columns], found.ids)
    return found.ids.tolist()


BEHIND = [BOS, *USER, IMG, IMG, 50, 51, *BOT]
BEFORE = [BOS, *USER, 50, 51, IMG, IMG, *BOT]


def test_the_question_guides_wherever_it_stands() -> None:
    assert chosen(guide([BEHIND])) == chosen(guide([BEFORE])) == [50, 51]
    assert chosen(guide([[BOS, *USER, 50, IMG, IMG, 51, *BOT]])) == [50, 51]


def test_prompt_is_the_released_rule() -> None:
    """All that follows the image, template suffix and special tokens included."""
    assert chosen(guide([[*BEHIND, 60, END]], span="prompt")) == [50, 51, *BOT, 60, END]
    assert chosen(guide([BEFORE], span="prompt")) == [*BOT]


def test_only_the_images_own_turn() -> None:
    system, first = [BOS, 70, 71], [*USER, 50, 51, *BOT, 60, END]
    row = [*system, *first, *USER, IMG, IMG, 52, *BOT, 61, END, *USER, 53, *BOT]
    assert chosen(guide([row])) == [52]


def test_a_later_turn_changes_nothing() -> None:
    grown = [*BEFORE, 60, END, *USER, 53, *BOT]
    assert chosen(guide([grown])) == chosen(guide([BEFORE]))


def test_a_picture_sent_alone_is_asked_about_next() -> None:
    row = [BOS, *USER, IMG, IMG, *BOT, 60, END, *USER, 52, *BOT, 61, END, *USER, 53, *BOT]
    assert chosen(guide([row])) == [52]
    assert chosen(guide([row[:14]])) == [52]  # and is so while that turn is the last


def test_blank_lines_around_a_picture_are_no_question() -> None:
    """Those that stand beside words go with them."""
    turns = Turns(TURNS.starts, TURNS.ends, TURNS.special, blank=frozenset({40}))
    row = [BOS, *USER, 40, IMG, IMG, 40, *BOT, 60, END, *USER, 52, *BOT]
    assert chosen(guide([row], turns)) == [52]
    assert chosen(guide([row])) == [40, 40]
    assert chosen(guide([[BOS, *USER, 40, IMG, IMG, 40, 50, *BOT, 60, END, *USER, 52, *BOT]], turns)) == [40, 40, 50]
    with pytest.warns(UserWarning, match="no text stands in the image's turn or a later one"):
        guide([[70, *row[:9]]], turns).of(ImageSpan(0, torch.tensor([5, 6])))


def test_images_of_one_turn_share_its_text() -> None:
    row = [BOS, *USER, 50, IMG, IMG, 51, IMG, IMG, 52, *BOT]
    assert chosen(guide([row]), 0) == chosen(guide([row]), 1) == [50, 51, 52]


def test_images_of_several_turns() -> None:
    row = [BOS, *USER, IMG, IMG, 50, *BOT, 60, END, *USER, 51, IMG, IMG, *BOT]
    of = guide([row])
    assert (chosen(of, 0), chosen(of, 1)) == ([50], [51])


def test_rows_are_apart() -> None:
    of = guide([BEHIND, [BOS, *USER, 80, IMG, IMG, *BOT]])
    assert (chosen(of, row=0), chosen(of, row=1)) == ([50, 51], [80])


def test_without_a_known_start() -> None:
    """What stands between two ends is a turn."""
    ends = Turns(ends=((END,),), special=frozenset({BOS}))
    row = [BOS, 70, END, 50, IMG, IMG, 51, END, 60]
    assert chosen(guide([row], ends)) == [50, 51]
    alone = [BOS, 70, END, IMG, IMG, END, 51, END]
    assert chosen(guide([alone], ends)) == [51]


def test_without_any_turns() -> None:
    assert chosen(guide([[BOS, 50, IMG, IMG, 51]], Turns(special=frozenset({BOS})))) == [50, 51]


def test_named_ends_must_be_there() -> None:
    named = Turns(ends=((77, 78),), named=True)
    with pytest.raises(ValueError, match=r"none of the turn ends \[\[77, 78\]\] follows the image in row 0"):
        chosen(guide([BEHIND], named))
    assert chosen(guide([[50, IMG, IMG, 51, 77, 78, 52]], named)) == [50, 51]


def test_the_answer_to_be_learned_does_not_choose() -> None:
    row = [IMG, IMG, 50, 51]
    plain = Turns()
    answer = torch.tensor([[False, False, False, True]])
    for span in ("turn", "prompt"):
        assert chosen(guide([row], plain, span, answer)) == [50]
        assert chosen(guide([row[:2] + row[3:]], plain, span, answer[:, [0, 1, 3]])) == [
            51
        ]  # for want of anything else


def test_marks_alone_do_not_guide_silently() -> None:
    """Nothing but other text is left: it guides, and that is said."""
    row = [70, 71, *BOT, END, *USER, IMG, IMG, *BOT]
    of = guide([row])
    with pytest.warns(UserWarning, match="no text stands in the image's turn or a later one in row 0"):
        found = of.of(ImageSpan(0, torch.tensor([7, 8])))
    assert found.ids.tolist()[:2] == [70, 71]
    with pytest.warns(UserWarning, match="no text follows the image in row 0"):
        guide([[50, IMG, IMG]], span="prompt").of(ImageSpan(0, torch.tensor([1, 2])))


def test_no_text_at_all() -> None:
    with pytest.raises(ValueError, match="row 0 of the batch has no text"):
        chosen(guide([[IMG, IMG]]))


def test_special_tokens_are_told() -> None:
    of = guide([[BOS, *USER, IMG, IMG, 50, *BOT, END]], span="prompt")
    found = of.of(ImageSpan(0, torch.tensor([3, 4])))
    assert found.special.tolist() == [False, False, False, True]


def test_find() -> None:
    ids = torch.tensor([1, 2, 1, 2, 3, 1])
    assert find(ids, [(1, 2), (2, 3), ()]) == [(0, 2), (2, 4), (3, 5)]
    assert find(ids, [(1, 2, 1, 2, 3, 1, 1)]) == []


def test_masked_placeholders_are_named() -> None:
    ids = torch.tensor([[IMG, IMG, 5]])
    mask = torch.tensor([[False, True, True]])
    with pytest.raises(ValueError, match="attention_mask hides 1 of the 2 image placeholders"):
        locate_images(ids, mask, IMG, [2])
