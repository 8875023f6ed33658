"""One self-contained HTML page: sections of tiles, tables, charts and pictures.

Nothing is fetched from anywhere, and no script runs: pictures are data URIs, charts are boxes that
CSS sizes, or lines in SVG. It reads on a phone, in light and dark. All text is escaped, whoever
wrote it.
"""

from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from .line_charts import HEIGHT, WIDTH, Charts

Tone = Literal["plain", "good", "bad"]


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    kind: ClassVar = "text"
    text: str


@dataclass(frozen=True)
class Tile:
    """A figure that should be seen first."""

    value: str
    label: str
    tone: Tone = "plain"


@dataclass(frozen=True)
class Tiles:
    """Figures side by side."""

    kind: ClassVar = "tiles"
    tiles: Sequence[Tile]


@dataclass(frozen=True)
class Table:
    """Rows of text; all columns but the first `words` are numbers."""

    kind: ClassVar = "table"
    head: Sequence[str]
    rows: Sequence[Sequence[object]]
    words: int = 1
    title: str = ""


@dataclass(frozen=True)
class Bar:
    """A value of a bar chart."""

    label: str
    value: float
    note: str = ""
    """Stands behind the bar; the value is not written by itself."""


@dataclass(frozen=True)
class Bars:
    """Lying bars, one under the other, the longest as long as there is room."""

    kind: ClassVar = "bars"
    title: str
    bars: Sequence[Bar]

    @property
    def most(self) -> float:
        """The largest value; 1 if all are 0."""
        return max((bar.value for bar in self.bars), default=0) or 1


@dataclass(frozen=True)
class Histogram:
    """Standing bars, side by side."""

    kind: ClassVar = "histogram"
    title: str
    bars: Sequence[Bar]
    """Labels are short: every second or fourth is shown, where there are many."""
    marked_from: int | None = None
    """Bars from this one on are in the colour of a warning."""
    caption: str = ""

    @property
    def most(self) -> float:
        """The largest value; 1 if all are 0."""
        return max((bar.value for bar in self.bars), default=0) or 1

    @property
    def every(self) -> int:
        """Which labels are shown."""
        return 1 if len(self.bars) <= 6 else 2 if len(self.bars) <= 12 else 4


@dataclass(frozen=True)
class Side:
    """A picture with what belongs to it."""

    title: str
    text: str
    jpeg: bytes | None
    """None: a gap in its place."""

    @property
    def uri(self) -> str | None:
        """The picture in the page itself."""
        return "data:image/jpeg;base64," + b64encode(self.jpeg).decode() if self.jpeg else None


@dataclass(frozen=True)
class Card:
    """Pictures to compare, side by side."""

    heading: str
    sides: Sequence[Side]
    tone: Tone = "plain"


@dataclass(frozen=True)
class Cards:
    """Cards one after the other."""

    kind: ClassVar = "cards"
    cards: Sequence[Card]


Block = Text | Tiles | Table | Bars | Histogram | Charts | Cards


@dataclass(frozen=True)
class Section:
    """Blocks under a heading."""

    title: str
    blocks: Sequence[Block]


def render(title: str, lead: str, sections: Sequence[Section], *, footer: str = "") -> str:
    """The whole page as HTML.

    Args:
        title: of the page.
        lead: a sentence under it.
        sections: what follows. One with no blocks is left out.
        footer: small, at the end.
    """
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    shown = [section for section in sections if section.blocks]
    return environment.from_string(_PAGE).render(
        title=title,
        lead=lead,
        sections=shown,
        footer=footer,
        style=_STYLE,
        width=WIDTH,
        height=HEIGHT,
    )


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{{ title }}</title>
<style>{{ style | safe }}</style>
</head>
<body>
{% macro tiles(block) %}
<div class="tiles">
{% for tile in block.tiles %}
<div class="tile {{ tile.tone }}"><b>{{ tile.value }}</b><span>{{ tile.label }}</span></div>
{% endfor %}
</div>
{% endmacro %}
{% macro table(block) %}
{% if block.title %}<h3>{{ block.title }}</h3>{% endif %}
<div class="wide"><table>
<thead><tr>
{% for cell in block.head %}
<th scope="col"{% if loop.index > block.words %} class="number"{% endif %}>{{ cell }}</th>
{% endfor %}
</tr></thead>
<tbody>
{% for row in block.rows %}
<tr>
{% for cell in row %}
<td{% if loop.index > block.words %} class="number"{% endif %}>{{ cell }}</td>
{% endfor %}
</tr>
{% endfor %}
</tbody></table></div>
{% endmacro %}
{% macro bars(block) %}
<h3>{{ block.title }}</h3>
<div class="bars">
{% for bar in block.bars %}
<div class="bar"><span class="label">{{ bar.label }}</span>
<span class="track"><i style="width:{{ '%.2f' % (100 * bar.value / block.most) }}%"></i></span>
<span class="note">{{ bar.note }}</span></div>
{% endfor %}
</div>
{% endmacro %}
{% macro histogram(block) %}
<figure><figcaption class="title">{{ block.title }}</figcaption>
<div class="columns">
{% for bar in block.bars %}
{% set marked = block.marked_from is not none and loop.index0 >= block.marked_from %}
<div class="column{% if marked %} marked{% endif %}" title="{{ bar.label }}: {{ bar.note }}">
<div class="room"><i style="height:{{ '%.2f' % (100 * bar.value / block.most) }}%"></i></div>
<span>{% if loop.index0 % block.every == 0 %}{{ bar.label }}{% endif %}</span></div>
{% endfor %}
</div>
{% if block.caption %}<figcaption>{{ block.caption }}</figcaption>{% endif %}
</figure>
{% endmacro %}
{% macro charts(block) %}
<div class="charts">
{% for chart in block.drawn %}
<figure><figcaption class="title">{{ chart.title }}</figcaption>
<svg viewBox="-58 -8 {{ width + 68 }} {{ height + 30 }}" role="img" aria-label="{{ chart.title }}">
{% for height, text in chart.heights %}
<line x1="0" x2="{{ width }}" y1="{{ '%.1f' % height }}" y2="{{ '%.1f' % height }}"/>
<text x="-6" y="{{ '%.1f' % (height + 4) }}" text-anchor="end">{{ text }}</text>
{% endfor %}
{% for one in chart.series %}
{% set colour = "line%d" % (loop.index0 % 6) %}
{% if one.points | length > 1 %}
<polyline class="{{ colour }}" points="{{ chart.path(loop.index0) }}"/>
{% elif one.points %}
{% set place = chart.path(loop.index0).split(",") %}
<circle class="{{ colour }}" cx="{{ place[0] }}" cy="{{ place[1] }}" r="2.5"/>
{% endif %}
{% endfor %}
<text x="0" y="{{ height + 17 }}">{{ chart.across }} {{ chart.ends[0] }}</text>
<text x="{{ width }}" y="{{ height + 17 }}" text-anchor="end">{{ chart.ends[1] }}</text>
</svg>
{% if chart.series | length > 1 %}
<figcaption class="legend">
{% for one in chart.series %}
<span><i class="line{{ loop.index0 % 6 }}"></i>{{ one.label }}</span>
{% endfor %}
</figcaption>
{% endif %}
</figure>
{% endfor %}
</div>
{% endmacro %}
{% macro cards(block) %}
<div class="cards">
{% for card in block.cards %}
<article class="card {{ card.tone }}"><h3>{{ card.heading }}</h3><div class="sides">
{% for side in card.sides %}
<div class="side">
{% if side.uri %}<img src="{{ side.uri }}" alt="{{ side.title }}">
{% else %}<div class="gap">no picture</div>{% endif %}
<strong>{{ side.title }}</strong><p>{{ side.text }}</p></div>
{% endfor %}
</div></article>
{% endfor %}
</div>
{% endmacro %}
{% macro text(block) %}<p>{{ block.text }}</p>{% endmacro %}
{% set draw = {"tiles": tiles, "table": table, "bars": bars, "histogram": histogram,
 "charts": charts, "cards": cards, "text": text} %}
<header><h1>{{ title }}</h1><p>{{ lead }}</p></header>
<main>
{% for section in sections %}
<section><h2>{{ section.title }}</h2>
{% for block in section.blocks %}{{ draw[block.kind](block) }}{% endfor %}
</section>
{% endfor %}
</main>
{% if footer %}<footer>{{ footer }}</footer>{% endif %}
</body>
</html>
"""

_STYLE = """
:root { color-scheme: light dark;
  --ground: #f6f7f9; --paper: #fff; --ink: #1b1f24; --soft: #525a63; --line: #d9dde2;
  --bar: #2f6fab; --warn: #b23a1f; --fine: #1d7044; }
@media (prefers-color-scheme: dark) { :root {
  --ground: #121518; --paper: #1b2025; --ink: #e7eaee; --soft: #a7b0ba; --line: #343b43;
  --bar: #6ba9e0; --warn: #f0916f; --fine: #6ecb97; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 70rem; padding: 1.25rem 1rem 3rem; background: var(--ground);
  color: var(--ink); font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", sans-serif;
  overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0; }
h2 { font-size: 1.2rem; margin: 0 0 .75rem; }
h3, .title { font-size: .95rem; font-weight: 600; color: var(--ink); margin: 1rem 0 .4rem; }
p { margin: .4rem 0; max-width: 46rem; }
header p, footer, figcaption, .note { color: var(--soft); }
footer { font-size: .85rem; margin-top: 1.5rem; }
section { background: var(--paper); border: 1px solid var(--line); border-radius: .6rem;
  padding: 1rem; margin-top: 1rem; }
.tiles { display: grid; gap: .6rem; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); }
.tile { border: 1px solid var(--line); border-left: .3rem solid var(--soft);
  border-radius: .4rem; padding: .5rem .7rem; }
.tile b { display: block; font-size: 1.5rem; line-height: 1.2; }
.tile span { color: var(--soft); font-size: .9rem; }
.tile.bad { border-left-color: var(--warn); } .tile.bad b { color: var(--warn); }
.tile.good { border-left-color: var(--fine); } .tile.good b { color: var(--fine); }
.wide { overflow-x: auto; margin: .5rem 0 .8rem; }
table { border-collapse: collapse; font-size: .92rem; }
th, td { text-align: left; vertical-align: top; padding: .3rem .8rem .3rem 0;
  overflow-wrap: break-word;
  border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 600; }
.number { text-align: right; font-variant-numeric: tabular-nums; }
td.number { white-space: nowrap; }
.bar { display: grid; grid-template-columns: minmax(6rem, 14rem) 1fr minmax(5.5rem, auto);
  gap: .6rem; align-items: center; padding: .12rem 0; font-size: .92rem; }
.track { background: var(--line); border-radius: .2rem; height: .8rem; }
.track i { display: block; height: 100%; background: var(--bar); border-radius: .2rem; }
.note { font-variant-numeric: tabular-nums; text-align: right; }
figure { margin: 1rem 0 0; } .title { margin: 0 0 .4rem; }
figcaption { font-size: .9rem; margin-top: .3rem; }
.columns { display: flex; gap: 2px; align-items: flex-end; max-width: 46rem; }
.column { flex: 1 1 0; min-width: 0; }
.room { height: 8rem; display: flex; align-items: flex-end; border-bottom: 1px solid var(--soft); }
.room i { display: block; width: 100%; background: var(--bar); border-radius: .15rem .15rem 0 0; }
.marked .room i { background: var(--warn); }
.column span { display: block; height: 1.4em; font-size: .78rem; color: var(--soft);
  white-space: nowrap; overflow-wrap: normal; }
.column:last-child span { display: flex; justify-content: flex-end; }
.charts { display: grid; gap: 0 1.5rem;
  grid-template-columns: repeat(auto-fill, minmax(min(19rem, 100%), 1fr)); }
svg { display: block; width: 100%; height: auto; font-size: 11px; }
svg text { fill: var(--soft); } svg line { stroke: var(--line); }
polyline { fill: none; stroke-width: 1.8; stroke-linejoin: round; stroke-linecap: round; }
.legend { display: flex; flex-wrap: wrap; gap: .1rem .9rem; }
.legend i { display: inline-block; width: 1rem; height: .25rem; margin-right: .35rem;
  vertical-align: middle; border-radius: .1rem; }
.line0 { stroke: var(--bar); } i.line0 { background: var(--bar); }
.line1 { stroke: var(--warn); } i.line1 { background: var(--warn); }
.line2 { stroke: var(--fine); } i.line2 { background: var(--fine); }
.line3 { stroke: #8a63c9; } i.line3 { background: #8a63c9; }
.line4 { stroke: #b8860b; } i.line4 { background: #b8860b; }
.line5 { stroke: #3b97a8; } i.line5 { background: #3b97a8; }
.cards { display: grid; gap: .8rem; grid-template-columns: repeat(auto-fill, minmax(19rem, 1fr)); }
.card { border: 1px solid var(--line); border-radius: .4rem; padding: .6rem .7rem; min-width: 0; }
.card h3 { margin: 0 0 .5rem; } .card.bad h3 { color: var(--warn); }
.sides { display: grid; grid-template-columns: 1fr 1fr; gap: .7rem; font-size: .85rem; }
.side { min-width: 0; } .side p { color: var(--soft); margin: .2rem 0 0; }
.side img, .gap { width: 100%; aspect-ratio: 1; object-fit: contain; background: #000;
  border-radius: .25rem; display: block; margin-bottom: .3rem; }
.gap { display: grid; place-items: center; color: #bbb; }
@media (max-width: 30rem) { td.number { white-space: normal; }
  th, td { padding-right: .5rem; } .bar { grid-template-columns: 1fr auto; gap: 0 .6rem; }
  .bar .track { grid-column: 1 / -1; grid-row: 2; } .cards { grid-template-columns: 1fr; } }
"""
