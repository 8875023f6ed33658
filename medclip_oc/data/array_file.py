"""Several arrays in one file, mapped into memory: opened at once, and only what is read is loaded.

A file is a JSON line padded with blanks to a page (format, size of the file, facts, and the dtype,
shape and offset of each array), then the arrays, each beginning on a page. It appears whole or not
at all, and is written in pieces, so that arrays larger than memory can be made.
"""

import json
import math
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

FORMAT = 1
_PAGE = 4096


class ArrayWriter:
    """Collects arrays piece by piece, and makes a file of them; a context manager.

    Args:
        path: the file to be; its folder must be writable.
        names: the arrays, in the order in which they will lie.

    Raises:
        OSError: the folder can't be written.
    """

    def __init__(self, path: Path, names: tuple[str, ...]) -> None:
        self.path = path
        self._parts: dict[str, IO[bytes]] = {}
        self._shapes: dict[str, list[int]] = {}
        self._types: dict[str, np.dtype[Any]] = {}
        for name in names:
            self._parts[name] = tempfile.TemporaryFile(dir=path.parent)  # noqa: SIM115 (see close)

    def append(self, name: str, rows: np.ndarray) -> None:
        """Add (n, ...) rows to an array; dtype and all but the first dimension stay the same."""
        rows = np.ascontiguousarray(rows)
        shape = self._shapes.setdefault(name, [0, *rows.shape[1:]])
        kind = self._types.setdefault(name, rows.dtype)
        assert kind == rows.dtype
        assert shape[1:] == list(rows.shape[1:])
        shape[0] += len(rows)
        self._parts[name].write(rows.tobytes())

    def finish(self, facts: Mapping[str, Any]) -> None:
        """Write the file, with what is to be known of it (plain values).

        Raises:
            OSError: the disk is full, say.
        """
        arrays: dict[str, dict[str, Any]] = {
            name: {"dtype": self._types[name].str, "shape": shape}
            for name, shape in self._shapes.items()
        }
        head = {"format": FORMAT, "facts": facts, "arrays": arrays}
        room = _pages(len(json.dumps(head)) + 64 * (len(arrays) + 1))  # numbers are still to come
        end = room
        for name, array in arrays.items():
            array["offset"] = end
            end += _pages(self._parts[name].tell())
        line = json.dumps({**head, "bytes": end}).encode().ljust(room - 1) + b"\n"
        assert len(line) == room
        with tempfile.NamedTemporaryFile(dir=self.path.parent, delete=False) as file:
            try:
                file.write(line)
                for name, array in arrays.items():
                    file.seek(array["offset"])
                    self._parts[name].seek(0)
                    shutil.copyfileobj(self._parts[name], file, 1 << 20)
                file.truncate(end)
                file.flush()
                Path(file.name).chmod(0o666 & ~_umask())
                Path(file.name).replace(self.path)
            except BaseException:
                Path(file.name).unlink(missing_ok=True)
                raise

    def __enter__(self) -> "ArrayWriter":
        return self

    def __exit__(self, *_: object) -> None:
        for part in self._parts.values():
            part.close()


def open_arrays(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]] | None:
    """The facts and the read-only arrays of a file; None where it isn't whole or of this format."""
    try:
        with path.open("rb") as file:
            head = json.loads(file.readline())
            if head["format"] != FORMAT or head["bytes"] != os.fstat(file.fileno()).st_size:
                return None
            # one mapping, and one open file, for all; a plain array, which is cheaper to slice
            whole = np.memmap(file, np.uint8, "r").view(np.ndarray)
            arrays = {name: _view(whole, **array) for name, array in head["arrays"].items()}
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return head["facts"], arrays


def _view(whole: np.ndarray, dtype: str, shape: list[int], offset: int) -> np.ndarray:
    size = np.dtype(dtype).itemsize * math.prod(shape)
    return whole[offset : offset + size].view(dtype).reshape(shape)


def _pages(size: int) -> int:
    return -(-size // _PAGE) * _PAGE


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
