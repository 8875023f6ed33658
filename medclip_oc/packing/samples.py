"""One pair as a shard holds it: its image checked, its facts gathered, its members encoded."""

import hashlib
import json
import warnings
from collections.abc import Callable
from typing import NamedTuple

from ..errors import BadImage
from ..imaging import encode
from .sources import Pair, Reject


class Fetched(NamedTuple):
    """A pair whose image was read."""

    pair: Pair
    image: bytes
    sha256: str


class Packed(NamedTuple):
    """A pair, ready to be written."""

    key: str
    extension: str
    """Of the image."""
    members: tuple[bytes, bytes, bytes]
    """Image, caption, facts."""
    reencoded: str | None
    """Why the image is a new file; None: it is the source's."""


def fetch(pair: Pair | Reject) -> Fetched | Reject:
    """Read a pair's image, or say why it can't be read. A `Reject` passes through."""
    if isinstance(pair, Reject):
        return pair
    try:
        image = pair.image.read()
    except OSError as error:
        return unusable(pair, "image unreadable", str(error.strerror))
    return Fetched(pair, image, hashlib.sha256(image).hexdigest())


def lay_out(
    fetched: Fetched | Reject, *, max_pixels: int, decode: bool, resize: int | None
) -> Packed | Reject:
    """Check an image (see `encode.prepare`) and lay out its pair. A `Reject` passes through."""
    if isinstance(fetched, Reject):
        return fetched
    pair, image, sha256 = fetched
    try:
        stored = encode.prepare(image, max_pixels=max_pixels, check=decode, resize=resize)
    except BadImage as error:
        return unusable(pair, error.reason, error.detail)
    facts = {"id": pair.id, "split": pair.split, "width": stored.width, "height": stored.height}
    facts |= {"mode": stored.mode, "sha256": sha256, **pair.facts}
    if stored.reencoded:
        facts["reencoded"] = stored.reencoded
    if stored.resized_from:
        facts["resized_from"] = stored.resized_from
    # half a surrogate pair in a fact stays what it was: an escape of JSON
    about = json.dumps(facts, ensure_ascii=False).encode(errors="backslashreplace")
    members = stored.data, pair.caption.encode(), about
    return Packed(pair.key, stored.extension, members, stored.reencoded)


def prepare(
    layout: Callable[[Fetched | Reject], Packed | Reject], pair: Pair | Reject
) -> Packed | Reject:
    """A worker's part of packing: `fetch`, and `lay_out` with its settings given."""
    return layout(fetch(pair))


def unusable(pair: Pair, reason: str, detail: str) -> Reject:
    """The record of a pair whose image can't be read or used."""
    return Reject(pair.id, pair.split, reason, f"{pair.image.name}: {detail}")


def ignore_warnings() -> None:
    """Large images: ours is --max-pixels. Odd metadata: a worker's warning reaches nobody."""
    warnings.simplefilter("ignore")
