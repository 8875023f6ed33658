"""Writing shards: a source's pairs in, a shard folder out (data/shards.py describes and reads it).

The tars are a function of the source and the options alone: the number of workers, the clock and
the user leave no trace. Each file appears whole or not at all, `index.json` last, so that a folder
with an index is a finished one. A killed packing resumes after its last finished shard
(journal.py), and ends with the same bytes. Memory doesn't grow with the data: a bounded number of
pairs is underway, and what is known of the shards waits on disk.
"""

import csv
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from ..data.index import INDEX, REJECTS, SIZES, VERSION
from ..errors import InputError, WorkError
from ..imaging.decode import MAX_PIXELS
from ..runtime.atomic import PARTIAL
from ..runtime.progress import Progress
from ..runtime.workers import BATCH, ordered_map
from .journal import JOURNAL, Journal, alone_in, read_head, refuse_other
from .report import PackReport
from .samples import Packed, fetch, ignore_warnings, lay_out, prepare
from .sources import Pair, Reject, Source
from .tar_writer import write_shards

_OURS = re.compile(
    r"((train|valid|test)-\d{6}\.tar|(index|sizes|audit)\.json|rejects\.csv|audit\.html)(\.partial)?"
    r"|unfinished\.jsonl"
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
    max_pixels: int = MAX_PIXELS
    """Larger images are rejected."""
    resize: int | None = None
    """Store larger images with their shorter side at so many pixels. None: as they are."""
    drop_leaks: bool = False
    """The source is one without its leaks; noted here, so that packings can't mix."""


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
    resize = 1 if options.resize is None else options.resize
    if min(options.samples_per_shard, resize, workers) < 1:
        raise InputError("samples-per-shard, resize and workers are at least 1")
    check_folder(out, options, overwrite=overwrite)
    rows = {split: source.count(split) for split in source.splits}
    about_source = {"form": source.form, "splits": list(source.splits), **source.fingerprints()}
    head = {"version": VERSION, "options": asdict(options), "source": about_source}
    try:
        out.mkdir(parents=True, exist_ok=True)
        with alone_in(out):
            if overwrite:
                _clear(out)
            if (out / INDEX).exists():
                return _finished(out, head)
            with Journal(out, head) as journal:
                return _Packing(source, options, journal, head, workers).run(rows)
    except OSError as error:
        raise WorkError(f"{error.filename or out}: {error.strerror or error}") from error


def check_folder(out: Path, options: PackOptions, *, overwrite: bool = False) -> None:
    """Refuse at once what `pack` would refuse later, as far as it can be told without the source.

    Raises:
        InputError: a finished packing with other options is there, or tars that are not ours.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: not a folder")
    if overwrite or (out / JOURNAL).exists():
        return
    if (out / INDEX).is_file():
        refuse_other(out, read_head(out / INDEX)["options"], asdict(options))
    elif tars := len(list(out.glob("*.tar"))):
        raise InputError(
            f"{out}: holds {tars} tars that are not ours, or of an earlier version (no {INDEX}, "
            f"no {JOURNAL}); choose another --out, or --overwrite"
        )


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
    report.before = report.read.total()
    for shard in index["shards"]:
        _check_shard(out, shard)
        report.add_shard(shard)
    with (out / REJECTS).open(newline="", encoding="utf-8") as file:
        report.rejected.update((row["split"], row["reason"]) for row in csv.DictReader(file))
    return report


def _clear(out: Path) -> None:
    (out / INDEX).unlink(missing_ok=True)  # first: without it, the rest is known to be unfinished
    for path in out.iterdir():
        if _OURS.fullmatch(path.name):
            path.unlink()


class _Packing:
    """A packing underway. What is done is written to the journal and counted in the report."""

    def __init__(
        self,
        source: Source,
        options: PackOptions,
        journal: Journal,
        head: Mapping[str, Any],
        workers: int,
    ) -> None:
        self._source, self._options, self._journal = source, options, journal
        self._head, self._workers, self._report = head, workers, PackReport()

    def run(self, rows: Mapping[str, int]) -> PackReport:
        """Resume where an earlier run ended, to the end.

        Args:
            rows: split -> rows that its table has.
        """
        report, ended = self._report, set[str]()
        for line in self._journal.lines():
            if line["shard"]:
                _check_shard(self._journal.folder, line["shard"])
            else:
                ended.add(line["split"])
            report.add(line)
        report.before = report.read.total()
        with Progress(sum(rows.values()), "images", "pack", report.before) as progress:
            for split in self._source.splits:
                if split not in ended:
                    self._pack(split, progress)
                read, packed = report.read[split], report.packed[split]
                rejected = report.rejected_of(split)
                if not rows[split] == read == packed + rejected:
                    raise WorkError(
                        f"{split}: {rows[split]} rows counted, {read} read, {packed} packed + "
                        f"{rejected} rejected; did the source change meanwhile?"
                    )
        self._journal.write_rejects()
        counts = {"read": dict(report.read), "reencoded": dict(sorted(report.reencoded.items()))}
        self._journal.write_index({**self._head, "counts": counts})
        self._journal.remove()
        return report

    def _pack(self, split: str, progress: Progress) -> None:
        """Write the shards of a split that aren't there yet."""
        read, reencoded, rejects = self._report.read[split], Counter[str](), list[list[str]]()

        def accepted(results: Iterable[Packed | Reject]) -> Iterator[Packed]:
            """Count every outcome, note the rejected, pass the others on."""
            nonlocal read
            for result in results:
                read += 1
                progress.update()
                if isinstance(result, Reject):
                    rejects.append([result.id, result.split, result.reason, result.detail])
                    continue
                if result.reencoded:
                    reencoded[result.reencoded] += 1
                yield result

        def note(shard: Mapping[str, Any] | None) -> None:
            line: dict[str, Any] = {"split": split, "shard": shard, "read": read}
            line |= {"reencoded": dict(reencoded), "rejects": rejects}
            self._journal.write(line)
            self._report.add(line)
            reencoded.clear()
            rejects.clear()

        pairs = accepted(self._prepared(islice(self._source.records(split), read, None)))
        size, first = self._options.samples_per_shard, self._report.shards[split]
        with warnings.catch_warnings():
            ignore_warnings()  # for all threads at once: within one, each would undo the others'
            for shard in write_shards(self._journal.folder, split, pairs, size, first):
                note(shard)
        if not self._report.packed[split]:  # the next run looks at it again
            self._journal.write_rejects(rejects)
            reason, most = Counter(reason for *_, reason, _ in rejects).most_common(1)[0]
            raise WorkError(
                f"{split}: no pair could be packed; {most} of {read}: {reason} (see "
                f"{self._journal.folder / REJECTS})"
            )
        note(None)

    def _prepared(self, records: Iterable[Pair | Reject]) -> Iterator[Packed | Reject]:
        max_pixels, decode = self._options.max_pixels, self._options.decode_check
        layout = partial(lay_out, max_pixels=max_pixels, decode=decode, resize=self._options.resize)
        if decode or self._options.resize is not None:
            own = partial(prepare, layout)
            return ordered_map(own, records, self._workers, start=ignore_warnings)
        # reading and hashing let other threads run; the rest is too little to share out
        threads = max(2, self._workers)
        batch = max(BATCH, _FETCHED // threads)
        return map(layout, ordered_map(fetch, records, threads, batch=batch, threads=True))


def _check_shard(out: Path, shard: Mapping[str, Any]) -> None:
    """A shard that an earlier run wrote must still be there."""
    path = out / shard["name"]
    if not path.is_file() or path.stat().st_size != shard["bytes"]:
        raise InputError(
            f"{path}: lost or changed since it was packed; begin again with --overwrite"
        )
