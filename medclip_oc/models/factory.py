"""open_clip models: built, described and restored without guessing.

What a model is stands in its description, which every checkpoint carries and which alone decides
how the checkpoint is opened.
"""

import json
import warnings
from contextlib import suppress
from dataclasses import fields
from hashlib import sha256
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.pretrained import download_pretrained_from_hf

from ..config.fields import shorten
from ..config.schema import ModelConfig
from ..errors import InputError
from . import checkpoint, definition, description, pretrained
from .clip import Clip, Towers, tokenizer_of
from .description import PREPROCESS_KEYS

_PROBE = "Chest X-ray: 3.5 cm mass, pleural effusion"
"""Its tokens tell a tokenizer from others."""


def build(settings: ModelConfig, *, seed: int = 0) -> Clip:
    """Build the model the settings name, on the CPU, in float32.

    Raises:
        InputError: an unknown architecture or tag, weights that don't fit, or a bad definition.
        WorkError: weights that can't be downloaded.
    """
    torch.manual_seed(seed)
    preprocess = settings.preprocess or {}
    description.check(description.OWN_PREPROCESS, preprocess, "model.preprocess.")
    if settings.pretrained and definition.has_schema(settings.arch):
        raise InputError(
            f"model.pretrained: {settings.arch} brings its own weights; leave pretrained out"
        )
    name, config = definition.identify(settings)
    definition.register(name, config)
    source, weights, file = name, settings.pretrained, None
    if folder := definition.folder_of(settings.arch):
        about = definition.described(settings.arch).get("preprocess_cfg", {})
        preprocess = {key: value for key, value in about.items() if key != "size"} | preprocess
        file = pretrained.file_in(folder)
        weights = str(file)
    elif definition.has_schema(settings.arch):
        source = settings.arch
        with suppress(OSError), definition.quiet():  # without them `_create` ends
            file = Path(download_pretrained_from_hf(source.removeprefix("hf-hub:")))
    elif weights is not None and Path(weights).is_file():
        preprocess = _preprocess_of_checkpoint(settings, name, config) or preprocess
        file = Path(weights)
    elif weights is not None:
        pretrained.check_tag(settings.arch, weights, config)
    state = pretrained.load_weights(file) if file else {}  # before open_clip opens it
    how: dict[str, Any] = {"pretrained": weights, "force_preprocess_cfg": preprocess}
    how["force_image_size"] = settings.image_size
    if definition.has_schema(settings.arch):
        _create(source, **how, device="meta")  # before memory is taken for its sizes
    model = _create(source, **how)
    if file and settings.image_size is None:
        pretrained.refuse_resized(model, state, file)
    if file and "logit_bias" not in state and config.get("init_logit_bias") is not None:
        model.logit_bias.data.fill_(config["init_logit_bias"])  # open_clip leaves 0 there
    if settings.pretrained_image:
        pretrained.load_image_tower(model.visual, settings.pretrained_image)
    if settings.pretrained_text:
        pretrained.load_text_tower(getattr(model, "text", model), settings.pretrained_text)
    about = {
        "arch": settings.arch,
        "name": name,
        "definition": config,
        "preprocess": _plain(model.visual.preprocess_cfg),
        **checkpoint.described_facts(config),
    }
    return _assemble(model, about, settings, "model")


def restore(content: dict[str, Any], where: str, settings: ModelConfig | None = None) -> Clip:
    """Build the model that a checkpoint describes, with its weights.

    Args:
        content: what `checkpoint.load` returned.
        where: the file's name, for errors.
        settings: how it is trained, where training resumes; as `build` would.

    Raises:
        InputError: weights, preprocessing or tokenizer are not those of the description.
    """
    about = checkpoint.description_of(content, where)
    name, preprocess = about["name"], about["preprocess"]
    forced = {key: value for key, value in preprocess.items() if key != "size"}
    with definition.unpacked(about, where) as config:
        definition.register(name, config, where)
        for device in ("meta", "cpu"):  # sizes are compared before memory is taken for them
            model = _create(name, where, force_preprocess_cfg=forced, device=device)
            try:
                with warnings.catch_warnings(action="ignore"):  # "meta" has no place for weights
                    model.load_state_dict(content["state_dict"])
            except RuntimeError as error:
                reason = definition.first_lines(error)
                raise InputError(
                    f"{where}: its weights don't fit its own description, {name} ({reason})"
                ) from error
        if (built := _plain(model.visual.preprocess_cfg)) != preprocess:
            raise InputError(
                f"{where}: made with preprocessing {_apart(preprocess, built)}, "
                f"but {name} is built with {_apart(built, preprocess)}"
            )
        return _assemble(model, about, settings, where)


def load(path: str | Path) -> Clip:
    """Open a checkpoint file: `checkpoint.load`, then `restore`."""
    return restore(checkpoint.load(path), str(path))


def baseline_clip(name: str, trained: dict[str, Any] | None) -> Clip:
    """A model to compare a checkpoint with.

    Args:
        name: a checkpoint file; `start`, the weights that the checkpoint's run began from; an
            open_clip tag of the run's architecture; or ARCHITECTURE:TAG; or `hf-hub:ORG/NAME`.
        trained: the configuration of its run. None: there is no checkpoint.

    Raises:
        InputError: nothing of that name.
    """
    if Path(name).is_file() or name.endswith(".pt"):
        return load(name)
    if definition.has_schema(name):
        return build(ModelConfig(arch=name))
    arch, _, tag = name.rpartition(":")
    if arch:
        return build(ModelConfig(arch=arch, pretrained=tag))
    if not trained or not {"model", "run"} <= trained.keys():
        raise InputError(f"--baseline {name}: needs --checkpoint, whose architecture it takes")
    if name != "start":
        return build(ModelConfig(arch=str(trained["model"]["arch"]), pretrained=tag))
    keys = {f.name for f in fields(ModelConfig)}
    settings = ModelConfig(**{k: v for k, v in trained["model"].items() if k in keys})
    return build(settings, seed=trained["run"]["seed"])


def _assemble(model: Any, about: dict[str, Any], settings: ModelConfig | None, where: str) -> Clip:
    """Make a model ready, to be trained by the settings where there are some."""
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
    towers = (model.visual, getattr(model, "text", None))
    if not hasattr(model, "text_decoder") and any(getattr(t, "output_tokens", 0) for t in towers):
        raise InputError(f"{where}: output_tokens: true is for a CoCa's towers (multimodal_cfg)")
    tokenizer: Any = tokenizer_of(about["name"], where)
    here = tokenizer([_PROBE])[0].tolist()
    there = about.get("tokens") or here  # absent from early checkpoints
    if here != there:
        raise InputError(
            f"{where}: made with a tokenizer ({about.get('tokenizer')}) that isn't the one here: "
            f"{_PROBE!r} was {there[:12]}..., and is {here[:12]}..."
        )
    if max(here) >= getattr(model, "vocab_size", 2**20):
        raise InputError(f"{where}: text_cfg.vocab_size: too small, its tokenizer has {max(here)}")
    about["tokens"] = here
    about["files"] = about.get("files") or definition.carried(model, tokenizer, about["definition"])
    told = [about[key] for key in ("definition", "preprocess", "files")]
    digest = sha256(json.dumps(told, sort_keys=True, default=bytes.hex).encode()).hexdigest()
    if about.setdefault("digest", digest) != digest:  # heads and means have no shape that tells
        raise InputError(f"{where}: its description has changed since it was written")
    live = settings is not None and not settings.freeze_batch_norm
    return Clip(Towers(model, freeze_batch_norm=not live), tokenizer, about)


def _create(name: str, where: str = "model.definition", **how: Any) -> Any:
    """open_clip's model; on the device "meta" it has shapes, and no values."""
    weights, device = how.get("pretrained"), torch.device(how.get("device", "cpu"))
    if is_file := Path(weights or "").is_file():
        how["pretrained"] = str(Path(str(weights)).resolve())  # a whole path, which is no tag
    try:
        # "meta" warns that loading has no effect
        with definition.quiet(), device, warnings.catch_warnings(action="ignore"):
            return open_clip.create_model(
                name,
                **how,
                # A Hugging Face text tower gets its weights from model.pretrained_text, checked.
                pretrained_text=False,
                require_pretrained=weights is not None or definition.has_schema(name),
            )
    except Exception as error:  # open_clip's are of many kinds
        reason = definition.first_lines(error)
        of_hub = weights or definition.has_schema(name) or isinstance(error, OSError)
        if is_file and isinstance(error, AttributeError):  # a table that only one of them has
            reason = "its tensors are those of another kind of model"
        elif not of_hub or isinstance(error, TypeError | ZeroDivisionError | AttributeError):
            raise InputError(f"{where}: {name} can't be built: {reason}") from error
        if is_file:
            raise InputError(f"{weights} doesn't fit {name} ({reason})") from error
        raise definition.unreachable(f"model: {name} {weights or ''}".strip(), error) from error


def _preprocess_of_checkpoint(
    settings: ModelConfig, name: str, config: dict[str, Any]
) -> dict[str, Any] | None:
    """What a checkpoint of ours was trained with; None for other weights, which open_clip compares.

    Raises:
        InputError: it holds another model than the settings name, or other preprocessing.
    """
    path = str(settings.pretrained)
    content = {} if path.endswith(".safetensors") else checkpoint.read(path, mmap=True)
    if not checkpoint.is_ours(content):
        return None
    theirs = checkpoint.description_of(content, path)
    if theirs["definition"] != config:
        theirs_only = _apart(theirs["definition"], config)
        raise InputError(
            f"model.pretrained: {path} holds {theirs['name']} {theirs_only}, "
            f"but the configuration asks for {name} {_apart(config, theirs['definition'])}"
        )
    made_with = {key: theirs["preprocess"].get(key) for key in PREPROCESS_KEYS}
    asked = made_with | _plain(settings.preprocess or {})
    if asked != made_with:
        trained = f"{path} was trained with {made_with}"
        raise InputError(f"model.preprocess: {trained}, but the configuration asks for {asked}")
    return made_with


def _apart(one: dict[str, Any], other: dict[str, Any]) -> str:
    """The entries that another description hasn't, not too long."""
    return shorten({key: value for key, value in one.items() if other.get(key) != value})


def _plain(value: Any) -> Any:
    """Tuples to lists, so that a description equals itself after a round trip."""
    return json.loads(json.dumps(value))
