"""The explorer as a visitor meets it, in a real browser, around the model that ships with the package."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from selenium.webdriver import ActionChains, Keys
from selenium.webdriver.common.by import By

import foveate
from foveate import bundled
from foveate.app import page as pages
from foveate.app.engine import ALL, START, Explorer, Side
from foveate.evaluation.worlds import get_world
from tests.browser.conftest import waited_for

SCREENSHOTS = os.environ.get("FOVEATE_SCREENSHOTS")
"""A folder to which every test leaves what the page looked like."""


@pytest.fixture(scope="module")
def model():
    return bundled.load()


class Page:
    """One tab with the page in it."""

    def __init__(self, browser, address):
        self.browser = browser
        browser.switch_to.new_window("tab")
        self.tab = browser.current_window_handle
        browser.get(address)
        waited_for(lambda: self.one("#draw"), "the page")

    def here(self):
        self.browser.switch_to.window(self.tab)

    def one(self, selector):
        return self.browser.find_element(By.CSS_SELECTOR, selector)

    def text(self, selector):
        return self.one(selector).text

    def value(self, selector):
        return self.one(selector).get_attribute("value")

    def write(self, selector, text):
        box = self.one(selector)
        box.send_keys(Keys.CONTROL, "a")
        box.send_keys(text)
        return box

    def draw(self, number, world="scenes"):
        if world != "scenes":
            self.write("#world input", world).send_keys(Keys.ENTER)
        self.write("#index input", str(number)).send_keys(Keys.TAB)
        self.one("#draw").click()
        waited_for(lambda: f"{world}-{number}.png" in self.text("#about"), "the picture")

    def question(self, text):
        self.write("#question textarea", text)

    def kept(self, side):
        """What a side's figure says: its data, once it is of the question that stands there."""
        return json.loads(self.one(f"#{side}-figure .fv-figure").get_attribute("data-fv"))

    def answers(self):
        return self.value("#left-answer textarea"), self.value("#right-answer textarea")

    def ask(self):
        self.one("#ask").click()
        waited_for(lambda: all(self.answers()) and "prefill" in self.text("#right-counters"), "the answers")
        return self.answers()

    def counter(self, side, name):
        cell = f'//*[@id="{side}-counters"]//div[dt[text()="{name}"]]/dd'
        return self.browser.find_element(By.XPATH, cell).text

    def upload(self, *paths):
        self.one("#pictures input[type=file]").send_keys("\n".join(map(str, paths)))


@pytest.fixture
def page(browser, address, request):
    made = Page(browser, address)
    yield made
    made.here()
    if SCREENSHOTS:
        browser.save_screenshot(str(Path(SCREENSHOTS) / f"{request.node.name}.png"))
    severe = [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    browser.close()
    browser.switch_to.window(browser.window_handles[0])
    assert not severe


def expected(model, picture, question, *pruners):
    session = foveate.look(*model, picture)
    return [session.ask(question, pruner, max_new_tokens=8, do_sample=False) for pruner in pruners]


def test_both_sides_answer_as_the_library_does(page, model):
    drawing = get_world("scenes").draw(0, index=1)
    question = drawing.questions[5].text
    page.draw(1)
    page.question(question)
    left, right = page.ask()
    full, kept = expected(model, drawing.picture, question, None, foveate.AdaFV(keep=0.1))
    assert (left, right) == (full.text, kept.text)
    total = full.selections[0].total
    assert page.counter("left", "patch tokens kept") == f"{total} of {total}"
    assert page.counter("right", "patch tokens kept") == f"{len(kept.selections[0])} of {total}"
    assert page.counter("right", "prompt, tokens") == str(kept.prompt_tokens)
    assert page.kept("right")["kept"] == kept.selections[0].indices.tolist()
    # The cache has a key and a value for every token of the prompt, and nothing for those that were dropped.
    left_mib, right_mib = (float(page.counter(side, "KV cache, MiB")) for side in ("left", "right"))
    assert left_mib / right_mib == pytest.approx(full.prompt_tokens / kept.prompt_tokens, rel=0.05)


def test_it_begins_with_the_sides_it_is_given(model):
    """Of the page as Gradio sends it, without a browser."""
    explorer = Explorer(*model, start=(START[0], Side("cover:power=4.0", 2.5)))
    parts = {one["props"].get("elem_id"): one["props"] for one in pages.page(explorer).get_config_file()["components"]}
    assert parts["right-method"]["value"] == "cover:power=4.0" and parts["left-method"]["value"] == ALL
    right, left = parts["right-keep"], parts["left-keep"]
    assert (right["value"], right["minimum"], right["step"]) == (2.5, 0.1, 0.1)
    assert (left["value"], left["minimum"], left["step"]) == (10, 1, 1)


def test_another_budget_or_question_redraws_what_is_kept_and_encodes_nothing(page, model):
    drawing = get_world("scenes").draw(0, index=2)
    first, second = (asked.text for asked in drawing.questions[:2])
    page.draw(2)
    page.question(first)
    session = foveate.look(*model, drawing.picture)
    encoded = page.counter("right", "encoder, ms (once)")
    for question, percent in ((first, 25), (second, 25), (second, 5)):
        page.question(question)
        page.write("#right-keep input[type=number]", str(percent)).send_keys(Keys.TAB)
        kept = session.ask(question, foveate.AdaFV(keep=percent / 100), max_new_tokens=1).selections[0]
        waited_for(lambda kept=kept: page.kept("right")["kept"] == kept.indices.tolist(), f"{percent} % of it")
    assert page.counter("right", "encoder, ms (once)") == encoded
    assert page.answers() == ("", "")


def test_two_methods_stand_beside_each_other(page, model):
    drawing = get_world("documents").draw(0, index=3)
    question = drawing.questions[0].text
    page.draw(3, "documents")
    page.question(question)
    page.write("#left-method input", "cdpruner").send_keys(Keys.ENTER)
    waited_for(lambda: page.one("#left-keep input").is_displayed(), "the slider")
    page.write("#left-keep input[type=number]", "20").send_keys(Keys.TAB)
    left, right = page.ask()
    pruners = foveate.CDPruner(keep=0.2), foveate.AdaFV(keep=0.1)
    one, other = expected(model, drawing.picture, question, *pruners)
    assert (left, right) == (one.text, other.text)
    assert page.kept("left")["kept"] == one.selections[0].indices.tolist()


def test_a_patch_tells_its_scores_and_its_word(page):
    page.draw(1)
    page.question("Is there a sign?")
    waited_for(lambda: page.kept("right")["words"] == ["is", "there", "a", "sign", "?"], "the words")
    data = page.kept("right")
    picture = page.one("#right-figure svg")
    page.browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", picture)
    page.one("#right-figure .fv-bar button:nth-child(2)").click()  # the base view alone, where boxes do not overlap
    patch = next(n for n in data["kept"] if data["view"][n] == 0)
    x0, y0, x1, y1 = data["boxes"][4 * patch : 4 * patch + 4]
    scale = picture.size["width"] / float(picture.get_dom_attribute("viewBox").split()[2])
    middle = picture.size["width"] / 2, picture.size["height"] / 2
    across, down = (round(scale * at - half) for at, half in zip(((x0 + x1) / 2, (y0 + y1) / 2), middle, strict=True))
    ActionChains(page.browser).move_to_element_with_offset(picture, across, down).perform()
    told = page.text("#right-figure .fv-patch")
    assert told.startswith(f"kept · base view, row {data['row'][patch] + 1}, column {data['column'][patch] + 1}")
    saliency = data["scores"]["visual saliency"]
    rank = 1 + sum(value > saliency[patch] for value in saliency)
    assert f"visual saliency {saliency[patch]} · rank {rank} of {len(saliency)}" in told
    assert f"pointed at most by “{data['words'][data['word'][patch]]}”" in told
    ActionChains(page.browser).click().move_by_offset(0, -2).perform()
    ActionChains(page.browser).move_to_element(page.one("#ask")).perform()
    assert page.text("#right-figure .fv-patch") == told  # a click holds it
    page.one("#right-figure .fv-bar button:last-child").click()
    assert len(page.browser.find_elements(By.CSS_SELECTOR, "#right-figure .fv-map rect")) == data["view"].count(0)


def test_bad_pictures_and_long_texts_get_a_message_and_the_visit_goes_on(page, model, tmp_path):
    picture = get_world("scenes").draw(0, index=4).picture
    picture.save(tmp_path / "good.png")
    (tmp_path / "bad<b>.png").write_bytes((tmp_path / "good.png").read_bytes()[:200])
    page.upload(tmp_path / "good.png")
    waited_for(lambda: "good.png" in page.text("#about"), "the picture")
    page.one("#pictures button[aria-label='Clear']").click()
    waited_for(lambda: not page.text("#about"), "no picture")
    page.upload(tmp_path / "bad<b>.png")
    told = waited_for(lambda: page.text("#message"), "the message")
    assert told.startswith("bad") and "is truncated or damaged" in told and str(tmp_path) not in told
    page.one("#pictures button[aria-label='Clear']").click()
    page.upload(tmp_path / "good.png")
    waited_for(lambda: "good.png" in page.text("#about"), "the picture")
    page.browser.execute_script(
        "const box = document.querySelector('#question textarea'); box.value = 'is there a cat? '.repeat(1500);"
        "box.dispatchEvent(new Event('input', {bubbles: true}))"
    )
    page.one("#ask").click()
    waited_for(lambda: "too long for the model" in page.text("#right-figure"), "the message")
    page.question("Is there a cat?")
    full, kept = expected(model, picture, "Is there a cat?", None, foveate.AdaFV(keep=0.1))
    assert page.ask() == (full.text, kept.text)


def test_several_pictures(page, model, tmp_path):
    pictures = [get_world("scenes").draw(0, index=index).picture for index in (5, 6)]
    for number, picture in enumerate(pictures):
        picture.save(tmp_path / f"{number}.png")
    page.upload(tmp_path / "0.png", tmp_path / "1.png")
    waited_for(lambda: "1.png" in page.text("#about"), "the pictures")
    page.question("Is there a cat?")
    (kept,) = expected(model, pictures, "Is there a cat?", foveate.AdaFV(keep=0.1))
    assert page.ask()[1] == kept.text
    figures = page.browser.find_elements(By.CSS_SELECTOR, "#right-figure .fv-figure")
    shown = [json.loads(one.get_attribute("data-fv"))["kept"] for one in figures]
    assert shown == [one.indices.tolist() for one in kept.selections]


def test_visitors_do_not_see_each_other(page, browser, address, model):
    other = Page(browser, address)
    drawings = [get_world("scenes").draw(0, index=index) for index in (7, 8)]
    questions = [drawing.questions[0].text for drawing in drawings]
    for visitor, number, question in ((page, 7, questions[0]), (other, 8, questions[1])):
        visitor.here()
        visitor.draw(number)
        visitor.question(question)
    for visitor, drawing, question in zip((page, other), drawings, questions, strict=True):
        visitor.here()
        (kept,) = expected(model, drawing.picture, question, foveate.AdaFV(keep=0.1))
        assert visitor.ask()[1] == kept.text
        assert visitor.kept("right")["kept"] == kept.selections[0].indices.tolist()
    page.here()
    assert "scenes-7.png" in page.text("#about") and page.value("#question textarea") == questions[0]
    other.here()
    browser.close()
    page.here()


def test_what_is_copied_is_the_code(page):
    page.browser.execute_cdp_cmd(
        "Browser.grantPermissions", {"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]}
    )
    page.draw(1)
    page.question("Is there a sign?")
    waited_for(lambda: page.kept("right")["words"][-2] == "sign", "the figure")
    for name, begins in (("python", "import foveate\n"), ("curl", "# The server")):
        page.one(f"#right-copy-{name}").click()
        read = "return navigator.clipboard.readText()"
        copied = waited_for(lambda r=read, b=begins: (t := page.browser.execute_script(r)).startswith(b) and t, name)
        assert "Is there a sign?" in copied and "0.1" in copied and "adafv" in copied


def test_the_export_opens_offline(page, downloads):
    page.draw(1)
    page.question("Is there a sign?")
    answers = page.ask()
    page.one("#export").click()
    file = downloads / "foveate.html"
    waited_for(file.exists, "the file")
    page.browser.execute_cdp_cmd("Network.enable", {})
    offline = {"offline": True, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    page.browser.execute_cdp_cmd("Network.emulateNetworkConditions", offline)
    try:
        page.browser.get(file.as_uri())
        assert [one.text for one in page.browser.find_elements(By.CSS_SELECTOR, ".answer")] == list(answers)
        picture = page.browser.find_elements(By.CSS_SELECTOR, ".fv-figure svg")[1]
        ActionChains(page.browser).move_to_element(picture).perform()
        assert "pointed at most by" in page.browser.find_elements(By.CSS_SELECTOR, ".fv-patch")[1].text
        entries = "return performance.getEntriesByType('resource').map((one) => one.name)"
        assert all(name.startswith("data:") for name in page.browser.execute_script(entries))
    finally:
        page.browser.execute_cdp_cmd("Network.emulateNetworkConditions", {**offline, "offline": False})


def test_only_this_machine_is_asked_for_anything(page, address):
    """Neither fonts nor scripts come from elsewhere, and no tunnel is opened, whatever the environment says."""
    assert address.startswith("http://127.0.0.1:")
    page.draw(1)
    entries = "return performance.getEntriesByType('resource').map((one) => one.name)"
    named = page.browser.execute_script(entries)
    assert len(named) > 10
    assert [name for name in named if not name.startswith((address, "data:", "blob:"))] == []
