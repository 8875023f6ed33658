"""A run as a page: how it trained, what it retrieves, and pictures of that."""

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
_CURVES = {
    "loss": "Loss",
    "lr": "Learning rate",
    "temperature": "Temperature",
    "pairs_per_second": "Pairs per second",
    "grad_norm": "Gradient norm",
}


def write(
    folder: Path,
    number: int,
    read_pairs: Callable[[set[str], Record], tuple[Pairs, list[str]]],
) -> tuple[list[Path], list[str]]:
    """Write report.html in a run's folder, and each of its charts as a PNG in report/; returns the
    files, and notes on what could not be shown. InputError: no run. WorkError: it can't be written.

    The gallery has `number` queries of each kind; `read_pairs` gives the pairs of some ids of an
    evaluation, and notes on what is missing.
    """
    records, evaluations = run_files.records(folder), run_files.evaluations(folder)
    classified = [_classes(each) for each in run_files.evaluations(folder, of_classes=True)]
    if not records and not evaluations and not classified:
        raise InputError(
            f"{folder}: no run folder: neither metrics.jsonl nor evaluations/ is there"
        )
    notes = [] if records else ["Training: this folder has no metrics.jsonl with records."]
    values = Record(record=None, results=results, classified=classified)
    charts = {"training": _training_charts(records), "classes": [c["chart"] for c in classified]}
    if evaluations:
        first, *others = evaluations
        chosen, pairs = examples(first, number), Pairs()
        if chosen and first.record.get("data"):
            ids = {each[name] for each in chosen for name in ("query", "first")}
            pairs, problems = read_pairs(ids, first.record)
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
            "slices": results.recalls("queries", slices, "images"),
            "others": results.recalls("evaluation", named, "pool"),
        }
        charts |= _retrieval_charts(first)
    log = folder / "log.txt"
    said = log.read_text("utf-8", "replace").rpartition("  done: ")[2] if log.is_file() else ""
    values["outcome"] = said.partition("\n")[0]
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
    of the pair whose caption or image came first.
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
                ids = {"query": str(arrays["ids"][place]), "first": str(nearest[place, 0])}
                chosen.append(example | ids)
    return chosen


def _training_charts(records: Sequence[Record]) -> list[Figure]:
    curves = {title: run_files.series(records, key) for key, title in _CURVES.items()}
    charts = [plots.lines(title, {title: points}) for title, points in curves.items() if points]
    keys = {"mean recall": "valid/mean_recall"} | {
        f"{name}, {title}": f"valid/{direction}/{name}"
        for name in ("R@1", "R@10")
        for direction, title in DIRECTIONS.items()
    }
    recalls = {label: run_files.series(records, key) for label, key in keys.items()}
    per_cent = {k: [(x, 100 * y) for x, y in points] for k, points in recalls.items() if points}
    return charts + ([plots.lines("Validation recall, per cent", per_cent)] if per_cent else [])


def _retrieval_charts(evaluated: Evaluated) -> dict[str, list[Figure]]:
    charts = dict[str, list[Figure]](slices=[], ranks=[])
    for direction, title in DIRECTIONS.items():
        if parts := evaluated.record.get("slices"):
            ks = [(each, each[direction]["R@10"]) for each in parts]
            rows = [(e["name"], v, results.figure(e, direction, "R@10", "")) for e, v in ks]
            charts["slices"].append(plots.bars(f"R@10, {title}", rows))
        if evaluated.arrays:
            ranks = evaluated.arrays[f"{direction}_rank"]
            rows = [(label, n, f"{n:,} ({n / len(ranks):.1%})") for label, n in rank_bins(ranks)]
            charts["ranks"].append(plots.bars(f"Rank of the right one, {title}", rows))
    return charts


def _classes(evaluated: Evaluated) -> Record:
    """Findings, classes or probes: their name, task, table and chart."""
    name, record = evaluated.name, evaluated.record
    if "confusion" in record:
        parts = record["confusion"]
        chart = plots.confusion(f"Confusion, {name}", parts["classes"], parts["counts"])
    else:
        rows = results.class_rows(record)
        values = [(k, f.get("auroc") or 0, results.score(f, "auroc")) for k, f in rows.items()]
        ends = [figures["intervals"].get("auroc", ()) for figures in rows.values()]
        chart = plots.bars(f"AUROC, {name}", values, ends)
    table = results.class_table(record)
    return {"name": name, "task": record["task"], "table": table, "chart": chart}


def rank_bins(ranks: np.ndarray) -> list[tuple[str, int]]:
    """Label and number of queries of each range of ranks: 1, 2-5, 6-10, then doubling."""
    edges = [0, 1, 5, 10]
    while edges[-1] < ranks.max():
        edges.append(2 * edges[-1])
    counts = np.diff([(ranks <= edge).sum() for edge in edges]).tolist()
    labels = [f"{b:,}" if a == b - 1 else f"{a + 1:,}-{b:,}" for a, b in pairwise(edges)]
    return list(zip(labels, counts, strict=True))
