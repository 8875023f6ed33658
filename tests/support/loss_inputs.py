"""Random unit features, and the dense losses of them."""

import torch

from medclip_oc.contrastive.loss import clip_loss, siglip_loss


def features(rows: int, seed: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    made = torch.randn(rows, 6, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return torch.nn.functional.normalize(made, dim=-1)


def inputs(pairs: int, name: str, scale: float = 3.0) -> list[torch.Tensor]:
    made = [features(pairs, 1), features(pairs, 2), torch.tensor(scale, dtype=torch.float64)]
    if name == "siglip":
        made.append(torch.tensor(-2.0, dtype=torch.float64))
    return [value.requires_grad_() for value in made]


DENSE = {"clip": clip_loss, "siglip": siglip_loss}
