"""Grey pictures of over 8 bits, and DICOM, in any window."""

import io
import warnings
from typing import Any

import numpy as np
from PIL import Image

from ..errors import InputError
from ..runtime.extras import needed
from . import decode, dicom


def show(data: bytes, *window: float | None) -> tuple[Image.Image, tuple[float, ...] | None]:
    """A picture file as `decode.decode` shows it; or linearly in a window, by centre and width.

    And in the file's units lowest and highest centre, largest width, centre and width of DICOM's
    own window (else of all); None: of no DICOM and 8 bits, in colour, floating-point, turned, or
    nearly of one value. InputError: another window.
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
    if None in own or own[1] < 1:
        own = [(low + high) / 2, high - low]
    centre, width = map(float, own)
    low, high, widest = min(low, centre), max(high, centre), max(high - low, width)
    if window:
        at, wide = (np.nan if given is None else given for given in window)  # within no limits
        for of, given, least, most in ("centre", at, low, high), ("width", wide, 1, widest):
            if not least <= given <= most:
                raise InputError(f"window {of}: a number from {least:,.10g} to {most:,.10g}")
        ends = at - wide / 2, at + wide / 2
        picture = Image.fromarray(dicom.window(values, limits=ends, inverted=inverted))
    return picture, (low, high, widest, centre, width)
