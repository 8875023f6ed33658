"""A page stands alone, shows what it was given, and lets no text become markup."""

import re

from medclip_oc.reporting import html as page
from medclip_oc.reporting.html import (
    Bar,
    Bars,
    Card,
    Cards,
    Histogram,
    Section,
    Side,
    Table,
    Text,
    Tile,
)
from medclip_oc.reporting.line_charts import HEIGHT, WIDTH, Charts, Lines, Series
from tests.support.html_reader import NASTY, Reader


def everything(text: str) -> str:
    """A page with the text in every place that takes one."""
    blocks: list[page.Block] = [
        Text(text),
        page.Tiles([Tile(text, text, "bad")]),
        Table((text, text), [(text, text)], title=text),
        Bars(text, [Bar(text, 2, text), Bar(text, 1, text)]),
        Histogram(text, [Bar(text, 1, text)], 0, text),
        Charts([Lines(text, [Series(text, [(0, 1), (9, 5)])] * 2, text, text)]),
        Cards([Card(text, [Side(text, text, b"JPEG"), Side(text, text, None)])]),
    ]
    return page.render(text, text, [Section(text, blocks)], footer=text)


def test_text_stays_text_wherever_it_stands() -> None:
    plain, nasty = Reader(everything("plain")), Reader(everything(NASTY))
    assert nasty.tags == plain.tags
    assert [name for name, _ in nasty.attributes] == [name for name, _ in plain.attributes]
    assert nasty.text.count(NASTY) == plain.text.count("plain") >= 20
    assert "script" not in nasty.tags


def test_nothing_is_fetched() -> None:
    html = everything("plain")
    addresses = [value for name, value in Reader(html).attributes if name in ("src", "href")]
    assert addresses == ["data:image/jpeg;base64,SlBFRw=="]
    assert not re.search(r"url\(|@import|https?:", html)
    assert "default-src 'none'" in html


def test_bars_are_as_long_as_their_values() -> None:
    html = page.render("t", "", [Section("s", [Bars("b", [Bar("x", 4), Bar("y", 1)])])])
    assert re.findall(r"width:([\d.]+)%", html) == ["100.00", "25.00"]
    html = page.render("t", "", [Section("s", [Bars("b", [Bar("x", 0)])])])
    assert re.findall(r"width:([\d.]+)%", html) == ["0.00"]


def test_a_histogram_marks_what_is_over_the_limit() -> None:
    bars = [Bar(str(n), n) for n in range(1, 9)]
    html = page.render("t", "", [Section("s", [Histogram("h", bars, marked_from=6)])])
    assert html.count('class="column marked"') == 2
    assert re.findall(r"<span>(\d*)</span>", html) == ["1", "", "3", "", "5", "", "7", ""]


def test_a_section_without_blocks_is_left_out() -> None:
    html = page.render("t", "", [Section("empty", []), Section("full", [Text("x")])])
    assert "empty" not in html
    assert "full" in html


def test_lines_are_where_their_values_are() -> None:
    one = Series("a", [(0, 0), (5, 10), (10, 20)])
    chart = Lines("t", [one, Series("b", [(10, 5)])])
    left, right, low, high = chart.box
    assert (left, right) == (0, 10)
    assert low < 0 < 20 < high
    places = [tuple(map(float, p.split(","))) for p in chart.path(0).split()]
    assert [x for x, _ in places] == [0, WIDTH / 2, WIDTH]
    assert places[0][1] > places[1][1] > places[2][1]
    assert places[1][1] == HEIGHT / 2
    heights = {text: height for height, text in chart.heights}
    assert heights["10"] == HEIGHT / 2
    assert list(heights) == ["0", "10", "20"]
    flat = Lines("t", [Series("a", [(1, 0.07), (2, 0.07)])])
    assert len(flat.heights) > 1
    html = page.render("t", "", [Section("s", [Charts([chart, Lines("left out", [])])])])
    read = Reader(html)
    assert (read.tags.count("polyline"), read.tags.count("circle")) == (1, 1)
    assert "left out" not in read.text
