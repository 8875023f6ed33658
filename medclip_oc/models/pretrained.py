"""Weights of other makers: read without running code, and loaded strictly.

open_clip loads weights of one tower with `strict=False` and keeps silent about what didn't fit, so
a file with other names leaves the tower random. Here every tensor of a tower comes from the file,
but for the projection that joins it to the shared space.
"""

import re
import sys
import textwrap
from contextlib import suppress
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from open_clip.convert import convert_state_dict
from open_clip.model import convert_to_custom_text_state_dict, resize_pos_embed
from torch import Tensor, nn

from ..errors import InputError
from ..runtime.progress import print_line
from . import averaging, checkpoint, transformers_clip

_KEPT = 20  # positions of a text tower that is stretched
# What wraps a model while it trains: DDP, torch.compile, Lightning, a class of one's own.
_WRAPPED = re.compile(r"^((module|_orig_mod|model|clip|clip_model|net)\.)+")
# What a CLIP tower has no place for: classifier, unused pooler, index buffers.
_LEFT_OUT = re.compile(r"(classifier|_?fc|head\.fc|head)\.(weight|bias)$|pooler\.|.*position_ids")


def resolve(reference: str, where: str = "") -> str:
    """The path of what `package:NAME/PATH` names inside an installed package; others as they are.

    The reference, not the path, goes into checkpoints, so they open on another machine.
    InputError: no such package, or it holds no such thing.
    """
    scheme, _, rest = reference.partition(":")
    if scheme != "package":
        return reference
    package, _, inner = rest.partition("/")
    # Found without importing, which would run it; the current folder isn't one of packages.
    places = [place for place in sys.path if place and Path(place).resolve() != Path.cwd()]
    found = PathFinder.find_spec(package, places)
    if found is None or not found.submodule_search_locations:
        raise InputError(f"{where}{reference}: the Python package {package} is not installed")
    folder = Path(next(iter(found.submodule_search_locations))).resolve()
    path = (folder / inner).resolve()
    if not path.exists() or not path.is_relative_to(folder):
        raise InputError(f"{where}{reference}: the package {package} holds no {inner}")
    return str(path)


def load_weights(path: str | Path) -> dict[str, Tensor]:
    """The state dict in a .safetensors, torch or TorchScript file, by open_clip's names.
    InputError: as `checkpoint.read` and `checkpoint.check_weights`.
    """
    return state_of(checkpoint.read(path, mmap=True, verify=True), path)


def state_of(content: Any, path: str | Path) -> dict[str, Tensor]:
    """The state dict in what the file `path` holds; as `load_weights`."""
    state = content
    for key in checkpoint.WRAPPERS:
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            sets = [str(k) for k, v in state.items() if checkpoint.is_state_dict(v)]
            if len(sets) > 1:
                print_line(f"{path}: holds weights as {', '.join(sets)[:99]}; taken: {key}")
            state = state[key]
    checkpoint.check_weights(state, path)
    plain = {_WRAPPED.sub("", name): value for name, value in state.items()}
    if len(plain) < len(state):
        raise InputError(f"{path}: holds several models; save one's state dict by itself")
    is_clip_model = any(name.startswith("vision_model.") for name in plain)
    return transformers_clip.from_clip_model(plain) if is_clip_model else plain


def file_in(folder: Path) -> Path:
    """Its one file of weights, or that of open_clip's own name; an InputError if there is none."""
    kinds = (".safetensors", ".bin", ".pth", ".pt")
    weights = sorted(file.name for file in folder.glob("*") if file.suffix in kinds)
    # a copy of the hub may hold the same weights in other forms
    usual = ("open_clip_", "model.safetensors", "pytorch_model.bin")  # the latter transformers'
    ranks = {name: [name.startswith(start) for start in usual] for name in weights}
    weights.sort(key=lambda name: (ranks[name], ".safetensors" in name), reverse=True)
    if weights and (len(weights) == 1 or any(ranks[weights[0]])):
        return folder / weights[0]
    raise lacking(folder, "open_clip_model.safetensors or one other file of weights", weights)


def lacking(folder: Path, wanted: str, held: list[str] | None = None) -> InputError:
    """The error where `local-dir:` names what no model can be loaded from."""
    names = held or sorted(file.name for file in folder.glob("*"))
    there = ", ".join(names[:5]) or ("nothing" if folder.is_dir() else "no folder")
    return InputError(f"local-dir:{folder}: wanted is {wanted}; there: {there}")


def check_tag(arch: str, tag: str, definition: dict[str, Any]) -> dict[str, Any]:
    """What open_clip knows of a tag; refused are others, and those of another activation."""
    about: dict[str, Any] = open_clip.get_pretrained_cfg(arch, tag)
    if not about:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(arch)) or "none"
        problem = f"is neither a file nor a tag of {arch} ({textwrap.shorten(tags, 100)})"
        if Path(tag).is_dir():
            problem = f"is a folder; name its file of weights, or the model as local-dir:{tag}"
        raise InputError(f"model.pretrained: {tag!r} {problem}")
    theirs, ours = bool(about.get("quick_gelu")), bool(definition.get("quick_gelu"))
    if theirs != ours:
        words = {True: "QuickGELU", False: "GELU"}
        remedy = f"use {arch}-quickgelu" if theirs else "drop -quickgelu from the name"
        told = f"uses {words[ours]}, but the weights {tag!r} were trained with {words[theirs]}"
        raise InputError(f"model.arch: {arch} {told}; {remedy}")
    return about


def fill(model: Any, weights: averaging.State, where: str, resize: bool) -> None:
    """Load a whole open_clip model, with what open_clip converts on the way.

    It stretches position tables without a word; here, where `resize` asks for another image size.
    InputError: tensors are missing, have another shape, or belong nowhere.
    """
    state: dict[str, Tensor] = dict(weights)
    with suppress(AttributeError, KeyError):  # a model of another kind
        state = convert_state_dict(model, state)  # of MobileCLIP
    if not hasattr(model, "positional_embedding"):
        state = convert_to_custom_text_state_dict(state)
    for name, ours in model.named_parameters(recurse=False):
        if name in state and ours.numel() == state[name].numel() == 1:
            state[name] = state[name].reshape(ours.shape)  # (), or (1,)
    if resize:
        resize_pos_embed(state, model)
    _load(model, state, where)


def stretch_positions(state: dict[str, Tensor], length: int) -> str:
    """Stretch the position table (L, width) of open_clip's text tower, in place, where a context is
    to be longer: the first 20 positions stay, which see nearly all training, and the others are
    interpolated linearly (Long-CLIP, Zhang et al. 2024). Returns what was done, in words.
    """
    for name in ("positional_embedding", "text.positional_embedding"):
        table = state.get(name)
        if table is not None and table.dim() == 2 and _KEPT < len(table) < length:
            rest = table[_KEPT:].T[None].float()  # (1, width, L - 20)
            rest = F.interpolate(rest, length - _KEPT, mode="linear", align_corners=True)
            state[name] = torch.cat([table[:_KEPT], rest[0].T.to(table.dtype)])  # (length, width)
            return f"the first {_KEPT} of {len(table)} positions stay, others stretch to {length}"
    return ""


def load_image_tower(visual: nn.Module, reference: str) -> None:
    """Load an image classifier's weights into `visual` (an open_clip image tower), in place.

    `reference` is a file, or `package:NAME/FILE`, with the names of open_clip's tower, a bare timm
    model, or EfficientNet-PyTorch. InputError: as `load_weights`; tensors are missing, have another
    shape, or belong nowhere.
    """
    state = load_weights(resolve(reference))
    tower: nn.Module = getattr(visual, "trunk", visual)  # timm's stands in a trunk
    if tower is not visual and "_conv_stem.weight" in state:
        # EfficientNet-PyTorch has timm's tensors in the same order, then those of the classifier
        names = [*tower.state_dict()]
        names += [*state][len(names) :]
        state = dict(zip(names, state.values(), strict=False))
    state = {n.removeprefix("visual.").removeprefix("trunk."): t for n, t in state.items()}
    _load(tower, state, reference)


def load_text_tower(text: nn.Module, reference: str) -> None:
    """Load a Hugging Face encoder's weights into `text` (an open_clip HFTextEncoder), in place.

    Its pooling and projection are left as they are. `reference` is a folder, a hub name, or
    `package:NAME/FOLDER`. InputError: a tower of another kind, no such weights, or they don't fit.
    """
    from transformers import AutoModel
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()  # it reports what it didn't find, and goes on
    transformer = getattr(text, "transformer", None)
    if not hasattr(text, "config") or not isinstance(transformer, nn.Module):
        towers = "only a Hugging Face text tower (text_cfg.hf_model_name) can start from it"
        raise InputError(f"model.pretrained_text: {towers}; others take model.pretrained")
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
        reason = textwrap.shorten(str(error), 200, placeholder=" ...")
        raise InputError(f"{reference}: no Hugging Face model there ({reason})") from error
    if sizes := loaded["mismatched_keys"]:
        raise InputError(f"{reference}: {len(sizes)} tensors of another size")
    encoder = source.get_encoder() if source.config.is_encoder_decoder else source
    every = source.state_dict(keep_vars=True)  # of shared weights all names, the same object
    random = {id(every[name]) for name in loaded["missing_keys"]}
    state = encoder.state_dict(keep_vars=True)
    _load(transformer, {n: t for n, t in state.items() if id(t) not in random}, reference)


def _load(module: nn.Module, state: dict[str, Tensor], where: str) -> None:
    own = module.state_dict()
    problems = {
        "missing": [name for name in own if name not in state],
        "too many": [n for n in state if n not in own and not _LEFT_OUT.match(n)],
        "of another size": [n for n in own if n in state and state[n].shape != own[n].shape],
    }
    for problem, names in problems.items():
        if names:
            shown = ", ".join(names[:2]) + (" ..." if len(names) > 2 else "")
            raise InputError(f"{where}: {len(names)} of {len(own)} tensors {problem}: {shown}")
    if dropped := [n for n in state if n not in own and "position_ids" not in n]:
        print_line(f"{where}: left out, as CLIP has no place for it: {', '.join(dropped)[:150]}")
    module.load_state_dict({name: state[name] for name in own})
