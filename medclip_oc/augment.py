"""Training-time changes that leave a radiology caption true.

No flip (captions say left and right) and no hue. Every draw comes from the generator passed in, so
a pair looks the same in an interrupted and in an uninterrupted run.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageEnhance
from torch import Tensor

from .config import AugmentConfig

_STRETCH = math.log(4 / 3)  # most that the crop's aspect is changed by, as in RandomResizedCrop


@dataclass(frozen=True)
class TrainingTransform:
    """Random crop, rotation, brightness and contrast.

    Args:
        size: (height, width) of the result, in pixels.
        interpolation: "bicubic" or "bilinear", as the model's own preprocessing says.
        settings: how far each change may go.
        squash: take the whole image into the input's shape, as a model that was trained so expects.
            Otherwise the crop has the input's shape, and lies anywhere in the image.
    """

    size: tuple[int, int]
    interpolation: str
    settings: AugmentConfig
    squash: bool = False

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Tensor:
        """Image of mode L or RGB -> (3, height, width) uint8; every draw comes from `rng`."""
        (height, width), settings = self.size, self.settings
        resample = Image.Resampling[self.interpolation.upper()]
        whole = image.size if self.squash else _largest(image.size, width / height)
        box = _crop(image.size, whole, settings.scale, rng)
        image = image.resize((width, height), resample, box=box)
        if settings.rotation_degrees:
            angle = rng.uniform(-settings.rotation_degrees, settings.rotation_degrees)
            image = image.rotate(angle, Image.Resampling.BILINEAR)
        for reach, enhancer in (
            (settings.brightness, ImageEnhance.Brightness),
            (settings.contrast, ImageEnhance.Contrast),
        ):
            if reach:
                image = enhancer(image).enhance(rng.uniform(1 - reach, 1 + reach))
        return to_tensor(image)


def to_tensor(image: Image.Image) -> Tensor:
    """Image of mode L or RGB -> (3, H, W) uint8; grey is repeated."""
    pixels = torch.from_numpy(np.array(image))  # (H, W) or (H, W, 3)
    if pixels.ndim == 2:
        return pixels.expand(3, *pixels.shape).contiguous()
    return pixels.permute(2, 0, 1).contiguous()


def _largest(size: tuple[int, int], aspect: float) -> tuple[float, float]:
    """Width and height of the largest box of this aspect in an image of `size` (width, height)."""
    width, height = size
    return min(width, height * aspect), min(height, width / aspect)


def _crop(
    size: tuple[int, int],
    whole: tuple[float, float],
    scale: tuple[float, float],
    rng: np.random.Generator,
) -> tuple[float, float, float, float]:
    """Box (left, top, right, bottom): a random share of the area of `whole`, anywhere in the image.

    Its aspect differs a little from that of `whole`; a side never passes the image's.
    """
    share = rng.uniform(*scale)
    stretch = math.exp(rng.uniform(-_STRETCH, _STRETCH)) if scale[0] < 1 else 1.0
    width = min(size[0], whole[0] * math.sqrt(share * stretch))
    height = min(size[1], whole[1] * math.sqrt(share / stretch))
    left = rng.uniform(0, size[0] - width)
    top = rng.uniform(0, size[1] - height)
    return left, top, left + width, top + height
