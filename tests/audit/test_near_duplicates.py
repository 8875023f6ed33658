"""Searches among many find what comparing all with all finds."""

from collections.abc import Callable
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medclip_oc.audit import near_duplicates

SEEDS = st.integers(0, 2**32 - 1)


def clustered(seed: int, number: int) -> np.ndarray:
    """Hashes that differ from a few in 0 to 16 bits: near ones, and ones just beyond."""
    rng = np.random.default_rng(seed)
    centres = rng.integers(0, 2**64, 4, dtype=np.uint64)
    hashes = centres[rng.integers(0, 4, number)]
    for row in range(number):
        for bit in rng.choice(64, rng.integers(0, 17), replace=False):
            hashes[row] ^= np.uint64(1) << np.uint64(bit)
    return hashes


def apart(one: np.ndarray, other: np.ndarray) -> int:
    return sum(int(a ^ b).bit_count() for a, b in zip(one, other, strict=True))


def all_pairs(number: int, alike: Callable[[int, int], bool]) -> list[list[int]]:
    return [[one, other] for one, other in combinations(range(number), 2) if alike(one, other)]


@pytest.mark.parametrize("comparisons", [1, 70, 1 << 20])
@settings(max_examples=8, deadline=None)
@given(seed=SEEDS, number=st.integers(0, 40), radius=st.integers(0, 14))
def test_near_hashes_equal_brute_force(
    comparisons: int, seed: int, number: int, radius: int
) -> None:
    hashes = clustered(seed, number)
    fine = np.stack([hashes, clustered(seed ^ 1, number)], 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(near_duplicates, "_COMPARISONS", comparisons)
        pairs, distance = near_duplicates.near_hashes(hashes, radius, fine, 3 * radius)
    short, long = ([[apart(a, b) for b in of] for a in of] for of in (hashes[:, None], fine))
    near = all_pairs(number, lambda i, j: short[i][j] <= radius and long[i][j] <= 3 * radius)
    assert pairs.tolist() == near
    assert distance.tolist() == [long[i][j] for i, j in pairs]


def test_nearest_keeps_the_closest_of_each_split() -> None:
    # row 0 is near 1, 2, 3 (split 0) and 4 (split 1); the others are near 0 alone
    pairs, splits = np.array([[0, 1], [0, 2], [0, 3], [0, 4]]), np.array([1, 0, 0, 0, 1])
    assert near_duplicates.nearest(pairs, np.array([5, 3, 4, 9]), splits, 4).all()
    # each of the four keeps 0 as its own closest, so drop that way round
    crowd = np.array([[i, j] for i, j in combinations(range(6), 2)])
    far = np.array([j - i for i, j in crowd])
    kept = crowd[near_duplicates.nearest(crowd, far, np.zeros(6, int), 1)]
    assert kept.tolist() == [[0, 1], [1, 2], [2, 3], [3, 4], [4, 5]]
    assert near_duplicates.nearest(np.empty((0, 2), int), np.empty(0, int), splits, 1).shape == (0,)


def test_similar_sets_equal_brute_force() -> None:
    """Sets made from a few by putting others in for some of 40 words."""
    rng = np.random.default_rng(0)
    bases = [rng.integers(0, 2**63, 40) for _ in range(3)]
    sets = []
    for _ in range(40):
        words = bases[rng.integers(3)].copy()
        words[: rng.integers(0, 6)] = rng.integers(2**63)
        sets.append(np.unique(words).astype(np.uint64))

    def jaccard(i: int, j: int) -> float:
        one, other = set(sets[i].tolist()), set(sets[j].tolist())
        return len(one & other) / len(one | other)

    pairs, index = near_duplicates.similar_sets(sets, 0.8)
    expected = all_pairs(40, lambda i, j: jaccard(i, j) >= 0.8)
    assert len(expected) > 100
    assert pairs.tolist() == expected
    assert index.tolist() == pytest.approx([jaccard(i, j) for i, j in expected])


def test_a_crowd_of_candidates_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near_duplicates, "MOST_CANDIDATES", 2)
    sets = [*[np.arange(5, dtype=np.uint64)] * 5, *[np.empty(0, np.uint64)] * 2]  # none like empty
    pairs, _ = near_duplicates.similar_sets(sets, 0.8)
    assert pairs.tolist() == [[0, 1], [0, 2], [1, 2], [1, 3], [2, 3], [2, 4], [3, 4]]


def test_best_matches_are_the_most_similar_of_each_split() -> None:
    #                  0  1  2  3  4  5  6
    split = np.array([0, 0, 0, 1, 1, 2, 2])
    fine = np.array([0, 0, 2, 0, 4, 5, 6])  # 0, 1 and 3 are one file
    coarse = np.array([0, 0, 0, 0, 4, 5, 6])  # 2 has their pixels
    near, similarity = np.array([[0, 5], [0, 6], [4, 5]]), np.array([0.96, 0.99, 0.97])
    matches = near_duplicates.best_matches(split, fine, coarse, near, similarity)
    matches["split"] = split[matches.other]
    # a line per row, a column per split; in its own split, only one before it
    other = [[-1, 3, 6], [0, 3, 6], [0, 3, 6], [0, -1, 6], [-1, -1, 5], [0, 4, -1], [0, 3, -1]]
    degree = [[-1, 0, 2], [0, 0, 2], [1, 1, 2], [0, -1, 2], [-1, -1, 2], [2, 2, -1], [2, 2, -1]]
    last = [[1, -1, 0.99], [-1, -1, 0.97], [0.96, 0.97, -1], [0.99, 0.99, -1]]
    tables = {"other": other, "degree": degree}
    tables["similarity"] = [[-1, 1, 0.99], [1, 1, 0.99], [1, 1, 0.99], *last]
    for column, expected in tables.items():
        found = matches.pivot(index="row", columns="split", values=column)
        assert found.fillna(-1).to_numpy().tolist() == expected
