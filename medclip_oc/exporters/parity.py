"""Whether an export gives the features of the checkpoint, on real images and texts.

N images and N texts, D embedding size.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from ..errors import InputError, WorkError
from ..imaging.jpeg import Picture
from ..inference.image_inputs import ImageSet
from ..models.clip import Clip

LIMIT = 1e-4
"""Largest difference of a number in the normalised features."""


class Inputs(NamedTuple):
    """What both sides embed."""

    pictures: list[Image.Image]
    texts: list[str]


class Found(NamedTuple):
    """Normalised features that one side gives."""

    images: Tensor
    """(N, D) float32."""
    texts: Tensor
    """(N, D) float32."""


Reader = Callable[[Inputs], Found]
"""An export, opened anew from its files by the library that it is for."""


def decode(images: ImageSet, texts: list[str]) -> Inputs:
    """The inputs, decoded by our rules.

    Raises:
        InputError: an image can't be read.
    """
    pictures = []
    for n in range(len(images)):
        try:
            pictures.append(Picture(images.read(n), exact=True).image()[0].convert("RGB"))
        except InputError as error:
            raise InputError(f"{images.name(n)}: {error}") from None
    return Inputs(pictures, texts)


@torch.inference_mode()
def ours(clip: Clip, inputs: Inputs) -> Found:
    """What the checkpoint gives, on the CPU in float32."""
    clip.towers.cpu().eval()
    pixels = torch.stack([clip.preprocess(picture) for picture in inputs.pictures])
    tokens = clip.tokenizer(inputs.texts)
    return Found(clip.towers.embed_images(pixels), clip.towers.embed_texts(tokens))


def check(wanted: Found, found: Found, what: str) -> float:
    """The largest difference.

    Raises:
        WorkError: it is above LIMIT, or the shapes differ.
    """
    worst = 0.0
    for name, one, other in zip(Found._fields, wanted, found, strict=True):
        if one.shape != other.shape:
            shapes = f"{tuple(other.shape)}, the checkpoint's {tuple(one.shape)}"
            raise WorkError(f"{what}: its features of {name} are {shapes}; nothing is exported")
        gap = float((one - other.float().cpu()).abs().max())
        if not gap <= LIMIT:  # NaN too
            raise WorkError(
                f"{what}: its features of {name} differ from the checkpoint's by {gap:.1e}, more "
                f"than {LIMIT:g}; nothing is exported"
            )
        worst = max(worst, gap)
    return worst
