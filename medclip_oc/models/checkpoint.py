"""Checkpoint files: written whole or not at all, opened without running code from them.

A checkpoint is a dict of tensors and plain Python values that `torch.load(weights_only=True)`
opens. Its `state_dict` has open_clip's names, so open_clip loads the file as it is:

    format      FORMAT
    state_dict  the plain model
    model       what it is: arch, name, definition, preprocess, tokens, files (see factory)
    config      the resolved configuration of the run
    step, epoch, position (pairs consumed), metrics, versions
    training    what resuming needs besides (see training); best.pt is without it
"""

import pickle
import re
import warnings
import zipfile
from argparse import Namespace
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeGuard

import torch
from numpy import dtype
from numpy._core.multiarray import scalar
from safetensors.torch import load_file
from torch import Tensor

from ..config.fields import shorten
from ..errors import DamagedCheckpoint, InputError
from ..runtime.atomic import atomic_file
from ..runtime.git_lfs import pointer
from . import description, torchscript

FORMAT = "medclip_oc/1"
WRAPPERS = ("state_dict", "model_state_dict", "model", "net")  # of weights; the first counts
_PACKAGES = ("medclip_oc", "torch", "torchvision", "open_clip_torch")
# What others write beside the weights: the best score, the arguments. Nothing of it runs.
_HARMLESS: list[Any] = [Namespace, dtype, scalar, (scalar, "numpy.core.multiarray.scalar")]
_HARMLESS += [type(dtype(kind)) for kind in ("f2", "f4", "f8", "i4", "i8", "?")]
# what the refusal of a pickle says, where it is no damage
_CODE = re.compile(r"(unsupported (?:global|class)|reduce)(?:: GLOBAL (\S+))?", re.IGNORECASE)
_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
# what isn't a weight: a batch norm's counter, tables of positions
_WHOLE = re.compile(r".*(num_batches_tracked|position_ids|_index)$")
_LARGEST_SCALE = 10.0  # CLIP ends at 4.6; SigLIP has 4.7


def versions() -> dict[str, str]:
    """Versions of the packages that decide what a checkpoint means."""
    return {name: version(name) for name in _PACKAGES}


def save(path: Path, content: dict[str, Any]) -> int:
    """Write `content` so that `path` holds it, or what it held before; after a power cut too.
    Returns its size in bytes. WorkError: as `atomic_file`.
    """
    with atomic_file(path, durable=True) as partial:
        with partial.open("wb") as file:
            try:
                torch.save({"format": FORMAT, **content}, file)
            except RuntimeError as error:  # torch's own, around that of the system
                raise (error.__context__ or error) from None
        return partial.stat().st_size


def load(path: str | Path, *, verify: bool = True) -> dict[str, Any]:
    """Read a checkpoint that `save` wrote, onto the CPU; see `read`. InputError: the file is
    missing, damaged, not a checkpoint of ours, or holds pickled code.
    """
    content = read(path, verify=verify)
    if not is_ours(content):
        others = "other weights are given by --model ARCH --pretrained FILE, or model.pretrained"
        raise InputError(f"{path}: not a medclip_oc checkpoint (of format {FORMAT}); {others}")
    if "state_dict" in content:
        check_weights(content["state_dict"], path)
    return content


def is_ours(content: object) -> bool:
    """Whether `save` wrote what a file holds."""
    return isinstance(content, dict) and content.get("format") == FORMAT


def read(path: str | Path, *, mmap: bool = False, verify: bool = False) -> Any:
    """What a torch or .safetensors file holds: tensors and plain values.

    `mmap` leaves its tensors on disk until they are used; `verify` compares all of it with its
    CRCs, which `torch.load` doesn't do (needless where another rank has). DamagedCheckpoint: it is
    cut, or a byte of it has changed. InputError: it is missing, or holds pickled code.
    """
    if not Path(path).is_file():
        inside = "a folder; name a file, such as checkpoints/best.pt in a run's"
        raise InputError(f"{path}: {inside if Path(path).is_dir() else 'no such file'}")
    safe = Path(path).suffix == ".safetensors"
    try:
        if safe:
            return load_file(path)
        archive = zipfile.is_zipfile(path)  # a torch file from before 1.6 is none
        if verify and archive and zipfile.ZipFile(path).testzip() is not None:
            raise zipfile.BadZipFile
        # warned is of sparse tensors, and of the storages in a TorchScript archive
        with warnings.catch_warnings(action="ignore"), torch.serialization.safe_globals(_HARMLESS):
            if archive and torchscript.is_one(path):
                return torchscript.read(path)
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap and archive)
    except Exception as error:  # whatever a damaged file trips over
        if isinstance(error, pickle.UnpicklingError) and (held := _CODE.search(str(error))):
            raise InputError(
                f"{path}: refused: it holds pickled Python objects ({held[2] or 'a call'}), which "
                "run code when opened. If you trust it: torch.save(torch.load(FILE, "
                'weights_only=False)["state_dict"], NEW), or of a whole model its state_dict()'
            ) from error
        kind = "safetensors" if safe else "checkpoint"
        problem = pointer(Path(path)) or f"damaged or not a {kind} file; copy or download it again"
        raise DamagedCheckpoint(f"{path}: {problem}") from error


def is_state_dict(content: object) -> TypeGuard[dict[str, Tensor]]:
    """Whether it maps names to tensors."""
    pairs = content.items() if isinstance(content, dict) else ()
    return bool(pairs) and all(isinstance(n, str) and isinstance(t, Tensor) for n, t in pairs)


def check_weights(state: object, where: str | Path) -> None:
    """Refuse a state dict of the file `where` that torch would cast in silence, or take as it is.
    InputError: no mapping of names to tensors; a weight that is no floating-point number, or not
    finite; a `logit_scale` that no model is trained with.
    """
    if not is_state_dict(state):
        held = shorten(list(state) if isinstance(state, dict) else state)
        raise InputError(f"{where}: holds {held}, no state dict (bare or as {', '.join(WRAPPERS)})")
    for name, tensor in state.items():
        if _WHOLE.match(name):
            continue
        plain = tensor.layout == torch.strided and not tensor.is_meta and tensor.dtype in _DTYPES
        # a few stored numbers may stand for any number of them
        if not plain or tensor.nbytes > tensor.untyped_storage().nbytes():
            kind = f"{tensor.dtype}, {tensor.layout}"
            problem = f"{name} ({kind}) is no plain tensor of float32, float16, bfloat16 or float64"
        elif not tensor.isfinite().all():
            problem = f"{name} holds NaN or infinite numbers"
        elif name == "logit_scale" and (scale := tensor.abs().max()) > _LARGEST_SCALE:
            problem = f"logit_scale, the log of the inverse temperature, is {scale:g}; at most 10"
        else:
            continue
        raise InputError(f"{where}: {problem}")


def described_facts(definition: dict[str, Any]) -> dict[str, Any]:
    """What a description says besides, which follows from the definition of the model."""
    text = definition["text_cfg"]
    return {
        "quick_gelu": bool(definition.get("quick_gelu", False)),
        "tokenizer": text.get("hf_tokenizer_name") or "open_clip",
        "context_length": text.get("context_length", 77),
    }


def description_of(content: dict[str, Any], where: str) -> dict[str, Any]:
    """What the content of a checkpoint, from the file `where`, says of its model. InputError: it
    isn't a description, or contradicts itself.
    """
    description.check(description.CHECKPOINT, content, f"{where}: ")
    about: dict[str, Any] = content["model"]
    facts = described_facts(about["definition"])
    told = {fact: about.get(fact, value) for fact, value in facts.items()}
    description.check_equal(f"{where}: made with", told, "its definition has", facts)
    return about
