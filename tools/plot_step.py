"""A picture of what bench_step measured."""

from pathlib import Path
from typing import Any

from side_by_side import Comparison

from medclip_oc.errors import InputError

try:
    import matplotlib
except ImportError as error:
    raise InputError("--plot: needs matplotlib: pip install 'medclip_oc[plot]'") from error

matplotlib.use("Agg")  # no display needed
from matplotlib import pyplot as plt


def draw(done: list[Comparison], file: Path) -> None:
    """Time per pair as the batch grows, and how many times better each case is than its peer."""
    growth = [c for c in done if "G" in c.extra and c.case.startswith("light towers")]
    figure, axes = plt.subplots(
        1, 2, figsize=(13, 0.42 * len(done) + 2), width_ratios=[1, 1.3], layout="constrained"
    )
    _lines(axes[0], growth)
    _bars(axes[1], done)
    figure.savefig(file, dpi=130)
    plt.close(figure)


def _lines(axes: Any, growth: list[Comparison]) -> None:
    sides: dict[str, list[tuple[int, float]]] = {}
    for comparison in growth:
        pairs = comparison.extra["G"]
        sides.setdefault(comparison.peer, []).append((pairs, 1000 / comparison.theirs))
        sides.setdefault("ours", []).append((pairs, 1000 / comparison.ours))
    for name, points in sides.items():
        axes.plot(*zip(*sorted(points), strict=True), marker="o", label=name)
    axes.set(xscale="log", yscale="log", xlabel="pairs per step", ylabel="ms per pair")
    axes.set_title("light towers, chunk 64")
    if sides:
        axes.legend()


def _bars(axes: Any, done: list[Comparison]) -> None:
    names = [f"{c.case}\nagainst {c.peer}" for c in done]
    axes.barh(names, [c.better for c in done], color="tab:blue")
    for place, comparison in enumerate(done):
        axes.text(comparison.better, place, f" {comparison.better:.3g}", va="center", fontsize=8)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set(xscale="log", xlabel="times better than the peer")
    axes.tick_params(axis="y", labelsize=7)
    axes.invert_yaxis()
