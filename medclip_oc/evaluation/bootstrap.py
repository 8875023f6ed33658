"""How far a figure could be chance: bootstrap over the queries, the candidates held fixed.

Percentile intervals (Efron and Tibshirani 1993, chapter 13). The same seed draws the same queries
for every figure of the same number of queries, so that two models' ranks are resampled in pairs.

R@K has Wilson's interval where every draw gives the same, or where the queries are few: a width of
0 would look too sure.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from statistics import NormalDist
from typing import Any

import numpy as np

from ..config.vocabulary import FEW_QUERIES
from ..runtime.workers import cores, ordered_map
from .metrics import scores_of

LEVEL = 0.95
TAILS = ((1 - LEVEL) / 2, (1 + LEVEL) / 2)
_AT_ONCE = 2**19  # drawn queries or images in memory: a sum over them stays in the cache


def bootstrap(
    ranks: np.ndarray, ks: Sequence[int], draws: int, seed: int, baseline: np.ndarray | None = None
) -> dict[str, list[float]]:
    """The interval of each score of ranks (n,), see `metrics.scores_of`; or of its difference to a
    `baseline`, (n,) ranks of another model for the same queries. n of them are drawn `draws` times.

    Name -> [low, high], which hold the middle LEVEL of the draws; or Wilson's, see above.
    """
    parts = []
    for chosen in _draw(len(ranks), draws, seed):
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


def _draw(n: int, draws: int, seed: int) -> Iterator[np.ndarray]:
    """Which of n are drawn, n with replacement: (some of the draws, n) int64."""
    rng = np.random.default_rng(seed)
    step = max(1, _AT_ONCE // n)
    for start in range(0, draws, step):
        yield rng.integers(0, n, (min(step, draws - start), n))


def draw_weights(n: int, draws: int, seed: int) -> Iterator[np.ndarray]:
    """How often each of n images is drawn, of n with replacement: (n, some of the draws) int32.

    The first (n, 1) are ones: all images as they are.
    """
    yield np.ones((n, 1), np.int32)
    for chosen in _draw(n, draws, seed):
        counts = [np.bincount(each, minlength=n) for each in chosen]
        yield np.ascontiguousarray(np.stack(counts, 1), np.int32)


def resample(
    scores: Callable[[np.ndarray], np.ndarray], n: int, draws: int, seed: int
) -> np.ndarray:
    """What `scores` makes of weights (n, d), (figures, d, ...), for all of them: d is 1 + draws."""
    weights = draw_weights(n, draws, seed)
    return np.concatenate([*ordered_map(scores, weights, cores(), batch=1, threads=True)], 1)


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
