"""A run as a page: how it trained, what it retrieves, and pictures of that."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..config.vocabulary import DIRECTIONS
from . import html, results, run_files
from .html import Bar, Section, Table, Text, Tile
from .line_charts import Charts, Lines, Series
from .run_files import Evaluated

Record = dict[str, Any]


def render(
    name: str,
    records: Sequence[Record],
    evaluations: Sequence[Evaluated],
    pictures: Sequence[Section],
    notes: Sequence[str],
) -> str:
    """The page of a run as HTML.

    Args:
        name: of the run.
        records: of metrics.jsonl.
        evaluations: the first is shown in full, the others with their main figures.
        pictures: see report_gallery.sections.
        notes: what could not be shown.
    """
    sections = [Section("Training", training(records))]
    lead = "No evaluation yet: python -m medclip_oc.evaluate makes one."
    if evaluations:
        first = evaluations[0]
        lead = _lead(first)
        sections = [
            Section("At a glance", [_tiles(first.record)]),
            *sections,
            Section(f"Retrieval: {first.name}", _figures(first.record)),
            Section("By kind of image", _slices(first.record)),
            Section("By concepts", _concepts(first.record)),
            Section("Against the baseline", _baseline(first.record)),
            Section("Ranks", _ranks(first)),
            *pictures,
            Section("Other evaluations", _others(evaluations[1:])),
        ]
    sections.append(Section("Not shown", [Text(note) for note in notes]))
    footer = "Made by medclip_oc. Research use only: nothing here is a medical device."
    return html.render(f"Run {name}", lead, sections, footer=footer)


def _lead(first: Evaluated) -> str:
    record = first.record
    where = record.get("data") or record.get("features") or "unknown data"
    shown = ", ".join(where) if isinstance(where, list) else where
    return (
        f"{first.name}: {record['pool']:,} pairs of {shown}. Figures hang on the size of the pool: "
        "compare only with others of the same size."
    )


def _tiles(record: Record) -> html.Tiles:
    tiles = [Tile(f"{record['pool']:,}", "pairs in the pool")]
    for k in (1, 10):
        name = f"R@{k}"
        for way, title in DIRECTIONS.items():
            tiles.append(Tile(results.cell(name, record[way][name]), f"{name}, {title}"))
        tiles.append(Tile(results.cell(name, record["chance"][name]), f"{name} by chance"))
    return html.Tiles(tiles)


def training(records: Sequence[Record]) -> list[html.Block]:
    """Charts of what was recorded as the run went on."""
    if not records:
        return []
    charts = [
        Lines(title, [Series(title, run_files.series(records, key))])
        for title, key in _CURVES.items()
    ]
    recalls = [
        Series(f"{name}, {title}", _per_cent(run_files.series(records, f"valid/{way}/{name}")))
        for name in ("R@1", "R@10")
        for way, title in DIRECTIONS.items()
    ]
    mean = Series("mean recall", _per_cent(run_files.series(records, "valid/mean_recall")))
    validation = [one for one in (mean, *recalls) if one.points]
    charts.append(Lines("Validation recall, per cent", validation, "%"))
    return [Charts(charts)]


_CURVES = {
    "Loss": "loss",
    "Learning rate": "lr",
    "Temperature": "temperature",
    "Pairs per second": "pairs_per_second",
    "Norm of the gradient": "grad_norm",
}


def _per_cent(points: list[run_files.Point]) -> list[run_files.Point]:
    return [(step, 100 * value) for step, value in points]


def _figures(record: Record) -> list[html.Block]:
    merged = record.get("duplicates") == "merge"
    blocks: list[html.Block] = [_table(record, "Copies taken as one" if merged else "Full pool")]
    if note := results.level(record):
        blocks.append(Text(f"{note[0].upper()}{note[1:]}, over queries; the pool is held fixed."))
    other = record.get("merged")
    if other and not results.has_copies(other):
        blocks.append(Text("No image and no caption of this pool is there twice."))
    elif other:
        title = f"Copies as one: {other['images']:,} images, {other['texts']:,} captions"
        blocks.append(_table(other, title))
    for small in record.get("pools", []):
        title = f"Pools of {small['pool']:,}: mean of {small['draws']:,} random ones"
        blocks.append(_table(small, title, "between_draws"))
    ties = record.get("ties", "expected")
    blocks.append(Text(_TIES[ties]))
    return blocks


_TIES = {
    "expected": "Equal scores count as their expected rank.",
    "optimistic": "Of equal scores the right one counts as the first.",
    "pessimistic": "Of equal scores the right one counts as the last.",
}


def _table(record: Record, title: str, ranges: str = "intervals") -> Table:
    """Scores down, directions across."""
    rows = []
    for name in record["image_to_text"]:
        cells = [_cell(record, way, name, ranges) for way in DIRECTIONS]
        chance = record.get("chance")
        last = [results.cell(name, chance[name])] if chance else []
        rows.append([results.words(name), *cells, *last])
    head = ["", *DIRECTIONS.values(), *(["chance"] if record.get("chance") else [])]
    return Table(head, rows, title=title)


def _cell(record: Record, way: str, name: str, ranges: str = "intervals") -> str:
    """A figure with its interval, which may stand in a second line."""
    ends = record.get(ranges, {}).get(way)
    parts = [results.cell(name, record[way][name])]
    parts += [results.interval(name, ends[name])] if ends else []
    return " ".join(part.replace(" ", "\u00a0") for part in parts)


def _slices(record: Record) -> list[html.Block]:
    slices = record.get("slices", [])
    if not slices:
        return []
    rows = [
        [
            one["name"],
            f"{one['images']:,}",
            *(_cell(one, way, f"R@{k}") for k in (1, 10) for way in DIRECTIONS),
        ]
        for one in slices
    ]
    head = [
        "queries",
        "pairs",
        *(f"R@{k}, {title}" for k in (1, 10) for title in DIRECTIONS.values()),
    ]
    bars = [
        Bar(one["name"], one[way]["R@10"], f"{results.cell('R@10', one[way]['R@10'])}")
        for one in slices
        for way in list(DIRECTIONS)[:1]
    ]
    return [
        Text("Queries of one kind; the candidates are those of the whole pool."),
        html.Bars("R@10, image to text", bars),
        Table(head, rows),
    ]


def _concepts(record: Record) -> list[html.Block]:
    found = record.get("concepts")
    if not found:
        return []
    text = (
        f"{found['queries']:,} pairs have concepts (CUIs). A candidate's relevance is the overlap "
        f"of its concepts with the query's; from {found['relevant']:g} on it counts as relevant."
    )
    return [Text(text), _table(found, "")]


def _baseline(record: Record) -> list[html.Block]:
    base = record.get("baseline")
    if not base:
        return []
    difference = base["difference"]
    text = "Ours less the baseline's, query by query. Lower ranks are better, higher recalls are."
    return [
        _table(base, f"Baseline: {base['name']}"),
        _table(difference, "Difference"),
        Text(text),
    ]


def rank_bins(ranks: np.ndarray) -> list[tuple[str, int]]:
    """Label and number of queries of each range of ranks: 1, 2-5, 6-10, then doubling."""
    edges = [1, 5, 10]
    while edges[-1] < ranks.max():
        edges.append(2 * edges[-1])
    bins = []
    for low, high in zip([0, *edges], edges, strict=False):
        number = int(((ranks > low) & (ranks <= high)).sum())
        bins.append((f"{high:,}" if low == high - 1 else f"{low + 1:,}-{high:,}", number))
    return bins


def _ranks(evaluated: Evaluated) -> list[html.Block]:
    if evaluated.arrays is None:
        return []
    blocks: list[html.Block] = []
    for way, title in DIRECTIONS.items():
        bins = rank_bins(evaluated.arrays[f"{way}_rank"])
        most = len(evaluated.arrays["ids"])
        bars = [Bar(name, n, f"{n:,} ({100 * n / most:.1f} %)") for name, n in bins]
        blocks.append(html.Bars(f"Rank of the right one, {title}", bars))
    return blocks


def _others(evaluations: Sequence[Evaluated]) -> list[html.Block]:
    if not evaluations:
        return []
    rows = [
        [
            one.name,
            f"{one.record['pool']:,}",
            *(_cell(one.record, way, f"R@{k}") for k in (1, 10) for way in DIRECTIONS),
        ]
        for one in evaluations
    ]
    head = [
        "evaluation",
        "pool",
        *(f"R@{k}, {title}" for k in (1, 10) for title in DIRECTIONS.values()),
    ]
    return [Table(head, rows)]
