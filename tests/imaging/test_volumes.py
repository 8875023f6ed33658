"""Slices come in the order and with the values that pydicom and nibabel have, or are refused."""

import gzip
import io
import itertools
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from medclip_oc.errors import BadImage
from medclip_oc.imaging import volumes
from medclip_oc.imaging.decode import decode
from tests.imaging.test_dicom import group
from tests.support.image_files import dicom

pydicom = pytest.importorskip("pydicom")
nibabel = pytest.importorskip("nibabel")
FILES = Path(pydicom.__file__).parent / "data/test_files"
VOXELS = np.random.default_rng(0).integers(-900, 900, (7, 6, 5)).astype(np.int16)  # x, y, z
STORED = VOXELS.T + np.int16(1024)  # z, rows, columns
FLAT, TILTED = [1, 0, 0, 0, 1, 0], [1, 0, 0, 0, 0.8, 0.6]
CT = {"SeriesInstanceUID": "1.2", "Modality": "CT", "ImageOrientationPatient": FLAT}
CT |= {"RescaleSlope": 1, "RescaleIntercept": -1024}
AFFINE = np.diag([1, 1, 2.5, 1])
LUNG = (-600 - 750, -600 + 750 - 1)
Tags = Callable[[int], dict[str, Any]]


def pictures(source: Any, pick: str = "every:1", axis: Any = None, window: Any = None) -> Any:
    taken = volumes.take(source, pick, axis, window, 10_000_000)
    return [n for n, _ in taken], [np.asarray(Image.open(io.BytesIO(png))) for _, png in taken]


def spread(values: Any, low: float, high: float) -> np.ndarray:
    return ((np.asarray(values) - low) / (high - low) * 255).clip(0, 255)


def same(found: Any, expected: np.ndarray) -> bool:
    return bool(np.abs(np.array(found, float) - expected).max() <= 0.51)


def series(folder: Path, tags: Tags) -> Path:
    """One file a slice, in an order that their names don't tell."""
    for n, stored in enumerate(STORED):
        place = {"ImagePositionPatient": [0, 0, 2.5 * n], "InstanceNumber": 9 - n}
        data = dicom(stored, **CT | place | tags(n))
        (folder / f"{(3 * n + 1) % 5}.dcm").write_bytes(data)
    return folder


def nifti(voxels: np.ndarray = VOXELS, affine: Any = AFFINE, version: int = 1) -> bytes:
    image = (nibabel.Nifti1Image if version == 1 else nibabel.Nifti2Image)(voxels, affine)
    image.header.set_slope_inter(2, -100)
    return bytes(image.to_bytes())


SERIES: dict[str, Tags] = {
    "shuffled": lambda n: {},
    "gapped": lambda n: {"ImagePositionPatient": [0, 0, n**3]},
    "tilted": lambda n: {"ImageOrientationPatient": TILTED, "ImagePositionPatient": [0, -n, n / 9]},
    "by number": lambda n: {"ImageOrientationPatient": None, "InstanceNumber": n - 2},
    "one without place": lambda n: {
        "InstanceNumber": n,
        "ImagePositionPatient": None if n else [0],
    },
    "inverse": lambda n: {"PhotometricInterpretation": "MONOCHROME1"},
    "padded": lambda n: {"PixelPaddingValue": 124},
}


@pytest.mark.parametrize("name", SERIES)
@pytest.mark.parametrize("window", [None, "lung"])
def test_series(tmp_path: Path, name: str, window: str | None) -> None:
    folder = series(tmp_path, SERIES[name])
    (folder / "notes.txt").write_text("no DICOM")
    (folder / "DICOMDIR").write_bytes(dicom(None))
    (folder / "scout").write_bytes(dicom(STORED[0], ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]))
    hounsfield = STORED - 1024.0
    kept = hounsfield != (124 - 1024 if name == "padded" else np.inf)
    ends = LUNG if window else (hounsfield[kept].min(), hounsfield[kept].max())
    shown = spread(hounsfield, *ends)
    places, found = pictures(folder, window=window)
    assert places == [0, 1, 2, 3, 4]
    assert same(found, np.where(kept, 255 - shown if name == "inverse" else shown, 0))


@pytest.mark.slow
def test_real_files_of_one_frame_are_as_without_slices() -> None:
    """Of all transfer syntaxes that pydicom brings."""
    compared = 0
    for data in (path.read_bytes() for path in sorted(FILES.glob("*.dcm"))):
        with suppress(BadImage):
            if (image := decode(data)).info["frames"] == 1:
                compared += np.array_equal(pictures(data)[1][0], image)
    assert compared == 49


def test_real_series_and_frames() -> None:
    folder = FILES / "dicomdirtests/98892001/CT5N"
    heights = {path: pydicom.dcmread(path).ImagePositionPatient[2] for path in folder.iterdir()}
    expected = [
        np.asarray(decode(path.read_bytes())) for path in sorted(heights, key=heights.__getitem__)
    ]
    assert np.array_equal(pictures(folder)[1], expected)

    doses = pydicom.dcmread(FILES / "rtdose.dcm").pixel_array.astype(float)
    places, found = pictures((FILES / "rtdose.dcm").read_bytes(), "3")
    assert places == [2, 7, 12]
    assert same(found, spread(doses, doses.min(), doses.max())[places])

    colours = pydicom.pixels.pixel_array(FILES / "examples_ybr_color.dcm")
    places, [found] = pictures((FILES / "examples_ybr_color.dcm").read_bytes(), "middle")
    assert places == [15]
    assert np.array_equal(found, colours[15])


def test_enhanced_frames_are_sorted_and_rescaled_by_groups_of_their_own() -> None:
    frames, rescale = pydicom.Sequence(), "PixelValueTransformationSequence"
    for n in range(5):
        [functions] = group("PlanePositionSequence", {"ImagePositionPatient": [0, 0, -n]})
        slope = {"RescaleSlope": n + 1, "RescaleIntercept": 0}
        functions[rescale] = group(rescale, slope)[0][rescale]
        frames.append(functions)
    groups = {"PerFrameFunctionalGroupsSequence": frames, "NumberOfFrames": 5}
    turn = group("PlaneOrientationSequence", {"ImageOrientationPatient": FLAT})
    groups |= {"SharedFunctionalGroupsSequence": turn, "PixelData": STORED.tobytes()}
    values = (STORED * np.arange(1.0, 6)[:, None, None])[::-1]
    assert same(pictures(dicom(STORED[0], **groups))[1], spread(values, values.min(), values.max()))


RADIOLOGICAL = {  # the slice first; the patient's right, or the face, on the left
    "axial": VOXELS.transpose(2, 1, 0)[:, ::-1, ::-1],
    "coronal": VOXELS.transpose(1, 2, 0)[:, ::-1, ::-1],
    "sagittal": VOXELS.transpose(0, 2, 1)[:, ::-1, ::-1],
}


@pytest.mark.parametrize("axis", RADIOLOGICAL)
def test_nifti_of_any_orientation_is_as_its_ras_version(
    axis: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(volumes, "call_isolated", lambda function, _: function())  # it is slow
    expected = RADIOLOGICAL[axis] * 2.0 - 100
    shown = spread(expected, expected.min(), expected.max())
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((1, -1), repeat=3):
            turns = np.stack([order, signs], axis=1)
            affine = nibabel.orientations.inv_ornt_aff(turns, VOXELS.shape)
            version = 1 if signs[1] > 0 else 2
            data = nifti(nibabel.apply_orientation(VOXELS, turns), affine, version)
            places, found = pictures(gzip.compress(data) if signs[0] > 0 else data, axis=axis)
            assert places == [*range(len(expected))]
            assert same(found, shown)
    assert same(pictures(data, axis=axis, window="lung")[1], spread(expected, *LUNG))


def test_positions() -> None:
    picked = {"middle": [2], "1": [2], "2": [1, 3], "9": [0, 1, 2, 3, 4], "every:3": [0, 3]}
    assert {pick: pictures(nifti(), pick)[0] for pick in picked} == picked


DATA = nifti()
BAD: dict[str, tuple[bytes | Tags, str]] = {
    "two series": (lambda n: {"SeriesInstanceUID": f"1.{n}"}, r"unusable volume \(5 series"),
    "two patients": (lambda n: {"PatientID": "Roe"} if n else {}, "2 patients"),
    "copies": (lambda n: {"ImagePositionPatient": [0, 0, n // 2]}, "slices at one place"),
    "no order": (lambda n: dict.fromkeys(["ImagePositionPatient", "InstanceNumber"]), "no orien"),
    "two planes": (lambda n: {"ImageOrientationPatient": TILTED if n else FLAT}, "several orien"),
    "no plane": (lambda n: {"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, "no right angles"),
    "localizers": (lambda n: {"ImageType": ["LOCALIZER"]}, "no DICOM file but localizers"),
    "MR": (lambda n: {"Modality": "MR"}, "--window lung is for CT"),
    "colour": (lambda n: {"PhotometricInterpretation": "RGB"}, "colour, which --window lung"),
    "cut series": (lambda n: {"PixelData": b"12"}, "truncated .*2 vs 84 bytes"),
    "4D": (nifti(np.stack([VOXELS] * 2, -1)), r"unusable volume \(\(7, 6, 5, 2\) voxels, not 3D"),
    "2D": (nifti(VOXELS[0]), "not 3D"),
    "no voxels": (nifti(VOXELS[:0]), "voxels, at most"),
    "cut": (DATA[:-9], "truncated .*bytes, got 411 bytes"),
    "gzip, cut": (gzip.compress(DATA)[:-20], "truncated .*file ended"),
    "gzip, damaged": (gzip.compress(DATA)[:-8] + bytes(8), "undecodable"),
    "gzip of a text": (
        gzip.compress(b"image,caption"),
        "undecodable .nibabel can't use",
    ),
    "no orientation": (DATA[:252] + bytes(4) + DATA[256:], "no orientation"),
    "RGB": (DATA[:70] + b"\x80\0\x18" + DATA[73:] + bytes(210), "colours or complex"),
}


@pytest.mark.parametrize("name", BAD)
def test_refuses(tmp_path: Path, name: str) -> None:
    given, message = BAD[name]
    with pytest.raises(BadImage, match=message) as caught:
        pictures(given if isinstance(given, bytes) else series(tmp_path, given), window="lung")
    assert "\n" not in str(caught.value)
    assert "Roe" not in str(caught.value)
