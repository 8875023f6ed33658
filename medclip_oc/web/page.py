"""The page, as gradio's Blocks: one picture, and tabs that ask about it."""

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from textwrap import shorten
from typing import Any

from markupsafe import Markup

from ..errors import InputError, WorkError
from ..imaging import windowing
from ..inference import prompt_sets
from ..runtime.extras import needed
from .handlers import MOST_FOUND, Handlers, answer

HEAD = Markup('<div class="head"><h1>{}</h1><p>{}</p></div>')
NOTE = "Research use only: this is not a medical device. Nothing leaves this machine."
KEPT_SECONDS = 3600
KEYS = """<script>addEventListener("keydown", (event) => event.key === "Enter" && event.ctrlKey &&
[...document.querySelectorAll("button.go")].find((go) => go.offsetParent)?.click())</script>"""


def page(handlers: Handlers, title: str) -> Any:
    """All of it; `title` says which model answers."""
    gradio: Any = needed("gradio", "app")
    update, hidden = gradio.update, gradio.update(visible=False)
    # one at a time, for maps hang on the model's layers; and as it was typed: a number beyond its
    # slider gradio would refuse with a traceback. It still checks that a file was uploaded.
    ask = dict[str, Any](api_visibility="private", concurrency_id="model", preprocess=False)

    def told(work: Callable[..., Any], *failed: Any) -> Callable[..., Any]:
        """Its answer; or what was wrong, in words, and `failed` for the other outputs."""

        def run(*given: Any) -> Any:
            try:
                return work(*given)
            except (InputError, WorkError, OSError) as error:  # a file is deleted in time
                # neither where the browser's file lies, nor what a command's options would do
                words = re.sub(r"^--\S+: |\S*/gradio/\S*/|; --.*", "", str(error))
                return [answer(error=words), *failed] if failed else answer(error=words)

        return run

    def shown(seen: Any, *sliders: Any) -> list[Any]:
        return ["", seen, update(value=seen[0], visible=True), *sliders]

    def opened(file: dict[str, Any], *window: float | None) -> list[Any]:
        picture, values = windowing.show(Path(file["path"]).read_bytes(), *window)
        sliders = [update(), update()] if window else [hidden, hidden]
        if values and not window:
            low, high, widest, centre, width = values
            sliders = [
                update(minimum=low, maximum=high, value=centre, visible=True),
                update(maximum=widest, value=width, visible=True),
            ]
        return shown((picture, Path(file["path"]).name, bool(window)), *sliders)

    def picked(event: gradio.SelectData) -> list[Any]:
        picture, name, _ = handlers.samples[event.index]
        return [*shown((picture, name, False), hidden, hidden), None]

    def button(label: str, work: Callable[..., str], given: list[Any], *also: Any) -> None:
        """The end of a tab: what asks, and what is answered there."""
        asking = gradio.Button(label, variant="primary", elem_classes="go")
        place = gradio.HTML(elem_classes="said")
        gradio.on([asking.click, *also], told(work), given, place, **ask)
        if seen in given:  # what was said of another picture goes
            seen.change(lambda: "", None, place, api_visibility="private")

    forget = {"analytics_enabled": False, "delete_cache": (KEPT_SECONDS, KEPT_SECONDS)}
    with gradio.Blocks(title=f"medclip_oc: {title}", **forget) as blocks:
        seen = gradio.State(time_to_live=KEPT_SECONDS)
        gradio.HTML(HEAD.format(Markup.escape(title).replace("/", Markup("/<wbr>")), NOTE))
        with gradio.Row():
            with gradio.Column(min_width=300, scale=2):
                # not gradio.Image, which decodes by rules of its own
                file = gradio.File(label="Image: drop a file", height=110, elem_id="image")
                look: dict[str, Any] = {"format": "jpeg", "height": 260, "interactive": False}
                look["buttons"] = []  # none that shares
                view = gradio.Image(label="What the model sees", visible=False, **look)
                centre = gradio.Slider(label="Window centre", step=1, visible=False)
                width = gradio.Slider(1, 2, label="Window width", step=1, visible=False)
                said = gradio.HTML(elem_classes="said")
                cut = partial(shorten, width=60, placeholder=" ...")
                pictures = [(picture, cut(caption)) for picture, _, caption in handlers.samples]
                look |= {"columns": 4, "allow_preview": False, "visible": bool(pictures)}
                samples = gradio.Gallery(pictures, label="Or a sample of the run", **look)
            with gradio.Column(min_width=300, scale=3):
                why = "Why: show where in the picture the score comes from"
                with gradio.Tab("Rank captions"):
                    lines = gradio.Textbox(label="Captions, one per line", lines=5, max_lines=12)
                    with gradio.Accordion("Captions from a file, and a threshold", open=False):
                        table = gradio.UploadButton("Read .txt, .csv, ...", size="sm")
                        problem = gradio.HTML(elem_classes="said")
                        label = 'Cosine below which it is "none of these"'
                        least = gradio.Slider(-1, 1, -1, step=0.01, label=label)
                    given = [seen, lines, least, gradio.Checkbox(label=why)]
                    button("Rank (Ctrl+Enter)", handlers.rank, given)
                    read = told(lambda file: ["", handlers.captions(file["path"])], update())
                    table.upload(read, table, [problem, lines], **ask)
                if handlers.index is not None:
                    with gradio.Tab("Search"):
                        text = gradio.Textbox(label="Text (none: search by the picture)")
                        number = gradio.Slider(1, MOST_FOUND, 8, step=1, label="How many")
                        button("Search (Enter)", handlers.search, [seen, text, number], text.submit)
                with gradio.Tab("Findings"):
                    sets = gradio.Dropdown(prompt_sets.names(), label="Prompt set")
                    given = [seen, sets, gradio.Checkbox(label=why)]
                    button("Judge (Ctrl+Enter)", handlers.findings, given)
        outputs = [said, seen, view, centre, width]
        opening = told(opened, None, hidden, hidden, hidden)
        file.upload(opening, file, outputs, **ask)
        file.clear(lambda: ["", None, hidden, hidden, hidden], None, outputs, **ask)
        samples.select(picked, None, [*outputs, file], **ask)
        turning = told(opened, *[update()] * 4)  # where it fails, all stays
        for slider in (centre, width):
            slider.input(turning, [file, centre, width], outputs, trigger_mode="always_last", **ask)
    return blocks
