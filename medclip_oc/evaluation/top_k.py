"""The nearest candidates of each query. n queries, m targets, D embedding size, W listed targets.

Scores are float64, so that a list depends neither on the batch nor on the device. Scores within
TIE of their neighbour in the list are one group, whose members share its places; it is listed
whole, even beyond the k-th place.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from . import ranks

_EXTRA = 22  # candidates looked at beyond the k-th; where more tie with it, all are
_SCORES = 2**22  # scores that stand in memory at once
_SHARES = 2**21  # numbers of a `share` at most: where everything ties, a list holds every target


class Nearest(NamedTuple):
    """Targets of u queries, best first; equal ones in the order of the targets."""

    queries: Tensor  # (u,) int64, which queries
    listed: Tensor  # (u, W) int64, row of the target
    first: Tensor  # (u, W) int64, places before the target's group
    last: Tensor  # (u, W) int64, places up to and with it

    def share(self, k: int) -> Tensor:
        """How much of each of the first k places a target has: (u, W, k) float64.

        A group's members have equal shares of its places.
        """
        place = torch.arange(k, device=self.listed.device)
        first, last = self.first[:, :, None], self.last[:, :, None]
        return ((place >= first) & (place < last)).double() / (last - first)


def nearest(queries: Tensor, targets: Tensor, k: int) -> Iterator[Nearest]:
    """The k nearest targets (m, D) of each query (n, D), or all where there are fewer, and whoever
    ties with the k-th; float32 and normalised both.
    """
    k = min(k, len(targets))
    targets = targets.double()
    for a, b in ranks.blocks(len(queries), max(1, _SCORES // len(targets))):
        scores = queries[a:b].double() @ targets.T  # (b - a, m)
        width = min(k + _EXTRA, len(targets))
        listed, first, last = _grouped(scores, width)
        if width < len(targets) and (last[:, k - 1] == width).any():
            listed, first, last = _grouped(scores, len(targets))
        width = int(last[:, k - 1].max())  # the longest k-th group ends there
        numbers = torch.arange(a, b, device=queries.device)
        for x, y in ranks.blocks(b - a, max(1, _SHARES // (width * k))):
            yield Nearest(numbers[x:y], *(part[x:y, :width] for part in (listed, first, last)))


def _grouped(scores: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """The best `width` targets, and where their groups begin and end; the last may be cut short."""
    scores, listed = scores.topk(width)  # (b, W), best first
    new = torch.ones_like(listed, dtype=torch.bool)  # whether a group begins here
    new[:, 1:] = scores.diff(dim=1) < -ranks.TIE
    place = torch.arange(width, device=listed.device).expand_as(listed)
    first = torch.where(new, place, 0).cummax(1).values
    ends = new.roll(-1, 1)  # the last one ends a group, as the first one begins one
    last = torch.where(ends, place + 1, width).flip(1).cummin(1).values.flip(1)
    # within a group the order is that of the targets
    by_group = (first * (listed.max() + 1) + listed).argsort(1)
    return listed.gather(1, by_group), first, last
