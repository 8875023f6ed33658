"""What a model is: its name, and open_clip's full configuration of it, which checkpoints carry."""

import difflib
import json
import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import open_clip
from open_clip.pretrained import download_pretrained_from_hf

from ..config.schema import ModelConfig
from ..errors import InputError, WorkError
from ..runtime.progress import print_line
from . import description
from .pretrained import resolve

PREPROCESS_KEYS = ("mean", "std", "interpolation", "resize_mode")
CONFIG = "open_clip_config.json"
TEXT_MODEL, TOKENIZER = "text_model", "tokenizer"
"""Folders: the configuration of a Hugging Face text tower, and its tokenizer."""
REFERENCES = {"hf_tokenizer_name": TOKENIZER, "hf_model_name": TEXT_MODEL}
_BUILT_IN = frozenset(open_clip.list_models())


def has_schema(arch: str) -> bool:
    """Whether it is the name of a hub's model or of a folder, which brings its own weights."""
    return arch.startswith(("hf-hub:", "local-dir:"))


def folder_of(arch: str) -> Path | None:
    """The folder that an architecture names."""
    return Path(arch.removeprefix("local-dir:")) if arch.startswith("local-dir:") else None


def identify(settings: ModelConfig) -> tuple[str, dict[str, Any]]:
    """Name to register under, and the full open_clip model config with references unresolved.

    Raises:
        InputError: no such architecture, or a definition that isn't one.
        WorkError: its configuration can't be downloaded.
    """
    arch, definition = settings.arch, deepcopy(settings.definition)
    name = Path(arch.partition(":")[2]).name if has_schema(arch) else arch
    description.check(description.Name, name, "model.arch")
    if definition is not None:
        description.check(description.DEFINITION, definition, "model.definition.")
        if arch in _BUILT_IN and open_clip.get_model_config(arch) != definition:
            raise InputError(
                f"model.arch: {arch!r} is open_clip's own; a model given in full "
                "(model.definition) needs a name of its own"
            )
    elif has_schema(arch):
        definition = described(arch)["model_cfg"]
    elif (definition := open_clip.get_model_config(arch)) is None:
        near = difflib.get_close_matches(arch, open_clip.list_models(), 3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise InputError(f"model.arch: {arch!r} is not an open_clip architecture{hint}")
    if settings.image_size not in (None, definition["vision_cfg"].get("image_size")):
        definition["vision_cfg"]["image_size"] = settings.image_size
        name = f"{name}-{settings.image_size}px"
    return name, definition


def described(arch: str) -> dict[str, Any]:
    """The `open_clip_config.json` of a folder, whose tokenizer and text tower are those inside it,
    or of a hub's model.

    Raises:
        InputError: it describes no model, or leads out of the folder.
        WorkError: it can't be downloaded.
    """
    folder = folder_of(arch)
    try:
        file = folder / CONFIG if folder else Path(download_pretrained_from_hf(arch[7:], CONFIG))
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise unreachable(f"model.arch: {arch}", error) from error
    description.check(description.FOLDER, content, f"{file}: ")
    text = content["model_cfg"]["text_cfg"]
    for key, place in {"hf_tokenizer_name": "", "hf_model_name": TEXT_MODEL}.items():
        if folder and text.get(key) and (folder / place).is_dir():
            text[key] = str(folder / place)
        elif (path := Path(text.get(key) or "")).is_absolute() or ".." in path.parts:
            raise InputError(f"{file}: {key}: {text[key]} leads out of the folder")
    return content


def register(name: str, definition: dict[str, Any], where: str = "model.definition") -> None:
    """Make `name` known to open_clip with this definition; its only way is through a file.

    Raises:
        InputError, WorkError: its text tower or tokenizer isn't there, or the tower would run code.
    """
    text = dict(definition["text_cfg"])
    for key in [key for key in REFERENCES if text.get(key)]:
        text[key] = resolve(text[key])
        if not (place := Path(text[key])).is_dir():
            if place.is_absolute():
                raise InputError(f"{where}: {key}: {place}: no such folder")
            if os.environ.get("RANK", "0") == "0":
                print_line(f"{where}: {key}: {place} comes from the Hugging Face hub")
    if text.get("hf_model_name"):
        _check_text_tower(text["hf_model_name"], f"{where}: hf_model_name")
    config = {**definition, "text_cfg": text}
    if open_clip.get_model_config(name) != config:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / f"{name}.json"
            file.write_text(json.dumps(config), encoding="utf-8")
            open_clip.add_model_config(file)


def _check_text_tower(source: str, where: str) -> None:
    """Refuse a config.json that would have transformers run code, or build for ever."""
    from transformers import PretrainedConfig

    try:
        with quiet():
            items = list(PretrainedConfig.get_config_dict(source)[0].items())
    except Exception as error:  # transformers' are of many kinds
        raise unreachable(f"{where}: {source}", error) from error
    for key, value in items:
        if key == "auto_map" or ("implementation" in key and "/" in str(value)):
            problem = "names Python code, and none but transformers' own is run"
        elif isinstance(value, int) and value > (1000 if "layers" in key else 2**20):
            problem = f"{value} is too large"
        else:
            continue
        raise InputError(f"{where}: {source}/config.json: {key}: {problem}")


def carried(model: Any, tokenizer: Any, definition: dict[str, Any]) -> dict[str, bytes]:
    """What is Hugging Face's of a model, for its checkpoints: the files of its tokenizer, and the
    configuration of its text tower.
    """
    text = definition["text_cfg"]
    with tempfile.TemporaryDirectory() as folder:
        if text.get("hf_tokenizer_name"):
            tokenizer.save_pretrained(f"{folder}/{TOKENIZER}")
        if text.get("hf_model_name"):
            model.text.config.save_pretrained(f"{folder}/{TEXT_MODEL}")
        files = [file for file in sorted(Path(folder).glob("*/*")) if file.stat().st_size]
        return {f"{file.parent.name}/{file.name}": file.read_bytes() for file in files}


@contextmanager
def unpacked(about: dict[str, Any], where: str) -> Iterator[dict[str, Any]]:
    """The definition that a checkpoint describes, with what it carries in a temporary folder.

    Raises:
        InputError: what it doesn't carry lies somewhere up from the current folder.
    """
    text = dict(about["definition"]["text_cfg"])
    with tempfile.TemporaryDirectory() as folder:
        for name, data in about.get("files", {}).items():
            file = Path(folder, name)
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(data)
        for key, place in REFERENCES.items():
            if text.get(key) and Path(folder, place).is_dir():
                text[key] = f"{folder}/{place}"
            elif ".." in Path(text.get(key) or "").parts:
                raise InputError(f"{where}: {key}: {text[key]} leads out of the current folder")
        yield {**about["definition"], "text_cfg": text}


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
    if not isinstance(error, OSError | RuntimeError) or isinstance(error, FileNotFoundError):
        return InputError(f"{problem} ({first_lines(error)})")
    remedy = "model.pretrained takes a local file where there is no network"
    return WorkError(f"{problem}; {remedy} ({first_lines(error)})")


def first_lines(error: Exception) -> str:
    """The beginning of an error's message, in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2])[:300] if lines else type(error).__name__
