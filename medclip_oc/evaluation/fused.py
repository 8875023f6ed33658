"""The comparisons of `counting` in one pass over a tile, compiled by numba: large sets on a CPU.

torch passes over a tile eight times, each comparison and each sum by itself; one pass takes a fifth
of that. numba (`pip install -e '.[fast]'`) costs half a second to load, a second where nothing is
compiled yet, and 120 MB, so small sets do without.

r and c rows and columns of a tile.
"""

import importlib.util
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

FROM = 2**26
"""Pairings, from which on it is used."""
_SIGNATURE = "(float32[:,::1], float32[:,::1], float32[:,::1], int64, int32[:,::1], int32[:,:,::1])"


def ready(pairings: int) -> bool:
    """Whether `survey` is to be used for so many pairings; it is compiled then."""
    return pairings >= FROM and _works()


@cache
def _works() -> bool:
    """Whether numba is here and compiles; where it is broken, that is said once."""
    if importlib.util.find_spec("numba") is None:
        return False
    try:
        kernel()  # before threads meet in it
    except Exception as error:  # an optional part of another's making: nothing of ours hangs on it
        warnings.warn(f"numba is installed but does not work: {error}", stacklevel=2)
        return False
    return True


def survey(
    scores: Tensor, row_limits: Tensor, column_limits: Tensor, step: int
) -> tuple[Tensor, Tensor]:
    """How many scores of a tile are above each of two limits, per row and per column.

    Args:
        scores: (r, c) float32, contiguous.
        row_limits: (2, r) float32, contiguous.
        column_limits: (2, c) float32, contiguous.
        step: rows that a column is counted over at a time.

    Returns:
        Of the rows (2, r), and of each slice of `step` rows the columns (slices, 2, c): int32.
    """
    rows = torch.empty(row_limits.shape, dtype=torch.int32)
    slices = -(-len(scores) // step)
    columns = torch.zeros(slices, *column_limits.shape, dtype=torch.int32)
    arrays = (each.numpy() for each in (scores, row_limits, column_limits))
    kernel()(*arrays, step, rows.numpy(), columns.numpy())
    return rows, columns


@cache
def kernel() -> Callable[..., None]:
    """The compiled loop; the machine code is kept for the next process where that can be.

    Raises:
        ImportError, RuntimeError: numba is broken, or told to compile nothing.
    """
    import numba

    if numba.config.DISABLE_JIT:
        raise RuntimeError("NUMBA_DISABLE_JIT is set")
    how: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
    try:
        return numba.njit(_SIGNATURE, cache=True, **how)(_count)
    except Exception:  # no place to keep it, a full disk, a file that was cut: all but the code
        return numba.njit(_SIGNATURE, **how)(_count)


def _count(
    scores: np.ndarray,
    row_limits: np.ndarray,
    column_limits: np.ndarray,
    step: int,
    rows: np.ndarray,
    columns: np.ndarray,
) -> None:
    """`survey`, into `rows` and `columns`. In the form that a compiler turns into vector code."""
    first, second = column_limits[0], column_limits[1]
    for i in range(len(scores)):
        line, one, two = scores[i], row_limits[0, i], row_limits[1, i]
        per_first, per_second = columns[i // step, 0], columns[i // step, 1]
        above, beyond = np.int32(0), np.int32(0)
        for j in range(len(line)):
            score = line[j]
            above += np.int32(score > one)
            beyond += np.int32(score > two)
            per_first[j] += np.int32(score > first[j])
            per_second[j] += np.int32(score > second[j])
        rows[0, i], rows[1, i] = above, beyond
