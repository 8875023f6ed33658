"""Random features."""

import torch
from torch import Tensor


def unit_vectors(rows: int, width: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """(rows, width), normalised."""
    made = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return torch.nn.functional.normalize(made, dim=-1)
