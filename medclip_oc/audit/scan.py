"""Looking at every pair of a source once, and keeping little of each.

Pairs are read and decoded in worker processes. What they are compared by, a row of 2.5 kB, waits
in a temporary file (TMPDIR); captions are kept as hashes of their words.
"""

import io
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from typing import IO, Any, NamedTuple

import numpy as np
import pandas as pd
from PIL import Image

from ..config.vocabulary import MODALITIES
from ..errors import BadImage, WorkError
from ..imaging.decode import MAX_PIXELS, decode, is_dicom
from ..imaging.encode import refuse_blank
from ..packing.samples import unusable
from ..packing.sources import Pair, Reject, Source
from ..runtime.progress import Progress
from ..runtime.workers import ordered_map
from .hashing import ROW, digest, hash_image, pixel_digest, word_hashes


class Inspected(NamedTuple):
    """A usable pair without its image."""

    id: str
    key: str
    caption: str
    facts: Mapping[str, Any]
    row: np.ndarray
    """() of ROW; split and tokens are left to the caller."""
    words: np.ndarray
    """(W,) uint64, sorted: hashes of the caption's distinct words."""
    format: str
    """Of the file: JPEG, PNG ..."""
    mode: str
    """Of the file: L, RGB, CMYK, I;16 ..."""


def inspect(pair: Pair | Reject, *, max_pixels: int = MAX_PIXELS) -> Inspected | Reject:
    """Read and decode one pair, and hash what is compared later. What packing would refuse, is."""
    if isinstance(pair, Reject):
        return pair
    try:
        data = pair.image.read()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about odd metadata; nobody would see them
            image = decode(data, max_pixels=max_pixels)
            refuse_blank(image)
            kind, mode = _kind(data, image)
    except BadImage as error:
        return unusable(pair, error.reason, error.detail)
    except OSError as error:
        return unusable(pair, "image unreadable", str(error.strerror))
    row = np.zeros((), ROW)
    row["width"], row["height"] = image.size
    row["file"], row["pixels"] = digest(data), pixel_digest(image)
    hash_image(image, row)
    words = word_hashes(pair.caption)
    row["caption"] = row["words"] = digest(pair.caption.encode())
    if len(words):  # "?" and "!" have no words, and nothing in common
        row["words"] = digest(words.tobytes())
    return Inspected(pair.id, pair.key, pair.caption, pair.facts, row, words, kind, mode)


def _kind(data: bytes, image: Image.Image) -> tuple[str, str]:
    """Format and mode of a file that could be decoded."""
    if is_dicom(data):
        return "DICOM", image.mode
    try:
        with Image.open(io.BytesIO(data)) as header:
            return header.format or "other", header.mode
    except Exception:  # past Pillow's limits, but not past ours
        return "other", image.mode


class Scan(NamedTuple):
    """What is known of a source. N usable pairs."""

    rows: np.ndarray
    """(N,) of ROW, on disk."""
    words: list[np.ndarray]
    """N times (W,) uint64, sorted: hashes of a caption's distinct words."""
    pairs: pd.DataFrame
    """N rows: `split`, `id`, `key`, `format`, `mode`, `cuis` (a list, or None: not known)."""
    unusable: pd.DataFrame
    """The other pairs: `split`, `reason`."""
    names: dict[str, str]
    """Of the modalities: CUI -> name, as the source has it."""


def scan(
    source: Source,
    look: Callable[[Pair | Reject], Inspected | Reject],
    count_tokens: Callable[[str], int],
    workers: int,
    file: IO[bytes],
) -> Scan:
    """Look at every pair, in order. The rows go to `file`, which is empty.

    Raises:
        WorkError: the source has other rows than it counted.
    """
    total = {split: source.count(split) for split in source.splits}
    names = {cui: name for name, cui in MODALITIES.items()}
    words, pairs, rejected = list[np.ndarray](), list[tuple[Any, ...]](), list[tuple[str, str]]()
    with Progress(sum(total.values()), "images", "audit") as progress:
        for number, split in enumerate(source.splits):
            before = len(pairs) + len(rejected)
            for seen in ordered_map(look, source.records(split), workers):
                progress.update()
                if isinstance(seen, Reject):
                    rejected.append((split, seen.reason))
                    continue
                seen.row["split"], seen.row["tokens"] = number, count_tokens(seen.caption)
                file.write(seen.row.tobytes())
                words.append(seen.words)
                cuis = seen.facts.get("concepts")
                pairs.append((split, seen.id, seen.key, seen.format, seen.mode, cuis))
                named = zip(cuis or [], seen.facts.get("concept_names") or [], strict=False)
                names |= {cui: name for cui, name in named if cui in names and name}
            if (read := len(pairs) + len(rejected) - before) != total[split]:
                raise WorkError(
                    f"{split}: {total[split]} rows counted, {read} read; did the source change "
                    "meanwhile?"
                )
    file.flush()
    rows = np.memmap(file, ROW, "r", shape=(len(pairs),)) if pairs else np.empty(0, ROW)
    columns = ["split", "id", "key", "format", "mode", "cuis"]
    table = pd.DataFrame(pairs, columns=columns, dtype=object)
    return Scan(rows, words, table, pd.DataFrame(rejected, columns=["split", "reason"]), names)


def modalities(scanned: Scan, split: str) -> dict[str, Any]:
    """Usable pairs of a split by modality, and of none, of several, of unknown ones."""
    counts = Counter[str]()
    for cuis in scanned.pairs.cuis[scanned.pairs.split == split]:
        own = scanned.names.keys() & set(cuis or [])
        counts.update(own)
        counts["unknown"] += cuis is None
        counts["none"] += cuis == []
        counts["no_modality"] += bool(cuis) and not own
        counts["several_modalities"] += len(own) > 1
    others = ("unknown", "none", "no_modality", "several_modalities")
    by_cui = {cui: counts[cui] for cui in MODALITIES.values()}
    return {"modalities": by_cui, **{name: counts[name] for name in others}}
