"""AdamW over parameter groups."""

import torch
from torch import nn

from .config import OptimConfig


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Two groups of trainable parameters: matrices decay; gains, biases and the temperature don't.

    A parameter of fewer than two dimensions is a gain, a bias, a class token or the temperature.
    """
    trainable = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]


def adamw(model: nn.Module, settings: OptimConfig) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019) as the settings say, at the peak learning rate."""
    return torch.optim.AdamW(
        parameter_groups(model, settings.weight_decay),
        lr=settings.lr,
        betas=settings.betas,
        eps=settings.eps,
    )


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group this learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def clip(model: nn.Module, largest: float | None) -> float:
    """Scale the gradients down to a total norm of at most `largest`; returns the norm before."""
    norm = nn.utils.clip_grad_norm_(
        model.parameters(), float("inf") if largest is None else largest
    )
    return norm.item()
