"""The true text of each image, from a table, and how well it is found."""

import json
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import TextIO

import numpy as np

from ..errors import InputError
from ..evaluation import classification
from ..packing.image_store import stem
from ..runtime import atomic
from .image_inputs import ImageSet
from .prompts import read_table


class Labels:
    """True candidates of a set of images, and the probabilities that these got.

    Args:
        file: a table with `image` (or `id`, `file`, `path`: the image's path, its file name, or
            that without ending) and `label` (or `class`).
        names: of the M candidates.
        images: N images.

    Attributes:
        missing: images without a label: they don't count.

    Raises:
        InputError: no such table, a label that is no candidate, an image with two labels, or no
            image with any.
    """

    def __init__(self, file: str, names: Sequence[str], images: ImageSet) -> None:
        self.names = names
        by_image, self._labels = _read(file, names), dict[int, int]()
        for n in range(len(images)):
            base = PurePath(images.name(n)).name
            for key in (stem(base), base, images.name(n)):  # the longest name last: it counts
                if key in by_image:
                    self._labels[n] = by_image[key]
        if not self._labels:
            raise InputError(f"--labels: {file}: none of its rows names an image of --images")
        self.missing = len(images) - len(self._labels)
        self._rows: list[tuple[int, np.ndarray]] = []

    def add(self, positions: Sequence[int], probabilities: np.ndarray) -> None:
        """Note what some images got: (len(positions), M)."""
        rows = zip(positions, probabilities, strict=True)
        self._rows += [(self._labels[n], row) for n, row in rows if n in self._labels]

    def report(self, out: TextIO, file: str | None) -> None:
        """Write the figures of `classification.measure` to a file where one is named; print them.

        Raises:
            InputError: no image with a label could be read.
            WorkError: the file can't be written.
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
        print(classification.text(figures), file=out)


def _read(file: str, names: Sequence[str]) -> dict[str, int]:
    """Image -> index of its true candidate."""
    indices = {name: index for index, name in enumerate(names)}
    labels: dict[str, int] = {}
    columns = ["image|id|file|path", "label|class"]
    for where, [image, label] in read_table("--labels", file, columns):
        if label not in indices:
            some = ", ".join(list(indices)[:5]) + (", ..." if len(indices) > 5 else "")
            raise InputError(f"{where}: {label!r} is no candidate; those are {some}")
        if labels.setdefault(image, indices[label]) != indices[label]:
            raise InputError(f"{where}: {image} has another label before")
    return labels
