"""What pictures and captions are compared by: digests, perceptual hashes, thumbnails, words."""

import hashlib
import re
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image

from ..errors import InputError

THUMBNAIL_SIDE = 48
PERMUTATIONS = 64
"""Values in a MinHash signature."""
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
        ("signature", "u4", PERMUTATIONS),
        ("thumbnail", "u1", (THUMBNAIL_SIDE, THUMBNAIL_SIDE)),
    ]
)
"""All that is kept of a pair but its text: 2.7 kB."""


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


def hash_picture(picture: Image.Image, row: np.ndarray) -> None:
    """Fill in the perceptual hashes (pHash of 64 and 256 bits) and the thumbnail."""
    import imagehash

    size = (_GREY_SIDE, _GREY_SIDE)
    grey = picture.convert("L").resize(size, Image.Resampling.LANCZOS, reducing_gap=3)
    row["phash"] = _packed(imagehash.phash(grey, 8))[0]
    row["fine_phash"] = _packed(imagehash.phash(grey, 16))
    row["thumbnail"] = np.asarray(
        grey.resize((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.LANCZOS)
    )


def pixel_digest(picture: Image.Image) -> np.ndarray:
    """(2,) uint64 of size and pixels; a grey picture equals the same one stored as RGB."""
    if picture.mode == "RGB":
        red, green, blue = (band.tobytes() for band in picture.split())
        if red == green == blue:
            picture = picture.getchannel(0)
    return digest(repr((picture.mode, picture.size)).encode() + picture.tobytes())


def word_hashes(caption: str) -> np.ndarray:
    """Distinct words, upper and lower case alike, as sorted hashes: (W,) uint64."""
    words = set(_WORD.findall(caption.casefold()))
    hashes = [hashlib.blake2b(word.encode(), digest_size=8).digest() for word in words]
    return np.unique(np.frombuffer(b"".join(hashes), np.uint64))


def word_signature(words: np.ndarray) -> np.ndarray:
    """MinHash (Broder 1997) of hashed words: (W,) uint64 -> (PERMUTATIONS,) uint32."""
    signature = _empty_signature().copy()
    signature.update_batch([word.tobytes() for word in words])
    return signature.hashvalues.astype(np.uint32)


@lru_cache
def _empty_signature() -> Any:
    from datasketch import MinHash

    return MinHash(PERMUTATIONS, seed=1)


def _packed(found: Any) -> np.ndarray:
    """Bits of an ImageHash as uint64."""
    return np.packbits(found.hash.ravel()).view(">u8").astype(np.uint64)


def digest(data: bytes) -> np.ndarray:
    """(2,) uint64: 128 bits of its SHA-256."""
    return np.frombuffer(hashlib.sha256(data).digest()[:16], np.uint64)
