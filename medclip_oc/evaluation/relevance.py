"""Relevance by UMLS concepts: what a query finds besides its own partner. N pairs, b queries.

A candidate's relevance is the Jaccard overlap of its concepts with the query's: 1 for the same
concepts, 0 for none in common. Of equal scores each place holds the mean of the group (McSherry and
Najork 2008, "Computing information retrieval performance measures efficiently in the presence of
tied scores").
"""

from collections.abc import Sequence

import numpy as np

from ..config.vocabulary import MODALITIES


def number(cui: str) -> int | None:
    """C0040405 -> 40405; None for what is no concept id."""
    return int(cui[1:]) if cui[:1] == "C" and cui[1:].isdigit() else None


def cui(number: int) -> str:
    """40405 -> C0040405."""
    return f"C{number:07}"


def has(concepts: np.ndarray, concept: int) -> np.ndarray:
    """Which pairs have a concept: (N,) bool. `concepts` (N, K) int32, 0 is none."""
    return np.asarray((concepts == concept).any(1))


def modalities(concepts: np.ndarray) -> np.ndarray:
    """The modalities of each pair, one bit each in the order of MODALITIES: (N,) int64."""
    bits = np.zeros(len(concepts), dtype=np.int64)
    for place, concept in enumerate(MODALITIES.values()):
        bits |= has(concepts, number(concept) or -1).astype(np.int64) << place
    return bits


class Overlap:
    """Jaccard overlap of any pair's concepts with everyone's, through lists of who has a concept.

    Args:
        concepts: (N, K) int32, 0 is none.
    """

    def __init__(self, concepts: np.ndarray) -> None:
        rows, places = concepts.nonzero()
        names, columns = np.unique(concepts[rows, places], return_inverse=True)
        found = np.unique(np.stack([columns, rows], 1), axis=0)  # a concept counts once
        self._owners = found[:, 1]
        self._ends = np.cumsum(np.bincount(found[:, 0], minlength=len(names)))
        self.sizes = np.bincount(found[:, 1], minlength=len(concepts))  # (N,) concepts of each
        by_row = found[np.argsort(found[:, 1], kind="stable")]
        self._of_row = np.split(by_row[:, 0], np.cumsum(self.sizes)[:-1])

    def of(self, queries: np.ndarray) -> np.ndarray:
        """Overlap of b pairs with all: (b, N) float64; 0 where one of the two has no concept."""
        n = len(self.sizes)
        common = np.zeros((len(queries), n))
        for row, query in enumerate(queries):
            names = self._of_row[query]
            lists = [self._owners[self._start(name) : self._ends[name]] for name in names]
            if lists:
                common[row] = np.bincount(np.concatenate(lists), minlength=n)
        union = self.sizes[queries, None] + self.sizes[None, :] - common
        return common / np.maximum(union, 1)

    def _start(self, name: int) -> int:
        return int(self._ends[name - 1]) if name else 0


def graded(
    overlap: np.ndarray, index: np.ndarray, share: np.ndarray, ks: Sequence[int], relevant: float
) -> dict[str, np.ndarray]:
    """What the first places hold, query by query.

    nDCG@K: sum of overlap / log2(place + 1) over the first K places, over that of the best order
    (Jarvelin and Kekalainen 2002). relevant_recall@K: share of the relevant candidates that stand
    in the first K places. relevant_precision@K: share of the first K places that hold one.

    Args:
        overlap: (b, N), of each query with every candidate.
        index: (b, W) int64, candidates listed.
        share: (b, W, k) each listed candidate's share of each place, k >= every K or all places.
        ks: the K.
        relevant: least overlap of a relevant candidate.

    Returns:
        Name -> (b,) float64.
    """
    gains = np.take_along_axis(overlap, index, 1)  # (b, W)
    places = share.shape[2]
    expected = np.einsum("bw,bwk->bk", gains, share)
    hits = np.einsum("bw,bwk->bk", (gains >= relevant).astype(float), share)
    best = -np.sort(-np.partition(overlap, -places, 1)[:, -places:], 1)  # (b, k)
    discount = 1 / np.log2(np.arange(places) + 2)
    total = (overlap >= relevant).sum(1)
    scores: dict[str, np.ndarray] = {}
    for k in ks:
        ideal = (best * discount)[:, :k].sum(1)
        scores[f"nDCG@{k}"] = (expected * discount)[:, :k].sum(1) / np.maximum(ideal, 1e-12)
    for k in ks:
        scores[f"relevant_recall@{k}"] = hits[:, :k].sum(1) / np.maximum(total, 1)
    for k in ks:
        scores[f"relevant_precision@{k}"] = hits[:, :k].sum(1) / min(k, places)
    return scores


def agreement(
    bits: np.ndarray, queries: np.ndarray, index: np.ndarray, share: np.ndarray
) -> np.ndarray:
    """How far the first place has a modality of the query's: (b,) in [0, 1].

    Args:
        bits: (N,) modalities (see `modalities`).
        queries: (b,) int64.
        index: (b, W) int64.
        share: (b, W, k).
    """
    same = (bits[index] & bits[queries, None]) != 0  # (b, W)
    agreed: np.ndarray = (same * share[:, :, 0]).sum(1)
    return agreed
