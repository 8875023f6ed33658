"""Drawn pictures that look like films and slices, and the ways in which copies of them differ."""

import io
from collections.abc import Callable
from itertools import product

import numpy as np
from phantom_pictures import LESIONS, LOBES, draw
from PIL import Image, ImageEnhance

from tests.support.odd_files import file

KINDS = tuple(product(("ct", "mr", "us", "xray"), LOBES))
"""One phantom of each shares no more than an outline with the others."""


def phantom(number: int) -> Image.Image:
    """One of len(KINDS) pictures, grey, the shorter side of 160 pixels."""
    modality, organ = KINDS[number]
    rng = np.random.default_rng(number)
    lesion = LESIONS[number % len(LESIONS)]
    drawn = draw(modality, organ, lesion, "large", "left", rng=rng, pixels=160)
    return Image.fromarray(drawn.pixels)


def encoded(image: Image.Image, kind: str = "JPEG", quality: int = 90) -> bytes:
    return file(image, kind, quality=quality)


def cropped(image: Image.Image, *edges: float) -> Image.Image:
    """From left, top to right, bottom: 0 to 1."""
    box = np.multiply(edges, image.size * 2).round().astype(int).tolist()
    return image.crop(box)


def brighter(image: Image.Image, factor: float) -> Image.Image:
    return ImageEnhance.Brightness(image).enhance(factor)


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "re-encoded": lambda image: Image.open(io.BytesIO(encoded(image, quality=40))),
    "as colour": lambda image: image.convert("RGB"),
    "half the size": lambda image: image.resize((image.width // 2, image.height // 2)),
    "stretched": lambda image: image.resize((256, 256)),
    "darker": lambda image: brighter(image, 0.8),
    "brighter": lambda image: brighter(image, 1.2),
    "less contrast": lambda image: ImageEnhance.Contrast(image).enhance(0.7),
    "cropped": lambda image: cropped(image, 0.02, 0.02, 0.98, 0.98),
    "cropped at a corner": lambda image: cropped(image, 0.03, 0, 1, 0.98),
}
