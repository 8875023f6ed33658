"""Checkpoint files: written whole or not at all, opened without running code from them.

A checkpoint is a dict of tensors and plain Python values that `torch.load(weights_only=True)`
opens. Its `state_dict` has open_clip's names, so open_clip loads the file as it is:

    format      FORMAT
    state_dict  the plain model
    model       what it is: arch, name, definition, preprocess, quick_gelu (see factory.py)
    config      the resolved configuration of the run
    step, epoch, position (pairs consumed), metrics, versions
    training    what resuming needs besides (see training); best.pt is without it
"""

import pickle
import re
import zipfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import DamagedCheckpoint, InputError
from ..runtime.atomic import atomic_file

FORMAT = "medclip_oc/1"
_PACKAGES = ("medclip_oc", "torch", "torchvision", "open_clip_torch")
_PROBE = "Chest X-ray: 3.5 cm mass, pleural effusion"


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
    with atomic_file(path, durable=True) as partial:
        with partial.open("wb") as file:
            try:
                torch.save({"format": FORMAT, **content}, file)
            except RuntimeError as error:  # torch's own, around that of the system
                raise _system_error(error) from error
        return partial.stat().st_size


def _system_error(error: BaseException) -> BaseException:
    """The error that the system gave, where torch reports a failed write as one of its own."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__context__
    return cause or OSError(str(error).partition("\n")[0])


def load(path: str | Path, *, verify: bool = True) -> dict[str, Any]:
    """Read a checkpoint that `save` wrote, onto the CPU.

    Args:
        path: the file.
        verify: whether to compare all of it with its checksums; off where another rank has.

    Raises:
        DamagedCheckpoint: it is cut, or a byte of it has changed.
        InputError: the file is missing, not a checkpoint of ours, or holds pickled code.
    """
    if verify:
        _verify(Path(path))
    content = _read(Path(path))
    form = content.get("format") if isinstance(content, dict) else None
    if form != FORMAT:
        raise InputError(
            f"{path}: not a medclip_oc checkpoint (format {form!r}, expected {FORMAT!r}); "
            "weights of another kind go in through model.pretrained of a training config"
        )
    return content


def load_header(path: str | Path) -> dict[str, Any] | None:
    """Open a checkpoint of ours without reading its tensors; None for a torch file of others."""
    # a torch file from before 1.6 can't be mapped into memory
    content = _read(Path(path), mmap=zipfile.is_zipfile(path))
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


def _require(path: Path) -> None:
    if not path.is_file():
        raise InputError(f"{path}: {'a folder, not a' if path.is_dir() else 'no such'} file")


def _verify(path: Path) -> None:
    """Compare the members of the zip archive with their CRCs, which `torch.load` doesn't do."""
    _require(path)
    try:
        with path.open("rb") as file:
            intact = not zipfile.is_zipfile(file) or zipfile.ZipFile(file).testzip() is None
    except Exception:  # whatever a damaged archive trips over
        intact = False
    if not intact:
        raise DamagedCheckpoint(f"{path}: damaged or not a checkpoint file (a checksum differs)")


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
    except (RuntimeError, EOFError, OSError, ValueError, LookupError, zipfile.BadZipFile) as error:
        raise DamagedCheckpoint(f"{path}: damaged or not a checkpoint file") from error


def described_facts(definition: dict[str, Any]) -> dict[str, Any]:
    """What a description says besides, which follows from the definition of the model."""
    text = definition["text_cfg"]
    return {
        "quick_gelu": bool(definition.get("quick_gelu", False)),
        "tokenizer": text.get("hf_tokenizer_name") or "open_clip",
        "context_length": text.get("context_length", 77),
    }


def description_of(content: dict[str, Any], where: str) -> dict[str, Any]:
    """What a checkpoint says of its model.

    Args:
        content: see `load`.
        where: the file's name, for errors.

    Raises:
        InputError: it doesn't say all there is to say, or contradicts itself.
    """
    description = content.get("model")
    needed = {"arch", "name", "definition", "preprocess"}
    complete = isinstance(description, dict) and needed <= description.keys()
    if not complete or description is None or "state_dict" not in content:
        raise InputError(f"{where}: the checkpoint doesn't describe its model; it is incomplete")
    for name, value in described_facts(description["definition"]).items():
        if description.get(name, value) != value:
            raise InputError(
                f"{where}: made with {name} {description[name]!r}, but its definition of "
                f"{description['name']} has {value!r}"
            )
    return description


def probe_tokens(tokenizer: Callable[[list[str]], Tensor]) -> list[int]:
    """What a tokenizer makes of a fixed text: tells it from others."""
    tokens: list[int] = tokenizer([_PROBE])[0].tolist()
    return tokens


def check_tokens(
    tokenizer: Callable[[list[str]], Tensor], description: dict[str, Any], where: str
) -> None:
    """Refuse another tokenizer than the one that the weights were trained with.

    Raises:
        InputError: shows what both make of one text.
    """
    there = description.get("tokens")  # absent from early checkpoints
    here = probe_tokens(tokenizer)
    if there and here != there:
        raise InputError(
            f"{where}: made with a tokenizer ({description['tokenizer']}) that isn't the one here: "
            f"{_PROBE!r} was {there[:12]}..., and is {here[:12]}..."
        )
