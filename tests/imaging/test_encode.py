"""What each kind of picture file becomes, and which files can't be used."""

import io
import pickle
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from medclip_oc.errors import BadImage
from medclip_oc.imaging import dicom
from medclip_oc.imaging.decode import decode
from medclip_oc.imaging.encode import png, prepare
from tests.support.image_files import SMALL, file, png_16, turned

GREY = np.random.default_rng(0).integers(0, 256, (9, 13), dtype=np.uint8)  # (H, W)
COLOUR = np.random.default_rng(1).integers(0, 256, (9, 13, 3), dtype=np.uint8)  # (H, W, 3)
DEEP = np.random.default_rng(2).integers(300, 4096, (9, 13, 4), dtype=np.uint16)  # (H, W, 4)
SMOOTH = Image.fromarray(GREY).resize((52, 36), Image.Resampling.BICUBIC)


def saved(values: np.ndarray, kind: str = "PNG", **how: Any) -> bytes:
    return file(Image.fromarray(values), kind, **how)


def windowed(values: np.ndarray) -> np.ndarray:
    numbers = values.astype(float)
    scaled = (numbers - numbers.min()) / (numbers.max() - numbers.min())
    return (scaled * 255).round().astype(np.uint8)


def with_alpha(alpha: int) -> bytes:
    return saved(np.dstack([COLOUR, GREY * 0 + alpha]))


FLOATS = GREY.astype(np.float32) / 7 - 3
HOLE = int(GREY[4, 4])
ABSENT = GREY == HOLE

EXACT: dict[str, tuple[bytes, np.ndarray]] = {
    "grey": (saved(GREY), GREY),
    "colour": (saved(COLOUR), COLOUR),
    "one bit": (saved(GREY > 99), np.where(GREY > 99, 255, 0)),
    "float with NaN": (
        saved(np.where(ABSENT, np.nan, FLOATS), "TIFF"),
        np.where(ABSENT, 0, windowed(FLOATS)),
    ),
    "one grey is transparent": (saved(GREY, transparency=HOLE), np.where(ABSENT, 0, GREY)),
    "opaque alpha": (with_alpha(255), COLOUR),
    "palette": (file(Image.fromarray(GREY).convert("P"), "PNG"), np.dstack([GREY] * 3)),
    "turned TIFF": (turned("TIFF", 6, Image.fromarray(GREY)), np.rot90(GREY, -1)),
    "turned PNG": (turned("PNG", 3, Image.fromarray(GREY)), np.rot90(GREY, 2)),
}
LOSSY: dict[str, bytes] = {
    "JPEG grey": file(SMOOTH, "JPEG"),
    "JPEG colour": file(SMOOTH.convert("RGB"), "JPEG"),
    "progressive": file(SMOOTH, "JPEG", progressive=True),
    "CMYK": file(SMOOTH.convert("RGB").convert("CMYK"), "JPEG", quality=95),
    "turned": turned("JPEG", 6, SMOOTH),
    "mirrored": turned("JPEG", 5, SMOOTH),
    "turned by XMP": file(SMOOTH, "JPEG", xmp=b'<x tiff:Orientation="6"/>'),
    "junk for EXIF": file(SMOOTH, "JPEG", exif=b"Exif\0\0what is this"),
}
KEPT = {"grey", "colour", "one bit", "opaque alpha", "palette", "JPEG grey", "JPEG colour"}
KEPT |= {"progressive", "junk for EXIF"}
FILES = {name: data for name, (data, _) in EXACT.items()} | LOSSY


@pytest.mark.parametrize("name", EXACT)
def test_decodes_to_these_pixels(name: str) -> None:
    data, expected = EXACT[name]
    picture = decode(data)
    assert picture.mode == ("L" if expected.ndim == 2 else "RGB")
    # alpha is laid over in whole numbers, which may round the other way
    slack = 1 if "transparent" in name or "alpha" in name else 0
    assert np.abs(np.asarray(picture).astype(int) - expected).max() <= slack


@pytest.mark.parametrize("name", FILES)
def test_a_shard_shows_stock_readers_the_same(name: str) -> None:
    """The promise of `prepare`, whatever the file: `open(...).convert("RGB")` is right."""
    data = FILES[name]
    stored = prepare(data)
    assert (stored.data == data) == (stored.reencoded is None) == (name in KEPT)
    assert stored.extension == ("jpg" if name in LOSSY else "png")
    assert prepare(data, check=False) == stored
    assert prepare(stored.data).data == stored.data
    ours, stock = decode(data), Image.open(io.BytesIO(stored.data))
    assert (stored.width, stored.height, stored.mode) == (*ours.size, ours.mode)
    difference = np.asarray(stock.convert("RGB")).astype(int) - np.asarray(ours.convert("RGB"))
    assert np.abs(difference).max() <= (0 if stored.data == data or name in EXACT else 6)


LONG_NAMES = {"jpg": "JPEG", "png": "PNG"}


@pytest.mark.parametrize("image_format", LONG_NAMES)
@pytest.mark.parametrize("name", FILES)
def test_all_become_one_format_and_those_that_have_it_stay(name: str, image_format: Any) -> None:
    data, usual = FILES[name], prepare(FILES[name])
    stored = prepare(data, image_format=image_format)
    assert prepare(data, check=False, image_format=image_format) == stored
    if usual.extension == image_format:
        assert stored == usual
        return
    ours, stock = decode(data), Image.open(io.BytesIO(stored.data))
    assert (stored.extension, stock.format) == (image_format, LONG_NAMES[image_format])
    assert stored.reencoded
    difference = np.asarray(stock.convert("RGB")).astype(int) - np.asarray(ours.convert("RGB"))
    assert (np.abs(difference).mean() < 6) if image_format == "jpg" else not difference.any()
    assert prepare(data, resize=8, image_format=image_format).extension == image_format


ARTIST = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x3b\0\x02\0\0\0\x04Doe\0\0\0\0\0"
TELLING: dict[str, bytes] = {
    "JPEG": file(SMOOTH.convert("CMYK"), "JPEG", comment="Doe", icc_profile=b"Doe", exif=ARTIST),
    "PNG": file(Image.merge("LA", (SMOOTH, SMOOTH)), "PNG", icc_profile=b"Doe", exif=ARTIST),
    "TIFF": file(SMOOTH, "TIFF", icc_profile=b"Doe", artist="Doe"),
    "GIF": file(SMOOTH, "GIF", comment=b"Doe"),
    "WebP": file(SMOOTH, "WEBP", icc_profile=b"Doe", exif=ARTIST),
}


@pytest.mark.parametrize("resize", [None, 8])
@pytest.mark.parametrize("kind", TELLING)
def test_new_files_carry_no_metadata(kind: str, resize: int | None) -> None:
    stored = prepare(TELLING[kind], resize=resize)
    assert stored.reencoded
    assert b"Doe" not in stored.data
    found = Image.open(io.BytesIO(stored.data))
    assert not found.info.keys() - {"jfif", "jfif_version", "jfif_unit", "jfif_density"}


JPEG, PNG = LOSSY["JPEG grey"], EXACT["colour"][0]
UNUSABLE: dict[str, tuple[bytes, str]] = {
    "JPEG without its last pixels": (JPEG[:-3], "truncated"),
    "PNG with a damaged stream": (PNG.replace(b"IDAT", b"IDOT"), "undecodable"),
    "nothing but NaN": (saved(FLOATS * np.nan, "TIFF"), "blank"),
    "all transparent": (with_alpha(0), "blank"),
    "16-bit grey and alpha": (png_16(DEEP[..., 2:]), "undecodable"),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_refuses(name: str) -> None:
    data, reason = UNUSABLE[name]
    with pytest.raises(BadImage) as caught:
        prepare(data)
    assert caught.value.reason == reason
    assert caught.value.detail
    again = pickle.loads(pickle.dumps(caught.value))  # it crosses between processes
    assert (str(again), again.reason) == (str(caught.value), reason)


@pytest.mark.parametrize("name", ["JPEG grey", "progressive", "grey"])
def test_quick_check_finds_what_decoding_finds(name: str) -> None:
    def verdict(read: Callable[[bytes], Any], data: bytes) -> str:
        try:
            read(data)
        except BadImage as error:
            return error.reason
        return "fine"

    data = FILES[name]
    ends = range(0, len(data), 7)
    verdicts = [verdict(decode, data[:end]) for end in ends]
    assert verdicts == [verdict(prepare, data[:end]) for end in ends]
    assert "truncated" in verdicts
    assert prepare(data[: len(data) // 2], check=False).data == data[: len(data) // 2]  # unnoticed


KINDS = ("JPEG", "PNG", "GIF", "TIFF", "WEBP", "JPEG2000", "BMP", "PPM")
SIZED = [*(file(SMALL, kind) for kind in KINDS), png_16(np.zeros((40, 60, 1), dtype=np.uint16))]


@pytest.mark.parametrize("data", SIZED, ids=[*KINDS, "16-bit PNG"])
def test_pixels_are_counted_before_any_is_decoded(
    data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert decode(data, max_pixels=2400).size == (60, 40)
    monkeypatch.setattr("medclip_oc.imaging.decode.flatten", pytest.fail)
    for read in (decode, prepare):
        with pytest.raises(BadImage, match=r"over max pixels \(60 x 40, limit 2399 pixels\)"):
            read(data, max_pixels=2399)


@pytest.mark.parametrize("pixels", [GREY, COLOUR, GREY.T, GREY[:1], COLOUR[:, :1]])
def test_a_png_is_read_again(pixels: np.ndarray) -> None:
    image = Image.open(io.BytesIO(png(pixels)))
    image.load()
    assert (image.mode, image.info) == ("L" if pixels.ndim == 2 else "RGB", {})
    assert np.array_equal(image, pixels)


@pytest.mark.parametrize("dtype", ["<i2", ">i2", "<u2", ">u2", "i1", "u1", "u4", "f4"])
def test_by_value_is_as_pixel_by_pixel(dtype: str) -> None:
    stored = (np.random.default_rng(3).normal(0, 99, (9, 13)) * 999).astype(dtype)
    seen = list[np.ndarray]()

    def function(values: np.ndarray) -> np.ndarray:
        seen.append(values)
        return values.astype(float) - values.min() * 0.5

    made, where = dicom.by_value(function, stored)
    assert np.array_equal(made[where], function(stored))
    assert seen[0].dtype.newbyteorder("=") == stored.dtype.newbyteorder("=")
    assert {*made.ravel()} <= {*function(seen[0]).ravel()}  # also between those that there are


def test_many_bits_take_little_more_memory_than_they_have() -> None:
    values = (np.arange(4_000_000) % 65536).astype(np.uint16).reshape(2000, 2000)
    tracemalloc.start()
    shown = dicom.window(values)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.5 * shown.nbytes
    assert np.array_equal(shown, np.rint(values / 65535 * 255).astype(np.uint8))
