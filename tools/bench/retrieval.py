"""Ranks counted in tiles, against the bare products and against open_clip.

    python tools/bench.py retrieval                       # every case
    python tools/bench.py retrieval --cases limit --sizes 10000

- limit: against the same tiles multiplied once and nothing else, by the same threads: what no way
  of ranking both directions can be faster than.
- dense: against `get_clip_metrics` of the open_clip installed, at the smallest size: the whole
  matrix, sorted. (It has no rule for ties.)
Features are random unit vectors, the texts a little turned towards their images: more scores lie
near the right one than with any trained model, so more of them must be settled in float64.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any

import torch
from side_by_side import Comparison, compare
from torch import Tensor

from medclip_oc.config.checks import Bound, Count, Settings
from medclip_oc.evaluation import ranks

_WIDTH = 512
CASES = ("limit", "dense")
Case = Annotated[str, Bound("limit or dense", CASES.__contains__)]


@dataclass
class Config(Settings):
    """Which cases, and how large."""

    cases: list[Case] = field(default_factory=lambda: list(CASES))
    """Which to run: limit, dense."""
    sizes: list[Count] = field(default_factory=lambda: [10_000, 40_000])
    """Pairs."""
    rounds: Count = 5
    """Paired runs that count."""
    threads: Count = 2
    """Threads of torch."""


def run(config: Config) -> Iterator[Comparison]:
    """The comparisons of the cases asked for."""
    torch.set_num_threads(config.threads)
    for size in sorted(config.sizes):
        images, texts = features(size)
        case = f"{size:,} pairs, {_WIDTH} wide, {config.threads} threads"
        for name, (peer, call) in PEERS.items():
            if name in config.cases and (name != "dense" or size == min(config.sizes)):
                yield compare(
                    "retrieval",
                    f"{name}: {case}",
                    partial(ranks.retrieval_ranks, images, texts),
                    partial(call, images, texts),
                    peer=peer,
                    rounds=config.rounds,
                )


def features(size: int) -> tuple[Tensor, Tensor]:
    """Unit vectors (size, _WIDTH) of images and texts."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(size, _WIDTH, generator=generator)
    texts = torch.randn(size, _WIDTH, generator=generator).add_(images, alpha=0.1)
    for rows in (images, texts):
        rows /= rows.norm(dim=1, keepdim=True)
    return images, texts


def multiply(images: Tensor, texts: Tensor) -> None:
    """The products of our tiles, by as many threads, and nothing else."""
    high, wide = ranks.CPU_TILE

    def part(first: int, last: int) -> None:
        scores = torch.empty(min(high, last - first), min(wide, len(texts)))
        for a, b in ranks.blocks(last - first, high):
            for c, d in ranks.blocks(len(texts), wide):
                rows = images[first + a : first + b]
                torch.mm(rows, texts[c:d].T, out=scores[: b - a, : d - c])

    ranks.in_threads(part, len(images))


def dense(images: Tensor, texts: Tensor) -> dict[str, float]:
    """What the open_clip installed does after an epoch."""
    from open_clip_train.train import get_clip_metrics

    scores: dict[str, float] = get_clip_metrics(images, texts, torch.tensor(100.0))
    return scores


PEERS: dict[str, tuple[str, Callable[[Tensor, Tensor], Any]]] = {
    "limit": ("the same tiles multiplied once", multiply),
    "dense": ("open_clip get_clip_metrics", dense),
}
