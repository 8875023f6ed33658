"""Pairs as batches: which pair comes when, and how its bytes become tensors.

The order is a pure function of (seed, epoch, index). The epochs' permutations form one stream of
pairs; global batch k is its pairs [kG, (k+1)G), and rank r takes the r-th of the batch's equal
parts. So the sequence of global batches is the same at any world size and worker count, and the
place in it is one integer: the number of pairs consumed.

G pairs over all ranks, B pairs per rank, L context length, K most concepts of a pair in the batch.
"""

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from . import images
from .errors import InputError
from .shards import ShardSet

Place = tuple[int, int]
"""(epoch, index of the pair in its shard set)."""
Transform = Callable[[Image.Image, np.random.Generator], Tensor]
"""Image (mode L or RGB) and a source of randomness -> (3, H, W) uint8."""
Batch = dict[str, Tensor]
"""images uint8 (B, 3, H, W), tokens int64 (B, L), index int64 (B,), caption_hash and image_hash
int64 (B,), concepts int32 (B, K) padded with 0."""


def order(seed: int, epoch: int, size: int) -> np.ndarray:
    """Permutation of range(size) for one epoch: (size,) int64."""
    return np.random.default_rng([seed, epoch]).permutation(size)


class StepSampler(Sampler[list[Place]]):
    """Places of one rank's pairs, in loader batches that never span two optimizer steps."""

    def __init__(
        self,
        size: int,
        *,
        seed: int,
        global_batch_size: int,
        loader_batch_size: int,
        steps: int,
        rank: int,
        world_size: int,
    ) -> None:
        assert global_batch_size % world_size == 0
        self.size, self.seed, self.steps = size, seed, steps
        self.global_batch_size, self.loader_batch_size = global_batch_size, loader_batch_size
        self.rank, self.share = rank, global_batch_size // world_size

    def __len__(self) -> int:
        return self.steps * -(-self.share // self.loader_batch_size)

    def __iter__(self) -> Iterator[list[Place]]:
        current, permutation = -1, np.empty(0, dtype=np.int64)
        for step in range(self.steps):
            start = step * self.global_batch_size + self.rank * self.share
            places = []
            for position in range(start, start + self.share):
                epoch, offset = divmod(position, self.size)
                if epoch != current:
                    current, permutation = epoch, order(self.seed, epoch, self.size)
                places.append((epoch, int(permutation[offset])))
            for first in range(0, self.share, self.loader_batch_size):
                yield places[first : first + self.loader_batch_size]


class Pairs(Dataset[dict[str, Any]]):
    """Pairs of a shard set as tensors.

    Args:
        shards: where they lie.
        transform: image to pixels. Its generator depends on (seed, epoch, index) alone.
        tokenizer: M texts -> (M, L) int64.
        seed: of the transform's randomness.
    """

    def __init__(
        self,
        shards: ShardSet,
        transform: Transform,
        tokenizer: Callable[[list[str]], Tensor],
        *,
        seed: int = 0,
    ) -> None:
        self.shards, self.transform, self.tokenizer, self.seed = shards, transform, tokenizer, seed

    def __len__(self) -> int:
        return len(self.shards)

    def __getitem__(self, place: Place) -> dict[str, Any]:
        epoch, index = place
        try:
            sample = self.shards.read(index)
            image = images.decode(sample.image)
        # A worker's exception would reach the user as a traceback; the error travels as a value.
        except (InputError, OSError, ValueError) as error:
            return {"error": f"{self.shards.locate(index)}: {error}"}
        rng = np.random.default_rng([self.seed, epoch, index])
        return {
            "images": self.transform(image, rng),
            "tokens": self.tokenizer([sample.caption])[0],
            "index": index,
            "caption_hash": _number(hashlib.sha256(sample.caption.encode()).hexdigest()),
            "image_hash": _number(
                sample.facts.get("sha256") or hashlib.sha256(sample.image).hexdigest()
            ),
            "concepts": _concepts(sample.facts.get("concepts") or []),
        }


def collate(samples: list[dict[str, Any]]) -> Batch | str:
    """Stack samples into a batch; the message of the first bad one, if any."""
    errors = [sample["error"] for sample in samples if "error" in sample]
    if errors:
        return str(errors[0])
    most = max(len(sample["concepts"]) for sample in samples)
    concepts = torch.zeros(len(samples), most, dtype=torch.int32)
    for row, sample in enumerate(samples):
        found = sample["concepts"]
        concepts[row, : len(found)] = torch.tensor(found, dtype=torch.int32)
    stacked = {name: torch.stack([s[name] for s in samples]) for name in ("images", "tokens")}
    numbers = {
        name: torch.tensor([s[name] for s in samples], dtype=torch.int64)
        for name in ("index", "caption_hash", "image_hash")
    }
    return {**stacked, **numbers, "concepts": concepts}


def loader(
    pairs: Pairs, sampler: Sampler[list[Place]] | list[list[Place]], *, workers: int, pin: bool
) -> Iterator[Batch]:
    """Batches in the sampler's order, prepared by `workers` processes (0: by this one).

    Raises:
        InputError: a pair can't be read; names the shard and the key.
    """
    batches = DataLoader(
        pairs,
        batch_sampler=sampler,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=pin,
        # of its own: otherwise each pass would draw from the stream that dropout uses
        generator=torch.Generator(),
    )
    for batch in batches:
        if isinstance(batch, str):
            raise InputError(batch)
        yield batch


def step_batches(batches: Iterator[Batch], pairs_per_step: int) -> Iterator[Batch]:
    """Join loader batches into one batch of `pairs_per_step` pairs per optimizer step."""
    held: list[Batch] = []
    for batch in batches:
        held.append(batch)
        if sum(len(part["index"]) for part in held) == pairs_per_step:
            yield _join(held)
            held = []
    assert not held, "the sampler ends on a whole step"


def _join(parts: list[Batch]) -> Batch:
    if len(parts) == 1:
        return parts[0]
    most = max(part["concepts"].shape[1] for part in parts)
    concepts = [
        torch.nn.functional.pad(part["concepts"], (0, most - part["concepts"].shape[1]))
        for part in parts
    ]
    joined = {
        name: torch.cat([part[name] for part in parts]) for name in parts[0] if name != "concepts"
    }
    return joined | {"concepts": torch.cat(concepts)}


def _number(digest: str) -> int:
    """The first 64 bits of a hexadecimal digest, as a signed integer."""
    return int.from_bytes(bytes.fromhex(digest[:16]), signed=True)


def _concepts(cuis: list[str]) -> list[int]:
    """UMLS concept ids as numbers: C0040405 -> 40405. Ids of another form are left out."""
    return [int(cui[1:]) for cui in cuis if cui[:1] == "C" and cui[1:].isdigit()]
