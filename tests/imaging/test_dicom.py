"""A DICOM's pixels come out as they are meant to be seen; nothing else of it comes out."""

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from medclip_oc.data.shards import ShardSet
from medclip_oc.errors import InputError
from medclip_oc.imaging.decode import decode
from medclip_oc.imaging.encode import prepare
from medclip_oc.packing.formats import open_source
from medclip_oc.packing.pack import PackOptions, pack
from tests.support.dicom_pixels import COLOUR, DEEP, GREY, REAL_RANGE, SIGNED, pixels, spread
from tests.support.odd_files import dicom
from tests.support.tiny_dataset import write_kaggle

pydicom = pytest.importorskip("pydicom")


def ramp(values: np.ndarray, centre: float, width: float) -> np.ndarray:
    """The window of DICOM PS3.3, C.11.2.1.2.1: its formula, towards 0..255."""
    scaled = ((values.astype(float) - (centre - 0.5)) / (width - 1) + 0.5) * 255
    return scaled.clip(0, 255).round()


def lut(first: int, bits: int, entries: list[int]) -> Any:
    table = pydicom.Dataset()
    table.add_new("LUTDescriptor", "US" if first >= 0 else "SS", [len(entries), first, bits])
    table.add_new("LUTData", "US", entries)
    return pydicom.Sequence([table])


def palette(entries: int, words: str) -> dict[str, Any]:
    """Tags of a palette whose red rises, whose green falls and whose blue is constant."""
    top = 255 if words == "u1" else 65535
    rising = np.linspace(0, top, entries).astype(words)
    tags: dict[str, Any] = {"PhotometricInterpretation": "PALETTE COLOR"}
    for name, values in (("Red", rising), ("Green", rising[::-1]), ("Blue", rising * 0 + top)):
        bits = 8 * values.dtype.itemsize
        tags[f"{name}PaletteColorLookupTableDescriptor"] = [entries, 0, bits]
        tags[f"{name}PaletteColorLookupTableData"] = values.tobytes()
    return tags


def group(**items: Any) -> Any:
    """A functional group of an enhanced object: {macro: {keyword: value}}."""
    functions = pydicom.Dataset()
    for macro, values in items.items():
        inner = pydicom.Dataset()
        for keyword, value in values.items():
            setattr(inner, keyword, value)
        setattr(functions, macro, pydicom.Sequence([inner]))
    return pydicom.Sequence([functions])


PADDED = np.where(GREY > 200, -2000, SIGNED).astype(np.int16)
INSIDE = PADDED != -2000
TWO_FRAMES = np.concatenate([DEEP, DEEP[::-1]]).tobytes()
HOUNSFIELD = {"RescaleSlope": 2, "RescaleIntercept": -1000}
FALLING = [255 - n // 16 for n in range(4096)]
ENHANCED = {
    "SharedFunctionalGroupsSequence": group(PixelValueTransformationSequence=HOUNSFIELD),
    "PerFrameFunctionalGroupsSequence": group(
        FrameVOILUTSequence={"WindowCenter": 1000, "WindowWidth": 3000}
    ),
}

SHOWN: dict[str, tuple[bytes, np.ndarray]] = {
    "8 bits": (dicom(GREY), spread(GREY, GREY.min(), GREY.max())),
    "12 bits": (dicom(DEEP, BitsStored=12, HighBit=11), REAL_RANGE),
    "rescaled": (dicom(SIGNED, **HOUNSFIELD), REAL_RANGE),
    "falling rescale": (dicom(DEEP, RescaleSlope=-1, RescaleIntercept=0), 255 - REAL_RANGE),
    "window": (dicom(DEEP, WindowCenter=2000, WindowWidth=1000), ramp(DEEP, 2000, 1000)),
    "first of several windows": (
        dicom(DEEP, WindowCenter=[2000, 40], WindowWidth=[1000, 80]),
        ramp(DEEP, 2000, 1000),
    ),
    "window after rescale": (
        dicom(SIGNED, WindowCenter=0, WindowWidth=4000, **HOUNSFIELD),
        ramp(SIGNED * 2.0 - 1000, 0, 4000),
    ),
    "window after a falling rescale": (
        dicom(DEEP, WindowCenter=-2000, WindowWidth=1000, RescaleSlope=-1, RescaleIntercept=0),
        ramp(-DEEP.astype(int), -2000, 1000),
    ),
    "exact window": (
        dicom(DEEP, WindowCenter=2000, WindowWidth=1000, VOILUTFunction="LINEAR_EXACT"),
        spread(DEEP, 1500, 2500),
    ),
    "sigmoid": (
        dicom(DEEP, WindowCenter=2000, WindowWidth=1, VOILUTFunction="SIGMOID"),
        np.where(DEEP > 2000, 255.0, 0.0),
    ),
    "window of width 0": (dicom(DEEP, WindowCenter=2000, WindowWidth=0), REAL_RANGE),
    "window past all values": (dicom(DEEP, WindowCenter=9000, WindowWidth=10), REAL_RANGE),
    "window without a value": (dicom(DEEP, WindowCenter="", WindowWidth=""), REAL_RANGE),
    "inverse": (dicom(DEEP, PhotometricInterpretation="MONOCHROME1"), 255 - REAL_RANGE),
    "VOI LUT of 8 bits": (
        dicom(DEEP, VOILUTSequence=lut(0, 8, FALLING)),
        spread(255 - DEEP // 16, 0, 255),
    ),
    "VOI LUT that begins below 0": (
        dicom(SIGNED, VOILUTSequence=lut(-2000, 12, list(range(4096)))),
        spread(DEEP, 0, 4095),
    ),
    "modality LUT": (
        dicom(DEEP, BitsStored=12, HighBit=11, ModalityLUTSequence=lut(0, 8, FALLING)),
        spread(255 - DEEP // 16, (255 - DEEP // 16).min(), (255 - DEEP // 16).max()),
    ),
    "padding": (
        dicom(PADDED, PixelPaddingValue=-2000),
        np.where(INSIDE, spread(PADDED, PADDED[INSIDE].min(), PADDED[INSIDE].max()), 0),
    ),
    "padding by a range": (
        dicom(PADDED, PixelPaddingValue=-3000, PixelPaddingRangeLimit=-2000),
        np.where(INSIDE, spread(PADDED, PADDED[INSIDE].min(), PADDED[INSIDE].max()), 0),
    ),
    "one bit": (
        dicom(
            GREY,
            PixelData=np.packbits((GREY > 99).ravel(), bitorder="little").tobytes(),
            BitsAllocated=1,
            BitsStored=1,
            HighBit=0,
        ),
        np.where(GREY > 99, 255, 0),
    ),
    "floats": (
        dicom(
            GREY,
            PixelData=None,
            FloatPixelData=DEEP.astype(np.float32).tobytes(),
            BitsAllocated=32,
            BitsStored=None,
            HighBit=None,
        ),
        REAL_RANGE,
    ),
    "colour": (dicom(COLOUR), COLOUR),
    "colour in planes": (
        dicom(COLOUR, PlanarConfiguration=1, PixelData=COLOUR.transpose(2, 0, 1).tobytes()),
        COLOUR,
    ),
    "colour of 16 bits": (
        dicom(COLOUR.astype(np.uint16) * 9 + 77),
        spread(COLOUR, COLOUR.min(), COLOUR.max()),
    ),
    "palette": (
        dicom(GREY, **palette(256, "u1")),
        np.stack([GREY, 255 - GREY, GREY * 0 + 255], axis=-1),
    ),
    "palette of 16 bits": (
        dicom(GREY, **palette(256, "<u2")),
        np.stack([GREY, 255 - GREY, GREY * 0 + 255], axis=-1),
    ),
    "first of two frames": (dicom(DEEP, NumberOfFrames=2, PixelData=TWO_FRAMES), REAL_RANGE),
    "enhanced": (
        dicom(DEEP, NumberOfFrames=2, PixelData=TWO_FRAMES, **ENHANCED),
        ramp(DEEP * 2.0 - 1000, 1000, 3000),
    ),
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
    kept = Image.open(io.BytesIO(stored.data))
    assert np.array_equal(np.asarray(kept), np.asarray(image))
    assert not kept.info


def test_padding_that_a_scanner_writes_unsigned() -> None:
    data = dicom(PADDED, PixelPaddingValue=None)
    element = b"\x28\0\x20\1US\2\0" + (65536 - 2000).to_bytes(2, "little")
    after = data.index(b"\xe0\x7f\x10\0")  # the pixels come next
    data = data[:after] + element + data[after:]
    assert np.array_equal(pixels(data), pixels(SHOWN["padding"][0]))


# ------------------------------------------------------------------------------------------ packing


@pytest.mark.parametrize("resize", [None, 16])
def test_no_patient_tag_reaches_a_shard(tmp_path: Path, resize: int | None) -> None:
    secrets = {
        "PatientBirthDate": "19470811",
        "StudyDescription": "SECRET study",
        "ImageComments": "SECRET comment",
        "OtherPatientIDs": "SECRET-99",
        "InstitutionName": "SECRET clinic",
    }
    folder = write_kaggle(tmp_path / "source", {"test": 0})
    (folder / "test_captions.csv").write_text("ID,Caption\na,chest\nb,broken\n")
    good = dicom(DEEP, WindowCenter=2000, WindowWidth=4000, **secrets)
    (folder / "test_images" / "test" / "a.dcm").write_bytes(good)
    (folder / "test_images" / "test" / "b.dcm").write_bytes(good[:-100])
    assert b"Doe" in good
    pack(open_source(folder, ["test"]), tmp_path / "out", PackOptions(resize=resize))
    sample = ShardSet.open(str(tmp_path / "out"), "test").read(0)
    assert sample.extension == ("png" if resize is None else "jpg")
    assert sample.facts["reencoded"] == "DICOM file"
    written = b"".join(path.read_bytes() for path in (tmp_path / "out").iterdir())
    assert b"truncated" in written
    for secret in (b"Doe", b"Jane", b"4711", b"SECRET", b"19470811"):
        assert secret not in written


def test_without_pydicom_packing_stops_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line, and not a reject for every image."""
    folder = write_kaggle(tmp_path / "source", {"test": 1})
    (folder / "test_images" / "test" / "test_0000.jpg").write_bytes(dicom(DEEP))
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "pydicom", None)
        with pytest.raises(InputError, match="pip install pydicom python-gdcm"):
            pack(open_source(folder, ["test"]), tmp_path / "out")
    report = pack(open_source(folder, ["test"]), tmp_path / "out")  # installed: it goes on
    assert report.packed["test"] == 1
