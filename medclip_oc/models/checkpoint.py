"""Checkpoint files: written whole or not at all, opened without running code from them.

A checkpoint is a dict of tensors and plain Python values that `torch.load(weights_only=True)`
opens. Its `state_dict` has open_clip's names, so open_clip loads the file as it is:

    format      FORMAT
    state_dict  the plain model
    model       what it is: arch, name, definition, preprocess, tokens (see factory)
    config      the resolved configuration of the run
    step, epoch, position (pairs consumed), metrics, versions
    training    what resuming needs besides (see training); best.pt is without it
"""

import pickle
import re
import zipfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from ..errors import DamagedCheckpoint, InputError
from ..runtime.atomic import atomic_file

FORMAT = "medclip_oc/1"
_PACKAGES = ("medclip_oc", "torch", "torchvision", "open_clip_torch")
# what the refusal of a pickle says, where it is no damage
_CODE = re.compile("unsupported (global|class)|reduce", re.IGNORECASE)


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
                raise (error.__context__ or error) from None
        return partial.stat().st_size


def load(path: str | Path, *, verify: bool = True) -> dict[str, Any]:
    """Read a checkpoint that `save` wrote, onto the CPU; see `read`.

    Raises:
        InputError: the file is missing, damaged, not a checkpoint of ours, or holds pickled code.
    """
    content = read(path, verify=verify)
    if not is_ours(content):
        raise InputError(
            f"{path}: not a medclip_oc checkpoint (of format {FORMAT}); "
            "weights of another kind go in through model.pretrained of a training config"
        )
    return content


def is_ours(content: object) -> bool:
    """Whether `save` wrote what a file holds."""
    return isinstance(content, dict) and content.get("format") == FORMAT


def read(path: str | Path, *, mmap: bool = False, verify: bool = False) -> Any:
    """What any torch file holds: tensors and plain values.

    Args:
        path: the file.
        mmap: leave its tensors on disk until they are used.
        verify: compare all of it with its CRCs, which `torch.load` doesn't do; needless where
            another rank has.

    Raises:
        DamagedCheckpoint: it is cut, or a byte of it has changed.
        InputError: it is missing, or holds pickled code.
    """
    if not Path(path).is_file():
        inside = "a folder; name a file, such as checkpoints/best.pt in a run's"
        raise InputError(f"{path}: {inside if Path(path).is_dir() else 'no such file'}")
    try:
        archive = zipfile.is_zipfile(path)  # a torch file from before 1.6 is none
        if verify and archive and zipfile.ZipFile(path).testzip() is not None:
            raise zipfile.BadZipFile
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap and archive)
    except Exception as error:  # whatever a damaged file trips over
        if isinstance(error, pickle.UnpicklingError) and _CODE.search(str(error)):
            raise InputError(
                f"{path}: refused: it holds pickled Python objects, which run code when opened; "
                "only tensors and plain values are read"
            ) from error
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
    """What the content of a checkpoint, from the file `where`, says of its model.

    Raises:
        InputError: it doesn't say all there is to say, or contradicts itself.
    """
    about = content.get("model")
    needed = {"arch", "name", "definition", "preprocess"}
    if not isinstance(about, dict) or needed - about.keys() or "state_dict" not in content:
        raise InputError(f"{where}: the checkpoint doesn't describe its model; it is incomplete")
    for fact, value in described_facts(about["definition"]).items():
        if about.get(fact, value) != value:
            raise InputError(
                f"{where}: made with {fact} {about[fact]!r}, but its definition of "
                f"{about['name']} has {value!r}"
            )
    return about
