"""Slices of volumes, by the rules in docs/data.md: a DICOM series in a folder, frames, NIfTI."""

import gzip
import io
import math
import warnings
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..errors import BadImage, InputError
from ..runtime.crash_isolation import call_isolated
from ..runtime.extras import needed
from . import dicom
from .decode import is_dicom
from .encode import png, refuse_blank

WINDOWS = {"lung": (-600, 1500), "bone": (400, 1800), "brain": (40, 80), "soft": (50, 400)}
"""Centre and width in HU (Radiopaedia, "Windowing (CT)")."""
_AXES = ("sagittal", "coronal", "axial")  # of x, y, z
_SAME = {"SeriesInstanceUID": "series", "PatientID": "patients", "Rows": "heights"}
_SAME |= {"Columns": "widths", "PhotometricInterpretation": "kinds of pixels"}
_TAGS = [*dicom.READ, *_SAME, "ImagePositionPatient", "ImageOrientationPatient", "InstanceNumber"]
_TAGS += ["ImageType", "Modality"]
_MOST_BYTES, _MOST_FRAMES, _MOST_VOXELS = 1 << 31, 1 << 16, 1 << 28
_KEPT_PIXELS = 1 << 27  # 512 slices of 512 x 512, 268 MB
_LEAST_STEP = 0.01  # mm between slices
_GZIP = b"\x1f\x8b"
_Plane = Callable[[int], tuple[np.ndarray, Any]]  # as `dicom.by_value`


def take(
    source: bytes | Path, pick: str, axis: str | None, window: str | None, max_pixels: int
) -> Sequence[tuple[int | None, bytes | BadImage]]:
    """Slices of a file, or of a series' folder, in order: positions from 0, and PNG files (or that
    one is blank). Of what is no volume: None, and the file. BadImage: it can't be used. InputError:
    a package is absent.

    `pick`: "middle", "N" (in the middles of N equal parts) or "every:K" (from the first on);
    `axis`: of NIfTI, None is "axial"; `window`: of WINDOWS, "min-max", or None: the file's own.
    """
    if isinstance(source, Path) or is_dicom(source):
        _refuse(axis, f"--axis {axis} is for NIfTI")
        package, read = "pydicom", partial(_dicom, source, window, max_pixels)
    elif source[344:348] == b"n+1\0" or source[4:8] == b"n+2\0" or source[:2] == _GZIP:
        package, read = "nibabel", partial(_nifti, source, axis or "axial")
    else:
        return [(None, source)]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd metadata; what matters raises
            # damage makes GDCM abort, pydicom loop for ever
            return call_isolated(partial(_pngs, pick, window, *read()), 3600)
    except InputError:
        raise
    except Exception as error:  # a damaged file raises whatever its library trips over
        raise dicom.damage(error, package) from None


def _refuse(wrong: Any, why: str) -> None:
    if wrong:
        raise BadImage("unusable volume", why)


def _pngs(
    pick: str, window: str | None, plane: _Plane, count: int, shown: bool, inverted: bool
) -> list[tuple[int, bytes | BadImage]]:
    centre, width = WINDOWS.get(window or "", (128, 256))
    low, high = centre - width / 2, centre + width / 2 - 1.0  # DICOM PS3.3, C.11.2.1.2.1
    if window not in WINDOWS and not shown:
        low, high = np.inf, -np.inf
        for values, _ in map(plane, range(count)):
            finite = values[np.isfinite(values)].astype(float)
            low, high = finite.min(initial=low), finite.max(initial=high)
    kind, _, step = pick.partition(":")
    parts = 1 if kind == "middle" else count if step else min(int(kind), count)
    files = list[tuple[int, bytes | BadImage]]()
    for part in range(0, parts, int(step or 1)):
        n = (2 * part + 1) * count // (2 * parts)
        values, where = plane(n)
        if not shown:
            values = dicom.window(values, limits=(low, high), inverted=inverted)
        pixels = values[where]
        try:
            refuse_blank(Image.fromarray(pixels))
            files.append((n, png(pixels)))
        except BadImage as blank:
            files.append((n, blank))
    return files


def _dicom(
    source: bytes | Path, window: str | None, max_pixels: int
) -> tuple[_Plane, int, bool, bool]:
    """What gives a slice, and of how many; whether it is shown already, or has inverted values."""
    pydicom = needed("pydicom", "dicom")
    tags = [*map(pydicom.tag.Tag, _TAGS)]  # names would be looked up for each file
    read = partial(pydicom.dcmread, specific_tags=tags, force=True)
    if isinstance(source, bytes):
        datasets = [read(io.BytesIO(source))]
    else:
        files = [path for path in source.iterdir() if path.is_file() and path.name != "DICOMDIR"]
        files = [path for path in files if pydicom.misc.is_dicom(path)]
        size = sum(path.stat().st_size for path in files)
        _refuse(size > _MOST_BYTES, f"{size:,} bytes, limit {_MOST_BYTES:,}")
        datasets = [read(path, defer_size=1 << 12) for path in files]  # pixels when they are used
    frames = _in_order([frame for dataset in datasets for frame in _frames(dataset)])
    middle = frames[len(frames) // 2][0]
    space, modality = middle.PhotometricInterpretation, middle.get("Modality")
    grey, size = space in ("MONOCHROME1", "MONOCHROME2"), middle.Rows * middle.Columns
    _refuse(size > max_pixels, f"slices of {size:,} pixels, limit {max_pixels:,}")
    _refuse(window and not grey, f"colour, which --window {window} is not for")
    _refuse(window in WINDOWS and modality != "CT", f"--window {window} is for CT")
    own = not grey or middle.get("WindowWidth") or middle.get("VOILUTSequence")
    shown = not window and bool(own or len(frames) == 1)

    def plane(n: int) -> tuple[np.ndarray, Any]:
        header, _, dataset, frame = frames[n]
        stored = dicom.stored_pixels(dataset, b"", max_pixels, frame, isolated=True)
        if shown:
            return dicom.shown(header, stored), ...

        def values(stored: np.ndarray) -> np.ndarray:
            rescaled = pydicom.pixels.apply_modality_lut(stored, header)
            return np.where(dicom.padding(header, stored), np.nan, rescaled)

        return dicom.by_value(values, stored)

    if not shown and window not in WINDOWS:  # whose range is looked for first
        plane = lru_cache(_KEPT_PIXELS // size)(plane)
    return plane, len(frames), shown, not shown and space == "MONOCHROME1"


def _frames(dataset: Any) -> list[tuple[Any, Any, Any, int]]:
    """Their headers, what sorts them where nothing says how they lie, and places in the dataset."""
    if "LOCALIZER" in (dataset.get("ImageType") or ()):
        return []
    count = int(dataset.get("NumberOfFrames") or 1)
    _refuse(count > _MOST_FRAMES, f"{count:,} frames")
    if count == 1:
        return [(dicom.with_groups(dataset, 0), dataset.get("InstanceNumber"), dataset, 0)]
    if "PerFrameFunctionalGroupsSequence" not in dataset:
        dataset.pop("ImagePositionPatient", None)  # that of the first
    return [(dicom.with_groups(dataset[:0x7FE00000], n), n, dataset, n) for n in range(count)]


def _in_order(frames: list[Any]) -> list[Any]:
    headers = [header for header, *_ in frames]
    _refuse(not frames, "no DICOM file but localizers (folders in it don't count)")
    for tag, what in _SAME.items():
        several = len({str(header.get(tag)) for header in headers})
        _refuse(several > 1, f"{several} {what} in one volume")
    turns = [header.get("ImageOrientationPatient") or () for header in headers]
    places = [header.get("ImagePositionPatient") or () for header in headers]
    depths = np.array([number for _, number, *_ in frames], float)
    if {*map(len, turns)} == {6} and {*map(len, places)} == {3}:
        rows = np.array(turns, float)
        _refuse(np.ptp(rows, axis=0).max() > _LEAST_STEP, "slices of several orientations")
        normal = np.cross(rows[0, :3], rows[0, 3:])
        _refuse(abs(np.linalg.norm(normal) - 1) > 0.01, "an orientation with no right angles")
        depths = np.array(places, float) @ normal
    order = depths.argsort()
    steps = np.diff(depths[order])
    _refuse(np.isnan(steps).any(), "no orientation, and no InstanceNumber to sort by")
    _refuse((steps < _LEAST_STEP).any(), "slices at one place: phases, echoes (4D), or copies")
    return [frames[n] for n in order]


def _nifti(data: bytes, axis: str) -> tuple[_Plane, int, bool, bool]:
    nibabel = needed("nibabel", "volumes")
    if data[:2] == _GZIP:
        data = gzip.GzipFile(fileobj=io.BytesIO(data)).read(_MOST_BYTES)
    kind = nibabel.Nifti2Image if data[4:8] == b"n+2\0" else nibabel.Nifti1Image
    image = kind.from_bytes(data)
    shape, header, axes = image.shape, image.header, nibabel.io_orientation(image.affine)
    told = header["qform_code"] or header["sform_code"]
    _refuse(not told or np.isnan(axes).any(), "no orientation: no qform, no sform")
    _refuse(len(shape) < 3 or max(shape[3:], default=1) > 1, f"{shape} voxels, not 3D")
    _refuse(not 0 < math.prod(shape) <= _MOST_VOXELS, f"{shape} voxels, at most {_MOST_VOXELS:,}")
    _refuse(header.get_data_dtype().kind not in "iuf", "voxels that are colours or complex")
    voxels = np.asanyarray(nibabel.as_closest_canonical(image).dataobj)
    voxels = np.moveaxis(voxels.reshape(voxels.shape[:3]), _AXES.index(axis), 0)
    return lambda n: (voxels[n, ::-1, ::-1].T, ...), len(voxels), False, False
