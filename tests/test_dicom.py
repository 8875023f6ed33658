"""A DICOM's pixels come out as they are meant to be seen; nothing else of it comes out."""

import importlib.util
import io
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from odd_files import dicom, file
from pairs import picture, write_kaggle
from PIL import Image

from medclip_oc import dicom as module
from medclip_oc import images
from medclip_oc.errors import BadImage, InputError
from medclip_oc.packing import PackOptions, pack
from medclip_oc.shards import ShardSet
from medclip_oc.source_forms import open_source

pydicom = pytest.importorskip("pydicom")
needs_gdcm = pytest.mark.skipif(not importlib.util.find_spec("gdcm"), reason="needs python-gdcm")

GREY = np.asarray(picture(5))  # (40, 48) uint8, 0 to about 240
DEEP = GREY.astype(np.uint16) * 15 + 100  # (40, 48), 12 bits
SIGNED = DEEP.astype(np.int16) - 2000
COLOUR = np.stack([GREY, 255 - GREY, np.roll(GREY, 5)], axis=-1)  # (40, 48, 3)
JPEG_SYNTAX, RLE, JPEG_2000, JPEG_LS, MPEG = (
    f"1.2.840.10008.1.2.{end}" for end in ("4.50", "5", "4.90", "4.80", "4.100")
)


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(images.decode(data))


def spread(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Linearly from low..high to 0..255, and no further."""
    return ((values.astype(float) - low) / (high - low) * 255).clip(0, 255).round()


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


REAL_RANGE = spread(DEEP, DEEP.min(), DEEP.max())
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
    "signed": (dicom(SIGNED), REAL_RANGE),
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
    "window wider than the values": (
        dicom(GREY, WindowCenter=500, WindowWidth=1001),
        ramp(GREY, 500, 1001),
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
    "inverse, windowed": (
        dicom(DEEP, PhotometricInterpretation="MONOCHROME1", WindowCenter=2000, WindowWidth=1000),
        255 - ramp(DEEP, 2000, 1000),
    ),
    "VOI LUT of 8 bits": (
        dicom(DEEP, VOILUTSequence=lut(0, 8, FALLING)),
        spread(255 - DEEP // 16, 0, 255),
    ),
    "VOI LUT before a window": (
        dicom(DEEP, VOILUTSequence=lut(0, 8, FALLING), WindowCenter=2000, WindowWidth=1000),
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
    "padding, inverse": (
        dicom(PADDED, PixelPaddingValue=-2000, PhotometricInterpretation="MONOCHROME1"),
        np.where(INSIDE, 255 - spread(PADDED, PADDED[INSIDE].min(), PADDED[INSIDE].max()), 0),
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
    "long palette of 8 bits": (
        dicom(DEEP, **palette(4096, "u1")),
        np.stack([DEEP * (255 / 4095) // 1, (4095 - DEEP) * (255 / 4095) // 1, DEEP * 0 + 255], -1),
    ),
    "first of two frames": (dicom(DEEP, NumberOfFrames=2, PixelData=TWO_FRAMES), REAL_RANGE),
    "enhanced": (
        dicom(DEEP, NumberOfFrames=2, PixelData=TWO_FRAMES, **ENHANCED),
        ramp(DEEP * 2.0 - 1000, 1000, 3000),
    ),
}


@pytest.mark.parametrize("name", SHOWN)
def test_shows(name: str) -> None:
    data, expected = SHOWN[name]
    found = images.decode(data)
    assert found.mode == ("L" if expected.ndim == 2 else "RGB")
    assert np.abs(np.asarray(found).astype(int) - expected).max() <= 1  # rounding


@pytest.mark.parametrize("name", SHOWN)
def test_a_shard_gets_a_png_without_any_metadata(name: str) -> None:
    data, _ = SHOWN[name]
    stored = images.prepare(data)
    assert stored == images.prepare(data, check=False)
    assert (
        (stored.extension, stored.reencoded)
        == ("png", "DICOM file")
        == ("png", images.unsafe(data))
    )
    kept = Image.open(io.BytesIO(stored.data))
    assert np.array_equal(np.asarray(kept), pixels(data))
    assert not kept.info


def test_padding_that_a_scanner_writes_unsigned() -> None:
    data = dicom(PADDED, PixelPaddingValue=None)
    element = b"\x28\0\x20\1US\2\0" + (65536 - 2000).to_bytes(2, "little")
    after = data.index(b"\xe0\x7f\x10\0")  # the pixels come next
    data = data[:after] + element + data[after:]
    assert np.array_equal(pixels(data), pixels(SHOWN["padding"][0]))


# -------------------------------------------------------------------------------------- compressed


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


def deflated(content: bytes) -> bytes:
    """A DICOM file whose data set is deflated."""
    head = dicom(None, syntax="1.2.840.10008.1.2.1.99")
    length = 132 + 12 + int.from_bytes(head[140:144], "little")
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return head[:length] + packer.compress(content) + packer.flush()


def main_part(data: bytes) -> bytes:
    """What follows the file meta information."""
    return data[132 + 12 + int.from_bytes(data[140:144], "little") :]


PLAIN = dicom(DEEP)
UNUSABLE: dict[str, tuple[bytes, str, str]] = {
    "no pixels": (dicom(None), "undecodable", "DICOM without pixels"),
    "cut in the pixels": (PLAIN[:-900], "truncated", "2940 vs 3840 bytes"),
    "cut before the pixels": (PLAIN[:300], "undecodable", "without pixels"),
    "compressed, cut": (jpeg_in_dicom()[:-300], "truncated", "ends within its pixels"),
    "compressed, cut within a frame": (
        dicom(GREY, syntax=JPEG_SYNTAX, PixelData=frames(b"\xff\xd8\xff\xe0 cut")),
        "undecodable",
        "pillow: ",
    ),
    "a film": (
        dicom(GREY, syntax=MPEG, PixelData=frames(b"film")),
        "undecodable",
        "transfer syntax MPEG2 .* is not supported",
    ),
    "an unknown transfer syntax": (
        dicom(GREY, syntax="1.2.3.4", PixelData=frames(b"?")),
        "undecodable",
        "not supported",
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
    "the mark alone": (PLAIN[:132], "undecodable", "without pixels"),
    "deflated without end": (deflated(bytes(20_000_000)), "over max pixels", "deflated bytes"),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_refuses(name: str) -> None:
    data, reason, detail = UNUSABLE[name]
    with pytest.raises(BadImage, match=detail) as caught:
        images.prepare(data, max_pixels=1_000_000)
    assert caught.value.reason == reason
    assert "\n" not in caught.value.detail


def test_deflated_is_read() -> None:
    assert np.array_equal(pixels(deflated(main_part(PLAIN))), REAL_RANGE)


@pytest.mark.parametrize("data", [PLAIN, jpeg_in_dicom(), dicom(DEEP, PixelData=b"..")])
def test_rows_and_columns_are_looked_at_before_the_pixels(data: bytes) -> None:
    with pytest.raises(BadImage, match=r"over max pixels \(48 x 40, limit 1919 pixels\)"):
        images.decode(data, max_pixels=40 * 48 - 1)


def test_a_frame_that_makes_pydicom_loop_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A JPEG 2000 box of length 0: the reader of boxes never gets past it."""
    monkeypatch.setattr(module, "_SECONDS", 1)
    box = b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(16)
    start = time.monotonic()
    with pytest.raises(BadImage, match="took over 1 s"):
        images.decode(dicom(DEEP, syntax=JPEG_2000, PixelData=frames(box)))
    assert time.monotonic() - start < 30


@needs_gdcm
@pytest.mark.parametrize("wrong", [(4, 17), (8, 0)])  # bits per sample; columns
def test_a_frame_that_makes_gdcm_abort_is_an_error(wrong: tuple[int, int]) -> None:
    path = pydicom.data.get_testdata_file("MR_small_jpeg_ls_lossless.dcm", download=False)
    data = bytearray(Path(path).read_bytes())
    place, value = wrong
    data[data.rindex(b"\xff\xf7") + place] = value  # in the header of the JPEG-LS frame
    with pytest.raises(BadImage, match=r"undecodable \(") as caught:
        images.decode(bytes(data))
    assert "\n" not in caught.value.detail


def test_without_pydicom_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(
        InputError, match="needs pydicom: pip install pydicom python-gdcm"
    ) as caught:
        images.decode(PLAIN)
    assert not isinstance(caught.value, BadImage)  # not this file's fault: packing stops


def test_without_gdcm_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    from pydicom.pixels import get_decoder

    decoder = get_decoder(JPEG_LS)
    monkeypatch.setattr(decoder, "_available", {})
    monkeypatch.setattr(decoder, "_unavailable", {"gdcm": ("gdcm>=3.0.10",)})
    with pytest.raises(BadImage, match=r"undecodable.*JPEG-LS.*pip install pydicom python-gdcm"):
        images.decode(dicom(DEEP, syntax=JPEG_LS, PixelData=frames(b"..")))


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
