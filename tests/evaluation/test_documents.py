"""The documents suite: true answers, honest boxes, legible text, fonts apart, and questions that need the picture."""

from __future__ import annotations

import ast
import itertools
import re
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFont

from foveate.evaluation import documents
from foveate.evaluation.documents import DOCUMENTS, KINDS, faces, make_sample
from foveate.evaluation.documents.page import SIDES
from foveate.evaluation.documents.panel import LARGE, SMALL, Word, luminance
from foveate.evaluation.documents.papers import PAPERS, Bars, Form, Line, Receipt, Screen, Sign, Table
from foveate.evaluation.documents.sample import FONTS, Sample
from foveate.evaluation.documents.words import LARGEST, POOLS, QUESTION_WORDS, VOCABULARY, accepted, numbers
from foveate.evaluation.scenes.world import COLORS

COUNT = 280


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return [make_sample("test", 5, index) for index in range(COUNT)]


@pytest.fixture(scope="module")
def asked(samples) -> list:
    """(sample, number of the document, its question, the question with boxes)"""
    return [(one, *ask, told) for one in samples for ask, told in zip(one.asks, one.questions, strict=True)]


def words_of(panel) -> list[Word]:
    return [mark for mark in panel.marks if isinstance(mark, Word)]


# Answers, worked out again from what a document holds and from where its words stand.

LARGER = ("more", "most", "larger", "largest", "higher", "highest", "farther", "farthest")
SMALLER = ("less", "least", "smaller", "smallest", "lower", "lowest", "nearer", "nearest")


def told(paper, text: str) -> dict[str, int]:
    """What has a number in a document: of a table, in the column that the question names."""
    if isinstance(paper, Receipt):
        return dict(paper.rows)
    if isinstance(paper, Sign):
        return {place: far for place, _, far in paper.ways}
    if isinstance(paper, Form):
        return {label: int(value) for label, value in paper.fields if value.isdecimal()}
    if isinstance(paper, Screen):
        return dict(paper.settings)
    if isinstance(paper, Table):
        columns = [j for j, column in enumerate(paper.columns) if column in re.findall(r"\w+", text)]
        return {name: cells[columns[0]] for name, cells in zip(paper.rows, paper.cells, strict=True)} if columns else {}
    return dict(zip(paper.labels, paper.values, strict=True))


def compared(paper, text: str) -> str:
    values = told(paper, text)
    named = [word for word in re.findall(r"\w+", text) if word in values]
    best = max if any(word in LARGER for word in text.rstrip("?").replace(",", "").split()) else min
    assert (best is max) != any(word in SMALLER for word in text.rstrip("?").replace(",", "").split())
    if named:
        assert len(named) == 2
        return best(named, key=values.__getitem__)
    found = best(values, key=values.__getitem__)
    assert list(values.values()).count(values[found]) == 1
    return str(values[found]) if isinstance(paper, Form) else found


def beside(words: list[Word], word: Word, way: str) -> str:
    """The next word above, below, left or right that shares rows or columns of pixels with this one."""
    across = way in ("left", "right")
    low, high = (0, 2) if across else (1, 3)
    first, last = (1, 3) if across else (0, 2)
    sharing = [other for other in words if other.box[first] < word.box[last] and word.box[first] < other.box[last]]
    if way in ("left", "above"):
        return max((w for w in sharing if w.box[high] <= word.box[low]), key=lambda w: w.box[high]).text.lower()
    return min((w for w in sharing if w.box[low] >= word.box[high]), key=lambda w: w.box[low]).text.lower()


def pointing(sample: Sample, number: int, key: str) -> str:
    """Which way an arrow points whose ink is this: it is longer than wide, and its head is wider than its tail."""
    x0, y0, x1, y1 = sample.page.box(number, key)
    without = np.asarray(sample.page.draw(frozenset({(number, key)})), int)
    ink = np.abs(np.asarray(sample.picture, int) - without).sum(-1)[y0:y1, x0:x1] > 60
    across = ink.shape[1] > ink.shape[0]
    thick = ink.sum(0 if across else 1)
    begins = thick[: len(thick) // 2].max() > thick[(len(thick) + 1) // 2 :].max()
    return ("left" if begins else "right") if across else ("up" if begins else "down")


def placed(sample: Sample, number: int, text: str) -> str:
    paper, (panel, *_) = sample.page.papers[number], sample.page.panels[number]
    words = words_of(panel)
    by_text = {word.text.lower(): word for word in words}
    if match := re.search(r"just (above|below|left|right)(?: of)?(?: the)? (\w+)\?$", text):
        way, word = match.groups()
        if isinstance(paper, (Bars, Table, Form, Receipt)) and word.isdecimal():  # not a price or scale that equals it
            prefix = "cell" if isinstance(paper, Table) else "value"
            named = [one for one in words if one.key.startswith(prefix) and one.text == word]
            assert len(named) == 1
            return beside(words, named[0], way)
        return beside(words, by_text[word], way)
    if match := re.search(r"Which way is the (\w+),", text):
        return pointing(sample, number, "way:" + by_text[match[1]].key.partition(":")[2])
    kind = {Receipt: "goods", Sign: "places", Table: "names", Screen: "buttons"}.get(type(paper))
    if text == "What is at the top of the sign?":
        return min(words, key=lambda w: w.box[1]).text.lower()
    if isinstance(paper, Form):
        inside = [w for w in words if w.key.startswith("value")]
    elif isinstance(paper, (Bars, Line)):
        inside = [w for w in words if w.text.lower() in paper.labels]
    else:
        inside = [w for w in words if w.text.lower() in POOLS[kind]]
    if isinstance(paper, Screen) and (match := re.search(r"at the (top|bottom) (left|right)\?", text)):
        down, across = {"top": -1, "bottom": 1}[match[1]], {"left": -1, "right": 1}[match[2]]
        return max(inside, key=lambda w: down * w.box[1] + across * (w.box[0] + w.box[2])).text.lower()
    axis = 0 if "far left" in text or "far right" in text or isinstance(paper, Line) else 1
    order = sorted(inside, key=lambda w: w.box[axis] + w.box[axis + 2])
    where = re.search(r"\b(first|second|third|last|top|bottom|left|right|begin|end)\b", text)[1]
    place = {"second": 1, "third": 2, "last": -1, "bottom": -1, "right": -1, "end": -1}.get(where, 0)
    return order[place].text.lower()


def read(sample: Sample, number: int, text: str) -> str:
    paper, (panel, *_) = sample.page.papers[number], sample.page.panels[number]
    named = re.findall(r"\w+", text)
    values = told(paper, text)
    numbered = [int(word) for word in named if word.isdecimal()]
    if text == "What is the total?":
        return str(sum(paper.rows[i][1] for i in range(len(paper.rows))))
    if text == "What number does the bus have?":
        return str(paper.bus)
    if text == "Where is the receipt from?":
        return paper.shop
    if text == "Which app is on the screen?":
        return paper.app
    if text == "Which drink has a tick?":
        tick = panel.box("tick")
        options = [word for word in words_of(panel) if word.text.lower() in POOLS["drinks"]]
        return min(options, key=lambda w: abs(w.box[1] + w.box[3] - tick[1] - tick[3])).text.lower()
    if text.startswith("Which button is "):
        (word,) = [word for word, color in paper.buttons if color == named[-1]]
        fills = {mark.key: mark.fill for mark in panel.marks if mark.key.startswith("button")}
        assert (
            fills["button:" + next(w for w in words_of(panel) if w.text.lower() == word).key[5:]] == COLORS[named[-1]]
        )
        return word
    if isinstance(paper, Table) and numbered:
        (i, j), *more = [
            (i, j) for i, row in enumerate(paper.cells) for j, cell in enumerate(row) if cell == numbered[0]
        ]
        assert not more
        return paper.rows[i] if named[0] == "Who" else paper.columns[j]
    if numbered:
        (found,) = [label for label, value in values.items() if value == numbered[0]]
        return found
    if isinstance(paper, Form):
        return dict(paper.fields)[named[-1]]
    (label,) = [word for word in named if word in values]
    return str(values[label])


def test_answers_are_true(asked):
    for sample, number, ask, question in asked:
        paper = sample.page.papers[number]
        if ask.kind == "comparison":
            answer = compared(paper, ask.text)
        elif ask.kind == "place":
            answer = placed(sample, number, ask.text)
        else:
            answer = read(sample, number, ask.text)
            assert answer.isdecimal() == (ask.kind == "number")
        assert ask.answers == accepted(answer), ask.text
        assert (question.text, question.answers, question.kind) == (ask.text, ask.answers, ask.kind)


def test_totals_and_scales_are_as_written(samples):
    """What a question is answered from is what stands on the document, not only what it was composed of."""
    seen = Counter()
    for sample in samples:
        for paper, (panel, *_) in zip(sample.page.papers, sample.page.panels, strict=True):
            words = {word.key: word for word in words_of(panel)}
            if isinstance(paper, Receipt) and paper.total:
                rows = [int(word.text) for key, word in words.items() if key.startswith("value")]
                assert int(words["sum"].text) == sum(rows) <= 999 and max(rows) <= LARGEST
                seen["total"] += 1
            elif isinstance(paper, (Bars, Line)):
                lying = isinstance(paper, Bars) and paper.lying
                assert len(set(paper.values)) > 1
                for i, value in enumerate(paper.values):
                    _x0, y0, x1, y1 = panel.box(f"drawn:{i}")
                    assert words[f"label:{i}"].text.lower() == paper.labels[i]
                    if not paper.step:
                        assert words[f"value:{i}"].text == str(value)
                        continue
                    seen["scale"] += 1
                    # On the line of the scale that the number beside tells.
                    scale = words[f"scale:{value // paper.step}"]
                    assert scale.text == str(value)
                    end = x1 if lying else (y0 if isinstance(paper, Bars) else (y0 + y1) / 2)
                    middle = sum(scale.box[0 if lying else 1 :: 2]) / 2
                    assert abs(end - middle) <= max(3, panel.em / 6), (paper, i)
    assert seen["total"] > 10 and seen["scale"] > 50


def test_boxes_hold_the_ink_of_what_must_be_seen(samples):
    """Left out of the drawing, what an answer is read from leaves a hole in its box and nowhere else."""
    tight = 0
    for sample in samples[:42]:
        whole = np.asarray(sample.picture, int)
        for (number, ask), question in zip(sample.asks, sample.questions, strict=True):
            keys = list(dict.fromkeys(ask.keys))
            assert len(keys) == len(question.boxes)
            for key, (x0, y0, x1, y1) in zip(keys, question.boxes, strict=True):
                hole = np.abs(whole - np.asarray(sample.page.draw(frozenset({(number, key)})), int)).sum(-1) > 0
                down, across = np.nonzero(hole)
                assert len(down), (ask.text, key)
                assert x0 <= across.min() and across.max() < x1 and y0 <= down.min() and down.max() < y1, (ask, key)
                tight += (
                    across.min() <= x0 + 1 and across.max() >= x1 - 2 and down.min() <= y0 + 1 and down.max() >= y1 - 2
                )
            answer = sample.page.panels[number][0]
            word = [w for w in words_of(answer) if w.key == keys[0]]
            assert not word or word[0].text.lower() == question.answers[0]
            assert word or keys[0].startswith("way")
    boxes = sum(len(question.boxes) for sample in samples[:42] for question in sample.questions)
    assert tight > 0.99 * boxes


def test_nothing_overlaps_or_leaves_the_picture(samples):
    for sample in samples:
        page = sample.page
        assert sample.picture.size == (page.width, page.height) and sample.picture.mode == "RGB"
        assert min(page.width, page.height) >= SIDES[0] == 112 and max(page.width, page.height) <= SIDES[1] == 672
        papers = [(x, y, x + panel.width, y + panel.height) for panel, x, y in page.panels]
        boxes = []
        for panel, x, y in page.panels:
            for word in words_of(panel):
                x0, y0, x1, y1 = word.box
                assert 0 <= x0 < x1 <= panel.width and 0 <= y0 < y1 <= panel.height, word
                boxes.append((x0 + x, y0 + y, x1 + x, y1 + y, word.text))
            for mark in panel.marks:
                assert mark.box[0] >= -1 and mark.box[2] <= panel.width + 1 and mark.box[3] <= panel.height + 1, mark
        for x0, y0, x1, y1 in papers:
            assert x0 >= 0 and y0 >= 0 and x1 <= page.width and y1 <= page.height
        for one, other in itertools.chain(itertools.combinations(papers, 2), itertools.combinations(boxes, 2)):
            apart = one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]
            assert apart, (one, other)


def test_text_is_small_or_large_and_legible(samples):
    sizes = Counter()
    for sample in samples:
        for panel, *_ in sample.page.panels:
            for word in words_of(panel):
                assert SMALL[0] <= word.size <= SMALL[1] or LARGE[0] <= word.size <= LARGE[1]
                sizes[word.size] += 1
                # Capitals of a font take about seven tenths of its size.
                if word.text.isupper() and len(word.text) > 1:
                    assert 0.6 * word.size < word.box[3] - word.box[1] <= word.size + 1
    assert min(sizes) == 12 and max(sizes) == LARGE[1]
    questions = [question.size for sample in samples for question in sample.questions]
    assert 0.2 < questions.count("large") / len(questions) < 0.5 and questions.count("none") == 0
    for sample in samples[:28]:
        for number, (panel, x, y) in enumerate(sample.page.panels):
            for word in words_of(panel):
                left_out = sample.page.draw(frozenset({(number, word.key)})).convert("L")
                x0, y0, x1, y1 = (edge + (x, y)[i % 2] for i, edge in enumerate(word.box))
                behind = np.asarray(left_out, float)[y0:y1, x0:x1].mean()
                assert abs(behind - luminance(word.fill)) > 60, (word, behind)


def test_sizes_are_those_of_what_is_read(asked):
    for sample, number, ask, question in asked:
        sizes = [word.size for word in words_of(sample.page.panels[number][0]) if word.key in ask.keys]
        assert question.size == ("small" if min(sizes) <= SMALL[1] else "large")


def test_splits_have_fonts_of_their_own():
    assert not set(faces.SEEN) & set(faces.UNSEEN) and set(faces.SEEN) | set(faces.UNSEEN) == set(faces.FAMILIES)
    designs = {
        split: {faces.face(family, bold, 20).getname()[0].split()[0] for family in families for bold in (False, True)}
        for split, families in FONTS.items()
    }
    assert designs["train"] == designs["test"] == {"DejaVu"} and designs["style"] == {"STIXGeneral", "Aileron"}
    for split, families in FONTS.items():
        pages = [make_sample(split, 3, index).page for index in range(28)]
        used = {word.family for page in pages for panel, *_ in page.panels for word in words_of(panel)}
        assert used == set(families)


def test_every_font_has_every_letter():
    letters = sorted(set("".join(word + word.upper() for word in VOCABULARY)) | set("0123456789"))
    for family in faces.FAMILIES:
        for bold in (False, True):
            font = faces.face(family, bold, 40)
            assert font.layout_engine is ImageFont.Layout.BASIC
            drawn = {bytes(font.getmask(letter)) + bytes(str(font.getbbox(letter)), "ascii") for letter in letters}
            missing = bytes(font.getmask("\uffff"))
            assert len(drawn) == len(letters) and not any(one.startswith(missing) and missing for one in drawn)


def test_another_font_is_refused(monkeypatch):
    faces._bytes.cache_clear()
    monkeypatch.setitem(faces.DIGESTS, "STIXGeneral.ttf", "0" * 64)
    with pytest.raises(RuntimeError, match="a certain STIXGeneral.ttf, and the installed matplotlib has another one"):
        faces._bytes("STIXGeneral.ttf")
    monkeypatch.setattr(faces.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'foveate\[cli\]'"):
        faces._bytes("DejaVuSans.ttf")


def test_words_are_few_and_no_word_is_twice_on_a_page(samples):
    everywhere = [word for pool in POOLS.values() for word in pool]
    assert len(everywhere) == len(set(everywhere)) and len(set(VOCABULARY)) == len(VOCABULARY) <= 200
    spoken = set()
    for sample in samples:
        written = Counter()
        for panel, *_ in sample.page.panels:
            for word in words_of(panel):
                text = word.text.lower()
                assert re.fullmatch(r"\d{1,3}", text) or text in VOCABULARY or text == "bus", text
                written[text] += not text.isdecimal()
        assert max(written.values()) == 1
        for question in sample.questions:
            spoken |= set(re.findall(r"[a-z]+", f"{question.text} {question.answers[0]}".lower()))
            assert re.fullmatch(r"\d{1,3}", question.answers[0]) or question.answers[0] in VOCABULARY
            assert question.text[0].isupper() and question.text.endswith("?") and "  " not in question.text
            assert len(set(question.answers)) == len(question.answers)
    assert not set(QUESTION_WORDS) & set(VOCABULARY) and len(VOCABULARY) + len(QUESTION_WORDS) < 220
    assert set(QUESTION_WORDS) <= spoken <= {*QUESTION_WORDS, *VOCABULARY}


def test_every_kind_of_document_and_question_is_there(samples):
    assert {type(paper) for sample in samples for paper in sample.page.papers} == set(PAPERS)
    kinds = Counter(question.kind for sample in samples for question in sample.questions)
    assert set(kinds) == set(KINDS) and min(kinds.values()) > 0.7 * max(kinds.values())
    for paper in PAPERS:
        own = {
            ask.kind for sample in samples for number, ask in sample.asks if type(sample.page.papers[number]) is paper
        }
        assert own == set(KINDS), paper


def test_clutter_is_clutter(samples):
    def words(clutter: bool) -> float:
        pages = [sample.page for sample in samples if sample.page.clutter is clutter]
        assert len(pages) == COUNT // 2
        return float(np.mean([sum(len(words_of(panel)) for panel, *_ in page.panels) for page in pages]))

    assert words(True) > 1.5 * words(False)


def form_of(text: str) -> str:
    """A question without the words and numbers of its picture."""
    words = re.findall(r"\w+", text)
    return " ".join("#" if word.isdecimal() else "*" if word in VOCABULARY else word for word in words)


def guesses(train: list, test: list) -> dict[str, list[float]]:
    """What guessers without a picture get right, in % by kind.

    They say the likeliest answer of a kind; that of a question's form (the question without the words of its picture);
    the same, but of two things that are named the first.
    """
    by_kind, by_form = defaultdict(Counter), defaultdict(Counter)
    for question in train:
        by_kind[question.kind][question.answers[0]] += 1
        by_form[form_of(question.text)][question.answers[0]] += 1
    right = {kind: [] for kind in KINDS}
    for question in test:
        of_kind, of_form = ([word for word, _ in seen.most_common(1)] for seen in (
            by_kind[question.kind], by_form[form_of(question.text)]
        ))  # fmt: skip
        named = re.findall(r"(\w+) or (?:the )?\w+\?", question.text) if question.kind == "comparison" else []
        right[question.kind].append([guess == [question.answers[0]] for guess in (of_kind, of_form, named or of_form)])
    return {kind: [float(share) for share in 100 * np.mean(told, 0)] for kind, told in right.items()}


def test_questions_need_the_picture():
    train, test = (
        [question for index in range(count) for question in make_sample(split, 0, index).questions]
        for split, count in (("train", 800), ("test", 280))
    )
    rates = guesses(train, test)
    print("\nright without the picture, %: likeliest answer of the kind | of the form | of two, the first")
    for kind, shares in rates.items():
        print(kind, *(f"{share:.1f}" for share in shares))
    bounds = {"number": (6, 6, 6), "word": (4, 14, 14), "comparison": (4, 16, 40), "place": (4, 13, 13)}
    for kind, shares in rates.items():
        assert all(share < bound for share, bound in zip(shares, bounds[kind], strict=True)), (kind, shares)
    pairs = [question for question in train if question.kind == "comparison" and " or " in question.text]
    named = [re.search(r"(\w+) or (?:the )?(\w+)\?", question.text).groups() for question in pairs]
    assert all(question.answers[0] in two for question, two in zip(pairs, named, strict=True))
    first = np.mean([question.answers[0] == two[0] for question, two in zip(pairs, named, strict=True)])
    assert abs(first - 0.5) < 3 * 0.5 / len(pairs) ** 0.5


def test_numbers_are_of_every_length():
    rng = np.random.default_rng(0)
    digits = Counter(len(str(number)) for _ in range(300) for number in numbers(rng, 4))
    assert set(digits) == {1, 2} and min(digits.values()) > 0.15 * digits.total()
    for count in (9, 28):
        for _ in range(50):
            drawn = numbers(rng, count)
            assert len(set(drawn)) == count and min(drawn) >= 1 and max(drawn) <= LARGEST


def test_same_arguments_same_bytes(tmp_path):
    for name in "ab":
        DOCUMENTS.write(tmp_path / name, 14, seed=3, split="style")
        faces.face.cache_clear()
    first, second = (sorted((tmp_path / name).iterdir()) for name in "ab")
    assert [path.name for path in first] == [path.name for path in second] and len(first) == 15
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(first, second, strict=True))
    alone = DOCUMENTS.draw(3, "style", 9)
    assert np.array_equal(alone.picture, make_sample("style", 3, 9).picture)


def test_splits_and_seeds_differ():
    pages = [make_sample(split, seed, 0).page.papers for split in FONTS for seed in (0, 1)]
    assert len(set(pages)) == len(pages)


def test_smaller_pictures_can_be_asked_for():
    for index in range(42):
        sample = make_sample("train", 0, index, most=224)
        assert max(sample.picture.size) <= 224 and sample.questions
    for most in (223, 673):
        with pytest.raises(ValueError, match=f"at most 224 to 672 pixels, got {most}"):
            make_sample("train", 0, 0, most=most)
    assert (
        make_sample("train", 0, 0, clutter=True).page.clutter
        and not make_sample("train", 0, 1, clutter=False).page.clutter
    )


def test_files_hold_what_was_drawn(tmp_path):
    path = DOCUMENTS.write(tmp_path, 6, seed=2)
    items = DOCUMENTS.read(path)
    assert path.name == "documents.jsonl" and len({item.image for item in items}) == 6
    drawn = [question for index in range(6) for question in make_sample("test", 2, index).questions]
    for item, question in zip(items, drawn, strict=True):
        assert (item.question, item.answers, item.kind) == (question.text, list(question.answers), question.kind)
        assert item.boxes == question.boxes and all(len(box) == 4 for box in item.boxes)
        with Image.open(tmp_path / item.image) as picture:
            width, height = picture.size
        assert all(0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height for x0, y0, x1, y1 in item.boxes)


def test_documents_need_neither_torch_nor_transformers_nor_matplotlib_itself():
    for path in Path(documents.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.partition(".")[0] for name in names} & {"torch", "transformers", "matplotlib"}, path
