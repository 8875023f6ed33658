"""Finding copies among many: equal values, near hashes, sets with most words in common.

Pure functions over arrays; no image, no file. N rows, numbered from 0; M pairs of rows.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

_COMPARISONS = 1 << 22  # in memory at once
_BANDS, _BAND = 16, 4  # of a signature; candidates have all values of a band in common
MOST_CANDIDATES = 200  # sets before it with which a set is compared


def first_of_equals(values: Sequence[Any] | pd.Series) -> np.ndarray:
    """The first row with the same value: (N,) int64.

    A row that is the first of its kind has its own number.
    """
    kinds, _ = pd.factorize(np.array(values, dtype=object))  # numbered as they first appear
    return np.unique(kinds, return_index=True)[1][kinds]


def near_hashes(
    hashes: np.ndarray, radius: int, fine: np.ndarray, fine_radius: int
) -> tuple[np.ndarray, np.ndarray]:
    """All pairs of rows whose hashes differ in few bits: `hashes`, (N,) uint64, in at most `radius`
    and `fine`, (N, K) uint64, a longer hash of each, in at most `fine_radius`.

    Every row is compared with every later one: 60,000 take seconds, a million half an hour. Give
    what is known to be equal once: copies make pairs by their square. Returns (M, 2) int64, rows
    (i, j) with i < j, sorted; and the distance of the fine hashes (M,).
    """
    pairs, distances = [np.empty((0, 2), np.int64)], [np.empty(0, np.int64)]
    step = max(1, _COMPARISONS // max(1, len(hashes)))
    for begin in range(0, len(hashes), step):
        block = hashes[begin : begin + step, None] ^ hashes[None, begin:]  # (step, N - begin)
        first, second = np.nonzero(np.bitwise_count(block) <= radius)
        first, second = first[second > first] + begin, second[second > first] + begin
        distance = np.bitwise_count(fine[first] ^ fine[second]).sum(1, dtype=np.int64)
        near = distance <= fine_radius
        pairs.append(np.stack([first, second], 1)[near])
        distances.append(distance[near])
    return np.concatenate(pairs), np.concatenate(distances)


def nearest(pairs: np.ndarray, distance: np.ndarray, splits: np.ndarray, most: int) -> np.ndarray:
    """Which pairs to keep, so that no row has to be compared with a crowd: (M,) bool.

    For each row those with the `most` nearest of each split. Pairs are (M, 2) rows, their distance
    (M,), the splits of the rows (N,).
    """
    row, other = np.concatenate([pairs, pairs[:, ::-1]]).T  # both ways: (2 M,) each
    table = pd.DataFrame({"row": row, "other": other, "split": splits[other]})
    table["distance"] = np.tile(distance, 2)
    kept = table.sort_values(["distance", "other"]).groupby(["row", "split"]).head(most).index
    return np.isin(np.arange(len(pairs)), kept % max(1, len(pairs)))


def similar_sets(sets: Sequence[np.ndarray], threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of sets whose Jaccard index (common members / all members) reaches the threshold.

    Candidates agree in four neighbouring values of their MinHash signatures (locality-sensitive
    hashing; Leskovec, Rajaraman, Ullman, "Mining of Massive Datasets", section 3.4); the index
    itself is then counted. With 64 values, a pair at 0.8 is overlooked once in 4,000, at 0.9 once
    in millions. Of more candidates than MOST_CANDIDATES, the last ones are compared.

    `sets` are N times (S,) uint64, distinct; an empty one is like none. Returns (M, 2) int64, rows
    (i, j) with i < j, sorted; and their index (M,) float64.
    """
    from datasketch import MinHash, MinHashLSH  # of the extra `audit`

    lsh = MinHashLSH(num_perm=_BANDS * _BAND, params=(_BANDS, _BAND))
    members_of = ([member.tobytes() for member in members] for members in sets)
    signatures = MinHash.generator(members_of, num_perm=_BANDS * _BAND, seed=1)
    similar = list[tuple[int, int, float]]()
    for row, (members, signature) in enumerate(zip(sets, signatures, strict=True)):
        if not len(members):
            continue
        for other in sorted(lsh.query(signature))[-MOST_CANDIDATES:]:
            common = len(np.intersect1d(members, sets[other], assume_unique=True))
            index = common / (len(members) + len(sets[other]) - common)
            if index >= threshold:
                similar.append((other, row, index))
        lsh.insert(row, signature)
    table = np.array(sorted(similar)).reshape(-1, 3)
    return table[:, :2].astype(np.int64), table[:, 2]


def best_matches(
    splits: np.ndarray,
    fine: np.ndarray,
    coarse: np.ndarray,
    near: np.ndarray,
    similarity: np.ndarray,
) -> pd.DataFrame:
    """For each row and each split, the most similar row there: the first of the best, if any.

    In its own split, only rows before it count. `splits` (N,) says which a row belongs to; `fine`
    (N,) is `first_of_equals` by the strict measure (bytes of the file), `coarse` (N,) by the wider
    one (pixels): equal in fine, equal in coarse. `near` (M, 2) are pairs of values of `coarse` that
    are similar, and `similarity` (M,) how much.

    Returns the columns `row`, `other`, `degree` (0: equal in the fine sense, 1: in the coarse one,
    2: near) and `similarity` (1 for equal ones).
    """
    rows = pd.DataFrame({"row": np.arange(len(splits)), "split": splits})
    rows = rows.assign(fine=fine, coarse=coarse)
    others = rows.rename(columns={"row": "other", "split": "other_split"})
    first_fine, first_coarse = (
        others.drop_duplicates([kind, "other_split"])[["other", "other_split", kind]]
        for kind in ("fine", "coarse")
    )
    one, other = np.concatenate([near, near[:, ::-1]]).T
    links = pd.DataFrame({"coarse": one, "partner": other, "similarity": np.tile(similarity, 2)})
    partners = first_coarse.rename(columns={"coarse": "partner"})
    matches = pd.concat(
        [
            rows.merge(first_fine, on="fine").assign(degree=0, similarity=1.0),
            rows.merge(first_coarse, on="coarse").assign(degree=1, similarity=1.0),
            rows.merge(links, on="coarse").merge(partners, on="partner").assign(degree=2),
        ]
    )
    matches = matches[(matches["split"] != matches["other_split"]) | (matches.other < matches.row)]
    order = {"row": True, "other_split": True, "degree": True, "similarity": False, "other": True}
    matches = matches.sort_values(list(order), ascending=list(order.values()))
    matches = matches.drop_duplicates(["row", "other_split"])
    return matches[["row", "other", "degree", "similarity"]].reset_index(drop=True)
