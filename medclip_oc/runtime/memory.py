"""How much memory is free, how much is in use, and the peak of a stretch of work, in bytes."""

import ctypes
import gc
from functools import cache
from pathlib import Path

import torch

_STATUS, _FREE = Path("/proc/self/status"), Path("/proc/meminfo")
_RESET_PEAK = Path("/proc/self/clear_refs"), "5"  # proc(5): the peak of resident memory


def free_bytes(device: torch.device) -> int | None:
    """What can still be allocated on a GPU, or in this machine's memory; None: unknown here."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        # torch holds on to freed blocks: they are free for torch
        idle = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free + idle
    return _kilobytes(_FREE, "MemAvailable")


def allocated_bytes(device: torch.device) -> int | None:
    """What tensors (on a CPU: this process's allocations) take at the moment; None: unknown here.

    The difference before and after a forward is what its graph holds.
    """
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    used = getattr(_libc(), "mallinfo2", None)  # glibc from 2.33 on
    if used is None:
        return None
    used.restype = _MallInfo
    now = used()
    return int(now.uordblks + now.hblkhd)  # from the heap, and mapped for themselves


class _MallInfo(ctypes.Structure):
    """mallinfo2(3)."""

    _names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in _names.split()]


class Peak:
    """The most memory in use at once during a `with` block, above what was in use at its start.

    On a GPU what tensors take; on Linux the process's resident memory; elsewhere unknown.
    """

    bytes: int | None = None

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def __enter__(self) -> "Peak":
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            self._before: int | None = torch.cuda.memory_allocated(self.device)
            return self
        _give_back()
        try:
            _RESET_PEAK[0].write_text(_RESET_PEAK[1])
            self._before = _kilobytes(_STATUS, "VmRSS")
        except OSError:
            self._before = None
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is None:
            return
        if self.device.type == "cuda":
            self.bytes = torch.cuda.max_memory_allocated(self.device) - self._before
            return
        peak = _kilobytes(_STATUS, "VmHWM")
        self.bytes = None if peak is None else peak - self._before


def _kilobytes(file: Path, name: str) -> int | None:
    """The value of a line `NAME: 123 kB` in one of Linux's status files, in bytes."""
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith(f"{name}:")]
    return 1024 * int(found[0]) if found else None


def _give_back() -> None:
    """Return freed memory to the system, where the C library has a call for it (glibc)."""
    trim = getattr(_libc(), "malloc_trim", None)
    if trim is not None:
        trim(0)


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)  # what this process is linked with
