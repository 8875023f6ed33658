"""Files and folders that appear whole or not at all: the one writer of temporary-then-rename.

The temporary one lies beside the final one, so that the rename stays on one file system, and ends
in `PARTIAL`: what a killed process left is recognised by that.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import InputError, WorkError

PARTIAL = ".partial"
"""Ends the name of a file or folder that isn't complete."""


@contextmanager
def atomic_file(path: Path, *, durable: bool = False, shared: bool = False) -> Iterator[Path]:
    """Replace a file at the end of a `with` block, which writes under the temporary name given.

    An error leaves what was there before. `durable`: content and name survive a power cut.
    `shared`: several processes may write the file at once (a cache); each has its own temporary
    name, and the last one to finish wins. WorkError: the file can't be written (disk full, no
    permission, no such folder); names it.
    """
    partial = path.with_name(path.name + (f".{os.getpid()}" if shared else "") + PARTIAL)
    with _named(path, partial):
        try:
            yield partial
            if durable:
                _sync(partial, os.O_RDWR)
            partial.replace(path)
        except BaseException:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
            raise
        if durable:
            with suppress(OSError):  # some network file systems can't sync a folder, and need not
                _sync(path.parent, os.O_RDONLY)


@contextmanager
def atomic_folder(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """Let a folder, given new and empty, appear at the end of a `with` block.

    An error leaves nothing new. With `replace` an earlier folder of that name is removed once the
    new one is complete; without it, it is an InputError. WorkError: the folder can't be written.
    """
    if path.exists() and not replace:
        raise InputError(f"{path}: is there already")
    partial = path.with_name(path.name + PARTIAL)
    with _named(path, partial):
        try:
            shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed
            partial.mkdir(parents=True)
            yield partial
            if path.exists():
                shutil.rmtree(path)
            partial.rename(path)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _named(path: Path, partial: Path) -> Iterator[None]:
    """Turn the system's errors about this path into one that names it."""
    try:
        yield
    except OSError as error:
        if error.filename and not str(error.filename).startswith((str(path), str(partial))):
            raise  # of another file, such as one that is copied from
        raise WorkError(f"{path}: can't be written ({error.strerror or error})") from error
