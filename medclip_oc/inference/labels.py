"""The true text of each image, from a table, and how well it is found."""

from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from ..errors import InputError
from ..evaluation import classification
from ..packing.image_store import stem
from ..packing.tables import Table
from .image_inputs import ImageSet


class Truth:
    """True candidates of a set of images, and the probabilities that these got.

    Args:
        file: a table with `image` (or `id`, `file`, `path`: the image's path, its file name, or
            that without ending) and `label` (or `class`).
        names: of the M candidates.
        images: N images.

    Raises:
        InputError: no such table, a label that is no candidate, an image with two labels, or no
            image with any.
    """

    def __init__(self, file: str, names: Sequence[str], images: ImageSet) -> None:
        self.names = names
        labels = _read(file, names)
        found = ((n, _label_of(labels, images.name(n))) for n in range(len(images)))
        self._known = {n: label for n, label in found if label is not None}
        if not self._known:
            raise InputError(f"--labels: {file}: none of its rows names an image of --images")
        self.unknown = len(images) - len(self._known)
        """Images without a label: they don't count."""
        self._labels: list[int] = []
        self._rows: list[np.ndarray] = []

    def add(self, positions: Sequence[int], probabilities: np.ndarray) -> None:
        """Note what some images got: (len(positions), M)."""
        for position, row in zip(positions, probabilities, strict=True):
            if position in self._known:
                self._labels.append(self._known[position])
                self._rows.append(row)

    def figures(self) -> dict[str, Any]:
        """See `classification.measure`.

        Raises:
            InputError: no image with a label could be read.
        """
        if not self._rows:
            raise InputError("--labels: no image with a label can be read")
        return classification.measure(self.names, np.array(self._labels), np.stack(self._rows))


def _read(file: str, names: Sequence[str]) -> dict[str, int]:
    """Image -> place of its true candidate."""
    path = Path(file)
    if not path.is_file():
        raise InputError(f"--labels: {file}: no such file")
    places = {name: place for place, name in enumerate(names)}
    found: dict[str, int] = {}
    for row in Table((path,)).rows(["image|id|file|path", "label|class"]):
        image, label = (str(value).strip() for value in row.values)
        where = f"--labels: {file}: {row.location}"
        if row.problem or not image:
            raise InputError(f"{where}: {row.problem or 'names no image'}")
        if label not in places:
            some = ", ".join(list(places)[:5]) + (", ..." if len(places) > 5 else "")
            raise InputError(f"{where}: {label!r} is no candidate; those are {some}")
        if found.setdefault(image, places[label]) != places[label]:
            raise InputError(f"{where}: {image} has another label before")
    return found


def _label_of(labels: dict[str, int], image: str) -> int | None:
    base = PurePath(image).name
    return next((labels[key] for key in (image, base, stem(base)) if key in labels), None)
