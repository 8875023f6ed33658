"""Charts, drawn once by matplotlib: inline SVG for a page, PNG for slides and papers.

They are narrow enough to be read on a phone. In SVG the colours are the page's CSS variables, so
that they follow its light or dark theme.
"""

import io
import itertools
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure  # not pyplot: it keeps figures, and looks for a display
from matplotlib.ticker import MaxNLocator

Bar = tuple[str, float, float, str]
COLOURS = {
    "ink": "#1b1f24",
    "soft": "#525a63",
    "line": "#d9dde2",
    "bar": "#2f6fab",
    "warn": "#b23a1f",
    "fine": "#1d7044",
}
"""Of the light theme; the page has variables of these names."""
_LINES = (COLOURS["bar"], COLOURS["warn"], COLOURS["fine"], "#8a63c9", "#b8860b", "#3b97a8")
_WIDTH = 3.6  # inches
_LABEL_LETTERS = 38
_STYLE = {
    "font.size": 8.5,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    **dict.fromkeys(("axes.titlecolor", "text.color"), COLOURS["ink"]),
    **dict.fromkeys(("axes.labelcolor", "xtick.color", "ytick.color"), COLOURS["soft"]),
    **dict.fromkeys(("axes.edgecolor", "grid.color"), COLOURS["line"]),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "text.parse_math": False,  # a dollar sign in a caption is a dollar sign
    "lines.linewidth": 1.4,
    "svg.fonttype": "none",
    "svg.hashsalt": "medclip_oc",  # or names inside the SVG would be random
}


@rc_context(_STYLE)
def lines(
    title: str, series: Mapping[str, Sequence[tuple[float, float]]], last: float | None = None
) -> Figure:
    """Lines over steps: each name's (step, value), steps ascending. With `last` the axis runs from
    0 to there, so that panels side by side share it.
    """
    rows = -(-len(series) // 2) if len(series) > 1 else 0  # of the legend
    figure, axes = _axes(title, 2.0 + 0.2 * rows)
    styles = itertools.cycle(itertools.product(("-", "--", ":"), _LINES))
    for (label, points), (dashes, colour) in zip(series.items(), styles, strict=False):
        steps, values = zip(*points, strict=True)
        shown = colour if len(points) <= 20 else "#0000"  # else only there to be hovered over
        marks: dict[str, Any] = {"marker": "o", "markersize": 4, "mfc": shown, "mec": shown}
        marks["gid"] = _hover(f"{label}, step {x:,g}: {y:,.4g}" for x, y in points)
        axes.plot(steps, values, dashes, label=label, color=colour, clip_on=False, **marks)
    axes.set_xlabel("step")
    if last:
        axes.set_xlim(0, last)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.grid(axis="y")
    if rows:
        figure.legend(loc="outside lower left", ncols=2, frameon=False)
    return figure


@rc_context(_STYLE)
def bars(title: str, rows: Sequence[Bar], ends: Sequence[Sequence[float]] = ()) -> Figure:
    """Lying bars of shares, from 0 to 1, one under the other: label, share, what it is by chance
    (NaN: not marked), and note. `ends`: the [low, high] of each, or nothing.
    """
    figure, axes = _axes(title, 0.6 + 0.31 * len(rows))
    place: dict[str, Any] = {"va": "bottom", "in_layout": False}
    axes.barh(range(len(rows)), 1, height=0.3, color=COLOURS["line"])
    for n, (label, share, chance, note) in enumerate(rows):
        axes.barh(n, share, height=0.3, color=COLOURS["bar"], gid=_hover([f"{label}: {note}"]))
        axes.text(0, n - 0.24, _shortened(label, 30 if ends else _LABEL_LETTERS), **place)
        axes.text(1, n - 0.24, note, color=COLOURS["soft"], ha="right", **place)
        axes.plot([chance, chance], [n - 0.15, n + 0.15], color=COLOURS["warn"], clip_on=False)
    for n, pair in enumerate(ends):
        axes.plot(pair, [n] * len(pair), color=COLOURS["ink"], marker="|")
    axes.set(xlim=(0, 1), ylim=(len(rows) - 0.6, -0.85), yticks=())
    axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"] if ends else ["0 %", "50 %", "100 %"])
    axes.spines["left"].set_visible(False)
    return figure


@rc_context(_STYLE)
def confusion(title: str, classes: Sequence[str], counts: Sequence[Sequence[int]]) -> Figure:
    """A row for each true class, shaded by its shares; a column for each predicted one."""
    numbers = np.array(counts)
    [seen] = (numbers.sum(0) + numbers.sum(1)).nonzero()  # the others are left out
    numbers, classes, size = numbers[np.ix_(seen, seen)], [classes[n] for n in seen], len(seen)
    figure, axes = _axes(title, 0.9 + 0.26 * size)
    figure.set_figwidth(max(_WIDTH, 1.8 + 0.26 * size))
    shares = numbers / np.maximum(numbers.sum(1, keepdims=True), 1)
    cells = np.ndenumerate(numbers)
    hover = _hover(f"{classes[y]} taken for {classes[x]}: {n:,}" for (y, x), n in cells)
    axes.pcolormesh(shares, cmap=ListedColormap([COLOURS["bar"]]), alpha=0.6 * shares, gid=hover)
    for y, x in np.argwhere(numbers):
        axes.text(x + 0.5, y + 0.5, str(numbers[y, x]), ha="center", va="center", fontsize=7)
    middles = np.arange(size) + 0.5
    axes.set_xticks(middles, map(str, range(1, size + 1)))
    axes.set_yticks(middles, [f"{_shortened(c, 22)} {n}" for n, c in enumerate(classes, 1)])
    axes.set(xlabel="predicted, numbered as the true ones", ylim=(size, 0))
    return figure


@rc_context(_STYLE)
def histogram(
    title: str, counts: Sequence[tuple[str, int]], marked_from: int | None = None
) -> Figure:
    """Standing bars, side by side, each with where it begins under its left edge; those from
    `marked_from` on in the colour of a warning.
    """
    figure, axes = _axes(title, 2.0)
    marked = len(counts) if marked_from is None else marked_from
    for n, (label, number) in enumerate(counts):
        colour, hover = COLOURS["warn" if n >= marked else "bar"], _hover([f"{label}: {number:,}"])
        axes.bar(n, number, width=0.92, color=colour, gid=hover)
    step = 1 if len(counts) <= 6 else 2 if len(counts) <= 12 else 4
    lefts = np.arange(0, len(counts), step) - 0.5
    axes.set_xticks(lefts, [label for label, _ in counts[::step]])
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10], integer=True))
    axes.grid(axis="y")
    return figure


def svg(figure: Figure) -> Markup:
    """A figure as markup for a page; the same figure always gives the same."""
    file = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    _save(figure, file, format="svg", transparent=True, metadata=nothing)
    [(view, drawn)] = re.findall(r'(?s)<svg[^>]*(viewBox="[^"]*")[^>]*>(.*)', file.getvalue())
    drawn = re.sub(r' id="[^"]*_\d+"', "", drawn)  # would be in the page several times
    drawn = re.sub(r"""(?s)<g id=(["'])hover:(.*?)\1>(.*?)</g>""", _with_titles, drawn)
    for name, colour in COLOURS.items():
        drawn = drawn.replace(colour, f"var(--{name})")
    head = Markup('<svg role="img" aria-label="{}" ').format(figure.axes[0].get_title("left"))
    return head + Markup(f"{view}>{drawn}")  # matplotlib has escaped the texts


def save_png(figure: Figure, folder: Path, *, replace: bool = False) -> Path:
    """A figure as a file, named by its title, beside one of that name or in its place."""
    title = figure.axes[0].get_title("left").lower()
    file = folder / (re.sub(r"\W+", "_", title).strip("_") + ".png")
    while file.exists() and not replace:  # titles are shortened
        file = file.with_stem(f"{file.stem}_")
    _save(figure, file, dpi=150)
    return file


def _axes(title: str, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    axes = figure.subplots()
    axes.set_title(_shortened(title))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter("{x:,.10g}")  # matplotlib's may have a part over the title
    return figure, axes


def _hover(texts: Iterable[str]) -> str:
    """The id of an artist whose elements in an SVG have these texts: see `_with_titles`."""
    return "hover:" + "\n".join(" ".join(text.split()) for text in texts)


def _with_titles(group: re.Match[str]) -> str:
    """A group of an SVG whose id was made by `_hover`: each of its marks, or else paths, with its
    text as a <title>, which a browser shows on hover.
    """
    _, texts, drawn = group.groups()
    kind, titles = "use" if "<use" in drawn else "path", iter(texts.split("\n"))
    mark = re.compile(rf"(<{kind} [^>]*)/>")
    return f"<g>{mark.sub(lambda m: f'{m[1]}><title>{next(titles)}</title></{kind}>', drawn)}</g>"


def _save(figure: Figure, file: Any, **options: Any) -> None:
    with rc_context(_STYLE), warnings.catch_warnings():
        # letters that matplotlib's own font lacks: the page's font may have them
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(file, **options)


def _shortened(label: str, letters: int = _LABEL_LETTERS) -> str:
    return label if len(label) <= letters else label[: letters - 1] + "…"
