"""Real processes with real gloo: no collective is mocked."""

import os
import socket
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp

from medclip_oc.runtime import distributed


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def run(function: Callable[..., Any], size: int, folder: Path, *args: Any) -> list[Any]:
    """What `function(world, *args)` returned on each of `size` ranks.

    Args:
        function: at the top level of a module; what it returns must be tensors and plain values.
        size: number of processes.
        folder: empty, for the results.
    """
    with warnings.catch_warnings():  # about forking; torch has one thread here
        warnings.simplefilter("ignore", DeprecationWarning)
        given = (function, size, free_port(), folder, args)
        mp.start_processes(_enter, given, nprocs=size, start_method="fork")
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(size)]


def _enter(
    rank: int,
    function: Callable[..., Any],
    size: int,
    port: int,
    folder: Path,
    args: tuple[Any, ...],
) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    torch.set_num_threads(1)
    warnings.simplefilter("error")  # pytest's own filter doesn't reach this process
    try:
        with distributed.process_group("cpu") as world:
            torch.save(function(world, *args), folder / f"{rank}.pt")
    except Exception:
        traceback.print_exc()
        raise
