"""Retrieval metrics as pure functions of features and ranks. N pairs, n queries, D embedding size.

A query's rank is that of the best right candidate among the wrong ones. Equal scores (see
counting.TIE) go by a stated rule: with t wrong candidates tied with the best right one, c of which
are tied in turn, the right one comes after t / (c + 1) of them on average ("expected", the
default), after none ("optimistic") or after all ("pessimistic").
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ..config.vocabulary import DIRECTIONS
from ..runtime.precision import check_finite
from . import ranks as counting
from .candidate_pools import Pool

Ties = Literal["expected", "optimistic", "pessimistic"]
KS = (1, 5, 10)


def retrieval_ranks(
    image_features: Tensor,
    text_features: Tensor,
    tile: counting.Tile | None = None,
    *,
    links: Tensor | None = None,
    ties: Ties = "expected",
) -> tuple[Tensor, Tensor]:
    """Rank of the best right partner of each image and of each text, from one product per tile.

    Args:
        image_features: (n, D) float, normalised.
        text_features: (m, D) float, normalised.
        tile: rows and columns of a block of scores. None: what suits the device.
        links: (E, 2) int64, row of an image and of a text that is right for it; everyone needs one.
            None: n = m, and row i belongs to row i.
        ties: how equal scores count.

    Returns:
        image-to-text (n,) and text-to-image (m,) ranks, float64, 1 is best.

    Raises:
        WorkError: features that are not finite.
    """
    images, texts = image_features.float(), text_features.float()
    if links is None:
        links = torch.arange(len(images), device=images.device).unsqueeze(1).expand(-1, 2)
    with counting.threads():
        scores = counting.pair_scores(images, texts, links)
        check_finite(images, "image")
        check_finite(texts, "text")
        best = [
            counting.best_scores(scores, links[:, side], len(rows))
            for side, rows in enumerate((images, texts))
        ]
        counts = counting.count(images, texts, best[0], best[1], links, tile)
    copies = [counting.tied_with_best(scores, links[:, side], best[side]) for side in (0, 1)]
    first, second = (rank(c[0], c[1], k, ties) for c, k in zip(counts, copies, strict=True))
    return first, second


def rank(above: Tensor, tied: Tensor, copies: Tensor, ties: Ties = "expected") -> Tensor:
    """Ranks (n,) float64 from counts: wrong ones above, wrong and right ones tied with the best.

    Of t wrong and c right ones in random order, t / (c + 1) wrong ones come before the first right
    one on average.
    """
    if ties == "optimistic":
        return 1.0 + above.double()
    before = tied.double() if ties == "pessimistic" else tied.double() / (copies + 1)
    return 1.0 + above.double() + before


def scores_of(ranks: np.ndarray, ks: Sequence[int] = KS) -> dict[str, np.ndarray]:
    """R@K (share of queries whose rank is at most K), median and mean rank, and MRR.

    Args:
        ranks: (..., n).
        ks: the K.

    Returns:
        Name -> (...) float64.
    """
    return {f"R@{k}": (ranks <= k).mean(-1) for k in ks} | {
        "median_rank": np.median(ranks, -1),
        "mean_rank": ranks.mean(-1),
        "mrr": (1 / ranks).mean(-1),
    }


def summary(ranks: Tensor | np.ndarray, ks: Sequence[int] = KS) -> dict[str, float]:
    """The scores (see `scores_of`) of one list of ranks (n,)."""
    return {name: float(value) for name, value in scores_of(np.asarray(ranks), ks).items()}


def chance(
    candidates: int, right: np.ndarray | None = None, ks: Sequence[int] = KS
) -> dict[str, float]:
    """What random features score on average.

    Args:
        candidates: how many there are.
        right: (n,) int64, how many of them are right for each query. None: one.
        ks: the K.
    """
    counts = np.bincount(np.ones(1, dtype=np.int64) if right is None else right)
    share = counts / counts.sum()
    # distribution of the first right one's rank: P(rank > r) = C(M - c, r) / C(M, r)
    places = np.arange(candidates)
    at_most = np.zeros(candidates)
    mean = 0.0
    for c in np.flatnonzero(counts):
        factors = 1 - np.minimum(1, c / (candidates - places))
        at_most += share[c] * (1 - np.cumprod(factors))
        mean += share[c] * (candidates + 1) / (c + 1)
    ranks = places + 1
    exactly = np.diff(at_most, prepend=0)
    middle = [np.searchsorted(at_most, half, side) for half, side in _HALVES]
    return {f"R@{k}": float(at_most[min(k, candidates) - 1]) for k in ks} | {
        "median_rank": float(np.mean(ranks[middle])),
        "mean_rank": float(mean),
        "mrr": float(np.sum(exactly / ranks)),
    }


# the two middle ranks of an even number; a hair off, since sums are
_HALVES: tuple[tuple[float, Literal["left", "right"]], ...] = (
    (0.5 - 1e-9, "left"),
    (0.5 + 1e-9, "right"),
)


def retrieval(
    image_ranks: Tensor | np.ndarray,
    text_ranks: Tensor | np.ndarray,
    ks: Sequence[int] = KS,
    pool: Pool | None = None,
) -> dict[str, Any]:
    """The record of an evaluation: pool size, chance, both directions, and their mean recall.

    Args:
        image_ranks: (n,) of the images.
        text_ranks: (m,) of the texts.
        ks: the K of R@K.
        pool: who is right for whom. None: n = m pairs as they are.

    Returns:
        `pool` (pairs), `images` and `texts` in it, `chance` (of both directions together),
        `image_to_text`, `text_to_image`, and `mean_recall` (of R@1, R@5 and R@10).
    """
    images, texts = len(image_ranks), len(text_ranks)
    both = {
        way: summary(ranks, ks)
        for way, ranks in zip(DIRECTIONS, (image_ranks, text_ranks), strict=True)
    }
    by_chance = [
        chance(size, None if pool is None else pool.right(side), ks)
        for side, size in enumerate((texts, images))
    ]
    means = {name: (by_chance[0][name] + by_chance[1][name]) / 2 for name in by_chance[0]}
    return {
        "pool": images if pool is None else len(pool.image_of),
        "images": images,
        "texts": texts,
        "chance": means,
        **both,
        "mean_recall": mean_recall(image_ranks, text_ranks),
    }


def mean_recall(image_ranks: Tensor | np.ndarray, text_ranks: Tensor | np.ndarray) -> float:
    """The mean of R@1, R@5 and R@10 of both directions."""
    both = [summary(ranks, KS) for ranks in (image_ranks, text_ranks)]
    return float(np.mean([scores[f"R@{k}"] for scores in both for k in KS]))


def flat(record: dict[str, Any]) -> dict[str, float]:
    """The directions' scores under one-level names (`image_to_text/R@1`), and `mean_recall`."""
    scores = {f"{way}/{name}": v for way in DIRECTIONS for name, v in record[way].items()}
    return {"mean_recall": record["mean_recall"], **scores}
