"""Files of features come back as they were written, and bad ones are told in a line."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from medclip_oc.errors import InputError, WorkError
from medclip_oc.evaluation import feature_file


def unit(rows: int, width: int, seed: int) -> np.ndarray:
    made = np.random.default_rng(seed).normal(size=(rows, width)).astype(np.float32)
    return made / np.linalg.norm(made, axis=1, keepdims=True)


def features(**changes: Any) -> feature_file.Features:
    whole: dict[str, Any] = {
        "ids": ["a", "b", "c"],
        "images": unit(3, 4, 0),
        "texts": unit(3, 4, 1),
        "image_hash": np.array([2**62, -5, 7]),
        "caption_hash": np.array([1, 1, -(2**63)]),
        "concepts": np.array([[40405, 7], [0, 0], [3, 0]], dtype=np.int32),
    }
    return feature_file.Features(**(whole | changes))


@pytest.mark.parametrize("suffix", ["npz", "parquet"])
def test_round_trip(tmp_path: Path, suffix: str) -> None:
    made = features()
    feature_file.save(tmp_path / "new" / f"x.{suffix}", made)
    found = feature_file.load(tmp_path / "new" / f"x.{suffix}")
    assert found.ids == made.ids
    for name in made._fields[1:]:
        own, other = getattr(made, name), getattr(found, name)
        assert np.array_equal(own, other), name
        assert own.dtype == other.dtype, name


@pytest.mark.parametrize("suffix", ["npz", "parquet"])
def test_only_what_is_needed(tmp_path: Path, suffix: str) -> None:
    made = features(image_hash=None, caption_hash=None, concepts=None)
    feature_file.save(tmp_path / f"x.{suffix}", made)
    found = feature_file.load(tmp_path / f"x.{suffix}")
    assert found[3:] == (None, None, None)


def test_features_of_any_length_become_unit_vectors(tmp_path: Path) -> None:
    feature_file.save(tmp_path / "x.npz", features(images=3 * unit(3, 4, 0)))
    assert feature_file.load(tmp_path / "x.npz").images == pytest.approx(unit(3, 4, 0), abs=1e-6)


def test_lengths_beyond_the_root_of_float32(tmp_path: Path) -> None:
    feature_file.save(tmp_path / "x.npz", features(images=np.float32(1e30) * unit(3, 4, 0)))
    assert feature_file.load(tmp_path / "x.npz").images == pytest.approx(unit(3, 4, 0), abs=1e-6)


@pytest.mark.parametrize("width", [0, 2])
def test_concepts_of_nobody_are_none(tmp_path: Path, width: int) -> None:
    none = np.zeros((3, width), dtype=np.int32)
    feature_file.save(tmp_path / "x.npz", features(concepts=none))
    assert feature_file.load(tmp_path / "x.npz").concepts is None


nan, zero = unit(3, 4, 0), unit(3, 4, 0)
nan[1, 2], zero[2] = np.nan, 0
BAD = {
    "nan": (features(images=nan), "image_features of row 1 holds NaN or infinity"),
    "zero": (features(texts=zero), "text_features of row 2 is zero"),
    "no pair": (
        features(
            ids=[],
            images=unit(0, 4, 0),
            texts=unit(0, 4, 0),
            image_hash=None,
            caption_hash=None,
            concepts=None,
        ),
        "holds no pair",
    ),
    "twice": (features(ids=["a", "b", "a"]), "the id a comes twice"),
    "lengths": (features(ids=["a", "b"]), "2 ids, but 3 rows of image_features"),
    "widths": (features(texts=unit(3, 5, 0)), r"image features \(3, 4\), text features \(3, 5\)"),
    "hashes": (features(image_hash=np.zeros((3, 2), np.int64)), r"image_hash is .* shape \(3, 2\)"),
    "flat": (features(concepts=np.ones(3, np.int32)), "concepts is .*, not whole numbers of 2 dim"),
    "words": (features(concepts=np.array([["C1"]] * 3)), "concepts is <U2 of shape"),
    "one id": (features(ids="abc"), r"ids have the shape \(\), not one dimension"),
    "no numbers": (features(texts=np.array([["x"]] * 3)), "text_features is no matrix of numbers"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_content(tmp_path: Path, name: str) -> None:
    content, message = BAD[name]
    feature_file.save(tmp_path / "x.npz", content)
    with pytest.raises(InputError, match=message):
        feature_file.load(tmp_path / "x.npz")


def test_bad_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        feature_file.load(tmp_path / "x.npz")
    for suffix in ("npz", "parquet"):
        file = tmp_path / f"x.{suffix}"
        file.write_bytes(b"PK no such thing")
        with pytest.raises(InputError, match=f"not a readable .{suffix}"):
            feature_file.load(file)
    np.savez(tmp_path / "x.npz", ids=np.array(["a"]))
    with pytest.raises(InputError, match="lacks image_features, text_features"):
        feature_file.load(tmp_path / "x.npz")
    np.savez(tmp_path / "x.npz", ids=np.array(["a", {}], dtype=object))
    with pytest.raises(InputError, match=r"not a readable \.npz"):
        feature_file.load(tmp_path / "x.npz")
    uneven = pyarrow.table({"ids": ["a"], "image_features": [[1.0]], "text_features": [[1.0]]})
    more = pyarrow.table({"ids": ["b"], "image_features": [[1.0, 2]], "text_features": [[1.0]]})
    pyarrow.parquet.write_table(pyarrow.concat_tables([uneven, more]), tmp_path / "x.parquet")
    with pytest.raises(InputError, match="lists of 2 lengths"):
        feature_file.load(tmp_path / "x.parquet")
    (tmp_path / "file").touch()
    with pytest.raises(WorkError, match="can't be written"):
        feature_file.save(tmp_path / "file" / "x.npz", features())
