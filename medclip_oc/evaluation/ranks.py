"""Which candidates beat the right one, counted tile by tile. n images, m texts, D embedding size.

One product per tile serves both directions, and no n x m matrix exists: memory is that of the
features and of two tiles.

The counts are exact, so that they hang neither on the tiling, nor on the device, nor on the number
of processes. A float32 product is off by some 1e-7; scores that are nearer than that to a limit
(a few in a million) are computed again in float64, where features of float32 have exact products.

Two scores tie when they differ by at most TIE, which is above the rounding of the features.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from . import fused

TIE = 1e-6
Tile = tuple[int, int]
Run = Callable[..., list[Any]]
CPU_TILE, CUDA_TILE = (2048, 2048), (4096, 8192)
_CPU_SLICE = 64
"""Rows of a tile that are compared at once: they stay in the cache."""
_ROUNDING = 2.0**-24
"""Times the root of D: more than a float32 product of unit vectors is off (half of it was seen)."""
_AT_ONCE = 2**16
"""Numbers a thread gathers where scores are computed in float64: they stay in its cache."""
_OPEN = 8192
"""How many scores may wait for float64."""
_CROWDED = 64
"""Where more than one score of so many needs float64, the whole tile gets it."""

_POOL: ContextVar[ThreadPoolExecutor | None] = ContextVar("pool", default=None)


def blocks(size: int, step: int) -> Iterator[tuple[int, int]]:
    """(start, stop) of successive blocks of range(size)."""
    return pairwise([*range(0, size, step), size]) if size else iter(())


def pair_scores(images: Tensor, texts: Tensor, links: Tensor) -> Tensor:
    """Score of each link.

    Args:
        images: (n, D) float32.
        texts: (m, D) float32.
        links: (E, 2) int64, row of the image and of the text.

    Returns:
        (E,) float64.
    """
    size = max(1, _AT_ONCE // images.shape[1])

    @torch.no_grad()  # each thread has its own mode
    def work(links: Tensor) -> Tensor:
        # sums of their own, between the products that come and go, would keep the heap from
        # shrinking
        scores = images.new_empty(len(links), dtype=torch.float64)
        for part, place in zip(links.split(size), scores.split(size), strict=True):
            products = images[part[:, 0]].double().mul_(texts[part[:, 1]])  # exact
            torch.sum(products, 1, out=place)
        return scores

    if images.is_cuda or len(links) <= size:
        return work(links)
    with threads(-(-len(links) // size)) as (parts, run):
        return torch.cat(run(work, links.tensor_split(parts)))


def best_scores(scores: Tensor, owners: Tensor, size: int) -> Tensor:
    """The best score of each owner: (size,) float64, minus infinity for who has none."""
    best = scores.new_full((size,), -torch.inf)
    return best.scatter_reduce_(0, owners, scores, "amax")


def tied_with_best(scores: Tensor, owners: Tensor, best: Tensor) -> Tensor:
    """How many of an owner's scores tie with its best: (size,) int64."""
    ties = (best[owners] - scores) <= TIE
    return torch.zeros_like(best, dtype=torch.int64).index_add_(0, owners, ties.long())


@torch.no_grad()
def count(
    images: Tensor,
    texts: Tensor,
    image_best: Tensor,
    text_best: Tensor,
    links: Tensor,
    tile: Tile | None = None,
) -> tuple[Tensor, Tensor]:
    """How many wrong texts beat each image's best right text, or tie with it; and the reverse.

    Args:
        images: (n, D) float32, normalised.
        texts: (m, D) float32, normalised.
        image_best: (n,) float64, score of the right text.
        text_best: (m,) float64, score of the right image.
        links: (E, 2) int64, row of an image and of a text that is right for it.
        tile: rows and columns of a block of scores. None: what suits the device.

    Returns:
        Of the images (2, n) and of the texts (2, m), int64: wrong candidates above, and tied ones.
    """
    tile = tile or (CUDA_TILE if images.is_cuda else CPU_TILE)
    if not len(images) or not len(texts):
        return _zeros(images), _zeros(texts)
    links = links[links[:, 0].argsort()]
    with full_precision():
        if images.is_cuda:
            return _count(images, texts, image_best, text_best, links, tile, fast=False)
        fast = fused.ready(len(images) * len(texts))
        # One thread per part, each with tiles of its own: threads that share a tile wait for each
        # other at every operation.
        with threads(len(images)) as (parts, run):
            ends = [len(images) * number // parts for number in range(1, parts + 1)]

            def work(a: int, b: int) -> tuple[Tensor, Tensor]:
                own = _of_rows(links, a, b)
                return _count(images[a:b], texts, image_best[a:b], text_best, own, tile, fast)

            counts = run(work, [0, *ends[:-1]], ends)
    of_images, of_texts = zip(*counts, strict=True)
    return torch.cat(of_images, 1), torch.stack(of_texts).sum(0)


def _zeros(rows: Tensor) -> Tensor:
    return torch.zeros(2, len(rows), dtype=torch.int64, device=rows.device)


def _of_rows(links: Tensor, a: int, b: int) -> Tensor:
    """The links of images a to b, counted from a; `links` are sorted by image."""
    x, y = torch.searchsorted(links[:, 0].contiguous(), links.new_tensor([a, b])).tolist()
    return links[x:y] - links.new_tensor([a, 0])


@torch.no_grad()
def _count(
    images: Tensor,
    texts: Tensor,
    image_best: Tensor,
    text_best: Tensor,
    links: Tensor,
    tile: Tile,
    fast: bool,
) -> tuple[Tensor, Tensor]:
    """`count` in one thread; `fast`: by `fused`."""
    high, wide = min(tile[0], len(images)), min(tile[1], len(texts))
    step = high if images.is_cuda else min(high, _CPU_SLICE)
    scores = images.new_empty(high * wide)
    flags = None if fast else images.new_empty(2 * step * wide)
    rows, columns = _Side(images, texts, image_best, 1), _Side(images, texts, text_best, 0)
    for a, b in blocks(len(images), high):
        right = _of_rows(links, a, b)
        rows.go_to(a, b)
        for c, d in blocks(len(texts), wide):
            columns.go_to(c, d)
            block = scores[: (b - a) * (d - c)].view(b - a, d - c)
            torch.mm(images[a:b], texts[c:d].T, out=block)
            here = right[(right[:, 1] >= c) & (right[:, 1] < d)]
            block[here[:, 0], here[:, 1] - c] = -torch.inf  # a right candidate beats nobody
            if flags is None:
                sums = fused.survey(block, rows.limits, columns.limits, step)
            else:
                sums = _survey(block, rows.limits, columns.limits, step, flags)
            rows.conclude(block, (a, c), step, sums[0])
            columns.conclude(block, (a, c), step, sums[1])
    rows.settle()
    columns.settle()
    return rows.counts, columns.counts


def _survey(
    scores: Tensor, row_limits: Tensor, column_limits: Tensor, step: int, flags: Tensor
) -> tuple[Tensor, Tensor]:
    """`fused.survey` by torch, on any device; `flags` is scratch of 2 * step rows.

    0 and 1 as float32: torch compares and adds those several times faster than bool.
    """
    rows, columns = [], []
    width = scores.shape[1]
    for part, limits in zip(scores.split(step), row_limits.split(step, 1), strict=True):
        scratch = flags[: 2 * len(part) * width].view(2, len(part), width)
        rows.append(torch.gt(part, limits.unsqueeze(2), out=scratch).sum(2))
        columns.append(torch.gt(part, column_limits.unsqueeze(1), out=scratch).sum(1))
    return torch.cat(rows, 1), torch.stack(columns)


class _Side:
    """The counts of one direction, whose lines are the rows (axis 1 is summed over) or columns (0).

    Args:
        images: (n, D).
        texts: (m, D).
        best: (n,) or (m,) float64, the score to beat in each line.
        axis: 1 or 0.
    """

    def __init__(self, images: Tensor, texts: Tensor, best: Tensor, axis: int) -> None:
        self.images, self.texts, self.best, self.axis = images, texts, best, axis
        margin = TIE + rounding(images.shape[1])
        # above the first float32 is sure that a score beats the best, up to the second that not
        self._limits = torch.stack([(best + margin).float(), (best - margin).float()])  # (2, lines)
        self.counts = _zeros(best)
        self._open: list[Tensor] = []  # (k, 2) links each: scores that float64 must settle
        self._waiting = 0

    def go_to(self, first: int, stop: int) -> None:
        """Turn to the lines from `first` to `stop`, whose `limits` are (2, stop - first)."""
        self.lines = slice(first, stop)
        self.limits = self._limits[:, first:stop].contiguous()

    def conclude(self, scores: Tensor, corner: tuple[int, int], step: int, sums: Tensor) -> None:
        """Add up the counts of a tile, and note the scores that are left open.

        Args:
            scores: (r, c) of the tile.
            corner: its first row and column.
            step: rows of a slice.
            sums: scores above either limit, (2, r) of the rows or (slices, 2, c) of the columns.
        """
        if self.axis == 1:
            sure, possible = sums
            near = (sure != possible).nonzero()  # (k, 1) rows
        else:
            sure = sums[:, 0].sum(0)
            near = (sums[:, 0] != sums[:, 1]).nonzero()  # (k, 2) slices and columns
        if len(near):
            links = self._links(scores, near, step)
            if len(links) * _CROWDED > scores.numel():
                self._count_exactly(scores, corner)
                return
            self._open.append(links.add_(links.new_tensor(corner)))
            self._waiting += len(links)
        self.counts[0, self.lines] += sure.long()
        if self._waiting > _OPEN:
            self.settle()

    def _links(self, scores: Tensor, near: Tensor, step: int) -> Tensor:
        """Where, in the lines or parts of lines named, the scores lie that are not sure: (k, 2)."""
        lines = near[:, -1]
        high, low = self.limits[:, lines].unsqueeze(2)
        if self.axis == 1:
            found = scores[lines]
            inside = ((found > low) & (found <= high)).nonzero()
            return torch.stack([lines[inside[:, 0]], inside[:, 1]], 1)
        rows = near[:, :1] * step + torch.arange(step, device=near.device)  # (k, step)
        found = scores[rows.clamp(max=len(scores) - 1), lines.unsqueeze(1)]
        inside = ((found > low) & (found <= high) & (rows < len(scores))).nonzero()
        return torch.stack([rows[inside[:, 0], inside[:, 1]], lines[inside[:, 0]]], 1)

    def settle(self) -> None:
        """Count the scores left open."""
        if not self._open:
            return
        links = torch.cat(self._open)
        lines = links[:, 1 - self.axis]
        gaps = pair_scores(self.images, self.texts, links) - self.best[lines]
        self.counts[0].index_add_(0, lines, (gaps > TIE).long())
        self.counts[1].index_add_(0, lines, (gaps.abs() <= TIE).long())
        self._open, self._waiting = [], 0

    def _count_exactly(self, scores: Tensor, corner: tuple[int, int]) -> None:
        """Count a whole tile in float64."""
        images = self.images[corner[0] :][: len(scores)].double()
        texts = self.texts[corner[1] :][: scores.shape[1]].double()
        gaps = images @ texts.T - self.best[self.lines].unsqueeze(self.axis)
        gaps[scores == -torch.inf] = -torch.inf
        self.counts[0, self.lines] += (gaps > TIE).sum(self.axis)
        self.counts[1, self.lines] += (gaps.abs() <= TIE).sum(self.axis)


def rounding(width: int) -> float:
    """More than the score of two unit vectors of this width is off in float32."""
    return _ROUNDING * float(width) ** 0.5


@contextmanager
def full_precision() -> Iterator[None]:
    """No TF32 or bf16 inside float32 products, whatever the caller switched on."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def threads(most: int = 2**30) -> Iterator[tuple[int, Run]]:
    """As many threads as torch uses here, at most `most`, in each of which torch uses one.

    Inside another such block they are that one's, as threads are costly to start.

    Yields:
        How many parts the work is to be cut into; and what runs a function on each part, as `map`
        does, and ends when all parts have, whatever became of them.
    """
    number = torch.get_num_threads()
    outer = _POOL.get()
    if number == 1:  # one of the threads, or nothing to share
        yield 1, _here
    elif outer is not None:
        yield min(number, max(1, most)), partial(_each, outer)
    else:
        try:
            with ThreadPoolExecutor(number, "ranks", torch.set_num_threads, (1,)) as pool:
                token = _POOL.set(pool)
                try:
                    yield min(number, max(1, most)), partial(_each, pool)
                finally:
                    _POOL.reset(token)
        finally:
            torch.set_num_threads(number)  # what threads started later begin with


def _here(work: Callable[..., Any], *arguments: Iterable[Any]) -> list[Any]:
    return list(map(work, *arguments))


def _each(
    pool: ThreadPoolExecutor, work: Callable[..., Any], *arguments: Iterable[Any]
) -> list[Any]:
    parts = [pool.submit(work, *given) for given in zip(*arguments, strict=True)]
    wait(parts)
    return [part.result() for part in parts]
