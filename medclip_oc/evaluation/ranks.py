"""Rank of the right candidate of each image and text, counted tile by tile.

N images and M texts over all processes, n and m of this one, D embedding size; r rows and c columns
of a tile; E links between an image and a text that is right for it.

One product per tile serves both directions, and no N x M matrix exists: memory is that of the
features and of two tiles. The counts are exact, so that they depend neither on the tiling, nor on
the device, nor on the number of processes: a float32 product is off by some 1e-7, and scores that
are nearer than that to a limit (a few in a million) are computed again in float64, where products
of float32 features are exact.

Two scores tie when they differ by at most TIE, which is above the rounding of the features. A rank
is that of the best right candidate among the wrong ones. Ties count by a stated rule: with t wrong
candidates tied with the best right one, and k right ones among the tied, the first right one comes
after t / (k + 1) wrong ones on average ("expected", the default), after none ("optimistic") or
after all ("pessimistic").
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import accumulate, pairwise
from typing import Literal, TypeVar

import torch
from torch import Tensor

from ..runtime import distributed
from ..runtime.devices import check_finite

Ties = Literal["expected", "optimistic", "pessimistic"]
Counts = TypeVar("Counts")
TIE = 1e-6
CPU_TILE, CUDA_TILE = (2048, 2048), (4096, 8192)
_CPU_SLICE = 64  # rows of a tile that are compared at once: they stay in the cache
# times the root of D: more than a float32 product of unit vectors is off (half of it was seen)
_ROUNDING = 2.0**-24
_GATHERED = 2**16  # numbers gathered at once for scores in float64: they stay in the cache
_CROWDED = 1024  # where more than one score of so many needs float64, the whole tile gets it
_THREADED = 2**22  # scores from which on starting threads pays


def retrieval_ranks(
    images: Tensor, texts: Tensor, links: Tensor | None = None, *, ties: Ties = "expected"
) -> tuple[Tensor, Tensor]:
    """Rank of each image among the texts (N,) and of each text among the images (M,), float64, 1 is
    best, on all processes. WorkError: features that are not finite.

    Each process holds its images (n, D) and texts (m, D), normalised, and meets the texts of every
    process in turn. `links` (E, 2) int64 are the row of an image of this process, and the number
    among all texts of one that is right for it; everyone needs one. None: one process, row i
    belongs to row i.
    """
    images, texts = images.float(), texts.float()
    if links is None:
        links = torch.arange(len(images), device=images.device)[:, None].expand(-1, 2)  # (n, 2)
    sizes = distributed.all_gather(torch.tensor([len(texts)], device=images.device)).tolist()
    spans = list(pairwise(accumulate(sizes, initial=0)))
    total = sum(sizes)

    scores = torch.empty(len(links), dtype=torch.float64, device=images.device)  # (E,)
    for (c, d), block in zip(spans, distributed.blocks(texts), strict=True):
        inside = (links[:, 1] >= c) & (links[:, 1] < d)
        scores[inside] = pair_scores(images, block, links[inside] - links.new_tensor([0, c]))
    if not scores.isfinite().all():  # everyone has a link: the features are finite if these are
        check_finite(images, "image")
        check_finite(texts, "text")
    image_best = best_scores(scores, links[:, 0], len(images))  # (n,)
    text_best = distributed.all_reduce_max_(best_scores(scores, links[:, 1], total))  # (M,)
    image_copies = _tied_with_best(scores, links[:, 0], image_best)
    text_copies = distributed.all_reduce_sum_(_tied_with_best(scores, links[:, 1], text_best))

    image_counts = links.new_zeros(2, len(images))
    text_counts = links.new_zeros(2, total)
    for (c, d), block in zip(spans, distributed.blocks(texts), strict=True):
        own = _inside(links, 1, c, d)
        of_images, of_texts = count(images, block, image_best, text_best[c:d], own)
        image_counts += of_images
        text_counts[:, c:d] += of_texts
    distributed.all_reduce_sum_(text_counts)
    image_ranks = rank(image_counts[0], image_counts[1], image_copies, ties)
    text_ranks = rank(text_counts[0], text_counts[1], text_copies, ties)
    return distributed.all_gather_ragged(image_ranks), text_ranks


def rank(above: Tensor, tied: Tensor, copies: Tensor, ties: Ties = "expected") -> Tensor:
    """Ranks (n,) float64 from counts: wrong ones above, wrong and right ones tied with the best."""
    if ties == "optimistic":
        return 1.0 + above.double()
    before = tied.double() if ties == "pessimistic" else tied.double() / (copies + 1)
    return 1.0 + above.double() + before


def pair_scores(images: Tensor, texts: Tensor, links: Tensor) -> Tensor:
    """Score of each link (E, 2), row of an image and of a text: (E,) float64. The images (n, D) and
    texts (m, D) are float32.
    """
    size = max(1, _GATHERED // images.shape[1])

    @torch.no_grad()  # each thread has a mode of its own
    def part(first: int, last: int) -> Tensor:
        parts = links[first:last].split(size)
        # products (size, D) that float64 holds exactly
        return torch.cat([images[p[:, 0]].double().mul_(texts[p[:, 1]]).sum(1) for p in parts])

    if images.is_cuda or len(links) <= size:
        return part(0, len(links))
    return torch.cat(in_threads(part, len(links)))


def best_scores(scores: Tensor, owners: Tensor, size: int) -> Tensor:
    """The best score of each owner: (size,) float64, minus infinity for who has none."""
    best = scores.new_full((size,), -torch.inf)
    return best.scatter_reduce_(0, owners, scores, "amax")


def _tied_with_best(scores: Tensor, owners: Tensor, best: Tensor) -> Tensor:
    """How many of an owner's scores tie with its best: (size,) int64."""
    ties = (best[owners] - scores) <= TIE
    return torch.zeros_like(best, dtype=torch.int64).index_add_(0, owners, ties.long())


def count(
    images: Tensor, texts: Tensor, image_best: Tensor, text_best: Tensor, links: Tensor
) -> tuple[Tensor, Tensor]:
    """How many wrong texts beat each image's best right text, or tie with it; and the reverse: of
    the images (2, n) and of the texts (2, m), int64, wrong candidates above, and tied ones.

    Images (n, D) and texts (m, D) are float32, normalised; the scores of their best right ones (n,)
    and (m,) float64; links (E, 2) int64 are rows of an image and of a text that is right for it.
    """

    def part(a: int, b: int) -> tuple[Tensor, Tensor]:
        own = _inside(links, 0, a, b)
        return _count(images[a:b], texts, image_best[a:b], text_best, own)

    with full_precision():
        if images.is_cuda or len(images) * len(texts) < _THREADED:
            return part(0, len(images))
        of_images, of_texts = zip(*in_threads(part, len(images)), strict=True)
    return torch.cat(of_images, 1), torch.stack(of_texts).sum(0)


def _inside(links: Tensor, side: int, first: int, stop: int) -> Tensor:
    """Links whose image (side 0) or text (1) lies in [first, stop), counted from first."""
    own = links[(links[:, side] >= first) & (links[:, side] < stop)]
    return own - own.new_tensor([first, 0] if side == 0 else [0, first])


@torch.no_grad()  # each thread has a mode of its own
def _count(
    images: Tensor, texts: Tensor, image_best: Tensor, text_best: Tensor, links: Tensor
) -> tuple[Tensor, Tensor]:
    """`count` in one thread."""
    tile = CUDA_TILE if images.is_cuda else CPU_TILE
    high, wide = min(tile[0], len(images)), min(tile[1], len(texts))
    step = high if images.is_cuda else min(high, _CPU_SLICE)
    buffer = images.new_empty(high * wide)
    flags = images.new_empty(2 * step * wide)
    rows, columns = _Direction(images, texts, image_best), _Direction(texts, images, text_best)
    for a, b in blocks(len(images), high):
        right_in_rows = _inside(links, 0, a, b)
        for c, d in blocks(len(texts), wide):
            scores = buffer[: (b - a) * (d - c)].view(b - a, d - c)  # (r, c)
            torch.mm(images[a:b], texts[c:d].T, out=scores)
            right = _inside(right_in_rows, 1, c, d)
            scores[right[:, 0], right[:, 1]] = -torch.inf  # a right candidate beats nobody
            limits = rows.limits[:, a:b], columns.limits[:, c:d]
            of_rows, of_columns = _above(scores, *limits, flags, step)
            rows.add(scores, (a, c), of_rows)
            columns.add(scores.T, (c, a), of_columns)
    return rows.counts, columns.counts


def _above(
    scores: Tensor, row_limits: Tensor, column_limits: Tensor, flags: Tensor, step: int
) -> tuple[Tensor, Tensor]:
    """How many scores (r, c) are above each row's two limits: (2, r), and each column's: (2, c).

    `flags` is scratch of 2 * step rows. They are 0 and 1 as float32: torch compares and adds those
    several times faster than bool.
    """
    in_rows, in_columns = [], torch.zeros_like(column_limits)
    for part, limits in zip(scores.split(step), row_limits.split(step, 1), strict=True):
        scratch = flags[: 2 * part.numel()].view(2, *part.shape)  # (2, step, c)
        in_rows.append(torch.gt(part, limits[:, :, None], out=scratch).sum(2))
        in_columns += torch.gt(part, column_limits[:, None], out=scratch).sum(1)
    return torch.cat(in_rows, 1), in_columns


class _Direction:
    """Counts of one direction: candidates (k, D) that beat, or tie with, the best right one of each
    query (q, D), whose score is `best` (q,) float64.
    """

    def __init__(self, queries: Tensor, candidates: Tensor, best: Tensor) -> None:
        self.queries, self.candidates, self.best = queries, candidates, best
        margin = TIE + _ROUNDING * queries.shape[1] ** 0.5
        # above the first float32 is sure that a score beats the best, up to the second that not
        self.limits = torch.stack([(best + margin).float(), (best - margin).float()])  # (2, q)
        self.counts = torch.zeros(2, len(best), dtype=torch.int64, device=best.device)

    def add(self, scores: Tensor, corner: tuple[int, int], above: Tensor) -> None:
        """Add a tile of scores (r, c), a row for each query, whose `corner` is its first query and
        candidate; (2, r) are `above` either limit. What lies between is settled in float64.
        """
        (first, other), (sure, possible) = corner, above
        counts = self.counts[:, first : first + len(scores)]  # (2, r)
        near = (sure != possible).nonzero()[:, 0]  # queries with scores between their limits
        high, low = self.limits[:, first + near, None]  # (len(near), 1) each
        chosen = scores[near]
        row, column = ((chosen > low) & (chosen <= high)).nonzero().unbind(1)  # (u,) each
        if len(row) * _CROWDED > scores.numel():
            candidates = self.candidates[other : other + scores.shape[1]].double()
            exact = self.queries[first : first + len(scores)].double() @ candidates.T  # (r, c)
            gaps = exact - self.best[first : first + len(scores), None]
            gaps[scores == -torch.inf] = -torch.inf
            counts += torch.stack([(gaps > TIE).sum(1), (gaps.abs() <= TIE).sum(1)])
            return
        counts[0] += sure.long()
        links = torch.stack([first + near[row], other + column], 1)  # (u, 2)
        gaps = pair_scores(self.queries, self.candidates, links) - self.best[links[:, 0]]
        counts[0].index_add_(0, near[row], (gaps > TIE).long())
        counts[1].index_add_(0, near[row], (gaps.abs() <= TIE).long())


def blocks(size: int, step: int) -> Iterator[tuple[int, int]]:
    """(start, stop) of successive blocks of range(size)."""
    return pairwise([*range(0, size, step), size]) if size else iter(())


@contextmanager
def full_precision() -> Iterator[None]:
    """No TF32 or bf16 inside float32 products, whatever the caller switched on."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def in_threads(function: Callable[[int, int], Counts], size: int) -> list[Counts]:
    """`function(start, stop)` of equal parts of range(size), one per thread of torch's.

    Threads that share a tile would wait for each other at every operation, and torch's own would
    spin between them while these work.
    """
    number = torch.get_num_threads()
    ends = [size * part // number for part in range(number + 1)]
    if number == 1:
        return [function(0, size)]
    try:
        with ThreadPoolExecutor(number, "ranks", torch.set_num_threads, (1,)) as pool:
            return list(pool.map(function, ends[:-1], ends[1:]))
    finally:
        torch.set_num_threads(number)  # what threads started later begin with
