"""Real processes with real gloo, forked, so that none imports torch anew: nothing is mocked."""

import os
import socket
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from medclip_oc.runtime import distributed

COLLECTIVES = ("all_reduce", "all_gather_into_tensor", "reduce_scatter_tensor", "broadcast")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def start(function: Callable[..., Any], size: int, *args: Any) -> mp.ProcessContext:
    """Begin `function(*args)` in `size` processes, with ranks where there are several."""
    with warnings.catch_warnings():  # about forking; torch has one thread here
        warnings.simplefilter("ignore", DeprecationWarning)
        given = (function, size, free_port(), args)
        return mp.start_processes(_enter, given, nprocs=size, join=False, start_method="fork")


def run(function: Callable[..., Any], size: int, folder: Path, *args: Any) -> list[Any]:
    """What `function(world, *args)` returned on each of `size` ranks.

    Args:
        function: what it returns must be tensors and plain values.
        size: number of processes.
        folder: empty, for the results.
    """
    started = start(_measure, size, function, folder, args)
    while not started.join():
        pass
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(size)]


def _enter(
    rank: int, function: Callable[..., Any], size: int, port: int, args: tuple[Any, ...]
) -> None:
    if size > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    function(*args)


def _measure(function: Callable[..., Any], folder: Path, args: tuple[Any, ...]) -> None:
    warnings.simplefilter("error")  # pytest's own filter doesn't reach this process
    try:
        with distributed.process_group("cpu") as world:
            torch.save(function(world, *args), folder / f"{world.rank}.pt")
    except Exception:
        traceback.print_exc()
        raise


@contextmanager
def watched() -> Iterator[list[tuple[str, int]]]:
    """What torch's own collectives are given: name, and bytes of the whole."""
    sent: list[tuple[str, int]] = []
    own = {name: getattr(dist, name) for name in COLLECTIVES}

    def watching(name: str) -> Any:
        def call(*inputs: Any, **options: Any) -> Any:
            sent.append((name, max(x.nbytes for x in inputs if torch.is_tensor(x))))
            return own[name](*inputs, **options)

        return call

    for name in COLLECTIVES:
        setattr(dist, name, watching(name))
    try:
        yield sent
    finally:
        for name, function in own.items():
            setattr(dist, name, function)
