"""A run as a page: how it trained, what it retrieves, and pictures of that."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ..config.vocabulary import DIRECTIONS
from ..errors import InputError
from ..runtime import atomic
from . import html, plots, results, run_files
from .run_files import Evaluated

Record = dict[str, Any]
Pairs = dict[str, tuple[str, bytes]]  # by id: caption, and image as a JPEG
Pair = tuple[str, str]  # the ids of an image and of a caption
Gallery = tuple[Pairs, dict[Pair, bytes], list[str]]
_CURVES = {
    "loss": "Loss",
    "lr": "Learning rate",
    "temperature": "Temperature",
    "pairs_per_second": "Pairs per second",
    "grad_norm": "Gradient norm",
}
_CANDIDATES = {"image_to_text": "texts", "text_to_image": "images"}  # what a rank is counted among


def write(
    folder: Path, number: int, read_gallery: Callable[[list[Pair], Record], Gallery]
) -> tuple[list[Path], list[str]]:
    """Write report.html in a run's folder, and each of its charts as a PNG in report/; returns the
    files, and notes on what could not be shown. InputError: no run. WorkError: it can't be written.

    The gallery has `number` queries of each kind; `read_gallery` gives what some pairs of an
    evaluation are made of, JPEGs of their relevance maps, and notes on what is missing.
    """
    records, evaluations = run_files.records(folder), run_files.evaluations(folder)
    by_class = run_files.evaluations(folder, of_classes=True)
    classified = [_classes(each) for each in by_class]
    if not records and not evaluations and not classified:
        raise InputError(f"{folder}: no run folder: no metrics.jsonl, and no evaluations/ there")
    notes = [] if records else ["Training: this folder has no metrics.jsonl with records."]
    weakest = [results.weakest(each.record) for each in (*evaluations[:1], *by_class)]
    values = Record(record=None, results=results, classified=classified, weakest=weakest)
    values["was_run"] = run_files.was_run(folder)
    values["last"] = max((record["step"] for record in records), default=0)
    values["validations"] = run_files.series(records, "valid/mean_recall")
    training = _training_charts(records, values["last"])
    charts = {"training": training, "classes": [c["chart"] for c in classified]}
    if evaluations:
        first, *others = evaluations
        chosen, pairs, maps = examples(first, number), Pairs(), dict[Pair, bytes]()
        if chosen and first.record.get("data"):
            wanted = [pair for each in chosen for pair in each["maps"]]
            pairs, maps, problems = read_gallery(wanted, first.record)
            notes += problems
        elif number:
            missing = "the place of its pairs" if chosen else "nearest ids"
            notes.append(f"Gallery: {first.name} doesn't say {missing}.")
        named = {f"{e.name}: {results.origin(e.record)}": e.record for e in others}
        slices = {each["name"]: each for each in first.record.get("slices", [])}
        values |= {
            "record": first.record,
            "evaluation": first.name,
            "directions": DIRECTIONS,
            "examples": chosen,
            "pairs": pairs,
            "maps": maps,
            "slices": results.recalls("queries", slices, "images"),
            "others": results.recalls("evaluation", named, "pool"),
        }
        charts |= _retrieval_charts(first)
    title = f"Run {folder.resolve().name}"
    page = html.render("run.html.j2", title=title, charts=charts, notes=notes, **values)
    file = folder / "report.html"
    with atomic.atomic_file(file) as partial:
        partial.write_text(page, encoding="utf-8")
    figures = [figure for group in charts.values() for figure in group]
    with atomic.atomic_folder(folder / "report", replace=True) as pictures:
        names = [plots.save_png(figure, pictures).name for figure in figures]
    return [file, *(folder / "report" / name for name in names)], notes


def examples(evaluated: Evaluated, number: int) -> list[Record]:
    """The best, median and worst queries of each direction, so many of each kind: `direction`;
    `kind`; `rank`; `query`, the id of the pair whose image or caption is the query; `first`, that
    of the pair whose caption or image came first; `maps`, the query with its own and with that.
    """
    arrays, chosen = evaluated.arrays or {}, []
    for direction in DIRECTIONS if "image_to_text_nearest" in arrays else ():
        ranks, nearest = arrays[f"{direction}_rank"], arrays[f"{direction}_nearest"]
        order = np.argsort(ranks, kind="stable")
        middle = max(0, (len(order) - number) // 2)
        median = order[middle : middle + number]
        kinds = {"Best": order[:number], "Median": median, "Worst": order[::-1][:number]}
        for kind, places in kinds.items():
            for place in places:
                example = {"direction": direction, "kind": kind, "rank": float(ranks[place])}
                query, first = str(arrays["ids"][place]), str(nearest[place, 0])
                found = (query, first) if direction == "image_to_text" else (first, query)
                pairs = list(dict.fromkeys(((query, query), found)))
                chosen.append(example | {"query": query, "first": first, "maps": pairs})
    return chosen


def _training_charts(records: Sequence[Record], last: float) -> list[Figure]:
    curves = {title: run_files.series(records, key) for key, title in _CURVES.items()}
    charts = [plots.lines(title, {title: pts}, last) for title, pts in curves.items() if pts]
    recalls = {"mean recall": "valid/mean_recall"} | {
        f"{name}, {title}": f"valid/{direction}/{name}"
        for name in ("R@1", "R@10")
        for direction, title in DIRECTIONS.items()
    }
    shown = {"Validation recall": recalls}
    keys = {key for record in records for key in record if key.startswith("valid/zeroshot/")}
    for key in sorted(keys):
        _, _, name, *of = key.split("/", 3)  # of a class, or of all
        name = name.replace("_", " ")
        title = f"Zero-shot {name}" if of else "Zero-shot scores"
        shown.setdefault(title, {})[of[0] if of else name] = key
    for title, series_of in shown.items():
        found = {label: run_files.series(records, key) for label, key in series_of.items()}
        series = {k: [(x, 100 * y) for x, y in points] for k, points in found.items() if points}
        if series:
            charts.append(plots.lines(f"{title}, per cent", series, last))
    return charts


def _retrieval_charts(evaluated: Evaluated) -> dict[str, list[Figure]]:
    charts, record = dict[str, list[Figure]](slices=[], ranks=[]), evaluated.record
    chance = record["chance"]["R@10"]
    for direction, title in DIRECTIONS.items():
        if parts := record.get("slices"):
            ks = [(each, each[direction]["R@10"]) for each in parts]
            rows = [(e["name"], v, chance, results.figure(e, direction, "R@10", "")) for e, v in ks]
            charts["slices"].append(plots.bars(f"R@10, {title}", rows))
        if evaluated.arrays:
            ranks = evaluated.arrays[f"{direction}_rank"]
            pool = max(record.get(_CANDIDATES[direction], record["pool"]), math.ceil(ranks.max()))
            bars = plots.bars(f"Rank of the right one, {title}", rank_bins(ranks, pool))
            charts["ranks"].append(bars)
    return charts


def _classes(evaluated: Evaluated) -> Record:
    """Findings, classes or probes: their name, task, table and chart."""
    name, record = evaluated.name, evaluated.record
    if "confusion" in record:
        parts = record["confusion"]
        chart = plots.confusion(f"Confusion, {name}", parts["classes"], parts["counts"])
    else:
        rows = results.class_rows(record)
        values = [(k, f.get("auroc") or 0, 0.5, results.score(f, "auroc")) for k, f in rows.items()]
        ends = [figures["intervals"].get("auroc", ()) for figures in rows.values()]
        chart = plots.bars(f"AUROC, {name}", values, ends)
    table = results.class_table(record)
    return {"name": name, "task": record["task"], "table": table, "chart": chart}


def rank_bins(ranks: np.ndarray, pool: int) -> list[plots.Bar]:
    """Bars of ranges of ranks among `pool`, as far as there are any: 1, 2-5, 6-10, then doubling.
    By chance each rank is as frequent.
    """
    edges, rows = [0, 1, 5, 10], []
    while edges[-1] < ranks.max():
        edges.append(2 * edges[-1])
    for a, b in pairwise(sorted({min(edge, pool) for edge in edges})):
        label, number = f"{a + 1:,}-{b:,}", int(((ranks > a) & (ranks <= b)).sum())
        note = f"{number:,} ({results.cell('R@', number / len(ranks))})"
        rows.append((label if b > a + 1 else f"{b:,}", number / len(ranks), (b - a) / pool, note))
    return rows
