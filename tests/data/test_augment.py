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

OFF: dict[str, Any] = {
    "scale": (1.0, 1.0),
    "rotation_degrees": 0.0,
    "brightness": 0.0,
    "contrast": 0.0,
}


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


def test_no_change_when_everything_is_off() -> None:
    transform = TrainingTransform((40, 48), "bicubic", AugmentConfig(**OFF))
    for image in (picture(1), colour(1)):
        found = transform(encoded(image), np.random.default_rng(0))
        assert found.equal(tensor(image))
        assert found.is_contiguous()


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


@pytest.mark.parametrize("size", [(64, 64), (48, 80)])
def test_turning_is_pillows(size: tuple[int, int]) -> None:
    image = colour(3, (size[1], size[0]))
    for degrees in (-10.0, 7.5):
        found = _turn_and_tone(tensor(image), size, math.radians(degrees), 1.0, 1.0)
        # ours names where a pixel comes from, so the picture turns the other way
        wanted = tensor(image.rotate(degrees, Image.Resampling.BILINEAR))
        # away from the corners, where the two blend into black differently
        inner = (..., slice(10, -10), slice(10, -10))
        assert (found[inner].int() - wanted[inner].int()).abs().max() <= 2
        assert found[:, 0, 0].sum() == 0


def test_turning_and_resizing_at_once_comes_near_doing_both() -> None:
    image = tensor(colour(4, (84, 84)))
    small = torch.nn.functional.interpolate(image[None], (64, 64), mode="bicubic", antialias=True)[
        0
    ]
    both = _turn_and_tone(small, (64, 64), 0.15, 1.0, 1.0)
    once = _turn_and_tone(image, (64, 64), 0.15, 1.0, 1.0)
    inner = (..., slice(10, -10), slice(10, -10))
    assert (once[inner].float() - both[inner].float()).abs().mean() < 1


@pytest.mark.parametrize(("gain", "contrast"), [(1.1, 1.0), (0.9, 1.0), (1.0, 1.1), (0.95, 0.9)])
def test_tone_is_pillows(gain: float, contrast: float) -> None:
    image = picture(5)
    found = _turn_and_tone(tensor(image)[:1], (40, 48), 0.0, gain, contrast)
    bright = ImageEnhance.Brightness(image).enhance(gain)
    wanted = tensor(ImageEnhance.Contrast(bright).enhance(contrast))[:1]
    inside = (wanted > 2) & (wanted < 253)  # Pillow clips between the two, ours after both
    assert ((found.int() - wanted.int()).abs() <= 2)[inside].all()


def test_grey_stays_grey_and_every_draw_is_the_generators() -> None:
    transform = TrainingTransform((32, 32), "bicubic", AugmentConfig())
    grey = transform(encoded(picture(1)), np.random.default_rng(3))
    assert grey[0].equal(grey[1])
    assert grey[0].equal(grey[2])
    torch.manual_seed(9)
    assert transform(encoded(picture(1)), np.random.default_rng(3)).equal(grey)
    assert not transform(encoded(picture(1)), np.random.default_rng(4)).equal(grey)


def test_flip_and_hue_come_only_when_asked_for() -> None:
    rng = np.random.default_rng(0)
    image = colour(1, (32, 32))
    flip = TrainingTransform((32, 32), "bicubic", AugmentConfig(**OFF, flip=True))
    found = [flip(encoded(image), rng) for _ in range(20)]
    mirrored = [f.equal(tensor(image).flip(-1)) for f in found]
    assert 0 < sum(mirrored) < 20
    assert all(m or f.equal(tensor(image)) for m, f in zip(mirrored, found, strict=True))
    hue = TrainingTransform((32, 32), "bicubic", AugmentConfig(**OFF, hue=0.5))
    changed = hue(encoded(image), np.random.default_rng(1))
    assert not changed.equal(tensor(image))
    assert hue(encoded(picture(1, (32, 32))), rng).equal(tensor(picture(1, (32, 32))))


def test_never_flipped() -> None:
    """A bright left half stays on the left: captions say so."""
    image = picture(1).point(lambda _: 20)
    image.paste(220, (0, 0, 20, 40))
    transform = TrainingTransform((32, 32), "bicubic", AugmentConfig())
    for seed in range(50):
        pixels = transform(encoded(image), np.random.default_rng(seed)).float()
        assert pixels[..., :12].mean() > pixels[..., -12:].mean() + 80


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
