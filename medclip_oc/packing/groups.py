"""Pairs that belong together, of a patient, a study, an article: their names, and their split.

docs/data.md says which names become salted hashes (HMAC-SHA256, RFC 2104).
"""

import hashlib
import hmac
import secrets
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import cache
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..config.packing import MakeShardsConfig, parse_shares
from ..data.index import INDEX, JOURNAL
from ..errors import InputError
from ..imaging.decode import is_dicom
from ..runtime.atomic import atomic_file
from ..runtime.extras import needed
from ..runtime.progress import print_line
from .sources import SPLITS, Pair, Part, Reject, Source
from .tables import parse_captions

SPLITS_FILE = "splits.csv"
_TAGS = ["dicom:PatientID", "dicom:StudyInstanceUID", "dicom:AccessionNumber"]


class Grouped(Source):
    """A source whose pairs tell their `group` and `study`; perhaps under hashed ids, or split by
    group. InputError: no such column, no salt, a source that has splits, or too few groups.
    """

    def __init__(self, source: Source, config: MakeShardsConfig) -> None:
        self.form, self.splits, self._hash_ids = source.form, source.splits, config.hash_ids
        self._places = list[tuple[str, int]]()  # of each record: split, and rows
        self._tag = cache(read_tag)  # once, not for each split
        [part, *_], out = source.parts, config.path("out").resolve()
        given = {"group": config.group_column, "study": config.study_column}
        if config.split_by:
            if source.splits[1:] or "split" in part.columns:
                raise InputError(f"--split-by: the source has splits: {', '.join(source.splits)}")
            first = next((it for it in source.records(part.split) if isinstance(it, Pair)), None)
            if first and not any(given.values()) and read_tag(first.image.read.args[0], _TAGS[0]):
                given["group"] = _TAGS[0]
        self._columns = {what: column for what, column in given.items() if column}
        if {*self._columns.values()} & {*_TAGS}:
            needed("pydicom", "dicom")
        own, public = (table.names() if table else [] for table in (part.captions, part.license))
        kept, self._public = dict(part.kept), {*public} - {*own}
        for what, column in {**self._columns, "stratify": config.stratify_column}.items():
            found = own if what == "stratify" else [*own, *public, *_TAGS]
            if column and (column not in found or what in part.kept):
                problem = f"no column {column!r}; found {', '.join(found):.150}"
                problem = f"--keep-columns has a {what} already" if what in part.kept else problem
                raise InputError(f"--{what}-column: {problem}")
            if column in part.kept.values() and what != "stratify":
                raise InputError(f"--{what}-column {column}: --keep-columns has it, in plain")
            kept |= {what: column} if column in own else {}
        parts = [replace(each, kept=kept, numbered=self._hash_ids) for each in source.parts]
        if "study" in kept:
            parts = [replace(each, reports=reports_of(each)) for each in parts]
        path = config.path("group_salt") if config.group_salt else Path(f"{out}.salt")
        salted = self._hash_ids or config.split_by or {*self._columns.values()} - self._public
        if config.group_salt and not salted:
            raise InputError("--group-salt: of no use; no group, study, split or id is hashed")
        self._salt = read_salt(path, out, overwrite=config.overwrite) if salted else b""
        self._source = replace(source, parts=parts)
        if config.split_by:
            self._divide(config, out / SPLITS_FILE)

    def count(self, split: str) -> int:
        """Rows of a split."""
        rows = sum(rows for place, rows in self._places if place == split)
        return rows if self._places else self._source.count(split)

    def records(self, split: str) -> Iterator[Pair | Reject]:
        """Those of the source or, where it is split here, those that went to this split."""
        records = self._source.records(self._source.splits[0] if self._places else split)
        for record, (place, _) in zip(records, self._places or repeat((split, 1)), strict=False):
            if place == split:
                yield replace(self._named(record)[0], split=split)

    def fingerprints(self) -> dict[str, str]:
        """Those of the source, and what names and splits depend on."""
        places = hashlib.sha256(str(self._places).encode()).hexdigest()
        own = {"names": f"{self._columns}, {self._hash_ids}", "places": places}
        return self._source.fingerprints() | own | {"salt": self._hash("")}

    def _hash(self, name: str) -> str:
        """16 hex letters; those of "" tell salts apart."""
        data = name.encode(errors="surrogatepass")
        return hmac.new(self._salt, data, "sha256").hexdigest()[:16]

    def _named(self, record: Pair | Reject) -> tuple[Pair | Reject, str]:
        """A record under the names that are stored, and its stratum."""
        identity = self._hash(record.id) if self._hash_ids else record.id
        if isinstance(record, Reject):
            told = record.detail.partition(": ")[0] if self._hash_ids else record.detail
            return replace(record, id=identity, detail=told), ""
        facts = dict(record.facts)
        stratum, key = facts.pop("stratify", ""), identity if self._hash_ids else record.key
        for what, column in self._columns.items():
            name = facts.get(what) or (facts.get("license") or {}).get(column, "")
            if not (name := name.strip() or self._tag(record.image.read.args[0], column)):
                reject = record.reject(f"no {what}", f"nothing in {column}")
                return replace(reject, id=identity), ""
            # numbers of studies may begin anew with each patient
            whole = f"{facts['group']} {name}" if what == "study" and "group" in facts else name
            facts[what] = name if column in self._public else self._hash(whole)
        return replace(record, id=identity, key=key, facts=facts), stratum

    def _divide(self, config: MakeShardsConfig, file: Path) -> None:
        """Tell each record's split by its group, kept in a file; a reject's is the first."""
        whole, seen, pairs = self.splits[0], list[tuple[str, int]](), Counter[tuple[str, str]]()
        self._source.count(whole)
        for record in self._source.records(whole):
            (named, stratum), group = self._named(record), ""
            if isinstance(named, Pair):
                group = named.facts.get("group", named.facts.get("study")) or self._hash(record.id)
                pairs[group, stratum] += 1
            seen.append((group, record.rows))
        known = read_splits(file, self._hash("")) if file.exists() else {}
        shares = parse_shares(config.split_by or "")
        found = assign(pairs, known, shares, config.split_seed)
        used = {found[group] for group, _ in pairs} or {whole}
        self.splits = tuple(split for split in SPLITS if split in used)
        if pairs and {it for it, share in zip(SPLITS, shares, strict=True) if share} - used:
            raise InputError(f"--split-by: too few groups, all are in {' and '.join(self.splits)}")
        self._places = [(found.get(group, self.splits[0]), rows) for group, rows in seen]
        by = next(iter(self._columns.values()), "image (--group-column says what belongs together)")
        stay = f"; {file} has {len(known):,} groups already, which stay" if known else ""
        print_line(f"split by {by}{stay}")
        table = pd.DataFrame(sorted(found.items()), columns=["group", "split"])
        self.beside = [(file.name, table.assign(salt=self._hash("")).to_csv(index=False))]


def reports_of(part: Part) -> dict[tuple[str, ...], list[str]]:
    """The captions of each study that has a view without one: its report stands for all of them."""

    def told() -> Iterator[tuple[tuple[str, ...], list[str]]]:
        for row, cells in part.rows(with_images=False):
            with suppress(ValueError):  # of which its own row is told
                if not row.problem:
                    yield part.study_of(cells), parse_captions(cells["caption"])

    bare = Counter(study for study, captions in told() if not captions and study[-1])
    reports = dict[tuple[str, ...], list[str]]()
    for study, captions in told() if bare else ():
        if captions and study in bare:
            reports[study] = [*dict.fromkeys(reports.get(study, []) + captions)]
    if reports:
        taken = sum(bare[study] for study in reports)
        print_line(f"{part.captions}: {taken:,} images without a caption take their study's")
    return reports


def read_splits(file: Path, salt: str) -> dict[str, str]:
    """Group -> split, as an earlier packing left it; InputError: of another salt, or damaged."""
    with suppress(OSError, ValueError, KeyError):
        table = pd.read_csv(file, dtype=str, keep_default_na=False)
        found = dict(zip(table["group"], table["split"], strict=True))
        if {*found.values()} <= {*SPLITS} and {*table["salt"]} <= {salt}:
            return found
    wanted = "groups, their splits, and the salt that is given; restore both"
    raise InputError(f"{file}: wanted are {wanted}, or remove it to split anew")


def assign(
    pairs: Mapping[tuple[str, str], int], known: dict[str, str], shares: list[float], seed: int
) -> dict[str, str]:
    """Group -> split: the `known` ones stay, the others fill up the shares of train, valid, test.

    `pairs` counts those of each (group, stratum); a group's stratum is the commonest of its pairs.
    New groups come stratum by stratum, large ones first, of about a size (bits of it) as seed and
    names decide. Each goes to the split of which most is open that has room for half of it; what a
    stratum leaves open, the next makes up. So splits that are new are off their shares by no more
    pairs than the largest group has.
    """
    sizes, strata, found, left = Counter[str](), dict[str, str](), dict(known), Counter[str]()
    for (group, stratum), number in sorted(pairs.items(), key=lambda item: (item[1], item[0])):
        sizes[group] += number
        strata[group] = stratum
    before = [sum(sizes[it] for it in sizes if known.get(it) == split) for split in SPLITS]
    lacking, new = np.multiply(shares, sum(before)) - before, sizes.keys() - known.keys()
    order = dict[str, tuple[str, int, bytes]]()
    for group in new:
        mixed = hashlib.sha256(f"{seed} {group}".encode()).digest()
        order[group] = strata[group], -sizes[group].bit_length(), mixed
        left[strata[group]] += sizes[group]
    for group in sorted(new, key=order.__getitem__):
        lacking += np.multiply(shares, left.pop(strata[group], 0))  # as its stratum begins
        room = np.where(2 * lacking >= sizes[group], lacking / np.maximum(shares, 1e-9), 0)
        split = int((room if room.any() else lacking).argmax())
        lacking[split] -= sizes[group]
        found[group] = SPLITS[split]
    return found


def read_salt(path: Path, out: Path, *, overwrite: bool) -> bytes:
    """The salt in a file, made where nothing was packed with one before; InputError: none there."""
    where = f"--group-salt {path}"
    if path.resolve().is_relative_to(out):
        raise InputError(f"{where}: inside --out; keep it apart from the shards")
    if not path.exists():
        salted = [out / name for name in (SPLITS_FILE, *(() if overwrite else (INDEX, JOURNAL)))]
        if there := next(filter(Path.exists, salted), None):
            raise InputError(f"{where}: lost? {there} is there; restore it, or begin elsewhere")
        with atomic_file(path, durable=True) as partial:
            partial.touch(0o600)
            partial.write_text(secrets.token_hex(32), encoding="ascii")
        print_line(f"{path}: a new salt; keep it, and keep it apart from the shards")
    with suppress(OSError, ValueError):
        if len(salt := bytes.fromhex(path.read_text(encoding="ascii"))) == 32:
            return salt
    raise InputError(f"{where}: no salt; wanted are 64 hex letters")


def read_tag(path: Any, column: str) -> str:
    """What a `dicom:` column says of a file, or a folder's first that has it; "": no such element,
    or no DICOM file.
    """
    if isinstance(path, str) and Path(path).is_dir():
        told = (read_tag(each, column) for each in sorted(Path(path).iterdir()))
        return next(filter(None, told), "")
    with suppress(Exception), Path(path).open("rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they may quote what departs from the standard
        tags: list[Any] = [column.partition(":")[2]]
        if column in _TAGS and is_dicom(file.read(132)):
            from pydicom import dcmread  # an extra

            file.seek(0)
            dataset = dcmread(file, stop_before_pixels=True, specific_tags=tags, force=True)
            return str(dataset.get(tags[0]) or "").strip()
    return ""  # a damaged file raises whatever pydicom trips over
