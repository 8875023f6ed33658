"""A function over a long stream of items: by several workers, in order, in bounded memory."""

import os
import signal
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing import get_context, parent_process
from typing import Any, TypeVar

from ..errors import WorkError

T = TypeVar("T")
R = TypeVar("R")

BATCH = 8  # items per task: enough to hide the cost of handing a task over


def cores() -> int:
    """Cores that this process may use: fewer than the machine's, in a Slurm job."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def ordered_map(
    function: Callable[[T], R],
    items: Iterable[T],
    workers: int,
    *,
    batch: int = BATCH,
    threads: bool = False,
) -> Iterator[R]:
    """`function` of each item, in the items' order, at most two batches a worker ahead.

    Workers are processes, to which function, items and results travel pickled, and whose warnings
    are ignored; or `threads`: better where the function mostly reads and hashes, which lets others
    run. With one, the caller does the work, when a result is asked for. `batch` items are handed
    over at once. WorkError: a worker died.
    """
    if workers == 1:
        yield from map(function, items)
        return
    pool: Executor = ThreadPoolExecutor(workers)  # which starts none before there is work
    if not threads:  # spawned: the same on every system, and safe beside threads
        pool = ProcessPoolExecutor(workers, get_context("spawn"), _start_worker)
    stream, pending = iter(items), deque[Any]()
    try:
        while group := list(islice(stream, batch)):
            pending.append(pool.submit(_batch, function, group))
            if len(pending) >= 2 * workers:
                yield from pending.popleft().result()
        while pending:
            yield from pending.popleft().result()
    except BrokenProcessPool:
        raise WorkError("a worker process died; out of memory? Try fewer --workers") from None
    finally:
        pool.shutdown(cancel_futures=True)


def _batch(function: Callable[[T], R], items: list[T]) -> list[R]:
    return [function(item) for item in items]


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the parent, which ends the workers
    threading.Thread(target=_end_with_parent, daemon=True).start()
    warnings.simplefilter("ignore")  # a worker's reach nobody


def _end_with_parent() -> None:
    """A parent that is killed tells nobody; its workers would wait for ever."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
