"""Random features."""

import torch
from torch import Tensor


def unit_vectors(rows: int, width: int, seed: int) -> Tensor:
    """(rows, width) float32, normalised."""
    made = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(made, dim=-1)
