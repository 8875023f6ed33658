"""Image files of every kind that the decoders tell apart."""

import numpy as np
from PIL import Image

from tests.support.odd_files import file, turned
from tests.support.tiny_dataset import picture


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
