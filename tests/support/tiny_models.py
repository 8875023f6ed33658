"""Definitions of models that embed a batch in milliseconds, and random features."""

from typing import Any

import torch
from torch import Tensor

VIT = {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8}
TEXT = {"context_length": 32, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
TINY: dict[str, Any] = {"embed_dim": 24, "vision_cfg": VIT, "text_cfg": TEXT}


def unit_vectors(rows: int, width: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """(rows, width), normalised."""
    made = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return torch.nn.functional.normalize(made, dim=-1)
