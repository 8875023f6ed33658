"""Pixels of a picture file, no finer than they are needed.

Decoding dominates loading. A JPEG can be decoded at 1 to 4 eighths of its size for less, straight
from its DCT coefficients, and a grey one stays grey. Whatever is not a plain JPEG, or is damaged,
goes through `decode.decode`, whose rules hold either way.

Measured over 280 ROCOv2 files, 224 px needed: simplejpeg 1.2 ms, Pillow with `draft` 1.5 ms; over
the same files at 256 px: 0.43 and 0.66 ms. Both use libjpeg-turbo; Pillow converts and copies more.
5 to 7 eighths cost more than the whole, whose transform has vector code.
"""

import numpy as np
import simplejpeg
from PIL import Image

from . import decode

_SPACES = {"Gray": "GRAY", "YCbCr": "RGB", "RGB": "RGB"}


class Picture:
    """An encoded picture: at once its `size`, (width, height) in pixels in full and upright; its
    pixels when they are asked for, if `exact` by `decode.decode` alone. BadImage: as there.
    """

    def __init__(self, data: bytes, *, exact: bool = False) -> None:
        self._data = data
        self._image: Image.Image | None = None
        if header := None if exact else plain_jpeg(data):
            self._space, self.size = header
        else:
            self._image = decode.decode(data)
            self.size = self._image.size

    def pixels(self, reduction: float = 1.0) -> tuple[np.ndarray, float]:
        """Decode at the smallest size that is at least the full one divided by `reduction`:
        (H, W, C) uint8, C = 1 for a grey picture, else 3; and the scale s of that: a point (x, y)
        of the full picture lies at (x s, y s). H is the full height times s, rounded up: the last
        row and column may be cut.
        """
        if self._image is None:
            eighths = next((n for n in (1, 2, 3, 4) if n * reduction >= 8), 8)
            least = dict[str, int]()
            if eighths < 8:
                width, height = (-(-side * eighths // 8) for side in self.size)
                least = {"min_width": width, "min_height": height, "min_factor": 2}
            try:
                return simplejpeg.decode_jpeg(self._data, self._space, **least), eighths / 8
            except ValueError:  # it is stricter than Pillow: what counts as damage, Pillow says
                self._image = decode.decode(self._data)
        array = np.array(self._image)
        return array[..., None] if array.ndim == 2 else array, 1.0

    def image(self, reduction: float = 1.0) -> tuple[Image.Image, float]:
        """As `pixels`, as an image of mode "L" or "RGB"."""
        pixels, scale = self.pixels(reduction)
        return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels), scale


def plain_jpeg(
    data: bytes, max_pixels: int = decode.MAX_PIXELS
) -> tuple[str, tuple[int, int]] | None:
    """What a JPEG that any decoder gets right decodes to, by its header: "GRAY" or "RGB", and size.

    None for anything else, and for a JPEG that is not upright.
    """
    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(data)
        if b"Exif\0\0" in data or b"tiff:Orientation" in data:
            image = decode.open_image(data, max_pixels)
            space = space if decode.read_orientation(image) == 1 else "turned"
    except ValueError:  # no JPEG, or a damaged one: decode.decode says which
        return None
    is_plain = space in _SPACES and width * height <= max_pixels
    return (_SPACES[space], (width, height)) if is_plain else None
