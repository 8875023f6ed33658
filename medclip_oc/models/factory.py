"""open_clip models: built, described and restored without guessing.

What a model is stands in its description, which every checkpoint carries and which alone decides
how the checkpoint is opened.
"""

import json
import warnings
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.pretrained import download_pretrained

from ..config.schema import ModelConfig
from ..errors import InputError, WorkError
from . import checkpoint, definition, description, pretrained
from .averaging import State
from .clip import Clip, Towers, tokenizer_of
from .description import PREPROCESS_KEYS

_PROBE = "Chest X-ray: 3.5 cm mass, pleural effusion"  # its tokens tell a tokenizer from others
_NO_PATCHES = "model.patch_dropout: is for ViTs (open_clip's, most of timm's), not for"
_OF_HUB = ("open_clip_pytorch_model.bin", "model.safetensors", "pytorch_model.bin")
"""Where a hub's weights are; of the first open_clip takes a .safetensors, if it is there."""


def build(settings: ModelConfig, *, seed: int = 0) -> Clip:
    """Build the model the settings name, on the CPU, in float32. InputError: an unknown
    architecture or tag, weights that don't fit, or a bad definition. WorkError: weights that can't
    be downloaded.
    """
    torch.manual_seed(seed)
    asked = settings.preprocess or {}
    description.check(description.OWN_PREPROCESS, asked, "model.preprocess.")
    if settings.pretrained and definition.has_schema(settings.arch):
        raise InputError(f"model.pretrained: {settings.arch} brings its own weights; leave it out")
    name, config, preprocess = definition.identify(settings)
    definition.register(name, config)
    file, known = _weights(settings, config)
    about = {"arch": settings.arch, "name": name, "definition": config}
    about |= checkpoint.described_facts(config)
    state, where = None, "model.definition"
    if file:
        content, where = checkpoint.read(file, mmap=True, verify=True), str(file)
        if checkpoint.is_ours(content):
            known = _preprocess_of_checkpoint(content, settings, name, config)
        state = pretrained.state_of(content, file)
        if config.get("init_logit_bias") is not None:  # a CLIP may go on as a SigLIP
            state.setdefault("logit_bias", torch.tensor(float(config["init_logit_bias"])))
        if settings.context_length is not None:
            about["stretched"] = pretrained.stretch_positions(state, settings.context_length)
    preprocess = preprocess | known | asked
    model = _create(name, preprocess, state, where, settings)
    if settings.pretrained_image:
        pretrained.load_image_tower(model.visual, settings.pretrained_image)
    if settings.pretrained_text:
        pretrained.load_text_tower(getattr(model, "text", model), settings.pretrained_text)
    about["preprocess"] = _plain(model.visual.preprocess_cfg)
    return _assemble(model, about, settings, "model")


def restore(content: dict[str, Any], where: str, settings: ModelConfig | None = None) -> Clip:
    """Build the model that a checkpoint's content describes, with its weights.

    `where` is the file's name, for errors; `settings`, how it is trained, where training resumes,
    as `build` would. InputError: weights, preprocessing or tokenizer are not the description's.
    """
    about = checkpoint.description_of(content, where)
    name, preprocess = about["name"], about["preprocess"]
    with definition.unpacked(about, where) as config:
        definition.register(name, config, where)
        fixed = replace(settings or ModelConfig(), image_size=None)  # the weights fit as they are
        model = _create(name, preprocess, content["state_dict"], where, fixed)
        built = _plain(model.visual.preprocess_cfg)
        description.check_equal(f"{where}: made with", preprocess, f"{name} is built with", built)
        clip = _assemble(model, about, settings, where)
        clip.run = {"step": content.get("step"), "config": content.get("config") or {}}
        trained = clip.run["config"].get("data", {})
        clip.caption_key = trained.get("caption_key", clip.caption_key)
        return clip


def load(path: str | Path) -> Clip:
    """Open a checkpoint file: `checkpoint.load`, then `restore`. Or a folder: that of a run (its
    best.pt, else last.pt), or one that `local-dir:` takes.
    """
    folder = Path(path)
    kept = (folder / "checkpoints" / f"{name}.pt" for name in ("best", "last"))
    path = next((file for file in kept if file.is_file()), path)
    if any(folder.glob("*config.json")):
        return named(f"local-dir:{path}", None)
    return restore(checkpoint.load(path), str(path))


def named(arch: str, weights: str | None) -> Clip:
    """What --model and --pretrained of a command name, as `build`; errors have these words."""
    try:
        return build(ModelConfig(arch=arch, pretrained=weights))
    except (InputError, WorkError) as error:
        message = str(error).replace("model.pretrained", "--pretrained")
        raise type(error)(message.replace("model.arch", "--model")) from error


def baseline_clip(name: str, trained: dict[str, Any] | None) -> Clip:
    """A model to compare a checkpoint with; InputError: nothing of that name.

    `name` is a checkpoint; a file of weights of the run's architecture; `start`, the weights that
    its run began from; an open_clip tag; ARCHITECTURE:TAG; or `hf-hub:ORG/NAME`. `trained` is the
    configuration of its run; None: there is no checkpoint.
    """
    is_file = Path(name).is_file() or name.endswith(".pt")
    if is_file and checkpoint.is_ours(checkpoint.read(name, mmap=True)):
        return load(name)
    if definition.has_schema(name):
        return build(ModelConfig(arch=name))
    arch, _, tag = name.rpartition(":")
    if arch and not is_file:
        return build(ModelConfig(arch=arch, pretrained=tag))
    if not trained or not {"model", "run"} <= trained.keys():
        raise InputError(f"--baseline {name}: needs --checkpoint, whose architecture it takes")
    if name != "start":
        arch, own = str(trained["model"]["arch"]), trained["model"].get("definition")
        return build(ModelConfig(arch=arch, definition=own, pretrained=name))
    keys = {f.name for f in fields(ModelConfig)}
    settings = ModelConfig(**{k: v for k, v in trained["model"].items() if k in keys})
    return build(settings, seed=trained["run"]["seed"])


def _assemble(model: Any, about: dict[str, Any], settings: ModelConfig | None, where: str) -> Clip:
    """Make a model ready, to be trained by the settings where there are some."""
    if settings is not None:
        # every parameter that trains must be in the loss, or several processes would disagree
        if hasattr(model, "text_decoder"):
            raise InputError(f"model.arch: {settings.arch} is a CoCa; its decoder has no loss here")
        if getattr(model, "logit_bias", None) is not None:
            model.logit_bias.requires_grad_(False)  # InfoNCE's softmax cancels it; see train_bias
        if settings.grad_checkpointing:
            model.set_grad_checkpointing()
    patches: Any = getattr(getattr(model.visual, "trunk", None), "patch_embed", None)  # of timm
    if getattr(patches, "strict_img_size", False) and patches.img_size != model.visual.image_size:
        sizes = f"{model.visual.image_size}, where timm makes this tower for {patches.img_size}"
        raise InputError(f"{where}: vision_cfg.image_size: {sizes}; name its own")
    towers = (model.visual, getattr(model, "text", None))
    if not hasattr(model, "text_decoder") and any(getattr(t, "output_tokens", 0) for t in towers):
        raise InputError(f"{where}: output_tokens: true is for a CoCa's towers (multimodal_cfg)")
    tokenizer: Any = tokenizer_of(about["name"], where)
    here = tokenizer([_PROBE])[0].tolist()
    there = about.get("tokens") or here  # absent from early checkpoints
    if here != there:
        told = f"{_PROBE!r} was {there[:12]}..., and is {here[:12]}..."
        name = about.get("tokenizer")
        raise InputError(f"{where}: made with a tokenizer ({name}) that isn't the one here: {told}")
    if max(here) >= getattr(model, "vocab_size", 2**20):
        raise InputError(f"{where}: text_cfg.vocab_size: too small, its tokenizer has {max(here)}")
    about["tokens"] = here
    about["files"] = about.get("files") or definition.carried(model, tokenizer, about["definition"])
    live = settings is not None and not settings.freeze_batch_norm
    padded = tokenizer(["", _PROBE])
    return Clip(Towers(model, freeze_batch_norm=not live, padded=padded), tokenizer, about)


def _weights(settings: ModelConfig, config: dict[str, Any]) -> tuple[Path | None, dict[str, Any]]:
    """The file of a model's weights, and the preprocessing that open_clip knows of a tag's."""
    arch, weights, about = settings.arch, settings.pretrained, dict[str, Any]()
    if folder := definition.folder_of(arch):
        return pretrained.file_in(folder), about
    if not definition.has_schema(arch):
        if weights is None or Path(weights).is_file():
            return Path(weights) if weights else None, about
        about = pretrained.check_tag(arch, weights, config)
    definition.look_for_hub()
    try:
        with definition.quiet():
            file = download_pretrained(about) if about else definition.fetch(arch, *_OF_HUB)
    except Exception as error:  # open_clip's are of many kinds
        raise definition.unreachable(f"model: {arch} {weights or ''}".strip(), error) from error
    return Path(file), {key: about[key] for key in PREPROCESS_KEYS if about.get(key)}


def _create(
    name: str, preprocess: dict[str, Any], state: State | None, where: str, settings: ModelConfig
) -> Any:
    """open_clip's model with the weights of the file `where`, or with random ones."""
    forced = {key: value for key, value in preprocess.items() if key != "size"}
    how = {"force_preprocess_cfg": forced, "force_patch_dropout": settings.patch_dropout}
    resize = settings.image_size is not None
    # "meta" has shapes and no values: sizes are compared before memory is taken for them
    for device in ("cpu",) if state is None else ("meta", "cpu"):
        # "meta" warns that loading has no effect
        with definition.quiet(), torch.device(device), warnings.catch_warnings(action="ignore"):
            try:
                # a Hugging Face text tower gets its weights from model.pretrained_text, checked
                model = open_clip.create_model(name, device=device, pretrained_text=False, **how)
            except Exception as error:  # open_clip's are of many kinds
                reason = definition.first_lines(error)
                if "patch_drop_rate" in reason:  # a tower of timm's without patches
                    raise InputError(f"{_NO_PATCHES} {name}") from error
                raise InputError(f"{where}: {name} can't be built ({reason})") from error
            if settings.patch_dropout and "PatchDropout" not in str(model.visual):
                raise InputError(f"{_NO_PATCHES} {name}")
            if state is not None:
                try:
                    pretrained.fill(model, state, f"{where} doesn't fit {name}", resize)
                except InputError as error:
                    raise InputError(f"{error}{definition.hint(state)}") from error
    return model


def _preprocess_of_checkpoint(
    content: dict[str, Any], settings: ModelConfig, name: str, config: dict[str, Any]
) -> dict[str, Any]:
    """What a checkpoint of ours was trained with, if that and its model are what is asked for."""
    path = str(settings.pretrained)
    theirs = checkpoint.description_of(content, path)
    held, length = theirs["definition"], config["text_cfg"].get("context_length")
    if settings.context_length is not None and length:  # which may differ
        held = held | {"text_cfg": held["text_cfg"] | {"context_length": length}}
    holds, asks = f"model.pretrained: {path} holds {theirs['name']}", "the configuration asks for"
    description.check_equal(holds, held, f"{asks} {name}", config)
    made_with = {key: theirs["preprocess"].get(key) for key in PREPROCESS_KEYS}
    asked = made_with | _plain(settings.preprocess or {})
    description.check_equal(f"model.preprocess: {path} was trained with", made_with, asks, asked)
    return made_with


def _plain(value: Any) -> Any:
    """Tuples to lists, so that a description equals itself after a round trip."""
    return json.loads(json.dumps(value))
