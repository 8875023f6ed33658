"""A checkpoint as a folder that open_clip opens by the name `local-dir:FOLDER`."""

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.push_to_hf_hub import save_config_for_hf
from safetensors.torch import save_file

from ..models.clip import Clip
from ..models.description import TEXT_MODEL
from .parity import Side, quiet

_CONFIG, _WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"


def write(clip: Clip, folder: Path) -> None:
    """Write configuration, weights and, of a Hugging Face text tower, what that needs."""
    definition = deepcopy(clip.description["definition"])
    text = definition["text_cfg"]
    if text.get("hf_tokenizer_name"):
        tokenizer: Any = clip.tokenizer
        tokenizer.save_pretrained(folder)
        text["hf_tokenizer_name"] = "inside"  # open_clip looks into the folder, if there is a name
    if str(text.get("hf_model_name", "")).startswith(("package:", "/")):
        # open_clip takes a name of the hub, or a path from the root: see the model card
        (folder / TEXT_MODEL).mkdir()
        config = clip.description["files"][f"{TEXT_MODEL}/config.json"]
        (folder / TEXT_MODEL / "config.json").write_bytes(config)
        text["hf_model_name"] = str(folder.resolve() / TEXT_MODEL)
    save_config_for_hf(clip.towers.clip, folder / _CONFIG, definition)
    weights = clip.towers.clip.state_dict()
    # safetensors refuses tensors that share memory, or are not contiguous
    copies = {name: w.clone(memory_format=torch.contiguous_format) for name, w in weights.items()}
    save_file(copies, folder / _WEIGHTS)


def prepare_rename(folder: Path, final: Path) -> None:
    """Put the final place into the configuration: open_clip wants a text tower's whole path."""
    now, then = (json.dumps(str(place.resolve() / TEXT_MODEL)) for place in (folder, final))
    config = (folder / _CONFIG).read_text(encoding="utf-8").replace(now, then)
    (folder / _CONFIG).write_text(config, encoding="utf-8")


def read(_: Clip, folder: Path) -> Side:
    """Open a folder as a user of open_clip would, preprocessing and tokenizer too."""
    source = f"local-dir:{folder}"
    with quiet():
        clip, preprocess = open_clip.create_model_from_pretrained(source)
        tokenizer = open_clip.get_tokenizer(source)
    return Side.of_open_clip(clip.eval(), preprocess, tokenizer)
