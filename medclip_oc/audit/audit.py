"""What is in a source of pairs, before anything is packed or trained: copies, leaks, captions.

docs/data.md says what is found. Near are images whose pHash differs in at most HASH_RADIUS of 64
bits and in at most FINE_RADIUS of 256 bits, and whose thumbnails, once one is laid over the other,
are correlated to at least CORRELATION; of a crowd of candidates, with the 8 nearest in each split.
The result is a function of the source alone: workers change the time only. N usable pairs.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..config.packing import MakeShardsConfig
from ..config.vocabulary import MODALITIES
from ..errors import BadImage, InputError, WorkError
from ..imaging.decode import decode
from ..models import clip
from ..packing.sources import Pair, Source
from ..reporting import audit_page, html
from ..runtime.atomic import atomic_file
from ..runtime.progress import Progress
from ..runtime.workers import ordered_map
from .near_duplicates import best_matches, first_of_equals, near_hashes, nearest, similar_sets
from .registration import aligned_correlation
from .scan import scan

VERSION = 1
# docs/data.md says how well copies are found so; of pairs that are none, the next has 0.89
HASH_RADIUS, FINE_RADIUS, CORRELATION = 12, 80, 0.95
JACCARD = 0.8  # common words / all words, from which two captions are near
_COMPARED = 8  # images per image and split, the nearest by the fine hash
_PIECE = 128  # comparisons handed to a worker at once
IMAGE_WAYS = ("same file", "same pixels", "near")
CAPTION_WAYS = ("same text", "same words", "near")
_SIDES = (64, 128, 224, 256, 384, 512, 768, 1024, 2048)


@dataclass
class Audit:
    """What was found."""

    report: dict[str, Any]  # what stands in audit.json (shards/README.md describes it)
    dropped: dict[tuple[str, str], str]  # (split, key) of leaking training pairs -> like which
    pictures: dict[tuple[str, str], bytes]  # (split, id) -> JPEG, of the pairs that the page shows
    captions: dict[tuple[str, str], str]  # (split, id) -> caption

    def write(self, folder: Path) -> None:
        """Write audit.json and audit.html, whole or not at all; WorkError: the disk failed."""
        report = json.dumps(self.report, indent=1, ensure_ascii=False) + "\n"
        page = audit_page.render(folder.resolve().name, self.report, self.pictures, self.captions)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise WorkError(f"{folder}: {error.strerror}") from None
        for name, text in (("audit.json", report), ("audit.html", page)):
            with atomic_file(folder / name, durable=True) as partial_file:
                partial_file.write_text(text, encoding="utf-8")


def audit_source(source: Source, config: MakeShardsConfig, workers: int) -> Audit:
    """Audit a source before it is packed, and print what was found; --audit-only writes it, too.
    (Else it waits: packing may have to clear the folder first.) InputError, WorkError: it fails.
    """
    out = config.path("out")
    try:
        counter = clip.token_counter(config.audit_arch)
    except (InputError, WorkError) as error:
        raise type(error)(str(error).replace("model.arch", "--audit-arch")) from None
    found = audit(source, config, counter, workers)
    print(*audit_page.headlines(found.report), sep="\n")
    if config.audit_only:
        found.write(out)
        print(f"{out / 'audit.html'}: the page; audit.json has every finding")
    if config.drop_leaks == "groups" and not found.report["groups"]["known"]:
        raise InputError("--drop-leaks groups: no pair has a group; --group-column names it")
    return found


def audit(
    source: Source,
    config: MakeShardsConfig,
    token_counter: tuple[Callable[[str], int], int],
    workers: int,
) -> Audit:
    """Look at every pair of a source, in so many processes; `token_counter` is that of
    `models.clip`. InputError: a broken table, or the extra `audit` is not installed. WorkError: a
    worker died.
    """
    count_tokens, context_length = token_counter
    pairs, others = scan(source, config.max_pixels, count_tokens, workers)
    images = _named(_image_copies(pairs, workers), pairs, IMAGE_WAYS)
    captions = _named(_caption_copies(pairs), pairs, CAPTION_WAYS)
    dropped, splits = _dropped(images), list(source.splits)
    groups, grouped = _groups(pairs, splits)
    tables = source.fingerprints()["tables"]
    given = config.source or config.table or ""
    name = Path(given if isinstance(given, str) else given[0]).resolve().name
    texts = pairs[["split", "id", "tagged", "letters"]].query("tagged or letters > 0")
    texts = texts.sort_values(["tagged", "letters"], ascending=False, kind="stable")
    report = {
        "version": VERSION,
        "source": {"name": name, "form": source.form, "splits": splits, "tables": tables},
        "settings": {
            "context_length": context_length,
            "hash_radius": HASH_RADIUS,
            "fine_radius": FINE_RADIUS,
            "likeness": CORRELATION,
            "jaccard": JACCARD,
            "arch": config.audit_arch,
            "max_pixels": config.max_pixels,
        },
        "pairs": {split: _read(pairs, others, split) for split in splits},
        "images": {
            "formats": pairs.format.value_counts().sort_index().to_dict(),
            "modes": pairs["mode"].value_counts().sort_index().to_dict(),
            "width": _range(pairs.width),
            "height": _range(pairs.height),
            "shorter_side": _histogram(pairs[["width", "height"]].min(axis=1), _SIDES),
            "metadata": pairs.metadata.explode().value_counts().sort_index().to_dict(),
            "burned_in_text": texts.to_dict("records"),
        },
        "captions": {"tokens": _tokens(pairs, splits, context_length)},
        "concepts": _concepts(pairs, splits),
        "alike_images": _counted(images, splits, IMAGE_WAYS),
        "alike_captions": _counted(captions, splits, CAPTION_WAYS),
        "leaking_pairs": len(dropped),
        "groups": groups,
    }
    said = dict(zip(zip(pairs.split, pairs.id, strict=True), pairs.caption, strict=True))
    dropped = grouped | dropped if config.drop_leaks == "groups" else dropped
    return Audit(report, dropped, _pictures(source, report, config.max_pixels), said)


def _image_copies(pairs: pd.DataFrame, workers: int) -> pd.DataFrame:
    """Each image's most similar ones (see `best_matches`)."""
    splits, thumbnails = pairs.split.to_numpy(), pairs.thumbnail.to_numpy()
    file, pixels = first_of_equals(pairs.file), first_of_equals(pairs.pixels)
    distinct = np.unique(pixels)
    hashes = np.array(pairs.phash.to_list(), np.uint64).reshape(-1, 5)[distinct]
    near, distance = near_hashes(hashes[:, 0], HASH_RADIUS, hashes[:, 1:], FINE_RADIUS)
    near = distinct[near[nearest(near, distance, splits[distinct], _COMPARED)]]
    pieces = [near[begin : begin + _PIECE].T for begin in range(0, len(near), _PIECE)]
    both = ((np.stack(thumbnails[a]), np.stack(thumbnails[b])) for a, b in pieces)
    correlations = [np.empty(0, np.float32)]
    own = workers if len(pieces) > 8 else 1  # starting processes costs more than a few comparisons
    with Progress(len(near), "comparisons", "audit") as progress:
        for piece in ordered_map(aligned_correlation, both, own, batch=1):
            correlations.append(piece)
            progress.update(len(piece))
    correlation = np.concatenate(correlations)
    alike = correlation >= CORRELATION
    return best_matches(splits, file, pixels, near[alike], correlation[alike])


def _caption_copies(pairs: pd.DataFrame) -> pd.DataFrame:
    """Each caption's most similar ones (see `best_matches`)."""
    # "?" and "!" have no words, and nothing in common
    sets = zip(pairs.words, pairs.caption, strict=True)
    words = first_of_equals([own.tobytes() or text for own, text in sets])
    distinct = np.unique(words)
    near, index = similar_sets(pairs.words.iloc[distinct].to_list(), JACCARD)
    texts = first_of_equals(pairs.caption)
    return best_matches(pairs.split.to_numpy(), texts, words, distinct[near], index)


# ------------------------------------------------------------------------------------- the findings


def _read(pairs: pd.DataFrame, others: pd.DataFrame, split: str) -> dict[str, Any]:
    """How many pairs of a split were read, and why some are of no use."""
    usable, reasons = int((pairs.split == split).sum()), others.reason[others.split == split]
    counts = reasons.value_counts().sort_index().to_dict()
    return {"read": usable + len(reasons), "usable": usable, "unusable": counts}


def _tokens(pairs: pd.DataFrame, splits: list[str], context_length: int) -> dict[str, Any]:
    """Lengths before cutting, start and end included. A bin ends at the context length."""
    cut = pairs.split[pairs.tokens > context_length].value_counts()
    truncated = {split: int(cut.get(split, 0)) for split in splits}
    ends = sorted({context_length * eighths // 8 + 1 for eighths in range(1, 17)})
    histogram = _histogram(pairs.tokens, ends)
    return {**_range(pairs.tokens), "truncated": truncated, "histogram": histogram}


def _concepts(pairs: pd.DataFrame, splits: list[str]) -> dict[str, Any]:
    """Usable pairs by split and modality, and of none, of several, of unknown ones; their names."""
    names, by_split = {cui: name for name, cui in MODALITIES.items()}, dict[str, Any]()
    for cuis, said in zip(pairs.cuis, pairs.names, strict=True):
        named = zip(cuis or [], said or [], strict=False)
        names |= {cui: name for cui, name in named if cui in names and name}
    for split in splits:
        cuis = pairs.cuis[pairs.split == split]
        own = [names.keys() & set(each or []) for each in cuis]
        by_split[split] = {
            "modalities": {cui: sum(cui in each for each in own) for cui in MODALITIES.values()},
            "unknown": sum(each is None for each in cuis),
            "none": sum(each == [] for each in cuis),
            "no_modality": sum(bool(each) and not of for each, of in zip(cuis, own, strict=True)),
            "several_modalities": sum(len(each) > 1 for each in own),
        }
    return {"names": names, "splits": by_split}


def _named(matches: pd.DataFrame, pairs: pd.DataFrame, ways: Sequence[str]) -> pd.DataFrame:
    """Matches by split, id and key instead of row, the worst first."""
    order = ["degree", "similarity", "row", "other"]
    matches = matches.sort_values(order, ascending=[True, False, True, True])
    one = pairs[["split", "id", "key"]].iloc[matches.row].reset_index(drop=True)
    other = pairs[["split", "id"]].iloc[matches.other].reset_index(drop=True)
    likeness = [round(number, 3) for number in matches.similarity.to_list()]
    way = [ways[degree] for degree in matches.degree]
    return one.join(other.add_prefix("other_")).assign(way=way, likeness=likeness)


def _counted(table: pd.DataFrame, splits: list[str], ways: Sequence[str]) -> dict[str, Any]:
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
        near = f"near-duplicate (likeness {leak['likeness']:.3f}) of"
        way = near if leak["way"] == "near" else f"{leak['way']} as"
        dropped["train", leak["key"]] = f"{way} {leak['other_split']} pair {leak['other_id']}"
    return dropped


def _groups(
    pairs: pd.DataFrame, splits: list[str]
) -> tuple[dict[str, Any], dict[tuple[str, str], str]]:
    """Groups in several splits, for the report; and their training pairs, as in `dropped`."""
    counts = pd.crosstab(pairs["group"], pairs["split"]).reindex(columns=splits, fill_value=0)
    several = counts[(counts > 0).sum(axis=1) > 1]
    own = pairs[(pairs["split"] == "train") & pairs["group"].isin(several.index)]
    listed = several.to_dict("index")
    report = {"known": len(counts), "leaking_pairs": len(own), "in_several": listed}
    names = zip(own["key"], own["group"], strict=True)
    return report, {("train", key): f"group {name} is in another split" for key, name in names}


def _range(values: pd.Series) -> dict[str, int | None]:
    if values.empty:
        return dict.fromkeys(("min", "median", "max"))
    low, middle, high = np.quantile(values, [0, 0.5, 1], method="lower").tolist()
    return {"min": low, "median": middle, "max": high}


def _histogram(values: pd.Series, edges: Sequence[int]) -> list[dict[str, int | None]]:
    """Counts of whole numbers from 0, and from each edge, to before the next; the last is open."""
    counts, _ = np.histogram(values.to_numpy(float), [0, *edges, np.inf])
    bins = zip(pairwise([0, *edges, None]), counts.tolist(), strict=True)
    return [{"from": a, "to": b and b - 1, "count": count} for (a, b), count in bins]


def _pictures(source: Source, report: Mapping[str, Any], max_pixels: int) -> dict[Any, bytes]:
    """Of the pairs that the page shows: read once more."""
    shown, pictures = audit_page.shown(report), dict[tuple[str, str], bytes]()
    for split in source.splits:
        left = {name for of, name in shown if of == split}
        for record in source.records(split) if left else ():
            if isinstance(record, Pair) and record.id in left:
                left.remove(record.id)
                with suppress(BadImage, OSError):  # gone meanwhile: the page shows a gap
                    image = decode(record.image.read(), max_pixels=max_pixels)
                    pictures[split, record.id] = html.preview(image)
            if not left:
                break
    return pictures
