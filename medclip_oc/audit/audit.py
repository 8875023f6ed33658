"""What is in a source of pairs, before anything is packed or trained: copies, leaks, captions.

Pictures are alike in one of three ways: the same file, the same pixels (another file of them), or
near. Near are those whose pHash differs in at most HASH_RADIUS of 64 bits (all such pairs are
found) and in at most FINE_RADIUS of 256 bits, and whose thumbnails, once one is laid over the
other, are correlated to at least LIKENESS. That holds for re-encoded, resized, brighter and
slightly cropped copies, and for neighbouring slices of one scan; not for mirrored, turned or
inverted ones. Of a crowd of candidates, a picture is compared with the 8 nearest in each split.

The result is a function of the source alone: workers change the time only.
"""

import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import BadImage, WorkError
from ..imaging import decode
from ..packing.sources import Pair, Source
from ..reporting import audit_page, html
from ..runtime.atomic import atomic_file
from ..runtime.progress import Progress
from ..runtime.workers import ordered_map
from .hashing import require_libraries
from .leaks import DROPPED_FROM
from .near_duplicates import Link, alike_sets, first_of_equals, links, near_hashes, nearest
from .registration import likeness
from .scan import Notes, inspect

VERSION = 1
JSON, HTML = "audit.json", "audit.html"
# Seen on 316 real pictures. Found of their copies: re-encoded, resized, a fifth darker or brighter,
# other contrast or gamma, all but 1 in 150; cropped by 2 % on each side 98 %, by 3 % 91 %, by 5 %
# 31 %. Called alike of 49,770 pairs: one, two neighbouring slices of a CT; the next has 0.89.
HASH_RADIUS, FINE_RADIUS, LIKENESS = 12, 80, 0.95
JACCARD = 0.8
"""Common words / all words, from which two captions are near."""
_COMPARED = 8  # pictures per picture and split, the nearest by the fine hash
_PIECE = 128  # comparisons handed to a worker at once
PICTURE_WAYS = ("same file", "same pixels", "near")
CAPTION_WAYS = ("same text", "same words", "near")
_SIDES = (64, 128, 224, 256, 384, 512, 768, 1024, 2048)


@dataclass
class Audit:
    """What was found."""

    report: dict[str, Any]
    """What stands in audit.json (shards/README.md describes it)."""
    dropped: dict[tuple[str, str], str]
    """(split, key) of each training pair that leaks -> which pair it is like, and how."""
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
        for name, text in ((JSON, report), (HTML, page)):
            with atomic_file(folder / name, durable=True) as partial:
                partial.write_text(text, encoding="utf-8")

    def summary(self) -> str:
        """The main findings, a line each."""
        return "\n".join(audit_page.headlines(self.report))


def audit(
    source: Source,
    *,
    arch: str,
    token_counter: tuple[Callable[[str], int], int],
    workers: int = 1,
    max_pixels: int = decode.MAX_PIXELS,
) -> Audit:
    """Look at every pair of a source.

    Args:
        source: the pairs.
        arch: whose tokenizer counts; for the record.
        token_counter: what `model.token_counter(arch)` returns.
        workers: processes that decode and compare.
        max_pixels: larger images count as unusable.

    Raises:
        InputError: a broken table, or a library of the extra `audit` is not installed.
        WorkError: a worker died, the disk is full, or the source changed meanwhile.
    """
    require_libraries()
    try:
        with tempfile.TemporaryFile() as rows, tempfile.TemporaryFile() as words:
            notes = Notes(source.splits, rows, words)
            notes.take(source, partial(inspect, max_pixels=max_pixels), token_counter[0], workers)
            found = _find(source, notes, token_counter[1], workers)
        found.report["settings"] |= {"arch": arch, "max_pixels": max_pixels}
        _fetch(source, found, max_pixels)
    except OSError as error:
        where = error.filename or tempfile.gettempdir()
        raise WorkError(f"audit: {where}: {error.strerror or error}") from error
    return found


def _find(source: Source, notes: Notes, context_length: int, workers: int) -> Audit:
    """Everything but the pictures for the page."""
    rows = notes.rows()
    pictures = _alike_pictures(rows, workers)
    captions = _alike_captions(rows, *notes.words())
    dropped = _dropped(pictures, notes)
    report = {
        "version": VERSION,
        "source": {
            "form": source.form,
            "splits": list(source.splits),
            "tables": source.fingerprints()["tables"],
        },
        "settings": {
            "context_length": context_length,
            "hash_radius": HASH_RADIUS,
            "fine_radius": FINE_RADIUS,
            "likeness": LIKENESS,
            "jaccard": JACCARD,
        },
        "pairs": notes.pairs(),
        "images": notes.kinds() | _sizes(rows),
        "captions": {"tokens": _tokens(rows, source.splits, context_length)},
        "concepts": notes.concepts(),
        "alike_images": _told(pictures, notes, source.splits, PICTURE_WAYS),
        "alike_captions": _told(captions, notes, source.splits, CAPTION_WAYS),
        "leaking_pairs": len(dropped),
    }
    return Audit(report, dropped)


# ------------------------------------------------------------------------------------ what is alike


def _alike_pictures(rows: np.ndarray, workers: int) -> list[Link]:
    """Each picture's likest ones."""
    pixels = first_of_equals(rows["pixels"])
    distinct = np.unique(pixels)
    pairs, distance = near_hashes(
        rows["phash"][distinct], HASH_RADIUS, rows["fine_phash"][distinct], FINE_RADIUS
    )
    pairs = pairs[nearest(pairs, distance, rows["split"][distinct], _COMPARED)]
    pairs = distinct[pairs]
    degrees = np.empty(0, np.float32)
    if len(pairs):
        starts = range(0, len(pairs), _PIECE)
        pieces = ((rows["thumbnail"][a], rows["thumbnail"][b]) for a, b in _cut(pairs, starts))
        with Progress(len(pairs), "comparisons", "audit") as progress:
            found = []
            # starting processes costs more than a few comparisons
            for piece in ordered_map(_likeness, pieces, workers if len(starts) > 8 else 1, batch=1):
                found.append(piece)
                progress.update(len(piece))
        degrees = np.concatenate(found)
    near = degrees >= LIKENESS
    file = first_of_equals(rows["file"])
    return links(rows["split"], file, pixels, pairs[near], degrees[near])


def _cut(pairs: np.ndarray, starts: range) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for start in starts:
        one, other = pairs[start : start + starts.step].T
        yield one, other


def _likeness(both: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """At the top of the module for the worker processes."""
    return likeness(*both)


def _alike_captions(rows: np.ndarray, members: np.ndarray, starts: np.ndarray) -> list[Link]:
    """Each caption's likest ones."""
    words = first_of_equals(rows["words"])
    distinct = np.unique(words)
    sizes = np.diff(starts)[distinct]
    ends = np.cumsum(sizes)
    inside = np.arange(sizes.sum()) - np.repeat(ends - sizes, sizes)
    own = members[np.repeat(starts[distinct], sizes) + inside]
    signatures = rows["signature"][distinct]
    pairs, index = alike_sets(signatures, own, np.concatenate([[0], ends]), JACCARD)
    text = first_of_equals(rows["caption"])
    return links(rows["split"], text, words, distinct[pairs], index)


# ------------------------------------------------------------------------------------- the findings


def _worst_first(link: Link) -> tuple[int, float, int, int]:
    return link.degree, -link.likeness, link.row, link.other


def _told(
    found: list[Link], notes: Notes, splits: Sequence[str], ways: Sequence[str]
) -> dict[str, Any]:
    """Links as counts by the two splits and the way they are alike, and as a list."""
    counts = {one: {other: dict.fromkeys(ways, 0) for other in splits} for one in splits}
    listed = []
    for link in sorted(found, key=_worst_first):
        split, name, _, _ = notes.text(link.row)
        other_split, other_name, _, _ = notes.text(link.other)
        counts[split][other_split][ways[link.degree]] += 1
        entry = {"split": split, "id": name, "other_split": other_split, "other_id": other_name}
        listed.append(entry | {"way": ways[link.degree], "likeness": round(link.likeness, 3)})
    return {"counts": counts, "list": listed}


def _dropped(found: list[Link], notes: Notes) -> dict[tuple[str, str], str]:
    """The training side of each leak, and what it is likest to."""
    told: dict[tuple[str, str], str] = {}
    for link in sorted(found, key=_worst_first):
        split, _, key, _ = notes.text(link.row)
        other_split, other_name, _, _ = notes.text(link.other)
        if split != DROPPED_FROM or other_split == split:
            continue
        way = f"{PICTURE_WAYS[link.degree]} as"
        if link.degree == 2:
            way = f"near-duplicate (likeness {link.likeness:.3f}) of"
        told.setdefault((split, key), f"{way} {other_split} pair {other_name}")
    return told


def _sizes(rows: np.ndarray) -> dict[str, Any]:
    """Of the usable pictures, in pixels."""
    shorter = np.minimum(rows["width"], rows["height"])
    edges = [0, *_SIDES]
    return {
        "width": _range(rows["width"]),
        "height": _range(rows["height"]),
        "shorter_side": _histogram(shorter, edges),
    }


def _tokens(rows: np.ndarray, splits: Sequence[str], context_length: int) -> dict[str, Any]:
    """Lengths before cutting, start and end included. A bin ends at the context length."""
    ends = {context_length * eighths // 8 + 1 for eighths in range(1, 17)}
    long = rows["split"][rows["tokens"] > context_length]
    truncated = {split: int((long == number).sum()) for number, split in enumerate(splits)}
    return {
        **_range(rows["tokens"]),
        "truncated": truncated,
        "histogram": _histogram(rows["tokens"], [0, *sorted(ends)]),
    }


def _range(values: np.ndarray) -> dict[str, int | None]:
    if not len(values):
        return dict.fromkeys(("min", "median", "max"))
    low, middle, high = np.quantile(values, [0, 0.5, 1], method="lower").tolist()
    return {"min": low, "median": middle, "max": high}


def _histogram(values: np.ndarray, edges: Sequence[int]) -> list[dict[str, int | None]]:
    """Counts of whole numbers from each edge to before the next; the last bin is open."""
    counts = np.bincount(np.searchsorted(edges, values, "right"), minlength=len(edges) + 1)[1:]
    lasts = [edge - 1 for edge in edges[1:]]
    bins = zip(edges, [*lasts, None], counts.tolist(), strict=True)
    return [{"from": first, "to": last, "count": count} for first, last, count in bins]


def _fetch(source: Source, found: Audit, max_pixels: int) -> None:
    """Read once more what the page shows."""
    wanted = audit_page.shown(found.report)
    for split in source.splits:
        own = {
            name: with_picture for (where, name), with_picture in wanted.items() if where == split
        }
        for record in source.records(split) if own else ():
            if isinstance(record, Pair) and record.id in own:
                found.captions[split, record.id] = record.caption
                if own.pop(record.id):
                    _fetch_picture(record, found, max_pixels)
            if not own:
                break


def _fetch_picture(pair: Pair, found: Audit, max_pixels: int) -> None:
    try:
        picture = decode.decode(pair.image.read(), max_pixels=max_pixels)
    except (BadImage, OSError):  # gone meanwhile: the page shows a gap
        return
    found.pictures[pair.split, pair.id] = html.preview(picture)
