"""What is true of each image, from a table, and how well it is told. N images, M classes."""

import difflib
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from textwrap import shorten as cut
from typing import Any, TextIO

import numpy as np
import pandas as pd

from ..config.evaluation import Uncertain
from ..config.fields import shorten
from ..config.inference import ZeroshotConfig
from ..data.index import say
from ..errors import InputError
from ..evaluation import classification, findings
from ..packing.image_store import stem
from ..reporting import results
from ..runtime import atomic
from .image_inputs import ImageSet, find
from .prompt_sets import PromptClass
from .prompts import NONE, open_table, read_table

Rows = list[tuple[str, list[str]]]  # where each stands, and its cells, the image first
IMAGE = ["image", "id", "file", "path", "filename", "file_name", "image_id", "image index"]
_LABEL = ["label", "class", "labels", "findings", "finding labels"]
_OTHERS = ["split", "patient", "patient_id", "study", "group", "slice"]  # no findings
_CODES = {"0": 0, "0.0": 0, "False": 0, "1": 1, "1.0": 1, "True": 1, "": -1}
_UNCERTAIN = {"ones": 1, "zeros": 0, "ignore": -1}
_MOST = 1000  # classes of a table
_NORMAL = ("no finding", "none", "normal")  # no class is true, where none has that name
_OF_RETRIEVAL = re.compile(r"-(train|valid|test|tars|features)$")  # ends names of its records
_NO_THRESHOLDS = (
    "balanced accuracy, F1, MCC are left out: they need thresholds from labels of other images, "
    "--threshold-labels"
)


@dataclass(frozen=True)
class LabelTable:
    """What a table says of its images."""

    where: str  # the option and the file, for errors
    names: tuple[str, ...]  # of the M classes
    rows: dict[str, np.ndarray]
    """Image, as the table has it -> (M,) int8: 1 true, 0 false, -1 unknown."""

    def single(self) -> dict[str, int]:
        """Image -> its one true class; InputError: it has none or several, or one is unknown."""
        for image, row in self.rows.items():
            true, unknown = ([self.names[m] for m in np.flatnonzero(row == v)] for v in (1, -1))
            if unknown or len(true) != 1:
                told = f"{unknown[0]!r} is unknown" if unknown else f"true are {true or 'none'}"
                raise InputError(f"{self.where}: {image}: {told:.80}; one class is wanted")
        return {image: int(row.argmax()) for image, row in self.rows.items()}


def read(
    option: str,
    file: str,
    names: Sequence[str] | None,
    uncertain: Uncertain | None = None,
    aliases: Mapping[str, Sequence[str]] = {},
) -> LabelTable:
    """Read a table with a column of images (`image`, `id`, `file`, `path`, ...), and either one of
    names (`label`, `class`, `labels`, `findings`; `a|b` for several), or one for each class: 0, 1,
    blank for unknown, -1 for uncertain. InputError: a mistake in it, by its row.

    Args:
        option: that names the file, for errors.
        file: see `packing.table_files`.
        names: of the M classes, in any capitals; columns of others are passed over, and a class
            without a column is unknown. None: all that the table has.
        uncertain: what -1 is taken for; None as ignore: unknown.
        aliases: of classes, other names.
    """
    where, header = f"{option}: {file}", open_table(option, file).names()
    lower = {column.lower(): column for column in header}
    image, label = (next((lower[n] for n in known if n in lower), "") for known in (IMAGE, _LABEL))
    if names is None and not label:
        names = [c for c in header if c and c.lower() not in IMAGE + _OTHERS]
    classes = _spellings(names or (), aliases)
    if label and len({*classes.values()}) < len(names or ()):
        raise InputError(f"{where}: some candidates differ in capitals alone, which labels may not")
    found = [classes.get(c.casefold()) if c not in (image, label) else None for c in header]
    columns = {c: m for c, m in zip(header, found, strict=True) if m is not None}
    if not image or bool(columns) == bool(label):
        wanted = f"images ({', '.join(IMAGE[:3])}, ...), and either of labels or of each class"
        raise InputError(f"{where}: has {_listed(header)}; wanted are columns of {wanted}")
    if twice := [c for c, m in columns.items() if found.count(m) > 1]:
        raise InputError(f"{where}: several columns of one class: {_listed(twice)}")
    table = [*read_table(option, file, [image, *(columns or [label])], 1 if columns else 2)]
    if not table:
        raise InputError(f"{where}: no rows")
    if columns:
        truth = np.full((len(table), len(names or ())), -1, np.int8)
        codes = _CODES | dict.fromkeys(("-1", "-1.0"), _UNCERTAIN[uncertain or "ignore"])
        truth[:, [*columns.values()]] = _numbers(table, [*columns], codes)
    else:
        words = pd.Series([cell for _, [_, cell] in table]).str.split("|").explode().str.strip()
        if names is None:
            names = sorted({word.casefold(): word for word in words}.values())
            classes = _spellings(names, {})
        truth = _true(table, words, names, classes)
    rows = dict[str, np.ndarray]()
    for (place, [named, *_]), row in zip(table, truth, strict=True):
        path = str(PurePosixPath(named.replace("\\", "/")))  # without ./
        if not np.array_equal(rows.setdefault(path, row), row):
            raise InputError(f"{place}: {path} has another label before")
    return LabelTable(where, tuple(names or ()), rows)


def _spellings(names: Sequence[str], aliases: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """Name or alias without capitals -> class."""
    words = [(w, m) for m, name in enumerate(names) for w in (name, *aliases.get(name, ()))]
    return {word.casefold(): m for word, m in words[::-1]}  # of equal ones the first


def _listed(words: Iterable[str]) -> str:
    return cut(", ".join(words), 110, placeholder=" ...")


def _numbers(table: Rows, columns: Sequence[str], codes: Mapping[str, int]) -> list[list[int]]:
    """What the cells of one column for each class say."""
    try:
        return [[codes[cell] for cell in cells] for _, [_, *cells] in table]
    except KeyError as error:
        place, cells = next((p, cells) for p, [_, *cells] in table if error.args[0] in cells)
        bad = f"{place}: {columns[cells.index(error.args[0])]}: {error.args[0][:40]!r}"
        raise InputError(f"{bad}: wanted is 0, 1, -1 (uncertain) or nothing (unknown)") from None


def _true(
    table: Rows, words: pd.Series, names: Sequence[str], classes: Mapping[str, int]
) -> np.ndarray:
    """(N, M) of the words in the rows' column of names; their index is the row's number."""
    found = {word: classes.get(word.casefold()) for word in words.unique()}
    for bad in (w for w, m in found.items() if m is None and w.casefold() not in _NORMAL):
        near = difflib.get_close_matches(bad, names, 3) or names[:5]
        problem = f"{bad[:40]!r} is no candidate; the nearest are {_listed(near)}"
        raise InputError(f"{table[int(words.index[words == bad][0])][0]}: {problem}")
    if len(names) > _MOST:
        raise InputError(f"{table[0][0]}: {len(names):,} different labels: a column of captions?")
    truth = np.zeros((len(table), len(names)), np.int8)
    for word, m in found.items():
        truth[words.index[words == word], [] if m is None else m] = 1
    return truth


class Labels:
    """What is true of N images, of M classes or (single) of one, and their scores: (N, M)
    probabilities, which come later; NaN of images that can't be read. InputError: see
    `LabelTable.single` and `match`; or no figure could follow.
    """

    def __init__(
        self, table: LabelTable, images: ImageSet, scores: np.ndarray, *, single: bool
    ) -> None:
        self.table, self.images, self.scores = table, images, scores
        labels: Mapping[str, Any] = table.single() if single else table.rows
        matched = match(table.where, labels, images.names(labels))
        self.truth = {n: labels[row] for n, row in matched.items()}  # by position
        self.unused = len(labels) - len({*matched.values()})
        truth = np.stack([*self.truth.values()])  # (N,) or (N, M)
        figured = np.ptp(truth) > 0 if single else (truth == 0).any(0) & (truth == 1).any(0)
        if not figured.any():
            alike = "of one class" if single else "alike in every class"
            raise InputError(f"{table.where}: all {len(truth):,} images are {alike}: no figures")
        if lacking := [] if single else [table.names[m] for m in np.flatnonzero(~figured)]:
            told = f"no positive, or no negative image of {_listed(lacking)}"
            say(f"warning: {table.where}: {told}")

    def places(self) -> list[str]:
        """Where the files with a label lie; of others the keys."""
        names = map(self.images.name, self.truth)
        return [os.path.realpath(name) if Path(name).exists() else name for name in names]

    def judged(self) -> tuple[np.ndarray, np.ndarray]:
        """Truth, (N,) or (N, M), and probabilities (N, M) of the images that were read."""
        known = [n for n in self.truth if not np.isnan(self.scores[n, 0])]
        if not known:
            raise InputError(f"{self.table.where}: no image with a label can be read")
        return np.stack([self.truth[n] for n in known]), self.scores[known]


def open_labels(
    settings: ZeroshotConfig, candidates: Sequence[PromptClass], images: ImageSet
) -> list[Labels]:
    """Those of --labels, if given, and of --threshold-labels; InputError: see `Labels`, or an image
    is in both.
    """
    names = [NONE] * (settings.threshold is not None) + [each.name for each in candidates]
    aliases, labels = {each.name: each.aliases for each in candidates}, list[Labels]()
    others, single, words = images, not settings.multi_label, settings.threshold_images
    if words:
        others = find(words, None, "--threshold-images", "valid")
    files = {"--labels": settings.labels, "--threshold-labels": settings.threshold_labels}
    for (option, file), judged in zip(files.items(), (images, others), strict=True):
        if file is not None:
            table = read(option, file, names, settings.uncertain, aliases)
            same = labels and judged is images
            scores = labels[0].scores if same else np.full((len(judged), len(names)), np.nan)
            labels.append(Labels(table, judged, scores, single=single))
    if labels[1:] and (both := {*labels[0].places()} & {*labels[1].places()}):
        problem = f"{len(both):,} images are in --labels too, such as {min(both)}"
        raise InputError(f"{labels[1].table.where}: {problem}; thresholds come from others")
    missing = len(images) - sum(len(each.truth) for each in labels if each.images is images)
    unused = sum(each.unused for each in labels)
    if labels and (missing or unused):
        counts = f"{missing:,} images have no row, {unused:,} rows have no image"
        say(f"warning: {settings.labels}: {counts}: not counted")
    return labels


def report(
    settings: ZeroshotConfig,
    candidates: Sequence[PromptClass],
    labels: Sequence[Labels],
    out: TextIO,
) -> None:
    """Print the figures of the scores that the labels have now, and `keep` them."""
    names, (truth, probabilities) = labels[0].table.names, labels[0].judged()
    how: dict[str, Any] = {"draws": settings.interval_draws, "seed": settings.seed}
    if settings.multi_label:
        how["thresholds"] = findings.thresholds(*labels[1].judged()) if labels[1:] else None
        how["min_positives"] = settings.min_positives
        figures = findings.measure(names, truth, probabilities, **how)
        lines = [results.text(figures), *([] if labels[1:] else [_NO_THRESHOLDS])]
    else:
        figures = classification.measure(names, truth, probabilities, **how)
        lines = [results.text(figures)]
    print(*lines, sep="\n", file=out)
    phrasings = {c.name: {"positive": c.positive, "negative": c.negative} for c in candidates}
    figures |= {"prompts": phrasings, "threshold_labels": settings.threshold_labels}
    places, file = labels[0].places(), settings.labels or ""
    for line in keep(figures, places, file, settings.checkpoint, settings.figures):
        print(line, file=out)


def keep(
    figures: dict[str, Any],
    images: Sequence[str],
    labels: str,
    checkpoint: str | None,
    file: str | None,
) -> list[str]:
    """Write figures, with their `task`, to a file, if one is named, and of a run's checkpoint to
    RUN/evaluations/CHECKPOINT-LABELS.json; a hash joins that name where the record there is of
    another task, or of other images. Returns lines that say so; WorkError: it can't be written.
    """
    mark = hashlib.sha256("\n".join([figures["task"], *sorted(images)]).encode()).hexdigest()
    about = {"checkpoint": checkpoint, "labels": labels, "data_fingerprint": mark}
    files, run = [Path(file)] if file else [], Path(checkpoint or "x").absolute().parent
    if run.name == "checkpoints":
        name = f"{Path(checkpoint or '').stem}-{Path(labels).stem}"
        name += "_labels" * bool(_OF_RETRIEVAL.search(name))
        path = run.parent / "evaluations" / f"{name}.json"
        if path.exists() and mark not in path.read_text(encoding="utf-8", errors="replace"):
            path = path.with_name(f"{name}-{mark[:8]}.json")
        files.append(path)
    for path in files:
        with suppress(OSError):  # writing says why
            path.parent.mkdir(parents=True, exist_ok=True)
        with atomic.atomic_file(path) as partial:
            text = json.dumps(figures | about, indent=2, ensure_ascii=False)
            partial.write_text(text + "\n", encoding="utf-8")
    return [f"written to {path}" for path in files]


def match(where: str, rows: Collection[str], names: Sequence[str]) -> dict[int, str]:
    """Which row of a table names each image: position -> row.

    An image is named by its path or the end of that, such as `normal/a.png` or `a.png`; the
    extension may be absent. Failing that, the file name decides, where it is unique.

    Args:
        where: the option and the file, for errors.
        rows: what the table calls its images.
        names: of the images: paths, or keys.

    Raises:
        InputError: a row names two images, or none names any.
    """
    here = Path.cwd()
    paths = [name if name.startswith("/") else f"{here}/{name}" for name in names]
    matched = {n: row for n, path in enumerate(paths) if (row := _longest_end(path, rows))}
    if not matched:
        row_of, path_of = _by_file_name(rows), _by_file_name(paths)
        places = {path: n for n, path in enumerate(paths)}
        matched = {places[path_of[name]]: row_of[name] for name in row_of.keys() & path_of}
    if not matched:
        pair = f"{shorten(next(iter(rows), ''))}, {shorten(names[0])}; write paths or file names"
        raise InputError(f"{where}: none of its rows names one of the images: {pair}")
    image_of = dict[str, str]()
    for n, row in matched.items():
        if image_of.setdefault(row, paths[n]) != paths[n]:
            both = f"{shorten(image_of[row])} and {shorten(paths[n])}"
            raise InputError(f"{where}: {row} is the end of {both}: write more of it")
    return matched


def _longest_end(path: str, rows: Collection[str]) -> str | None:
    """The row that is the path, or the most of its end, with or without its extension."""
    parts = path.split("/")
    ends = ("/".join(parts[start:]) for start in range(len(parts)))
    return next((row for end in ends for row in (end, stem(end)) if row in rows), None)


def _by_file_name(paths: Collection[str]) -> dict[str, str]:
    """Paths by their file names without extension, where these come once."""
    names = [stem(PurePosixPath(path).name) for path in paths]
    times = Counter(names)
    return {name: path for name, path in zip(names, paths, strict=True) if times[name] == 1}
