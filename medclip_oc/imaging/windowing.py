"""Grey pictures of over 8 bits, and DICOM, in any window."""

import io
import warnings
from typing import Any

import numpy as np
from PIL import Image

from ..runtime.extras import needed
from . import decode, dicom


def show(data: bytes, *window: float) -> tuple[Image.Image, tuple[float, ...] | None]:
    """A picture file as `decode.decode` shows it; or linearly in a window, by centre and width.

    And lowest and highest value, centre and width of DICOM's own window (else of all) in the file's
    units; None: of no DICOM and 8 bits, in colour, floating-point, turned, or nearly of one value.
    """
    picture, values, inverted, own = decode.decode(data), np.zeros(1), False, list[Any]([None])
    if decode.is_dicom(data):
        pydicom = needed("pydicom", "dicom")
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # as `dicom.decode`
            dataset = pydicom.dcmread(io.BytesIO(data), specific_tags=[*dicom.READ], force=True)
            stored = dicom.stored_pixels(dataset, data, decode.MAX_PIXELS)
            inverted = dicom.with_groups(dataset, 0).PhotometricInterpretation == "MONOCHROME1"
            if picture.mode == "L":
                values = pydicom.pixels.apply_modality_lut(stored, dataset)
                values = np.where(dicom.padding(dataset, stored), np.nan, values)
            own = [np.atleast_1d(dataset.get(f"Window{of}"))[0] for of in ("Center", "Width")]
    else:
        image = decode.open_image(data, decode.MAX_PIXELS)
        if image.mode in decode.DEEP_GREY[:-1] and decode.read_orientation(image) == 1:
            values = np.asarray(image)
            inverted = getattr(image, "tag_v2", {}).get(262) == 0  # TIFF: white is zero
    low, high = (float(end.reduce(values, axis=None)) for end in (np.fmin, np.fmax))
    if not high - low > 1:
        return picture, None
    if window:
        ends = window[0] - window[1] / 2, window[0] + window[1] / 2
        picture = Image.fromarray(dicom.window(values, limits=ends, inverted=inverted))
    if None in own or own[1] < 1:
        own = [(low + high) / 2, high - low]
    return picture, (low, high, float(own[0]), float(own[1]))
