"""Contrastive losses as pure functions of features.

`clip_loss` and `siglip_loss` are the definitions, on the whole G x G matrix: for checks and small
batches. `contrast` computes the same loss and its gradients tile by tile, so that no G x G matrix
exists: memory O(G D + tile^2), one product of the features for both directions, float32 whatever
autocast does around it. It takes the rows of one rank at a time; what ranks must add up on the way
goes through the function `combine`, so nothing here knows of other processes.

Work, in products of (G, D) by (D, G): InfoNCE 4 (logits twice, one gradient for each side), SigLIP
3. Plain autograd takes 3 with the matrix kept, open_clip's ClipLoss 6.

B pairs per rank, G pairs over all ranks, D embedding size, r and c rows and columns of a tile.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .soft_targets import Targets, slices

LossName = Literal["clip", "siglip"]


def clip_loss(
    image_features: Tensor, text_features: Tensor, scale: Tensor, targets: Tensor | None = None
) -> Tensor:
    """Symmetric InfoNCE over G pairs (CLIP, Radford et al. 2021, figure 3): (), the mean of the
    image-to-text and text-to-image cross-entropy, in nats; ln(G) of features that say nothing.

    Args:
        image_features: (G, D), normalised.
        text_features: (G, D), normalised; row i belongs to image i.
        scale: (), the inverse temperature that multiplies the cosines.
        targets: (G, G), what is right in place of each pair's own partner alone: the targets of
            each row, which add up to 1, plus those of each column, which do as well.
    """
    logits = scale * image_features @ text_features.T  # (G, G)
    if targets is not None:
        sums = logits.logsumexp(0).sum() + logits.logsumexp(1).sum()
        return (sums - (targets * logits).sum()) / (2 * len(logits))
    own = torch.arange(len(logits), device=logits.device)  # (G,)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def siglip_loss(
    image_features: Tensor,
    text_features: Tensor,
    scale: Tensor,
    bias: Tensor,
    answers: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Sigmoid loss over G pairs (SigLIP, Zhai et al. 2023, equation 1): each of the G x G pairings
    is a yes-or-no question of its own; (), the sum over all pairings divided by G, in nats.

    Args:
        image_features: (G, D), normalised.
        text_features: (G, D), normalised; row i belongs to image i.
        scale: (), the inverse temperature that multiplies the cosines.
        bias: (), added to every logit; about -10 at the start, as most pairings are wrong ones.
        answers: (G, G) each, how much a yes and how much a no to each pairing counts, in place of
            a whole yes to own pairs and a whole no to others.
    """
    logits = scale * image_features @ text_features.T + bias  # (G, G)
    if answers is None:
        return (F.softplus(logits).sum() - logits.diagonal().sum()) / len(logits)
    yes, no = answers
    return (yes * F.softplus(-logits) + no * F.softplus(logits)).sum() / len(logits)


@dataclass(frozen=True)
class Block:
    """The rows of the G x G logits that one rank computes."""

    images: Tensor  # (B, D), normalised
    texts: Tensor  # (G, D), normalised, of all ranks
    scale: Tensor  # (), multiplies the cosines
    bias: Tensor | None = None  # (), added to the logits (SigLIP)
    first: int = 0  # number, among all G, of the pair in the first row
    targets: Targets | None = None  # completed; None: each pair's own partner alone is right

    @property
    def own(self) -> slice:
        """The columns of the rows' own partners."""
        return slice(self.first, self.first + len(self.images))


class Gradients(NamedTuple):
    """Of the loss over all G pairs. What a block gives is its share; shares add up over ranks."""

    images: Tensor | None  # (B, D), complete: its rows meet all columns here. None: not wanted
    texts: Tensor | None  # (G, D), the block's share. None: not wanted
    scale: Tensor  # (), the block's share
    bias: Tensor | None  # (), the block's share; None where there is no bias


@torch.no_grad()
def contrast(
    name: LossName,
    block: Block,
    *,
    wanted: tuple[bool, bool] = (True, True),
    combine: Callable[[Tensor], Tensor] = lambda columns: columns,
    tile: int | None = None,
) -> tuple[Tensor, Gradients]:
    """A block's share of the loss, (), float64, and of its gradients, without a G x G matrix.

    Args:
        name: "clip" (see `clip_loss`) or "siglip" (see `siglip_loss`).
        block: float32 or float64 features.
        wanted: whether the gradients of the images and of the texts are asked for; a frozen
            tower's are not, and save a product.
        combine: a block's log-sum-exp per column (G,) -> that of all blocks together (G,); InfoNCE
            calls it once, SigLIP never.
        tile: side of the largest matrix that exists at a time; None: by device.
    """
    side = tile or tile_side(block.images.device)
    with torch.autocast(block.images.device.type, enabled=False):
        logsums = None
        if name == "clip":
            rows, columns = _clip_statistics(block, side)  # (B,), (G,)
            logsums = rows, combine(columns)
        return _tile_by_tile(block, wanted, side, logsums)


def tile_side(device: torch.device) -> int:
    """Side of the largest matrix that `contrast` makes there: it pays for starting the work."""
    return 4096 if device.type == "cuda" else 2048


def _clip_statistics(block: Block, tile: int) -> tuple[Tensor, Tensor]:
    """Log-sum-exp of the block's logits: per row (B,), and per column over these rows (G,)."""
    # -inf is the log of an empty sum
    rows = block.images.new_full((len(block.images),), -torch.inf)  # (B,)
    columns = block.images.new_full((len(block.texts),), -torch.inf)  # (G,)
    for row, column, logits, spare in _tiles(block, block.scale * block.images, tile):
        for sums, place, way in ((rows, row, 1), (columns, column, 0)):
            most = logits.amax(way, keepdim=True)  # (r, 1) or (1, c)
            powers = torch.sub(logits, most, out=spare).exp_()  # (r, c)
            here = powers.sum(way).log_().add_(most.squeeze(way))  # (r,) or (c,)
            sums[place] = torch.logaddexp(sums[place], here)
    return rows, columns


def _tile_by_tile(
    block: Block, wanted: tuple[bool, bool], tile: int, logsums: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Gradients]:
    """The block's share of the loss and of its gradients.

    InfoNCE, given the log-sum-exp of each row (B,) and of each whole column (G,):
    d loss / d logit(i, j) = (softmax over row i + softmax over column j - target(i, j)) / 2G, where
    target(i, j) = 2 [i = j] if a pair's own partner alone is right.

    SigLIP, without them, of a yes and a no to each pairing:
    d loss / d logit(i, j) = ((yes + no) sigmoid(logit) - yes) / G, where yes = [i = j] and
    no = 1 - yes if a pair's own partner alone is right.
    """
    sums = _Sums(block, wanted)
    own = 1 if logsums is None else 2
    cost, right = sums.total.clone(), sums.total.clone()
    for row, column, logits, spare in _tiles(block, sums.scaled, tile):
        place = slice(block.first + row.start, block.first + row.stop)  # among all G
        targets = both = None  # (r, c) each; those of the last tile are freed
        if block.targets is not None and logsums is None:
            targets, no = block.targets.answers(place, column)
            both = no.add_(targets)
        elif block.targets is not None:
            targets = block.targets.tile(place, column)
        if targets is not None:
            right += (targets * logits).sum(1).double().sum()
        if logsums is None:
            entropy = F.softplus(logits)  # (r, c), of a no; a yes costs the logit less
            weights = logits.sigmoid_()  # (r, c)
            if both is not None:
                entropy, weights = entropy.mul_(both), weights.mul_(both)
            cost += entropy.sum(1).double().sum()
        else:
            by_row = torch.sub(logits, logsums[0][row, None], out=spare).exp_()  # (r, c)
            weights = logits.sub_(logsums[1][column]).exp_().add_(by_row)  # (r, c)
        if targets is None:  # where images meet their own texts, if they do in this tile
            weights.diagonal(place.start - column.start).sub_(own)
        else:
            weights -= targets
        sums.add(row, column, weights)
    if block.targets is None:
        cosines = (block.images * block.texts[block.own]).sum(1, dtype=torch.float64)  # (B,)
        bias = 0.0 if block.bias is None else block.bias.double()
        right = own * (block.scale.double() * cosines + bias).sum()
    if logsums is not None:
        cost = logsums[0].double().sum() + logsums[1][block.own].double().sum()
    divisor = own * len(block.texts)
    return (cost - right) / divisor, sums.gradients(1 / divisor)


class _Sums:
    """Adds up the gradients that tiles of weights, d loss / d logit, amount to."""

    def __init__(self, block: Block, wanted: tuple[bool, bool]) -> None:
        self.block = block
        self.scaled = block.scale * block.images  # (B, D)
        # a scale that trains reads its gradient off one side's: there is always one
        for_images = wanted[0] or not wanted[1]
        self.images = torch.zeros_like(block.images) if for_images else None  # (B, D)
        self.texts = torch.zeros_like(block.texts) if wanted[1] else None  # (G, D)
        self.total = block.images.new_zeros((), dtype=torch.float64)  # of all weights

    def add(self, row: slice, column: slice, weights: Tensor) -> None:
        """Weights (r, c) of these rows and columns."""
        if self.images is not None:
            self.images[row].addmm_(weights, self.block.texts[column])
        if self.texts is not None:
            self.texts[column].addmm_(weights.T, self.scaled[row])
        if self.block.bias is not None:
            self.total += weights.sum(1).double().sum()

    def gradients(self, factor: float) -> Gradients:
        """The sums times `factor`."""
        block, side, gradient = self.block, self.block.images, self.images
        if self.texts is not None:
            self.texts *= factor
        if self.images is not None:
            self.images *= block.scale * factor
        else:
            side, gradient = block.texts, self.texts
        assert gradient is not None
        # logits are scale * <image, text>, so scale * its gradient = sum of <image, its gradient>
        along = sum(
            (a.double() * b.double()).sum()
            for a, b in zip(side.split(1024), gradient.split(1024), strict=True)
        )
        scale = (along / block.scale.double()).to(block.scale.dtype)
        bias = None if block.bias is None else (self.total * factor).to(block.bias.dtype)
        return Gradients(self.images, self.texts, scale, bias)


def _tiles(
    block: Block, scaled: Tensor, tile: int
) -> Iterator[tuple[slice, slice, Tensor, Tensor]]:
    """Rows, columns, logits and scratch (r, c) of each tile; the next one overwrites both."""
    most = min(tile, len(block.images)) * min(tile, len(block.texts))
    buffers = [block.images.new_empty(most) for _ in range(2)]
    for row in slices(0, len(block.images), tile):
        for column in slices(0, len(block.texts), tile):
            left, right = scaled[row], block.texts[column]  # (r, D), (c, D)
            shape = len(left), len(right)
            logits, spare = (b[: shape[0] * shape[1]].view(shape) for b in buffers)  # (r, c)
            torch.mm(left, right.T, out=logits)
            yield row, column, logits if block.bias is None else logits.add_(block.bias), spare
