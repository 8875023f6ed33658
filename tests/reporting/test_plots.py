"""Charts: what is drawn is what was given, the same each time, and follows the page's theme."""

import html
import re
import warnings
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from medclip_oc.reporting import plots
from tests.support.cli import NASTY, Reader


def titles(figure: Figure) -> list[str]:
    """What a browser shows on hover, in the order drawn."""
    return re.findall(r"<(?:use|path) [^>]*><title>(.*?)</title></(?:use|path)>", plots.svg(figure))


def test_bars_are_as_long_as_their_shares() -> None:
    """Of the whole track, which is 100 %; what chance gives is marked on each."""
    figure = plots.bars("t", [("x", 0.31, 0.1, "31 %"), ("y", 0, 0.2, '"none" & <>')])
    axes = figure.axes[0]
    assert [bar.get_width() for bar in axes.patches] == [1, 1, 0.31, 0]
    assert axes.get_xlim() == (0, 1)
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0 %", "50 %", "100 %"]
    assert [[*line.get_xdata()] for line in axes.get_lines()] == [[0.1, 0.1], [0.2, 0.2]]
    assert [html.unescape(text) for text in titles(figure)] == ["x: 31 %", 'y: "none" & <>']


def test_shares_have_their_intervals_and_confusion_its_shades() -> None:
    rows = [("x", 0.8, 0.5, ""), ("y", 0, 0.5, "-")]
    axes = plots.bars("t", rows, ends=[(0.7, 0.9), ()]).axes[0]
    assert axes.get_xlim() == (0, 1)
    assert [[*line.get_xdata()] for line in axes.get_lines()][2:] == [[0.7, 0.9], []]
    figure = plots.confusion("t", ["a", "none", "b"], [[3, 0, 1], [0, 0, 0], [0, 0, 0]])
    axes = figure.axes[0]
    assert axes.collections[0].get_alpha().tolist() == [[0.6 * 0.75, 0.6 * 0.25], [0, 0]]
    numbers = {(*t.get_position(), t.get_text()) for t in axes.texts}  # none where there is 0
    assert numbers == {(0.5, 0.5, "3"), (1.5, 0.5, "1")}
    assert titles(figure) == [f"{y} taken for {x}: {n}" for y, x, n in ("aa3", "ab1", "ba0", "bb0")]


def test_a_histogram_marks_what_is_over_the_limit() -> None:
    counts = [(str(n), n) for n in range(1, 9)]
    axes = plots.histogram("h", counts, marked_from=6).axes[0]
    assert [bar.get_height() for bar in axes.patches] == list(range(1, 9))
    colours = [bar.get_facecolor() for bar in axes.patches]
    assert len(set(colours[:6])) == len(set(colours[6:])) == 1
    assert colours[5] != colours[6]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "3", "5", "7"]
    assert axes.get_xticks().tolist() == [-0.5, 1.5, 3.5, 5.5]  # each where its bar begins
    counts = plots.histogram("h", [("1", 1), ("2", 3)]).axes[0].get_yticks()
    assert all(tick == int(tick) for tick in counts)


def test_lines_are_where_their_values_are() -> None:
    figure = plots.lines("t", {"a": [(0, 0), (5, 10), (10, 20)], "b": [(10, 5)]})
    drawn = figure.axes[0].get_lines()
    places = [line.get_xydata().tolist() for line in drawn]
    assert places == [[[0, 0], [5, 10], [10, 20]], [[10, 5]]]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b"]
    assert not plots.lines("t", {"a": [(0, 0)]}).legends
    assert titles(figure) == ["a, step 0: 0", "a, step 5: 10", "a, step 10: 20", "b, step 10: 5"]


@pytest.mark.parametrize(
    ("last", "values"), [(3, [7e-6, 7e-6, 7e-6]), (90, [0.07, 0.0701]), (1, [5])]
)
def test_panels_of_one_run_share_their_steps(last: int, values: list[float]) -> None:
    points = list(zip(range(last + 1 - len(values), last + 1), values, strict=True))
    axes = plots.lines("t", {"a": points}, last).axes[0]
    assert axes.get_xlim() == (0, last)
    assert all(tick == int(tick) for tick in axes.get_xticks())
    low, high = axes.get_ylim()
    labels = {label.get_text() for label in axes.get_yticklabels()}
    assert sum(low <= tick <= high for tick in axes.get_yticks()) >= 2
    assert len(labels) == len(axes.get_yticks())  # none is rounded to its neighbour


def test_svg_is_the_same_each_time_and_in_the_colours_of_the_page(tmp_path: Path) -> None:
    def draw() -> str:
        return str(plots.svg(plots.lines(NASTY, {NASTY: [(1, 2), (2, 3)], "x": [(1, 1)]})))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert draw() == draw()
        plots.svg(plots.bars("\u6f22 of a concept", [("\u6f22", 1, 0, "\u6f22")]))
    read = Reader(draw())
    assert "script" not in read.tags
    assert NASTY[:36] in read.text
    assert not re.search(r"https?:|url\((?!#)", draw())
    names = set(re.findall(r"var\(--(\w+)\)", draw()))
    assert names <= set(plots.COLOURS)
    assert {"bar", "warn", "soft", "ink", "line"} <= names
    file = plots.save_png(plots.histogram("A title, of 2", [("a", 1)]), tmp_path)
    assert file.name == "a_title_of_2.png"
    assert file.read_bytes()[:4] == b"\x89PNG"
