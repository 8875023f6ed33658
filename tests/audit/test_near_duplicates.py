"""Searches that skip most comparisons find what comparing all with all finds."""

from collections.abc import Callable
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medclip_oc.audit.near_duplicates import (
    alike_sets,
    first_of_equals,
    links,
    near_hashes,
    nearest,
)

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


def all_pairs(number: int, alike: Callable[[int, int], bool]) -> list[list[int]]:
    return [[one, other] for one, other in combinations(range(number), 2) if alike(one, other)]


@settings(max_examples=25, deadline=None)
@given(seed=SEEDS, number=st.integers(0, 60), radius=st.integers(0, 14))
def test_near_hashes_equal_brute_force(seed: int, number: int, radius: int) -> None:
    hashes = clustered(seed, number)
    pairs, distance = near_hashes(hashes, radius)
    bits = [[int(a ^ b).bit_count() for b in hashes] for a in hashes]
    assert pairs.tolist() == all_pairs(number, lambda i, j: bits[i][j] <= radius)
    assert distance.tolist() == [bits[i][j] for i, j in pairs]


def test_a_finer_hash_thins_the_near_ones() -> None:
    hashes = np.array([5, 5, 4, 7], np.uint64)
    fine = np.array([[0, 0], [0, 3], [0, 0], [7, 7]], np.uint64)
    pairs, distance = near_hashes(hashes, 1, fine, 2)
    assert pairs.tolist() == [[0, 1], [0, 2], [1, 2]]  # (0, 3) differs in 6 bits of the finer
    assert distance.tolist() == [2, 0, 2]


def test_many_in_one_bucket_are_found_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medclip_oc.audit.near_duplicates._CHUNK", 7)
    pairs, _ = near_hashes(np.full(12, 99, np.uint64), 2)
    assert pairs.tolist() == all_pairs(12, lambda i, j: True)


@given(st.lists(st.integers(0, 5)))
def test_first_of_equals(values: list[int]) -> None:
    digests = np.array([(7, value) for value in values], np.uint64).reshape(-1, 2)
    assert first_of_equals(digests).tolist() == [values.index(value) for value in values]


def test_nearest_keeps_the_closest_of_each_kind() -> None:
    # row 0 is near 1, 2, 3 (kind 0) and 4 (kind 1); the others are near 0 alone
    pairs, kinds = np.array([[0, 1], [0, 2], [0, 3], [0, 4]]), np.array([1, 0, 0, 0, 1])
    distance = np.array([5, 3, 4, 9])
    assert nearest(pairs, distance, kinds, 4).all()
    # each of the four keeps 0 as its own closest, so drop that way round
    crowd = np.array([[i, j] for i, j in combinations(range(6), 2)])
    far = np.array([j - i for i, j in crowd])
    kept = crowd[nearest(crowd, far, np.zeros(6, int), 1)]
    assert kept.tolist() == [[0, 1], [1, 2], [2, 3], [3, 4], [4, 5]]


def word_sets(seed: int, number: int) -> list[set[int]]:
    """Sets made from a few by taking words out and putting others in."""
    rng = np.random.default_rng(seed)
    bases = [set(rng.integers(0, 2**63, 20).tolist()) for _ in range(3)]
    sets = []
    for _ in range(number):
        words = set(bases[rng.integers(3)])
        for _ in range(rng.integers(0, 4)):
            words.discard(sorted(words)[0])
            words.add(int(rng.integers(2**63)))
        sets.append(words)
    return sets


def flat(sets: list[set[int]]) -> tuple[np.ndarray, np.ndarray]:
    members = np.array([word for words in sets for word in sorted(words)], np.uint64)
    return members, np.cumsum([0, *map(len, sets)])


def jaccard(one: set[int], other: set[int]) -> float:
    return len(one & other) / len(one | other)


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS, number=st.integers(0, 30), threshold=st.sampled_from([0.5, 0.8, 1.0]))
def test_alike_sets_equal_brute_force(seed: int, number: int, threshold: float) -> None:
    """With signatures that make every set a candidate, the verdict alone decides."""
    sets = word_sets(seed, number)
    pairs, index = alike_sets(np.zeros((number, 4), np.uint32), *flat(sets), threshold)
    exact = {pair: jaccard(sets[pair[0]], sets[pair[1]]) for pair in combinations(range(number), 2)}
    wanted = [list(pair) for pair, degree in exact.items() if degree >= threshold]
    assert pairs.tolist() == wanted
    assert index.tolist() == pytest.approx([exact[i, j] for i, j in wanted])


def test_signatures_find_the_alike_and_leave_the_others() -> None:
    from medclip_oc.audit.hashing import word_hashes, word_signature

    words = [f"word{n}" for n in range(20)]
    texts = [" ".join(words), " ".join([*words[1:], "other"]), "Word5 word7, WORD5!", "word7 word5"]
    sets = [word_hashes(text) for text in texts]
    signatures = np.stack([word_signature(each) for each in sets])
    starts = np.cumsum([0, *map(len, sets)])
    pairs, index = alike_sets(signatures, np.concatenate(sets), starts, 0.8)
    assert pairs.tolist() == [[0, 1], [2, 3]]
    assert index.tolist() == pytest.approx([19 / 21, 1.0])


def test_empty_sets_are_like_none() -> None:
    starts = np.array([0, 0, 0])
    pairs, _ = alike_sets(np.zeros((2, 4), np.uint32), np.empty(0, np.uint64), starts, 0.5)
    assert not len(pairs)


def test_links_name_the_likest_of_each_split() -> None:
    #                  0  1  2  3  4  5  6
    split = np.array([0, 0, 0, 1, 1, 2, 2])
    fine = np.array([0, 0, 2, 0, 4, 5, 6])  # 0, 1 and 3 are one file
    coarse = np.array([0, 0, 0, 0, 4, 5, 6])  # 2 has their pixels
    near, likeness = np.array([[0, 5], [0, 6], [4, 5]]), np.array([0.96, 0.99, 0.97])
    found = {
        (link.row, int(split[link.other])): link[1:]
        for link in links(split, fine, coarse, near, likeness)
    }
    assert found == {
        (0, 1): (3, 0, 1.0),
        (0, 2): (6, 2, 0.99),
        (1, 0): (0, 0, 1.0),  # in its own split, one before it
        (1, 1): (3, 0, 1.0),
        (1, 2): (6, 2, 0.99),
        (2, 0): (0, 1, 1.0),
        (2, 1): (3, 1, 1.0),
        (2, 2): (6, 2, 0.99),
        (3, 0): (0, 0, 1.0),
        (3, 2): (6, 2, 0.99),
        (4, 2): (5, 2, 0.97),
        (5, 0): (0, 2, 0.96),
        (5, 1): (4, 2, 0.97),
        (6, 0): (0, 2, 0.99),
        (6, 1): (3, 2, 0.99),
    }
