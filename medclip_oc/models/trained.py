"""Models as they are used, not trained: a checkpoint's, and what it is compared with."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from ..config.schema import ModelConfig
from ..errors import InputError
from . import checkpoint, factory
from .factory import Clip


def trained_clip(path: str, device: torch.device) -> tuple[Clip, dict[str, Any]]:
    """A checkpoint's model on the device, and the configuration it was trained with."""
    content = checkpoint.load(path)
    clip = factory.restore(content, path)
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
    if not arch and trained is None:
        raise InputError(f"--baseline {name}: needs --checkpoint, whose architecture it takes")
    if name.startswith(("hf-hub:", "local-dir:")):
        clip = factory.build(ModelConfig(arch=name))
    elif name == "start":
        assert trained is not None
        known = {f.name for f in fields(ModelConfig)}
        own = {key: value for key, value in trained["model"].items() if key in known}
        clip = factory.build(ModelConfig(**own), seed=trained["run"]["seed"])
    else:
        arch = arch or str((trained or {})["model"]["arch"])
        clip = factory.build(ModelConfig(arch=arch, pretrained=tag))
    clip.towers.to(device).eval()
    return clip
