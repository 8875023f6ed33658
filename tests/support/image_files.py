"""Image files of every kind that the decoders tell apart."""

import io

import numpy as np
from PIL import Image

from tests.support.tiny_dataset import picture


def saved(image: Image.Image, kind: str = "JPEG", **how: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **how)
    return buffer.getvalue()


def colour(size: tuple[int, int]) -> Image.Image:
    return Image.merge("RGB", [picture(n, size) for n in range(3)])


def oriented(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return saved(colour((60, 40)), exif=exif)


FILES = {
    "grey": saved(picture(1, (300, 200))),
    "colour": saved(colour((300, 200)), quality=95),
    "chroma halved": saved(colour((301, 199)), subsampling=2),
    "progressive": saved(colour((300, 200)), progressive=True),
    "with EXIF": oriented(1),
    "turned": oriented(6),
    "CMYK": saved(colour((60, 40)).convert("CMYK")),
    "PNG": saved(colour((60, 40)), "PNG"),
    "16 bits": saved(Image.fromarray(np.arange(2400, dtype=np.uint16).reshape(40, 60)), "PNG"),
    "palette": saved(colour((60, 40)).convert("P"), "PNG"),
    "junk as EXIF": saved(colour((60, 40)), exif=b"Exif\0\0junk"),
}
