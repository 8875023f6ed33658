"""DICOM files of every coding are read; what can't be is refused with its reason."""

import importlib.util
import io
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from medclip_oc.errors import BadImage, InputError
from medclip_oc.imaging import dicom as module
from medclip_oc.imaging.decode import decode
from medclip_oc.imaging.encode import prepare
from tests.support.dicom_pixels import COLOUR, DEEP, GREY, REAL_RANGE, pixels, spread
from tests.support.odd_files import dicom, file

pydicom = pytest.importorskip("pydicom")
needs_gdcm = pytest.mark.skipif(not importlib.util.find_spec("gdcm"), reason="needs python-gdcm")

JPEG_SYNTAX, RLE, JPEG_2000, JPEG_LS, MPEG = (
    f"1.2.840.10008.1.2.{end}" for end in ("4.50", "5", "4.90", "4.80", "4.100")
)


def frames(*encoded: bytes) -> bytes:
    from pydicom.encaps import encapsulate

    return encapsulate(list(encoded))


def jpeg_in_dicom(**tags: Any) -> bytes:
    encoded = file(Image.fromarray(GREY), "JPEG", quality=95)
    return dicom(GREY, syntax=JPEG_SYNTAX, PixelData=frames(encoded), **tags)


def rle(values: np.ndarray) -> bytes:
    from pydicom.pixels import get_encoder

    tags = {"rows": 40, "columns": 48, "samples_per_pixel": 1, "number_of_frames": 1}
    bits = {"bits_allocated": 16, "bits_stored": 16, "pixel_representation": 0}
    space = {"photometric_interpretation": "MONOCHROME2"}
    return get_encoder(RLE).encode(values.tobytes(), **tags, **bits, **space)


def test_jpeg_inside() -> None:
    inside = np.asarray(Image.open(io.BytesIO(file(Image.fromarray(GREY), "JPEG", quality=95))))
    expected = spread(inside, inside.min(), inside.max())
    assert np.abs(pixels(jpeg_in_dicom()) - expected).max() <= 1


def test_jpeg_2000_inside() -> None:
    encoded = file(Image.fromarray(DEEP), "JPEG2000", no_jp2=True)
    data = dicom(DEEP, syntax=JPEG_2000, PixelData=frames(encoded))
    assert np.array_equal(pixels(data), REAL_RANGE)


def test_run_lengths_inside() -> None:
    data = dicom(DEEP, syntax=RLE, PixelData=frames(rle(DEEP), rle(DEEP[::-1])), NumberOfFrames=2)
    assert np.array_equal(pixels(data), REAL_RANGE)


@needs_gdcm
@pytest.mark.parametrize(
    "name", ["jpeg_ls_lossless", "jp2klossless", "RLE", "bigendian", "implicit", "padded"]
)
def test_all_ways_to_store_one_image_give_the_same(name: str) -> None:
    """Files that come with pydicom."""
    plain, other = (
        Path(pydicom.data.get_testdata_file(f"MR_small{end}.dcm", download=False)).read_bytes()
        for end in ("", f"_{name}")
    )
    assert np.array_equal(pixels(plain), pixels(other))


# ----------------------------------------------------------------------------------------- unusable


def main_part(data: bytes) -> bytes:
    """What follows the file meta information."""
    return data[132 + 12 + int.from_bytes(data[140:144], "little") :]


PLAIN = dicom(DEEP)
UNUSABLE: dict[str, tuple[bytes, str, str]] = {
    "no pixels": (dicom(None), "undecodable", "DICOM without whole pixels"),
    "cut in the pixels": (PLAIN[:-900], "truncated", "2940 vs 3840 bytes"),
    "cut before the pixels": (PLAIN[:300], "undecodable", "without whole pixels"),
    "compressed, cut": (jpeg_in_dicom()[:-300], "truncated", "without whole pixels"),
    "a film": (
        dicom(GREY, syntax=MPEG, PixelData=frames(b"film")),
        "undecodable",
        "No pixel data decoders .* 'MPEG2",
    ),
    "an odd colour space": (
        dicom(COLOUR, PhotometricInterpretation="HSV"),
        "undecodable",
        "HSV",
    ),
    "no Rows": (dicom(DEEP, Rows=None), "undecodable", "Rows"),
    "more bits than there are": (dicom(DEEP, BitsStored=99), "undecodable", "Bits Stored"),
    "one value": (dicom(DEEP * 0 + 7), "blank", "every pixel is 0"),
    "nothing but padding": (dicom(DEEP * 0 + 7, PixelPaddingValue=7), "blank", "every pixel is 0"),
    "no mark": (bytes(128) + PLAIN[132:], "undecodable", "not one of .* DICOM"),
    "the data set alone": (main_part(PLAIN), "undecodable", "DICOM without its mark DICM"),
    "the mark alone": (PLAIN[:132], "undecodable", "without whole pixels"),
    "deflated": (
        dicom(None, syntax="1.2.840.10008.1.2.1.99"),
        "undecodable",
        "a deflated DICOM file is not read",
    ),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_refuses(name: str) -> None:
    data, reason, detail = UNUSABLE[name]
    with pytest.raises(BadImage, match=detail) as caught:
        prepare(data, max_pixels=1_000_000)
    assert caught.value.reason == reason
    assert "\n" not in caught.value.detail


def test_a_mention_of_deflation_is_none() -> None:
    data = dicom(DEEP, ImageComments="not 1.2.840.10008.1.2.1.99")
    assert np.array_equal(pixels(data), REAL_RANGE)


@pytest.mark.parametrize("data", [PLAIN, jpeg_in_dicom(), dicom(DEEP, PixelData=b"..")])
def test_rows_and_columns_are_looked_at_before_the_pixels(data: bytes) -> None:
    with pytest.raises(BadImage, match=r"over max pixels \(48 x 40, limit 1919 pixels\)"):
        decode(data, max_pixels=40 * 48 - 1)


def test_a_frame_that_makes_pydicom_loop_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A JPEG 2000 box of length 0: the reader of boxes never gets past it."""
    monkeypatch.setattr(module, "_SECONDS", 1)
    box = b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(16)
    start = time.monotonic()
    with pytest.raises(BadImage, match="took over 1 s"):
        decode(dicom(DEEP, syntax=JPEG_2000, PixelData=frames(box)))
    assert time.monotonic() - start < 30


@needs_gdcm
@pytest.mark.parametrize("wrong", [(4, 17), (8, 0)])  # bits per sample; columns
def test_a_frame_that_makes_gdcm_abort_is_an_error(wrong: tuple[int, int]) -> None:
    path = pydicom.data.get_testdata_file("MR_small_jpeg_ls_lossless.dcm", download=False)
    data = bytearray(Path(path).read_bytes())
    place, value = wrong
    data[data.rindex(b"\xff\xf7") + place] = value  # in the header of the JPEG-LS frame
    with pytest.raises(BadImage, match=r"undecodable \(") as caught:
        decode(bytes(data))
    assert "\n" not in caught.value.detail


def test_without_pydicom_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(
        InputError, match="needs pydicom: pip install pydicom python-gdcm"
    ) as caught:
        decode(PLAIN)
    assert not isinstance(caught.value, BadImage)  # not this file's fault: packing stops


def test_without_gdcm_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    from pydicom.pixels import get_decoder

    decoder = get_decoder(JPEG_LS)
    monkeypatch.setattr(decoder, "_available", {})
    monkeypatch.setattr(decoder, "_unavailable", {"gdcm": ("gdcm>=3.0.10",)})
    with pytest.raises(BadImage, match=r"undecodable.*JPEG-LS.*pip install pydicom python-gdcm"):
        decode(dicom(DEEP, syntax=JPEG_LS, PixelData=frames(b"..")))
