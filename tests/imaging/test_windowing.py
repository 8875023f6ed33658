"""Pictures in a window of one's own."""

import numpy as np
import pytest

from medclip_oc.errors import InputError
from medclip_oc.imaging import decode
from medclip_oc.imaging.windowing import show
from tests.support.image_files import FILES, SMALL, dicom, file, picture, png_16

RAMP = np.arange(2400, dtype=np.uint16).reshape(40, 60)
BRIGHT = ((RAMP - 1000.0) / 400 * 255).clip(0, 255)  # centre 1200, width 400
IN_HU = {"RescaleSlope": 2, "RescaleIntercept": -1000, "WindowCenter": 40, "WindowWidth": 80}
FAR = {"WindowCenter": -50, "WindowWidth": 9000}  # beyond all values
ABOVE = {"WindowCenter": 9000, "WindowWidth": 80}
UNUSABLE = {"PhotometricInterpretation": "MONOCHROME1", "WindowCenter": 7, "WindowWidth": 0}


@pytest.mark.parametrize(
    ("data", "values", "window", "expected"),
    [
        (png_16(RAMP[..., None]), (0, 2399, 2399, 1199.5, 2399), (1200, 400), BRIGHT),
        (dicom(RAMP), (0, 2399, 2399, 1199.5, 2399), (1200, 400), BRIGHT),
        (dicom(RAMP, **IN_HU), (-1000, 3798, 4798, 40, 80), (1400, 800), BRIGHT),
        (dicom(RAMP, **UNUSABLE), (0, 2399, 2399, 1199.5, 2399), (1200, 400), 255 - BRIGHT),
        (dicom(RAMP, PixelPaddingValue=0), (1, 2399, 2398, 1200, 2398), (1200, 400), BRIGHT),
        (dicom(RAMP, **FAR), (-50, 2399, 9000, -50, 9000), (1200, 400), BRIGHT),
        (dicom(RAMP, **ABOVE), (0, 9000, 2399, 9000, 80), (1200, 400), BRIGHT),
        (FILES["colour"], None, (10, 5), None),
        (file(picture(1).convert("F"), "TIFF"), None, (10, 5), None),
        (dicom(np.asarray(SMALL)), None, (10, 5), None),
        (dicom(np.full((4, 4), 7, np.uint16)), None, (10, 5), None),
    ],
)
def test_in_a_window_where_there_can_be_one(
    data: bytes, values: object, window: tuple[int, int], expected: np.ndarray | None
) -> None:
    whole = np.asarray(decode.decode(data))
    for given, shown in ((), whole), (window, whole if expected is None else expected):
        image, found = show(data, *given)
        assert found == values
        np.testing.assert_allclose(image, shown, atol=0.5)


def test_another_window_is_refused_in_words() -> None:
    for window in (None, 9), (1200, None), (2400, 9), (1200, 0), (1200, 2400):
        with pytest.raises(InputError, match=r"(centre: a .* from 0|width: a .* 1) to 2,399$"):
            show(png_16(RAMP[..., None]), *window)
