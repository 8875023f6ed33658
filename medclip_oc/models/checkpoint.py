"""Checkpoint files: written whole or not at all, opened without running code from them.

A checkpoint is a dict of tensors and plain Python values that `torch.load(weights_only=True)`
opens. Its `state_dict` has open_clip's names, so open_clip loads the file as it is:

    format      FORMAT
    state_dict  the plain model
    model       what it is: arch, name, definition, preprocess, quick_gelu (see model.Description)
    config      the resolved configuration of the run
    step, epoch, position (pairs consumed), metrics, versions
    training    what going on needs besides (see run_state.py); best.pt is without it

torch doesn't notice a changed byte: it would be another weight. So the file, a zip archive, ends
with a comment that holds the SHA-256 of all before it, which readers of zip archives pass over.
"""

import hashlib
import os
import pickle
import re
import zipfile
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO

import torch

from ..errors import DamagedCheckpoint, InputError, WorkError

FORMAT = "medclip_oc/1"
_PACKAGES = ("medclip_oc", "torch", "torchvision", "open_clip_torch")

# a zip archive's last field, the length of its comment, and that comment
_COMMENT = b"medclip_oc sha256 %s"
_SEAL_BYTES = 2 + len(_COMMENT % bytes(64))
_LENGTH = (_SEAL_BYTES - 2).to_bytes(2, "little")
_SEAL = re.compile(re.escape(_LENGTH) + _COMMENT % b"([0-9a-f]{64})")
_BLOCK_BYTES = 1 << 22


def versions() -> dict[str, str]:
    """Versions of the packages that decide what a checkpoint means."""
    return {name: version(name) for name in _PACKAGES}


def save(path: Path, content: dict[str, Any]) -> int:
    """Write `content` so that `path` holds it, or what it held before; after a power cut too.

    Returns:
        its size in bytes.

    Raises:
        WorkError: the disk is full, or the folder is gone or can't be written.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            sealed = _Sealed(file)
            torch.save({"format": FORMAT, **content}, sealed)  # type: ignore[arg-type]
            sealed.close()
            file.flush()
            os.fsync(file.fileno())
            size = file.tell()
        partial.replace(path)
        _store(path.parent)
        return size
    # torch reports a failed write of its zip stream as RuntimeError
    except (OSError, RuntimeError) as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise WorkError(
            f"{path}: the checkpoint could not be written ({_reason(error)})"
        ) from error


class _Sealed:
    """A file that torch writes an archive into, hashed on the way."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._hashed, self._held = file, hashlib.sha256(), b""

    def write(self, data: bytes) -> int:
        """Pass bytes on, all but the last two."""
        size = len(data)
        if size < 2:
            data, self._held = self._held + bytes(data), b""
        for part in (self._held, memoryview(data)[:-2]):
            self._file.write(part)
            self._hashed.update(part)
        self._held = bytes(data[-2:])
        return size

    def flush(self) -> None:
        """For torch, which asks for it."""

    def close(self) -> None:
        """Put the hash in place of the empty comment."""
        assert self._held == b"\0\0", "torch writes no comment"
        self._file.write(_LENGTH + _COMMENT % self._hashed.hexdigest().encode())


def _store(folder: Path) -> None:
    """Have the names of a folder's files on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:  # some network file systems can't, and need not
        pass
    finally:
        os.close(descriptor)


def _reason(error: Exception) -> str:
    """The system's own words; torch reports a failed write as one of its own, which hides them."""
    while not isinstance(error, OSError) and isinstance(error.__context__, Exception):
        error = error.__context__
    return (isinstance(error, OSError) and error.strerror) or str(error).partition("\n")[0]


def load(path: str | Path, *, verify: bool = True) -> dict[str, Any]:
    """Read a checkpoint that `save` wrote, onto the CPU.

    Args:
        path: the file.
        verify: whether to compare it with its hash; off where another rank has.

    Raises:
        DamagedCheckpoint: it is cut, or a byte of it has changed.
        InputError: the file is missing, not a checkpoint of ours, or holds pickled code.
    """
    if verify:
        _verify(Path(path))
    content = _read(Path(path))
    found = content.get("format") if isinstance(content, dict) else None
    if found != FORMAT:
        raise InputError(
            f"{path}: not a medclip_oc checkpoint (format {found!r}, expected {FORMAT!r}); "
            "weights of another kind go in through model.pretrained of a training config"
        )
    return content


def load_header(path: str | Path) -> dict[str, Any] | None:
    """Open a checkpoint of ours without reading its tensors; None for a torch file of others."""
    try:
        content = _read(Path(path), mmap=True)
    except _OldFormat:
        content = _read(Path(path))
    ours = isinstance(content, dict) and content.get("format") == FORMAT
    return content if ours else None


def load_weights(path: str | Path) -> dict[str, torch.Tensor]:
    """Read a bare state dict (or one under the key `state_dict`) from .safetensors or torch files.

    Raises:
        InputError: the file is missing, damaged, holds no tensors, or holds pickled code.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        _require(path)
        try:
            return load_file(path)
        except SafetensorError as error:
            raise InputError(f"{path}: damaged or not a safetensors file ({error})") from error
    content = _read(path)
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if not state or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise InputError(f"{path}: holds no state dict (a mapping of names to tensors)")
    return {name.removeprefix("module."): value for name, value in state.items()}


class _OldFormat(Exception):
    """A torch file from before 1.6, which can't be mapped into memory."""


def _require(path: Path) -> None:
    if not path.is_file():
        raise InputError(f"{path}: {'a folder, not a' if path.is_dir() else 'no such'} file")


def _verify(path: Path) -> None:
    """Compare a file with the hash at its end; one that was saved without it passes."""
    _require(path)
    hashed = hashlib.sha256()
    try:
        with path.open("rb") as file:
            end = file.seek(0, os.SEEK_END) - _SEAL_BYTES
            file.seek(max(0, end))
            seal = _SEAL.fullmatch(file.read())
            if seal is None:
                return
            file.seek(0)
            while end > 0 and (block := file.read(min(end, _BLOCK_BYTES))):
                hashed.update(block)
                end -= len(block)
    except OSError as error:
        raise DamagedCheckpoint(f"{path}: can't be read ({error.strerror})") from error
    if hashed.hexdigest().encode() != seal[1]:
        raise DamagedCheckpoint(f"{path}: damaged: it is not what was written (SHA-256 differs)")


def _read(path: Path, *, mmap: bool = False) -> Any:
    _require(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        if re.search(r"unsupported (global|class)|reduce", str(error), re.IGNORECASE):
            raise InputError(
                f"{path}: refused: it holds pickled Python objects, which run code when opened; "
                "only tensors and plain values are read"
            ) from error
        raise DamagedCheckpoint(f"{path}: damaged or not a checkpoint file") from error
    except RuntimeError as error:
        if mmap and "_use_new_zipfile_serialization" in str(error):
            raise _OldFormat from error
        raise DamagedCheckpoint(f"{path}: damaged or not a checkpoint file") from error
    except (EOFError, OSError, ValueError, LookupError, zipfile.BadZipFile) as error:
        raise DamagedCheckpoint(f"{path}: damaged or not a checkpoint file") from error
