"""Where the pairs of some shards lie.

Shards of ours come with an index.json (see shards.py). Tars of another maker are walked through,
header by header; what that finds is kept beside them, where it can be, in the same form, gzipped.
Its name holds a hash of the tars' sizes and times of change.

n pairs of a shard. Offsets and sizes are in bytes.
"""

import glob
import gzip
import hashlib
import json
import math
import os
import re
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import braceexpand
import numpy as np

from ..errors import InputError, WorkError
from ..runtime.atomic import atomic_file
from ..runtime.git_lfs import pointer
from ..runtime.progress import print_line
from .tars import walk

VERSION = 1
INDEX, SIZES, REJECTS = "index.json", "sizes.json", "rejects.csv"
JOURNAL = "unfinished.jsonl"  # of a packing under way
CAPTION = "caption"  # where, by default, a pair without a .txt has its caption
CAPTIONS = "captions"  # of KEY.json: all of a pair's, where packing found several
IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
DAMAGED = (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError)
RESTORE = "restore it, or pack the folder again"
_ABSENT = (-1, 0)  # the place of a .txt or .json that a pair hasn't got
_SPLIT = re.compile(r"^(train|val|test)(?:ing|id|idation)?[^a-z]")  # of the name of a tar
_MOST_NAMES = 1_000_000  # of a brace pattern
_BRACES = re.compile(r"\{([^{}]*)\}")
_OTHERS = "a source? make_shards packs it; gunzip .tar.gz; images alone: zeroshot --images"
_THREADS = 16  # tars walked through at once: on a shared disk, the time is in waiting


@dataclass(frozen=True)
class Shard:
    """A tar, and where its pairs lie."""

    path: Path
    split: str
    bytes: int
    identity: str  # hash of the content or, without an index.json, of where its pairs lie
    keys: np.ndarray  # (n,) UTF-8
    extensions: np.ndarray  # (n,) int8, places in IMAGE_EXTENSIONS
    places: np.ndarray  # (n, 6) int64: offset and size of image, text and JSON
    skipped: int  # entries of a foreign tar without an image or a caption, or with an empty one
    names: dict[int, str]
    """Offset -> name of a member that isn't KEY.extension: in capitals, or what a link links to."""

    def __len__(self) -> int:
        return len(self.keys)


def find(where: str | Sequence[str], split: str, caption_key: str, bare: bool) -> list[Shard]:
    """The shards of one set; what they hold besides pairs is said. See `ShardSet.open`."""
    if isinstance(where, str) and os.path.isdir(Path(where).expanduser()):  # noqa: PTH112
        shards = _of_folder(Path(where).expanduser(), split, caption_key, bare)
    else:
        patterns = [where] if isinstance(where, str) else where
        shards = _of_tars((path for name in patterns for path in expand(name)), caption_key, bare)
    if not any(map(len, shards)):
        ends = shards[:: max(1, len(shards) - 1)]  # images may lie in one tar, texts in another
        members = " and in another tar ".join(_endings(shard.path) for shard in ends) or "none"
        hint = "KEY.txt must be beside KEY.jpg, .png or .webp (tar --sort=name), KEY without a dot"
        hint += "; unpack and pack other images; other captions: data.caption_key, --caption-key"
        raise InputError(f"{short(str(where))}: no readable pair among {members}; {hint}")
    if skipped := sum(shard.skipped for shard in shards):
        hint = "tar --sort=name brings the members of a pair together"
        say(f"{where}: {skipped:,} entries passed over: no image, or no caption beside it; {hint}")
    if twice := sum(len(shard) - len({*shard.keys.tolist()}) for shard in shards):
        say(f"{where}: {twice:,} pairs have an earlier one's key in their tar; all are taken")
    return shards


def _of_folder(folder: Path, split: str, caption_key: str, bare: bool) -> list[Shard]:
    """The shards of a split of a shard folder; InputError: as `ShardSet.open`."""
    if not (folder / INDEX).is_file():
        return _of_tars(_without_index(folder, split), caption_key, bare)
    shards = _read(folder / INDEX)
    splits = dict.fromkeys(shard.split for shard in shards)
    if split not in splits:
        names = ", ".join(splits) or "none"
        raise InputError(f"{folder}: no such split {split!r}; there are: {names}")
    for stray in {*folder.absolute().glob(f"{split}-*.tar")} - {shard.path for shard in shards}:
        raise InputError(f"{stray}: {INDEX} doesn't name it; move it away, or pack again")
    return _there([shard for shard in shards if shard.split == split])


def _without_index(folder: Path, split: str) -> list[Path]:
    """Another tool's tars in a folder, or one level down, but those named after another split."""
    if (folder / JOURNAL).exists():
        raise InputError(f"{folder}: its packing isn't finished; give that command again")
    tars = sorted(folder.glob("*.tar")) or sorted(folder.glob("*/*.tar"))
    splits = ["".join(_SPLIT.findall(str(tar.relative_to(folder)))) for tar in tars]
    if not any(splits) and (above := _SPLIT.fullmatch(f"{folder.absolute().name.lower()}/")):
        splits = [above[1]] * len(tars)
    own = [tar for tar, name in zip(tars, splits, strict=True) if split.startswith(name)]
    if not own:
        there = f"by names there are: {', '.join(dict.fromkeys(splits))}; a glob of tars takes all"
        there = there if tars else f"no tars; {_OTHERS}"
        raise InputError(f"{folder}: no split {split!r}: no {INDEX}, {there}")
    say(f"{folder}: no {INDEX}; {len(own):,} of its {len(tars):,} tars are read for {split!r}")
    return own


def _of_tars(paths: Iterable[Path], caption_key: str, bare: bool) -> list[Shard]:
    """The shards named one by one; an index.json beside them serves those that it names."""
    paths = [path.absolute() for path in paths]
    folders = {path.parent for path in paths if (path.parent / INDEX).is_file()}
    known = {shard.path: shard for folder in folders for shard in _read(folder / INDEX)}
    if foreign := [path for path in paths if path not in known]:
        stats = ((str(path), path.stat()) for path in foreign)  # CAPTIONS: since lists are read
        stamps = [(CAPTIONS, name, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for name, s in stats]
        name = hashlib.sha256(json.dumps([caption_key, bare, stamps]).encode()).hexdigest()[:16]
        kept = foreign[0].parent / f".index-{name}.json.gz"
        try:
            found = _parse(kept, gzip.decompress(kept.read_bytes()))
        except (OSError, EOFError, zlib.error, InputError):  # absent or damaged
            with ThreadPoolExecutor(_THREADS) as pool:
                entries = list(pool.map(lambda path: scan(path, caption_key, bare), foreign))
            found = [parse_shard(kept.parent, entry) for entry in entries]
            with suppress(OSError, WorkError), atomic_file(kept, shared=True) as partial:
                content = json.dumps({"version": VERSION, "shards": entries}).encode()
                partial.write_bytes(gzip.compress(content, 1))
        known |= {shard.path: shard for shard in found}
    return _there([known[path] for path in paths])


def _there(shards: list[Shard]) -> list[Shard]:
    """The shards, if all are there, at the size that is known."""
    for shard in shards:
        try:
            actual = shard.path.stat().st_size
        except OSError as error:
            reason = f"{error.strerror}, but {INDEX} names it"
            raise InputError(f"{shard.path}: {reason}; {RESTORE}") from None
        if actual != shard.bytes:
            problem = pointer(shard.path) or "damaged or changed"
            raise InputError(f"{shard.path}: {actual} bytes, {INDEX} says {shard.bytes}; {problem}")
    return shards


def expand_braces(pattern: str) -> list[str]:
    """The names that a brace pattern such as `{000..012}.tar` stands for; InputError: its braces
    don't match, lie within one another, or stand for over _MOST_NAMES.
    """
    try:
        if "{" in _BRACES.sub("", pattern):
            raise ValueError("unbalanced braces, or braces within braces")
        if math.prod(map(_count_names, _BRACES.findall(pattern))) > _MOST_NAMES:
            raise ValueError(f"stands for over {_MOST_NAMES:,} names")
        return list(braceexpand.braceexpand(pattern))
    except ValueError as error:
        raise InputError(f"{short(pattern)}: {error}") from None


def _count_names(braces: str) -> int:
    """How many names a pair of braces stands for at most."""
    if ends := re.match(r"(-?\d+)\.\.(-?\d+)", braces):
        return abs(int(ends[2]) - int(ends[1])) + 1
    return 52 if ".." in braces else braces.count(",") + 1  # 52: of letters


def short(name: str) -> str:
    """A path or a URL, for messages."""
    return name if len(name) <= 100 else f"{name[:60]} ... {name[-35:]}"


def expand(pattern: str) -> list[Path]:
    """The tars that a brace pattern, a glob or a path names, in order; InputError: there is none,
    or it is no file that can be read twice.
    """
    paths: list[Path] = []
    for name in expand_braces(str(Path(pattern).expanduser())):
        # os.path, because Path raises where a name is too long
        matches = [name] if os.path.isfile(name) else sorted(glob.glob(name))  # noqa: PTH113, PTH207
        if not matches:
            hint = "no such shard folder or tar (tools/make_shards.py packs)"
            reason = "no file matches" if glob.has_magic(name) else hint
            origin = f", from {short(pattern)}" if name != pattern else ""
            raise InputError(f"{short(name)}: {reason}{origin}")
        paths += map(Path, matches)
    for path in paths:
        if not path.is_file():
            raise InputError(f"{path}: not a regular file; folders are joined by ::")
    return paths


def endings_of(members: dict[str, Any], key: str) -> tuple[str | None, str | None]:
    """Which of a pair's members are image and caption; a key that was named precedes KEY.txt."""
    order = ("txt", key) if key == CAPTION else (key, "txt")
    return next(filter(members.get, IMAGE_EXTENSIONS), None), next(filter(members.get, order), None)


def parse_facts(text: bytes | str) -> dict[str, Any]:
    """KEY.json; {} where it is no JSON object, as other makers' may be."""
    with suppress(ValueError):
        facts = json.loads(text)
        return facts if isinstance(facts, dict) else {}
    return {}


def choose_captions(text: str, facts: dict[str, Any], key: str) -> list[str]:
    """A pair's captions; [""]: it has none. Those in KEY.json, a text or a list, win where their
    key was named; else the member's, with all of `captions` if it is the first of these.
    """
    inside, several = _texts(facts.get(key)), _texts(facts.get(CAPTIONS))
    if not text or (inside and key != CAPTION):
        return inside or [""]
    return several if several[:1] == [text] else [text]


def _texts(value: Any) -> list[str]:
    texts = value if isinstance(value, list) else [value]
    return [*dict.fromkeys(text for text in texts if isinstance(text, str) and not is_blank(text))]


def is_blank(caption: str) -> bool:
    """Whether a caption has no letter that is seen."""
    return not any(letter.isprintable() and not letter.isspace() for letter in caption)


def say(line: str) -> None:
    """On stderr, once for all ranks."""
    if os.environ.get("RANK", "0") == "0":
        print_line(line)


def _endings(path: Path) -> str:
    """The commonest endings of a tar's members, for messages: "400 .jpg, 400 .text"."""
    with tarfile.open(path) as tar:
        names = [PurePath(name).name for name in tar.getnames()]
    counts = Counter(f".{name.partition('.')[2]:.20}" for name in names)
    return ", ".join(f"{n:,} {ending}" for ending, n in counts.most_common(4))


def _read(path: Path) -> list[Shard]:
    """The shards in an index.json, with none left out. A wrong place is found when it is read."""
    shards, numbers = _parse(path), Counter[str]()
    for shard in shards:
        name = f"{shard.split}-{numbers[shard.split]:06d}.tar"
        numbers[shard.split] += 1
        foreign = shard.names or shard.skipped or (shard.places < 0).any()
        if foreign or shard.path.name != name:
            raise InputError(f"{path}: damaged at {name}; {RESTORE}")
    sizes = path.parent / SIZES
    with suppress(OSError, *DAMAGED):
        if json.loads(sizes.read_bytes()) == {shard.path.name: len(shard) for shard in shards}:
            return shards
    reason = f"missing or damaged, or {INDEX} is: they differ in a shard"
    raise InputError(f"{sizes}: {reason}; {RESTORE}")


def _parse(path: Path, content: bytes | None = None) -> list[Shard]:
    """The shards in an index, or in its content."""

    def entry(value: dict[str, Any]) -> Any:
        return parse_shard(path.parent, value) if "members" in value else value

    try:
        # arrays at once: as objects, the whole of ten million pairs would take many gigabytes
        index = json.loads(content or path.read_bytes(), object_hook=entry)
        if index["version"] == VERSION:
            return [shard for shard in index["shards"] if shard.path]  # each has one, if it is one
    except (OSError, *DAMAGED):
        raise InputError(f"{path}: {pointer(path) or f'damaged; {RESTORE}'}") from None
    version = f"version {index['version']!r:.40}, this program reads version {VERSION}"
    raise InputError(f"{path}: {version}; pack it again")


def parse_shard(folder: Path, entry: dict[str, Any]) -> Shard:
    """What an entry of the index says; one of DAMAGED is raised where that can't be."""
    keys = [key.encode() for key in entry["keys"]]
    kinds = [IMAGE_EXTENSIONS.index(extension) for extension in entry["extensions"]]
    places = np.array(entry["members"], np.int64).reshape(-1, 6)  # (n, 6)
    if not len(keys) == len(kinds) == len(places) == len(entry["members"]) == entry["samples"]:
        raise ValueError("lists of different lengths")
    name, split, identity = (entry[text] + "" for text in ("name", "split", "sha256"))
    size, skipped = (int(np.int64(n)) for n in (entry["bytes"], entry.get("skipped", 0)))
    names = {int(offset): member for offset, member in entry.get("names", {}).items()}
    arrays = np.array(keys, "S"), np.array(kinds, np.int8), places
    return Shard(folder.absolute() / name, split, size, identity, *arrays, skipped, names)


def scan(path: Path, caption_key: str, bare: bool) -> dict[str, Any]:
    """Index a tar by its headers: its entry. As in webdataset, a pair's members follow one another.
    InputError: not a tar, a compressed or damaged one, or one with a member twice in a pair.
    """
    from webdataset.tariterators import group_by_keys  # imports torch, which packing doesn't need

    keys, extensions, places, skipped = [], [], [], 0
    known, names = dict[str, Any](), dict[int, str]()

    def place(_: tarfile.TarFile, member: tarfile.TarInfo) -> Any:
        """Offset and size; of a hard link, those of what it links to; None of another link."""
        found = known.get(member.linkname) if member.islnk() else None
        if member.isfile() and not member.issparse():
            found = member.offset_data, member.size
        if found and (member.islnk() or not member.name.rpartition(".")[2].islower()):
            names.setdefault(found[0], member.linkname or member.name)
        known[member.name] = found
        return found

    try:
        with path.open("rb") as file:
            for members in group_by_keys(walk(file, "r:", place)):
                key, (extension, ending) = members["__key__"], endings_of(members, caption_key)
                text, facts = (members.get(name) or _ABSENT for name in (ending, "json"))
                if ending and ending != "txt":
                    names.setdefault(text[0], f"{key}.{ending}")
                parts = (os.pread(file.fileno(), size, max(0, at)) for at, size in (text, facts))
                caption, content = (part.decode(errors="replace") for part in parts)
                caption = choose_captions(caption, parse_facts(content), caption_key)[0]
                if extension is None or (is_blank(caption) and not bare):
                    skipped += 1
                    continue
                keys.append(key)
                extensions.append(extension)
                places.append([*members[extension], *text, *facts])
        layout = "\n".join(keys).encode() + np.array(places, np.int64).tobytes()
    except (tarfile.TarError, OSError, UnicodeError) as error:
        problem = pointer(path) or f"not a readable, uncompressed tar: {error}; {_OTHERS}"
        raise InputError(f"{path}: {problem}") from None
    except ValueError as error:
        raise InputError(f"{path}: {str(error.args[0]).partition(' in tar file')[0]}") from None
    about = {"name": str(path), "split": "", "samples": len(keys), "bytes": path.stat().st_size}
    identity = {"sha256": hashlib.sha256(layout).hexdigest(), "skipped": skipped, "names": names}
    return {**about, **identity, "keys": keys, "extensions": extensions, "members": places}
