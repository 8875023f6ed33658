"""The one plain big-batch step that the cached one must equal: for checks, tests and benchmarks.

B pairs per rank, G pairs over all ranks, C pairs of a forward, D embedding size, L context length.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..runtime.devices import autocast
from .loss import LossName, clip_loss, siglip_loss
from .micro_batched_tower import Split, as_they_come
from .soft_targets import Labels, Rule, Targets


def plain_step(
    towers: Any,
    loss: LossName,
    images: Tensor,
    tokens: Tensor,
    *,
    micro_batches: tuple[int, int] | None = None,
    split: Split = as_they_come,
    seeds: Sequence[int] | None = None,
    targets: Any = None,
    precision: str = "fp32",
    scaler: torch.amp.GradScaler | None = None,
) -> Tensor:
    """Put the gradients of one big batch into `.grad`: all graphs kept, one dense loss, one
    backward. Nothing but the model is shared with the cached step. Returns the loss, ().

    Images are (G, 3, H, W) uint8, tokens (G, L) int64. `micro_batches`: sizes of the forwards, of
    images and of texts, where random numbers or live batch norm make them matter; None: one forward
    of each tower. `split` puts texts into micro batches, where random numbers make that matter too.
    `seeds`: one per rank, each of which embeds its part of the pairs from its own random numbers;
    None: one rank, and random numbers as they come. `targets`: what the dense loss takes; None:
    each pair's own partner. `scaler`: loss scaling for fp16.
    """
    for parameter in towers.parameters():
        parameter.grad = None
    device = next(towers.parameters()).device
    rows = len(images) // len(seeds or [0])  # B
    image_parts, text_parts = list[Tensor](), list[Tensor]()  # (C, D) each
    with autocast(device, precision)():
        of_ranks = zip(images.split(rows), tokens.split(rows), strict=True)
        for rank, (own_images, own_tokens) in enumerate(of_ranks):
            if seeds is not None:
                torch.manual_seed(seeds[rank])
            sizes = micro_batches or (rows, rows)
            image_parts += [towers.embed_images(x.to(device)) for x in own_images.split(sizes[0])]
            order, chunks = split(own_tokens, sizes[1])
            texts = torch.cat([towers.embed_texts(x.to(device)) for x in chunks])
            text_parts.append(texts[order.argsort()])
    image_features, text_features = torch.cat(image_parts), torch.cat(text_parts)  # (G, D) each
    scale, bias = towers.inverse_temperature(), towers.logit_bias()
    if loss == "siglip":
        value = siglip_loss(image_features, text_features, scale, bias, targets)
    else:
        value = clip_loss(image_features, text_features, scale, targets)
    (value if scaler is None else scaler.scale(value)).backward()
    return value.detach()


def dense_targets(rule: Rule, labels: Labels, loss: LossName) -> Any:
    """What the rule makes right in a batch with the labels of all G pairs, as the dense losses take
    it: (G, G), for "siglip" a pair of those; None: each pair's own partner.
    """
    if rule.plain:
        return None
    whole = slice(0, len(labels.captions))
    targets = Targets(rule, labels, torch.float32)
    if loss == "siglip":
        return targets.answers(whole, whole)
    targets.complete(whole, lambda sums: sums, whole.stop)
    return targets.tile(whole, whole)


def gradients(towers: nn.Module) -> dict[str, Tensor]:
    """A copy of every gradient, by the parameter's name."""
    return {n: p.grad.clone() for n, p in towers.named_parameters() if p.grad is not None}


def relative_errors(
    gradients: Mapping[str, Tensor], reference: Mapping[str, Tensor]
) -> dict[str, float]:
    """||g - ref|| / max(||ref||, 1e-4 ||all ref||) of each parameter, inf of a NaN.
    ValueError: only one side has a gradient of some.
    """
    if gradients.keys() != reference.keys():
        odd = sorted(gradients.keys() ^ reference.keys())
        raise ValueError(f"only one side has a gradient of {', '.join(odd[:3])}")
    floor = 1e-4 * torch.stack([g.norm() for g in reference.values()]).norm()
    return {
        name: math.inf if math.isnan(error) else error  # a NaN would lose each comparison
        for name, g in reference.items()
        for error in [float((gradients[name] - g).norm() / torch.maximum(g.norm(), floor))]
    }
