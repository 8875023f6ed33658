"""Random unit features, and the dense losses of them."""

import torch

from medclip_oc.contrastive.loss import Block, clip_loss, contrast, siglip_loss
from medclip_oc.contrastive.soft_targets import Targets
from tests.support.unit_vectors import unit_vectors


def inputs(pairs: int, name: str, scale: float = 3.0) -> list[torch.Tensor]:
    made = [unit_vectors(pairs, 6, 1, torch.float64), unit_vectors(pairs, 6, 2, torch.float64)]
    made.append(torch.tensor(scale, dtype=torch.float64))
    if name == "siglip":
        made.append(torch.tensor(-2.0, dtype=torch.float64))
    return [value.requires_grad_() for value in made]


def by_blocks(
    name: str, given: list[torch.Tensor], ranks: int, *, tile: int, targets: Targets | None = None
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Loss and gradients as so many ranks compute them, each the rows of its own images."""
    images, texts, *rest = (value.detach() for value in given)
    size = len(images) // ranks
    blocks = [
        Block(images[first : first + size], texts, *rest, first=first, targets=targets)
        for first in range(0, len(images), size)
    ]
    columns: list[torch.Tensor] = []
    for block in blocks:
        contrast(name, block, tile=tile, combine=lambda c: columns.append(c) or c)
    whole = torch.stack(columns).logsumexp(0) if columns else None
    parts = [contrast(name, block, tile=tile, combine=lambda _: whole) for block in blocks]
    shares = [gradients for _, gradients in parts]
    summed = [sum(g) for g in zip(*(s[1:] for s in shares), strict=True) if None not in g]
    loss = torch.stack([share for share, _ in parts]).sum()
    return loss, [torch.cat([s.images for s in shares]), *summed]


DENSE = {"clip": clip_loss, "siglip": siglip_loss}
