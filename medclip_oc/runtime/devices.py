"""A device: which one, its mixed precision, and what its memory has room for."""

import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from open_clip_train.precision import get_autocast
from torch import Tensor

from ..errors import InputError, WorkError

_OPEN_CLIP_NAMES = {"fp32": "fp32", "bf16": "amp_bf16", "fp16": "amp"}
_MEMINFO = Path("/proc/meminfo")


def device_of(name: str) -> torch.device:
    """What "auto" (CUDA where there is a GPU), "cpu" or "cuda" means; InputError: no CUDA here."""
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("device: cuda was asked for, but torch sees no GPU here; use auto or cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def check_precision(precision: str, device: torch.device) -> None:
    """Refuse (InputError) fp16 on the CPU, which is slow at it and loses range."""
    if precision == "fp16" and device.type != "cuda":
        raise InputError("precision: fp16 needs CUDA; on the CPU use bf16 or fp32")


def autocast(device: torch.device, precision: str) -> Callable[[], AbstractContextManager[Any]]:
    """Makes contexts of mixed precision ("bf16", "fp16") for forwards; of none for "fp32"."""
    return get_autocast(_OPEN_CLIP_NAMES[precision], device.type)


def check_finite(features: Tensor, name: str) -> None:
    """Refuse (WorkError) features of any shape that hold NaN or infinity; `name`: image, text."""
    if not features.isfinite().all():
        raise WorkError(f"{name} features hold NaN or infinity: nothing can be ranked")


def free_bytes(device: torch.device) -> int | None:
    """What can still be allocated on a GPU, or in this machine's memory; None: unknown here."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        # torch holds on to freed blocks: they are free for torch
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if not _MEMINFO.exists():  # macOS
        return None
    found = re.search(r"MemAvailable: +(\d+) kB", _MEMINFO.read_text(encoding="utf-8"))
    return 1024 * int(found[1]) if found else None
