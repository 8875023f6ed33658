"""Finding what is alike among many: equal digests, near hashes, sets with most words in common.

Pure functions over arrays; no image, no file. N items; rows are numbered from 0.
"""

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np

HASH_BITS = 64
_BANDS = 4
_BAND_BITS = HASH_BITS // _BANDS
_CHUNK = 1 << 21  # candidates looked at in one piece
SET_NEIGHBOURS = 200
"""In a bucket of more sets than this, each is compared with so many that follow it."""
_SIGNATURE_ROWS = 4


def first_of_equals(digests: np.ndarray) -> np.ndarray:
    """The first row with the same digest.

    Args:
        digests: (N, K) uint64.

    Returns:
        (N,) int64; a row that is the first of its kind has its own number.
    """
    if not len(digests):
        return np.empty(0, np.int64)
    order = np.lexsort(digests.T)  # stable: equal digests stay in the order of their rows
    is_new = np.ones(len(order), bool)
    is_new[1:] = (digests[order[1:]] != digests[order[:-1]]).any(1)
    first = np.empty(len(order), np.int64)
    first[order] = order[is_new][np.cumsum(is_new) - 1]
    return first


# ------------------------------------------------------------------------------------- near hashes


def near_hashes(
    hashes: np.ndarray, radius: int, fine: np.ndarray | None = None, fine_radius: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """All pairs of hashes that differ in at most `radius` bits; none is missed.

    The 64 bits are cut into four bands. Were every band further apart than its share of the
    radius, the sum would exceed it: so one band is within its share (Norouzi et al. 2012,
    "Fast search in Hamming space with multi-index hashing", section 3). Hashes are looked up by
    band, with every pattern of so few changed bits, and the found ones compared in full. The time
    grows with N times the hashes in a bucket, not with N squared.

    Args:
        hashes: (N,) uint64. Give what is known to be equal once: copies make pairs by their square.
        radius: 0 to 63 bits.
        fine: (N, K) uint64, a longer hash of each; None: the same ones.
        fine_radius: bits in which those may differ as well.

    Returns:
        (M, 2) int64, rows (i, j) with i < j, sorted; and the distance of the fine hashes (M,).
    """
    if fine is None:
        fine, fine_radius = hashes[:, None], radius
    share, rest = divmod(radius, _BANDS)
    found = [np.empty(0, np.int64)]
    for number, band in enumerate(_bands(hashes)):
        changed = share if number <= rest else share - 1
        for one, other in _same_bucket(band, changed):
            near = np.bitwise_count(hashes[one] ^ hashes[other]) <= radius
            one, other = one[near], other[near]
            near = _distance(fine, one, other) <= fine_radius
            low, high = np.minimum(one[near], other[near]), np.maximum(one[near], other[near])
            found.append(low * len(hashes) + high)
    pairs = _distinct(found)  # several bands find the same
    one, other = np.divmod(pairs, max(len(hashes), 1))
    return np.stack([one, other], 1), _distance(fine, one, other)


def nearest(pairs: np.ndarray, distance: np.ndarray, kinds: np.ndarray, most: int) -> np.ndarray:
    """Which pairs to keep so that no row has to be compared with a crowd: for each row, `most` of
    each kind of partner, the nearest.

    Args:
        pairs: (M, 2) rows.
        distance: (M,).
        kinds: (N,) small integers.
        most: at least 1.

    Returns:
        (M,) bool.
    """
    row, other = np.concatenate([pairs, pairs[:, ::-1]]).T  # both ways: (2 M,) each
    group = row * (int(kinds.max(initial=0)) + 1) + kinds[other]
    order = np.lexsort((other, np.tile(distance, 2), group))
    begins = np.flatnonzero(np.diff(group[order], prepend=-1))
    rank = np.arange(len(order)) - np.repeat(begins, np.diff(begins, append=len(order)))
    kept = np.zeros(len(order), bool)
    kept[order[rank < most]] = True
    return kept[: len(pairs)] | kept[len(pairs) :]


def _distinct(numbers: list[np.ndarray]) -> np.ndarray:
    """Each number once, sorted. np.unique hashes first, which takes ten times as long on these."""
    values = np.sort(np.concatenate(numbers))
    return values[np.diff(values, prepend=-1) != 0]


def _distance(hashes: np.ndarray, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Bits that differ: rows of (N, K) uint64 -> (M,)."""
    return np.bitwise_count(hashes[one] ^ hashes[other]).sum(1, dtype=np.int64)


def _bands(hashes: np.ndarray) -> np.ndarray:
    """(N,) uint64 -> (4, N) uint16. Each takes every fourth bit: neighbours are correlated."""
    bits = np.unpackbits(hashes.astype(">u8").view(np.uint8).reshape(-1, HASH_BITS // 8), axis=1)
    spread = bits.reshape(-1, _BAND_BITS, _BANDS).transpose(2, 0, 1)  # (4, N, 16)
    packed = np.ascontiguousarray(np.packbits(spread, axis=2))
    return packed.view(">u2")[..., 0].astype(np.uint16)


def _same_bucket(band: np.ndarray, changed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs of rows whose bands differ in at most `changed` bits, each pair once, in chunks."""
    order = np.argsort(band, kind="stable")
    keys = band[order]
    starts = np.searchsorted(keys, np.arange((1 << _BAND_BITS) + 1))
    places = np.arange(len(keys))
    for mask in _masks(changed):
        partner = (keys ^ np.uint16(mask)).astype(np.int64)
        low, high = starts[partner], starts[partner + 1]
        low = np.maximum(low, places + 1)  # the other half of the pairs is the same ones
        counts = np.maximum(high - low, 0)
        ends = np.cumsum(counts)
        begin = 0
        while begin < len(keys) and ends[-1]:
            done = ends[begin - 1] if begin else 0
            stop = max(begin + 1, int(np.searchsorted(ends, done + _CHUNK, "right")))
            size = counts[begin:stop]
            if total := size.sum():
                before = np.repeat(np.cumsum(size) - size, size)
                other = np.repeat(low[begin:stop], size) + np.arange(total) - before
                yield order[np.repeat(places[begin:stop], size)], order[other]
            begin = stop


def _masks(changed: int) -> Iterator[int]:
    """Every 16-bit number with at most so many bits set."""
    for number in range(changed + 1):
        for places in combinations(range(_BAND_BITS), number):
            yield sum(1 << place for place in places)


# --------------------------------------------------------------------------------------- word sets


def alike_sets(
    signatures: np.ndarray, members: np.ndarray, starts: np.ndarray, threshold: float
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of sets whose Jaccard index (common members / all members) reaches the threshold.

    Candidates agree in four neighbouring values of their MinHash signature (locality-sensitive
    hashing; Leskovec, Rajaraman, Ullman, "Mining of Massive Datasets", section 3.4); the index
    itself is then counted. With 64 values, a pair at 0.8 is overlooked once in 4,000, at 0.9 once
    in millions. Where more than SET_NEIGHBOURS sets share four values, some are, too.

    Args:
        signatures: (N, P) unsigned, P a multiple of 4.
        members: (S,) uint64, all sets one after the other, sorted and distinct in each.
        starts: (N + 1,) where each set starts in `members`, and the end. An empty set is like none.
        threshold: 0 to 1.

    Returns:
        (M, 2) int64, rows (i, j) with i < j, sorted; and their index (M,) float64.
    """
    found = [np.empty(0, np.int64)]
    sizes = np.diff(starts)
    for column in range(0, signatures.shape[1], _SIGNATURE_ROWS):
        first = first_of_equals(signatures[:, column : column + _SIGNATURE_ROWS])
        order = np.argsort(first, kind="stable")
        for step in range(1, min(SET_NEIGHBOURS, len(order) - 1) + 1):
            same = first[order[:-step]] == first[order[step:]]
            if not same.any():
                break
            one, other = order[:-step][same], order[step:][same]  # one < other: a stable order
            shorter, longer = np.sort(np.stack([sizes[one], sizes[other]]), 0)
            may = (shorter > 0) & (shorter >= threshold * longer)  # no index is higher than this
            found.append(one[may] * len(first) + other[may])
        found = [_distinct(found)]
    pairs = np.stack(np.divmod(found[0], max(len(signatures), 1)), 1)
    columns = signatures.shape[1]
    # the share of equal values estimates the index; four deviations below is not worth counting
    lowest = threshold - 4 * (threshold * (1 - threshold) / columns) ** 0.5
    alike, indices = [np.empty((0, 2), np.int64)], [np.empty(0)]
    for begin in range(0, len(pairs), _CHUNK // 64):
        piece = pairs[begin : begin + _CHUNK // 64]
        equal = (signatures[piece[:, 0]] == signatures[piece[:, 1]]).mean(1)
        piece = piece[equal >= lowest]
        index = _jaccard(piece, members, starts)
        alike.append(piece[index >= threshold])
        indices.append(index[index >= threshold])
    return np.concatenate(alike), np.concatenate(indices)


def _jaccard(pairs: np.ndarray, members: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """The index of each pair of sets: (M, 2) -> (M,)."""
    sizes = np.diff(starts)[pairs]  # (M, 2)
    flat = sizes.ravel()
    inside = np.arange(flat.sum()) - np.repeat(np.cumsum(flat) - flat, flat)
    values = members[np.repeat(starts[pairs.ravel()], flat) + inside]
    owner = np.repeat(np.arange(len(pairs)), sizes.sum(1))
    order = np.lexsort((values, owner))
    values, owner = values[order], owner[order]
    twice = (values[1:] == values[:-1]) & (owner[1:] == owner[:-1])  # in both sets of the pair
    common = np.bincount(owner[1:][twice], minlength=len(pairs))
    return common / (sizes.sum(1) - common)


# ------------------------------------------------------------------------------------------- links


class Link(NamedTuple):
    """A row, and the one most like it in a split; in its own split, of those before it."""

    row: int
    other: int
    degree: int
    """0: equal in the fine sense, 1: in the coarse sense, 2: near."""
    likeness: float
    """1 for equal ones."""


def links(
    splits: Sequence[int] | np.ndarray,
    fine: np.ndarray,
    coarse: np.ndarray,
    near: np.ndarray,
    likeness: np.ndarray,
) -> list[Link]:
    """For each row and each split, the most alike row there, if there is one.

    At most one link per row and split, however many copies there are: the first of the best.

    Args:
        splits: (N,) which split a row belongs to.
        fine: (N,) `first_of_equals` by the strict measure (bytes of the file).
        coarse: (N,) `first_of_equals` by the wider one (pixels); equal in fine, equal in coarse.
        near: (M, 2) pairs of values of `coarse` that are alike.
        likeness: (M,) how much.
    """
    split = np.asarray(splits)
    neighbours: dict[int, list[tuple[float, int]]] = {}
    for (one, other), degree in zip(near.tolist(), likeness.tolist(), strict=True):
        neighbours.setdefault(one, []).append((-degree, other))
        neighbours.setdefault(other, []).append((-degree, one))
    for each in neighbours.values():
        each.sort()
    often = np.bincount(coarse, minlength=len(coarse))[coarse] > 1
    rows = np.flatnonzero(often | np.isin(coarse, near))
    first_fine: dict[tuple[int, int], int] = {}
    first_coarse: dict[tuple[int, int], int] = {}
    for row in rows.tolist():
        first_fine.setdefault((int(fine[row]), int(split[row])), row)
        first_coarse.setdefault((int(coarse[row]), int(split[row])), row)

    def best(row: int, where: int) -> Link | None:
        own, limit = int(coarse[row]), row if where == split[row] else len(split)
        equals = (first_fine.get((int(fine[row]), where)), first_coarse.get((own, where)))
        for degree, other in enumerate(equals):
            if other is not None and other < limit:
                return Link(row, other, degree, 1.0)
        for negative, group in neighbours.get(own, []):
            other = first_coarse.get((group, where))
            if other is not None and other < limit:
                return Link(row, other, 2, -negative)
        return None

    places = np.unique(split).tolist()
    found = (best(row, where) for row in rows.tolist() for where in places)
    return [link for link in found if link]
