"""Ranks, devices and collectives: the only module that knows of other processes.

Without a process group every function is its one-process case, so callers never branch.
"""

import inspect
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .errors import InputError, WorkError

_STORE_TIMEOUT = timedelta(seconds=5)


@dataclass(frozen=True)
class World:
    """This process among `size` processes, and its device."""

    rank: int
    size: int
    device: torch.device

    @property
    def main(self) -> bool:
        """Whether this is the rank that writes files and the progress bar."""
        return self.rank == 0


def requested() -> bool:
    """Whether a launcher set up several processes.

    Only RANK and WORLD_SIZE count. An interactive Slurm shell sets SLURM_NTASKS with nobody at the
    other end, and waiting for those tasks would hang.
    """
    return {"RANK", "WORLD_SIZE"} <= os.environ.keys() and int(os.environ["WORLD_SIZE"]) > 1


def device_of(name: str) -> torch.device:
    """The device that "auto" (CUDA where there is a GPU), "cpu" or "cuda" stands for.

    Raises:
        InputError: CUDA was asked for where there is none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("device: cuda was asked for, but torch sees no GPU here; use auto or cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


@contextmanager
def started(device: str = "auto") -> Iterator[World]:
    """Join the process group the launcher asks for (nccl on CUDA, gloo on CPU), and leave it after.

    Args:
        device: see `device_of`.
    """
    own = device_of(device)
    if not requested():
        yield World(0, 1, own)
        return
    from open_clip_train.distributed import init_distributed_device_so

    joined = init_distributed_device_so(device=own.type)
    yield World(joined["global_rank"], joined["world_size"], torch.device(joined["device"]))
    # Only after success: a failed rank must not wait here for the others.
    barrier()
    dist.destroy_process_group()


def first_to_report() -> bool:
    """Whether this rank is the first of all to report an error, and so the one that speaks.

    The launcher's store decides; it outlives a failed rank. A restarted job may speak again.
    """
    if not requested():
        return True
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    try:
        store = dist.TCPStore(  # type: ignore[attr-defined]
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            is_master=False,
            wait_for_workers=False,
            timeout=_STORE_TIMEOUT,
        )
        return store.add(f"medclip_oc/reported/{attempt}", 1) == 1
    except (KeyError, RuntimeError):  # no store to ask: better twice than never
        return True


def data_parallel(module: nn.Module, device: torch.device) -> nn.Module:
    """Wrap `module` so that gradients are averaged over ranks; itself where there is one rank.

    Buffers are not broadcast: batch-norm statistics are frozen or averaged by the caller.
    """
    if not dist.is_initialized():
        return module
    from torch.nn.parallel import DistributedDataParallel

    # torch 2.15 renamed the switch, and warns of the old name
    names = inspect.signature(DistributedDataParallel).parameters
    switch = "forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers"
    options: dict[str, Any] = {switch: False, "gradient_as_bucket_view": True}
    if device.type == "cuda":
        options["device_ids"] = [device]
    return DistributedDataParallel(module, **options)


def gather_equal(rows: Tensor) -> Tensor:
    """Concatenate (B, ...) of every rank, the same B on each, in rank order: (G, ...)."""
    if not dist.is_initialized():
        return rows
    rows = rows.contiguous()
    out = rows.new_empty(dist.get_world_size() * rows.shape[0], *rows.shape[1:])
    dist.all_gather_into_tensor(out, rows)
    return out


def gather_ragged(rows: Tensor) -> Tensor:
    """Concatenate (n_r, ...) of every rank r in rank order, where the n_r may differ."""
    if not dist.is_initialized():
        return rows
    counts = gather_equal(torch.tensor([rows.shape[0]], device=rows.device)).tolist()
    most = max(counts)
    padded = rows.new_zeros(most, *rows.shape[1:])
    padded[: rows.shape[0]] = rows
    blocks = gather_equal(padded).split(most)
    return torch.cat([block[:count] for block, count in zip(blocks, counts, strict=True)])


def average_(tensors: list[Tensor]) -> None:
    """Replace each tensor by its mean over ranks, in place."""
    if not dist.is_initialized():
        return
    for tensor in tensors:
        dist.all_reduce(tensor)
        tensor /= dist.get_world_size()


def add_up(numbers: list[int], device: torch.device) -> list[int]:
    """The sum of each number over ranks, the same on every rank."""
    if not dist.is_initialized():
        return numbers
    totals = torch.tensor(numbers, dtype=torch.int64, device=device)
    dist.all_reduce(totals)
    found: list[int] = totals.tolist()
    return found


def gather_texts(texts: list[str], device: torch.device) -> list[list[str]]:
    """The texts of every rank, in rank order, on every rank; line breaks become blanks."""
    texts = [" ".join(text.replace("\0", " ").split("\n")) for text in texts]
    if not dist.is_initialized():
        return [texts]
    data = torch.frombuffer(bytearray("\0".join(texts).encode() + b"\n"), dtype=torch.uint8)
    rows = gather_ragged(data.to(device)).cpu().numpy().tobytes().decode()
    return [row.split("\0") if row else [] for row in rows.split("\n")[:-1]]


def raise_together(error: InputError | WorkError | None, device: torch.device) -> None:
    """If any rank has an error, raise the first one's on every rank; nobody is left waiting.

    Args:
        error: of this rank; None: it has none.
        device: see `World`.

    Raises:
        InputError, WorkError: with the same words on every rank, in one line.
    """
    if not dist.is_initialized():
        if error is not None:
            raise error
        return
    kind = "input" if isinstance(error, InputError) else "work"
    found = [texts for texts in gather_texts([kind, str(error)] if error else [], device) if texts]
    if found:
        kind, message = found[0]
        raise InputError(message) if kind == "input" else WorkError(message)


def barrier() -> None:
    """Wait for every rank."""
    if dist.is_initialized():
        # nccl would guess the device, and warn that it does
        own = [torch.cuda.current_device()] if dist.get_backend() == "nccl" else None
        dist.barrier(device_ids=own)
