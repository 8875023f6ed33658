"""Pixel values of more than 8 bits, brought to 8: linearly, never saturated."""

import numpy as np
from PIL import Image, PngImagePlugin, TiffImagePlugin

DEEP_GREY = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")
"""Pillow's modes of more than 8 bits."""

_BITS, _PHOTOMETRIC = 258, 262  # tags of TIFF
_WHITE_IS_ZERO = 0


def window(
    values: np.ndarray,
    *,
    limits: tuple[float, float] | None = None,
    counted: np.ndarray | None = None,
    inverted: bool = False,
) -> np.ndarray:
    """Map values to 0..255, linearly.

    Args:
        values: numbers of any shape.
        limits: what becomes 0, and what 255; beyond them, the same. None: the darkest and the
            brightest value that counts.
        counted: of the same shape; False where a value is no image. It becomes 0, as NaN and
            infinities do.
        inverted: the brightest value becomes 0.

    Returns:
        uint8, of the same shape. One value alone becomes 0.
    """
    numbers = values.astype(np.float64)
    kept = np.isfinite(numbers)
    if counted is not None:
        kept &= counted
    if not kept.any():
        return np.zeros(values.shape, dtype=np.uint8)
    low, high = limits or (
        np.min(numbers, where=kept, initial=np.inf),
        np.max(numbers, where=kept, initial=-np.inf),
    )
    if inverted:
        low, high = high, low
    numbers -= low
    numbers *= 255.0 / (high - low) if high != low else 0.0
    np.copyto(numbers, 0.0, where=~kept)
    return np.rint(numbers.clip(0.0, 255.0, out=numbers), out=numbers).astype(np.uint8)


def grey(image: Image.Image) -> Image.Image:
    """A loaded image of one of DEEP_GREY as "L": windowed; white-is-zero TIFF inverted."""
    values = np.asarray(image)
    transparent = image.info.get("transparency")
    pixels = window(values, inverted=_tag(image, _PHOTOMETRIC) == _WHITE_IS_ZERO)
    if isinstance(transparent, int):  # one grey of a PNG
        pixels[values == transparent] = 0
    return Image.fromarray(pixels)


def is_deep_colour(image: Image.Image, data: bytes) -> bool:
    """Whether a file has more than 8 bits per channel with colour or alpha (PNG, TIFF)."""
    if isinstance(image, PngImagePlugin.PngImageFile):
        return data[24:25] == b"\x10" and data[25] in (2, 4, 6)
    bits = _tag(image, _BITS)
    return isinstance(bits, tuple) and len(bits) > 1 and max(bits) > 8 and image.mode[:3] == "RGB"


def _tag(image: Image.Image, number: int) -> object:
    """A tag of a TIFF; None in other files."""
    return image.tag_v2.get(number) if isinstance(image, TiffImagePlugin.TiffImageFile) else None
