"""A run as a page: how it trained, what it retrieves, and pictures of that."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ..config.vocabulary import DIRECTIONS
from ..errors import InputError
from ..runtime import atomic
from . import gallery, html, plots, results, run_files
from .html import Card, Table, Tile
from .run_files import Evaluated

Record = dict[str, Any]
_CURVES = {
    "loss": "Loss",
    "lr": "Learning rate",
    "temperature": "Temperature",
    "pairs_per_second": "Pairs per second",
    "grad_norm": "Gradient norm",
}
_MAIN = ("R@1", "R@10")


def write(
    folder: Path,
    number: int,
    read_pairs: Callable[[set[str], Record], tuple[dict[str, gallery.Pair], list[str]]],
) -> tuple[list[Path], list[str]]:
    """Write report.html, and each of its charts as a PNG in report/.

    Args:
        folder: of the run.
        number: of queries of each kind in the gallery.
        read_pairs: gives the pairs of some ids of an evaluation, and notes on what is missing.

    Returns:
        The files, and notes on what could not be shown.

    Raises:
        InputError: the folder holds no run.
        WorkError: it can't be written.
    """
    records, evaluations = run_files.records(folder), run_files.evaluations(folder)
    if not records and not evaluations:
        raise InputError(
            f"{folder}: no run folder: neither metrics.jsonl nor evaluations/ is there"
        )
    notes = [] if records else ["Training: this folder has no metrics.jsonl with records."]
    values: Record = {"record": None}
    if evaluations:
        first, *others = evaluations
        cards, problems = _cards(first, number, read_pairs)
        notes += problems
        values = {"record": first.record, "evaluation": first.name, "cards": cards}
        values |= _figures(first.record)
        values["data"] = _names(first.record.get("data") or first.record.get("features"))
        values["others"] = _main_table("evaluation", {each.name: each.record for each in others})
    charts = _charts(records, evaluations)
    page = html.render(
        "run.html.j2",
        title=f"Run {folder.resolve().name}",
        charts=charts,
        directions=DIRECTIONS,
        notes=notes,
        **values,
    )
    file = folder / "report.html"
    with atomic.atomic_file(file) as partial:
        partial.write_text(page, encoding="utf-8")
    figures = [figure for group in charts.values() for figure in group]
    with atomic.atomic_folder(folder / "report", replace=True) as pictures:
        names = [plots.save_png(figure, pictures).name for figure in figures]
    return [file, *(folder / "report" / name for name in names)], notes


def _cards(
    evaluated: Evaluated, number: int, read_pairs: Callable[..., Any]
) -> tuple[dict[str, list[Card]], list[str]]:
    chosen = gallery.examples(evaluated, number)
    if not chosen or not evaluated.record.get("data"):
        missing = "the place of its pairs" if chosen else "nearest ids"
        return {}, [f"Gallery: {evaluated.name} doesn't say {missing}."] if number else []
    ids = {name for each in chosen for name in (each.query, each.first)}
    pairs, problems = read_pairs(ids, evaluated.record)
    return gallery.cards(chosen, pairs, evaluated.record["pool"]) if pairs else {}, problems


def _charts(records: Sequence[Record], evaluations: Sequence[Evaluated]) -> dict[str, list[Figure]]:
    """What there is to draw: of the training, and of the first evaluation."""
    curves = {title: run_files.series(records, key) for key, title in _CURVES.items()}
    training = [plots.lines(title, {title: points}) for title, points in curves.items() if points]
    keys = {"mean recall": "valid/mean_recall"} | {
        f"{name}, {title}": f"valid/{direction}/{name}"
        for name in _MAIN
        for direction, title in DIRECTIONS.items()
    }
    recalls = {label: run_files.series(records, key) for label, key in keys.items()}
    per_cent = {k: [(x, 100 * y) for x, y in points] for k, points in recalls.items() if points}
    if per_cent:
        training.append(plots.lines("Validation recall, per cent", per_cent))
    arrays = evaluations[0].arrays if evaluations else None
    slices = evaluations[0].record.get("slices") if evaluations else None
    return {
        "training": training,
        "slices": [_slice_chart(slices, way) for way in DIRECTIONS] if slices else [],
        "ranks": [_rank_chart(arrays, way) for way in DIRECTIONS] if arrays else [],
    }


def _rank_chart(arrays: Mapping[str, np.ndarray], direction: str) -> Figure:
    ranks = arrays[f"{direction}_rank"]
    rows = [(label, n, f"{n:,} ({n / len(ranks):.1%})") for label, n in rank_bins(ranks)]
    return plots.bars(f"Rank of the right one, {DIRECTIONS[direction]}", rows)


def _slice_chart(slices: Sequence[Record], direction: str) -> Figure:
    values = [(each["name"], each[direction]["R@10"]) for each in slices]
    rows = [(name, value, results.cell("R@10", value)) for name, value in values]
    return plots.bars(f"R@10, {DIRECTIONS[direction]}", rows)


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


def _figures(record: Record) -> Record:
    """Tiles and tables of an evaluation (see `retrieval.measure`); None for what it lacks."""
    merged, concepts, base = (record.get(key) for key in ("merged", "concepts", "baseline"))
    tables = [
        _table(record, "Copies as one" if record.get("duplicates") == "merge" else "Full pool")
    ]
    if merged and results.has_copies(merged):
        title = f"Copies as one: {merged['images']:,} images, {merged['texts']:,} captions"
        tables.append(_table(merged, title))
    for pool in record.get("pools", []):
        title = f"Pools of {pool['pool']:,}: mean of {pool['draws']:,} random ones"
        tables.append(_table(pool, title, "between_draws"))
    slices = {each["name"]: each for each in record.get("slices", [])}
    return {
        "tiles": _tiles(record),
        "tables": tables,
        "level": results.level(record),
        "no_copies": merged is not None and not results.has_copies(merged),
        "ties": record.get("ties", "expected"),
        "slices": _main_table("queries", slices, "images"),
        "concepts": _table(concepts) if concepts else None,
        "baseline": [
            _table(base, f"Baseline: {base['name']}"),
            _table(base["difference"], "Difference"),
        ]
        if base
        else [],
    }


def _tiles(record: Record) -> list[Tile]:
    tiles = [(f"{record['pool']:,}", "pairs in the pool", "plain")]
    for name in _MAIN:
        for part, title in (*DIRECTIONS.items(), ("chance", "by chance")):
            tiles.append((results.cell(name, record[part][name]), f"{name}, {title}", "plain"))
    return tiles


def _table(record: Record, title: str = "", ranges: str = "intervals") -> Table:
    """Scores down, directions across."""
    chance = record.get("chance")
    rows = []
    for name in record["image_to_text"]:
        cells = [_cell(record, direction, name, ranges) for direction in DIRECTIONS]
        last = [results.cell(name, chance[name])] if chance else []
        rows.append([results.words(name), *cells, *last])
    head = ["", *DIRECTIONS.values(), *(["chance"] if chance else [])]
    return {"head": head, "rows": rows, "title": title}


def _cell(record: Record, direction: str, name: str, ranges: str = "intervals") -> str:
    """A figure with its interval, which may stand in a second line."""
    ends = record.get(ranges, {}).get(direction)
    parts = [results.cell(name, record[direction][name])]
    parts += [results.interval(name, ends[name])] if ends else []
    return " ".join(part.replace(" ", "\u00a0") for part in parts)


def _main_table(title: str, records: Mapping[str, Record], size: str = "pool") -> Table:
    """The main recalls of several records, each in a row."""
    columns = [(name, direction) for name in _MAIN for direction in DIRECTIONS]
    rows = [
        [name, f"{record[size]:,}", *(_cell(record, way, recall) for recall, way in columns)]
        for name, record in records.items()
    ]
    recalls = [f"{recall}, {DIRECTIONS[way]}" for recall, way in columns]
    return {"head": [title, "pairs", *recalls], "rows": rows}


def _names(where: str | list[str] | None) -> str:
    return ", ".join(where) if isinstance(where, list) else where or "unknown data"
