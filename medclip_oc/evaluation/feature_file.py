"""Files of features: ids and both matrices, so that figures can be had again without the model.

`.npz` holds arrays, `.parquet` columns of the same names; a row is a pair:

    ids             keys of the pairs, each once
    image_features  (N, D) float32
    text_features   (N, D) float32
    image_hash      int64, equal for copies of an image; may be absent
    caption_hash    int64, equal for copies of a caption; may be absent
    concepts        UMLS numbers (C0040405 is 40405): .npz (N, K) padded with 0, .parquet lists; may
                    be absent

Nothing else is needed: a file that another program made does, if it has the first three.
"""

from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np

from ..errors import InputError, WorkError

_FEATURES = ("image_features", "text_features")
_DIMENSIONS = {"image_hash": 1, "caption_hash": 1, "concepts": 2}
_FACTS = tuple(_DIMENSIONS)
_UNIT = 1e-5
"""Rows whose length is nearer to 1 than this are left as they are."""


class Features(NamedTuple):
    """What a file holds: N pairs."""

    ids: list[str]
    images: np.ndarray
    """(N, D) float32, normalised."""
    texts: np.ndarray
    """(N, D) float32, normalised."""
    image_hash: np.ndarray | None
    caption_hash: np.ndarray | None
    concepts: np.ndarray | None
    """(N, K) int32."""


def save(path: Path, features: Features) -> None:
    """Write a file of the kind that its name says.

    Raises:
        InputError: .parquet without pyarrow.
        WorkError: the place can't be written.
    """
    arrays: dict[str, Any] = {
        "ids": np.array(features.ids),
        "image_features": features.images,
        "text_features": features.texts,
        "image_hash": features.image_hash,
        "caption_hash": features.caption_hash,
        "concepts": features.concepts,
    }
    known = {name: array for name, array in arrays.items() if array is not None}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".parquet":
            _write_parquet(path, known)
        else:
            np.savez(path, **known)
    except OSError as error:
        raise WorkError(f"{path}: can't be written ({error.strerror or error})") from error


def load(path: Path) -> Features:
    """Read a file, and look whether it can be ranked.

    Raises:
        InputError: it is missing or damaged, an array is missing or of another length, an id comes
            twice, there is no pair, or features are not finite or zero.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    arrays = _read_parquet(path) if path.suffix == ".parquet" else _read_npz(path)
    missing = [name for name in ("ids", *_FEATURES) if name not in arrays]
    if missing:
        raise InputError(f"{path}: lacks {', '.join(missing)}")
    if arrays["ids"].ndim != 1:
        raise InputError(f"{path}: ids have the shape {arrays['ids'].shape}, not one dimension")
    ids = [str(one) for one in arrays["ids"]]
    if not ids:
        raise InputError(f"{path}: holds no pair")
    twice = [one for one, number in Counter(ids).items() if number > 1]
    if twice:
        raise InputError(f"{path}: the id {twice[0]} comes twice")
    for name, array in arrays.items():
        if array.ndim == 0 or len(array) != len(ids):
            rows = len(array) if array.ndim else 0
            raise InputError(f"{path}: {len(ids)} ids, but {rows} rows of {name}")
    for name, dimensions in _DIMENSIONS.items():
        array = arrays.get(name, np.zeros((1,) * dimensions, dtype=np.int64))
        if array.ndim != dimensions or not np.issubdtype(array.dtype, np.integer):
            raise InputError(
                f"{path}: {name} is {array.dtype} of shape {array.shape}, not whole numbers of "
                f"{dimensions} dimension(s)"
            )
    if "concepts" in arrays and not arrays["concepts"].any():
        del arrays["concepts"]  # nobody has any
    images, texts = (_unit(path, name, arrays[name]) for name in _FEATURES)
    if images.shape != texts.shape:
        raise InputError(f"{path}: image features {images.shape}, text features {texts.shape}")
    facts = [arrays.get(name) for name in _FACTS]
    return Features(ids, images, texts, *facts)


def _unit(path: Path, name: str, rows: np.ndarray) -> np.ndarray:
    """The features as unit vectors."""
    if rows.ndim != 2 or not np.issubdtype(rows.dtype, np.floating):
        raise InputError(f"{path}: {name} is no matrix of numbers")
    rows = rows.astype(np.float32, copy=False)
    # in float64, where no square of a float32 is infinite
    lengths = np.sqrt(np.einsum("nd,nd->n", rows, rows, dtype=np.float64))
    for wrong, what in (
        (~np.isfinite(lengths), "holds NaN or infinity"),
        (lengths == 0, "is zero"),
    ):
        if wrong.any():
            raise InputError(f"{path}: {name} of row {int(wrong.argmax())} {what}")
    if np.abs(lengths - 1).max() > _UNIT:
        rows = (rows / lengths[:, None]).astype(np.float32)
    return rows


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            wanted = ("ids", *_FEATURES, *_FACTS)
            return {name: file[name] for name in wanted if name in file.files}
    except (OSError, ValueError, EOFError, KeyError, BadZipFile, AttributeError) as error:
        raise InputError(f"{path}: not a readable .npz of features ({error})") from error


def _parquet() -> Any:
    try:
        import pyarrow
        import pyarrow.compute
        import pyarrow.parquet
    except ImportError as error:
        raise InputError(
            "a .parquet file needs pyarrow: pip install 'medclip_oc[parquet]'"
        ) from error
    return pyarrow


def _write_parquet(path: Path, arrays: dict[str, np.ndarray]) -> None:
    arrow = _parquet()
    columns = {}
    for name, array in arrays.items():
        if name in _FEATURES:
            flat = arrow.array(array.reshape(-1))
            columns[name] = arrow.FixedSizeListArray.from_arrays(flat, array.shape[1])
        elif name == "concepts":
            columns[name] = arrow.array([row[row != 0].tolist() for row in array])
        else:
            columns[name] = arrow.array(array.tolist())
    arrow.parquet.write_table(arrow.table(columns), path)


def _read_parquet(path: Path) -> dict[str, np.ndarray]:
    arrow = _parquet()
    try:
        table = arrow.parquet.read_table(path)
        arrays: dict[str, np.ndarray] = {}
        for name in table.column_names:
            if name in _FEATURES:
                arrays[name] = _matrix(arrow, table[name])
            elif name == "concepts":
                arrays[name] = _padded(table[name].to_pylist())
            elif name in ("ids", *_FACTS):
                arrays[name] = np.array(table[name].to_pylist())
        return arrays
    except (arrow.ArrowException, OSError, ValueError, TypeError) as error:
        raise InputError(f"{path}: not a readable .parquet of features ({error})") from error


def _matrix(arrow: Any, column: Any) -> np.ndarray:
    """(N, D) from a column of lists of equal length."""
    lengths = arrow.compute.unique(arrow.compute.list_value_length(column)).to_pylist()
    if len(lengths) > 1 or None in lengths:
        raise ValueError(f"lists of {len(lengths)} lengths")
    flat = arrow.compute.list_flatten(column).to_numpy()
    return np.asarray(flat.reshape(len(column), lengths[0] if lengths else 0))


def _padded(lists: list[list[int]]) -> np.ndarray:
    """(N, K) int32 from lists, padded with 0."""
    rows = np.zeros((len(lists), max(map(len, lists), default=0)), dtype=np.int32)
    for row, found in zip(rows, lists, strict=True):
        row[: len(found)] = found
    return rows
