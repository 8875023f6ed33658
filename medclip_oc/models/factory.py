"""open_clip models: built, described and restored without guessing.

This module and `distributed` are the seam to open_clip. A model comes as a `Clip`: its two towers,
and the preprocessing and tokenizer that belong to them. What it is stands in its description,
which every checkpoint carries and which alone decides how the checkpoint is opened.

B images or texts in a batch, L context length, D embedding size.
"""

import difflib
import json
import logging
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy, deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torch import Tensor

from ..config.schema import ModelConfig
from ..errors import InputError, WorkError
from . import checkpoint, compatibility
from . import pretrained as warm_start
from .towers import Towers

_PREPROCESS_KEYS = ("mean", "std", "interpolation", "resize_mode")
TEXT_MODEL = "text_model"
"""In an exported folder: the configuration of a Hugging Face text tower."""
_DEFINITION_KEYS = ("embed_dim", "vision_cfg", "text_cfg")
_CHOICES = {
    "interpolation": ("bicubic", "bilinear"),
    "resize_mode": ("shortest", "longest", "squash"),
}
# A name becomes a file name in open_clip's registry; one out of a checkpoint could lead anywhere.
_NAME = re.compile(r"[A-Za-z0-9][\w.@+-]*")


@dataclass
class Clip:
    """A model with what belongs to it."""

    towers: Towers
    tokenizer: Callable[[list[str]], Tensor]
    """M texts -> (M, L) int64."""
    preprocess: Callable[[Image.Image], Tensor]
    """Image -> (3, H, W) uint8, with the geometry of open_clip's own preprocessing."""
    description: dict[str, Any]
    """What a checkpoint says of the model: plain values."""

    def open_clip_preprocess(self) -> Callable[[Image.Image], Tensor]:
        """Image -> (3, H, W) float32, normalised: what `towers.clip` itself takes."""
        transform: Callable[[Image.Image], Tensor] = _open_clip_transform(self.towers.clip)
        return transform

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of the input, in pixels."""
        size = self.description["preprocess"]["size"]
        return (size, size) if isinstance(size, int) else (size[0], size[1])


def build(settings: ModelConfig, *, seed: int = 0) -> Clip:
    """Build the model the settings name, on the CPU, in float32.

    Raises:
        InputError: an unknown architecture or tag, weights that don't fit, or a bad definition.
        WorkError: weights that can't be downloaded.
    """
    torch.manual_seed(seed)
    _check_preprocess(settings.preprocess or {})
    if settings.pretrained and _has_schema(settings.arch):
        raise InputError(
            f"model.pretrained: {settings.arch} brings its own weights; leave pretrained out"
        )
    name, definition = _identify(settings)
    _register(name, definition)
    preprocess = _check_pretrained(settings, name, definition) or settings.preprocess or {}
    source, file = name, settings.pretrained
    if folder := _exported(settings.arch):  # its own file names a path that may be gone
        about = json.loads((folder / "open_clip_config.json").read_text())
        preprocess = {**about.get("preprocess_cfg", {}), **preprocess}
        file = str(folder / "open_clip_model.safetensors")
    elif _has_schema(settings.arch):
        source = settings.arch
    clip = _create(source, pretrained=file, preprocess=preprocess, image_size=settings.image_size)
    if settings.image_size is None:
        _refuse_resized(clip, settings.pretrained)
    _check_trainable(clip, settings.arch)
    if settings.pretrained_image:
        weights = checkpoint.load_weights(warm_start.resolve(settings.pretrained_image))
        warm_start.load_image_tower(clip.visual, weights, settings.pretrained_image)
    if settings.pretrained_text:
        warm_start.load_text_tower(getattr(clip, "text", clip), settings.pretrained_text)
    if settings.grad_checkpointing:
        clip.set_grad_checkpointing()
    description = {
        "arch": settings.arch,
        "name": name,
        "definition": definition,
        "preprocess": _plain(clip.visual.preprocess_cfg),
        "quick_gelu": bool(definition.get("quick_gelu", False)),
        "tokenizer": definition["text_cfg"].get("hf_tokenizer_name") or "open_clip",
        "context_length": definition["text_cfg"].get("context_length", 77),
    }
    found = _assemble(clip, description, settings.freeze_batch_norm)
    description["tokens"] = compatibility.tokens(found.tokenizer)
    return found


def restore(content: dict[str, Any], where: str, settings: ModelConfig | None = None) -> Clip:
    """Build the model that a checkpoint describes, with its weights.

    Args:
        content: what `checkpoint.load` returned.
        where: the file's name, for errors.
        settings: how it is trained, where it is to be trained on; as `build` would.

    Raises:
        InputError: the weights don't fit the description.
    """
    description = _description(content, where)
    compatibility.check_facts(description, where)
    name = description["name"]
    _register(name, description["definition"])
    sizes = {key: description["preprocess"][key] for key in _PREPROCESS_KEYS}
    clip = _create(name, pretrained=None, preprocess=sizes, image_size=None)
    built = _plain(clip.visual.preprocess_cfg)
    if built != description["preprocess"]:
        raise InputError(
            f"{where}: made with preprocessing {description['preprocess']}, "
            f"but {name} is built with {built}"
        )
    try:
        clip.load_state_dict(content["state_dict"])
    except RuntimeError as error:
        raise InputError(
            f"{where}: its weights don't fit its own description, {name} ({_first(error)})"
        ) from error
    compatibility.check_activation(clip, description, where)
    if settings is not None:
        _check_trainable(clip, settings.arch)
        if settings.grad_checkpointing:
            clip.set_grad_checkpointing()
    found = _assemble(clip, description, settings is None or settings.freeze_batch_norm)
    compatibility.check_tokens(found.tokenizer, description, where)
    return found


def _description(content: dict[str, Any], where: str) -> dict[str, Any]:
    """What a checkpoint says of its model, if it says all there is to say."""
    found = content.get("model")
    needed = {"arch", "name", "definition", "preprocess"}
    if not isinstance(found, dict) or not needed <= found.keys() or "state_dict" not in content:
        raise InputError(f"{where}: the checkpoint doesn't describe its model; it is incomplete")
    return found


def load(path: str | Path) -> Clip:
    """Open a checkpoint file: `checkpoint.load`, then `restore`."""
    return restore(checkpoint.load(path), str(path))


def _assemble(clip: Any, description: dict[str, Any], freeze_batch_norm: bool) -> Clip:
    tokenizer = _tokenizer(description["name"])
    towers = Towers(clip, freeze_batch_norm=freeze_batch_norm)
    return Clip(towers, tokenizer, _geometry(clip), description)


def _identify(settings: ModelConfig) -> tuple[str, dict[str, Any]]:
    """Name to register under, and the full open_clip model config with references unresolved."""
    name = settings.arch.removeprefix("hf-hub:").removeprefix("local-dir:")
    if _has_schema(settings.arch):
        name = Path(name).name
    if settings.definition is not None:
        known = open_clip.get_model_config(settings.arch)
        if known is not None and known != resolved(settings.definition):
            raise InputError(
                f"model.arch: {settings.arch!r} is open_clip's own; a model given in full "
                "(model.definition) needs a name of its own"
            )
        _check_definition(settings.definition)
        return _sized(name, deepcopy(settings.definition), settings.image_size)
    try:
        with quiet():
            definition = open_clip.get_model_config(settings.arch)
    except (OSError, ValueError) as error:  # a hub or a folder
        raise _unreachable(f"model.arch: {settings.arch}", error) from error
    if definition is None:
        near = difflib.get_close_matches(settings.arch, open_clip.list_models(), 3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise InputError(f"model.arch: {settings.arch!r} is not an open_clip architecture{hint}")
    _look_inside(definition["text_cfg"], settings.arch)
    return _sized(name, definition, settings.image_size)


def _exported(arch: str) -> Path | None:
    """The folder of a model whose text tower's configuration lies inside (see export)."""
    folder = Path(arch.removeprefix("local-dir:"))
    inside = arch.startswith("local-dir:") and (folder / TEXT_MODEL).is_dir()
    return folder if inside else None


def _look_inside(text: dict[str, Any], arch: str) -> None:
    """A folder's tokenizer and text tower are those inside it, wherever it was made."""
    if arch.startswith("local-dir:") and text.get("hf_tokenizer_name"):
        text["hf_tokenizer_name"] = arch.removeprefix("local-dir:")
    if folder := _exported(arch):
        text["hf_model_name"] = str(folder / TEXT_MODEL)


def _sized(name: str, definition: dict[str, Any], size: int | None) -> tuple[str, dict[str, Any]]:
    """Name and definition at another image size."""
    if size is None or definition["vision_cfg"].get("image_size") == size:
        return name, definition
    definition["vision_cfg"]["image_size"] = size
    return f"{name}-{size}px", definition


def _check_definition(definition: dict[str, Any]) -> None:
    missing = [key for key in _DEFINITION_KEYS if key not in definition]
    if missing:
        raise InputError(f"model.definition: lacks {', '.join(missing)}")
    for key in ("vision_cfg", "text_cfg"):
        if not isinstance(definition[key], dict):
            raise InputError(f"model.definition.{key}: {definition[key]!r} is not a mapping")


def _check_preprocess(values: dict[str, Any]) -> None:
    for key, value in values.items():
        where = f"model.preprocess.{key}"
        if key not in _PREPROCESS_KEYS:
            allowed = ", ".join(_PREPROCESS_KEYS)
            raise InputError(f"{where}: no such setting; allowed: {allowed}")
        if key in _CHOICES and value not in _CHOICES[key]:
            raise InputError(f"{where}: {value!r} is not one of {', '.join(_CHOICES[key])}")
        numbers = isinstance(value, list | tuple) and len(value) == 3
        if key not in _CHOICES and not (numbers and all(isinstance(v, float | int) for v in value)):
            raise InputError(f"{where}: {value!r} is not three numbers")


def _refuse_resized(clip: Any, file: str | None) -> None:
    """open_clip stretches position tables without a word; that is right for `image_size` only."""
    if file is None or not Path(file).is_file() or Path(file).suffix in (".npz", ".npy"):
        return
    built = clip.state_dict()
    for name, tensor in checkpoint.load_weights(file).items():
        if "positional_embedding" in name and name in built and built[name].shape != tensor.shape:
            raise InputError(
                f"model.pretrained: {file} doesn't fit: {name} is {tuple(tensor.shape)} there and "
                f"{tuple(built[name].shape)} in the model (another image size or context length)"
            )


def _check_trainable(clip: Any, arch: str) -> None:
    """Every parameter that trains must be in the loss, or several processes would disagree."""
    if hasattr(clip, "text_decoder"):
        raise InputError(f"model.arch: {arch} is a CoCa; its text decoder has no contrastive loss")
    if getattr(clip, "logit_bias", None) is not None:
        clip.logit_bias.requires_grad_(False)  # the softmax of InfoNCE cancels it; see train_bias


def _check_pretrained(
    settings: ModelConfig, name: str, definition: dict[str, Any]
) -> dict[str, Any] | None:
    """Refuse weights that another architecture or activation made.

    Returns:
        The preprocessing that came with the weights, if they are a checkpoint of ours.
    """
    source = settings.pretrained
    if source is None:
        return None
    if Path(source).is_file():
        if Path(source).suffix in (".safetensors", ".npz", ".npy"):
            return None
        return _check_own_checkpoint(source, settings, name, definition)
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
    theirs = _description(content, path)
    if theirs["definition"] != definition:
        raise InputError(
            f"model.pretrained: {path} holds {theirs['name']} {theirs['definition']}, "
            f"but the configuration asks for {name} {definition}"
        )
    made_with = {key: theirs["preprocess"][key] for key in _PREPROCESS_KEYS}
    asked = made_with | _plain(settings.preprocess or {})
    if asked != made_with:
        raise InputError(
            f"model.preprocess: {path} was trained with {made_with}, "
            f"but the configuration asks for {asked}"
        )
    return made_with


def _create(
    name: str, *, pretrained: str | None, preprocess: dict[str, Any], image_size: int | None
) -> Any:
    if Path(pretrained or "").is_file():
        pretrained = str(Path(str(pretrained)).resolve())
    try:
        with quiet():
            return open_clip.create_model(
                name,
                pretrained=pretrained,
                force_image_size=image_size,
                force_preprocess_cfg=preprocess,
                # A Hugging Face text tower gets its weights from model.pretrained_text, checked.
                pretrained_text=False,
            )
    # an unknown key of a section, or numbers that make no network
    except (TypeError, ZeroDivisionError, IndexError, AttributeError) as error:
        raise InputError(f"model.definition: {name} can't be built: {_first(error)}") from error
    except (RuntimeError, AssertionError, OSError, ValueError, KeyError) as error:
        if pretrained and Path(pretrained).is_file():
            raise InputError(
                f"model.pretrained: {pretrained} doesn't fit {name} ({_first(error)})"
            ) from error
        raise _unreachable(f"model: {name} {pretrained or ''}".strip(), error) from error


def _register(name: str, definition: dict[str, Any]) -> None:
    """Make `name` known to open_clip with this definition."""
    if not _NAME.fullmatch(name):
        raise InputError(f"model.arch: {name!r} can't name a model; use letters, digits, . @ + - _")
    known = resolved(definition)
    if open_clip.get_model_config(name) != known:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / f"{name}.json"
            file.write_text(json.dumps(known))
            open_clip.add_model_config(file)


def resolved(definition: dict[str, Any]) -> dict[str, Any]:
    """The definition with every `package:` reference turned into a path."""
    found = deepcopy(definition)
    for key in ("hf_model_name", "hf_tokenizer_name"):
        if key in found.get("text_cfg", {}):
            found["text_cfg"][key] = warm_start.resolve(found["text_cfg"][key])
    return found


def _tokenizer(name: str) -> Callable[[list[str]], Tensor]:
    # Loader processes are forked after the tokenizer's first use; its own threads would deadlock.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        with quiet():
            tokenizer = open_clip.get_tokenizer(name)
            plain = type(tokenizer) is open_clip.SimpleTokenizer
            return _RememberingTokenizer(tokenizer) if plain else tokenizer
    except (OSError, ValueError) as error:
        raise _unreachable(f"tokenizer of {name}", error) from error
    except ImportError as error:
        raise InputError(f"{name}: needs transformers: pip install transformers") from error


def token_counter(arch: str) -> tuple[Callable[[str], int], int]:
    """How long texts are to the tokenizer of an architecture, before it cuts them.

    Args:
        arch: see `ModelConfig.arch`.

    Returns:
        a function from a text to its number of tokens, start and end included; and the context
        length of the model, beyond which it cuts.

    Raises:
        InputError: no such architecture.
        WorkError: its tokenizer can't be downloaded.
    """
    _, definition = _identify(ModelConfig(arch=arch))
    tokenizer: Any = _tokenizer(arch)
    length = definition["text_cfg"].get("context_length", 77)
    if hasattr(tokenizer, "sot_token_id"):  # open_clip's own
        return lambda text: len(tokenizer.encode(text)) + 2, length

    inner = tokenizer.tokenizer  # of Hugging Face
    # open_clip cleans before it tokenizes; SigLIP's tokenizer has a way of its own
    clean = getattr(tokenizer, "clean_fn", None) or open_clip.tokenizer.get_clean_fn("canonicalize")
    # this mode puts three special tokens around the text itself
    bare = getattr(tokenizer, "tokenizer_mode", "") == "clips"

    def count(text: str) -> int:
        ids = inner(clean(text), truncation=False, add_special_tokens=not bare, verbose=False)
        return len(ids["input_ids"]) + 3 * bare

    return count, length


class _RememberingTokenizer(open_clip.SimpleTokenizer):
    """The same tokens in a third of the time.

    Those of a word are looked up where it was met before, and a text that has nothing to be mended
    isn't searched for it.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.__dict__.update(vars(tokenizer))
        if tokenizer.clean_fn is open_clip.tokenizer.get_clean_fn("lower"):
            self.clean_fn = partial(_clean_lower, mend=tokenizer.clean_fn)
        self._alone = copy(tokenizer)
        self._alone.clean_fn = str  # what a text's cleaning left needs no other
        self._known = dict[str, list[int]]()

    def encode(self, text: str) -> list[int]:
        """Tokens of a text, without its start and end."""
        tokens = list[int]()
        for word in self.pat.findall(self.clean_fn(text)):
            found = self._known.get(word)
            if found is None:
                found = self._known[word] = self._alone.encode(word)
            tokens += found
        return tokens


def _clean_lower(text: str, mend: Callable[[str], str]) -> str:
    """What open_clip's "lower" cleaning, `mend`, makes of a text.

    Printable ASCII without HTML entities has no mojibake, ligatures or escapes, which ftfy looks
    for at length.
    """
    if text.isascii() and text.isprintable() and "&" not in text:
        return " ".join(text.split()).lower()
    return mend(text)


def _geometry(clip: Any) -> Callable[[Image.Image], Tensor]:
    """open_clip's evaluation transform up to the pixels: normalising is the towers' work."""
    from torchvision.transforms import Compose, Normalize, PILToTensor

    *geometry, to_tensor, normalize = _open_clip_transform(clip).transforms
    assert isinstance(normalize, Normalize)
    assert "ToTensor" in type(to_tensor).__name__
    return Compose([*geometry, PILToTensor()])


def _open_clip_transform(clip: Any) -> Any:
    cfg = PreprocessCfg(**clip.visual.preprocess_cfg)
    return image_transform_v2(cfg, is_train=False)


def _has_schema(arch: str) -> bool:
    return arch.startswith(("hf-hub:", "local-dir:"))


def _plain(value: Any) -> Any:
    """Tuples to lists, so that a description equals itself after a round trip."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


@contextmanager
def quiet() -> Iterator[None]:
    """Silence for a while: open_clip narrates on the root logger; our errors say what matters."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)


def _unreachable(what: str, error: Exception) -> InputError | WorkError:
    if isinstance(error, ValueError | FileNotFoundError):
        return InputError(f"{what}: could not be loaded ({_first(error)})")
    return WorkError(
        f"{what}: could not be loaded; model.pretrained takes a local file where there is no "
        f"network ({_first(error)})"
    )


def _first(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2])[:300] if lines else type(error).__name__
