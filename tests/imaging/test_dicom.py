"""A DICOM's pixels come out as they are meant to be seen, and nothing else of it comes out.

What can't be decoded is refused with its reason.
"""

import importlib.util
import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from medclip_oc.data.shards import ShardSet
from medclip_oc.errors import BadImage, InputError
from medclip_oc.imaging import dicom as module
from medclip_oc.imaging.decode import decode
from medclip_oc.imaging.encode import prepare
from medclip_oc.packing.formats import open_source
from medclip_oc.packing.pack import PackOptions, pack
from tests.support.image_files import dicom, file
from tests.support.tiny_dataset import picture, write_split

pydicom = pytest.importorskip("pydicom")
needs_gdcm = pytest.mark.skipif(not importlib.util.find_spec("gdcm"), reason="needs python-gdcm")

JPEG_SYNTAX, JPEG_2000, JPEG_LS, MPEG = (f"1.2.840.10008.1.2.4.{end}" for end in (50, 90, 80, 100))
GREY = np.asarray(picture(5))  # (40, 48) uint8, 0 to about 240
DEEP = GREY.astype(np.uint16) * 15 + 100  # (40, 48), 12 bits
SIGNED = DEEP.astype(np.int16) - 2000
COLOUR = np.stack([GREY, 255 - GREY, np.roll(GREY, 5)], axis=-1)  # (40, 48, 3)
PADDED = np.where(GREY > 200, -2000, SIGNED).astype(np.int16)
INSIDE = PADDED != -2000


def spread(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Linearly from low..high to 0..255, and no further."""
    return ((values.astype(float) - low) / (high - low) * 255).clip(0, 255).round()


def real_range(values: np.ndarray) -> np.ndarray:
    return spread(values, values.min(), values.max())


def ramp(values: np.ndarray, centre: float, width: float) -> np.ndarray:
    """The window of DICOM PS3.3, C.11.2.1.2.1: its formula, towards 0..255."""
    scaled = ((values.astype(float) - (centre - 0.5)) / (width - 1) + 0.5) * 255
    return scaled.clip(0, 255).round()


def window(centre: Any, width: Any, function: str | None = None) -> dict[str, Any]:
    return {"WindowCenter": centre, "WindowWidth": width, "VOILUTFunction": function}


def lut(entries: list[int]) -> Any:
    """Of 8 bits, from 0."""
    table = pydicom.Dataset()
    table.add_new("LUTDescriptor", "US", [len(entries), 0, 8])
    table.add_new("LUTData", "US", entries)
    return pydicom.Sequence([table])


def palette() -> dict[str, Any]:
    """Tags of a palette whose red rises, whose green falls and whose blue is constant."""
    rising = np.linspace(0, 65535, 256).astype("<u2")
    tags: dict[str, Any] = {"PhotometricInterpretation": "PALETTE COLOR"}
    for name, values in (("Red", rising), ("Green", rising[::-1]), ("Blue", rising * 0 + 65535)):
        tags[f"{name}PaletteColorLookupTableDescriptor"] = [256, 0, 16]
        tags[f"{name}PaletteColorLookupTableData"] = values.tobytes()
    return tags


def group(macro: str, values: dict[str, Any]) -> Any:
    """A functional group of an enhanced object."""
    inner, functions = pydicom.Dataset(), pydicom.Dataset()
    for keyword, value in values.items():
        if value is not None:
            setattr(inner, keyword, value)
    setattr(functions, macro, pydicom.Sequence([inner]))
    return pydicom.Sequence([functions])


def framed(values: np.ndarray, syntax: str, *frames: bytes, **tags: Any) -> bytes:
    """A file whose pixels are compressed, a frame each."""
    from pydicom.encaps import encapsulate

    return dicom(values, syntax=syntax, PixelData=encapsulate(list(frames)), **tags)


def unsigned_padding() -> bytes:
    data = dicom(PADDED)
    element = b"\x28\0\x20\1US\2\0" + (65536 - 2000).to_bytes(2, "little")
    return data.replace(b"\xe0\x7f\x10\0", element + b"\xe0\x7f\x10\0")  # the pixels come next


TWO_FRAMES = {"NumberOfFrames": 2, "PixelData": np.concatenate([DEEP, DEEP[::-1]]).tobytes()}
FALLING = [255 - n // 16 for n in range(4096)]
TABLED = dicom(DEEP, BitsStored=12, HighBit=11, ModalityLUTSequence=lut(FALLING))
TWICE = {"RescaleSlope": 2, "RescaleIntercept": -1000}
RESCALED = dicom(SIGNED, **window(0, 4000), **TWICE)
SHARED = group("PixelValueTransformationSequence", TWICE)
FIRST = group("FrameVOILUTSequence", window(1000, 3000))
GROUPS = {"SharedFunctionalGroupsSequence": SHARED, "PerFrameFunctionalGroupsSequence": FIRST}
JPEG = file(Image.fromarray(GREY), "JPEG", quality=95)
J2K = [file(Image.fromarray(each), "JPEG2000", no_jp2=True) for each in (DEEP, DEEP[::-1])]
JPEG_IN_DICOM = framed(GREY, JPEG_SYNTAX, JPEG)

MEANT = real_range(DEEP)
UNPADDED = np.where(INSIDE, spread(PADDED, PADDED[INSIDE].min(), PADDED[INSIDE].max()), 0)
PAINTED = np.stack([GREY, 255 - GREY, GREY * 0 + 255], axis=-1)
SHOWN: dict[str, tuple[bytes, np.ndarray]] = {
    "8 bits": (dicom(GREY), real_range(GREY)),
    "12 bits": (dicom(DEEP, BitsStored=12, HighBit=11), MEANT),
    "falling rescale": (dicom(DEEP, RescaleSlope=-1, RescaleIntercept=0), 255 - MEANT),
    "first of windows": (dicom(DEEP, **window([2000, 40], [1000, 80])), ramp(DEEP, 2000, 1000)),
    "window after rescale": (RESCALED, ramp(SIGNED * 2.0 - 1000, 0, 4000)),
    "sigmoid": (dicom(DEEP, **window(2000, 1, "SIGMOID")), np.where(DEEP > 2000, 255.0, 0.0)),
    "window of width 0": (dicom(DEEP, **window(2000, 0)), MEANT),
    "window past all values": (dicom(DEEP, **window(9000, 10)), MEANT),
    "window without a value": (dicom(DEEP, **window("", "")), MEANT),
    "inverse": (dicom(DEEP, PhotometricInterpretation="MONOCHROME1"), 255 - MEANT),
    "VOI LUT of 8 bits": (dicom(DEEP, VOILUTSequence=lut(FALLING)), 255 - DEEP // 16),
    "modality LUT": (TABLED, real_range(255 - DEEP // 16)),
    "padding": (dicom(PADDED, PixelPaddingValue=-2000), UNPADDED),
    "padding that a scanner writes unsigned": (unsigned_padding(), UNPADDED),
    "colour": (dicom(COLOUR), COLOUR),
    "colour of 16 bits": (dicom(COLOUR.astype(np.uint16) * 9 + 77), real_range(COLOUR)),
    "palette of 16 bits": (dicom(GREY, **palette()), PAINTED),
    "first of two frames": (dicom(DEEP, **TWO_FRAMES), MEANT),
    "enhanced": (dicom(DEEP, **TWO_FRAMES, **GROUPS), ramp(DEEP * 2.0 - 1000, 1000, 3000)),
    "JPEG inside": (JPEG_IN_DICOM, real_range(np.asarray(Image.open(io.BytesIO(JPEG))))),
    "first of two JPEG 2000 inside": (framed(DEEP, JPEG_2000, *J2K, NumberOfFrames=2), MEANT),
}


@pytest.mark.parametrize("name", SHOWN)
def test_shows(name: str) -> None:
    """The pixels as they are meant, and in a shard a PNG with nothing but these."""
    data, expected = SHOWN[name]
    image = decode(data)
    assert image.mode == ("L" if expected.ndim == 2 else "RGB")
    assert np.abs(np.asarray(image).astype(int) - expected).max() <= 1  # rounding
    stored = prepare(data)
    assert (stored.extension, stored.reencoded) == ("png", "DICOM file")
    assert stored.multi_frame == (b"\x28\0\x08\0IS\2\x002 " in data)  # the number of frames
    kept = Image.open(io.BytesIO(stored.data))
    assert np.array_equal(np.asarray(kept), np.asarray(image))
    assert not kept.info


def shipped(name: str) -> bytes:
    return Path(pydicom.data.get_testdata_file(name, download=False)).read_bytes()


@needs_gdcm
@pytest.mark.parametrize("name", ["jpeg_ls_lossless", "jp2klossless", "RLE", "bigendian"])
def test_all_ways_to_store_one_image_give_the_same(name: str) -> None:
    """Files that come with pydicom."""
    plain, other = (shipped(f"MR_small{end}.dcm") for end in ("", f"_{name}"))
    assert np.array_equal(np.asarray(decode(plain)), np.asarray(decode(other)))


PLAIN = dicom(DEEP)
UNUSABLE: dict[str, tuple[bytes, str, str]] = {
    "no pixels": (dicom(None), "no picture", "DICOM object without pixels"),
    "cut in the pixels": (PLAIN[:-900], "truncated", "2940 vs 3840 bytes"),
    "cut in the header": (PLAIN[:300], "no picture", "or cut before them"),
    "cut before the pixels": (dicom(DEEP, PixelData=None), "truncated", "without whole pixels"),
    "compressed, cut": (JPEG_IN_DICOM[:-300], "truncated", "without whole pixels"),
    "a film": (framed(GREY, MPEG, b"film"), "undecodable", "can't use 'MPEG2 Main"),
    "an odd colour space": (
        dicom(COLOUR, PhotometricInterpretation="DOE JANE"),
        "undecodable",
        r"^undecodable \(pydicom can't use \(0028,0004\) 'Photometric Interpretation'\)$",
    ),
    "a number that is none": (
        dicom(DEEP, NumberOfFrames="1").replace(b"IS\x02\x001 ", b"IS\x02\x001A"),
        "undecodable",
        r"^undecodable \(pydicom can't use its header or its pixels\)$",
    ),
    "nothing but padding": (dicom(DEEP * 0 + 7, PixelPaddingValue=7), "blank", "every pixel is 0"),
    "deflated": (dicom(None, syntax="1.2.840.10008.1.2.1.99"), "undecodable", "a deflated DICOM"),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_refuses(name: str) -> None:
    data, reason, detail = UNUSABLE[name]
    with pytest.raises(BadImage, match=detail) as caught:
        prepare(data, max_pixels=1_000_000)
    assert caught.value.reason == reason
    assert "\n" not in caught.value.detail


@pytest.mark.parametrize("data", [PLAIN, JPEG_IN_DICOM, dicom(DEEP, PixelData=b"..")])
def test_rows_and_columns_are_looked_at_before_the_pixels(data: bytes) -> None:
    with pytest.raises(BadImage, match=r"over max pixels \(48 x 40, limit 1919 pixels\)"):
        decode(data, max_pixels=40 * 48 - 1)


def test_a_frame_that_makes_pydicom_loop_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A JPEG 2000 box of length 0: the reader of boxes never gets past it."""
    monkeypatch.setattr(module, "_SECONDS", 1)
    with pytest.raises(BadImage, match="took over 1 s"):
        decode(framed(DEEP, JPEG_2000, b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(16)))


@needs_gdcm
def test_a_frame_that_makes_gdcm_abort_is_an_error() -> None:
    data = bytearray(shipped("MR_small_jpeg_ls_lossless.dcm"))
    data[data.rindex(b"\xff\xf7") + 4] = 17  # bits per sample, of the JPEG-LS frame
    with pytest.raises(BadImage, match=r"undecodable \("):
        decode(bytes(data))


def test_without_gdcm_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    from pydicom.pixels import get_decoder

    decoder = get_decoder(JPEG_LS)
    monkeypatch.setattr(decoder, "_available", {})
    monkeypatch.setattr(decoder, "_unavailable", {"gdcm": ("gdcm>=3.0.10",)})
    with pytest.raises(BadImage, match=r"undecodable.*JPEG-LS.*pip install .medclip_oc"):
        decode(framed(DEEP, JPEG_LS, b".."))


def test_no_patient_tag_reaches_a_shard(tmp_path: Path) -> None:
    secrets = {"StudyDescription": "SECRET study", "OtherPatientIDs": "SECRET-99"}
    good = dicom(DEEP, **window(2000, 4000), **secrets, PatientBirthDate="19470811")
    files = {"a.dcm": good, "b.dcm": good[:-100]}
    folder = write_split(tmp_path / "source", "test", "ID,Caption\na,chest\nb,broken\n", files)
    assert b"Doe" in good
    pack(open_source(folder, ["test"]), tmp_path / "out", PackOptions(resize=16))
    sample = ShardSet.open(str(tmp_path / "out"), "test").read(0)
    assert (sample.extension, sample.facts["reencoded"]) == ("jpg", "DICOM file")
    written = b"".join(path.read_bytes() for path in (tmp_path / "out").iterdir())
    assert b"truncated" in written
    for secret in (b"Doe", b"Jane", b"4711", b"SECRET", b"19470811"):
        assert secret not in written


def test_packing_without_pydicom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line, and not a reject for every image."""
    table, files = "ID,Caption\na,chest\n", {"a.jpg": dicom(DEEP)}
    folder = write_split(tmp_path / "source", "test", table, files)
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(InputError, match="needs pydicom: pip install"):
        pack(open_source(folder, ["test"]), tmp_path / "out")
