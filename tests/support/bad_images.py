"""Image files as they come, each with its outcome (test_bad_inputs.py packs them)."""

import gzip
import io
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from tests.support.odd_files import (
    ARITHMETIC_JPEG,
    ARITHMETIC_PIXELS,
    bmp_with_masks,
    chunk,
    dicom,
    file,
    png,
    png_16,
    tiff_16,
    zlib_of,
)
from tests.support.tiny_dataset import picture

SMOOTH = picture(6, (24, 18))
GREY = np.asarray(SMOOTH)  # (18, 24)
RGB = Image.merge("RGB", (SMOOTH, SMOOTH.rotate(180), SMOOTH.transpose(0)))
COLOUR = np.asarray(RGB)  # (18, 24, 3)
ALPHA = SMOOTH.transpose(1)
OTHER = RGB.rotate(180)
ANOTHER: dict[str, Any] = {"save_all": True, "append_images": [OTHER]}
"""Options of Pillow for a second frame."""
DEEP = np.dstack([COLOUR, np.asarray(ALPHA)]).astype(np.uint16) * 15 + 200  # (18, 24, 4), 12 bits


class Kept(NamedTuple):
    """The source's bytes; the member ends in this."""

    extension: str


class Shown(NamedTuple):
    """A new file that shows this: (H, W) or (H, W, 3)."""

    pixels: np.ndarray
    reencoded: str
    slack: int = 0


class Refused(NamedTuple):
    """A line in rejects.csv."""

    reason: str
    detail: str = ""


Outcome = Kept | Shown | Refused
NOT_READ = "not one of JPEG, PNG, .*DICOM"


def windowed(values: np.ndarray) -> np.ndarray:
    numbers = values.astype(float) - values.min()
    return (numbers / numbers.max() * 255).round()


def on_black(values: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    return values.astype(float) * (alpha[..., None] if values.ndim == 3 else alpha) / 255


def rgb(data: bytes) -> np.ndarray:
    """As a stock reader shows it."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def cmyk(marked_as_ycck: bool = False) -> bytes:
    data = file(RGB.convert("CMYK"), "JPEG", quality=95)
    end = data.index(b"Adobe") + 12  # the byte that says how the inks are coded
    return data[: end - 1] + bytes([2 if marked_as_ycck else data[end - 1]]) + data[end:]


def ycck_pixels() -> np.ndarray:
    """The same stored numbers taken for YCCK: three of them are YCbCr of inverted inks."""
    inks = Image.open(io.BytesIO(cmyk()))
    stored = [255 - np.asarray(band).astype(float) for band in inks.split()]  # as Adobe does
    luma, cb, cr, white = stored[0], stored[1] - 128, stored[2] - 128, stored[3]
    cyan, magenta, yellow = luma + 1.402 * cr, luma - 0.344 * cb - 0.714 * cr, luma + 1.772 * cb
    paper = 255 - np.stack([cyan, magenta, yellow], axis=-1).clip(0, 255)
    return paper * white[..., None] / 255


JPEG, PNG = file(RGB, "JPEG", quality=95), file(RGB, "PNG")
TWELVE_BITS = JPEG.replace(b"\xff\xc0\0\x11\x08", b"\xff\xc0\0\x11\x0c")
TEXT_BOMB = PNG[:33] + chunk(b"zTXt", b"k\0\0" + zlib_of(1 << 22)) + PNG[33:]
LONG_TEXT = PNG[:33] + chunk(b"tEXt", b"k\0" + b"x" * (1 << 21)) + PNG[33:]
BOMB = png(60_000, 60_000, 8, 0, bytes(1000))
LINE = np.random.default_rng(0).integers(0, 256, (20_000, 1), dtype=np.uint8)
LAB = Image.merge("LAB", [SMOOTH, Image.new("L", (24, 18), 0), Image.new("L", (24, 18), 0)])

IMAGES: dict[str, tuple[str, bytes, Outcome]] = {
    # kept as they are
    "JPEG": ("a.jpg", JPEG, Kept("jpg")),
    "progressive JPEG": ("a.jpg", file(RGB, "JPEG", progressive=True), Kept("jpg")),
    "JPEG, junk after its end": ("a.jpg", JPEG + b"junk" * 999, Kept("jpg")),
    "two JPEGs in a row": ("a.jpg", JPEG + file(OTHER, "JPEG"), Kept("jpg")),
    "MPO": ("a.jpg", file(RGB, "MPO", **ANOTHER), Kept("jpg")),
    "PNG named .jpg": ("a.jpg", PNG, Kept("png")),
    "JPEG named .png": ("a.png", JPEG, Kept("jpg")),
    "JPEG named .dcm": ("a.dcm", JPEG, Kept("jpg")),
    "one bit": ("a.png", file(SMOOTH.convert("1"), "PNG"), Kept("png")),
    "palette": ("a.png", file(RGB.quantize(9), "PNG"), Kept("png")),
    "APNG": ("a.png", file(RGB, "PNG", **ANOTHER), Kept("png")),
    "PNG with a long text": ("a.png", LONG_TEXT, Kept("png")),
    "1 x 20000": ("a.png", file(Image.fromarray(LINE), "PNG"), Kept("png")),
    # stored anew
    "16-bit grey": (
        "a.png",
        png_16(DEEP[..., :1]),
        Shown(windowed(DEEP[..., 0]), "more than 8 bits per channel"),
    ),
    "16-bit TIFF, white is zero": (
        "a.tif",
        tiff_16(DEEP[..., :1], photometric=0),
        Shown(255 - windowed(DEEP[..., 0]), "TIFF file", slack=1),
    ),
    "32-bit TIFF": (
        "a.tif",
        file(Image.fromarray(DEEP[..., 0].astype(np.int32) * 5000), "TIFF"),
        Shown(windowed(DEEP[..., 0]), "TIFF file"),
    ),
    "float TIFF": (
        "a.tif",
        file(Image.fromarray(DEEP[..., 0].astype(np.float32) / 7 - 90), "TIFF"),
        Shown(windowed(DEEP[..., 0]), "TIFF file", slack=1),
    ),
    "LAB": ("a.tif", file(LAB, "TIFF"), Shown(rgb(file(LAB, "TIFF")), "TIFF file")),
    "CMYK": ("a.jpg", cmyk(), Shown(rgb(cmyk()), "mode CMYK", slack=12)),
    "YCCK": ("a.jpg", cmyk(marked_as_ycck=True), Shown(ycck_pixels(), "mode CMYK", slack=12)),
    "arithmetic-coded JPEG": (
        "a.jpg",
        ARITHMETIC_JPEG,
        Shown(ARITHMETIC_PIXELS, "arithmetic-coded JPEG", slack=6),
    ),
    "grey with alpha": (
        "a.png",
        file(Image.merge("LA", (SMOOTH, ALPHA)), "PNG"),
        Shown(on_black(GREY, np.asarray(ALPHA)), "transparency", slack=1),
    ),
    "colour with alpha": (
        "a.png",
        file(Image.merge("RGBA", (*RGB.split(), ALPHA)), "PNG"),
        Shown(on_black(COLOUR, np.asarray(ALPHA)), "transparency", slack=1),
    ),
    "palette with alpha": (
        "a.png",
        file(SMOOTH.convert("P"), "PNG", transparency=bytes(range(256))),
        Shown(on_black(np.dstack([GREY] * 3), GREY), "transparency", slack=1),
    ),
    "animated GIF": (
        "a.gif",
        file(SMOOTH, "GIF", **ANOTHER),
        Shown(np.dstack([GREY] * 3), "GIF file"),
    ),
    "animated WebP": (
        "a.webp",
        file(RGB, "WEBP", lossless=True, **ANOTHER),
        Shown(COLOUR, "WEBP file"),
    ),
    "JPEG 2000": ("a.jp2", file(RGB, "JPEG2000"), Shown(COLOUR, "JPEG2000 file")),
    "BMP": ("a.bmp", file(RGB, "BMP"), Shown(COLOUR, "BMP file")),
    "BMP whose header says alpha": (
        "a.bmp",
        bmp_with_masks(np.dstack([COLOUR, np.asarray(ALPHA)])),
        Shown(on_black(COLOUR, np.asarray(ALPHA)), "BMP file", slack=1),
    ),
    "BMP of four bytes, alpha not said": (
        "a.bmp",
        file(Image.merge("RGBA", (*RGB.split(), ALPHA)), "BMP"),
        Shown(COLOUR, "BMP file"),
    ),
    "DICOM": ("a.dcm", dicom(DEEP[..., 0]), Shown(windowed(DEEP[..., 0]), "DICOM file")),
    "DICOM named .jpg": ("a.jpg", dicom(COLOUR), Shown(COLOUR, "DICOM file")),
    # refused
    "no bytes": ("a.jpg", b"", Refused("empty", "0 bytes")),
    "zeros": ("a.jpg", bytes(5000), Refused("undecodable", "nothing but zeros")),
    "a text": ("a.jpg", b"ID,Caption\n", Refused("undecodable", NOT_READ)),
    "a web page": ("a.jpg", b"<!DOCTYPE html><p>404", Refused("undecodable", "seems a web page")),
    "PDF": ("a.jpg", b"%PDF-1.7\n%", Refused("undecodable", "seems a PDF")),
    "zip": ("a.jpg", b"PK\x03\x04" + bytes(99), Refused("undecodable", "seems a zip")),
    "gzip": ("a.png", gzip.compress(PNG), Refused("undecodable", "seems gzip")),
    "HEIC": ("a.jpg", b"\0\0\0\x18ftypheic" + bytes(99), Refused("undecodable", "seems HEIF")),
    "LFS": (
        "a.png",
        b"version https://git-lfs.github.com/spec/v1\n",
        Refused("undecodable", "Git LFS"),
    ),
    "12-bit JPEG": ("a.jpg", TWELVE_BITS, Refused("undecodable", "seems a JPEG of 12 bits")),
    "16-bit colour": ("a.png", png_16(DEEP[..., :3]), Refused("undecodable", "more than 8 bits")),
    "16-bit colour TIFF": (
        "a.tif",
        tiff_16(DEEP[..., :3], photometric=2),
        Refused("undecodable", "more than 8 bits per channel with colour or alpha"),
    ),
    "PNG bomb": ("a.png", BOMB, Refused("over max pixels", "pixels")),
    "PNG text bomb": ("a.png", TEXT_BOMB, Refused("undecodable", "MAX_TEXT_CHUNK")),
    "PNG, one byte changed": ("a.png", PNG[:80] + b"?" + PNG[81:], Refused("undecodable")),
    "black": ("a.png", file(Image.new("L", (9, 9)), "PNG"), Refused("blank", "is 0")),
    "white": ("a.jpg", file(Image.new("RGB", (9, 9), "white"), "JPEG"), Refused("blank", "255")),
    "one pixel": ("a.png", file(Image.new("L", (1, 1), 7), "PNG"), Refused("blank", "is 7")),
    "cut JPEG": ("a.jpg", JPEG[:-300], Refused("truncated")),
    "cut PNG": ("a.png", PNG[:-300], Refused("truncated")),
    "PNG cut in its header": ("a.png", PNG[:20], Refused("truncated")),
    "cut GIF": ("a.gif", file(RGB, "GIF")[:-200], Refused("truncated")),
    "cut BMP": ("a.bmp", file(RGB, "BMP")[:-200], Refused("truncated")),
    "cut TIFF": ("a.tif", file(RGB, "TIFF")[:-200], Refused("truncated")),
    "TIFF cut before its directory": (
        "a.tif",
        file(RGB, "TIFF", compression="tiff_lzw")[:400],
        Refused("truncated"),
    ),
    "cut WebP": ("a.webp", file(RGB, "WEBP")[:-60], Refused("truncated")),
    "cut JPEG 2000": ("a.jp2", file(RGB, "JPEG2000")[:-60], Refused("truncated")),
    "cut DICOM": ("a.dcm", dicom(DEEP[..., 0])[:-60], Refused("truncated")),
    "DICOM without pixels": ("a.dcm", dicom(None), Refused("undecodable", "without whole pixels")),
}
