"""What is searched in, and retrieval metrics of ranks. Pure functions.

A pool is drawn from N pairs, each an image and its caption; P of them. As they are, pair i alone
links image i and text i, so that a copy of the right caption counts as wrong; where several pairs
are of one image, all their captions are right for it. Merged, equal images are one image and equal
captions one text: an image then has every caption that came with it, a caption every image. Links
are not followed any further. Of metrics n is the number of queries.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from ..config.vocabulary import DIRECTIONS

KS = (1, 5, 10)
Ranks = tuple[np.ndarray, np.ndarray]  # of a pool's images (n,) and texts (m,), float64, 1 is best


@dataclass(frozen=True)
class Pool:
    """n images and m texts, each standing for the first pair that brings it; all int64."""

    images: np.ndarray  # (n,) pair whose image this is, ascending
    texts: np.ndarray  # (m,) pair whose caption this is, ascending
    links: np.ndarray  # (E, 2) number of an image and of a text that is right for it
    image_of: np.ndarray  # (P,) number of each drawn pair's image
    text_of: np.ndarray  # (P,) number of each drawn pair's text
    size: int  # pairs, or studies, that were drawn


def pool_of(pairs: np.ndarray, image_ids: np.ndarray, text_ids: np.ndarray) -> Pool:
    """A pool of `pairs` (P,), ascending positions in the set, in which what has the same id is one:
    numbers (N,) or rows (N, k) of the whole set, such as the hashes of images and captions.
    """
    (images, image_of), (texts, text_of) = (_first(ids[pairs]) for ids in (image_ids, text_ids))
    links = np.unique(np.stack([image_of, text_of], 1), axis=0)
    return Pool(pairs[images], pairs[texts], links, image_of, text_of, len(pairs))


def study_pool(pool: Pool, study_of: np.ndarray) -> Pool:
    """The pool, but every text of a study, (P,) of the drawn pairs, is right for all its images."""
    own = pd.DataFrame({"study": study_of, "image": pool.image_of, "text": pool.text_of})
    images, texts = (own[["study", side]].drop_duplicates() for side in ("image", "text"))
    links = images.merge(texts, on="study")[["image", "text"]].drop_duplicates().to_numpy()
    return replace(pool, links=links, size=own["study"].nunique())


def _first(hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where each value (or row) comes first, ascending; and each entry's number among them."""
    _, first, inverse = np.unique(hashes, return_index=True, return_inverse=True, axis=0)
    return np.sort(first), first.argsort().argsort()[inverse.ravel()]


def draw_pool(seed: int, size: int, pairs: int, number: int) -> np.ndarray:
    """The `number`-th random pool of `size` out of `pairs` pairs: (size,) int64 ascending."""
    rng = np.random.default_rng([seed, size, number])
    return np.sort(rng.choice(pairs, size, replace=False))


def scores_of(ranks: np.ndarray, ks: Sequence[int] = KS) -> dict[str, np.ndarray]:
    """R@K (share of queries whose rank is at most K), median and mean rank, and MRR.

    Of ranks (..., n): name -> (...) float64.
    """
    return {f"R@{k}": (ranks <= k).mean(-1) for k in ks} | {
        "median_rank": np.median(ranks, -1),
        "mean_rank": ranks.mean(-1),
        "mrr": (1 / ranks).mean(-1),
    }


def summary(ranks: np.ndarray, ks: Sequence[int] = KS) -> dict[str, float]:
    """The scores (see `scores_of`) of one list of ranks (n,)."""
    return {name: float(value) for name, value in scores_of(ranks, ks).items()}


def chance(candidates: int, right: np.ndarray, ks: Sequence[int] = KS) -> dict[str, float]:
    """What random features score on average; `right` (n,) candidates are right for each query."""
    counts = np.bincount(right)
    share = counts / counts.sum()
    # distribution of the first right one's rank: P(rank > r) = C(M - c, r) / C(M, r)
    places = np.arange(candidates)
    at_most = np.zeros(candidates)  # (M,) P(rank <= place + 1)
    mean = 0.0
    for c in np.flatnonzero(counts):
        at_most += share[c] * (1 - np.cumprod(1 - np.minimum(1, c / (candidates - places))))
        mean += share[c] * (candidates + 1) / (c + 1)
    exactly = np.diff(at_most, prepend=0)
    # the two middle ranks of an even number; a hair off, since sums are
    low = np.searchsorted(at_most, 0.5 - 1e-9, "left")
    high = np.searchsorted(at_most, 0.5 + 1e-9, "right")
    return {f"R@{k}": float(at_most[min(k, candidates) - 1]) for k in ks} | {
        "median_rank": float((low + high) / 2 + 1),
        "mean_rank": float(mean),
        "mrr": float(np.sum(exactly / (places + 1))),
    }


def retrieval(ranks: Ranks, pool: Pool, ks: Sequence[int] = KS) -> dict[str, Any]:
    """The record of an evaluation: `pool` (pairs, or studies), `images` and `texts` in it, `chance`
    (mean of both directions), `image_to_text`, `text_to_image`, and `mean_recall` (of R@1, R@5 and
    R@10, both ways).
    """
    n, m = len(pool.images), len(pool.texts)
    of_images, of_texts = (
        chance(candidates, np.bincount(pool.links[:, side]), ks)
        for side, candidates in enumerate((m, n))
    )
    both = [summary(values, ks) for values in ranks]
    return {
        "pool": pool.size,
        "images": n,
        "texts": m,
        "chance": {name: (of_images[name] + of_texts[name]) / 2 for name in of_images},
        **dict(zip(DIRECTIONS, both, strict=True)),
        "mean_recall": float(np.mean([scores[f"R@{k}"] for scores in both for k in KS])),
    }


def flat(record: dict[str, Any]) -> dict[str, float]:
    """The directions' scores under one-level names (`image_to_text/R@1`), and `mean_recall`."""
    scores = {f"{way}/{name}": v for way in DIRECTIONS for name, v in record[way].items()}
    return {"mean_recall": record["mean_recall"], **scores}
