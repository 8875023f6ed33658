"""Shards behind URLs and `pipe:` commands: read front to back, in an order that can be repeated.

Such a shard can't be read by position. So S shards are dealt to a few lanes, in a new order each
time through the list, and every global batch takes an equal part from each lane:

    shard number n of the endless sequence goes to lane n mod lanes
    within a shard, blocks of `window` pairs are shuffled in memory
    global batch k takes its pairs [l G / lanes, (l + 1) G / lanes) from lane l

That depends on the seed, the list of shards, the number of lanes and the window, not on ranks and
workers. A rank reads the lanes that its part of the batch touches. To go on in the middle, shards
that are known to be over (their number of pairs is remembered when one has been read to its end)
are passed over, and of each lane at most one shard is read again.

G pairs over all ranks.
"""

import hashlib
import json
import queue
import re
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ..errors import InputError, WorkError
from .index_arrays import user_cache
from .remote import read_tar, short
from .sampler import permuted
from .shards import SETS, Sample

T = TypeVar("T")

_URL = re.compile(r"(?:pipe:|[a-z][a-z0-9+.-]*://)")
_INDEX_STEP = 1 << 32  # between the numbers of the first pairs of two shards
_AHEAD = 4  # loader batches that are read before they are asked for
_SHARDS, _BLOCKS = 1, 2  # which permutation


@dataclass(frozen=True, slots=True)
class Streamed:
    """A pair that came out of a stream: it can't be read again by its position."""

    epoch: int
    index: int
    """Number of its shard in the list times 2 ** 32, plus its place there."""
    sample: Sample
    where: str
    """For messages: "train-000003.tar: KEY"."""


def is_stream(where: str | Sequence[str]) -> bool:
    """Whether the shards are behind URLs or commands.

    Raises:
        InputError: some are and some are not.
    """
    names = [where] if isinstance(where, str) else list(where)
    found = [bool(_URL.match(name)) for part in names for name in part.split(SETS)]
    if any(found) and not all(found):
        raise InputError(f"{where}: streamed and local shards can't be mixed")
    return any(found)


class ShardStream:
    """Pairs of shards that are read front to back.

    Args:
        where: URLs and `pipe:` commands, perhaps with brace patterns, joined by `::` or in a list.
        seed: of the order.
        lanes: shards read at once; fewer where there are fewer shards.
        window: pairs shuffled at once within a shard.
        cache: folder that keeps the shards; None: they are streamed each time.

    Raises:
        InputError: a pattern that can't be expanded.
    """

    def __init__(
        self,
        where: str | Sequence[str],
        *,
        seed: int,
        lanes: int,
        window: int,
        cache: Path | None = None,
    ) -> None:
        import braceexpand

        names = [where] if isinstance(where, str) else list(where)
        patterns = [pattern for name in names for pattern in name.split(SETS)]
        try:
            self.urls = [url for p in patterns for url in braceexpand.braceexpand(p)]
        except ValueError as error:
            raise InputError(f"{where}: {error}") from None
        self.seed, self.window, self.cache = seed, window, cache
        self.lanes = min(lanes, len(self.urls))
        self._counts = _Counts(self.urls)
        self._incomplete = list[str]()

    def incomplete(self) -> list[str]:
        """Entries met since the last call that are no pair, a line each."""
        # one by one: the thread that reads may add another meanwhile
        return [self._incomplete.pop(0) for _ in range(len(self._incomplete))]

    def lane(self, number: int, lanes: int, start: int = 0) -> Iterator[Streamed]:
        """The endless stream of one of so many lanes, without its first `start` pairs.

        Raises:
            WorkError: a shard can't be read, or not one of a whole round holds a pair.
        """
        place, empty = number, 0
        while True:
            epoch, slot = divmod(place, len(self.urls))
            order = permuted(self.seed, epoch, len(self.urls), np.array([slot]), stream=_SHARDS)
            shard = int(order[0])
            known = self._counts.get(shard)
            found = 0
            if known is not None and known <= start:
                found = known
                start -= known
            else:
                for pair in self._shard(shard, epoch):
                    found += 1
                    if start:
                        start -= 1
                        continue
                    yield pair
                self._counts.put(shard, found)
            empty = 0 if found else empty + 1
            if empty >= len(self.urls):
                raise WorkError(f"{self.urls[shard]}: no readable pair, nor in any other shard")
            place += lanes

    def _shard(self, shard: int, epoch: int) -> Iterator[Streamed]:
        """The pairs of a shard, block by block, each block in an order of its own."""
        samples = enumerate(read_tar(self.urls[shard], self.cache, self._incomplete))
        stream = (_BLOCKS << 40) + shard
        for block in iter(lambda: list(islice(samples, self.window)), []):
            key = epoch * _INDEX_STEP + block[0][0]
            for at in permuted(self.seed, key, len(block), np.arange(len(block)), stream=stream):
                row, sample = block[at]
                where = f"{short(self.urls[shard])}: {sample.key}"
                yield Streamed(epoch, shard * _INDEX_STEP + row, sample, where)


class StreamSampler:
    """One rank's pairs, in loader batches that never span two optimizer steps.

    Args:
        stream: where they come from.
        global_batch_size: G; a multiple of `world_size`.
        loader_batch_size: most pairs of a loader batch.
        steps: how many global batches.
        rank: of this process.
        world_size: number of processes.
        start: pairs that are already done, a multiple of G.

    Raises:
        InputError: `start` is no multiple of G.
    """

    def __init__(
        self,
        stream: ShardStream,
        *,
        global_batch_size: int,
        loader_batch_size: int,
        steps: int,
        rank: int,
        world_size: int,
        start: int = 0,
    ) -> None:
        assert global_batch_size % world_size == 0
        if start % global_batch_size:
            raise InputError(
                f"train.global_batch_size: {global_batch_size}, but {start} pairs of a stream are "
                "done; a stream goes on only with the batch size it began with"
            )
        self.stream, self.steps = stream, steps
        self.first_step = start // global_batch_size
        self.global_batch_size, self.loader_batch_size = global_batch_size, loader_batch_size
        self.rank, self.share = rank, global_batch_size // world_size

    def __len__(self) -> int:
        return self.steps * -(-self.share // self.loader_batch_size)

    def __iter__(self) -> Iterator[list[Streamed]]:
        # Reading goes on while the model works: by the time a batch is asked for, it is there.
        return ahead(self._batches, _AHEAD)

    def _batches(self) -> Iterator[list[Streamed]]:
        size = self.global_batch_size
        lanes = min(self.stream.lanes, size)  # or a lane would have no part in a batch
        bounds = [lane * size // lanes for lane in range(lanes + 1)]
        begin, end = self.rank * self.share, (self.rank + 1) * self.share
        own = [lane for lane in range(lanes) if bounds[lane] < end and begin < bounds[lane + 1]]
        sources = {
            lane: self.stream.lane(lane, lanes, self.first_step * (bounds[lane + 1] - bounds[lane]))
            for lane in own
        }
        for _ in range(self.steps):
            pairs = list[Streamed]()
            for lane in own:
                # all of the lane's part, so that it stands where it stands on every other rank
                part = list(islice(sources[lane], bounds[lane + 1] - bounds[lane]))
                pairs += part[max(0, begin - bounds[lane]) : end - bounds[lane]]
            for first in range(0, self.share, self.loader_batch_size):
                yield pairs[first : first + self.loader_batch_size]


def ahead(source: Callable[[], Iterator[T]], depth: int) -> Iterator[T]:
    """Items of `source()`, fetched by a thread, at most `depth` of them beforehand."""
    items: queue.Queue[tuple[str, Any]] = queue.Queue(depth)
    stop = threading.Event()

    def put(kind: str, value: Any) -> None:
        while not stop.is_set():
            try:
                items.put((kind, value), timeout=0.1)
                return
            except queue.Full:
                continue

    def work() -> None:
        try:
            for item in source():
                put("item", item)
                if stop.is_set():
                    return
            put("end", None)
        except BaseException as error:
            put("error", error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while True:
            kind, value = items.get()
            if kind == "error":
                raise value
            if kind == "end":
                return
            yield value
    finally:
        stop.set()
        thread.join(timeout=5)


class _Counts:
    """Numbers of pairs of shards that were read to their end, remembered between runs."""

    def __init__(self, urls: Sequence[str]) -> None:
        key = hashlib.sha256("\n".join(urls).encode()).hexdigest()[:16]
        self._folder = user_cache() / f"stream-{key}"
        self._known = dict[int, int]()

    def get(self, shard: int) -> int | None:
        if shard not in self._known:
            try:
                self._known[shard] = int(json.loads((self._folder / str(shard)).read_bytes()))
            except (OSError, ValueError, TypeError):
                return None
        return self._known[shard]

    def put(self, shard: int, pairs: int) -> None:
        if self._known.get(shard) == pairs:
            return
        self._known[shard] = pairs
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile("w", dir=self._folder, delete=False) as file:
                file.write(str(pairs))
            Path(file.name).replace(self._folder / str(shard))
        except OSError:  # then a resumed run reads more again
            pass
