"""Picture files of every kind, made small: also those that Pillow and pydicom don't write.

And drawn pictures that look like films and slices, with the ways in which copies of them differ.
"""

import base64
import io
import struct
import warnings
import zlib
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
from phantom_pictures import LESIONS, LOBES, draw
from PIL import Image, ImageDraw, ImageEnhance, ImageFont
from PIL.ExifTags import Base

from tests.support.tiny_dataset import picture

# 16 x 8 pixels, coded arithmetically (by libjpeg-turbo's cjpeg): a ramp, down 20 and right 6 a step
ARITHMETIC_JPEG = base64.b64decode(
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAgGBgcGBQgHBwcJCQgKDBQNDAsLDBkSEw8UHRofHh0aHBwgJC4nICIsIxwcKD"
    "cpLDAxNDQ0Hyc5PTgyPC4zNDL/yQALCAAIABABAREA/8wABgAQEAX/2gAIAQEAAD8A/wBqhp8TC2+sH7NjkC8MM4D/2Q=="
)
ARITHMETIC_PIXELS = np.add.outer(np.arange(8) * 20, np.arange(16) * 6)


def file(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.copy().save(buffer, kind, **options)  # saving leaves traces in an image
    return buffer.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


def png(width: int, height: int, bits: int, kind: int, rows: bytes) -> bytes:
    """A PNG of any header."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0))
    end = chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + end


def png_16(values: np.ndarray) -> bytes:
    """A PNG of 16 bits per channel: (H, W, 1 to 4) uint16."""
    height, width, channels = values.shape
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return png(width, height, 16, kind, rows)


def turned(kind: str, orientation: int, image: Image.Image) -> bytes:
    """A file whose EXIF block says which way is up."""
    exif = Image.Exif()
    exif[Base.Orientation] = orientation
    return file(image, kind, exif=exif)


def segment(marker: int, content: bytes) -> bytes:
    return bytes((0xFF, marker)) + (len(content) + 2).to_bytes(2) + content


def carried(data: bytes, name: bytes) -> dict[str, bytes]:
    """By kind, what else a JPEG or a PNG may carry, with a name in it."""
    if data[:2] != b"\xff\xd8":
        kinds = {"EXIF": b"eXIf", "ICC profile": b"iCCP", "text": b"iTXt", "other": b"prVt"}
        return {kind: chunk(word, b"x\0\0\0\0" + name) for kind, word in kinds.items()}
    starts = {"EXIF": (0xE1, b"Exif\0\0MM"), "XMP": (0xE1, b"http://ns.adobe.com/xap/1.0/\0")}
    starts |= {"IPTC": (0xED, b"Photoshop 3.0\0"), "comment": (0xFE, b""), "other": (0xE5, b"x")}
    starts["ICC profile"] = 0xE2, b"ICC_PROFILE\0\1\1"
    return {kind: segment(marker, start + name) for kind, (marker, start) in starts.items()}


def planted(data: bytes, *parts: bytes) -> bytes:
    begin = 2 if data[:2] == b"\xff\xd8" else 33  # behind the start, or a PNG's header
    return b"".join((data[:begin], *parts, data[begin:]))


def written(image: Image.Image, place: tuple[int, int]) -> Image.Image:
    """A copy of a grey image with a name and a date from a place on."""
    image, font = image.copy(), ImageFont.load_default(16)
    ImageDraw.Draw(image).text(place, "DOE, JANE 1961-06-01", fill=220, font=font)
    return image


def dicom(pixels: np.ndarray | None, *, syntax: str | None = None, **tags: Any) -> bytes:
    """A DICOM file.

    Args:
        pixels: (H, W) or (H, W, 3), integers; None: no pixels at all.
        syntax: transfer syntax; PixelData, among the tags, must then be compressed. None: plain.
        tags: keywords and values, which go before what follows from the pixels. None: left out.
    """
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage

    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax or ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    dataset.SOPClassUID, dataset.SOPInstanceUID = SecondaryCaptureImageStorage, "1.2.3"
    dataset.PatientName, dataset.PatientID = "Doe^Jane", "HOSPITAL-4711"
    given = _image_tags(pixels) | tags if pixels is not None else tags
    for keyword, value in given.items():
        if value is not None:
            setattr(dataset, keyword, value)
    if syntax and "PixelData" in dataset:
        dataset["PixelData"].is_undefined_length = True
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some tests want what pydicom warns of
        dataset.save_as(buffer, implicit_vr=False, little_endian=True, enforce_file_format=True)
    return buffer.getvalue()


def _image_tags(pixels: np.ndarray) -> dict[str, Any]:
    bits = 8 * pixels.dtype.itemsize
    tags = {
        "Rows": pixels.shape[0],
        "Columns": pixels.shape[1],
        "SamplesPerPixel": 3 if pixels.ndim == 3 else 1,
        "PhotometricInterpretation": "RGB" if pixels.ndim == 3 else "MONOCHROME2",
        "BitsAllocated": bits,
        "BitsStored": bits,
        "HighBit": bits - 1,
        "PixelRepresentation": int(pixels.dtype.kind == "i"),
        "PixelData": pixels.tobytes() + bytes(pixels.nbytes % 2),
    }
    return tags | ({"PlanarConfiguration": 0} if pixels.ndim == 3 else {})


def colour(size: tuple[int, int]) -> Image.Image:
    return Image.merge("RGB", [picture(n, size) for n in range(3)])


SMALL = colour((60, 40))
FILES = {
    "grey": file(picture(1, (300, 200)), "JPEG"),
    "colour": file(colour((300, 200)), "JPEG", quality=95),
    "chroma halved": file(colour((301, 199)), "JPEG", subsampling=2),
    "progressive": file(colour((300, 200)), "JPEG", progressive=True),
    "with EXIF": turned("JPEG", 1, SMALL),
    "turned": turned("JPEG", 6, SMALL),
    "CMYK": file(SMALL.convert("CMYK"), "JPEG"),
    "PNG": file(SMALL, "PNG"),
    "16 bits": file(Image.fromarray(np.arange(2400, dtype=np.uint16).reshape(40, 60)), "PNG"),
    "palette": file(SMALL.convert("P"), "PNG"),
    "junk as EXIF": file(SMALL, "JPEG", exif=b"Exif\0\0junk"),
}


KINDS = tuple(product(("ct", "mr", "us", "xray"), LOBES))
"""One phantom of each shares no more than an outline with the others."""


def phantom(number: int) -> Image.Image:
    """One of len(KINDS) pictures, grey, the shorter side of 160 pixels."""
    modality, organ = KINDS[number]
    rng = np.random.default_rng(number)
    lesion = LESIONS[number % len(LESIONS)]
    drawn = draw(modality, organ, lesion, "large", "left", rng=rng, pixels=160)
    return Image.fromarray(drawn.pixels)


def cropped(image: Image.Image, *edges: float) -> Image.Image:
    """From left, top to right, bottom: 0 to 1."""
    box = np.multiply(edges, image.size * 2).round().astype(int).tolist()
    return image.crop(box)


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "re-encoded": lambda image: Image.open(io.BytesIO(file(image, "JPEG", quality=40))),
    "as colour": lambda image: image.convert("RGB"),
    "half the size": lambda image: image.resize((image.width // 2, image.height // 2)),
    "stretched": lambda image: image.resize((256, 256)),
    "darker": lambda image: ImageEnhance.Brightness(image).enhance(0.8),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.2),
    "less contrast": lambda image: ImageEnhance.Contrast(image).enhance(0.7),
    "cropped": lambda image: cropped(image, 0.02, 0.02, 0.98, 0.98),
    "cropped at a corner": lambda image: cropped(image, 0.03, 0, 1, 0.98),
}
