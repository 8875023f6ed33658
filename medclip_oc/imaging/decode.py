"""What a picture file looks like, decoded: 8 bits, grey ("L") or colour ("RGB"), the right way up.

A file is what its content says, whatever its name. The rules, which hold for every image that the
program looks at:

| kind                               | what becomes of it                                          |
|------------------------------------|-------------------------------------------------------------|
| frames or pages: GIF, APNG, WebP,  | the first one (of an APNG, the picture that readers which   |
|   TIFF, MPO, DICOM                 |   know no animation show)                                   |
| over 8 bits per channel: grey of   | the darkest value of the file becomes 0, the brightest 255, |
|   any format, colour of PNG, TIFF  |   linearly: never saturated, all colours in one window.     |
|                                    |   NaN and infinities become 0                               |
| the same: colour of PPM, JPEG 2000 | scaled from the depth that the file states to 8 bits        |
|   and CMYK TIFF                    |                                                             |
| white-is-zero TIFF                 | inverted: white is bright                                   |
| alpha, a transparent grey or colour| laid over black, the background of radiology. The fourth    |
|                                    |   byte of a BMP counts only where its header says "alpha"   |
| palette, CMYK, YCbCr, LAB          | RGB. CMYK and YCCK JPEG is inverted, as Adobe means it      |
| one bit                            | grey, 0 or 255                                              |
| EXIF orientation                   | applied. An unreadable EXIF block counts as none            |
| colour profile, gamma, texts       | ignored, as every CLIP pipeline does                        |
| what follows the end of the image  | ignored: junk, a second JPEG                                |
| DICOM                              | see dicom.py                                                |

What can't be decoded, and the reason that is given (`BadImageReason`; images.py adds "blank"):

- "empty": no bytes.
- "over max pixels": by the header, before decoding. Shape alone is no reason: 1 x 20000 is fine.
- "truncated": the decoder says so, or the file is shorter than its own header says.
- "undecodable": damaged; none of the formats below, such as HEIF, AVIF, SVG, PDF, a web page; JPEG
  of 12 bits; TIFF of 16-bit colours in separate planes; PNG with a text or profile of over 1 MiB
  unpacked (texts together: 64 MiB), which stock readers refuse as well.

JPEG decoders conceal some damage within the bit stream: that goes unnoticed.
"""

import io

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

from ..errors import BadImage, BadImageReason
from . import depth, dicom, signatures

MAX_PIXELS = 89_478_485
"""Pillow's own limit: above it, stock readers warn of a decompression bomb, and above twice that
they, and we, refuse it."""

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
GREY = ("1", "L", "LA", "La")
"""Pillow's modes that are grey, of 8 bits."""

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


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
    if dicom.is_dicom(data):
        return dicom.decode(data, max_pixels)
    return upright(load(open_image(data, max_pixels), data), data)


def open_image(data: bytes, max_pixels: int) -> Image.Image:
    """Read the header.

    Raises:
        BadImage: as `decode`.
    """
    if not data:
        raise BadImage("empty", "0 bytes")
    try:
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadImage("over max pixels", str(error)) from None
    except UnidentifiedImageError:
        if signatures.ends_early(data):
            raise BadImage("truncated", "the file ends before its image begins") from None
        seems = signatures.guess(data)
        detail = f"not one of {', '.join(_FORMATS)}, DICOM" + (f"; seems {seems}" if seems else "")
        raise BadImage("undecodable", detail) from None
    except Exception as error:  # a damaged file raises whatever its decoder trips over
        raise BadImage(_broken(error, data), _said(error)) from None
    if image.width * image.height > max_pixels:
        found = f"{image.width} x {image.height}, limit {max_pixels} pixels"
        raise BadImage("over max pixels", found)
    return image


def load(image: Image.Image, data: bytes) -> Image.Image:
    """Read the pixels of an opened file, in place.

    Raises:
        BadImage: "truncated" or "undecodable".
    """
    try:
        image.load()
    except Exception as error:  # as in open_image
        raise BadImage(_broken(error, data), _said(error)) from None
    return image


def _broken(error: Exception, data: bytes) -> BadImageReason:
    cut = "truncated" in str(error).lower() or signatures.ends_early(data)
    return "truncated" if cut else "undecodable"


def _said(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def read_orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 (upright) to 8."""
    if image.format == "PNG" and "exif" not in image.info:
        return 1  # getexif would decode the pixels to look behind them
    if image.format == "JPEG" and image.info.keys().isdisjoint(("exif", "xmp")):
        return 1  # what getexif would find, with much ado
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # junk where EXIF should be: stock readers pass over it as well
        return 1
    return orientation if orientation in _TURNS else 1


def upright(image: Image.Image, data: bytes) -> Image.Image:
    """Apply the rules to a loaded image: "L" or "RGB"."""
    return turn(flatten(image, data), read_orientation(image))


def flatten(image: Image.Image, data: bytes) -> Image.Image:
    """A loaded image as "L" or "RGB", not turned yet."""
    picture = image
    if image.mode in depth.DEEP_GREY:
        picture = depth.grey(image)
    elif depth.is_deep_colour(image, data):
        picture = depth.colour(image, data, lambda other: load(other, data))
    try:
        if picture.has_transparency_data:
            picture = _over_black(picture)
        return picture.convert("L" if picture.mode in GREY else "RGB")
    except (ValueError, OSError) as error:  # a mode with no way to RGB
        raise BadImage("undecodable", _said(error)) from None


def turn(picture: Image.Image, orientation: int) -> Image.Image:
    """Set a picture of an EXIF orientation upright."""
    return picture.transpose(_TURNS[orientation]) if orientation != 1 else picture


def _over_black(image: Image.Image) -> Image.Image:
    """Lay a transparent image over black: "L" or "RGB"."""
    grey = image.mode in GREY
    whole = image.convert("LA" if grey else "RGBA")
    ground = Image.new("L" if grey else "RGB", image.size)
    ground.paste(whole.convert(ground.mode), mask=whole.getchannel("A"))
    return ground
