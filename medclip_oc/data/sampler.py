"""Which pair comes when: a pure function of (seed, epoch, position), computed where it is needed.

An epoch's order is a keyed permutation evaluated element by element, so that the middle of an epoch
of ten million pairs costs no more than its beginning, and no table is held. It depends on no
library's random stream, so another version of numpy gives the same order.

N pairs in a set.
"""

from collections.abc import Iterator, Sequence

import numpy as np

Place = tuple[int, int]  # (pass, index of the pair in its shard set)
Numbers = int | np.ndarray

_ROUNDS = 8
_LEAST_BITS = 6  # below that, a Feistel network knows few permutations
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def permuted(
    seed: int, epoch: Numbers, size: Numbers, offsets: np.ndarray, *, stream: Numbers = 0
) -> np.ndarray:
    """Elements of the permutation of range(size) that belongs to (seed, epoch, stream).

    An alternating Feistel network over the next power of two, walked until the result lies in the
    range (Black and Rogaway 2002, "Ciphers with arbitrary finite domains").

    `offsets` are places in it, 0..N-1, where `size` is N, at least 1. `epoch`, `size` and `stream`
    (which tells apart the permutations that one run needs) are one for all offsets, or one for
    each. Returns int64 in 0..N-1, in the shape of `offsets`.
    """
    shape = np.shape(offsets)
    values = np.array(offsets, dtype=np.uint64).ravel()
    start = np.full(values.shape, seed, dtype=np.uint64)
    streams, epochs = (np.asarray(numbers).astype(np.uint64) for numbers in (stream, epoch))
    keys = _mix(_mix(_mix(start) + streams) + epochs)
    sizes = np.broadcast_to(size, values.shape).astype(np.uint64)
    bits = np.frexp(sizes - np.uint64(1))[1].clip(_LEAST_BITS).astype(np.uint64)  # of N - 1
    outside = np.arange(len(values))
    while len(outside):
        values[outside] = _feistel(values[outside], keys[outside], bits[outside])
        outside = outside[values[outside] >= sizes[outside]]
    return values.astype(np.int64).reshape(shape)


def shuffled(seed: int, epoch: int, size: int, stream: int) -> np.ndarray:
    """A permutation of range(size) by the order of hashes; quicker than `permuted` for a few."""
    key = _mix(_mix(np.array([seed], np.uint64)) + np.uint64(stream)) + np.uint64(epoch)
    return np.argsort(_mix(_mix(key) + np.arange(size, dtype=np.uint64)))


def _feistel(values: np.ndarray, keys: np.ndarray, bits: np.ndarray) -> np.ndarray:
    """A permutation of range(2 ** bits), another one for each key: uint64 in, uint64 out."""
    low = bits // 2
    low_mask, high_mask = (1 << low) - 1, (1 << (bits - low)) - 1
    left, right = values >> low, values & low_mask
    for number in range(_ROUNDS):
        keys = keys + _GOLDEN
        if number % 2:
            left = left ^ (_mix(right + keys) & high_mask)
        else:
            right = right ^ (_mix(left + keys) & low_mask)
    return left << low | right


def _mix(values: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele et al. 2014): every bit depends on every bit."""
    values = values + _GOLDEN
    values = (values ^ values >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ values >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return values ^ values >> np.uint64(31)


class Order:
    """The stream of pairs that a run sees: position -> (pass, index).

    Without weights the epochs' permutations of all pairs follow one another. With weights every
    epoch takes from each set its exact share of `pairs_per_epoch`, mixed; a set's pairs come in
    permutations of their own, each pair once before any comes again.

    `sizes` are the pairs in each set; positions 0..N-1 number those of all sets, in their order.
    `weights`, each above 0: how often each set is drawn from, relative to the others.
    `pairs_per_epoch`: positions that make an epoch; None: N. `members`, (N,): the indices of the
    sets' pairs, set by set; None: 0..N-1.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        *,
        seed: int,
        weights: Sequence[float] | None = None,
        pairs_per_epoch: int | None = None,
        members: np.ndarray | None = None,
    ) -> None:
        self.seed, self.sizes, self.members = seed, np.array(sizes, dtype=np.int64), members
        self.starts = np.cumsum([0, *sizes])  # (sets + 1,)
        self.pairs_per_epoch = pairs_per_epoch or int(self.starts[-1])
        self.shares_of_sets = None if weights is None else _shares(weights, self.pairs_per_epoch)

    def places(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pass and index of the pairs at these positions of the stream.

        The pass counts how often the pair's set was gone through before; without weights it is the
        epoch (where pairs_per_epoch isn't given). (n,) int64, not negative -> (n,) int64 each.
        """
        if self.shares_of_sets is None:
            size = int(self.starts[-1])
            passes, offsets = np.divmod(positions, size)
            return passes, permuted(self.seed, passes, size, offsets)
        # weighted: position -> slot of the epoch -> set -> how many of the set came before
        epochs, offsets = np.divmod(positions, self.pairs_per_epoch)
        slots = permuted(self.seed, epochs, self.pairs_per_epoch, offsets)
        bounds = np.cumsum(self.shares_of_sets)
        sets = np.searchsorted(bounds, slots, side="right")
        drawn = epochs * self.shares_of_sets[sets] + slots - (bounds - self.shares_of_sets)[sets]
        passes, offsets = np.divmod(drawn, self.sizes[sets])
        order = permuted(self.seed, passes, self.sizes[sets], offsets, stream=sets + 1)
        indices = self.starts[sets] + order
        return passes, indices if self.members is None else self.members[indices]

    def shares(self, start: int, steps: int, size: int, own: range) -> Iterator[list[Place]]:
        """One rank's part of each of `steps` global batches of `size` pairs, from the position
        `start` on; `own` are the places within a global batch that are this rank's.
        """
        for begin in range(start, start + steps * size, size):
            passes, indices = self.places(np.arange(begin + own.start, begin + own.stop))
            yield list(zip(passes.tolist(), indices.tolist(), strict=True))


def _shares(weights: Sequence[float], total: int) -> np.ndarray:
    """Whole numbers in the ratio of the weights that add up to `total`: (sets,) int64."""
    exact = np.array(weights, dtype=np.float64) / sum(weights) * total
    shares = np.floor(exact).astype(np.int64)
    largest = np.argsort(shares - exact, kind="stable")  # those that lost most by rounding
    shares[largest[: total - int(shares.sum())]] += 1
    return shares
