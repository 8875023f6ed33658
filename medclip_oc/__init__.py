"""Fine-tune CLIP on radiology images and captions, with exact gradient caching."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

__version__ = "0.1.0"


def load(path: str | Path) -> tuple[Any, Callable[..., Any], Callable[..., Any]]:
    """Open a checkpoint written by training.

    Args:
        path: the file.

    Returns:
        model: the open_clip model in evaluation mode, on the CPU.
        preprocess: image -> (3, H, W) float, as the model wants it.
        tokenizer: texts -> (M, L) int64.

    Raises:
        errors.InputError: missing, damaged, or not a checkpoint of ours.
    """
    from .models import factory  # needs torch, which the version does without

    clip = factory.load(path)
    return clip.towers.clip.eval(), clip.open_clip_preprocess(), clip.tokenizer
