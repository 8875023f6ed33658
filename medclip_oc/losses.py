"""Contrastive losses as pure functions of features. G pairs over all ranks, D embedding size."""

import torch
import torch.nn.functional as F
from torch import Tensor


def clip_loss(image_features: Tensor, text_features: Tensor, scale: Tensor) -> Tensor:
    """Symmetric InfoNCE over G pairs (CLIP, Radford et al. 2021, figure 3).

    Args:
        image_features: (G, D), normalised.
        text_features: (G, D), normalised; row i belongs to image i.
        scale: (), the inverse temperature that multiplies the cosines.

    Returns:
        (), the mean of the image-to-text and the text-to-image cross-entropy, in nats. ln(G) for
        features that say nothing.
    """
    logits = scale * image_features @ text_features.T  # (G, G)
    own = torch.arange(len(logits), device=logits.device)  # (G,)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
