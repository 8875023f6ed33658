"""Ranks, devices and collectives: the only module that knows of other processes.

Without a process group every function is its one-process case, so callers never branch.
"""

import os
import re
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous

from ..errors import InputError, Stopped, WorkError
from .devices import device_of

T = TypeVar("T")

# messages of gloo, nccl and the store -> what they mean to a user
_LOST_RANK = {
    r"time(d )?[- ]?out": "another rank did not answer for {seconds:g} s (run.timeout_seconds): it "
    "hangs, or its node is gone",
    r"closed by peer|reset by peer|refused|broken pipe|remote process exited": "another rank "
    "ended; its error, or the launcher's line about it, names the cause",
}


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


def is_distributed() -> bool:
    """Whether a launcher set up several processes.

    Only RANK and WORLD_SIZE count. open_clip_train's own goes by SLURM_NTASKS as well, which an
    interactive Slurm shell sets with nobody at the other end: waiting for those tasks would hang.
    """
    return {"RANK", "WORLD_SIZE"} <= os.environ.keys() and int(os.environ["WORLD_SIZE"]) > 1


@contextmanager
def process_group(device: str = "auto", *, timeout_seconds: float = 1800.0) -> Iterator[World]:
    """Join the process group the launcher asks for (nccl on CUDA, gloo on CPU), and leave it after.

    Not by open_clip_train's init_distributed_device, which has no time-out and no store of its own.
    InputError: srun started several processes, and nothing says that they belong together.
    WorkError: a rank died, or didn't answer for `timeout_seconds`.
    """
    own = device_of(device)
    # an interactive shell or a batch script has no tasks of a step
    tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS", "1"))
    if tasks > 1 and "RANK" not in os.environ:
        if os.environ.get("SLURM_PROCID") != "0":  # the first one speaks for all
            time.sleep(1.0)
            sys.exit(InputError.exit_code)
        ways = "for one run take torchrun, as jobs/multinode.sh does, or srun --ntasks 1"
        raise InputError(f"srun started this {tasks} times over, each by itself; {ways}")
    if not is_distributed():
        yield World(0, 1, own)
        return
    if own.type == "cuda":
        own = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(own)
    try:
        longest = timedelta(seconds=timeout_seconds)
        store, rank, size = next(rendezvous("env://", timeout=longest))
        # torchrun's store outlives a restart, and with it the addresses of ranks that are gone
        store = dist.PrefixStore(f"medclip_oc/{restarts()}", store)  # type: ignore[attr-defined]
        backend = "nccl" if own.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=longest)
        yield World(dist.get_rank(), dist.get_world_size(), own)
        # Only after success: a failed rank must not wait here for the others.
        barrier()
    except (WorkError, Stopped):
        raise
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or re.search("gloo|nccl|store", str(error), re.I):
            for message, meaning in _LOST_RANK.items():
                if re.search(message, str(error), re.I):
                    raise WorkError(meaning.format(seconds=timeout_seconds)) from error
        raise
    dist.destroy_process_group()


def restarts() -> int:
    """How often the launcher has started these processes again after a failure."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def first_to_report() -> bool:
    """Whether this rank is the first of all to report an error, and so the one that speaks.

    The launcher's store decides; it outlives a failed rank. A restarted job may speak again.
    """
    if not is_distributed():
        return True
    try:
        place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        longest = timedelta(seconds=5)
        store = dist.TCPStore(*place, wait_for_workers=False, timeout=longest)  # type: ignore[attr-defined]
        return store.add(f"medclip_oc/reported/{restarts()}", 1) == 1
    except Exception:  # no store to ask: better twice than never, and no other error than the one
        return True


@torch.no_grad()
def broadcast_(tensors: Iterable[Tensor]) -> None:
    """Replace each tensor by rank 0's, in place."""
    for tensor in tensors if dist.is_initialized() else ():
        dist.broadcast(tensor, 0)


def all_gather(rows: Tensor) -> Tensor:
    """Concatenate (B, ...) of every rank, the same B on each, in rank order: (G, ...)."""
    if not dist.is_initialized():
        return rows
    rows = rows.contiguous()
    out = rows.new_empty(dist.get_world_size() * rows.shape[0], *rows.shape[1:])
    dist.all_gather_into_tensor(out, rows)
    return out


def reduce_scatter(rows: Tensor) -> Tensor:
    """Add up (G, ...) over ranks and keep this rank's equal part, in rank order: (B, ...)."""
    if not dist.is_initialized():
        return rows
    out = rows.new_empty(len(rows) // dist.get_world_size(), *rows.shape[1:])
    dist.reduce_scatter_tensor(out, rows.contiguous())
    return out


def all_gather_ragged(rows: Tensor) -> Tensor:
    """Concatenate (n_r, ...) of every rank r in rank order, where the n_r may differ."""
    return torch.cat(list(blocks(rows)))


def all_reduce_sum_(tensor: Tensor) -> Tensor:
    """Replace a tensor by its sum over ranks, in place; returns it."""
    if dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor


def all_reduce_max_(tensor: Tensor) -> Tensor:
    """Replace a tensor by its maximum over ranks, elementwise and in place; returns it."""
    if dist.is_initialized():
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return tensor


def all_reduce_sum(numbers: list[int], device: torch.device) -> list[int]:
    """The sum of each number over ranks, the same on every rank."""
    if not dist.is_initialized():
        return numbers
    totals = all_reduce_sum_(torch.tensor(numbers, dtype=torch.int64, device=device))
    return [int(total) for total in totals.tolist()]


def all_reduce_logsumexp(values: Tensor, near: Tensor) -> Tensor:
    """log(sum over ranks of exp(values)), elementwise, in one all-reduce: (n,) and (), which is the
    same on every rank. The values are at most 700 from `near`, for float64: a cosine times the
    inverse temperature is at most 200 from that temperature.
    """
    if not dist.is_initialized():
        return values
    sums = all_reduce_sum_((values.double() - near.double()).exp_())
    return sums.log_().add_(near.double()).to(values.dtype)


def all_reduce_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace each `.grad` by its sum over ranks: one all-reduce, of one flat buffer.

    Every rank must hold gradients of the same parameters, all of one type; those without one are
    left out.
    """
    owners = [parameter for parameter in parameters if parameter.grad is not None]
    if not dist.is_initialized() or not owners:
        return
    flat = torch.cat([p.grad.reshape(-1) for p in owners if p.grad is not None])
    for parameter in owners:
        parameter.grad = None  # the buffer takes its place, and is the only copy
    all_reduce_sum_(flat)
    for parameter, part in zip(owners, flat.split([p.numel() for p in owners]), strict=True):
        parameter.grad = part.view_as(parameter)


def all_gather_objects(value: T) -> list[T]:
    """A value that can be pickled of every rank, in rank order, on every rank."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


@contextmanager
def errors_together() -> Iterator[None]:
    """What fails in the `with` block of any rank fails on every rank, with the words of the first
    of them: nobody is left waiting. Every rank must come here.
    """
    kinds, error = (InputError, Stopped, WorkError), None
    try:
        yield
    except kinds as caught:
        if not dist.is_initialized():
            raise
        error = caught
    kind = next((base for base in kinds if isinstance(error, base)), None)
    for first_kind, message in all_gather_objects((kind, str(error))):
        if first_kind is not None:
            raise first_kind(message)


def barrier() -> None:
    """Wait for every rank."""
    if dist.is_initialized():
        # nccl would guess the device, and warn that it does
        own = [torch.cuda.current_device()] if dist.get_backend() == "nccl" else None
        dist.barrier(device_ids=own)


def blocks(rows: Tensor) -> Iterator[Tensor]:
    """The (n_r, ...) of every rank r in rank order, one after the other: nobody holds them all."""
    if not dist.is_initialized():
        yield rows
        return
    counts = all_gather(torch.tensor([rows.shape[0]], device=rows.device)).tolist()
    for rank, count in enumerate(counts):
        own = rank == dist.get_rank()
        block = rows.contiguous() if own else rows.new_empty(count, *rows.shape[1:])
        if count:
            dist.broadcast(block, rank)
        yield block
