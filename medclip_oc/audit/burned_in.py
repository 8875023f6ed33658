"""Text that may be burned into a picture: light letters, in a row, near an edge, on darker ground.

A letter is a patch lighter than what is around it, of the size and shape of one; a row has four of
about one height, one beside the other. Seen on real pictures, and what it misses: docs/data.md.
"""

import numpy as np
from PIL import Image
from scipy import ndimage, sparse

_SIDE = 1024  # pixels; larger pictures are looked at with their longer side at that
_AROUND, _LIGHTER, _GROUND = 15, 40, 110  # pixels; grey values, of 255: at least, at most
_ROW, _MOST = 4, 1000  # letters; more patches than that are a texture
_EDGE = 0.2  # of width and height


def count_letters(image: Image.Image) -> int:
    """How many letters stand in rows: 0 where nothing looks like text."""
    grey = image.convert("L")
    grey.thumbnail((_SIDE, _SIDE), Image.Resampling.BOX)
    values = np.asarray(grey, np.float32)  # (H, W)
    around = ndimage.uniform_filter(values, _AROUND)
    patches, _ = ndimage.label(values > around + _LIGHTER, np.ones((3, 3)))
    boxes = [(y.start, y.stop, x.start, x.stop) for y, x in ndimage.find_objects(patches)]
    top, bottom, left, right = np.array(boxes, int).reshape(-1, 4).T
    tall, wide = bottom - top, right - left
    letter = (tall >= 5) & (tall <= max(12, min(values.shape) // 12)) & (wide <= 1.5 * tall)
    letter &= np.bincount(patches.ravel())[1:] > 0.2 * tall * wide
    letter &= around[(top + bottom) // 2, (left + right) // 2] < _GROUND
    height, width = values.shape
    aside = np.min([top / height, 1 - bottom / height, left / width, 1 - right / width], axis=0)
    letter &= aside < _EDGE
    if not _ROW <= letter.sum() <= _MOST:
        return 0
    bottom, left, right, tall = (each[letter] for each in (bottom, left, right, tall))
    taller, lower = np.maximum.outer(tall, tall), np.minimum.outer(tall, tall)
    gap, step = left - right[:, None], abs(np.subtract.outer(bottom, bottom))
    beside = (gap >= -1) & (gap <= lower + 1) & (taller <= 1.6 * lower) & (step <= taller / 4 + 1)
    _, rows = sparse.csgraph.connected_components(sparse.csr_array(beside), directed=False)
    lengths = np.bincount(rows)
    return int(lengths[lengths >= _ROW].sum())
