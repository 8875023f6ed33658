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

_ASPECTS = (3 / 4, 4 / 3)  # of the crop, width to height, as in RandomResizedCrop


@dataclass(frozen=True)
class TrainingTransform:
    """Random crop, rotation, brightness and contrast.

    Args:
        size: (height, width) of the result, in pixels.
        interpolation: "bicubic" or "bilinear", as the model's own preprocessing says.
        settings: how far each change may go.
    """

    size: tuple[int, int]
    interpolation: str
    settings: AugmentConfig

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Tensor:
        """Image of mode L or RGB -> (3, height, width) uint8; every draw comes from `rng`."""
        (height, width), settings = self.size, self.settings
        resample = Image.Resampling[self.interpolation.upper()]
        box = _crop(image.size, settings.scale, rng)
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


def _crop(
    size: tuple[int, int], scale: tuple[float, float], rng: np.random.Generator
) -> tuple[float, float, float, float]:
    """Box (left, top, right, bottom) of a random part of an image of `size` (width, height)."""
    width, height = size
    area = width * height * rng.uniform(*scale)
    aspect = width / height
    if scale[0] < 1:
        aspect = math.exp(rng.uniform(math.log(_ASPECTS[0]), math.log(_ASPECTS[1])))
    crop_width = min(width, math.sqrt(area * aspect))
    crop_height = min(height, math.sqrt(area / aspect))
    left = rng.uniform(0, width - crop_width)
    top = rng.uniform(0, height - crop_height)
    return left, top, left + crop_width, top + crop_height
