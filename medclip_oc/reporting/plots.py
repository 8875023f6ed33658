"""The charts of a report as PNG files, for slides and papers. Needs matplotlib."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # no display needed
from matplotlib import pyplot as plt

from ..config.vocabulary import DIRECTIONS
from . import run_page
from .line_charts import Charts, Lines
from .run_files import Evaluated


def draw(
    folder: Path, records: Sequence[dict[str, Any]], evaluations: Sequence[Evaluated]
) -> list[Path]:
    """Write training.png, ranks.png and slices.png, as far as there is something to draw."""
    files = []
    for block in run_page.training(records):
        if isinstance(block, Charts) and block.drawn:
            files.append(_charts(block.drawn, folder / "training.png"))
    if evaluations and evaluations[0].arrays is not None:
        files.append(_ranks(evaluations[0].arrays, folder / "ranks.png"))
    slices = evaluations[0].record.get("slices") if evaluations else None
    if slices:
        files.append(_slices(slices, folder / "slices.png"))
    return files


def _charts(charts: Sequence[Lines], file: Path) -> Path:
    rows = -(-len(charts) // 3)
    figure, axes = plt.subplots(rows, 3, figsize=(13, 3.4 * rows), layout="constrained")
    for place, chart in zip(axes.flat, charts, strict=False):
        for one in chart.series:
            place.plot(*zip(*one.points, strict=True), label=one.label, linewidth=1.3)
        place.set(title=chart.title, xlabel=chart.across)
        if len(chart.series) > 1:
            place.legend(fontsize=7)
    for place in axes.flat[len(charts) :]:
        place.axis("off")
    return _save(figure, file)


def _ranks(arrays: dict[str, Any], file: Path) -> Path:
    figure, axes = plt.subplots(1, 2, figsize=(12, 4), layout="constrained")
    for place, (way, title) in zip(axes, DIRECTIONS.items(), strict=True):
        bins = run_page.rank_bins(arrays[f"{way}_rank"])
        place.bar([name for name, _ in bins], [number for _, number in bins])
        place.tick_params(axis="x", rotation=60, labelsize=8)
        place.set(title=f"{title}: rank of the right one", ylabel="queries")
    return _save(figure, file)


def _slices(slices: Sequence[dict[str, Any]], file: Path) -> Path:
    figure, axes = plt.subplots(
        1, 2, figsize=(12, 0.4 * len(slices) + 1.5), sharey=True, layout="constrained"
    )
    names = [f"{one['name']} ({one['images']:,})" for one in slices]
    for place, (way, title) in zip(axes, DIRECTIONS.items(), strict=True):
        values = [100 * one[way]["R@10"] for one in slices]
        spans = None
        if all("intervals" in one for one in slices):
            ends = [one["intervals"][way]["R@10"] for one in slices]
            both = zip(values, ends, strict=True)
            low_high = [(max(0, v - 100 * a), max(0, 100 * b - v)) for v, (a, b) in both]
            spans = list(zip(*low_high, strict=True))
        place.barh(names, values, xerr=spans, color="tab:blue", ecolor="black", capsize=2)
        place.set(title=title, xlabel="R@10, per cent")
    axes[0].invert_yaxis()
    return _save(figure, file)


def _save(figure: Any, file: Path) -> Path:
    figure.savefig(file, dpi=120)
    plt.close(figure)
    return file
