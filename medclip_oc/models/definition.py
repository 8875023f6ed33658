"""What a model is: its name, and open_clip's full configuration of it, which checkpoints carry."""

import difflib
import json
import logging
import re
import tempfile
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import open_clip
from huggingface_hub import constants, get_session
from open_clip.pretrained import download_pretrained_from_hf
from torch import Tensor

from ..config.schema import ModelConfig
from ..errors import InputError, WorkError
from ..runtime.progress import print_line
from . import description, transformers_clip
from .pretrained import lacking, resolve

_PARTS = {
    ("blocks.", "layer1.", "conv_stem."): "an image tower alone, for model.pretrained_image",
    ("encoder.layer.", "bert."): "a text tower alone, whose folder model.pretrained_text takes",
    ("visual_encoder.", "vision_model"): "a model of another kind, such as BLIP",
}
"""What files of weights hold, by how some of their names begin."""
_BUILT_IN = {name: open_clip.get_model_config(name) for name in open_clip.list_models()}


def has_schema(arch: str) -> bool:
    """Whether it is the name of a hub's model or of a folder, which brings its own weights."""
    return arch.startswith(("hf-hub:", "local-dir:"))


def folder_of(arch: str) -> Path | None:
    """The folder that an architecture names."""
    schema, _, place = arch.partition(":")
    return Path(place).expanduser().resolve() if schema == "local-dir" else None


def weights_of(arch: str, pretrained: str | None, *towers: str | None) -> str:
    """Where the weights of a model begin, in words, and those of its image and text towers."""
    random = "" if all(towers) else "random weights"
    whole = "its own weights" if has_schema(arch) else pretrained or random
    return ", but for ".join(filter(None, (whole, " and ".join(filter(None, towers)))))


def identify(settings: ModelConfig) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Name to register under, the full open_clip model config with references unresolved, and the
    preprocessing that a hub's model or a folder brings. InputError: no such architecture, or a
    definition that isn't one. WorkError: its configuration can't be downloaded.
    """
    arch, definition = settings.arch, deepcopy(settings.definition)
    preprocess = dict[str, Any]()
    name = arch
    if has_schema(arch):
        last = (folder_of(arch) or Path(arch.partition(":")[2])).name
        name = re.sub(r"[^\w.-]+", "-", last, flags=re.ASCII).strip("-._") or "model"
    description.check(description.Name, name, "model.arch")
    if definition is not None:
        description.check(description.DEFINITION, definition, "model.definition.")
        if definition != _BUILT_IN.get(arch, definition):
            raise InputError(f"model.arch: {arch!r} is open_clip's own; name the definition anew")
    elif has_schema(arch):
        definition, preprocess = _described(arch)
    elif not (definition := deepcopy(_BUILT_IN.get(arch)) or open_clip.get_model_config(arch)):
        near = difflib.get_close_matches(arch, open_clip.list_models(), 3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise InputError(f"model.arch: {arch!r} is not an open_clip architecture{hint}")
    if settings.image_size not in (None, definition["vision_cfg"].get("image_size")):
        definition["vision_cfg"]["image_size"] = settings.image_size
        name = f"{name}-{settings.image_size}px"
    length, own = settings.context_length, definition["text_cfg"].get("context_length", 77)
    if length is not None and length != own:
        if length < own:
            raise InputError(f"model.context_length: {length} is less than the {own} of {arch}")
        definition["text_cfg"]["context_length"] = length
        name = f"{name}-{length}tokens"
    return name, definition, preprocess


def _described(arch: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a hub's model or a folder says of itself: in open_clip's way, or as a CLIPModel."""
    processor, names = dict[str, Any](), ("open_clip_config.json", "config.json")
    if (folder := folder_of(arch)) and not any((folder / name).exists() for name in names):
        raise lacking(folder, "open_clip_config.json or a CLIPModel's config.json, and weights")
    try:
        file, content = _json_of(arch, *names)
        if file.name == "config.json":
            with suppress(FileNotFoundError):  # then as OpenAI's
                _, processor = _json_of(arch, "preprocessor_config.json")
    except (OSError, ValueError, RecursionError) as error:
        remedy = "local-dir:FOLDER takes a copy of its files"
        raise unreachable(f"model.arch: {arch}", error, remedy) from error
    if file.name == "config.json":
        description.check(description.CLIP_MODEL, content, f"{file}: ")
        description.check(description.CLIP_PROCESSOR, processor, f"{file}: ")
        definition = transformers_clip.definition_of(content)
        description.check(description.DEFINITION, definition, f"{file}: ")
        return definition, transformers_clip.preprocess_of(processor)
    description.check(description.FOLDER, content, f"{file}: ")
    _look_inside(folder_of(arch), content["model_cfg"]["text_cfg"], str(file))
    return content["model_cfg"], content.get("preprocess_cfg", {})


def _json_of(arch: str, *names: str) -> tuple[Path, Any]:
    file = fetch(arch, *names)
    return file, json.loads(file.read_text(encoding="utf-8"))


def fetch(arch: str, name: str, *others: str) -> Path:
    """The first of these files that a folder or a hub's model has; of the latter, downloaded.
    FileNotFoundError: none of them is there.
    """
    folder = folder_of(arch)
    if not folder:
        look_for_hub()
    try:
        file = folder / name if folder else Path(download_pretrained_from_hf(arch[7:], name))
        file.stat()
    except FileNotFoundError:
        if others:
            return fetch(arch, *others)
        raise
    return file


@cache
def look_for_hub() -> None:
    """Have its cache alone looked at where the hub is out of reach: else its library tries for half
    a minute for each file.
    """
    try:
        get_session().head(constants.ENDPOINT, timeout=10)
    except Exception:  # of many kinds
        constants.HF_HUB_OFFLINE = True


def _look_inside(folder: Path | None, text: dict[str, Any], where: str, up: str = "/") -> None:
    """Let the text tower and its tokenizer be those inside a folder, or no path that leads `up`."""
    for key, place in (("hf_tokenizer_name", ""), ("hf_model_name", description.TEXT_MODEL)):
        if folder and text.get(key) and (folder / place).is_dir():
            text[key] = str(folder / place)
        elif {"..", up} & {*Path(text.get(key) or "").parts}:
            raise InputError(f"{where}: {key}: {text[key]} leads out of the folder")


def register(name: str, definition: dict[str, Any], where: str = "model.definition") -> None:
    """Make `name` known to open_clip with this definition; its only way is through a file.
    InputError, WorkError: its text tower isn't there, or would run code.
    """
    text = dict(definition["text_cfg"])
    for key in [key for key in ("hf_tokenizer_name", "hf_model_name") if text.get(key)]:
        text[key] = resolve(text[key], f"{where}: {key}: ")
        if text[key].startswith("/") and not Path(text[key]).is_dir():
            raise InputError(f"{where}: {key}: {text[key]}: no such folder")
        if not (place := Path(text[key])).is_dir():
            print_line(f"{where}: {key}: {text[key]}: from the Hugging Face hub")
            look_for_hub()
        elif "tok" in key and not [*place.glob("[tv]o[kc]*"), *place.glob("*.model")]:
            raise InputError(f"{where}: {key}: {place} holds no tokenizer (tokenizer.json, ...)")
    if tower := text.get("hf_model_name"):
        try:
            from transformers import PretrainedConfig  # of an extra

            about, _ = PretrainedConfig.get_config_dict(tower)
        except Exception as error:  # of many kinds
            remedy = f"put its config.json into {description.TEXT_MODEL}/ of the folder"
            raise unreachable(f"{where}: hf_model_name: {tower}", error, remedy) from error
        description.check(description.TEXT_TOWER, about, f"{where}: {tower}/config.json: ")
        length, limit = text.get("context_length", 77), about.get("max_position_embeddings", 2**20)
        if "roberta" in about["model_type"]:  # its positions begin after that of the padding
            limit -= about.get("pad_token_id", 1) + 1
        if length > limit:
            raise InputError(f"{where}: context_length: {length}; {tower} has {limit} positions")
    config = {**definition, "text_cfg": text}
    if open_clip.get_model_config(name) != config:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / f"{name}.json"
            file.write_text(json.dumps(config), encoding="utf-8")
            open_clip.add_model_config(file)


def carried(model: Any, tokenizer: Any, definition: dict[str, Any]) -> dict[str, bytes]:
    """The files of a Hugging Face tokenizer, and the configuration of such a text tower."""
    text = definition["text_cfg"]
    with tempfile.TemporaryDirectory() as folder:
        if text.get("hf_tokenizer_name"):
            tokenizer.save_pretrained(folder)
        if text.get("hf_model_name"):
            model.text.config.save_pretrained(f"{folder}/{description.TEXT_MODEL}")
        files = [*Path(folder).glob("*.*"), *Path(folder).glob(f"{description.TEXT_MODEL}/*.json")]
        contents = {str(file.relative_to(folder)): file.read_bytes() for file in files}
        return {name: content for name, content in sorted(contents.items()) if content}


@contextmanager
def unpacked(about: dict[str, Any], where: str) -> Iterator[dict[str, Any]]:
    """The definition that a checkpoint describes, with what it carries in a temporary folder."""
    text, files = dict(about["definition"]["text_cfg"]), about.get("files", {})
    with tempfile.TemporaryDirectory() as folder:
        for name, data in files.items():
            Path(folder, name).parent.mkdir(exist_ok=True)
            Path(folder, name).write_bytes(data)
        # one of before may name a folder of this machine
        _look_inside(Path(folder) if files else None, text, where, up="..")
        yield {**about["definition"], "text_cfg": text}


def hint(state: Mapping[str, Tensor]) -> str:
    """What weights may be that don't fit: how an error about them ends."""
    for starts, what in _PARTS.items():
        if any(name.startswith(starts) for name in state):
            return f"; it holds {what}"
    sizes = {name.removeprefix("text."): tensor.shape for name, tensor in state.items()}
    conv, words = sizes.get("visual.conv1.weight"), sizes.get("token_embedding.weight")
    places = sizes.get("visual.positional_embedding")
    if not conv or not words or not places:
        return f"; it holds {', '.join([*state][:2])}, ..."
    side = round((places[0] - 1) ** 0.5) * conv[-1]
    vision = {"width": conv[0], "patch_size": conv[-1], "image_size": side}.items()
    names = [
        name
        for name, own in _BUILT_IN.items()
        if vision <= own["vision_cfg"].items() and own["text_cfg"].get("width") == words[1]
    ]
    names.sort(key=len)
    known = f"of its sizes are {', '.join(names[:3])}: set model.arch" if names else ""
    return f"; {known or f'it holds a ViT of {dict(vision)}, text width {words[1]}'}"


@contextmanager
def quiet() -> Iterator[None]:
    """Silence for a while: open_clip narrates on the root logger; our errors say what matters."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)


def unreachable(
    name: str,
    error: Exception,
    remedy: str = "model.pretrained takes a local file where there is no network",
) -> InputError | WorkError:
    """The error to raise where something could not be loaded, from a folder or from the hub."""
    problem = f"{name}: could not be loaded"
    if not isinstance(error, OSError | RuntimeError) or getattr(error, "filename", None):
        return InputError(f"{problem} ({first_lines(error)})")
    away = f"{constants.ENDPOINT} can't be reached, and its cache has no copy"
    reason = away if constants.HF_HUB_OFFLINE else first_lines(error)
    return WorkError(f"{problem}; {remedy} ({reason})")


def first_lines(error: Exception) -> str:
    """Of an error's message, in one line of whole words."""
    return textwrap.shorten(str(error) or type(error).__name__, 120, placeholder=" ...")
