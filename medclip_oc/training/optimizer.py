"""AdamW over groups of parameters, each with the learning rate of its tower and layer."""

from typing import Any

import torch

from ..config.schema import OptimConfig
from ..models import freezing
from ..models.clip import Towers
from ..models.freezing import Place

_TITLES = {"image": "image tower", "text": "text tower", "both": "temperature"}


def peak_lr(place: Place, settings: OptimConfig) -> float:
    """The learning rate of a parameter at the peak of the schedule.

    LR of the tower * decay^(n + 1 - layer), for layers 0 to n + 1: what follows the blocks has the
    tower's own (BEiT, Bao et al. 2022, appendix; ELECTRA, Clark et al. 2020, appendix A).
    """
    if place.tower == "both":
        return settings.lr
    lr = getattr(settings, f"{place.tower}_lr")
    decay: float = getattr(settings, f"{place.tower}_layer_decay")
    power = place.blocks + 1 - place.layer
    return float(settings.lr if lr is None else lr) * decay**power


def parameter_groups(towers: Towers, settings: OptimConfig) -> list[dict[str, Any]]:
    """Groups of what trains, each with `title`, `params`, `peak_lr` and `weight_decay`.

    Matrices decay. A parameter of fewer than two dimensions is a gain, a bias, a class token, the
    temperature or the logits' bias, and doesn't.
    """
    places = freezing.places(towers)
    groups: dict[tuple[str, float], dict[str, Any]] = {}
    for name, parameter in towers.named_parameters():
        if not parameter.requires_grad:
            continue
        place = places[name]
        title = _TITLES[place.tower]
        if place.tower != "both" and getattr(settings, f"{place.tower}_layer_decay") != 1:
            title += f", layer {place.layer} of {place.blocks + 1}"
        decay = settings.weight_decay if parameter.ndim >= 2 else 0.0
        lr = peak_lr(place, settings)
        new = {"title": title, "params": [], "lr": lr, "peak_lr": lr, "weight_decay": decay}
        groups.setdefault((title, decay), new)["params"].append(parameter)
    return list(groups.values())


def adamw(towers: Towers, settings: OptimConfig) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019) as the settings say, at the peak learning rates."""
    groups = parameter_groups(towers, settings)
    return torch.optim.AdamW(groups, betas=settings.betas, eps=settings.eps)


def describe(optimizer: torch.optim.Optimizer, towers: Towers) -> list[str]:
    """What trains and what doesn't, a line for each part of the model."""
    parts: dict[str, list[dict[str, Any]]] = {}
    for group in optimizer.param_groups:
        parts.setdefault(group["title"], []).append(group)
    lines = []
    for title, groups in parts.items():
        tensors = [p for group in groups for p in group["params"]]
        decayed = [p for group in groups if group["weight_decay"] for p in group["params"]]
        decay = max(group["weight_decay"] for group in groups)
        lines.append(
            f"trains: {title}: {sum(p.numel() for p in tensors):,} parameters, "
            f"lr {groups[0]['peak_lr']:.3g}, weight decay "
            + (f"{decay:g} on {sum(p.numel() for p in decayed):,}" if decayed else "0")
        )
    places = freezing.places(towers)
    for tower, title in _TITLES.items():
        own = [p for name, p in towers.named_parameters() if places[name].tower == tower]
        frozen = [p for p in own if not p.requires_grad]
        if frozen:
            lines.append(f"frozen: {title}: {sum(p.numel() for p in frozen):,} parameters")
    return lines
