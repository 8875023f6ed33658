"""What a model is: its name, and open_clip's full configuration of it, which checkpoints carry."""

import difflib
import json
import logging
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import open_clip

from ..config.schema import ModelConfig
from ..errors import InputError, WorkError
from .pretrained import resolve

PREPROCESS_KEYS = ("mean", "std", "interpolation", "resize_mode")
TEXT_MODEL = "text_model"
"""In an exported folder: the configuration of a Hugging Face text tower."""
_CHOICES = {
    "interpolation": ("bicubic", "bilinear"),
    "resize_mode": ("shortest", "longest", "squash"),
}
# A name becomes a file name in open_clip's registry; one out of a checkpoint could lead anywhere.
_NAME = re.compile(r"[A-Za-z0-9][\w.@+-]*")


def has_schema(arch: str) -> bool:
    """Whether it is the name of a hub's model or of a folder, which brings its own weights."""
    return arch.startswith(("hf-hub:", "local-dir:"))


def folder_of(arch: str) -> Path | None:
    """The folder that an architecture names."""
    return Path(arch.removeprefix("local-dir:")) if arch.startswith("local-dir:") else None


def identify(settings: ModelConfig) -> tuple[str, dict[str, Any]]:
    """Name to register under, and the full open_clip model config with references unresolved.

    Raises:
        InputError: no such architecture, or a definition that lacks a part.
        WorkError: its configuration can't be downloaded.
    """
    arch, definition = settings.arch, deepcopy(settings.definition)
    name = Path(arch.partition(":")[2]).name if has_schema(arch) else arch
    try:
        with quiet():
            registered = open_clip.get_model_config(arch)
    except (OSError, ValueError) as error:  # a hub or a folder
        raise unreachable(f"model.arch: {arch}", error) from error
    if definition is not None:
        mappings = [isinstance(definition.get(key), dict) for key in ("vision_cfg", "text_cfg")]
        if "embed_dim" not in definition or not all(mappings):
            raise InputError(
                "model.definition: needs embed_dim, and the mappings vision_cfg and text_cfg"
            )
        if registered is not None and registered != resolved(definition):
            raise InputError(
                f"model.arch: {arch!r} is open_clip's own; a model given in full "
                "(model.definition) needs a name of its own"
            )
    elif registered is None:
        near = difflib.get_close_matches(arch, open_clip.list_models(), 3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise InputError(f"model.arch: {arch!r} is not an open_clip architecture{hint}")
    else:
        definition, text = registered, registered["text_cfg"]
        if folder := folder_of(arch):  # its tokenizer and text tower are those inside it
            inside = {"hf_tokenizer_name": folder, "hf_model_name": folder / TEXT_MODEL}
            text |= {k: str(path) for k, path in inside.items() if text.get(k) and path.is_dir()}
    if settings.image_size not in (None, definition["vision_cfg"].get("image_size")):
        definition["vision_cfg"]["image_size"] = settings.image_size
        name = f"{name}-{settings.image_size}px"
    return name, definition


def register(name: str, definition: dict[str, Any]) -> None:
    """Make `name` known to open_clip with this definition; its only way is through a file."""
    if not _NAME.fullmatch(name):
        raise InputError(f"model.arch: {name!r} can't name a model; use letters, digits, . @ + - _")
    config = resolved(definition)
    if open_clip.get_model_config(name) != config:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / f"{name}.json"
            file.write_text(json.dumps(config), encoding="utf-8")
            open_clip.add_model_config(file)


def resolved(definition: dict[str, Any]) -> dict[str, Any]:
    """The definition with every `package:` reference turned into a path."""
    text = dict(definition["text_cfg"])
    for key in {"hf_model_name", "hf_tokenizer_name"} & text.keys():
        text[key] = resolve(text[key])
    return {**definition, "text_cfg": text}


def check_preprocess(values: dict[str, Any]) -> None:
    """Refuse preprocessing that open_clip doesn't have, by naming what there is."""
    for key, value in values.items():
        if key not in PREPROCESS_KEYS:
            allowed = ", ".join(PREPROCESS_KEYS)
            raise InputError(f"model.preprocess.{key}: no such setting; allowed: {allowed}")
        if key in _CHOICES:
            fits, form = value in _CHOICES[key], f"one of {', '.join(_CHOICES[key])}"
        else:
            form, fits = "three numbers", isinstance(value, list | tuple) and len(value) == 3
            fits = fits and all(isinstance(number, float | int) for number in value)
        if not fits:
            raise InputError(f"model.preprocess.{key}: {value!r} is not {form}")


@contextmanager
def quiet() -> Iterator[None]:
    """Silence for a while: open_clip narrates on the root logger; our errors say what matters."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)


def unreachable(name: str, error: Exception) -> InputError | WorkError:
    """The error to raise where something could not be loaded, from a folder or from the hub."""
    problem = f"{name}: could not be loaded"
    if isinstance(error, ValueError | FileNotFoundError | ImportError):
        return InputError(f"{problem} ({first_lines(error)})")
    remedy = "model.pretrained takes a local file where there is no network"
    return WorkError(f"{problem}; {remedy} ({first_lines(error)})")


def first_lines(error: Exception) -> str:
    """The beginning of an error's message, in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2])[:300] if lines else type(error).__name__
