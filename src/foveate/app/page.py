"""The page: Gradio's components around a visit, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from html import escape
from importlib.resources import files
from typing import Any

try:
    import gradio as gr
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(f"the explorer needs {error.name}: pip install 'foveate[app]'", name=error.name) from None

from foveate.app import shown
from foveate.app.engine import ALL, Explorer, Side
from foveate.app.visit import MANY, Visit
from foveate.cli.console import told
from foveate.evaluation.worlds import STILL
from foveate.pruners import INSIDE_METHODS, METHODS
from foveate.webpage.figure import asset

HOUR = 3600
"""Seconds after which what nobody looks at any more is forgotten."""
LARGEST_FILE = "200mb"
BAD_INPUT = (ValueError, TypeError, OSError, RuntimeError)
"""What pictures, questions and options raise, torch's want of memory included: it is said, and the visit goes on."""
SAVE = """(page) => {
  if (!page) return;
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([page], { type: "text/html" }));
  link.download = "foveate.html";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}"""
COPY = """async (text) => {
  try {
    await navigator.clipboard.writeText(text);
  } catch {  // there is no clipboard where the page came over plain HTTP from another machine
    const area = document.body.appendChild(document.createElement("textarea"));
    area.value = text;
    area.select();
    document.execCommand("copy");
    area.remove();
  }
}"""


def page(explorer: Explorer) -> gr.Blocks:
    """The page of a model."""
    with gr.Blocks(title="Foveate", analytics_enabled=False, fill_width=True, delete_cache=(HOUR, HOUR)) as blocks:
        _Page(explorer)
    # One answer at a time, and who waits is told the place in the queue.
    blocks.queue(default_concurrency_limit=1)
    return blocks


def launch(
    explorer: Explorer, *, host: str = "127.0.0.1", port: int | None = None, share: bool = False, **options: Any
) -> tuple[gr.Blocks, str]:
    """Serves the page until the process ends, or the page is closed.

    Args:
        explorer: the model.
        host: the address it listens on; by default this machine alone is answered.
        port: None: the first that is free from 7860 on.
        share: whether Gradio opens a tunnel, so that anybody with the address it prints is answered.
        options: of Gradio's ``launch``.

    Returns:
        The page and its address.

    Raises:
        OSError: the port is taken.
    """
    blocks = page(explorer)
    style = asset("figure.css") + files(__package__).joinpath("page.css").read_text(encoding="utf-8")
    _, address, _ = blocks.launch(
        server_name=host,
        server_port=port,
        share=share,  # said either way: Gradio would else look into its environment
        prevent_thread_lock=True,
        quiet=True,
        ssr_mode=False,
        footer_links=[],
        max_file_size=LARGEST_FILE,
        theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        css=style,
        head=f"<script>{asset('figure.js')}</script>",
        **options,
    )
    return blocks, address


class _Side:
    """The components of one side."""

    def __init__(self, name: str, start: Side) -> None:
        choices = [ALL, *METHODS, *INSIDE_METHODS]
        self.method = gr.Dropdown(
            choices,
            value=start.method,
            label="Method",
            info="Options may stand behind a name, as in fastv:layer=1",
            allow_custom_value=True,
            elem_id=f"{name}-method",
        )
        self.keep = gr.Slider(
            start.step,
            100,
            value=start.percent,
            step=start.step,
            label="Keep, %",
            elem_classes=_unless_all(start.method),
            buttons=[],
            elem_id=f"{name}-keep",
        )
        self.answer = gr.Textbox(label="Answer", lines=1, max_lines=20, interactive=False, elem_id=f"{name}-answer")
        self.counters = gr.HTML(elem_id=f"{name}-counters")
        self.figure = gr.HTML(shown.NOTHING, elem_id=f"{name}-figure")
        with gr.Row():
            python_button = gr.Button("Copy as Python", size="sm", elem_id=f"{name}-copy-python")
            curl_button = gr.Button("Copy as curl", size="sm", elem_id=f"{name}-copy-curl")
        with gr.Accordion("The code", open=False):
            self.python = gr.Code(language="python", label="Python", interactive=False, elem_id=f"{name}-python")
            self.curl = gr.Code(language="shell", label="curl, for foveate serve", interactive=False)
        self.method.change(
            lambda method: gr.Slider(elem_classes=_unless_all(method)), self.method, self.keep, api_visibility="private"
        )
        for button, text in ((python_button, self.python), (curl_button, self.curl)):
            button.click(None, text, None, js=COPY)


class _Page:
    """The components and what they do."""

    def __init__(self, explorer: Explorer) -> None:
        self.explorer = explorer
        self.visit = gr.State(None, time_to_live=HOUR)
        gr.HTML(
            f'<p class="fv-title"><b>Foveate</b> · {escape(explorer.name)} · ask about a picture, and see what the '
            "question keeps of it</p>"
        )
        with gr.Row():
            with gr.Column(scale=3):
                self.files = gr.File(label="Pictures", file_count="multiple", height=150, elem_id="pictures")
                self.about = gr.HTML(elem_id="about")
            with gr.Column(scale=2):
                with gr.Row(equal_height=True):
                    self.world = gr.Dropdown(list(STILL), label="Or draw", min_width=130, elem_id="world")
                    self.index = gr.Number(
                        0, label="Number", precision=0, minimum=0, maximum=MANY - 1, min_width=80, elem_id="index"
                    )
                    self.draw = gr.Button("Draw it", min_width=80, elem_id="draw")
                self.asked = gr.Dropdown(
                    [], label="Questions about it, with their answers", visible=False, interactive=True, elem_id="asked"
                )
        with gr.Row(equal_height=True):
            self.question = gr.Textbox(
                label="Question", placeholder="What is written on the sign?", scale=5, max_lines=4, elem_id="question"
            )
            self.ask = gr.Button("Ask", variant="primary", scale=1, elem_id="ask")
        self.message = gr.HTML(elem_id="message")
        with gr.Row():
            with gr.Column():
                left = _Side("left", explorer.start[0])
            with gr.Column():
                right = _Side("right", explorer.start[1])
        self.sides = (left, right)
        self.export = gr.Button("Export as one HTML file", elem_id="export")
        self.exported = gr.Textbox(visible="hidden", elem_id="exported")
        self._connect()

    def _connect(self) -> None:
        typed: list[Any] = [self.question, *(one for side in self.sides for one in (side.method, side.keep))]
        everything = [self.visit, self.message, *(one for side in self.sides for one in _outputs(side))]
        taken = [self.about, self.asked, self.question, *everything]
        heavy: dict[str, Any] = {"concurrency_id": "model", "show_progress": "minimal", "api_visibility": "private"}
        still = {**heavy, "show_progress": "hidden"}
        answers = [side.answer for side in self.sides]
        gr.on(
            [self.files.upload, self.files.clear, self.files.delete],
            self._take_files,
            [self.visit, self.files, *typed],
            taken,
            show_progress_on=self.about,
            **heavy,
        )
        self.draw.click(
            self._take_drawn, [self.visit, self.world, self.index, *typed], taken, show_progress_on=self.about, **heavy
        )
        self.asked.input(lambda asked: asked, self.asked, self.question, api_visibility="private")
        changes = [self.question.change, *(one.change for side in self.sides for one in (side.method, side.keep))]
        # While somebody types or drags, only the last state is of interest.
        gr.on(changes, self._redraw, [self.visit, *typed], everything, trigger_mode="always_last", **still)
        gr.on(
            [self.ask.click, self.question.submit],
            self._ask,
            [self.visit, *typed],
            everything,
            show_progress_on=answers,
            **heavy,
        )
        given = self.export.click(self._export, self.visit, [self.exported, self.message], **heavy)
        given.then(None, self.exported, None, js=SAVE)

    def _take_files(self, visit: Visit | None, paths: Sequence[str] | None, *typed: Any) -> list[Any]:
        visit = visit or Visit.begun(self.explorer)
        try:
            said = visit.take_files(self.explorer, paths or [])
        except BAD_INPUT as error:
            return [gr.skip(), gr.skip(), gr.skip(), *self._all(visit, told(error))]
        return [shown.pictures_html(visit), gr.Dropdown(visible=False), gr.skip(), *self._all(visit, said, typed)]

    def _take_drawn(self, visit: Visit | None, world: str, index: float | None, *typed: Any) -> list[Any]:
        visit = visit or Visit.begun(self.explorer)
        try:
            questions = visit.take_drawn(self.explorer, world, int(index or 0))
        except BAD_INPUT as error:
            return [gr.skip(), gr.skip(), gr.skip(), *self._all(visit, told(error))]
        asked = gr.Dropdown([(f"{text} ({answer})", text) for text, answer in questions], value=None, visible=True)
        question = typed[0] if typed[0].strip() else questions[0][0]
        return [shown.pictures_html(visit), asked, question, *self._all(visit, "", (question, *typed[1:]))]

    def _redraw(self, visit: Visit | None, *typed: Any) -> list[Any]:
        return self._all(visit or Visit.begun(self.explorer), "", typed, anyway=False)

    def _ask(self, visit: Visit | None, *typed: Any) -> Iterator[list[Any]]:
        visit = visit or Visit.begun(self.explorer)
        yield self._all(visit, "", typed)
        message = shown.warnings_of(self.explorer, visit)
        try:
            for _ in visit.ask(self.explorer):
                yield [visit, _message(message), *self._each(visit, self._streamed)]
        except BAD_INPUT as error:
            message = told(error)
        yield self._all(visit, message)

    def _export(self, visit: Visit | None) -> tuple[str, str]:
        try:
            return shown.exported(self.explorer, visit or Visit.begun(self.explorer)), ""
        except BAD_INPUT as error:
            return "", _message(told(error))

    def _all(self, visit: Visit, said: str, typed: Sequence[Any] | None = None, *, anyway: bool = True) -> list[Any]:
        """Everything of a visit, as ``typed`` has it now: a question, and a method and a percentage for every side.

        ``anyway``: also where nothing is another than before. A figure that is drawn anew forgets what the visitor has
        clicked on, and one change of a text may be told of twice.
        """
        changed = anyway
        if typed is not None:
            question, *rest = typed
            try:
                sides = [Side(str(rest[n] or ALL), float(rest[n + 1] or 1)) for n in range(0, len(rest), 2)]
                changed |= visit.set(self.explorer, str(question or ""), sides)
            except BAD_INPUT as error:
                said = told(error)
            said = said or (shown.warnings_of(self.explorer, visit) if visit.looked else "")
        return [visit, _message(said), *self._each(visit, self._whole if changed else self._as_it_is)]

    def _each(self, visit: Visit, drawn: Callable[[Visit, Any], Sequence[Any]]) -> list[Any]:
        return [one for side in visit.sides for one in drawn(visit, side)]

    def _whole(self, visit: Visit, side: Any) -> Sequence[Any]:
        code = shown.code(self.explorer, visit, side)
        figures = shown.figures_html(visit, side), shown.counters_html(visit, side)
        return shown.answer_text(side), *figures, code["Python"], code["curl"]

    def _as_it_is(self, visit: Visit, side: Any) -> Sequence[Any]:
        return [gr.skip()] * len(_outputs(self.sides[0]))

    def _streamed(self, visit: Visit, side: Any) -> Sequence[Any]:
        # Pictures are large, and stay as they are while the words come.
        return shown.answer_text(side), gr.skip(), shown.counters_html(visit, side), gr.skip(), gr.skip()


def _outputs(side: _Side) -> list[Any]:
    return [side.answer, side.figure, side.counters, side.python, side.curl]


def _unless_all(method: str) -> list[str]:
    """Classes of a slider, which is of no use where all is kept; its place is left, for the sides to be level."""
    return ["fv-unseen"] if method == ALL else []


def _message(text: str) -> str:
    return f'<p class="fv-message" role="alert">{escape(text)}</p>' if text else ""
