"""Stored with the shorter side at so many pixels: which size, how good, and what stays."""

import hashlib
import io
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from PIL import Image

from medclip_oc.data.shards import ShardSet
from medclip_oc.errors import InputError
from medclip_oc.imaging.decode import decode
from medclip_oc.imaging.encode import prepare
from medclip_oc.packing.formats import open_source
from medclip_oc.packing.pack import PackOptions, pack
from tests.support.image_files import dicom, file, png_16, turned
from tests.support.tiny_dataset import jpeg, picture, write_kaggle


def detailed(width: int, height: int) -> Image.Image:
    """Structure at every scale, as a radiograph has it, and some noise."""
    noise = np.random.default_rng(7)
    total = noise.normal(0, 0.02, (height, width))
    for cells in (3, 12, 48, 192):
        coarse = Image.fromarray(noise.normal(0, 1, (cells, cells)).astype(np.float32))
        total += np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)) / cells**0.5
    return Image.fromarray(((total - total.min()) / np.ptp(total) * 255).astype(np.uint8))


LARGE = detailed(1500, 1100)
LARGE_JPEG = file(LARGE, "JPEG", quality=92)


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    error = np.mean((one.astype(float) - other) ** 2)
    return float(10 * np.log10(255**2 / error))


@pytest.mark.parametrize(
    ("before", "resize", "after"),
    [
        ((400, 300), 100, (133, 100)),
        ((300, 400), 100, (100, 133)),
        ((101, 100), 50, (51, 50)),  # 50.5: halves up
        ((7, 900), 1, (1, 129)),
        ((16, 12), 11, (15, 11)),  # 14.7
    ],
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
def test_size(kind: str, before: tuple[int, int], resize: int, after: tuple[int, int]) -> None:
    stored = prepare(file(picture(3, before), kind), resize=resize)
    assert Image.open(io.BytesIO(stored.data)).size == (stored.width, stored.height) == after
    assert (stored.resized_from, stored.extension, stored.mode) == (before, "jpg", "L")
    assert stored.reencoded == ("TIFF file" if kind == "TIFF" else "resized")
    whole, short = prepare(file(picture(3, before), kind)), min(before)  # nothing is enlarged
    assert prepare(file(picture(3, before), kind), resize=short) == whole


def test_a_reduced_decode_loses_nothing_that_can_be_seen() -> None:
    """Against the full decode: less difference than the JPEG at quality 95 makes by itself."""
    expected = np.asarray(decode(LARGE_JPEG).resize((170, 125), Image.Resampling.LANCZOS))
    stored = prepare(LARGE_JPEG, resize=125)
    encoded = pixels(file(Image.fromarray(expected), "JPEG", quality=95))
    assert pixels(stored.data).shape == expected.shape
    assert psnr(pixels(stored.data), expected) > max(38, psnr(encoded, expected) - 1.5)


def test_large_jpegs_are_decoded_at_a_reduced_scale() -> None:
    """The scale still covers at least twice what is wanted, each way."""
    real = Image.Image.resize
    with patch.object(Image.Image, "resize", autospec=True, side_effect=real) as spy:
        for resize in (60, 125, 137, 138, 275, 276):
            prepare(LARGE_JPEG, resize=resize)
    seen = [call.args[0].size for call in spy.call_args_list]
    assert seen == [(188, 138), (375, 275), (375, 275), (750, 550), (750, 550), (1500, 1100)]


def test_no_shift_where_the_reduced_size_is_not_whole() -> None:
    """65 pixels at an eighth are 8.1: the ninth column stands for a part of one."""
    ramp = Image.fromarray(np.tile(np.linspace(0, 255, 65).astype(np.uint8), (65, 1)))
    data = file(ramp, "JPEG", quality=95)
    expected = np.asarray(decode(data).resize((4, 4), Image.Resampling.LANCZOS))
    found = pixels(prepare(data, resize=4).data)
    assert np.abs(found.astype(int) - expected).max() <= 4


def test_quality_95_without_chroma_subsampling() -> None:
    colour = Image.merge("RGB", (LARGE, LARGE.rotate(180), LARGE))
    stored = prepare(file(colour, "JPEG"), resize=200)
    found = Image.open(io.BytesIO(stored.data))
    reference = Image.open(io.BytesIO(file(colour, "JPEG", quality=95, subsampling=0)))
    assert found.quantization == reference.quantization
    assert {layer[1:3] for layer in found.layer} == {(1, 1)}


SMALL = LARGE.resize((150, 110))
DEEP = np.asarray(SMALL).astype(np.uint16)[..., None] * 9 + 300
OTHERS = {
    "more than 8 bits per channel": png_16(DEEP),
    "mode CMYK": file(SMALL.convert("CMYK"), "JPEG"),
    "DICOM file": dicom(DEEP[..., 0]),
    "resized": file(SMALL.convert("P"), "PNG"),
    "EXIF orientation 6": turned("JPEG", 6, SMALL.transpose(Image.Transpose.ROTATE_90)),
}


@pytest.mark.parametrize("reason", OTHERS)
def test_other_kinds_are_shrunk_after_their_own_rule(reason: str) -> None:
    stored = prepare(OTHERS[reason], resize=55)
    assert (stored.extension, stored.width, stored.height) == ("jpg", 75, 55)
    assert (stored.reencoded, stored.resized_from) == (reason, (150, 110))
    expected = decode(OTHERS[reason]).resize((75, 55), Image.Resampling.LANCZOS)
    assert psnr(pixels(stored.data), np.asarray(expected)) > 36


def test_a_side_too_long_for_jpeg_makes_a_png() -> None:
    for before, extension, after in ((70_000, "jpg", 64_167), (90_000, "png", 82_500)):
        stored = prepare(file(picture(3, (before, 12)), "TIFF"), resize=11)
        assert (stored.extension, stored.width, stored.height) == (extension, after, 11)


def test_detail_finer_than_the_reduced_scale_is_no_blankness() -> None:
    """At an eighth of its size, a fine checkerboard is one grey."""
    board = np.indices((640, 640)).sum(0) % 2 * 200
    data = file(Image.fromarray(board.astype(np.uint8)), "JPEG", quality=95)
    assert prepare(data).data == data
    assert prepare(data, resize=40).width == 40


def test_packing_says_what_was_resized(tmp_path: Path) -> None:
    folder = write_kaggle(tmp_path / "source", {"test": 2})
    (folder / "test_images" / "test" / "test_0001.jpg").write_bytes(LARGE_JPEG)
    report = pack(open_source(folder, ["test"]), tmp_path / "out", PackOptions(resize=64))
    assert report.reencoded == {"resized": 1}
    small, large = (ShardSet.open(str(tmp_path / "out"), "test").read(n) for n in (0, 1))
    assert (small.image, small.facts["width"]) == (jpeg(0), 48)
    expected = {"width": 87, "height": 64, "resized_from": [1500, 1100], "reencoded": "resized"}
    expected["sha256"] = hashlib.sha256(LARGE_JPEG).hexdigest()
    assert large.facts.items() >= expected.items()
    with pytest.raises(InputError, match="resize 64, not null"):
        pack(open_source(folder, ["test"]), tmp_path / "out")
