"""Weights of other makers: read without running code, and loaded strictly.

open_clip loads weights of one tower with `strict=False` and keeps silent about what didn't fit, so
a file with other names leaves the tower random. Here every tensor of a tower comes from the file,
but for the projection that joins it to the shared space.
"""

import re
import sys
from importlib.metadata import distributions, packages_distributions
from pathlib import Path
from typing import Any

import open_clip
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ..errors import InputError
from . import checkpoint

# What a CLIP tower has no place for: classifier, unused pooler, index buffers.
_LEFT_OUT = re.compile(r"(classifier|fc|head\.fc|head)\.(weight|bias)$|pooler\.|.*position_ids")


def resolve(reference: str, where: str = "") -> str:
    """The path of what `package:NAME/PATH` names inside an installed package; others as they are.

    The reference, not the path, goes into checkpoints, so they open on another machine.

    Raises:
        InputError: no such package, or it holds no such thing.
    """
    scheme, _, rest = reference.partition(":")
    if scheme != "package":
        return reference
    package, _, inner = rest.partition("/")
    # Importing it would run it. The current folder isn't where packages are installed.
    places = [place for place in sys.path if place and Path(place).resolve() != Path.cwd()]
    found = list(distributions(name=package, path=places))
    for name in () if found else packages_distributions().get(package, ()):  # takes a second
        found += distributions(name=name, path=places)
    if not found:
        raise InputError(f"{where}{reference}: the Python package {package} is not installed")
    folder = Path(str(found[0].locate_file(package))).resolve()
    path = (folder / inner).resolve()
    if not path.exists() or not path.is_relative_to(folder):
        raise InputError(f"{where}{reference}: the package {package} holds no {inner}")
    return str(path)


def load_weights(path: str | Path) -> dict[str, Tensor]:
    """The state dict in a .safetensors or torch file, bare or under the key `state_dict`.

    Raises:
        InputError: the file is missing, damaged, holds no tensors, or holds pickled code; as
            `checkpoint.check_weights`.
    """
    if Path(path).suffix == ".safetensors" and Path(path).is_file():
        try:
            state = load_file(path)
        except (SafetensorError, OSError) as error:
            raise checkpoint.damaged(path, "safetensors") from error
    else:
        content = checkpoint.read(path, mmap=True, verify=True)
        state = content.get("state_dict", content) if isinstance(content, dict) else content
    checkpoint.check_weights(state, path)
    return {name.removeprefix("module."): value for name, value in state.items()}


def file_in(folder: Path) -> Path:
    """Its one file of weights, or that of open_clip's own name; an InputError if there is none."""
    names = sorted(file.name for file in folder.iterdir())
    weights = [name for name in names if name.endswith((".safetensors", ".bin", ".pth", ".pt"))]
    # a copy of the hub may hold the same weights in other forms
    weights.sort(key=lambda name: (not name.startswith("open_clip_"), ".safetensors" not in name))
    if weights and (len(weights) == 1 or weights[0].startswith("open_clip_")):
        return folder / weights[0]
    wanted, there = "open_clip_model.safetensors or one other file of weights", weights or names
    raise InputError(f"local-dir:{folder}: wanted is {wanted}; there: {', '.join(there[:5])}")


def check_tag(arch: str, tag: str, definition: dict[str, Any]) -> None:
    """Refuse a tag that open_clip lacks, or of another activation, for which it warns at most."""
    weights = open_clip.get_pretrained_cfg(arch, tag)
    if not weights:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(arch)) or "none"
        raise InputError(
            f"model.pretrained: {tag!r} is neither a file nor a tag of {arch} ({tags})"
        )
    theirs, ours = bool(weights.get("quick_gelu")), bool(definition.get("quick_gelu"))
    if theirs != ours:
        words = {True: "QuickGELU", False: "GELU"}
        remedy = f"use {arch}-quickgelu" if theirs else "drop -quickgelu from the name"
        raise InputError(
            f"model.arch: {arch} uses {words[ours]}, but the weights {tag!r} were "
            f"trained with {words[theirs]}; {remedy}"
        )


def refuse_resized(model: nn.Module, state: dict[str, Tensor], file: Path) -> None:
    """open_clip stretches position tables without a word; that is right for `image_size` only."""
    built = model.state_dict()
    for name, tensor in state.items():
        table = built.get(name, built.get(f"text.{name}"))  # a text tower of its own has a prefix
        if "positional_embedding" in name and table is not None and table.shape != tensor.shape:
            raise InputError(
                f"{file} doesn't fit: {name} is {tuple(tensor.shape)} there and "
                f"{tuple(table.shape)} in the model (another image size or context length)"
            )


def load_image_tower(visual: nn.Module, reference: str) -> None:
    """Load an image classifier's weights into `visual` (an open_clip image tower), in place.

    Args:
        visual: the image tower.
        reference: a file, or `package:NAME/FILE`, with the names of open_clip's tower, a bare timm
            model, or EfficientNet-PyTorch.

    Raises:
        InputError: as `load_weights`; tensors are missing, have another shape, or belong nowhere.
    """
    state = load_weights(resolve(reference))
    tower: nn.Module = getattr(visual, "trunk", visual)  # timm's stands in a trunk
    if tower is not visual and "_conv_stem.weight" in state:
        # EfficientNet-PyTorch has timm's tensors in the same order, then those of the classifier
        state = dict(zip(tower.state_dict(), state.values(), strict=False))
    state = {n.removeprefix("visual.").removeprefix("trunk."): t for n, t in state.items()}
    _load(tower, state, reference)


def load_text_tower(text: nn.Module, reference: str) -> None:
    """Load a Hugging Face encoder's weights into `text` (an open_clip HFTextEncoder), in place.

    Its pooling and projection are left as they are.

    Args:
        text: the text tower.
        reference: a folder, a hub name, or `package:NAME/FOLDER`.

    Raises:
        InputError: a tower of another kind, no such weights, or they don't fit.
    """
    from transformers import AutoModel
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()  # it reports what it didn't find, and goes on
    transformer = getattr(text, "transformer", None)
    if not hasattr(text, "config") or not isinstance(transformer, nn.Module):
        raise InputError(
            "model.pretrained_text: only a Hugging Face text tower (text_cfg.hf_model_name) can "
            "start from other weights; for open_clip's own towers give model.pretrained"
        )
    folder = Path(resolve(reference))  # or a name of the hub: then nothing is there
    files = sorted(folder.glob("model*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
    for file in files:
        load_weights(file)  # what transformers would cast, or end in many lines about
    try:
        source, loaded = AutoModel.from_pretrained(
            str(folder),
            config=text.config,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below, by name
        )
    except Exception as error:  # of several kinds, and many lines
        reason = str(error).strip().partition("\n")[0]
        raise InputError(f"{reference}: no Hugging Face model there ({reason[:200]})") from error
    if sizes := loaded["mismatched_keys"]:
        raise InputError(f"{reference}: has other sizes of {len(sizes)} tensors of the tower")
    encoder = source.get_encoder() if source.config.is_encoder_decoder else source
    every = source.state_dict(keep_vars=True)  # of shared weights all names, the same object
    random = {id(every[name]) for name in loaded["missing_keys"]}
    state = encoder.state_dict(keep_vars=True)
    _load(transformer, {n: t for n, t in state.items() if id(t) not in random}, reference)


def _load(module: nn.Module, state: dict[str, Tensor], reference: str) -> None:
    tower = module.state_dict()
    problems = {
        "lacks": [name for name in tower if name not in state],
        "holds other": [n for n in state if n not in tower and not _LEFT_OUT.match(n)],
        "has other sizes of": [n for n in tower if n in state and state[n].shape != tower[n].shape],
    }
    for problem, names in problems.items():
        if names:
            shown = ", ".join(names[:3]) + (" ..." if len(names) > 3 else "")
            raise InputError(f"{reference}: {problem} {len(names)} tensors of the tower: {shown}")
    module.load_state_dict({name: state[name] for name in tower})
