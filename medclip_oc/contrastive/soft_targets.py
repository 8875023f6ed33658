"""Which texts are right for which images, beyond each pair's own: soft targets, tile by tile.

Radiology repeats itself: "normal chest radiograph" stands under many images, and one image under
several captions; plain InfoNCE calls the others' wrong. Here a rule says how the right answer of an
image is spread over the texts:

    pairs      its own text alone
    captions   every text of a pair with the same caption or the same image, in equal parts (UniCL,
               Yang et al. 2022, equation 3, with these as the labels)
    concepts   the same, but for a share `strength` that is spread over all texts in proportion to
               their overlap: 1 for those above, else the Jaccard index of the UMLS concepts

and, with `smoothing`, a share of it evenly over all texts (Szegedy et al. 2016, section 7). Each is
symmetric in the two pairs, so the targets of a text over the images come from the same numbers.

With InfoNCE, `captions` and `pairs` are the same loss, gradient included, as long as equal captions
(or equal images) have equal features; dropout and augmentation set them apart. SigLIP answers each
pairing by itself: to the n copies of a caption `pairs` says yes once and no n - 1 times, `captions`
says yes once, in equal parts, and no to none; `strength` is what an overlap of 1 counts, as a share
of a copy.

G pairs over all ranks, B of one rank, K most concepts of a pair, r and c rows and columns of a
tile, V concepts that occur in several pairs.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rule:
    """How targets are made; see above."""

    kind: Literal["pairs", "captions", "concepts"] = "pairs"
    strength: float = 0.0  # share of the target that concepts spread; for SigLIP see above
    smoothing: float = 0.0  # share of the target that is spread evenly

    @property
    def plain(self) -> bool:
        """Whether each pair has its own partner alone."""
        return self.kind == "pairs" and not self.smoothing


@dataclass(frozen=True)
class Labels:
    """What is compared between pairs."""

    captions: Tensor  # (G,) int64, equal where the captions are
    images: Tensor  # (G,) int64, equal where the images are
    concepts: Tensor  # (G, K) int32, padded with 0

    @classmethod
    def of(cls, batch: Mapping[str, Tensor]) -> "Labels":
        """Of the pairs in a batch, see `data.Batch`."""
        return cls(batch["caption_hash"], batch["image_hash"], batch["concepts"])


class Targets:
    """How right each of G x G pairings is, given the labels of all G pairs; tile by tile, in
    `dtype`.
    """

    def __init__(self, rule: Rule, labels: Labels, dtype: torch.dtype) -> None:
        self.rule, self.pairs, self.dtype = rule, len(labels.captions), dtype
        if rule.kind == "pairs":  # nothing is shared
            numbers = torch.arange(self.pairs, device=labels.captions.device)
            labels = Labels(numbers, numbers, labels.concepts[:, :0])
        self._captions, captions = _ids(labels.captions)
        self._images, images = _ids(labels.images)
        _, both = _ids(self._captions.long() * self.pairs + self._images)
        self._same = (captions + images - both).to(dtype)  # (G,) pairs that are the same, itself in
        concepts = labels.concepts.sort(1).values  # (G, K)
        again = torch.zeros_like(concepts, dtype=torch.bool)
        again[:, 1:] = concepts[:, 1:] == concepts[:, :-1]
        concepts = concepts.masked_fill(again, 0)  # 0 in place of a pair's repeats
        self._sizes = (concepts != 0).sum(1).to(dtype)  # (G,)
        values, ids, counts = concepts.unique(return_inverse=True, return_counts=True)
        shared = (counts > 1) & (values != 0)
        self._vocabulary = int(shared.sum())  # V
        # 0 to V - 1 for concepts of several pairs, V for all else
        numbers = torch.where(shared, shared.cumsum(0) - 1, self._vocabulary)
        self._concepts = numbers[ids]  # (G, K)
        self._strength = rule.strength if rule.kind == "concepts" and self._vocabulary else 0.0
        self._sums: Tensor | None = None  # (G,) of a row, or column, of overlaps

    @property
    def trivial(self) -> bool:
        """Whether they say no more than `pairs` does."""
        alone = bool((self._same == 1).all())
        return alone and not self._strength and not self.rule.smoothing

    def complete(self, own: slice, gather: Callable[[Tensor], Tensor], tile: int) -> None:
        """Add up the overlaps of each pair with all, which `tile` divides by, if concepts have a
        part. Every rank computes its `own` rows once, in matrices of at most `tile` rows and
        columns; `gather` makes (B,) of one rank to (G,) of all, in rank order.
        """
        if not self._strength:
            return
        sums = self._sizes.new_zeros(self.pairs)  # (G,), of which this rank fills its own
        for row in slices(own.start, own.stop, tile):
            for column in slices(0, self.pairs, tile):
                sums[row] += self._overlap(row, column).sum(1)
        self._sums = gather(sums[own])

    def tile(self, row: slice, column: slice) -> Tensor:
        """Targets of the rows over all columns, plus those of the columns over all rows: (r, c).

        Each of the two alone adds up to 1 in a row, or in a column.
        """
        same = self._are_same(row, column)
        smooth, strength = self.rule.smoothing, self._strength
        shares = same * (_inverse(self._same, row, column) * (1 - strength))
        if strength:
            assert self._sums is not None, "complete() comes first"
            overlap = self._overlap(row, column, same)
            shares += overlap * (_inverse(self._sums, row, column) * strength)
        return shares.mul_(1 - smooth).add_(2 * smooth / self.pairs) if smooth else shares

    def answers(self, row: slice, column: slice) -> tuple[Tensor, Tensor]:
        """For SigLIP: how much a yes and how much a no to each pairing counts: (r, c) each.

        Copies are no no, and share a yes: 1 / n for each of n; where the row has another number of
        them than the column, the mean of both. An overlap of concepts is as much of such a yes, and
        as much less of a no, as `strength` says.
        """
        alike = self._are_same(row, column)
        if self._strength:
            overlap = self._overlap(row, column, alike)
            alike = torch.maximum(alike, overlap.mul_(self._strength))
        return alike * _inverse(self._same, row, column).div_(2), 1 - alike

    def _are_same(self, row: slice, column: slice) -> Tensor:
        """1 where caption or image is the same: (r, c)."""
        captions = self._captions[row, None] == self._captions[column]
        return (captions | (self._images[row, None] == self._images[column])).to(self.dtype)

    def _overlap(self, row: slice, column: slice, same: Tensor | None = None) -> Tensor:
        """1 where caption or image is the same, else the concepts' Jaccard index: (r, c)."""
        same = self._are_same(row, column) if same is None else same  # (r, c)
        common = self._has(row) @ self._has(column).T  # (r, c)
        either = self._sizes[row, None] + self._sizes[column] - common
        return torch.maximum(same, common.div_(either.clamp_(min=1)))

    def _has(self, rows: slice) -> Tensor:
        """Which of the shared concepts each pair has: (r, V), of 0 and 1."""
        ids = self._concepts[rows]  # (r, K)
        has = self._sizes.new_zeros(len(ids), self._vocabulary + 1)  # the last: padding, unshared
        return has.scatter_(1, ids, 1)[:, :-1]


def _ids(values: Tensor) -> tuple[Tensor, Tensor]:
    """Small numbers for large ones (G,), and how often each occurs (G,)."""
    _, ids, counts = values.unique(return_inverse=True, return_counts=True)
    return ids.int(), counts[ids]


def slices(first: int, last: int, size: int) -> list[slice]:
    """First to last in pieces of `size`; the last piece may be smaller."""
    return [slice(start, min(start + size, last)) for start in range(first, last, size)]


def _inverse(sums: Tensor, row: slice, column: slice) -> Tensor:
    """1 / the row's sum + 1 / the column's: (r, c)."""
    inverse = 1 / sums
    return inverse[row, None] + inverse[column]
