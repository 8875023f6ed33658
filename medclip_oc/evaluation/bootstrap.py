"""How far a figure could be chance: bootstrap over the queries, the candidates held fixed.

Percentile intervals (Efron and Tibshirani 1993, chapter 13). The same seed draws the same queries
for every figure of the same number of queries, so that two models' ranks are resampled in pairs.

R@K has Wilson's interval where every draw gives the same, or where the queries are few: a width of
0 would look too sure.
"""

import math
from collections.abc import Iterator, Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
import pandas as pd

from ..config.vocabulary import FEW_QUERIES
from .metrics import scores_of

LEVEL = 0.95
TAILS = ((1 - LEVEL) / 2, (1 + LEVEL) / 2)
_AT_ONCE = 2_000_000
_WEIGHTS = 2**19  # of images that stand in memory at once: a sum over them stays in the cache


def bootstrap(
    ranks: np.ndarray,
    ks: Sequence[int],
    draws: int,
    seed: int,
    baseline: np.ndarray | None = None,
) -> dict[str, list[float]]:
    """The interval of each score (see `metrics.scores_of`), or of its difference to a baseline.

    Args:
        ranks: (n,) of the queries.
        ks: the K of R@K.
        draws: how many times n queries are drawn with replacement.
        seed: of the draws.
        baseline: (n,) ranks of another model for the same queries. None: the scores themselves.

    Returns:
        Name -> [low, high], which hold the middle LEVEL of the draws; or Wilson's, see above.
    """
    rng = np.random.default_rng(seed)
    step = max(1, _AT_ONCE // len(ranks))
    parts = []
    for start in range(0, draws, step):
        chosen = rng.integers(0, len(ranks), (min(step, draws - start), len(ranks)))  # (step, n)
        drawn = scores_of(ranks[chosen], ks)
        if baseline is not None:
            theirs = scores_of(baseline[chosen], ks)
            drawn = {name: values - theirs[name] for name, values in drawn.items()}
        parts.append(drawn)
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    ends = {name: np.quantile(values, TAILS).tolist() for name, values in joined.items()}
    for name, k in ((f"R@{k}", k) for k in ks if baseline is None):
        if len(ranks) < FEW_QUERIES or ends[name][0] == ends[name][1]:
            ends[name] = wilson(float((ranks <= k).mean()), len(ranks))
    return ends


def wilson(share: float, n: int) -> list[float]:
    """The score interval of a share that was seen in n queries (Wilson 1927), in [0, 1]."""
    z2 = NormalDist().inv_cdf(TAILS[1]) ** 2
    middle, half = share + z2 / (2 * n), math.sqrt(z2 * (share * (1 - share) + z2 / (4 * n)) / n)
    return [max(0.0, (middle - half) / (1 + z2 / n)), min(1.0, (middle + half) / (1 + z2 / n))]


def draw_weights(n: int, draws: int, seed: int) -> Iterator[np.ndarray]:
    """How often each of n images is drawn, of n with replacement: (n, some of the draws) int32.

    The first (n, 1) are ones: all images as they are.
    """
    yield np.ones((n, 1), np.int32)
    rng = np.random.default_rng(seed)
    step = max(1, _WEIGHTS // n)
    for start in range(0, draws, step):
        chosen = rng.integers(0, n, (min(step, draws - start), n))
        counts = [np.bincount(each, minlength=n) for each in chosen]
        yield np.ascontiguousarray(np.stack(counts, 1), np.int32)


def record(names: Sequence[str], scores: np.ndarray) -> dict[str, Any]:
    """Figures and intervals by name, of (names, 1 + draws) scores as `draw_weights` yields them.

    A figure that is NaN is None; a draw that is NaN doesn't count.
    """
    figures, intervals = dict[str, Any](), dict[str, list[float]]()
    for name, (figure, *drawn) in zip(names, scores.tolist(), strict=True):
        figures[name] = None if math.isnan(figure) else figure
        if known := [value for value in drawn if not math.isnan(value)]:
            intervals[name] = np.quantile(known, TAILS).tolist()
    return {**figures, "intervals": intervals}


def cell(figures: dict[str, Any], name: str) -> str:
    """One of a record's figures for people, with its interval: "0.912 [0.880, 0.941]"."""
    value, ends = figures.get(name, ""), figures["intervals"].get(name)
    if not isinstance(value, float):
        return "-" if value is None else str(value)
    return f"{value:.3f}" + (f" [{ends[0]:.3f}, {ends[1]:.3f}]" if ends else "")


def table(rows: dict[str, dict[str, Any]], names: Sequence[str]) -> str:
    """Records by their titles, for people: a row each, a column for each of the names."""
    cells = [[cell(row, name) for name in names] for row in rows.values()]
    columns = [name.replace("_", " ").replace("auroc", "AUROC") for name in names]
    return pd.DataFrame(cells, list(rows), columns).to_string()
