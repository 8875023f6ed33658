"""Training-time changes that leave a radiology caption true.

No flip (captions say left and right) and no hue unless they are asked for. Every draw comes from
the generator passed in, so a pair looks the same in an interrupted and in an uninterrupted run.
Grey stays one channel until the last moment.

C channels, 1 or 3.
"""

import math
from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import adjust_hue

from ..config.schema import AugmentConfig
from ..imaging.jpeg import Picture
from ..models.clip import Clip

cv2.setNumThreads(0)  # a loader process is one of many

# Features move with the decoder's scale: over 280 ROCOv2 files, EfficientNet-Lite0, the lowest
# cosine with those of exact pixels was 0.971 at the smallest scale that covers the input, 0.9973 at
# twice that. At three times, none of those files is large enough to be reduced.
_MARGIN = 3.0
_STRETCH = math.log(4 / 3)  # most that the crop's aspect is changed by, as in RandomResizedCrop
# Up to this reduction the crop is turned and resized at once, bilinearly. Against supersampling,
# over 140 ROCOv2 files, that is 0.4 to 1 dB nearer than resizing and then turning; from 1.5 on it
# is 0.4 dB further away, as fine detail begins to alias.
_ONE_STEP = 1.5


OFF = AugmentConfig(scale=(1.0, 1.0), rotation_degrees=0.0, brightness=0.0, contrast=0.0)
"""Nothing changes, not even the place of the crop: images are as validation has them."""


@dataclass(frozen=True)
class TrainingTransform:
    """Random crop, rotation, brightness and contrast."""

    size: tuple[int, int]  # (height, width) of the result, in pixels
    interpolation: str  # "bicubic" or "bilinear", as the model's own preprocessing says
    settings: AugmentConfig  # how far each change may go
    squash: bool = False
    """Take the whole image into the input's shape, as a model that was trained so expects.
    Otherwise the crop has the input's shape, and lies anywhere in the image.
    """

    def __call__(self, picture: Picture, rng: np.random.Generator) -> Tensor:
        """Picture -> (3, height, width) uint8; every draw comes from `rng`."""
        (height, width), settings = self.size, self.settings
        (across, down), aspect = picture.size, width / height
        whole: tuple[float, float] = (across, down)
        if not self.squash:  # the largest box of the input's shape
            whole = min(across, down * aspect), min(down, across / aspect)
        box = _crop(picture.size, whole, settings.scale, rng)
        reduction = min((box[2] - box[0]) / width, (box[3] - box[1]) / height)
        pixels, scale = picture.pixels(reduction)  # (H, W, C) uint8
        # whole pixels, at most half a one from the box; one is left at least
        left, top, right, bottom = (round(edge * scale) for edge in box)
        left, top = min(left, pixels.shape[1] - 1), min(top, pixels.shape[0] - 1)
        part = pixels[top : max(top + 1, bottom), left : max(left + 1, right)]
        reach = math.radians(settings.rotation_degrees)
        angle = rng.uniform(-reach, reach) if reach else 0.0
        gain, contrast = (
            rng.uniform(1 - change, 1 + change) if change else 1.0
            for change in (settings.brightness, settings.contrast)
        )
        ratios = part.shape[0] / height, part.shape[1] / width
        if not angle or max(ratios) > _ONE_STEP or min(ratios) < 1:
            # without gaps between its rows it is faster
            rows = torch.from_numpy(np.ascontiguousarray(part))[None].permute(0, 3, 1, 2)
            rows = F.interpolate(rows, self.size, mode=self.interpolation, antialias=True)
            part = rows[0].permute(1, 2, 0).numpy()  # (height, width, C)
        part = _turn_and_tone(part, self.size, angle, gain, contrast)
        image = torch.from_numpy(part).permute(2, 0, 1)  # (C, height, width) uint8
        if settings.hue and len(image) == 3:
            image = adjust_hue(image, rng.uniform(-settings.hue, settings.hue))
        if settings.flip and rng.random() < 0.5:
            image = image.flip(-1)
        return image.expand(3, height, width).contiguous()


class Preprocess:
    """open_clip's own preprocessing: a transform without randomness.

    Where decoding isn't exact, a JPEG of more than _MARGIN times the size that is needed is decoded
    smaller, and resized from there with the same geometry.
    """

    def __init__(self, clip: Clip) -> None:
        preprocess = clip.description["preprocess"]
        self.size, self.preprocess = clip.image_size, clip.preprocess
        self.mode = preprocess["resize_mode"]
        self.resample = Image.Resampling[preprocess["interpolation"].upper()]

    def __call__(self, picture: Picture, rng: np.random.Generator) -> Tensor:
        """Picture -> (3, height, width) uint8; nothing is drawn from `rng`."""
        full, size = picture.size, self._resized(picture.size)
        image, scale = picture.image(min(full[0] / size[0], full[1] / size[1]) / _MARGIN)
        if scale < 1:
            image = image.resize(size, self.resample, box=(0, 0, full[0] * scale, full[1] * scale))
        # Padding may have a colour; otherwise grey stays grey, and the result is the same.
        return self.preprocess(image.convert("RGB") if self.mode == "longest" else image)

    def _resized(self, full: tuple[int, int]) -> tuple[int, int]:
        """(width, height) to which the preprocessing resizes a picture, or `full` for any."""
        height, width = self.size
        if self.mode == "squash":
            return width, height
        if self.mode != "shortest" or width != height:
            return full
        # as torchvision's Resize rounds
        return int(width * full[0] / min(full)), int(height * full[1] / min(full))


def _turn_and_tone(
    pixels: np.ndarray, size: tuple[int, int], angle: float, gain: float, contrast: float
) -> np.ndarray:
    """Rotate about the centre by an angle in radians, black outside; multiply by `gain`; stretch
    about the mean: (h, w, C) uint8, of the right size already if the angle is 0, -> (height, width,
    C) uint8.
    """
    mean = pixels[::4].mean()  # every fourth row is as good
    if angle:
        (height, width), (h, w) = size, pixels.shape[:2]
        turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        matrix = np.array([[w / width], [h / height]]) * turn  # (x, y) -> where it comes from
        centre = np.array([w - 1, h - 1]) / 2 - matrix @ (np.array([width - 1, height - 1]) / 2)
        how = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        matrix = np.column_stack([matrix, centre])
        pixels = cv2.warpAffine(pixels, matrix, (width, height), flags=how)
        pixels = pixels.reshape(height, width, -1)  # of one channel it makes none
    if gain != 1 or contrast != 1:
        levels = np.arange(256) * (gain * contrast) + mean * gain * (1 - contrast)
        pixels = cv2.LUT(pixels, levels.round().clip(0, 255).astype(np.uint8)).reshape(pixels.shape)
    return pixels


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
