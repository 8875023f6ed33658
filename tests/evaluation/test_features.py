"""Files of features come back as they were written, and bad ones are told in a line."""

from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import pytest
import torch

from medclip_oc.errors import InputError, WorkError
from medclip_oc.evaluation import features
from medclip_oc.evaluation.features import Embedded
from medclip_oc.runtime.distributed import World
from tests.support.tiny_models import unit_vectors

ALONE = World(0, 1, torch.device("cpu"))


def embedded(**changes: Any) -> Embedded:
    whole: dict[str, Any] = {
        "images": unit_vectors(3, 4, 0),
        "texts": unit_vectors(3, 4, 1),
        "start": 0,
        "ids": ["a", "b", "c"],
        "image_hash": np.array([2**62, -5, 7]),
        "caption_hash": np.array([1, 1, -(2**63)]),
        "concepts": np.array([[40405, 7], [0, 0], [3, 0]], dtype=np.int32),
    }
    return Embedded(**(whole | changes))


def test_round_trip(tmp_path: Path) -> None:
    """The same comes back; each rank keeps its share."""
    file = tmp_path / "x.npz"
    features.save(file, embedded(), ALONE)
    read = features.load(file, ALONE)
    assert read.ids == ["a", "b", "c"]
    for name in ("images", "texts", "image_hash", "caption_hash", "concepts"):
        before, after = (np.asarray(getattr(one, name)) for one in (embedded(), read))
        assert np.array_equal(before, after), name
        assert before.dtype == after.dtype, name
    first, second = (features.load(file, World(rank, 2, torch.device("cpu"))) for rank in (0, 1))
    assert (first.start, second.start, len(first), len(second)) == (0, 1, 3, 3)
    assert torch.cat([first.images, second.images]).equal(embedded().images)


def test_only_what_is_needed(tmp_path: Path) -> None:
    for concepts in (None, np.zeros((3, 2), np.int32)):
        made = embedded(image_hash=None, caption_hash=None, concepts=concepts)
        features.save(tmp_path / "x.npz", made, ALONE)
        read = features.load(tmp_path / "x.npz", ALONE)
        assert read.image_hash is read.caption_hash is read.concepts is None
        assert not read.hashed


@pytest.mark.parametrize("length", [3.0, 1e30])  # the square of the second is infinite in float32
def test_features_of_any_length_become_unit_vectors(tmp_path: Path, length: float) -> None:
    rows = unit_vectors(3, 4, 0)
    features.save(tmp_path / "x.npz", embedded(images=length * rows), ALONE)
    read = features.load(tmp_path / "x.npz", ALONE).images
    assert read.numpy() == pytest.approx(rows.numpy(), abs=1e-6)


nan, zero = (unit_vectors(3, 4, 0).numpy() for _ in range(2))
nan[1, 2], zero[2] = np.nan, 0
NOBODY = {"ids": np.array([], str), "concepts": np.zeros((0, 1), int)}
NOBODY |= {f"{side}_features": np.zeros((0, 4), np.float32) for side in ("image", "text")}
BAD = {
    "nan": ({"image_features": nan}, "image_features of row 1 is zero, or holds NaN"),
    "zero": ({"text_features": zero}, "text_features of row 2 is zero"),
    "no pair": (NOBODY, "holds no pair"),
    "twice": ({"ids": ["a", "b", "a"]}, "the id a comes twice"),
    "lengths": ({"ids": ["a", "b"]}, r"image_features is float32 of shape \(3, 4\), where 2 rows"),
    "widths": ({"text_features": np.ones((3, 5))}, "features of 4 and of 5 numbers"),
    "hashes": ({"image_hash": np.zeros((3, 2), np.int64)}, r"image_hash is .* shape \(3, 2\)"),
    "flat": ({"concepts": np.ones(3, np.int32)}, "concepts is .* of whole numbers are needed"),
    "words": ({"concepts": np.array([["C1"]] * 3)}, "concepts is <U2 of shape"),
    "bytes": ({"ids": np.array([b"a", b"b", b"c"])}, "ids is |S1 of .* text or whole numbers"),
    "line break": ({"ids": ["a", "b\nc", "d"]}, r"'b\\nc' is no id: one line of printable letters"),
    "negative": ({"concepts": np.array([[1], [-1], [0]])}, "concepts: only UMLS numbers of up to"),
    "huge": ({"concepts": np.array([[1], [2**40], [0]])}, "concepts: only UMLS numbers"),
    "beyond float32": ({"image_features": np.full((3, 4), 1e300)}, "row 0 is zero, or holds"),
    "objects": ({"ids": np.array(["a", {}, "b"], dtype=object)}, r"save ids by \.astype\(str\)"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_content(tmp_path: Path, name: str) -> None:
    changes, message = BAD[name]
    file = tmp_path / "x.npz"
    features.save(file, embedded(image_hash=None, caption_hash=None), ALONE)
    with np.load(file) as good:
        arrays = {**good, **changes}
    np.savez(file, **arrays)
    with pytest.raises(InputError, match=message):
        features.load(file, ALONE)


def test_what_a_file_announces_is_not_believed(tmp_path: Path) -> None:
    """10^14 ids that are not there; 12 MB of zeros in 12 kB; the length of a comment, by one bit,
    which hides an array from the zip's list; or it is no .npz at all.
    """
    header = {"descr": "<U4", "fortran_order": False, "shape": (10**14,)}
    with ZipFile(tmp_path / "w.npz", "w") as whole, whole.open("ids.npy", "w") as member:
        np.lib.format.write_array_header_1_0(member, header)
    zeros = np.zeros((3, 10**6), np.float32)
    np.savez_compressed(tmp_path / "x.npz", ids=np.arange(3), image_features=zeros)
    features.save(tmp_path / "y.npz", embedded(), ALONE)
    data = bytearray((tmp_path / "y.npz").read_bytes())
    data[data.rindex(b"image_hash.npy") - 13] ^= 16
    (tmp_path / "y.npz").write_bytes(data)
    (tmp_path / "z.npz").write_bytes(b"PK no such thing")
    for name in "wxyz":
        with pytest.raises(InputError, match=r"damaged, or not a readable \.npz"):
            features.load(tmp_path / f"{name}.npz", ALONE)


@pytest.mark.slow
def test_fuzz(tmp_path: Path) -> None:
    """Whatever happens to its bytes: the same features, or one line."""
    file = tmp_path / "x.npz"
    features.save(file, embedded(), ALONE)
    whole, right = file.read_bytes(), features.load(file, ALONE)
    rng, told = np.random.default_rng(0), set[str]()
    for n in range(400):
        data, (a, b) = bytearray(whole), sorted(rng.integers(0, len(whole), 2))
        if n % 4 == 0:
            data[a] ^= 1 << rng.integers(8)
        else:
            data[a:b] = (b"", rng.bytes(16), data[b:])[n % 4 - 1]
        file.write_bytes(data)
        try:
            read = features.load(file, ALONE)
        except InputError as error:
            told.add(str(error))
            continue
        assert read.ids == right.ids
        for name in ("images", "texts", "image_hash", "caption_hash", "concepts"):
            assert np.array_equal(getattr(read, name), getattr(right, name)), (n, name)
    assert f"{file}: damaged, or not a readable .npz: make it again" in told
    assert not any("\n" in line for line in told)


def test_bad_files(tmp_path: Path) -> None:
    file = tmp_path / "x.npz"
    with pytest.raises(InputError, match="no such file"):
        features.load(file, ALONE)
    np.savez(file, ids=np.array(["a"]))
    with pytest.raises(InputError, match="lacks image_features, text_features"):
        features.load(file, ALONE)
    with pytest.raises(WorkError, match="can't be written"):
        features.save(tmp_path / "nowhere" / "x.npz", embedded(), ALONE)
