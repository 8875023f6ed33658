"""Writing shards: a source's pairs in, a shard folder out (shards.py describes and reads it).

The tars are a function of the source and the options alone: the number of workers, the clock and
the user leave no trace. Each file appears whole or not at all, `index.json` last, so that a folder
with an index is a finished one. Memory doesn't grow with the data: a bounded number of pairs is
underway, and the index is spooled to disk shard by shard.
"""

import csv
import hashlib
import json
import re
import signal
import warnings
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from . import images
from .errors import InputError, WorkError
from .shard_writer import PARTIAL, Stretch, appearing, stretch, write_shards
from .shards import INDEX, REJECTS, SIZES, VERSION
from .sources import Pair, Reject, Source

_BATCH = 8  # pairs per task: enough to hide the cost of handing a task over
_OURS = re.compile(r"(train|valid|test)-\d{6}\.tar|(index|sizes)\.json|rejects\.csv")


@dataclass(frozen=True)
class PackOptions:
    """What decides the content of the tars, besides the source."""

    samples_per_shard: int = 1000
    """Pairs per tar; the last one of a split has the rest."""
    decode_check: bool = True
    """Decode each image, even where its bytes are kept as they are."""
    max_pixels: int = images.MAX_PIXELS
    """Larger images are rejected."""


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
    """Pack all splits of a source.

    Args:
        source: where the pairs come from.
        out: the shard folder; made if need be.
        options: what to put in.
        workers: processes that read and decode. They change the time only.
        overwrite: replace the shards that are in the folder.

    Returns:
        The counts; read = packed + rejected holds for each split.

    Raises:
        InputError: options out of range, a broken table, or shards there already.
        WorkError: not a single pair of a split could be packed, or the disk or a worker failed.
    """
    for name, value in (("samples-per-shard", options.samples_per_shard), ("workers", workers)):
        if value < 1:
            raise InputError(f"{name}: {value} is less than 1")
    rows = {split: source.count(split) for split in source.splits}
    try:
        _claim(out, overwrite)
        return _pack(source, rows, out, options, workers)
    except OSError as error:
        raise WorkError(f"{error.filename or out}: {error.strerror or error}") from error
    except BrokenProcessPool:
        raise WorkError("a worker process died; out of memory? Try fewer --workers") from None


def _claim(out: Path, overwrite: bool) -> None:
    """Make the folder ours: create it, or clear it of earlier shards if that is allowed."""
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: not a folder")
    out.mkdir(parents=True, exist_ok=True)
    tars = sorted(out.glob("*.tar"))
    indexed = (out / INDEX).exists()
    if (tars or indexed) and not overwrite:
        state = "" if indexed else f", without {INDEX}: unfinished, or not ours"
        raise InputError(f"{out}: holds shards already ({len(tars)} tars{state}); see --overwrite")
    (out / INDEX).unlink(missing_ok=True)  # first: without it, the rest is known to be unfinished
    for path in out.iterdir():
        if _OURS.fullmatch(path.name.removesuffix(PARTIAL)):
            path.unlink()


def _pack(
    source: Source, rows: dict[str, int], out: Path, options: PackOptions, workers: int
) -> PackReport:
    report, sizes = PackReport(), dict[str, int]()
    with ExitStack() as stack:
        # Left in reverse order, so the index appears last.
        index = stack.enter_context(appearing(out / INDEX))
        rejects = csv.writer(stack.enter_context(appearing(out / REJECTS)), lineterminator="\n")
        pool = stack.enter_context(_pool(workers))
        bar = stack.enter_context(tqdm(total=sum(rows.values()), unit=" images", disable=None))
        rejects.writerow(["id", "split", "reason", "detail"])
        head = {"version": VERSION, "options": asdict(options)}
        index.write(json.dumps(head).removesuffix("}") + ', "shards": [')
        for split in source.splits:
            results = _prepared(pool, source.records(split), options, in_flight=2 * workers)
            accepted = _accepted(results, split, report, rejects, bar)
            for entry in write_shards(out, split, accepted, options.samples_per_shard):
                index.write(("," if sizes else "") + "\n" + json.dumps(entry, ensure_ascii=False))
                sizes[entry["name"]] = entry["samples"]
                report.shards[split] += 1
                report.bytes[split] += entry["bytes"]
            _check_counts(report, split, rows[split])
        index.write("\n]}\n")
        with appearing(out / SIZES) as file:
            json.dump(sizes, file, indent=1)
    for split in source.splits:
        if not report.packed[split]:
            why = Counter({why: n for (where, why), n in report.rejected.items() if where == split})
            reason, number = why.most_common(1)[0]
            raise WorkError(
                f"{split}: no pair could be packed; {number} of {rows[split]}: {reason} (see "
                f"{out / REJECTS})"
            )
    return report


def _check_counts(report: PackReport, split: str, rows: int) -> None:
    """Nothing disappears: every row of the table was read, and each one packed or rejected."""
    rejected = sum(n for (where, _), n in report.rejected.items() if where == split)
    read, packed = report.read[split], report.packed[split]
    if not rows == read == packed + rejected:
        raise WorkError(
            f"{split}: {rows} rows counted, {read} read, {packed} packed + {rejected} rejected; "
            "did the source change meanwhile?"
        )


def _accepted(
    results: Iterable[_Packed | Reject], split: str, report: PackReport, rejects: Any, bar: tqdm
) -> Iterator[Stretch]:
    """Keep the books: count every outcome, write down the rejected, pass the others on."""
    for result in results:
        report.read[split] += 1
        bar.update()
        if isinstance(result, Reject):
            report.rejected[split, result.reason] += 1
            rejects.writerow([result.id, result.split, result.reason, result.detail])
            continue
        if result.reencoded:
            report.reencoded[result.reencoded] += 1
        yield result.stretch
        report.packed[split] += 1  # counted once it is written


# --------------------------------------------------------------------------------- preparing pairs


@contextmanager
def _pool(workers: int) -> Iterator[Executor | None]:
    """Worker processes; None for one worker: this process does it."""
    if workers == 1:
        yield None
        return
    # spawn: the same on every system, and safe beside threads
    pool = ProcessPoolExecutor(workers, get_context("spawn"), _start_worker)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the parent, which ends the workers


def _prepared(
    pool: Executor | None, records: Iterator[Pair | Reject], options: PackOptions, in_flight: int
) -> Iterator[_Packed | Reject]:
    """Each record's outcome, in the records' order; at most `in_flight` batches are underway."""
    batches = iter(lambda: list(islice(records, _BATCH)), [])
    if pool is None:
        for batch in batches:
            yield from _prepare_batch(batch, options)
        return
    pending: deque[Any] = deque()
    for batch in batches:
        pending.append(pool.submit(_prepare_batch, batch, options))
        if len(pending) >= in_flight:
            yield from pending.popleft().result()
    while pending:
        yield from pending.popleft().result()


def _prepare_batch(records: list[Pair | Reject], options: PackOptions) -> list[_Packed | Reject]:
    with warnings.catch_warnings():
        # Ours is --max-pixels; and a worker's warning about odd metadata reaches nobody.
        warnings.simplefilter("ignore")
        return [_prepare(each, options) if isinstance(each, Pair) else each for each in records]


def _prepare(pair: Pair, options: PackOptions) -> _Packed | Reject:
    try:
        data = pair.image.read_bytes()
        stored = images.prepare(data, max_pixels=options.max_pixels, check=options.decode_check)
    except images.BadImage as error:
        return Reject(pair.id, pair.split, error.reason, f"{pair.image.name}: {error.detail}")
    except OSError as error:
        detail = f"{pair.image.name}: {error.strerror}"
        return Reject(pair.id, pair.split, "image unreadable", detail)
    facts: dict[str, Any] = {
        "id": pair.id,
        "split": pair.split,
        "width": stored.width,
        "height": stored.height,
        "mode": stored.mode,
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    if pair.concepts is not None:
        facts["concepts"] = list(pair.concepts)
    if stored.reencoded:
        facts["reencoded"] = stored.reencoded
    contents = {
        stored.extension: stored.data,
        "txt": pair.caption.encode(),
        "json": json.dumps(facts, ensure_ascii=False).encode(),
    }
    return _Packed(stretch(pair.id, contents), stored.reencoded)
