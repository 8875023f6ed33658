"""Writing shards: a source's pairs in, a shard folder out (data/shards.py describes and reads it).

The tars are a function of the source and the options alone: the number of workers, the clock and
the user leave no trace. Each file appears whole or not at all, `index.json` last, so that a folder
with an index is a finished one. A killed packing resumes after its last finished shard
(journal.py), and ends with the same bytes. Memory doesn't grow with the data: a bounded number of
pairs is underway, and what is known of the shards waits on disk.
"""

import csv
import hashlib
import json
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from ..data.index import INDEX, JOURNAL, REJECTS, SIZES, VERSION
from ..errors import BadImage, InputError, WorkError
from ..imaging import encode, volumes
from ..imaging.decode import MAX_PIXELS
from ..runtime.atomic import PARTIAL, atomic_file
from ..runtime.progress import Progress
from ..runtime.workers import BATCH, ordered_map
from .journal import Journal, alone_in, read_head, refuse_other
from .report import PackReport
from .sources import Pair, Reject, Source
from .tar_writer import Packed, write_shards

_OURS = re.compile(
    r"((train|valid|test)-\d{6}\.tar|(index|sizes|audit)\.json|rejects\.csv|audit\.html)(\.partial)?"
    r"|unfinished\.jsonl"
)
_NULL = ("license", "slice")  # facts that are null where they aren't known; lists are empty
_FETCHED = 32  # images that few threads read together: handing over costs as much as reading


@dataclass(frozen=True)
class PackOptions:
    """What decides the content of the tars, besides the source."""

    samples_per_shard: int = 1000  # the last tar of a split has the rest
    decode_check: bool = True  # decode each image, even where its bytes are kept
    max_pixels: int = MAX_PIXELS  # larger images are rejected
    resize: int | None = None  # the shorter side of what is larger, in pixels. None: as it is
    drop_leaks: bool | str = False  # `Source.dropped` are; here, so that they can't mix
    image_format: Literal["jpg", "png"] | None = None  # of all images. None: JPEG or PNG, as it is
    strip_metadata: bool = False  # of kept files, which are decoded then
    slices: str | None = None  # those taken of volumes, with the next two: see `volumes.take`
    axis: str | None = None
    window: str | None = None


def pack(
    source: Source,
    out: Path,
    options: PackOptions = PackOptions(),
    *,
    workers: int = 1,
    overwrite: bool = False,
) -> PackReport:
    """Pack all splits of a source, or what an interrupted call with the same arguments left.

    A finished folder of the same source and options stays as it is, unless `overwrite`.
    `workers` are processes that read and decode or, where nothing is to be decoded, threads that
    read; they change the time only. Of the counts returned read = packed + further + rejected holds
    for each split. InputError: a broken table, or other shards there. WorkError: no pair of a split
    could be packed, or the disk or a worker failed.
    """
    check_folder(out, options, overwrite=overwrite)
    rows = {split: source.count(split) for split in source.splits}
    about_source = {"form": source.form, "splits": list(source.splits), **source.fingerprints()}
    if source.dropped is not None:
        dropped = json.dumps(sorted(source.dropped.items())).encode()
        about_source["dropped"] = hashlib.sha256(dropped).hexdigest()
    head = {"version": VERSION, "options": asdict(options), "source": about_source}
    try:
        out.mkdir(parents=True, exist_ok=True)
        with alone_in(out):
            if overwrite:
                _clear(out)
            if (out / INDEX).exists():
                return _finished(out, head)
            for name, text in source.beside:
                with atomic_file(out / name, durable=True) as partial_file:
                    partial_file.write_text(text, encoding="utf-8")
            return _pack(source, options, Journal(out, head), workers, rows)
    except OSError as error:
        raise WorkError(f"{error.filename or out}: {error.strerror or error}") from error


def check_folder(out: Path, options: PackOptions, *, overwrite: bool = False) -> None:
    """Refuse at once what `pack` would refuse later, as far as it can be told without the source.
    InputError: a finished packing with other options is there, or tars that are not ours.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: not a folder")
    if overwrite or (out / JOURNAL).exists():
        return
    if (out / INDEX).is_file():
        there = {"options": read_head(out / INDEX)["options"]}
        refuse_other(out, there, {"options": asdict(options)})
    elif tars := len(list(out.glob("*.tar"))):
        why = f"holds {tars} tars that are not ours, or of an earlier version (no {INDEX})"
        raise InputError(f"{out}: {why}; choose another --out, or --overwrite")


def _finished(out: Path, head: Mapping[str, Any]) -> PackReport:
    """The report of the finished packing that is in the folder, if it is the same."""
    index = read_head(out / INDEX)
    refuse_other(out, index, head)
    for name in (REJECTS, SIZES):
        if not (out / name).is_file():
            raise InputError(f"{out / name}: missing; pack again with --overwrite")
    # killed between the last two steps, or while an audit was written
    for path in [out / JOURNAL, *out.glob(f"*{PARTIAL}")]:
        path.unlink(missing_ok=True)
    counts = index["counts"]
    report = PackReport(Counter(counts["read"]), reencoded=Counter(counts["reencoded"]))
    report.multi_frame = counts.get("multi_frame", 0)
    report.further = Counter(counts.get("further", {}))
    report.before = report.read.total()
    for shard in index["shards"]:
        _check_shard(out, shard)
        report.add_shard(shard)
    with (out / REJECTS).open(newline="", encoding="utf-8") as file:
        report.rejected.update((row["split"], row["reason"]) for row in csv.DictReader(file))
    return report


def _check_shard(out: Path, shard: Mapping[str, Any]) -> None:
    """A shard that an earlier run wrote must still be there."""
    path = out / shard["name"]
    if not path.is_file() or path.stat().st_size != shard["bytes"]:
        raise InputError(f"{path}: lost or changed since it was packed; pack with --overwrite")


def _clear(out: Path) -> None:
    (out / INDEX).unlink(missing_ok=True)  # first: without it, the rest is known to be unfinished
    for path in out.iterdir():
        if _OURS.fullmatch(path.name):
            path.unlink()


def _pack(
    source: Source, options: PackOptions, journal: Journal, workers: int, rows: Mapping[str, int]
) -> PackReport:
    """Resume where an earlier run ended, to the end. `rows`: split -> rows that its table has."""
    report, ended = PackReport(), set[str]()
    for line in journal.lines():
        if line["shard"]:
            _check_shard(journal.folder, line["shard"])
        else:
            ended.add(line["split"])
        report.add(line)
    report.before = report.read.total()
    with Progress(sum(rows.values()), "images", "pack", report.rows.total()) as progress:
        for split in source.splits:
            if split not in ended:
                records, left = source.records(split), report.rows[split]
                while left > 0 and (record := next(records, None)):
                    left -= record.rows
                records = map(partial(_keep, source.dropped or {}), records)
                results = _prepared(records, options, workers)
                _write_split(split, results, options.samples_per_shard, journal, report, progress)
            read, packed = report.read[split], report.packed[split]
            rejected, further = report.rejected_of(split), report.further[split]
            if report.rows[split] != rows[split] or read != packed + further + rejected:
                raise WorkError(
                    f"{split}: {rows[split]} rows counted, {read} read, {packed} packed + "
                    f"{further} further + {rejected} rejected; did the source change meanwhile?"
                )
    reencoded = dict(sorted(report.reencoded.items()))
    counts = {"read": report.read, "reencoded": reencoded, "multi_frame": report.multi_frame}
    journal.finish(counts | ({"further": report.further} if report.further.total() else {}))
    return report


def _keep(dropped: Mapping[tuple[str, str], str], record: Pair | Reject) -> Pair | Reject:
    way = dropped.get((record.split, record.key)) if isinstance(record, Pair) else None
    return Reject(record.id, record.split, "leak", way, record.rows) if way else record


def _write_split(
    split: str,
    results: Iterable[list[Packed | Reject]],
    samples_per_shard: int,
    journal: Journal,
    report: PackReport,
    progress: Progress,
) -> None:
    """Write the shards of a split that aren't there yet; note and count every outcome."""
    line: dict[str, Any] = {"split": split, "shard": None, "read": report.read[split]}
    line |= {"rows": report.rows[split], "reencoded": Counter(), "multi_frame": 0, "further": 0}
    line["rejects"] = []

    def accepted() -> Iterator[list[Packed]]:
        for group in results:
            line["rows"] += group[0].rows
            progress.update(group[0].rows)
            line["read"] += sum(each.rows for each in group)
            for each in (each for each in group if isinstance(each, Reject)):
                line["rejects"] += [[each.id, each.split, each.reason, each.detail]] * each.rows
            packed = [each for each in group if isinstance(each, Packed)]
            line["further"] += sum(each.rows - 1 for each in packed)
            images = [each.image for each in packed]
            line["reencoded"].update(image.reencoded for image in images if image.reencoded)
            line["multi_frame"] += sum(image.multi_frame for image in images)
            if packed:
                yield packed

    def note(shard: Mapping[str, Any] | None) -> None:
        line["shard"] = shard
        journal.write(line)
        report.add(line)
        line.update(reencoded=Counter(), multi_frame=0, further=0, rejects=[])

    first = report.shards[split]
    for shard in write_shards(journal.folder, split, accepted(), samples_per_shard, first):
        note(shard)
    if not report.packed[split]:  # the next run looks at it again
        with journal.rejects() as writer:
            for each in chain(journal.lines(), [line]):
                writer.writerows(each["rejects"])
        reason, most = Counter(reason for *_, reason, _ in line["rejects"]).most_common(1)[0]
        example = next(detail[:160] for *_, each, detail in line["rejects"] if each == reason)
        told = f"{most} of {line['read']}: {reason} ({example}); see {journal.folder / REJECTS}"
        raise WorkError(f"{split}: no pair could be packed; {told}")
    note(None)


def _prepared(
    records: Iterable[Pair | Reject], options: PackOptions, workers: int
) -> Iterator[list[Packed | Reject]]:
    """What becomes of each record, in order."""
    prepare = partial(_prepare, options)
    # of large images (ours is --max-pixels), of odd metadata; here for all threads at once, since
    # one of them would undo what another did
    with warnings.catch_warnings(action="ignore"):
        batch = 1 if options.slices else BATCH  # volumes
        if options.slices or options.decode_check or options.resize or options.image_format:
            yield from ordered_map(prepare, records, workers, batch=batch)
        else:
            # reading and hashing let other threads run; the rest is too little to share out
            threads = max(2, workers)
            batch = max(BATCH, _FETCHED // threads)
            yield from ordered_map(prepare, records, threads, batch=batch, threads=True)


def _prepare(options: PackOptions, pair: Pair | Reject) -> list[Packed | Reject]:
    """A worker's part: read an image, or slices of a volume, and lay out a pair for each."""
    if isinstance(pair, Reject):
        return [pair]
    try:
        if not options.slices:
            return [_lay_out(options, pair, pair.image.read())]
        if re.search(r"_s\d{3,}$", pair.key):
            return [pair.reject("unsafe id", "ends as the id of a slice does")]
        how = options.slices, options.axis, options.window, options.max_pixels
        slices = volumes.take(pair.image.folder or pair.image.read(), *how)
    except OSError as error:
        return [pair.reject("image unreadable", str(error.strerror or error))]
    except BadImage as error:
        return [pair.reject(error.reason, error.detail)]
    packed = list[Packed | Reject]()
    for n, data in slices:
        end, rows = "" if n is None else f"_s{n:03}", 1 if packed else pair.rows
        facts = {"study": pair.id, **pair.facts, "slice": n}
        part = replace(pair, id=pair.id + end, key=pair.key + end, facts=facts, rows=rows)
        if isinstance(data, BadImage):
            packed.append(part.reject(data.reason, data.detail))
        else:
            packed.append(_lay_out(options, part, data))
    return packed


def _lay_out(options: PackOptions, pair: Pair, data: bytes) -> Packed | Reject:
    """Check an image (see `encode.prepare`) that is no slice, lay out its pair."""
    sliced = pair.facts.get("slice") is not None
    try:
        stored = encode.prepare(
            data,
            max_pixels=options.max_pixels,
            # a turn may stand at the end
            check=not sliced and (options.decode_check or options.strip_metadata),
            resize=options.resize,
            image_format=options.image_format,
        )
        stored = encode.without_metadata(stored) if options.strip_metadata else stored
    except BadImage as error:
        return pair.reject(error.reason, error.detail)
    if sliced:
        stored = replace(stored, reencoded="slice of a volume")
    facts = {"id": pair.id, "split": pair.split, "width": stored.width, "height": stored.height}
    facts |= {"mode": stored.mode, "sha256": hashlib.sha256(data).hexdigest()}
    # the same keys in each sample, as readers want them that take a table's columns from the first
    known = {n: [] if it is None and n not in _NULL else it for n, it in pair.facts.items()}
    facts |= {**known, "reencoded": stored.reencoded or ""}
    if options.resize is not None:
        facts["resized_from"] = stored.resized_from or (stored.width, stored.height)
    # half a surrogate pair in a fact stays what it was: an escape of JSON
    about = json.dumps(facts, ensure_ascii=False).encode(errors="backslashreplace")
    return Packed(pair.key, stored, pair.caption.encode(), about, pair.rows)
