"""Pixel values of more than 8 bits, brought to 8: linearly, never saturated.

Pillow keeps only the upper 8 bits of each colour channel, so colour of 16 bits (PNG, TIFF) is read
here twice, once for each byte.

H height, W width, C channels.
"""

import io
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin, TiffImagePlugin

from ..errors import BadImage

DEEP_GREY = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")
"""Pillow's modes of more than 8 bits."""

_BITS, _PHOTOMETRIC, _PLANAR, _EXTRA = 258, 262, 284, 338  # tags of TIFF
_WHITE_IS_ZERO, _SEPARATE_PLANES, _PREMULTIPLIED = 0, 2, 1

Loader = Callable[[Image.Image], Image.Image]


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
    low, high = limits or (np.min(numbers, where=kept, initial=np.inf), _max(numbers, kept))
    if inverted:
        low, high = high, low
    numbers -= low
    numbers *= 255.0 / (high - low) if high != low else 0.0
    np.copyto(numbers, 0.0, where=~kept)
    return np.rint(numbers.clip(0.0, 255.0, out=numbers), out=numbers).astype(np.uint8)


def _max(numbers: np.ndarray, kept: np.ndarray) -> float:
    return float(np.max(numbers, where=kept, initial=-np.inf))


def grey(image: Image.Image) -> Image.Image:
    """A loaded image of one of DEEP_GREY as "L": windowed; white-is-zero TIFF inverted."""
    values = np.asarray(image)
    transparent = image.info.get("transparency")
    white_is_zero = _tag(image, _PHOTOMETRIC) == _WHITE_IS_ZERO
    picture = window(values, inverted=white_is_zero)
    if isinstance(transparent, int):  # one grey of a PNG
        picture[values == transparent] = 0
    return Image.fromarray(picture)


def is_deep_colour(image: Image.Image, data: bytes) -> bool:
    """Whether a file has more than 8 bits per channel with colour or alpha (PNG, TIFF)."""
    if isinstance(image, PngImagePlugin.PngImageFile):
        return data[24:25] == b"\x10" and data[25] in (2, 4, 6)
    bits = _tag(image, _BITS)
    return isinstance(bits, tuple) and len(bits) > 1 and max(bits) > 8 and image.mode[:3] == "RGB"


def colour(image: Image.Image, data: bytes, load: Loader) -> Image.Image:
    """An image of deep colour as "RGB", "LA" or "RGBA", all colour channels in one window.

    Args:
        image: the file, opened.
        data: the file's bytes.
        load: reads the pixels of an opened file in place; raises BadImage.

    Raises:
        BadImage: as `load`; or a TIFF keeps its channels apart, which Pillow reads wrongly.
    """
    if _tag(image, _PLANAR) == _SEPARATE_PLANES:
        raise BadImage("undecodable", "16 bits per channel, in separate planes")
    if image.format == "PNG" and data[25] == 4:  # grey and alpha: Pillow can take it for RGBA
        parts = _read_as(image, data, load, lambda raw: "RGBA").astype(np.uint16)  # (H, W, 4)
        values = parts[..., 0::2] << 8 | parts[..., 1::2]  # (H, W, 2)
    else:
        values = _both_bytes(image, data, load)  # (H, W, 3 or 4)
    colours = 1 if values.shape[-1] == 2 else 3
    picture = window(values[..., :colours])  # (H, W, 1 or 3)
    transparent = image.info.get("transparency")
    if isinstance(transparent, tuple):  # one colour of a PNG
        picture[(values[..., :colours] == transparent).all(axis=-1)] = 0
    if values.shape[-1] > colours and _tag(image, _EXTRA) != (_PREMULTIPLIED,):
        alpha = (values[..., colours:] >> 8).astype(np.uint8)
        picture = np.concatenate([picture, alpha], axis=-1)
    return Image.fromarray(picture)  # premultiplied colour is over black as it is


def _both_bytes(image: Image.Image, data: bytes, load: Loader) -> np.ndarray:
    """Samples of 16 bits: (H, W, C) uint16."""
    orders = list[str]()

    def first_byte(raw: str) -> str:
        orders.append(raw[-1])
        return f"{_channels(raw)};16B"

    def second_byte(raw: str) -> str:
        return f"{_channels(raw)};16L"

    first = _read_as(image, data, load, first_byte).astype(np.uint16)
    second = _read_as(image, data, load, second_byte)
    big = orders[0] == "B" or (orders[0] == "N" and sys.byteorder == "big")
    return first << 8 | second if big else second.astype(np.uint16) << 8 | first


def _channels(raw: str) -> str:
    return "RGBA" if raw.startswith("RGBa") else raw.split(";")[0]  # no division by alpha


def _read_as(
    image: Image.Image, data: bytes, load: Loader, rename: Callable[[str], str]
) -> np.ndarray:
    """The pixels of a file, its samples read as another raw mode of the same width: (H, W, C)."""
    again = Image.open(io.BytesIO(data), formats=(str(image.format),))
    again.tile = [tile._replace(args=_renamed(tile.args, rename)) for tile in again.tile]
    return np.asarray(load(again))


def _renamed(args: Any, rename: Callable[[str], str]) -> Any:
    """Arguments of a decoder: the raw mode alone, or as the first of several."""
    return rename(args) if isinstance(args, str) else (rename(args[0]), *args[1:])


def _tag(image: Image.Image, number: int) -> object:
    """A tag of a TIFF; None in other files."""
    return image.tag_v2.get(number) if isinstance(image, TiffImagePlugin.TiffImageFile) else None
