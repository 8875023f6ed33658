"""What is in a source of pairs, before anything is packed or trained: copies, leaks, captions.

Two images are copies in one of three ways: the same file, the same pixels (another file of them),
or near. Near are those whose pHash differs in at most HASH_RADIUS of 64 bits and in at most
FINE_RADIUS of 256 bits, and whose thumbnails, once one is laid over the other, are correlated to at
least CORRELATION. That holds for re-encoded, resized, brighter and slightly cropped copies, and for
neighbouring slices of one scan; not for mirrored, turned or inverted ones. Of a crowd of
candidates, an image is compared with the 8 nearest in each split.

A leak is an image of one split that has a copy in another. The training side is left out, so that
validation and test stay what others measure on. Of a leak between those nothing is left out.

The result is a function of the source alone: workers change the time only. N usable pairs.
"""

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..errors import BadImage, WorkError
from ..imaging.decode import MAX_PIXELS, decode
from ..packing.sources import Pair, Source
from ..reporting import audit_page, html
from ..runtime.atomic import atomic_file
from ..runtime.progress import Progress
from ..runtime.workers import ordered_map
from .hashing import require_libraries
from .near_duplicates import best_matches, first_of_equals, near_hashes, nearest, similar_sets
from .registration import aligned_correlation
from .scan import Scan, inspect, modalities, scan

VERSION = 1
# Seen on 316 real images. Found of their copies: re-encoded, resized, a fifth darker or brighter,
# other contrast or gamma, all but 1 in 150; cropped by 2 % on each side 98 %, by 3 % 91 %, by 5 %
# 31 %. Called copies of 49,770 pairs: one, two neighbouring slices of a CT; the next has 0.89.
HASH_RADIUS, FINE_RADIUS, CORRELATION = 12, 80, 0.95
JACCARD = 0.8
"""Common words / all words, from which two captions are near."""
_COMPARED = 8  # images per image and split, the nearest by the fine hash
_PIECE = 128  # comparisons handed to a worker at once
IMAGE_WAYS = ("same file", "same pixels", "near")
CAPTION_WAYS = ("same text", "same words", "near")
_SIDES = (64, 128, 224, 256, 384, 512, 768, 1024, 2048)


@dataclass
class Audit:
    """What was found."""

    report: dict[str, Any]
    """What stands in audit.json (shards/README.md describes it)."""
    dropped: dict[tuple[str, str], str]
    """(split, key) of each training pair that leaks -> which pair it is a copy of, and how."""
    pictures: dict[tuple[str, str], bytes] = field(default_factory=dict)
    """(split, id) -> JPEG, of the pairs that the page shows."""
    captions: dict[tuple[str, str], str] = field(default_factory=dict)
    """(split, id) -> caption, of the pairs that the page shows."""

    def write(self, folder: Path) -> None:
        """Write audit.json and audit.html, whole or not at all.

        Raises:
            WorkError: the disk failed.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise WorkError(f"{folder}: {error.strerror}") from None
        report = json.dumps(self.report, indent=1, ensure_ascii=False) + "\n"
        page = audit_page.render(self.report, self.pictures, self.captions)
        for name, text in (("audit.json", report), ("audit.html", page)):
            with atomic_file(folder / name, durable=True) as partial_file:
                partial_file.write_text(text, encoding="utf-8")

    def summary(self) -> str:
        """The main findings, a line each."""
        return "\n".join(audit_page.headlines(self.report))


def audit(
    source: Source,
    *,
    arch: str,
    token_counter: tuple[Callable[[str], int], int],
    workers: int = 1,
    max_pixels: int = MAX_PIXELS,
) -> Audit:
    """Look at every pair of a source.

    Args:
        source: the pairs.
        arch: whose tokenizer counts; for the record.
        token_counter: what `models.clip.token_counter(arch)` returns.
        workers: processes that decode and compare.
        max_pixels: larger images count as unusable.

    Raises:
        InputError: a broken table, or a library of the extra `audit` is not installed.
        WorkError: a worker died, the disk is full, or the source changed meanwhile.
    """
    require_libraries()
    count_tokens, context_length = token_counter
    try:
        with tempfile.TemporaryFile() as file:
            look = partial(inspect, max_pixels=max_pixels)
            scanned = scan(source, look, count_tokens, workers, file)
            result = _examine(source, scanned, context_length, workers)
    except OSError as error:
        where = error.filename or tempfile.gettempdir()
        raise WorkError(f"audit: {where}: {error.strerror or error}") from error
    result.report["settings"] |= {"arch": arch, "max_pixels": max_pixels}
    _fetch_shown(source, result, max_pixels)
    return result


def _examine(source: Source, scanned: Scan, context_length: int, workers: int) -> Audit:
    """Everything but the images for the page."""
    rows, pairs, splits = scanned.rows, scanned.pairs, source.splits
    images = _named(_image_copies(rows, workers), pairs, IMAGE_WAYS)
    captions = _named(_caption_copies(rows, scanned.words), pairs, CAPTION_WAYS)
    dropped = _dropped(images)
    report = {
        "version": VERSION,
        "source": {
            "form": source.form,
            "splits": list(splits),
            "tables": source.fingerprints()["tables"],
        },
        "settings": {
            "context_length": context_length,
            "hash_radius": HASH_RADIUS,
            "fine_radius": FINE_RADIUS,
            "likeness": CORRELATION,
            "jaccard": JACCARD,
        },
        "pairs": {split: _usable(scanned, split) for split in splits},
        "images": {
            "formats": pairs.format.value_counts().sort_index().to_dict(),
            "modes": pairs["mode"].value_counts().sort_index().to_dict(),
            "width": _range(rows["width"]),
            "height": _range(rows["height"]),
            "shorter_side": _histogram(np.minimum(rows["width"], rows["height"]), _SIDES),
        },
        "captions": {"tokens": _tokens(rows, splits, context_length)},
        "concepts": {
            "names": scanned.names,
            "splits": {split: modalities(scanned, split) for split in splits},
        },
        "alike_images": _counted(images, splits, IMAGE_WAYS),
        "alike_captions": _counted(captions, splits, CAPTION_WAYS),
        "leaking_pairs": len(dropped),
    }
    return Audit(report, dropped)


def _image_copies(rows: np.ndarray, workers: int) -> pd.DataFrame:
    """Each image's most similar ones (see `best_matches`)."""
    pixels = first_of_equals(rows["pixels"])
    distinct = np.unique(pixels)
    hashes, fine = rows["phash"][distinct], rows["fine_phash"][distinct]
    pairs, distance = near_hashes(hashes, HASH_RADIUS, fine, FINE_RADIUS)
    pairs = distinct[pairs[nearest(pairs, distance, rows["split"][distinct], _COMPARED)]]
    pieces = [pairs[begin : begin + _PIECE].T for begin in range(0, len(pairs), _PIECE)]
    thumbnails = ((rows["thumbnail"][a], rows["thumbnail"][b]) for a, b in pieces)
    correlations = [np.empty(0, np.float32)]
    with Progress(len(pairs), "comparisons", "audit") as progress:
        # starting processes costs more than a few comparisons
        own = workers if len(pieces) > 8 else 1
        for piece in ordered_map(_correlation, thumbnails, own, batch=1):
            correlations.append(piece)
            progress.update(len(piece))
    correlation = np.concatenate(correlations)
    near, file = correlation >= CORRELATION, first_of_equals(rows["file"])
    return best_matches(rows["split"], file, pixels, pairs[near], correlation[near])


def _correlation(thumbnails: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """At the top of the module for the worker processes."""
    return aligned_correlation(*thumbnails)


def _caption_copies(rows: np.ndarray, words: Sequence[np.ndarray]) -> pd.DataFrame:
    """Each caption's most similar ones (see `best_matches`)."""
    same_words, text = first_of_equals(rows["words"]), first_of_equals(rows["caption"])
    distinct = np.unique(same_words)
    own = [words[row] for row in distinct]
    pairs, index = similar_sets(own, JACCARD)
    return best_matches(rows["split"], text, same_words, distinct[pairs], index)


# ------------------------------------------------------------------------------------- the findings


def _usable(scanned: Scan, split: str) -> dict[str, Any]:
    """How many pairs of a split were read, and why some are of no use."""
    usable = int((scanned.pairs.split == split).sum())
    reasons = scanned.unusable.reason[scanned.unusable.split == split]
    counts = reasons.value_counts().sort_index().to_dict()
    return {"read": usable + len(reasons), "usable": usable, "unusable": counts}


def _named(matches: pd.DataFrame, pairs: pd.DataFrame, ways: Sequence[str]) -> pd.DataFrame:
    """Matches by split, id and key instead of row, the worst first."""
    order = ["degree", "similarity", "row", "other"]
    matches = matches.sort_values(order, ascending=[True, False, True, True])
    one, other = pairs.iloc[matches.row], pairs.iloc[matches.other]
    columns = {"split": one.split, "id": one.id, "key": one.key, "other_split": other.split}
    table = pd.DataFrame({name: column.to_list() for name, column in columns.items()})
    table["other_id"], table["way"] = other.id.to_list(), [ways[d] for d in matches.degree]
    table["likeness"] = [round(number, 3) for number in matches.similarity.to_list()]
    return table


def _counted(table: pd.DataFrame, splits: Sequence[str], ways: Sequence[str]) -> dict[str, Any]:
    """Copies by the two splits and the way, and as a list."""
    counts = {one: {other: dict.fromkeys(ways, 0) for other in splits} for one in splits}
    for one, other, way in zip(table.split, table.other_split, table.way, strict=True):
        counts[one][other][way] += 1
    return {"counts": counts, "list": table.drop(columns="key").to_dict("records")}


def _dropped(images: pd.DataFrame) -> dict[tuple[str, str], str]:
    """The training side of each leak, and what it is most similar to."""
    leaks = images[(images.split == "train") & (images.other_split != "train")]
    dropped: dict[tuple[str, str], str] = {}
    for leak in leaks.drop_duplicates("key").to_dict("records"):
        way = f"{leak['way']} as"
        if leak["way"] == "near":
            way = f"near-duplicate (likeness {leak['likeness']:.3f}) of"
        dropped["train", leak["key"]] = f"{way} {leak['other_split']} pair {leak['other_id']}"
    return dropped


def _tokens(rows: np.ndarray, splits: Sequence[str], context_length: int) -> dict[str, Any]:
    """Lengths before cutting, start and end included. A bin ends at the context length."""
    ends = sorted({context_length * eighths // 8 + 1 for eighths in range(1, 17)})
    long = rows["split"][rows["tokens"] > context_length]
    truncated = {split: int((long == number).sum()) for number, split in enumerate(splits)}
    histogram = _histogram(rows["tokens"], ends)
    return {**_range(rows["tokens"]), "truncated": truncated, "histogram": histogram}


def _range(values: np.ndarray) -> dict[str, int | None]:
    if not len(values):
        return dict.fromkeys(("min", "median", "max"))
    low, middle, high = np.quantile(values, [0, 0.5, 1], method="lower").tolist()
    return {"min": low, "median": middle, "max": high}


def _histogram(values: np.ndarray, edges: Sequence[int]) -> list[dict[str, int | None]]:
    """Counts of whole numbers from 0, and from each edge, to before the next; the last is open."""
    counts, _ = np.histogram(values, [0, *edges, np.inf])
    lasts = [*(edge - 1 for edge in edges), None]
    bins = zip((0, *edges), lasts, counts.tolist(), strict=True)
    return [{"from": first, "to": last, "count": count} for first, last, count in bins]


def _fetch_shown(source: Source, result: Audit, max_pixels: int) -> None:
    """Read once more what the page shows."""
    shown = audit_page.shown(result.report)
    for split in source.splits:
        left = {name: with_image for (of, name), with_image in shown.items() if of == split}
        for record in source.records(split) if left else ():
            if isinstance(record, Pair) and record.id in left:
                result.captions[split, record.id] = record.caption
                if left.pop(record.id):
                    try:
                        image = decode(record.image.read(), max_pixels=max_pixels)
                    except (BadImage, OSError):  # gone meanwhile: the page shows a gap
                        continue
                    result.pictures[split, record.id] = html.preview(image)
            if not left:
                break
