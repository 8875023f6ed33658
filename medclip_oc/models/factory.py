"""open_clip models: built, described and restored without guessing.

What a model is stands in its description, which every checkpoint carries and which alone decides
how the checkpoint is opened.
"""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import open_clip
import torch

from ..config.schema import ModelConfig
from ..errors import InputError
from . import checkpoint, pretrained
from .clip import Clip, Towers, tokenizer_of
from .definition import (
    PREPROCESS_KEYS,
    check_preprocess,
    exported_folder,
    first_lines,
    has_schema,
    identify,
    quiet,
    register,
    unreachable,
)

_CONVERTED = (".npz", ".npy")
"""big_vision's weights, which open_clip renames."""


def build(settings: ModelConfig, *, seed: int = 0) -> Clip:
    """Build the model the settings name, on the CPU, in float32.

    Raises:
        InputError: an unknown architecture or tag, weights that don't fit, or a bad definition.
        WorkError: weights that can't be downloaded.
    """
    torch.manual_seed(seed)
    check_preprocess(settings.preprocess or {})
    if settings.pretrained and has_schema(settings.arch):
        raise InputError(
            f"model.pretrained: {settings.arch} brings its own weights; leave pretrained out"
        )
    name, definition = identify(settings)
    register(name, definition)
    preprocess = _check_pretrained(settings, name, definition) or settings.preprocess or {}
    source, file = name, settings.pretrained
    if folder := exported_folder(settings.arch):  # its own file names a path that may be gone
        about = json.loads((folder / "open_clip_config.json").read_text())
        preprocess = {**about.get("preprocess_cfg", {}), **preprocess}
        file = str(folder / "open_clip_model.safetensors")
    elif has_schema(settings.arch):
        source = settings.arch
    model = _create(source, pretrained=file, preprocess=preprocess, image_size=settings.image_size)
    if settings.image_size is None:
        _refuse_resized(model, settings.pretrained)
    if settings.pretrained_image:
        weights = checkpoint.load_weights(pretrained.resolve(settings.pretrained_image))
        pretrained.load_image_tower(model.visual, weights, settings.pretrained_image)
    if settings.pretrained_text:
        pretrained.load_text_tower(getattr(model, "text", model), settings.pretrained_text)
    description = {
        "arch": settings.arch,
        "name": name,
        "definition": definition,
        "preprocess": _plain(model.visual.preprocess_cfg),
        **checkpoint.described_facts(definition),
    }
    clip = _assemble(model, description, settings)
    description["tokens"] = checkpoint.probe_tokens(clip.tokenizer)
    return clip


def restore(content: dict[str, Any], where: str, settings: ModelConfig | None = None) -> Clip:
    """Build the model that a checkpoint describes, with its weights.

    Args:
        content: what `checkpoint.load` returned.
        where: the file's name, for errors.
        settings: how it is trained, where training resumes; as `build` would.

    Raises:
        InputError: the weights don't fit the description.
    """
    description = checkpoint.description_of(content, where)
    name = description["name"]
    register(name, description["definition"])
    sizes = {key: description["preprocess"][key] for key in PREPROCESS_KEYS}
    model = _create(name, pretrained=None, preprocess=sizes, image_size=None)
    built = _plain(model.visual.preprocess_cfg)
    if built != description["preprocess"]:
        raise InputError(
            f"{where}: made with preprocessing {description['preprocess']}, "
            f"but {name} is built with {built}"
        )
    try:
        model.load_state_dict(content["state_dict"])
    except RuntimeError as error:
        raise InputError(
            f"{where}: its weights don't fit its own description, {name} ({first_lines(error)})"
        ) from error
    clip = _assemble(model, description, settings)
    checkpoint.check_tokens(clip.tokenizer, description, where)
    return clip


def load(path: str | Path) -> Clip:
    """Open a checkpoint file: `checkpoint.load`, then `restore`."""
    return restore(checkpoint.load(path), str(path))


def trained_clip(path: str, device: torch.device) -> tuple[Clip, dict[str, Any]]:
    """A checkpoint's model on the device, and the configuration it was trained with."""
    content = checkpoint.load(path)
    clip = restore(content, path)
    clip.towers.to(device).eval()
    return clip, content["config"]


def baseline_clip(name: str, trained: dict[str, Any] | None, device: torch.device) -> Clip:
    """A model to compare a checkpoint with, on the device.

    Args:
        name: a checkpoint file; `start`, the weights that the checkpoint's run began from; an
            open_clip tag of the run's architecture; or ARCHITECTURE:TAG; or `hf-hub:ORG/NAME`.
        trained: the configuration of its run. None: there is no checkpoint.
        device: where it goes.

    Raises:
        InputError: nothing of that name.
    """
    if Path(name).is_file():
        return trained_clip(name, device)[0]
    if name.endswith(".pt"):
        raise InputError(f"--baseline: {name}: no such file")
    arch, _, tag = name.rpartition(":")
    seed = 0
    if has_schema(name):
        settings = ModelConfig(arch=name)
    elif arch:
        settings = ModelConfig(arch=arch, pretrained=tag)
    elif trained is None:
        raise InputError(f"--baseline {name}: needs --checkpoint, whose architecture it takes")
    elif name == "start":
        keys = {f.name for f in fields(ModelConfig)}
        settings = ModelConfig(**{k: v for k, v in trained["model"].items() if k in keys})
        seed = trained["run"]["seed"]
    else:
        settings = ModelConfig(arch=str(trained["model"]["arch"]), pretrained=tag)
    clip = build(settings, seed=seed)
    clip.towers.to(device).eval()
    return clip


def _assemble(model: Any, description: dict[str, Any], settings: ModelConfig | None) -> Clip:
    """Make a model ready, to be trained by the settings where there are some.

    open_clip builds by the definition that is registered, so the activation is the described one.
    """
    if settings is not None:
        # every parameter that trains must be in the loss, or several processes would disagree
        if hasattr(model, "text_decoder"):
            raise InputError(
                f"model.arch: {settings.arch} is a CoCa; its text decoder has no contrastive loss"
            )
        if getattr(model, "logit_bias", None) is not None:
            model.logit_bias.requires_grad_(False)  # InfoNCE's softmax cancels it; see train_bias
        if settings.grad_checkpointing:
            model.set_grad_checkpointing()
    towers = Towers(model, freeze_batch_norm=settings is None or settings.freeze_batch_norm)
    return Clip(towers, tokenizer_of(description["name"]), description)


def _create(
    name: str, *, pretrained: str | None, preprocess: dict[str, Any], image_size: int | None
) -> Any:
    is_file = Path(pretrained or "").is_file()
    try:
        with quiet():
            return open_clip.create_model(
                name,
                pretrained=str(Path(str(pretrained)).resolve()) if is_file else pretrained,
                force_image_size=image_size,
                force_preprocess_cfg=preprocess,
                # A Hugging Face text tower gets its weights from model.pretrained_text, checked.
                pretrained_text=False,
            )
    # an unknown key of a section, or numbers that make no network
    except (TypeError, ZeroDivisionError, IndexError, AttributeError) as error:
        message = f"model.definition: {name} can't be built: {first_lines(error)}"
        raise InputError(message) from error
    except (RuntimeError, AssertionError, OSError, ValueError, KeyError) as error:
        if is_file:
            message = f"model.pretrained: {pretrained} doesn't fit {name} ({first_lines(error)})"
            raise InputError(message) from error
        raise unreachable(f"model: {name} {pretrained or ''}".strip(), error) from error


def _refuse_resized(model: Any, file: str | None) -> None:
    """open_clip stretches position tables without a word; that is right for `image_size` only."""
    if file is None or not Path(file).is_file() or Path(file).suffix in _CONVERTED:
        return
    built = model.state_dict()
    for name, tensor in checkpoint.load_weights(file).items():
        if "positional_embedding" in name and name in built and built[name].shape != tensor.shape:
            raise InputError(
                f"model.pretrained: {file} doesn't fit: {name} is {tuple(tensor.shape)} there and "
                f"{tuple(built[name].shape)} in the model (another image size or context length)"
            )


def _check_pretrained(
    settings: ModelConfig, name: str, definition: dict[str, Any]
) -> dict[str, Any] | None:
    """Refuse weights that another architecture or activation made; open_clip warns at most.

    Returns:
        The preprocessing that came with the weights, if they are a checkpoint of ours.
    """
    source = settings.pretrained
    if source is None:
        return None
    if Path(source).is_file():
        foreign = Path(source).suffix in (".safetensors", *_CONVERTED)
        return None if foreign else _check_own_checkpoint(source, settings, name, definition)
    tag = open_clip.get_pretrained_cfg(settings.arch, source)
    if not tag:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(settings.arch)) or "none"
        raise InputError(
            f"model.pretrained: {source!r} is neither a file nor a tag of {settings.arch} ({tags})"
        )
    theirs, ours = bool(tag.get("quick_gelu")), bool(definition.get("quick_gelu"))
    if theirs != ours:
        words = {True: "QuickGELU", False: "GELU"}
        raise InputError(
            f"model.arch: {settings.arch} uses {words[ours]}, but the weights {source!r} were "
            f"trained with {words[theirs]}; "
            + (f"use {settings.arch}-quickgelu" if theirs else "drop -quickgelu from the name")
        )
    return None


def _check_own_checkpoint(
    path: str, settings: ModelConfig, name: str, definition: dict[str, Any]
) -> dict[str, Any] | None:
    content = checkpoint.load_header(path)
    if content is None:  # weights of another tool: open_clip compares names and shapes
        return None
    theirs = checkpoint.description_of(content, path)
    if theirs["definition"] != definition:
        raise InputError(
            f"model.pretrained: {path} holds {theirs['name']} {theirs['definition']}, "
            f"but the configuration asks for {name} {definition}"
        )
    made_with = {key: theirs["preprocess"][key] for key in PREPROCESS_KEYS}
    asked = made_with | _plain(settings.preprocess or {})
    if asked != made_with:
        raise InputError(
            f"model.preprocess: {path} was trained with {made_with}, "
            f"but the configuration asks for {asked}"
        )
    return made_with


def _plain(value: Any) -> Any:
    """Tuples to lists, so that a description equals itself after a round trip."""
    return json.loads(json.dumps(value))
