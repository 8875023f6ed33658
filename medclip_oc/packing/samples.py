"""One pair as it lies in a shard: its image checked, its facts gathered, its members laid out."""

import hashlib
import json
import warnings
from dataclasses import replace
from typing import NamedTuple

from ..errors import BadImage
from ..imaging import encode
from .image_store import CellImage
from .sources import Pair, Reject
from .tar_writer import Stretch, stretch


class Packed(NamedTuple):
    """A pair, ready to be written."""

    stretch: Stretch
    reencoded: str | None
    """Why the image is a new file; None: it is the source's."""


def fetch(pair: Pair | Reject) -> Pair | Reject:
    """The pair with the bytes of its image; as it was if they can't be read: `prepare` says why."""
    if isinstance(pair, Reject):
        return pair
    try:
        return replace(pair, image=CellImage(pair.image.name, pair.image.read()))
    except OSError:
        return pair


def prepare(
    pair: Pair | Reject, *, max_pixels: int, check: bool, resize: int | None
) -> Packed | Reject:
    """A worker's part of packing: read and check one pair (see `images.prepare`).

    Returns:
        The pair, or why it can't be packed. A `Reject` passes through.
    """
    if isinstance(pair, Reject):
        return pair
    try:
        data = pair.image.read()
        stored = encode.prepare(data, max_pixels=max_pixels, check=check, resize=resize)
    except BadImage as error:
        return Reject(pair.id, pair.split, error.reason, f"{pair.image.name}: {error.detail}")
    except OSError as error:
        detail = f"{pair.image.name}: {error.strerror}"
        return Reject(pair.id, pair.split, "image unreadable", detail)
    facts = {
        "id": pair.id,
        "split": pair.split,
        "width": stored.width,
        "height": stored.height,
        "mode": stored.mode,
        "sha256": hashlib.sha256(data).hexdigest(),
        **pair.facts,
    }
    if stored.reencoded:
        facts["reencoded"] = stored.reencoded
    if stored.resized_from:
        facts["resized_from"] = stored.resized_from
    contents = {
        stored.extension: stored.data,
        "txt": pair.caption.encode(),
        # half a surrogate pair in a fact stays what it was: an escape of JSON
        "json": json.dumps(facts, ensure_ascii=False).encode(errors="backslashreplace"),
    }
    return Packed(stretch(pair.key, contents), stored.reencoded)


def ignore_warnings() -> None:
    """Large images: ours is --max-pixels. Odd metadata: a worker's warning reaches nobody."""
    warnings.simplefilter("ignore")
