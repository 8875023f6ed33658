"""Training-time changes: what they do to a picture, and what they never do."""

import io
import math
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance

from medclip_oc.config.schema import AugmentConfig
from medclip_oc.data.augment import TrainingTransform, _crop, _turn_and_tone
from medclip_oc.imaging.jpeg import Picture
from tests.support.tiny_dataset import picture

OFF: dict[str, Any] = dict.fromkeys(("rotation_degrees", "brightness", "contrast"), 0.0)
OFF["scale"] = (1.0, 1.0)


def encoded(image: Image.Image) -> Picture:
    """The picture in a file that loses nothing."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return Picture(buffer.getvalue())


def colour(seed: int, size: tuple[int, int] = (48, 40)) -> Image.Image:
    return Image.merge("RGB", [picture(seed + n, size) for n in range(3)])


def tensor(image: Image.Image) -> torch.Tensor:
    """(3, H, W) uint8."""
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def turned_and_toned(image: Image.Image, *how: Any) -> torch.Tensor:
    """(3, H, W) uint8."""
    pixels = np.array(image)  # (H, W), or with channels
    found = _turn_and_tone(pixels.reshape(*pixels.shape[:2], -1), *how)
    return torch.from_numpy(found).permute(2, 0, 1).expand(3, -1, -1)


def test_nothing_changes_that_was_not_asked_for() -> None:
    """Least of all left and right: captions say so."""
    rng = np.random.default_rng(0)
    grey, red = picture(1), colour(1)
    plain, flip, hue = (
        TrainingTransform((40, 48), "bicubic", AugmentConfig(**OFF, **more))
        for more in ({}, {"flip": True}, {"hue": 0.5})
    )
    for image in (grey, red):
        for _ in range(20):
            found = plain(encoded(image), rng)
            assert found.equal(tensor(image))
            assert found.is_contiguous()
    flips = [flip(encoded(red), rng) for _ in range(20)]
    mirrored = [found.equal(tensor(red).flip(-1)) for found in flips]
    assert 0 < sum(mirrored) < 20
    assert all(m or f.equal(tensor(red)) for m, f in zip(mirrored, flips, strict=True))
    assert not hue(encoded(red), rng).equal(tensor(red))
    assert hue(encoded(grey), rng).equal(tensor(grey))


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [(90, 70), (300, 400)])
def test_resizing_is_pillows(interpolation: str, size: tuple[int, int]) -> None:
    """Up and down, anti-aliased, but for rounding twice."""
    transform = TrainingTransform((64, 80), interpolation, AugmentConfig(**OFF), squash=True)
    image = colour(2, size)
    found = transform(encoded(image), np.random.default_rng(0))
    wanted = tensor(image.resize((80, 64), Image.Resampling[interpolation.upper()]))
    difference = (found.int() - wanted.int()).abs()
    assert difference.max() <= 2
    assert difference.float().mean() < 0.05


@pytest.mark.parametrize("source", [(48, 80), (60, 84)])
def test_turning_is_pillows(source: tuple[int, int]) -> None:
    """Of the same size, and resized at once, differently across and down."""
    (h, w), (height, width) = source, (48, 80)
    image = colour(3, (w, h))
    for degrees in (-10.0, 7.5):
        found = turned_and_toned(image, (height, width), math.radians(degrees), 1.0, 1.0)
        cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
        a, b, d, e = cos * w / width, -sin * w / width, sin * h / height, cos * h / height
        c, f = (w - a * width - b * height) / 2, (h - d * width - e * height) / 2
        how = Image.Transform.AFFINE, (a, b, c, d, e, f), Image.Resampling.BILINEAR
        wanted = tensor(image.transform((width, height), *how))
        # away from the corners, where the two blend into black differently
        inner = (..., slice(10, -10), slice(10, -10))
        assert (found[inner].int() - wanted[inner].int()).abs().max() <= 2
        assert found[:, 0, 0].sum() == 0


def test_fine_detail_is_averaged_before_it_is_turned() -> None:
    """Noise of a deviation of 74 levels, reduced by 4 in both directions."""
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (256, 256), dtype=np.uint8))
    transform = TrainingTransform(
        (64, 64), "bicubic", AugmentConfig(**OFF | {"rotation_degrees": 10})
    )
    assert transform(encoded(noise), rng)[:, 16:48, 16:48].float().std() < 25


@pytest.mark.parametrize(("gain", "contrast"), [(1.1, 1.0), (0.9, 1.0), (1.0, 1.1), (0.95, 0.9)])
def test_tone_is_pillows(gain: float, contrast: float) -> None:
    image = picture(5)
    found = turned_and_toned(image, (40, 48), 0.0, gain, contrast)[:1]
    bright = ImageEnhance.Brightness(image).enhance(gain)
    wanted = tensor(ImageEnhance.Contrast(bright).enhance(contrast))[:1]
    inside = (wanted > 2) & (wanted < 253)  # Pillow clips between the two, ours after both
    assert ((found.int() - wanted.int()).abs() <= 2)[inside].all()


@pytest.mark.parametrize("setting", ["brightness", "contrast"])
def test_tone_changes_either_way_and_no_further(setting: str) -> None:
    halves = Image.new("L", (32, 32), 80)
    halves.paste(160, (0, 0, 16, 32))  # a mean of 120
    transform = TrainingTransform((32, 32), "bicubic", AugmentConfig(**OFF | {setting: 0.2}))
    rng = np.random.default_rng(0)
    bright = np.array([int(transform(encoded(halves), rng).max()) for _ in range(200)])
    change = bright / 160 - 1 if setting == "brightness" else (bright - 120) / 40 - 1
    assert -0.22 <= change.min() < -0.15
    assert 0.15 < change.max() <= 0.22


def test_grey_stays_grey_and_every_draw_is_the_generators() -> None:
    transform = TrainingTransform((32, 32), "bicubic", AugmentConfig())
    grey = transform(encoded(picture(1)), np.random.default_rng(3))
    assert grey[0].equal(grey[1])
    assert grey[0].equal(grey[2])
    torch.manual_seed(9)
    assert transform(encoded(picture(1)), np.random.default_rng(3)).equal(grey)
    assert not transform(encoded(picture(1)), np.random.default_rng(4)).equal(grey)


@pytest.mark.parametrize("size", [(300, 200), (780, 200), (200, 500)])
@pytest.mark.parametrize("squash", [False, True])
def test_crop_takes_the_stated_share(size: tuple[int, int], squash: bool) -> None:
    """Of the whole image, or of the largest square in it; wide images are no exception."""
    whole = size if squash else (min(size), min(size))
    rng = np.random.default_rng(0)
    lefts = []
    for _ in range(300):
        left, top, right, bottom = _crop(size, whole, (0.8, 1.0), rng)
        lefts.append(left)
        assert 0 <= left < right <= size[0] + 1e-9
        assert 0 <= top < bottom <= size[1] + 1e-9
        share = (right - left) * (bottom - top) / (whole[0] * whole[1])
        # the stretched side may meet the edge: at worst the root of 3/4 of it is left
        assert 0.8 * (3 / 4) ** 0.5 - 1e-9 <= share <= 1 + 1e-9
        stretch = (right - left) / (bottom - top) / (whole[0] / whole[1])
        assert 3 / 4 - 1e-9 <= stretch <= 4 / 3 + 1e-9
    if size[0] > size[1] and not squash:
        assert min(lefts) < 0.1 * size[0] < 0.25 * size[0] < max(lefts), "it moves to either side"
