"""Fine-tune CLIP on radiology images and captions, with exact gradient caching."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import torch
    from PIL.Image import Image
    from torch import Tensor

    from .models.clip import OpenClip

__version__ = "0.1.0"


def load(
    path: "str | Path", device: "str | torch.device" = "cpu"
) -> "tuple[OpenClip, Callable[[Image], Tensor], Callable[[list[str]], Tensor]]":
    """Open a model to embed with.

    Args:
        path: a checkpoint written by training, the folder of its run, or one that open_clip or
            transformers' CLIPModel opens.
        device: where the model goes.

    Returns:
        model: the open_clip model in evaluation mode.
        preprocess: image -> (3, H, W) float32, on the CPU.
        tokenizer: M texts -> (M, L) int64, on the CPU.

    Raises:
        errors.InputError: missing, damaged, or none of these.
    """
    import torch

    from .models import factory  # needs torch, which the version does without

    clip = factory.load(path).on(torch.device(device))
    return clip.towers.clip, clip.open_clip_preprocess(), clip.tokenizer
