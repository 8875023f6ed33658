"""What a picture file looks like, decoded: 8 bits, grey ("L") or colour ("RGB"), the right way up.

A file is what its content says, whatever its name. The rules, and the reasons why a file can't be
decoded (`BadImageReason`; encode.py adds "blank"), stand in docs/data.md, "Kinds of files".
"""

import io
import re
from collections.abc import Iterator

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from ..config.packing import MAX_PIXELS as MAX_PIXELS
from ..errors import BadImage, BadImageReason
from . import dicom

# Not every format that Pillow knows: some run other programs (EPS) or need ones.
_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "JPEG2000", "PPM", "TIFF", "WEBP")  # JPEG: MPO too
GREY = ("1", "L", "LA", "La")  # Pillow's modes that are grey, of 8 bits
DEEP_GREY = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")  # of more bits
_BITS, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0  # two tags of TIFF, a value of the second


def decode(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode a picture file by these rules: "L" or "RGB", of at most `max_pixels`, width times
    height. BadImage: the reasons there. A blank image is decoded.
    """
    if is_dicom(data):
        return dicom.decode(data, max_pixels)
    image = open_image(data, max_pixels)
    return turn(flatten(image, data), read_orientation(image))


def is_dicom(data: bytes) -> bool:
    """Whether a file has the mark of DICOM, or begins as an older one does, with its first tag."""
    return data[128:132] == b"DICM" or (data[:2] in (b"\x02\0", b"\x08\0") and data[3:4] == b"\0")


def open_image(data: bytes, max_pixels: int) -> Image.Image:
    """Read the header; BadImage: as `decode`."""
    if not data:
        raise BadImage("empty", "0 bytes")
    try:
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadImage("over max pixels", str(error)) from None
    except UnidentifiedImageError:
        if _ends_early(data):
            raise BadImage("truncated", "the file ends before its image begins") from None
        detail = f"not one of {', '.join(_FORMATS)}, DICOM{_guess(data)}"
        raise BadImage("undecodable", detail) from None
    except Exception as error:  # a damaged file raises whatever its decoder trips over
        raise _damage(error, data) from None
    if image.width * image.height > max_pixels:
        size = f"{image.width} x {image.height}, limit {max_pixels} pixels"
        raise BadImage("over max pixels", size)
    if _is_deep_colour(image, data):
        raise BadImage("undecodable", "more than 8 bits per channel with colour or alpha")
    return image


def read_orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 (upright) to 8."""
    if image.format == "PNG" and "exif" not in image.info:
        return 1  # getexif would decode the pixels to look behind them
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # junk where EXIF should be: stock readers pass over it as well
        return 1
    return orientation if orientation in range(1, 9) else 1


def flatten(image: Image.Image, data: bytes) -> Image.Image:
    """Read the pixels of an opened file: "L" or "RGB", not turned yet; BadImage: damaged."""
    try:
        image.load()
        flat = image
        if image.mode in DEEP_GREY:
            inverted = getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == _WHITE_IS_ZERO
            flat = Image.fromarray(dicom.window(np.asarray(image), inverted=inverted))
        mode = "L" if flat.mode in GREY else "RGB"
        if flat.has_transparency_data:
            whole = flat.convert("LA" if mode == "L" else "RGBA")
            black = Image.new(mode, whole.size)
            return Image.composite(whole.convert(mode), black, whole.getchannel("A"))
        return flat.convert(mode)
    except Exception as error:  # as in open_image, or a mode with no way to RGB
        raise _damage(error, data) from None


def turn(image: Image.Image, orientation: int) -> Image.Image:
    """Set a decoded image of an EXIF orientation upright. It keeps nothing but pixels."""
    if orientation == 1:
        return image
    image.info = {}
    image.getexif()[ExifTags.Base.Orientation] = orientation
    return ImageOps.exif_transpose(image)


def _is_deep_colour(image: Image.Image, data: bytes) -> bool:
    """Whether a file has more than 8 bits per channel with colour or alpha (PNG, TIFF)."""
    if image.format == "PNG":
        return data[24:25] == b"\x10" and data[25] in (2, 4, 6)
    bits = getattr(image, "tag_v2", {}).get(_BITS)
    return isinstance(bits, tuple) and len(bits) > 1 and max(bits) > 8 and image.mode[:3] == "RGB"


# ---------------------------------------------------- by the first bytes, where no decoder tells

_STARTS = {
    b"\\\1\0\0": "NIfTI, of which --slices takes slices",
    b"\x1f\x8b": "gzip; of NIfTI --slices takes slices",
    b"version https://git-lfs": "a Git LFS pointer in place of the file",
    b"<!doctype html": "a web page",
    b"<html": "a web page",
}
# frame headers of JPEG: every 0xC0-0xCF but DHT, JPG and DAC (ITU-T T.81, table B.1)
_FRAMES = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
# not stuffed bytes or restarts, which are in the midst of a scan; and those that have no length
_MARKER, _ALONE = re.compile(rb"\xff+([\x01-\xcf\xd8-\xfe])"), (0x01, 0xD8, 0xD9)


def jpeg_segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Where each segment of a JPEG begins, and its bytes; scans lie between segments."""
    kind, end = 0, 0 if data.startswith(b"\xff\xd8") else len(data)
    while kind != 0xD9 and (found := _MARKER.search(data, end)):
        kind, start = found[1][0], found.end() - 2
        length = 0 if kind in _ALONE else int.from_bytes(data[start + 2 : start + 4])
        end = start + 2 + length
        yield start, data[start:end]


def jpeg_frame(data: bytes) -> tuple[int, int]:
    """The kind of a JPEG's first frame (N of its marker SOFn) and its bits per sample.

    0, 1 and 2 are the Huffman-coded kinds that every decoder knows: baseline, extended and
    progressive. 3 is lossless, 9 to 11 are coded arithmetically. (0, 8): not a JPEG, or cut.
    """
    frames = (it for _, it in jpeg_segments(data) if it[1] in _FRAMES and len(it) > 4)
    return next(((frame[1] - 0xC0, frame[4]) for frame in frames), (0, 8))


def _damage(error: Exception, data: bytes) -> BadImage:
    words = " ".join(str(error).split())
    cut = "truncated" in words.lower() or _ends_early(data)
    reason: BadImageReason = "truncated" if cut else "undecodable"
    # Python's own words tell users nothing, and what stands in the file is not to be quoted
    pillows = isinstance(error, OSError | SyntaxError | ValueError)
    if not words or not pillows or re.search(r"literal|codec|b['\"]", words):
        words = "its decoder failed"
    return BadImage(reason, words)


def _guess(data: bytes) -> str:
    """What a file that no decoder takes seems to be: "; seems a web page". Empty: no idea."""
    if (bits := jpeg_frame(data)[1]) != 8:
        return f"; seems a JPEG of {bits} bits"
    start = data[:64].lstrip().lower()
    return next((f"; seems {it}" for mark, it in _STARTS.items() if start.startswith(mark)), "")


def _ends_early(data: bytes) -> bool:
    """Whether a WebP, TIFF or JPEG 2000 that failed to decode holds less than its header promises.

    Of the other kinds the decoders say so themselves.
    """
    if data[:4] == b"RIFF":
        return int.from_bytes(data[4:8], "little") + 8 > len(data)
    if data[:4] in (b"II*\0", b"MM\0*"):  # TIFF: where its directory is
        return int.from_bytes(data[4:8], "little" if data[:1] == b"I" else "big") + 2 > len(data)
    is_jpeg_2000 = data[:4] == b"\xffO\xffQ" or data[4:8] == b"jP  "  # bare or in boxes
    return is_jpeg_2000 and b"\xff\xd9" not in data[-64:]
