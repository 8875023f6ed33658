"""The nearest candidates of each query. n queries, m targets, D embedding size, W listed targets.

As in `counting`, float32 products choose who comes into question and float64 decides, so that a
list hangs neither on the batch nor on the device. Scores within TIE of their neighbour in the list
are one group, whose members share its places; it is listed whole, even beyond the k-th place.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from . import ranks

_EXTRA = 22
"""Candidates looked at beyond the k-th."""
_SCORES = 2**23
"""Scores that stand in memory at once."""
_SHARES = 2**21
"""Numbers of a `share` at most: where everything ties, a list holds every target."""


@dataclass(frozen=True)
class Nearest:
    """Targets of u queries, best first; equal ones in the order of the targets.

    Attributes:
        queries: (u,) int64, which queries.
        index: (u, W) int64, row of the target.
        first: (u, W) int64, places before the target's group.
        last: (u, W) int64, places up to and with it.
    """

    queries: Tensor
    index: Tensor
    first: Tensor
    last: Tensor

    def share(self, k: int) -> Tensor:
        """How much of each of the first k places a target has: (u, W, k) float64.

        A group's members have equal shares of its places.
        """
        place = torch.arange(k, device=self.index.device)
        first, last = self.first.unsqueeze(2), self.last.unsqueeze(2)
        return ((place >= first) & (place < last)).double() / (last - first)


def nearest(queries: Tensor, targets: Tensor, k: int) -> Iterator[Nearest]:
    """The k nearest targets of each query, and whoever ties with the k-th.

    Args:
        queries: (n, D) float32, normalised.
        targets: (m, D) float32, normalised.
        k: at least 1; the number of targets where that is less.
    """
    k = min(k, len(targets))
    with ranks.full_precision():
        for a, b in ranks.blocks(len(queries), max(1, _SCORES // len(targets))):
            yield from _of_block(queries[a:b], targets, k, a)


def _of_block(queries: Tensor, targets: Tensor, k: int, start: int) -> Iterator[Nearest]:
    index = (queries @ targets.T).topk(min(k + _EXTRA, len(targets))).indices
    rows = torch.arange(len(queries), device=queries.device).unsqueeze(1).expand_as(index)
    links = torch.stack([rows, index], 2).reshape(-1, 2)
    scores = ranks.pair_scores(queries, targets, links).view_as(index)
    found = _grouped(index, scores, k)
    # a target that isn't listed could tie with the k-th group, if the list ends too near to it
    edge = scores.min(1).values + 2 * ranks.rounding(queries.shape[1]) + ranks.TIE
    end = found.last[:, k - 1 : k]  # the k-th group ends there
    inner = found.scores.gather(1, end - 1).squeeze(1)
    whole = (inner > edge) | (index.shape[1] == len(targets))
    for chosen in (whole.nonzero().squeeze(1), (~whole).nonzero().squeeze(1)):
        if not len(chosen):
            continue
        part = found.rows(chosen) if whole[chosen[0]] else _of_all(queries[chosen], targets, k)
        width = int(part.last[:, k - 1].max())
        for a, b in ranks.blocks(len(chosen), max(1, _SHARES // (width * k))):
            lists = (x[a:b, :width] for x in (part.index, part.first, part.last))
            yield Nearest(chosen[a:b] + start, *lists)


@dataclass(frozen=True)
class _Groups:
    index: Tensor
    scores: Tensor
    first: Tensor
    last: Tensor

    def rows(self, chosen: Tensor) -> "_Groups":
        return _Groups(*(x[chosen] for x in (self.index, self.scores, self.first, self.last)))


def _of_all(queries: Tensor, targets: Tensor, k: int) -> _Groups:
    """The same from every target in float64: for models that put nearly everything in one place."""
    parts = [queries.double() @ part.double().T for part in targets.split(4096)]
    scores = torch.cat(parts, 1)
    index = torch.arange(len(targets), device=targets.device).expand_as(scores)
    return _grouped(index, scores, k)


def _grouped(index: Tensor, scores: Tensor, k: int) -> _Groups:
    """Sort (u, W) lists and find the groups; those after the k-th place may be cut short."""
    index, order = index.sort(1)
    scores, order = scores.gather(1, order).sort(dim=1, descending=True, stable=True)
    index = index.gather(1, order)
    new = torch.ones_like(index, dtype=torch.bool)
    new[:, 1:] = scores.diff(dim=1) < -ranks.TIE
    place = torch.arange(index.shape[1], device=index.device).expand_as(index)
    first = torch.where(new, place, 0).cummax(1).values
    ends = torch.ones_like(new)
    ends[:, :-1] = new[:, 1:]
    last = torch.where(ends, place + 1, len(scores[0]) + 1).flip(1).cummin(1).values.flip(1)
    # within a group the order is that of the targets
    by_group = (first * (index.max() + 1) + index).argsort(1)
    return _Groups(index.gather(1, by_group), scores, first, last)
