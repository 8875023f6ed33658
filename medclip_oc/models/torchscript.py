"""The weights in a TorchScript archive, as OpenAI's own files are; its code is never looked at."""

import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._utils import _rebuild_tensor_v2

_NO_WEIGHTS = ("input_resolution", "context_length", "vocab_size", "attn_mask")  # OpenAI's


class _Module:
    """Stands for any class of the archive: its attributes are what was stored."""


class _Reader(pickle.Unpickler):
    """Makes modules, tensors and plain values, and refuses all else."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        (data,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
        super().__init__(archive.open(data))
        self.archive, self.folder = archive, data.removesuffix("data.pkl")

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("__torch__"):
            return _Module
        if module == "torch" and name.endswith("Storage"):
            return getattr(torch, name)
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild_tensor_v2
        if (module, name) == ("collections", "OrderedDict"):  # of hooks: empty
            return dict
        raise pickle.UnpicklingError(f"Unsupported global: GLOBAL {module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        _, kind, key, *_ = pid
        data = bytearray(self.archive.read(f"{self.folder}data/{key}"))
        numbers = torch.frombuffer(data, dtype=kind.dtype).untyped_storage()
        return torch.TypedStorage(wrap_storage=numbers, dtype=kind.dtype, _internal=True)


def is_one(path: str | Path) -> bool:
    """Whether a zip archive is one, as torch.load sees it."""
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def read(path: str | Path) -> dict[str, Tensor]:
    """The state dict of the module in an archive; errors are of many kinds."""
    state, modules = dict[str, Tensor](), dict[str, Any]()
    with zipfile.ZipFile(path) as archive:
        modules[""] = _Reader(archive).load()
    while modules:
        prefix, module = modules.popitem()
        for name, value in vars(module).items():
            if isinstance(value, _Module):
                modules[f"{prefix}{name}."] = value
            elif isinstance(value, Tensor) and name not in _NO_WEIGHTS:
                state[prefix + name] = value
    return state
