"""Pixels that go into DICOM files, and what should come out."""

import numpy as np

from medclip_oc.imaging.decode import decode
from tests.support.tiny_dataset import picture

GREY = np.asarray(picture(5))  # (40, 48) uint8, 0 to about 240
DEEP = GREY.astype(np.uint16) * 15 + 100  # (40, 48), 12 bits
SIGNED = DEEP.astype(np.int16) - 2000
COLOUR = np.stack([GREY, 255 - GREY, np.roll(GREY, 5)], axis=-1)  # (40, 48, 3)


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(decode(data))


def spread(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Linearly from low..high to 0..255, and no further."""
    return ((values.astype(float) - low) / (high - low) * 255).clip(0, 255).round()


REAL_RANGE = spread(DEEP, DEEP.min(), DEEP.max())
