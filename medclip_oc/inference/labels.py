"""The true text of each image, from a table, and how well it is found."""

import json
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path, PurePosixPath
from typing import TextIO

import numpy as np

from ..config.fields import shorten
from ..errors import InputError
from ..evaluation import classification
from ..packing.image_store import stem
from ..runtime import atomic
from .image_inputs import ImageSet
from .prompts import read_table


class Labels:
    """True candidates of a set of images, and the probabilities that these got.

    Args:
        file: a table with `image` (or `id`, `file`, `path`, `filename`) and `label` (or `class`).
            An image is named by its path or the end of that, such as `normal/a.png` or `a.png`; the
            extension may be absent. Failing that, the file name decides, where it is unique.
        names: of the M candidates.
        images: N images.

    Attributes:
        missing, unused: images without a row, rows without an image: they don't count.

    Raises:
        InputError: no such table, a label that is no candidate, an image with two labels, a row
            that names two images, or no image with a label.
    """

    def __init__(self, file: str, names: Sequence[str], images: ImageSet) -> None:
        self.names, labels = names, _read(file, names)
        matched = _match(file, labels, [images.name(n) for n in range(len(images))])
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


def _read(file: str, names: Sequence[str]) -> dict[str, int]:
    """Image -> index of its true candidate."""
    indices = {name: index for index, name in enumerate(names)}
    labels: dict[str, int] = {}
    columns = ["image|id|file|path|filename|file_name", "label|class"]
    for where, [named, label] in read_table("--labels", file, columns):
        image = str(PurePosixPath(named.replace("\\", "/")))  # without ./
        if label not in indices:
            some = ", ".join(list(indices)[:5]) + (", ..." if len(indices) > 5 else "")
            raise InputError(f"{where}: {label!r} is no candidate; those are {some}")
        if labels.setdefault(image, indices[label]) != indices[label]:
            raise InputError(f"{where}: {image} has another label before")
    return labels


def _match(file: str, rows: Collection[str], names: Sequence[str]) -> dict[int, str]:
    """Which row names each image: position -> row. See `Labels`."""
    paths = [Path(name).absolute().as_posix() for name in names]
    matched = {n: row for n, path in enumerate(paths) if (row := _longest_end(path, rows))}
    if not matched:
        row_of, path_of = _by_file_name(rows), _by_file_name(paths)
        places = {path: n for n, path in enumerate(paths)}
        matched = {places[path_of[name]]: row_of[name] for name in row_of.keys() & path_of}
    if not matched:
        pair = f"{shorten(next(iter(rows), ''))}, {shorten(names[0])}; write paths or file names"
        raise InputError(f"--labels: {file}: none of its rows names an image of --images: {pair}")
    image_of = dict[str, str]()
    for n, row in matched.items():
        if image_of.setdefault(row, paths[n]) != paths[n]:
            both = f"{shorten(image_of[row])} and {shorten(paths[n])}"
            raise InputError(f"--labels: {file}: {row} is the end of {both}: write more of it")
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
