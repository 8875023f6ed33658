"""Looking at every pair of a source once, and keeping what it is compared by: some 3 kB each.

Pairs are read and decoded in worker processes.
"""

import hashlib
import re
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from ..errors import BadImage
from ..imaging.decode import decode, is_dicom, open_image
from ..imaging.encode import refuse_blank
from ..imaging.metadata import strip
from ..packing.sources import Pair, Reject, Source
from ..runtime.extras import needed
from ..runtime.progress import Progress
from ..runtime.workers import ordered_map
from .burned_in import count_letters

THUMBNAIL_SIDE = 48
_GREY_SIDE = 64  # what the hashes and the thumbnail are made from
_WORD = re.compile(r"\w+")
_COLUMNS = ["split", "id", "key", "caption", "tokens", "words", "cuis", "names", "group"]
_COLUMNS += ["width", "height", "format", "mode", "file", "pixels", "phash", "thumbnail"]
_COLUMNS += ["metadata", "letters", "tagged"]


def scan(
    source: Source, max_pixels: int, count_tokens: Callable[[str], int], workers: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Look at every pair, in order. Returns a row of _COLUMNS for each of the N usable pairs, as
    `inspect` gives them, with `tokens`; and `split` and `reason` of the other ones. InputError: a
    library is not installed.
    """
    needed("datasketch", "audit")
    needed("imagehash", "audit")
    look = partial(inspect, max_pixels=max_pixels)
    usable, others = list[dict[str, Any]](), list[tuple[str, str]]()
    with Progress(sum(map(source.count, source.splits)), "images", "audit") as progress:
        for split in source.splits:
            for seen in ordered_map(look, source.records(split), workers):
                if isinstance(seen, Reject):
                    others += [(split, seen.reason)] * seen.rows
                    progress.update(seen.rows)
                else:
                    usable.append(seen | {"tokens": count_tokens(seen["caption"])})
                    progress.update(seen["rows"])
    columns = ["split", "reason"]
    return pd.DataFrame(usable, columns=_COLUMNS), pd.DataFrame(others, columns=columns)


def inspect(pair: Pair | Reject, *, max_pixels: int) -> dict[str, Any] | Reject:
    """Read and decode one pair, and hash what is compared later. What packing would refuse, is."""
    if isinstance(pair, Reject):
        return pair
    try:
        data = pair.image.read()
        with warnings.catch_warnings(action="ignore"):  # about odd metadata; nobody would see them
            image = decode(data, max_pixels=max_pixels)
            refuse_blank(image)
            header = image if is_dicom(data) else open_image(data, max_pixels)
    except BadImage as error:
        return pair.reject(error.reason, error.detail)
    except OSError as error:
        return pair.reject("image unreadable", str(error.strerror))
    phash, thumbnail = hash_image(image)
    article = (pair.facts.get("license") or {}).get("PMCID")  # as ROCOv2 has it
    return {
        "split": pair.split,
        "id": pair.id,
        "key": pair.key,
        "rows": pair.rows,  # that were read, for the bar
        "caption": pair.caption,
        "words": word_hashes(pair.caption),
        "cuis": pair.facts.get("concepts"),  # None: not known, as of the next two
        "names": pair.facts.get("concept_names"),
        "group": pair.facts.get("group") or pair.facts.get("study") or article or None,
        "width": image.width,
        "height": image.height,
        "format": header.format or "DICOM",
        "mode": header.mode,  # of the file
        "file": hashlib.sha256(data).digest(),
        "pixels": hash_pixels(image),
        "phash": phash,
        "thumbnail": thumbnail,
        "metadata": sorted(strip(data)[1]),
        "letters": count_letters(image),
        "tagged": image.info.get("burned_in", False),  # DICOM says that there are some
    }


def hash_image(image: Image.Image) -> tuple[np.ndarray, np.ndarray]:
    """PHash of 64 bits and then of 256 bits, (5,) uint64; and the grey thumbnail, uint8."""
    import imagehash

    size = (_GREY_SIDE, _GREY_SIDE)
    grey = image.convert("L").resize(size, Image.Resampling.LANCZOS, reducing_gap=3)
    bits = np.concatenate([imagehash.phash(grey, side).hash.ravel() for side in (8, 16)])
    small = grey.resize((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.LANCZOS)
    return np.packbits(bits).view(np.uint64), np.asarray(small)


def hash_pixels(image: Image.Image) -> bytes:
    """Of size and pixels; a grey image equals the same one stored as RGB."""
    if image.mode == "RGB":
        red, green, blue = (band.tobytes() for band in image.split())
        if red == green == blue:
            image = image.getchannel(0)
    return hashlib.sha256(repr((image.mode, image.size)).encode() + image.tobytes()).digest()


def word_hashes(caption: str) -> np.ndarray:
    """Distinct words, upper and lower case alike, as sorted hashes: (W,) uint64."""
    words = set(_WORD.findall(caption.casefold()))
    hashes = [hashlib.blake2b(word.encode(), digest_size=8).digest() for word in words]
    return np.unique(np.frombuffer(b"".join(hashes), np.uint64))
