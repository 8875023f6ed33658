"""Retrieval metrics as pure functions of features. N pairs, D embedding size.

Ranks are counted tile by tile, so no N x N matrix exists. Ties score their expected rank: with t
other candidates tied with the right one, each order is equally likely and the rank is
1 + better + t / 2. Two scores tie when they differ by at most TIE, which is above the rounding of
a float32 dot product: the result doesn't hang on the tiling or on the number of processes.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .errors import WorkError

TIE = 1e-6
KS = (1, 5, 10)
DIRECTIONS = ("image_to_text", "text_to_image")


def retrieval_ranks(
    image_features: Tensor, text_features: Tensor, tile: tuple[int, int] = (512, 2048)
) -> tuple[Tensor, Tensor]:
    """Rank of the right partner of each image and of each text, both from one product per tile.

    Args:
        image_features: (N, D) float, normalised.
        text_features: (N, D) float, normalised; row i belongs to image i.
        tile: rows and columns of a block of scores.

    Returns:
        image-to-text and text-to-image ranks, (N,) float64 each, 1 is best.

    Raises:
        WorkError: features that are not finite.
    """
    images, texts = image_features.float(), text_features.float()
    for name, features in (("image", images), ("text", texts)):
        if not features.isfinite().all():
            raise WorkError(f"{name} features hold NaN or infinity: nothing can be ranked")
    n = len(images)
    own = (images * texts).sum(-1)  # (N,) score of the right partner
    better = torch.zeros(2, n, dtype=torch.float64, device=images.device)
    tied = torch.zeros_like(better)  # counts the right partner itself too
    for a, b in pairwise([*range(0, n, tile[0]), n]):
        for c, d in pairwise([*range(0, n, tile[1]), n]):
            scores = images[a:b] @ texts[c:d].T  # (b-a, d-c)
            for axis, gap in ((0, scores - own[a:b, None]), (1, scores - own[None, c:d])):
                seen = slice(a, b) if axis == 0 else slice(c, d)
                better[axis, seen] += (gap > TIE).sum(1 - axis)
                tied[axis, seen] += (gap.abs() <= TIE).sum(1 - axis)
    ranks = 1 + better + (tied - 1) / 2
    return ranks[0], ranks[1]


def nearest(queries: Tensor, targets: Tensor, k: int, tile: int = 512) -> Tensor:
    """Row numbers of the k best targets of each query, best first: (N, min(k, N)) int64."""
    k = min(k, len(targets))
    return torch.cat([(block @ targets.T).topk(k).indices for block in queries.split(tile)])


def summary(ranks: Tensor, ks: Sequence[int] = KS) -> dict[str, float]:
    """R@K (share of queries whose rank is at most K), median and mean rank, and MRR."""
    values = ranks.cpu().numpy()
    recalls = {f"R@{k}": float(np.mean(values <= k)) for k in ks}
    return recalls | {
        "median_rank": float(np.median(values)),
        "mean_rank": float(np.mean(values)),
        "mrr": float(np.mean(1 / values)),
    }


def chance(n: int, ks: Sequence[int] = KS) -> dict[str, float]:
    """What random features score on average in a pool of n pairs."""
    ranks = np.arange(1, n + 1)
    return {f"R@{k}": min(1.0, k / n) for k in ks} | {
        "median_rank": (n + 1) / 2,
        "mean_rank": (n + 1) / 2,
        "mrr": float(np.mean(1 / ranks)),
    }


def retrieval(image_ranks: Tensor, text_ranks: Tensor) -> dict[str, Any]:
    """The record of an evaluation: pool size, chance, both directions, and their mean recall."""
    both = dict(zip(DIRECTIONS, map(summary, (image_ranks, text_ranks)), strict=True))
    recalls = [scores[f"R@{k}"] for scores in both.values() for k in KS]
    return {
        "pool": len(image_ranks),
        "chance": chance(len(image_ranks)),
        **both,
        "mean_recall": float(np.mean(recalls)),
    }


def flat(record: dict[str, Any]) -> dict[str, float]:
    """The directions' scores under one-level names (`image_to_text/R@1`), and `mean_recall`."""
    scores = {f"{way}/{name}": v for way in DIRECTIONS for name, v in record[way].items()}
    return {"mean_recall": record["mean_recall"], **scores}
