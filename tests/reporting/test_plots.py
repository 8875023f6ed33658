"""Charts: what is drawn is what was given, the same each time, and follows the page's theme."""

import re
import warnings
from pathlib import Path

from medclip_oc.reporting import plots
from tests.support.cli import NASTY, Reader


def test_bars_are_as_long_as_their_values() -> None:
    figure = plots.bars("t", [("x", 4, "four"), ("y", 1, "one"), ("z", 0, "")])
    widths = [bar.get_width() for bar in figure.axes[0].patches]
    assert widths == [4, 1, 0]
    assert figure.axes[0].get_xlim() == (0, 4)
    assert plots.bars("t", [("x", 0, "")]).axes[0].get_xlim() == (0, 1)


def test_shares_have_their_intervals_and_confusion_its_shades() -> None:
    axes = plots.bars("t", [("x", 0.8, ""), ("y", 0, "-")], [(0.7, 0.9), ()]).axes[0]
    assert axes.get_xlim() == (0, 1)
    assert [[*line.get_xdata()] for line in axes.get_lines()] == [[0.7, 0.9], [], [0.5, 0.5]]
    axes = plots.confusion("t", ["a", "b"], [[3, 1], [0, 0]]).axes[0]
    assert axes.collections[0].get_alpha().tolist() == [[0.6 * 0.75, 0.6 * 0.25], [0, 0]]
    numbers = {(*t.get_position(), t.get_text()) for t in axes.texts}  # none where there is 0
    assert numbers == {(0.5, 0.5, "3"), (1.5, 0.5, "1")}


def test_a_histogram_marks_what_is_over_the_limit() -> None:
    counts = [(str(n), n) for n in range(1, 9)]
    axes = plots.histogram("h", counts, marked_from=6).axes[0]
    assert [bar.get_height() for bar in axes.patches] == list(range(1, 9))
    colours = [bar.get_facecolor() for bar in axes.patches]
    assert len(set(colours[:6])) == len(set(colours[6:])) == 1
    assert colours[5] != colours[6]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "3", "5", "7"]


def test_lines_are_where_their_values_are() -> None:
    figure = plots.lines("t", {"a": [(0, 0), (5, 10), (10, 20)], "b": [(10, 5)]})
    drawn = figure.axes[0].get_lines()
    places = [line.get_xydata().tolist() for line in drawn]
    assert places == [[[0, 0], [5, 10], [10, 20]], [[10, 5]]]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b"]
    assert not plots.lines("t", {"a": [(0, 0)]}).legends


def test_svg_is_the_same_each_time_and_in_the_colours_of_the_page(tmp_path: Path) -> None:
    def draw() -> str:
        return str(plots.svg(plots.lines(NASTY, {NASTY: [(1, 2), (2, 3)], "x": [(1, 1)]})))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert draw() == draw()
        plots.svg(plots.bars("\u6f22 of a concept", [("\u6f22", 1, "\u6f22")]))
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
