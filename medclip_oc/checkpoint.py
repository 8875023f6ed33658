"""Checkpoint files: written whole or not at all, opened without running code from them.

A checkpoint is a dict of tensors and plain Python values that `torch.load(weights_only=True)`
opens. Its `state_dict` has open_clip's names, so open_clip loads the file as it is:

    format      FORMAT
    state_dict  the plain model
    model       what it is: arch, name, definition, preprocess, quick_gelu (see model.Description)
    config      the resolved configuration of the run
    step, epoch, position (pairs consumed), metrics, versions
"""

import os
import pickle
import re
import zipfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from .errors import InputError, WorkError

FORMAT = "medclip_oc/1"
_PACKAGES = ("medclip_oc", "torch", "torchvision", "open_clip_torch")


def versions() -> dict[str, str]:
    """Versions of the packages that decide what a checkpoint means."""
    return {name: version(name) for name in _PACKAGES}


def save(path: Path, content: dict[str, Any]) -> None:
    """Write `content` so that `path` holds either all of it or what it held before.

    Raises:
        WorkError: the disk is full, or the folder is gone or can't be written.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            torch.save({"format": FORMAT, **content}, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    # torch reports a failed write of its zip stream as RuntimeError
    except (OSError, RuntimeError) as error:
        partial.unlink(missing_ok=True)
        raise WorkError(f"{path}: the checkpoint could not be written ({error})") from error


def load(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint that `save` wrote, onto the CPU.

    Raises:
        InputError: the file is missing, damaged, not a checkpoint of ours, or holds pickled code.
    """
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
        raise InputError(f"{path}: damaged or not a checkpoint file") from error
    except RuntimeError as error:
        if mmap and "_use_new_zipfile_serialization" in str(error):
            raise _OldFormat from error
        raise InputError(f"{path}: damaged or not a checkpoint file") from error
    except (EOFError, OSError, ValueError, LookupError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: damaged or not a checkpoint file") from error
