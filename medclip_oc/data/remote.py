"""Shards behind URLs and `pipe:` commands: webdataset reads them front to back, in our order.

Such a shard can't be read by position. So S shards are dealt to a few lanes, in a new order each
time through the list, and every global batch takes an equal part from each lane:

    shard number n of the endless sequence goes to lane n mod lanes
    within a shard, blocks of `window` pairs are shuffled in memory
    global batch k takes its pairs [l G / lanes, (l + 1) G / lanes) from lane l

That depends on the seed, the list of shards, the number of lanes and the window, not on ranks and
workers. A rank reads the lanes that its part of the batch touches. The pairs of a shard that was
read to its end are remembered in the user's cache folder: to resume, shards that are known to be
over are passed over, and of each lane at most one shard is read again.

G pairs over all ranks.
"""

import hashlib
import os
import re
import tarfile
import time
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass
from http.client import HTTPException
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar
from urllib.error import HTTPError
from urllib.request import urlopen

import numpy as np
from webdataset.cache import FileCache
from webdataset.gopen import gopen, gopen_schemes
from webdataset.tariterators import group_by_keys

from ..errors import InputError, WorkError
from ..runtime.atomic import atomic_file
from .index import CAPTION, choose_captions, endings_of, expand_braces, is_blank, parse_facts, short
from .sampler import permuted
from .shards import SETS, Sample, read_caption
from .tars import walk

_URL = re.compile(r"(?:pipe:|[a-z][a-z0-9+.-]*://)")
_INDEX_STEP = 1 << 32  # between the numbers of the first pairs of two shards
_SHARDS, _BLOCKS = 1, 2  # which permutation
SILENCE_SECONDS = 60.0  # of a web server, which is then given up
_WAITS = (1.0, 2.0, 4.0, 8.0)  # seconds, between five tries to open a shard
_BUSY = (408, 429, 500, 502, 503, 504)  # answers of HTTP that may be others soon


@dataclass(frozen=True, slots=True)
class Streamed:
    """A pair that came out of a stream: it can't be read again by its position."""

    epoch: int
    index: int  # number of its shard in the list times 2 ** 32, plus its place there
    sample: Sample
    location: str  # for messages: "train-000003.tar: KEY"
    passed_over: tuple[str, ...]  # entries read before it that are no pair, a line each


def is_stream(where: str | Sequence[str]) -> bool:
    """Whether the shards are behind URLs or commands; InputError: some are and some are not."""
    remote = [bool(_URL.match(name)) for name in _names(where)]
    if any(remote) and not all(remote):
        raise InputError(f"{where}: streamed and local shards can't be mixed")
    return any(remote)


def _names(where: str | Sequence[str]) -> list[str]:
    names = [where] if isinstance(where, str) else where
    return [part for name in names for part in name.split(SETS)]


@dataclass
class ShardStream:
    """Pairs of shards that are read front to back; InputError: a pattern that can't be expanded."""

    where: str | Sequence[str]
    """URLs and `pipe:` commands, perhaps with brace patterns, joined by `::` or in a list."""
    _: KW_ONLY
    seed: int
    lanes: int  # shards read at once; fewer where there are fewer shards
    window: int  # pairs shuffled at once within a shard
    caption_key: str = CAPTION
    cache: Path | None = None  # folder that keeps the shards; None: they are streamed each time
    fingerprint: ClassVar[None] = None  # unlike a ShardSet's: nobody knows what will come

    def __post_init__(self) -> None:
        self.urls = [url for name in _names(self.where) for url in expand_braces(name)]
        self.lanes = min(self.lanes, len(self.urls))
        user, name = os.environ.get("XDG_CACHE_HOME") or "~/.cache", _hash("\n".join(self.urls))
        self._counts_folder = Path(user).expanduser() / "medclip_oc" / f"stream-{name}"

    def shares(self, start: int, steps: int, size: int, own: range) -> Iterator[list[Streamed]]:
        """As `Order.shares`; each is fetched by a thread while the one before it is in use."""
        shares, pool = self._shares(start // size, steps, size, own), ThreadPoolExecutor(1)
        try:
            coming = pool.submit(next, shares, None)
            while (share := coming.result()) is not None:
                coming = pool.submit(next, shares, None)
                yield share
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _shares(self, done: int, steps: int, size: int, own: range) -> Iterator[list[Streamed]]:
        lanes = min(self.lanes, size)  # or a lane would have no part in a batch
        bounds = [lane * size // lanes for lane in range(lanes + 1)]
        parts = [range(*bounds[lane : lane + 2]) for lane in range(lanes)]  # places in a batch
        sources = {
            lane: self.lane(lane, lanes, done * len(part))
            for lane, part in enumerate(parts)
            if part.start < own.stop and own.start < part.stop
        }
        for _ in range(steps):
            share = list[Streamed]()
            for lane, source in sources.items():
                # all of the lane's part, so that it stands where it stands on every other rank
                pairs = zip(parts[lane], source, strict=False)
                share += [pair for place, pair in pairs if place in own]
            yield share

    def lane(self, number: int, lanes: int, start: int = 0) -> Iterator[Streamed]:
        """The endless stream of one of so many lanes, without its first `start` pairs. WorkError: a
        shard can't be read, or not one of a whole round holds a pair.
        """
        place, empty, passed_over = number, 0, list[str]()
        while True:
            epoch, slot = divmod(place, len(self.urls))
            order = permuted(self.seed, epoch, len(self.urls), np.array([slot]), stream=_SHARDS)
            shard = int(order[0])
            remembered, count = self._counts_folder / str(shard), None
            with suppress(OSError, ValueError):
                count = int(remembered.read_text(encoding="utf-8"))
            if count is None or count > start:
                count = 0
                for count, pair in enumerate(self._shard(shard, epoch, passed_over), 1):
                    if count > start:
                        yield pair
                with suppress(OSError, WorkError):  # then a resumed run reads more again
                    remembered.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                    with atomic_file(remembered, shared=True) as partial:
                        partial.write_text(str(count), encoding="utf-8")
            start = max(0, start - count)
            empty = 0 if count else empty + 1
            if empty >= 2 * len(self.urls):  # the last of one round may be the first of the next
                raise WorkError(f"{self.urls[shard]}: no readable pair, nor in any other shard")
            place += lanes

    def _shard(self, shard: int, epoch: int, passed_over: list[str]) -> Iterator[Streamed]:
        """The pairs of a shard, block by block, each block in an order of its own."""
        url, stream = self.urls[shard], (_BLOCKS << 40) + shard
        samples = enumerate(read_tar(url, self.cache, passed_over, self.caption_key))
        while block := list(islice(samples, self.window)):
            key = epoch * _INDEX_STEP + block[0][0]
            for place in permuted(self.seed, key, len(block), np.arange(len(block)), stream=stream):
                row, sample = block[place]
                location, lines = f"{short(url)}: {sample.key}", tuple(passed_over)
                passed_over.clear()
                yield Streamed(epoch, shard * _INDEX_STEP + row, sample, location, lines)


def read_tar(
    url: str, cache: Path | None, passed_over: list[str], caption_key: str = CAPTION
) -> Iterator[Sample]:
    """The pairs of a tar, front to back; `passed_over` takes a line for each entry that is none.
    InputError: none has what `caption_key` names. WorkError: the URL can't be opened, its command
    fails, or the tar is cut.
    """
    stream, named = _open(url, cache), caption_key == CAPTION
    try:
        # a link has no content: what it links to is gone by
        files = walk(stream, "r|*", lambda tar, one: one.isfile() and tar.extractfile(one).read())
        for members in group_by_keys(files):
            key, (extension, ending) = members["__key__"], endings_of(members, caption_key)
            try:
                facts = parse_facts(members.get("json") or b"")
                named |= ending == caption_key or caption_key in facts
                text = read_caption(members.get(ending) or b"")
                caption, *further = choose_captions(text, facts, caption_key)
                if extension is None or is_blank(caption):
                    raise ValueError("no caption" if extension else "no image")
            except ValueError as error:
                passed_over.append(f"{short(url)}: {key}: {error}")
                continue
            yield Sample(key, members[extension], extension, caption, facts, tuple(further))
        stream.close()  # OSError: the command failed
    except (OSError, ValueError, EOFError, HTTPException, tarfile.TarError, zlib.error) as error:
        if cache is not None:  # the next run shall fetch it again
            (cache / _cache_name(url)).unlink(missing_ok=True)
        reason = _reason(error)
        raise WorkError(f"{short(url)}: the shard can't be read to its end: {reason}") from None
    finally:  # perhaps in the middle
        if process := getattr(stream, "proc", None):
            process.kill()  # or a slow command would be waited for
        with suppress(OSError):
            stream.close()
    if not named:
        reason = f"no pair has KEY.{caption_key}, nor that key in KEY.json"
        raise InputError(f"{short(url)}: data.caption_key: {reason}; leave it out for KEY.txt")


def _open(url: str, cache: Path | None) -> Any:
    try:
        if cache is not None:
            files = FileCache(str(cache), url_to_name=_cache_name, validator=None)
            url = files.get_file(url)
        return gopen(url)
    except Exception as error:  # each kind of URL has errors of its own
        raise WorkError(f"{short(url)}: can't be opened: {_reason(error)}") from None


def _open_web(url: str, *_: Any) -> Any:
    """An http(s) URL, to read. webdataset's curl waits for ever, and begins again in the middle."""
    for wait in _WAITS:
        try:
            return urlopen(url, timeout=SILENCE_SECONDS)
        except OSError as error:
            if isinstance(error, HTTPError) and error.code not in _BUSY:
                raise
        time.sleep(wait)
    return urlopen(url, timeout=SILENCE_SECONDS)


gopen_schemes |= {"http": _open_web, "https": _open_web}


def _cache_name(url: str) -> str:
    return f"{_hash(url)}.tar"


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _reason(error: Exception) -> str:
    """What went wrong, in one line, without the insides that webdataset tells of as well."""
    text = str((error.args or [error])[0])
    if code := re.search(r"\bexit (-?\d+) \(", text):
        return f"the command that reads it ended with exit code {code[1]}"
    return getattr(error, "strerror", None) or text.partition(" @ <")[0]
