"""Mixed precision, by the names that a configuration uses; and numbers that left the range."""

from contextlib import AbstractContextManager
from typing import Any

import torch
from open_clip_train.precision import get_autocast
from torch import Tensor

from ..errors import WorkError

_OPEN_CLIP_NAMES = {"fp32": "fp32", "bf16": "amp_bf16", "fp16": "amp"}


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """Mixed precision for a forward of the towers ("bf16", "fp16"); nothing for "fp32"."""
    context: AbstractContextManager[Any] = get_autocast(_OPEN_CLIP_NAMES[precision], device.type)()
    return context


def check_finite(features: Tensor, name: str) -> None:
    """Refuse features that can't be compared.

    Args:
        features: of any shape.
        name: whose they are: "image" or "text".

    Raises:
        WorkError: NaN or infinity among them.
    """
    if not features.isfinite().all():
        raise WorkError(f"{name} features hold NaN or infinity: nothing can be ranked")
