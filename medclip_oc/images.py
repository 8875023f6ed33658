"""What a picture file becomes: 8 bits, grey ("L") or colour ("RGB"), the right way up.

The rules, for `decode` and so for every image that the program looks at:

- The first frame of an animated or MPO file.
- More than 8 bits per channel (16-bit grey or colour PNG, 16/32-bit or float TIFF): the darkest
  value of the file becomes 0, the brightest 255, linearly between. Never saturated. All colour
  channels share one window; NaN and infinities become 0.
- Transparency is laid over black, the background of radiology.
- Palette, CMYK and YCbCr become RGB; one bit becomes grey, 0 or 255.
- The EXIF orientation is applied. An unreadable EXIF block counts as none.
- Colour profiles are ignored, as every CLIP pipeline does.

A shard keeps the original bytes where stock readers, `PIL.Image.open(...).convert("RGB")` or any
JPEG or PNG decoder, get those same pixels (as RGB). Otherwise it gets a new file: JPEG, quality 95
without chroma subsampling, if the source was a JPEG; else PNG. New files carry no metadata.
"""

import io
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import (
    BmpImagePlugin,
    ExifTags,
    GifImagePlugin,
    Image,
    Jpeg2KImagePlugin,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)

from .errors import BadImage

MAX_PIXELS = 89_478_485
"""Pillow's own limit: above it, stock readers warn of a decompression bomb."""

# Not every format that Pillow knows: some run other programs (EPS) or need ones.
_FORMATS = tuple(
    reader.format
    for reader in (
        JpegImagePlugin.JpegImageFile,  # MPO too
        PngImagePlugin.PngImageFile,
        BmpImagePlugin.BmpImageFile,
        GifImagePlugin.GifImageFile,
        Jpeg2KImagePlugin.Jpeg2KImageFile,
        PpmImagePlugin.PpmImageFile,
        TiffImagePlugin.TiffImageFile,
        WebPImagePlugin.WebPImageFile,
    )
)
_KEPT = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png"}
_KEPT_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA")
_GREY = ("1", "L", "LA", "La")
_DEEP_GREY = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class Stored:
    """An image as a shard holds it."""

    data: bytes
    extension: Literal["jpg", "png"]
    width: int
    height: int
    mode: Literal["L", "RGB"]
    """Of the decoded image."""
    reencoded: str | None
    """Why these are not the source's bytes; None: they are."""


def decode(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode a picture file by the rules at the top of this module.

    Args:
        data: the whole file.
        max_pixels: largest width times height.

    Returns:
        An image of mode "L" or "RGB".

    Raises:
        BadImage: empty, undecodable, truncated or over max pixels. A blank image is decoded.
    """
    return _to_8_bits(_load(_open(data, max_pixels)), data)


def prepare(data: bytes, *, max_pixels: int = MAX_PIXELS, check: bool = True) -> Stored:
    """Bytes for a shard: the source's own where they are safe to keep, else a new file.

    Args:
        data: the whole source file.
        max_pixels: largest width times height.
        check: decode what is kept, too. Without it only the header of an ordinary JPEG or PNG is
            read: damage behind it, blankness, and an orientation that a PNG names after its
            pixels, go unnoticed.

    Raises:
        BadImage: the image can't be used.
    """
    image = _open(data, max_pixels)
    width, height = image.size
    jpeg = image.format in ("JPEG", "MPO")
    if check and not jpeg:
        _load(image)
    reason = _unsafe(image, data)
    if reason is None:
        if check:
            if jpeg:
                _check_jpeg(image, data, max_pixels)
            else:
                _refuse_blank(_to_8_bits(image, data))
        mode: Literal["L", "RGB"] = "L" if image.mode in _GREY else "RGB"
        return Stored(data, "jpg" if jpeg else "png", width, height, mode, None)

    picture = _to_8_bits(_load(image), data)
    _refuse_blank(picture)
    buffer = io.BytesIO()
    if jpeg:
        picture.save(buffer, "JPEG", quality=95, subsampling=0)
    else:
        picture.save(buffer, "PNG")
    mode = "L" if picture.mode == "L" else "RGB"
    return Stored(buffer.getvalue(), "jpg" if jpeg else "png", *picture.size, mode, reason)


def unsafe(data: bytes, *, max_pixels: int = MAX_PIXELS) -> str | None:
    """Why stock readers would get other pixels from this file than `decode`. None: the same.

    Raises:
        BadImage: as `decode`.
    """
    return _unsafe(_load(_open(data, max_pixels)), data)


def _unsafe(image: Image.Image, data: bytes) -> str | None:
    """As `unsafe`; reads pixels only to see whether an alpha channel hides some of them."""
    if image.format not in _KEPT:
        return f"{image.format} file"
    if _deep_colour(data) or image.mode in _DEEP_GREY:
        return "more than 8 bits per channel"
    if image.mode not in _KEPT_MODES:
        return f"mode {image.mode}"
    if (orientation := _orientation(image)) != 1:
        return f"EXIF orientation {orientation}"
    if image.has_transparency_data and not _opaque(_load(image)):
        return "transparency"
    return None


def _open(data: bytes, max_pixels: int) -> Image.Image:
    """Read the header."""
    if not data:
        raise BadImage("empty", "0 bytes")
    try:
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadImage("over max pixels", str(error)) from None
    except UnidentifiedImageError:
        raise BadImage("undecodable", f"not one of {', '.join(_FORMATS)}") from None
    except Exception as error:  # a damaged file raises whatever its decoder trips over
        raise BadImage("undecodable", _said(error)) from None
    if image.width * image.height > max_pixels:
        found = f"{image.width} x {image.height}, limit {max_pixels} pixels"
        raise BadImage("over max pixels", found)
    return image


def _load(image: Image.Image) -> Image.Image:
    """Read the pixels, in place."""
    try:
        image.load()
    except Exception as error:  # as in _open
        cut = "truncated" in str(error).lower()
        raise BadImage("truncated" if cut else "undecodable", _said(error)) from None
    return image


def _said(error: Exception) -> str:
    return str(error) or type(error).__name__


def _check_jpeg(image: Image.Image, data: bytes, max_pixels: int) -> None:
    """Refuse a damaged or blank JPEG, from its header on.

    Decoding at an eighth of the size reads the whole bit stream and finds the same damage, in about
    half the time: what it leaves out is the inverse transform of the fine detail.
    """
    image.draft(None, (1, 1))
    _load(image)
    if _one_value(image):  # or all its detail is finer than 8 pixels
        _refuse_blank(_load(_open(data, max_pixels)))


def _refuse_blank(image: Image.Image) -> None:
    if _one_value(image):
        raise BadImage("blank", f"every pixel is {image.getpixel((0, 0))}")


def _one_value(image: Image.Image) -> bool:
    """Whether all pixels are equal. Looks at two first: the whole costs as much as decoding."""
    if image.getpixel((0, 0)) != image.getpixel((image.width // 2, image.height // 2)):
        return False
    extrema = image.getextrema()
    pairs = extrema if isinstance(extrema[0], tuple) else (extrema,)
    return all(low == high for low, high in pairs)


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 (upright) to 8."""
    if image.format == "PNG" and "exif" not in image.info:
        return 1  # getexif would decode the pixels to look behind them
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # junk where EXIF should be: stock readers pass over it as well
        return 1
    return orientation if orientation in _TURNS else 1


def _opaque(image: Image.Image) -> bool:
    alpha = image if image.mode in ("LA", "PA", "RGBA") else image.convert("RGBA")
    return alpha.getchannel("A").getextrema() == (255, 255)


def _to_8_bits(image: Image.Image, data: bytes) -> Image.Image:
    """Apply the rules to a loaded image."""
    if image.mode in _DEEP_GREY:
        picture = Image.fromarray(_window(np.asarray(image)))
    elif _deep_colour(data):
        picture = _decode_deep_colour(data)
    else:
        picture = image
    orientation = _orientation(image)
    if picture.has_transparency_data:
        picture = _over_black(picture)
    try:
        picture = picture.convert("L" if picture.mode in _GREY else "RGB")
    except ValueError as error:  # LAB has no plain way to RGB
        raise BadImage("undecodable", _said(error)) from None
    return picture.transpose(_TURNS[orientation]) if orientation != 1 else picture


def _over_black(image: Image.Image) -> Image.Image:
    """Lay a transparent image over black: "L" or "RGB"."""
    grey = image.mode in _GREY
    whole = image.convert("LA" if grey else "RGBA")
    ground = Image.new("L" if grey else "RGB", image.size)
    ground.paste(whole.convert(ground.mode), mask=whole.getchannel("A"))
    return ground


def _window(values: np.ndarray) -> np.ndarray:
    """Map the range of the values to 0..255: uint8 of the same shape."""
    numbers = values.astype(np.float64)
    finite = np.isfinite(numbers)
    if not finite.any():
        return np.zeros(values.shape, dtype=np.uint8)
    low, high = np.min(numbers[finite]), np.max(numbers[finite])
    scaled = (numbers - low) * (255.0 / (high - low) if high > low else 0.0)
    return np.where(finite, scaled, 0.0).round().astype(np.uint8)


def _deep_colour(data: bytes) -> bool:
    """Whether this is a PNG of 16 bits with colour or alpha: Pillow reads its upper bytes only."""
    return data[:8] == b"\x89PNG\r\n\x1a\n" and data[24:25] == b"\x10" and data[25] in (2, 4, 6)


def _decode_deep_colour(data: bytes) -> Image.Image:
    """A 16-bit PNG with colour or alpha, windowed: "RGB", "LA" or "RGBA"."""
    if data[25] == 4:  # grey and alpha: four bytes a pixel, which Pillow can take for RGBA
        parts = _png_bytes(data, "RGBA").astype(np.uint16)  # (H, W, 4)
        values = parts[..., 0::2] << 8 | parts[..., 1::2]  # (H, W, 2)
    else:
        name = "RGB" if data[25] == 2 else "RGBA"
        upper, lower = _png_bytes(data, f"{name};16B"), _png_bytes(data, f"{name};16L")
        values = upper.astype(np.uint16) << 8 | lower  # (H, W, 3 or 4)
    colours = values.shape[-1] - (data[25] != 2)
    alpha = (values[..., colours:] >> 8).astype(np.uint8)
    return Image.fromarray(np.concatenate([_window(values[..., :colours]), alpha], axis=-1))


def _png_bytes(data: bytes, raw_mode: str) -> np.ndarray:
    """Pixels of a PNG, its samples read as another raw mode of the same width: (H, W, C) uint8."""
    image = Image.open(io.BytesIO(data), formats=("PNG",))
    image.tile = [tile._replace(args=raw_mode) for tile in image.tile]
    return np.asarray(_load(image))
