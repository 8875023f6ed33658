"""Writing shards: a source's pairs in, a shard folder out (shards.py describes and reads it).

The tars are a function of the source and the options alone: the number of workers, the clock and
the user leave no trace. Each file appears whole or not at all, `index.json` last, so that a folder
with an index is a finished one. A killed packing goes on after its last whole shard (journal.py),
and ends with the same bytes. Memory doesn't grow with the data: a bounded number of pairs is
underway, and what is known of the shards waits on disk.
"""

import csv
import hashlib
import json
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from . import images, journal
from .errors import BadImage, InputError, WorkError
from .journal import Event, Journal
from .parallel import ordered_map
from .progress import Progress
from .shard_writer import PARTIAL, Stretch, appearing, stretch, write_shards
from .shards import INDEX, REJECTS, SIZES, VERSION
from .sources import Pair, Reject, Source

_OURS = re.compile(
    r"(train|valid|test)-\d{6}\.tar|(index|sizes|audit)\.json|rejects\.csv|audit\.html"
)


@dataclass(frozen=True)
class PackOptions:
    """What decides the content of the tars, besides the source."""

    samples_per_shard: int = 1000
    """Pairs per tar; the last one of a split has the rest."""
    decode_check: bool = True
    """Decode each image, even where its bytes are kept as they are."""
    max_pixels: int = images.MAX_PIXELS
    """Larger images are rejected."""
    resize: int | None = None
    """Store larger images with their shorter side at so many pixels. None: as they are."""
    drop_leaks: bool = False
    """The source is one without its leaks (leaks.py); noted here, so that packings can't mix."""


@dataclass
class PackReport:
    """What packing did."""

    read: Counter[str] = field(default_factory=Counter)
    """Split -> rows of the source."""
    packed: Counter[str] = field(default_factory=Counter)
    """Split -> pairs in the shards."""
    rejected: Counter[tuple[str, str]] = field(default_factory=Counter)
    """(split, reason) -> rows."""
    reencoded: Counter[str] = field(default_factory=Counter)
    """Reason -> images that could not keep their bytes."""
    shards: Counter[str] = field(default_factory=Counter)
    """Split -> tars."""
    bytes: Counter[str] = field(default_factory=Counter)
    """Split -> bytes of the tars."""
    before: int = 0
    """Rows of all splits that an earlier run of the same packing had done."""

    def add(self, event: Event) -> None:
        """Count an event of the journal."""
        if "reject" in event:
            _, split, reason, _ = event["reject"]
            self.rejected[split, reason] += 1
        elif "shard" in event:
            entry = event["shard"]
            split = entry["split"]
            self.packed[split] += entry["samples"]
            self.shards[split] += 1
            self.bytes[split] += entry["bytes"]
            self.read[split] = event["read"]
            self.reencoded.update(event["reencoded"])
        else:
            self.read[event["end"]] = event["read"]


class _Packed(NamedTuple):
    stretch: Stretch
    reencoded: str | None


def pack(
    source: Source,
    out: Path,
    options: PackOptions = PackOptions(),
    *,
    workers: int = 1,
    overwrite: bool = False,
) -> PackReport:
    """Pack all splits of a source, or what an interrupted call with the same arguments left.

    Args:
        source: where the pairs come from.
        out: the shard folder; made if need be. A finished one of the same source and options
            stays as it is.
        options: what to put in.
        workers: processes that read and decode; threads, without the decode check. They change
            the time only.
        overwrite: replace the shards that are in the folder.

    Returns:
        The counts; read = packed + rejected holds for each split.

    Raises:
        InputError: options out of range, a broken table, or other shards there already.
        WorkError: not a single pair of a split could be packed, or the disk or a worker failed.
    """
    for name, value in (("samples-per-shard", options.samples_per_shard), ("workers", workers)):
        if value < 1:
            raise InputError(f"{name}: {value} is less than 1")
    if options.resize is not None and options.resize < 1:
        raise InputError(f"resize: {options.resize} is less than 1")
    rows = {split: source.count(split) for split in source.splits}
    head = {
        "version": VERSION,
        "options": asdict(options),
        "source": {
            "form": source.form,
            "splits": list(source.splits),
            "tables": source.fingerprint(),
        },
    }
    try:
        if done := _claim(out, head, overwrite):
            return done
        return _pack(source, rows, out, options, head, workers)
    except OSError as error:
        raise WorkError(f"{error.filename or out}: {error.strerror or error}") from error


def _claim(out: Path, head: dict[str, Any], overwrite: bool) -> PackReport | None:
    """Make the folder ours: create it, or clear it of earlier shards if that is allowed.

    Returns:
        The report of the finished packing that is there already, and the same.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: not a folder")
    out.mkdir(parents=True, exist_ok=True)
    unfinished = (out / journal.NAME).exists()
    if (out / INDEX).exists() and not overwrite:
        return _finished(out, head)
    tars = len(list(out.glob("*.tar")))
    if tars and not unfinished and not overwrite:
        raise InputError(
            f"{out}: holds {tars} tars that are not ours, or of an earlier version (no {INDEX}, "
            f"no {journal.NAME}); choose another --out, or --overwrite"
        )
    if overwrite:
        _clear(out)
    return None


def _finished(out: Path, head: dict[str, Any]) -> PackReport:
    """The report in a finished folder, if it is of the same packing."""
    try:
        index = json.loads((out / INDEX).read_bytes())
        found = {name: index[name] for name in head}
        counts = index["counts"]
    except (ValueError, KeyError, TypeError):
        raise InputError(
            f"{out / INDEX}: damaged or of an earlier version; see --overwrite"
        ) from None
    if different := journal.differences(found, head):
        raise InputError(
            f"{out}: holds shards already, packed with other settings: {different}; choose another "
            "--out, or --overwrite"
        )
    (out / journal.NAME).unlink(missing_ok=True)  # killed between the last two steps
    report = PackReport(Counter(counts["read"]), reencoded=Counter(counts["reencoded"]))
    report.before = report.read.total()
    for entry in index["shards"]:
        event = {"shard": entry, "read": counts["read"][entry["split"]], "reencoded": {}}
        report.add(event)
    with (out / REJECTS).open(newline="", encoding="utf-8") as file:
        for row in islice(csv.reader(file), 1, None):
            report.add({"reject": row})
    return report


def _clear(out: Path) -> None:
    (out / INDEX).unlink(missing_ok=True)  # first: without it, the rest is known to be unfinished
    for path in out.iterdir():
        if _OURS.fullmatch(path.name.removesuffix(PARTIAL)) or path.name == journal.NAME:
            path.unlink()


def _pack(
    source: Source,
    rows: dict[str, int],
    out: Path,
    options: PackOptions,
    head: dict[str, Any],
    workers: int,
) -> PackReport:
    book, report, ended = Journal(out, head), PackReport(), set[str]()
    try:
        for event in book.events():
            _check_shard(out, event)
            report.add(event)
            ended.add(event.get("end", ""))
        report.before = report.read.total()
        with Progress(sum(rows.values()), "images", "pack", report.before) as progress:
            for split in source.splits:
                if split not in ended:
                    _pack_split(source, split, out, options, workers, book, report, progress)
                _check_counts(report, split, rows[split])
        _finish(out, head, book, report, rows)
    finally:
        book.close()
    return report


def _check_shard(out: Path, event: Event) -> None:
    """A shard that an earlier run wrote must still be there."""
    if entry := event.get("shard"):
        path = out / entry["name"]
        if not path.is_file() or path.stat().st_size != entry["bytes"]:
            raise InputError(f"{path}: changed since it was packed; begin again with --overwrite")


def _pack_split(
    source: Source,
    split: str,
    out: Path,
    options: PackOptions,
    workers: int,
    book: Journal,
    report: PackReport,
    progress: Progress,
) -> None:
    """Write the shards of a split that aren't there yet."""
    read, reencoded = report.read[split], Counter[str]()

    def note(event: Event) -> None:
        book.write(event)
        report.add(event)

    def accepted(results: Iterable[_Packed | Reject]) -> Iterator[Stretch]:
        """Count every outcome, write down the rejected, pass the others on."""
        nonlocal read
        for result in results:
            read += 1
            progress.update()
            if isinstance(result, Reject):
                note({"reject": [result.id, result.split, result.reason, result.detail]})
                continue
            if result.reencoded:
                reencoded[result.reencoded] += 1
            yield result.stretch

    records = islice(source.records(split), read, None)
    # unless it decodes, a worker does little but read and hash
    threads = not options.decode_check
    results = ordered_map(
        partial(_prepare, options), records, workers, threads=threads, start=_ignore_warnings
    )
    entries = write_shards(
        out, split, accepted(results), options.samples_per_shard, report.shards[split]
    )
    with warnings.catch_warnings():
        _ignore_warnings()  # for all threads at once: within one, each would undo the others'
        for entry in entries:
            note({"shard": entry, "read": read, "reencoded": dict(reencoded)})
            reencoded.clear()
    note({"end": split, "read": read})


def _check_counts(report: PackReport, split: str, rows: int) -> None:
    """Nothing disappears: every row of the table was read, and each one packed or rejected."""
    rejected = sum(n for (where, _), n in report.rejected.items() if where == split)
    read, packed = report.read[split], report.packed[split]
    if not rows == read == packed + rejected:
        raise WorkError(
            f"{split}: {rows} rows counted, {read} read, {packed} packed + {rejected} rejected; "
            "did the source change meanwhile?"
        )


def _finish(
    out: Path, head: dict[str, Any], book: Journal, report: PackReport, rows: dict[str, int]
) -> None:
    """Make the files that readers use from the journal, the index last; then forget it.

    Raises:
        WorkError: a split has no pair at all. There is no index then, but rejects.csv tells why.
    """
    with appearing(out / REJECTS) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["id", "split", "reason", "detail"])
        writer.writerows(event["reject"] for event in book.events() if "reject" in event)
    for split, number in rows.items():
        if not report.packed[split]:
            why = Counter({why: n for (where, why), n in report.rejected.items() if where == split})
            reason, most = why.most_common(1)[0]
            book.remove()  # the next run looks again
            raise WorkError(
                f"{split}: no pair could be packed; {most} of {number}: {reason} (see "
                f"{out / REJECTS})"
            )
    counts = {"read": dict(report.read), "reencoded": dict(sorted(report.reencoded.items()))}
    _write_index(out, {**head, "counts": counts}, book)
    book.remove()


def _write_index(out: Path, head: dict[str, Any], book: Journal) -> None:
    """index.json and, just before it gets its name, sizes.json.

    A line for each shard; the hashes of the other files and, over all that stands before it, of
    itself come last: verify.py tells by them whether anything changed.
    """
    sizes, seal = dict[str, int](), hashlib.sha256()
    with appearing(out / INDEX) as file:

        def put(text: str) -> None:
            file.write(text)
            seal.update(text.encode())

        put(json.dumps(head).removesuffix("}") + ', "shards": [')
        for event in book.events():
            if entry := event.get("shard"):
                put(("," if sizes else "") + "\n" + json.dumps(entry, ensure_ascii=False))
                sizes[entry["name"]] = entry["samples"]
        with appearing(out / SIZES) as other:
            json.dump(sizes, other, indent=1)
        files = {name: _digest(out / name) for name in (REJECTS, SIZES)}
        put(f'\n], "files": {json.dumps(files)}, "seal": "')
        file.write(seal.hexdigest() + '"}\n')


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --------------------------------------------------------------------------------- preparing pairs


def _ignore_warnings() -> None:
    """Large images: ours is --max-pixels. Odd metadata: a worker's warning reaches nobody."""
    warnings.simplefilter("ignore")


def _prepare(options: PackOptions, pair: Pair | Reject) -> _Packed | Reject:
    """A worker's part: read, check and lay out one pair."""
    if isinstance(pair, Reject):
        return pair
    try:
        data = pair.image.read()
        stored = images.prepare(
            data,
            max_pixels=options.max_pixels,
            check=options.decode_check,
            resize=options.resize,
        )
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
        "json": json.dumps(facts, ensure_ascii=False).encode(),
    }
    return _Packed(stretch(pair.key, contents), stored.reencoded)
