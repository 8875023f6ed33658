"""How far a figure could be chance: bootstrap over the queries, the pool of candidates held fixed.

Percentile intervals (Efron and Tibshirani 1993, chapter 13). The same seed draws the same queries
for every figure of the same number of queries, so that two models' ranks are resampled in pairs.
"""

from collections.abc import Callable, Iterator

import numpy as np

LEVEL = 0.95
_AT_ONCE = 2_000_000

Scores = Callable[[np.ndarray], dict[str, np.ndarray]]
"""Ranks (..., n) -> name of a score -> its value (...)."""


def bootstrap(ranks: np.ndarray, scores: Scores, draws: int, seed: int) -> dict[str, list[float]]:
    """The interval of each score.

    Args:
        ranks: (n,) of the queries.
        scores: what is computed of them.
        draws: how many times n queries are drawn with replacement.
        seed: of the draws.

    Returns:
        Name -> [low, high], which hold the middle LEVEL of the draws.
    """
    parts = [scores(ranks[places]) for places in _places(len(ranks), draws, seed)]
    return _ranges(parts)


def paired(
    ours: np.ndarray, theirs: np.ndarray, scores: Scores, draws: int, seed: int
) -> dict[str, list[float]]:
    """The interval of each score's difference, ours less theirs, over the same drawn queries.

    Args:
        ours: (n,) ranks of one model.
        theirs: (n,) ranks of another, for the same queries.
        scores: see `bootstrap`.
        draws: see `bootstrap`.
        seed: see `bootstrap`.
    """
    assert ours.shape == theirs.shape
    parts = []
    for places in _places(len(ours), draws, seed):
        first, second = scores(ours[places]), scores(theirs[places])
        parts.append({name: first[name] - second[name] for name in first})
    return _ranges(parts)


def _places(n: int, draws: int, seed: int) -> Iterator[np.ndarray]:
    """Drawn queries, (draws of this part, n) int64."""
    rng = np.random.default_rng(seed)
    step = max(1, _AT_ONCE // n)
    for start in range(0, draws, step):
        yield rng.integers(0, n, (min(step, draws - start), n))


def _ranges(parts: list[dict[str, np.ndarray]]) -> dict[str, list[float]]:
    tail = (1 - LEVEL) / 2
    drawn = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return {name: np.quantile(v, [tail, 1 - tail]).tolist() for name, v in drawn.items()}
