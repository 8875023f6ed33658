"""Writing shards: a source's pairs in, a shard folder out (shards.py describes and reads it).

The tars are a function of the source and the options alone: the number of workers, the clock and
the user leave no trace. Each file appears whole or not at all, `index.json` last, so that a folder
with an index is a finished one. A killed packing goes on after its last whole shard (journal.py),
and ends with the same bytes. Memory doesn't grow with the data: a bounded number of pairs is
underway, and what is known of the shards waits on disk.
"""

import csv
import json
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

from ..data.index import INDEX, REJECTS, SIZES, VERSION
from ..errors import InputError, WorkError
from ..imaging import encode
from ..runtime.progress import Progress
from ..runtime.workers import BATCH, ordered_map
from . import journal
from .index_files import REJECT_COLUMNS, write_index, write_rejects
from .journal import Event, Journal
from .samples import Packed, fetch, ignore_warnings, prepare
from .sources import Pair, Reject, Source
from .tar_writer import PARTIAL, Stretch, write_shards

_OURS = re.compile(
    r"(train|valid|test)-\d{6}\.tar|(index|sizes|audit)\.json|rejects\.csv|audit\.html"
)
_FETCHED = 128
"""Images that few threads read together: each hand-over between threads costs as much as a read."""


@dataclass(frozen=True)
class PackOptions:
    """What decides the content of the tars, besides the source."""

    samples_per_shard: int = 1000
    """Pairs per tar; the last one of a split has the rest."""
    decode_check: bool = True
    """Decode each image, even where its bytes are kept as they are."""
    max_pixels: int = encode.MAX_PIXELS
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

    def reasons(self, split: str) -> Counter[str]:
        """Reason -> rejected rows of a split."""
        return Counter({why: n for (where, why), n in self.rejected.items() if where == split})

    def check(self, split: str, rows: int) -> None:
        """Nothing disappears: every row of the table was read, and each one packed or rejected.

        Raises:
            WorkError: the numbers differ.
        """
        read, packed, rejected = self.read[split], self.packed[split], self.reasons(split).total()
        if not rows == read == packed + rejected:
            raise WorkError(
                f"{split}: {rows} rows counted, {read} read, {packed} packed + {rejected} "
                "rejected; did the source change meanwhile?"
            )


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
        workers: processes that read and decode; threads that read, where nothing is to be decoded.
            They change the time only.
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
            **source.fingerprints(),
        },
    }
    try:
        if out.exists() and not out.is_dir():
            raise InputError(f"{out}: not a folder")
        out.mkdir(parents=True, exist_ok=True)
        with journal.alone_in(out):
            if done := _claim(out, head, overwrite):
                return done
            return _Packing(source, out, options, head, workers).run(rows)
    except OSError as error:
        raise WorkError(f"{error.filename or out}: {error.strerror or error}") from error


def check_folder(out: Path, options: PackOptions, *, overwrite: bool = False) -> None:
    """Refuse at once what `pack` would refuse later, as far as it can be told without the source.

    Raises:
        InputError: shards packed with other options are there, finished or not.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: not a folder")
    if overwrite:
        return
    for name, end in ((INDEX, "]}"), (journal.NAME, "")):
        if not (out / name).is_file():
            continue
        with (out / name).open(encoding="utf-8") as file:
            first = file.readline().strip() + end
        try:
            head = json.loads(first)
            found = head.get("head", head)["options"]
        except (ValueError, KeyError, TypeError, AttributeError):
            return  # for pack to say
        if different := journal.differences(found, asdict(options)):
            raise InputError(
                f"{out}: holds shards packed with other settings: {different}; choose another "
                "--out, or --overwrite"
            )


def _claim(out: Path, head: dict[str, Any], overwrite: bool) -> PackReport | None:
    """Look whether the folder is for us; clear it of earlier shards if that is allowed.

    Returns:
        The report of the finished packing that is there already, and the same.
    """
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
    for name in (REJECTS, SIZES):
        if not (out / name).is_file():
            raise InputError(f"{out / name}: missing; pack again with --overwrite")
    # killed between the last two steps, or while an audit was written
    for path in [out / journal.NAME, *out.glob(f"*{PARTIAL}")]:
        path.unlink(missing_ok=True)
    report = PackReport(Counter(counts["read"]), reencoded=Counter(counts["reencoded"]))
    report.before = report.read.total()
    for entry in index["shards"]:
        event = {"shard": entry, "read": counts["read"][entry["split"]], "reencoded": {}}
        _check_shard(out, event)
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


class _Packing:
    """A packing underway. What happens is written to the journal and counted in the report."""

    def __init__(
        self, source: Source, out: Path, options: PackOptions, head: dict[str, Any], workers: int
    ) -> None:
        self._source, self._out, self._options = source, out, options
        self._head, self._workers = head, workers
        self._report = PackReport()

    def run(self, rows: dict[str, int]) -> PackReport:
        """Go on where an earlier run ended, to the end.

        Args:
            rows: split -> rows that its table has.
        """
        self._journal, ended = Journal(self._out, self._head), set[str]()
        try:
            for event in self._journal.events():
                _check_shard(self._out, event)
                self._report.add(event)
                ended.add(event.get("end", ""))
            self._report.before = self._report.read.total()
            total = sum(rows.values())
            with Progress(total, "images", "pack", self._report.before) as progress:
                for split in self._source.splits:
                    if split not in ended:
                        self._pack(split, progress)
                    self._report.check(split, rows[split])
            self._finish()
        finally:
            self._journal.close()
        return self._report

    def _note(self, event: Event) -> None:
        self._journal.write(event)
        self._report.add(event)

    def _pack(self, split: str, progress: Progress) -> None:
        """Write the shards of a split that aren't there yet."""
        read, reencoded = self._report.read[split], Counter[str]()

        def accepted(results: Iterable[Packed | Reject]) -> Iterator[Stretch]:
            """Count every outcome, write down the rejected, pass the others on."""
            nonlocal read
            for result in results:
                read += 1
                progress.update()
                if isinstance(result, Reject):
                    self._note({"reject": [getattr(result, name) for name in REJECT_COLUMNS]})
                    continue
                if result.reencoded:
                    reencoded[result.reencoded] += 1
                yield result.stretch

        results = self._prepared(islice(self._source.records(split), read, None))
        size, first = self._options.samples_per_shard, self._report.shards[split]
        with warnings.catch_warnings():
            ignore_warnings()  # for all threads at once: within one, each would undo the others'
            for entry in write_shards(self._out, split, accepted(results), size, first):
                self._note({"shard": entry, "read": read, "reencoded": dict(reencoded)})
                reencoded.clear()
        if not self._report.packed[split]:
            self._give_up(split, read)
        self._note({"end": split, "read": read})

    def _prepared(self, records: Iterable[Pair | Reject]) -> Iterator[Packed | Reject]:
        options = self._options
        work = partial(
            prepare,
            max_pixels=options.max_pixels,
            check=options.decode_check,
            resize=options.resize,
        )
        if options.decode_check or options.resize is not None:
            return ordered_map(work, records, self._workers, start=ignore_warnings)
        if self._workers > 1:  # all the rest is so little that sharing it out would cost more
            batch = max(BATCH, _FETCHED // self._workers)
            records = ordered_map(fetch, records, self._workers, batch=batch, threads=True)
        return map(work, records)

    def _give_up(self, split: str, read: int) -> NoReturn:
        """A split has no pair at all: rejects.csv tells why. The next run looks at it again.

        Raises:
            WorkError: always.
        """
        self._write_rejects()
        reason, most = self._report.reasons(split).most_common(1)[0]
        raise WorkError(
            f"{split}: no pair could be packed; {most} of {read}: {reason} (see "
            f"{self._out / REJECTS})"
        )

    def _write_rejects(self) -> None:
        rows = (event["reject"] for event in self._journal.events() if "reject" in event)
        write_rejects(self._out, rows)

    def _finish(self) -> None:
        """Make the files that readers use from the journal, the index last; then forget it."""
        self._write_rejects()
        events, report = self._journal.events, self._report
        counts = {"read": dict(report.read), "reencoded": dict(sorted(report.reencoded.items()))}
        entries = (event["shard"] for event in events() if "shard" in event)
        write_index(self._out, {**self._head, "counts": counts}, entries)
        self._journal.remove()


def _check_shard(out: Path, event: Event) -> None:
    """A shard that an earlier run wrote must still be there."""
    if entry := event.get("shard"):
        path = out / entry["name"]
        if not path.is_file() or path.stat().st_size != entry["bytes"]:
            raise InputError(
                f"{path}: lost or changed since it was packed; begin again with --overwrite"
            )
