"""What images and captions are compared by: digests, perceptual hashes, thumbnails, words."""

import hashlib
import re
from typing import Any

import numpy as np
from PIL import Image

from ..errors import InputError

THUMBNAIL_SIDE = 48
_GREY_SIDE = 64  # what the hashes and the thumbnail are made from
_WORD = re.compile(r"\w+")

ROW = np.dtype(
    [
        ("split", "u1"),  # its number
        ("width", "u4"),
        ("height", "u4"),
        ("tokens", "u4"),
        ("file", "u8", 2),  # digests of 128 bits: of the source's bytes,
        ("pixels", "u8", 2),  # of the decoded pixels,
        ("caption", "u8", 2),  # of the caption as it is,
        ("words", "u8", 2),  # of its set of words
        ("phash", "u8"),
        ("fine_phash", "u8", 4),
        ("thumbnail", "u1", (THUMBNAIL_SIDE, THUMBNAIL_SIDE)),
    ]
)
"""All that is kept of a pair but its text: 2.5 kB."""


def require_libraries() -> None:
    """Whether the audit's libraries are there.

    Raises:
        InputError: one is not; says how to get it.
    """
    try:
        import datasketch  # noqa: F401
        import imagehash  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"the audit needs {error.name} (pip install ImageHash datasketch)"
        ) from None


def hash_image(image: Image.Image, row: np.ndarray) -> None:
    """Fill in the perceptual hashes (pHash of 64 and 256 bits) and the thumbnail."""
    import imagehash

    size = (_GREY_SIDE, _GREY_SIDE)
    grey = image.convert("L").resize(size, Image.Resampling.LANCZOS, reducing_gap=3)
    row["phash"] = _packed(imagehash.phash(grey, 8))[0]
    row["fine_phash"] = _packed(imagehash.phash(grey, 16))
    row["thumbnail"] = np.asarray(
        grey.resize((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.LANCZOS)
    )


def pixel_digest(image: Image.Image) -> np.ndarray:
    """(2,) uint64 of size and pixels; a grey image equals the same one stored as RGB."""
    if image.mode == "RGB":
        red, green, blue = (band.tobytes() for band in image.split())
        if red == green == blue:
            image = image.getchannel(0)
    return digest(repr((image.mode, image.size)).encode() + image.tobytes())


def word_hashes(caption: str) -> np.ndarray:
    """Distinct words, upper and lower case alike, as sorted hashes: (W,) uint64."""
    words = set(_WORD.findall(caption.casefold()))
    hashes = [hashlib.blake2b(word.encode(), digest_size=8).digest() for word in words]
    return np.unique(np.frombuffer(b"".join(hashes), np.uint64))


def _packed(image_hash: Any) -> np.ndarray:
    """Bits of an ImageHash as uint64."""
    return np.packbits(image_hash.hash.ravel()).view(">u8").astype(np.uint64)


def digest(data: bytes) -> np.ndarray:
    """(2,) uint64: 128 bits of its SHA-256."""
    return np.frombuffer(hashlib.sha256(data).digest()[:16], np.uint64)
