"""What a picture file looks like, decoded: 8 bits, grey ("L") or colour ("RGB"), the right way up.

A file is what its content says, whatever its name. The rules, which hold for every image that the
program looks at:

| kind                               | what becomes of it                                          |
|------------------------------------|-------------------------------------------------------------|
| frames or pages: GIF, APNG, WebP,  | the first one (of an APNG, the picture that readers which   |
|   TIFF, MPO, DICOM                 |   know no animation show)                                   |
| grey of over 8 bits                | the darkest value of the file becomes 0, the brightest 255, |
|                                    |   linearly: never saturated. NaN and infinities become 0    |
| colour of over 8 bits: PPM, CMYK   | scaled from the depth that the file states to 8 bits        |
|   TIFF, JPEG 2000                  |                                                             |
| the same: PNG, TIFF                | refused: Pillow drops the lower bits                        |
| white-is-zero TIFF                 | inverted: white is bright                                   |
| alpha, a transparent grey or colour| laid over black, the background of radiology. The fourth    |
|                                    |   byte of a BMP counts only where its header says "alpha"   |
| palette, CMYK, YCbCr, LAB          | RGB. CMYK and YCCK JPEG is inverted, as Adobe means it      |
| one bit                            | grey, 0 or 255                                              |
| EXIF orientation                   | applied. An unreadable EXIF block counts as none            |
| colour profile, gamma, texts       | ignored, as every CLIP pipeline does                        |
| what follows the end of the image  | ignored: junk, a second JPEG                                |
| DICOM                              | see dicom.py                                                |

What can't be decoded, and the reason that is given (`BadImageReason`; encode.py adds "blank"):

- "empty": no bytes.
- "over max pixels": by the header, before decoding. Shape alone is no reason: 1 x 20000 is fine.
- "truncated": the decoder says so, or the file is shorter than its own header says.
- "undecodable": damaged; none of the formats below, such as HEIF, AVIF, SVG, PDF, a web page; JPEG
  of 12 bits; PNG or TIFF of 16 bits per channel with colour or alpha; PNG with a text or profile of
  over 1 MiB unpacked (texts together: 64 MiB), which stock readers refuse as well.

JPEG decoders conceal some damage within the bit stream: that goes unnoticed.
"""

import io

from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from ..errors import BadImage, BadImageReason
from . import depth, dicom, signatures

MAX_PIXELS = 89_478_485
"""Pillow's own limit: above it, stock readers warn of a decompression bomb, and above twice that
they, and we, refuse it."""

# Not every format that Pillow knows: some run other programs (EPS) or need ones.
_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "JPEG2000", "PPM", "TIFF", "WEBP")  # JPEG: MPO too
GREY = ("1", "L", "LA", "La")
"""Pillow's modes that are grey, of 8 bits."""


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
    image = load(open_image(data, max_pixels), data)
    return turn(flatten(image, data), read_orientation(image))


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
        raise _damage(error, data) from None
    if image.width * image.height > max_pixels:
        size = f"{image.width} x {image.height}, limit {max_pixels} pixels"
        raise BadImage("over max pixels", size)
    if depth.is_deep_colour(image, data):
        raise BadImage("undecodable", "more than 8 bits per channel with colour or alpha")
    return image


def load(image: Image.Image, data: bytes) -> Image.Image:
    """Read the pixels of an opened file, in place.

    Raises:
        BadImage: "truncated" or "undecodable".
    """
    try:
        image.load()
    except Exception as error:  # as in open_image
        raise _damage(error, data) from None
    return image


def _damage(error: Exception, data: bytes) -> BadImage:
    cut = "truncated" in str(error).lower() or signatures.ends_early(data)
    reason: BadImageReason = "truncated" if cut else "undecodable"
    return BadImage(reason, " ".join(str(error).split()) or type(error).__name__)


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
    return orientation if orientation in range(1, 9) else 1


def flatten(image: Image.Image, data: bytes) -> Image.Image:
    """A loaded image as "L" or "RGB", not turned yet."""
    flat = depth.grey(image) if image.mode in depth.DEEP_GREY else image
    try:
        if flat.has_transparency_data:
            flat = _over_black(flat)
        return flat.convert("L" if flat.mode in GREY else "RGB")
    except (ValueError, OSError) as error:  # a mode with no way to RGB
        raise _damage(error, data) from None


def turn(image: Image.Image, orientation: int) -> Image.Image:
    """Set a decoded image of an EXIF orientation upright. It keeps nothing but pixels."""
    if orientation == 1:
        return image
    image.info = {}
    image.getexif()[ExifTags.Base.Orientation] = orientation
    return ImageOps.exif_transpose(image)


def _over_black(image: Image.Image) -> Image.Image:
    """Lay a transparent image over black: "L" or "RGB"."""
    grey = image.mode in GREY
    whole = image.convert("LA" if grey else "RGBA")
    ground = Image.new("L" if grey else "RGB", image.size)
    ground.paste(whole.convert(ground.mode), mask=whole.getchannel("A"))
    return ground
