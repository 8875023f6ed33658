"""The true classes of each image, from a table, and how well they are found. M classes."""

import difflib
import json
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from textwrap import shorten as cut
from typing import Literal, TextIO

import numpy as np
import pandas as pd

from ..config.fields import shorten
from ..errors import InputError
from ..evaluation import classification
from ..packing.image_store import stem
from ..runtime import atomic
from .image_inputs import ImageSet
from .prompts import open_table, read_table

Uncertain = Literal["ones", "zeros", "ignore"]
_IMAGE = ["image", "id", "file", "path", "filename", "file_name", "image_id", "image index"]
_LABEL = ["label", "class", "labels", "findings", "finding labels"]
_OTHERS = ["split", "patient", "patient_id", "study", "group", "slice"]  # no findings
_CODES = {"0": 0, "0.0": 0, "False": 0, "1": 1, "1.0": 1, "True": 1, "": -1}
_UNCERTAIN = {"ones": 1, "zeros": 0, "ignore": -1}
_NORMAL = ("no finding", "none", "normal")  # no class is true, where none has that name


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
    """Read a table of labels (for its kinds see `packing.table_files`), in one of two forms.

    Either a column of names (`label`, `class`, `labels` or `findings`; `a|b` for several), or one
    column for each class, of 0 and 1, blank where it is unknown, -1 where it is uncertain. Capitals
    don't count in names, where these differ otherwise.

    Args:
        option: that names the file, for errors.
        file: with a column of images: `image`, `id`, `file`, `path`, `filename`, ...
        names: of the M classes; columns of others are passed over, and a class without a column is
            unknown. None: all that the table has.
        uncertain: what -1 is taken for; ignore, or None: unknown.
        aliases: of each class, other names.

    Raises:
        InputError: no such table, an unknown class, a cell that is no label, an image with two
            labels, or a class with two columns.
    """
    where = f"{option}: {file}"
    header = open_table(option, file).names()
    lower = {column.lower(): column for column in header}
    image, label = (next((lower[n] for n in known if n in lower), "") for known in (_IMAGE, _LABEL))
    if not image:
        raise InputError(f"{where}: no column of images: {', '.join(_IMAGE)}")
    if names is None and not label:
        names = [column for column in header if column and column.lower() not in _IMAGE + _OTHERS]
    class_of = _finder(names or (), aliases)
    columns = [c for c in header if c not in (image, label) and class_of(c) is not None]
    if bool(columns) == bool(label):
        problem = f"{label!r} and {columns[0]!r} both hold some" if label else "there are none"
        raise InputError(f"{where}: labels: {problem}; one column of names, or one for each class")
    if twice := [c for n, c in enumerate(columns) if class_of(c) in map(class_of, columns[:n])]:
        raise InputError(f"{where}: column {twice[0]}: an earlier one is of the same class")
    table = [*read_table(option, file, [image, *(columns or [label])], 1 if columns else 2)]
    if not table:
        raise InputError(f"{where}: no rows")
    cells = pd.DataFrame([row[1:] for _, row in table], [place for place, _ in table])
    if columns:
        numbers = _numbers(cells.set_axis(columns, axis=1), uncertain or "ignore")
    else:
        numbers = cells[0].str.replace(r"\s*\|\s*", "|", regex=True).str.get_dummies("|")
    if names is None:
        names, class_of = [*numbers], _finder([*numbers], {})
    truth = np.full((len(table), len(names)), -1 if columns else 0, np.int8)
    for name, column in numbers.items():
        if (m := class_of(str(name))) is not None:
            truth[:, m] = np.maximum(truth[:, m], column)
        elif str(name).casefold() not in _NORMAL:
            near = difflib.get_close_matches(str(name), names, 3) or [*names[:5]]
            listed = cut(", ".join(near), 110, placeholder=" ...")
            wrong = f"{column.idxmax()}: {str(name)[:40]!r} is no candidate"
            raise InputError(f"{wrong}; the nearest are {listed}")
    rows = dict[str, np.ndarray]()
    for (place, [named, *_]), row in zip(table, truth, strict=True):
        path = str(PurePosixPath(named.replace("\\", "/")))  # without ./
        if not np.array_equal(rows.setdefault(path, row), row):
            raise InputError(f"{place}: {path} has another label before")
    return LabelTable(where, tuple(names), rows)


def _finder(
    names: Sequence[str], aliases: Mapping[str, Sequence[str]]
) -> Callable[[str], int | None]:
    """Finds a class by its name or alias; in other capitals too, where these differ otherwise."""
    pairs = [(word, m) for m, name in enumerate(names) for word in (name, *aliases.get(name, ()))]
    times = Counter(word for word, _ in {(word.casefold(), m) for word, m in pairs})
    small = {word.casefold(): m for word, m in pairs if times[word.casefold()] == 1}
    known = small | dict(pairs)
    return lambda word: known.get(word, known.get(word.casefold()))


def _numbers(cells: pd.DataFrame, uncertain: Uncertain) -> pd.DataFrame:
    """What the cells of columns of classes say; their index is where they stand."""
    codes = _CODES | dict.fromkeys(("-1", "-1.0"), _UNCERTAIN[uncertain])
    numbers = cells.map(codes.get)
    for row, m in np.argwhere(numbers.isna().to_numpy())[:1]:
        bad = f"{cells.index[row]}: {cells.columns[m]}: {str(cells.iat[row, m])[:40]!r}"
        raise InputError(f"{bad}: wanted is 0, 1, -1 (uncertain) or nothing (unknown)")
    return numbers


class Labels:
    """True candidates of a set of images, and the probabilities that these got.

    Args:
        table: of the M candidates; each image has one.
        images: N images.

    Attributes:
        missing, unused: images without a row, rows without an image: they don't count.

    Raises:
        InputError: see `LabelTable.single` and `match`.
    """

    def __init__(self, table: LabelTable, images: ImageSet) -> None:
        self.names, labels = table.names, table.single()
        matched = match(table.where, labels, [images.name(n) for n in range(len(images))])
        self._labels = {n: labels[row] for n, row in matched.items()}
        self.missing = len(images) - len(self._labels)
        self.unused = len(labels) - len({*matched.values()})
        self._rows: list[tuple[int, np.ndarray]] = []

    def add(self, positions: Sequence[int], probabilities: np.ndarray) -> None:
        """Note what some images got: (len(positions), M)."""
        rows = zip(positions, probabilities, strict=True)
        self._rows += [(self._labels[n], row) for n, row in rows if n in self._labels]

    def report(self, out: TextIO, file: str | None) -> None:
        """Write the figures of `classification.measure` to a file where one is named; print them.
        InputError: no image with a label could be read. WorkError: the file can't be written.
        """
        if not self._rows:
            raise InputError("--labels: no image with a label can be read")
        labels, probabilities = map(np.stack, zip(*self._rows, strict=True))  # (N,), (N, M)
        figures = classification.measure(self.names, labels, probabilities)
        if file is not None:
            Path(file).parent.mkdir(parents=True, exist_ok=True)
            with atomic.atomic_file(Path(file)) as partial:
                text = json.dumps(figures, indent=2, ensure_ascii=False)
                partial.write_text(text + "\n", encoding="utf-8")
            print(f"written to {file}", file=out)
        print(classification.text(figures), file=out)


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
    paths = [Path(name).absolute().as_posix() for name in names]
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
