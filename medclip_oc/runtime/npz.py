"""Arrays in an .npz, a row for each of its `ids`: written whole, read without trust."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np

from ..config.fields import shorten
from ..errors import InputError
from .atomic import atomic_file

_KINDS = {"Uiu": "text or whole numbers", "U": "text", "f": "floats", "iu": "whole numbers"}


def write(path: Path, **arrays: np.ndarray) -> None:
    """Write a file, or raise WorkError."""
    with atomic_file(path) as partial, partial.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def read(
    path: Path,
    wanted: Mapping[str, tuple[int, str]],
    optional: Collection[str],
    aliases: Mapping[str, Sequence[str]] = {},
) -> dict[str, np.ndarray]:
    """The arrays that are wanted: name -> dimensions and kinds (see `_KINDS`).

    Where a name is absent, the first of its aliases that is there counts. InputError: no such file,
    or a damaged one; an array is absent and not optional, of another shape or kind, or has other
    rows than the first; there is no row; a text is empty, or can't be printed in a line.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        with ZipFile(path) as file:
            members = file.infolist()
            held = sum(member.file_size for member in members)
            # zeros can be packed to a thousandth; testzip finds any change, of a name too
            if held > 100 * path.stat().st_size or file.testzip() is not None:
                raise ValueError
            raw: Any = file.fp
            raw.seek(-12, 2)  # its end has their number: a damaged length in the list hides some
            if int.from_bytes(raw.read(2), "little") != len(members):
                raise ValueError
        with np.load(path, allow_pickle=False) as arrays:
            names = {name: [name, *aliases.get(name, ())] for name in wanted}
            there = {name: [each for each in names[name] if each in arrays.files] for name in names}
            found = {name: arrays[own[0]] for name, own in there.items() if own}
        texts = [t for a in found.values() if a.dtype.kind == "U" for t in a.ravel().tolist()]
    except Exception as error:  # of any kind: numpy and zipfile read what others wrote
        problem = "damaged, or not a readable .npz: make it again"
        if "Object arrays" in str(error):
            problem = "holds Python objects: save ids by .astype(str), other arrays as numbers"
        raise InputError(f"{path}: {problem}") from None
    if missing := [name for name in wanted if name not in found and name not in optional]:
        raise InputError(f"{path}: lacks {', '.join(missing)}; it holds {shorten(arrays.files)}")
    size = len(np.atleast_1d(next(iter(found.values()))))
    for name, array in found.items():
        dimensions, kinds = wanted[name]
        if array.ndim != dimensions or array.dtype.kind not in kinds or len(array) != size:
            own = f"{name} is {array.dtype} of shape {array.shape}"
            needed = f"{size} rows in {dimensions} dimension(s) of {_KINDS[kinds]} are needed"
            raise InputError(f"{path}: {own}, where {needed}")
    if not all(array.size for array in found.values()):
        raise InputError(f"{path}: holds no pair, or an array without columns")
    if bad := [text for text in texts if not text or not text.isprintable()]:
        raise InputError(f"{path}: {bad[0][:40]!a} is no id: one line of printable letters is")
    return found
