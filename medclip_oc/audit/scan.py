"""Looking at every pair of a source once, and keeping little of each.

Pairs are read and decoded in worker processes. What is kept is a row of 2.7 kB (fingerprints.py)
and the caption, in temporary files (TMPDIR): memory hardly grows with the data.
"""

import io
import json
import warnings
from array import array
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any, NamedTuple

import numpy as np
from PIL import Image

from ..config.vocabulary import MODALITIES
from ..errors import BadImage, WorkError
from ..imaging import decode, dicom
from ..packing.sources import Pair, Reject, Source
from ..runtime.progress import Progress
from ..runtime.workers import ordered_map
from .hashing import ROW, digest, hash_picture, pixel_digest, word_hashes, word_signature


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


def inspect(pair: Pair | Reject, *, max_pixels: int = decode.MAX_PIXELS) -> Inspected | Reject:
    """Read and decode one pair, and hash what is compared later. What packing would refuse, is."""
    if isinstance(pair, Reject):
        return pair
    try:
        data = pair.image.read()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about odd metadata; nobody would see them
            picture = decode.decode(data, max_pixels=max_pixels)
            kind, mode = _kind(data, picture)
    except BadImage as error:
        return Reject(pair.id, pair.split, error.reason, f"{pair.image.name}: {error.detail}")
    except OSError as error:
        detail = f"{pair.image.name}: {error.strerror}"
        return Reject(pair.id, pair.split, "image unreadable", detail)
    if len(set(_extremes(picture))) == 1:
        detail = f"{pair.image.name}: every pixel is {picture.getpixel((0, 0))}"
        return Reject(pair.id, pair.split, "blank", detail)

    row = np.zeros((), ROW)
    row["width"], row["height"] = picture.size
    row["file"], row["pixels"] = digest(data), pixel_digest(picture)
    hash_picture(picture, row)
    words = word_hashes(pair.caption)
    row["caption"] = row["words"] = digest(pair.caption.encode())
    if len(words):  # "?" and "!" have no words, and nothing in common
        row["words"] = digest(words.tobytes())
    row["signature"] = word_signature(words)
    return Inspected(pair.id, pair.key, pair.caption, pair.facts, row, words, kind, mode)


def _extremes(picture: Image.Image) -> list[Any]:
    """Darkest and brightest value; of colours the darkest and brightest corner."""
    extremes = picture.getextrema()
    return list(zip(*extremes, strict=True)) if isinstance(extremes[0], tuple) else list(extremes)


def _kind(data: bytes, picture: Image.Image) -> tuple[str, str]:
    """Format and mode of a file that could be decoded."""
    if dicom.is_dicom(data):
        return "DICOM", picture.mode
    try:
        with Image.open(io.BytesIO(data)) as header:
            return header.format or "other", header.mode
    except Exception:  # past Pillow's limits, but not past ours
        return "other", picture.mode


class Notes:
    """What is known of each pair.

    Args:
        splits: their names.
        rows: an empty binary file, for the rows.
        words: another one, for the captions' word hashes.
    """

    def __init__(self, splits: Sequence[str], rows: IO[bytes], words: IO[bytes]) -> None:
        self._splits, self._rows, self._words = splits, rows, words
        self._starts = array("q", [0])
        self._texts = dict[int, str]()
        self._unusable = {split: Counter[str]() for split in splits}
        self._concepts = {split: Counter[str]() for split in splits}
        self._read, self._usable = Counter[str](), Counter[str]()
        self._names = {cui: name for name, cui in MODALITIES.items()}
        self._formats, self._modes = Counter[str](), Counter[str]()

    def take(
        self,
        source: Source,
        look: Callable[[Pair | Reject], Inspected | Reject],
        count_tokens: Callable[[str], int],
        workers: int,
    ) -> None:
        """Look at every pair, in order."""
        total = {split: source.count(split) for split in source.splits}
        with Progress(sum(total.values()), "images", "audit") as progress:
            for number, split in enumerate(source.splits):
                for found in ordered_map(look, source.records(split), workers):
                    if isinstance(found, Reject):
                        self._unusable[split][found.reason] += 1
                    else:
                        self._add(found, split, number, count_tokens(found.caption))
                    self._read[split] += 1
                    progress.update()
                if self._read[split] != total[split]:
                    raise WorkError(
                        f"{split}: {total[split]} rows counted, {self._read[split]} read; did the "
                        "source change meanwhile?"
                    )

    def _add(self, found: Inspected, split: str, number: int, tokens: int) -> None:
        found.row["split"], found.row["tokens"] = number, tokens
        self._rows.write(found.row.tobytes())
        self._words.write(found.words.tobytes())
        self._starts.append(self._starts[-1] + len(found.words))
        place = len(self._starts) - 2
        self._texts[place] = json.dumps([split, found.id, found.key, found.caption])
        self._usable[split] += 1
        self._formats[found.format] += 1
        self._modes[found.mode] += 1
        cuis = found.facts.get("concepts")
        named = zip(cuis or [], found.facts.get("concept_names") or [], strict=False)
        self._names |= {cui: name for cui, name in named if cui in self._names and name}
        modalities = set(cuis or []) & self._names.keys()
        counts = self._concepts[split]
        counts.update(modalities)
        counts["unknown"] += cuis is None
        counts["none"] += cuis == []
        counts["several modalities"] += len(modalities) > 1
        counts["no modality"] += bool(cuis) and not modalities

    def rows(self) -> np.ndarray:
        """(N,) of ROW, on disk."""
        return _mapped(self._rows, ROW)

    def words(self) -> tuple[np.ndarray, np.ndarray]:
        """All captions' word hashes, one after the other, and where each begins: (N + 1,)."""
        return _mapped(self._words, np.dtype(np.uint64)), np.array(self._starts, np.int64)

    def pairs(self) -> dict[str, Any]:
        """Split -> pairs read, usable, and unusable by reason."""
        return {
            split: {
                "read": self._read[split],
                "usable": self._usable[split],
                "unusable": dict(sorted(self._unusable[split].items())),
            }
            for split in self._splits
        }

    def concepts(self) -> dict[str, Any]:
        """Names of the modalities, and usable pairs by split and modality."""
        extra = ("unknown", "none", "no modality", "several modalities")
        counts = {
            split: {
                "modalities": {cui: counts[cui] for cui in MODALITIES.values()},
                **{name.replace(" ", "_"): counts[name] for name in extra},
            }
            for split, counts in self._concepts.items()
        }
        return {"names": self._names, "splits": counts}

    def kinds(self) -> dict[str, dict[str, int]]:
        """Formats and modes of the files."""
        return {
            "formats": dict(sorted(self._formats.items())),
            "modes": dict(sorted(self._modes.items())),
        }

    def text(self, row: int) -> tuple[str, str, str, str]:
        """Split, id, key and caption of a row."""
        split, name, key, caption = json.loads(self._texts[int(row)])
        return split, name, key, caption


def _mapped(file: IO[bytes], dtype: np.dtype) -> np.ndarray:
    """All that was written to a file, as an array that stays on disk."""
    file.flush()
    size = file.tell() // dtype.itemsize
    if not size:  # an empty file can't be mapped
        return np.empty(0, dtype)
    return np.memmap(file, dtype, "r", shape=(size,))
