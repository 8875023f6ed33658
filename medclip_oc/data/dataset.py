"""Pairs as batches: which pair comes when, and how its bytes become tensors.

The order is a pure function of (seed, epoch, index), see order.py. Global batch k of a run is the
pairs [kG, (k+1)G) of one stream, and rank r takes the r-th of the batch's equal parts. So the
sequence of global batches is the same at any world size and worker count, and the place in it is
one integer: the number of pairs consumed.

G pairs over all ranks, B pairs per rank, L context length, K most concepts of a pair in the batch.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from ..config.schema import Decode, LongCaptions
from ..errors import BadImage, InputError, WorkError
from ..imaging.jpeg import Picture
from ..runtime import shutdown
from .captions import Captions, Tokenizer
from .sampler import Order, permuted
from .shards import Sample, ShardSet
from .stream import Streamed

Place = tuple[int, int]
"""(pass, index of the pair in its shard set)."""
Transform = Callable[[Picture, np.random.Generator], Tensor]
"""Picture and a source of randomness -> (3, H, W) uint8."""
Batch = dict[str, Tensor]
"""images uint8 (B, 3, H, W), tokens int64 (B, L), index int64 (B,), caption_hash and image_hash
int64 (B,), concepts int32 (B, K) padded with 0."""

_SHA256 = re.compile("[0-9a-f]{64}")
_CUI = re.compile("C[0-9]{1,9}")
_REPLACEMENTS = 1 << 32  # from here on, the numbers of the permutations that replace bad pairs
_TRIES = 20
"""Unreadable pairs in a row, at which nobody looks for another one any more."""


class Loaded(NamedTuple):
    """A batch, and what happened on the way."""

    batch: Batch
    bad: list[str]
    """Pairs that couldn't be read and were replaced: where, and why."""
    long_captions: int
    """Captions longer than the context."""


class StepSampler(Sampler[list[Place]]):
    """Places of one rank's pairs, in loader batches that never span two optimizer steps.

    Args:
        order: position -> (pass, index).
        global_batch_size: G; a multiple of `world_size`.
        loader_batch_size: most pairs of a loader batch.
        steps: how many global batches.
        rank: of this process.
        world_size: number of processes.
        start: pairs of the stream that are already done. Nothing of them is read.
    """

    def __init__(
        self,
        order: Order,
        *,
        global_batch_size: int,
        loader_batch_size: int,
        steps: int,
        rank: int,
        world_size: int,
        start: int = 0,
    ) -> None:
        assert global_batch_size % world_size == 0
        self.order, self.steps, self.start = order, steps, start
        self.global_batch_size, self.loader_batch_size = global_batch_size, loader_batch_size
        self.rank, self.share = rank, global_batch_size // world_size

    def __len__(self) -> int:
        return self.steps * -(-self.share // self.loader_batch_size)

    def __iter__(self) -> Iterator[list[Place]]:
        for step in range(self.steps):
            begin = self.start + step * self.global_batch_size + self.rank * self.share
            for first in range(begin, begin + self.share, self.loader_batch_size):
                end = min(first + self.loader_batch_size, begin + self.share)
                passes, indices = self.order.places(np.arange(first, end))
                yield list(zip(passes.tolist(), indices.tolist(), strict=True))


class Pairs(Dataset[dict[str, Any]]):
    """Pairs as tensors.

    Args:
        shards: where they lie; None where every pair comes out of a stream.
        transform: picture to pixels. Its generator depends on (seed, pass, index) alone.
        tokenizer: M texts -> (M, L) int64.
        seed: of the transform's randomness.
        decode: "fast": JPEGs no finer than the transform needs. "exact": at full size.
        long_captions: what becomes of them, see captions.py.
        replace: whether an unreadable pair is replaced by another, which (seed, pass, index)
            decides, or else is an error.
    """

    def __init__(
        self,
        shards: ShardSet | None,
        transform: Transform,
        tokenizer: Tokenizer,
        *,
        seed: int = 0,
        decode: Decode = "exact",
        long_captions: LongCaptions = "truncate",
        replace: bool = False,
    ) -> None:
        self._shards, self.transform, self.seed = shards, transform, seed
        self.captions = Captions(tokenizer, long_captions)
        self.exact, self.replace = decode == "exact", replace

    @property
    def shards(self) -> ShardSet:
        """Where the pairs lie."""
        assert self._shards is not None, "a stream has no positions"
        return self._shards

    def __len__(self) -> int:
        return len(self.shards)

    def __getitem__(self, item: Place | Streamed) -> dict[str, Any]:
        """The tensors of a pair, `bad` and `long`; or `error` alone.

        A worker's exception would reach the user as a traceback; the error travels as a value.
        """
        try:
            if isinstance(item, Streamed):
                return self._streamed(item)
            return self._placed(*item)
        except (InputError, WorkError) as error:
            return {"error": error}
        except OSError as error:
            return {"error": WorkError(f"{error.filename or 'shards'}: {error.strerror}")}

    def _placed(self, epoch: int, index: int) -> dict[str, Any]:
        bad = list[str]()
        wanted = index
        while True:
            try:
                sample = self.shards.read(index)
                return {**self._tensors(sample, epoch, index), "bad": bad}
            except BadImage as error:
                bad.append(f"{self.shards.locate(index)}: {error}")
            except InputError as error:  # the caption or the facts; says where
                bad.append(str(error))
            if not self.replace:
                raise InputError(bad[0])
            if len(bad) == _TRIES:
                raise WorkError(f"{_TRIES} pairs in a row can't be read; the last: {bad[-1]}")
            place, stream = np.array([wanted]), _REPLACEMENTS + len(bad)
            index = int(permuted(self.seed, epoch, len(self), place, stream=stream)[0])

    def _streamed(self, item: Streamed) -> dict[str, Any]:
        try:
            return {**self._tensors(item.sample, item.epoch, item.index), "bad": []}
        except BadImage as error:
            return {"bad": [f"{item.where}: {error}"]}

    def _tensors(self, sample: Sample, epoch: int, index: int) -> dict[str, Any]:
        place = [self.seed, epoch, index]
        picture = Picture(sample.image, exact=self.exact)
        pixels = self.transform(picture, np.random.default_rng(place))
        tokens, long = self.captions.tokens(sample.caption, [*place, 1])
        return {
            "images": pixels,
            "tokens": tokens,
            "index": index,
            "caption_hash": _number(hashlib.sha256(sample.caption.encode()).hexdigest()),
            "image_hash": _number(_image_digest(sample)),
            "concepts": _concepts(sample.facts.get("concepts")),
            "long": long,
        }


def collate(samples: list[dict[str, Any]]) -> Loaded | InputError | WorkError:
    """Stack samples into a batch; the first error, if any.

    A sample of a stream that couldn't be read is replaced by the next one of the batch.
    """
    for sample in samples:
        if "error" in sample:
            error: InputError | WorkError = sample["error"]
            return error
    bad = [line for sample in samples for line in sample["bad"]]
    sound = [number for number, sample in enumerate(samples) if "images" in sample]
    if not sound:
        return WorkError(f"no pair of a whole batch can be read; the last: {bad[-1]}")
    chosen = [next((n for n in sound if n >= at), sound[0]) for at in range(len(samples))]
    samples = [samples[number] for number in chosen]
    concepts = torch.zeros(len(samples), max(len(s["concepts"]) for s in samples)).int()
    for row, sample in enumerate(samples):
        found = sample["concepts"]
        concepts[row, : len(found)] = torch.tensor(found, dtype=torch.int32)
    stacked = {name: torch.stack([s[name] for s in samples]) for name in ("images", "tokens")}
    numbers = {
        name: torch.tensor([s[name] for s in samples], dtype=torch.int64)
        for name in ("index", "caption_hash", "image_hash")
    }
    batch = {**stacked, **numbers, "concepts": concepts}
    return Loaded(batch, bad, sum(sample["long"] for sample in samples))


def load_batches(
    pairs: Pairs,
    sampler: Iterable[list[Place]] | Iterable[list[Streamed]],
    *,
    workers: int,
    pin: bool,
) -> Iterator[Loaded]:
    """Batches in the sampler's order, prepared by `workers` processes (0: by this one).

    Raises:
        InputError: a pair can't be read; names the shard and the key.
        ShardChanged: a shard went away or changed; names it.
        WorkError: a worker died, or nothing can be read.
    """
    batches: DataLoader[Any] = DataLoader(
        pairs,
        batch_sampler=sampler,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=pin,
        # of its own: otherwise each pass would draw from the stream that dropout uses
        generator=torch.Generator(),
        worker_init_fn=shutdown.shield,
    )
    try:
        for loaded in batches:
            if isinstance(loaded, Exception):
                raise loaded
            yield loaded
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        reason = str(error).splitlines()[0]
        raise WorkError(
            f"a loader process died; out of memory? Try fewer data.workers ({reason})"
        ) from None


def step_batches(loads: Iterator[Loaded], pairs_per_step: int) -> Iterator[Loaded]:
    """Join loader batches into one of `pairs_per_step` pairs per optimizer step."""
    held: list[Loaded] = []
    for loaded in loads:
        held.append(loaded)
        if sum(len(part.batch["index"]) for part in held) == pairs_per_step:
            yield _join(held)
            held = []
    assert not held, "the sampler ends on a whole step"


def _join(parts: list[Loaded]) -> Loaded:
    if len(parts) == 1:
        return parts[0]
    batches = [part.batch for part in parts]
    most = max(batch["concepts"].shape[1] for batch in batches)
    concepts = [
        torch.nn.functional.pad(batch["concepts"], (0, most - batch["concepts"].shape[1]))
        for batch in batches
    ]
    names = batches[0].keys() - {"concepts"}
    joined = {name: torch.cat([batch[name] for batch in batches]) for name in names}
    bad = [line for part in parts for line in part.bad]
    long = sum(part.long_captions for part in parts)
    return Loaded(joined | {"concepts": torch.cat(concepts)}, bad, long)


def _number(digest: str) -> int:
    """The first 64 bits of a hexadecimal digest, as a signed integer."""
    return int.from_bytes(bytes.fromhex(digest[:16]), signed=True)


def _image_digest(sample: Sample) -> str:
    """SHA-256 of the source's image where it is known, else of the image as it is stored."""
    known = sample.facts.get("sha256")
    if isinstance(known, str) and _SHA256.fullmatch(known):
        return known
    return hashlib.sha256(sample.image).hexdigest()


def _concepts(cuis: object) -> list[int]:
    """UMLS concept ids as numbers: C0040405 -> 40405. Whatever has another form is left out."""
    found = cuis if isinstance(cuis, list) else []
    return [int(cui[1:]) for cui in found if isinstance(cui, str) and _CUI.fullmatch(cui)]
