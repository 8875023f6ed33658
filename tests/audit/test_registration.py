"""Copies of a drawing are like it, however they were made; other drawings are not."""

import numpy as np
import pytest
from PIL import Image

from medclip_oc.audit.audit import CORRELATION, FINE_RADIUS, HASH_RADIUS
from medclip_oc.audit.registration import aligned_correlation
from medclip_oc.audit.scan import hash_image, hash_pixels
from tests.support.image_files import CHANGES, KINDS, phantom


def hashed(pictures: list[Image.Image]) -> tuple[np.ndarray, np.ndarray]:
    """(N, 5) and (N, 48, 48)."""
    hashes, thumbnails = zip(*map(hash_image, pictures), strict=True)
    return np.stack(hashes), np.stack(thumbnails)


@pytest.fixture(scope="module")
def drawings() -> list[Image.Image]:
    return [phantom(number) for number in range(len(KINDS))]


@pytest.mark.parametrize("change", CHANGES)
def test_changed_copies_pass_every_threshold(drawings: list[Image.Image], change: str) -> None:
    before, one = hashed(drawings)
    after, other = hashed([CHANGES[change](each) for each in drawings])
    bits = np.bitwise_count(before ^ after)
    near = (bits[:, 0] <= HASH_RADIUS) & (bits[:, 1:].sum(1) <= FINE_RADIUS)
    alike = near & (aligned_correlation((one, other)) >= CORRELATION)
    assert alike.mean() >= 0.9, np.flatnonzero(~alike)


def test_other_drawings_are_less_alike(drawings: list[Image.Image]) -> None:
    _, thumbnails = hashed(drawings)
    one, other = np.triu_indices(len(drawings), 1)
    assert aligned_correlation((thumbnails[one], thumbnails[other])).max() < CORRELATION


def test_a_shift_that_plain_correlation_misses() -> None:
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (20, 20), dtype=np.uint8))
    whole = np.asarray(coarse.resize((52, 52), Image.Resampling.BICUBIC))
    one, other = whole[None, :48, :48], whole[None, 4:, 3:51]
    assert np.corrcoef(one.ravel(), other.ravel())[0, 1] < 0.5
    assert aligned_correlation((one, other))[0] > 0.97
    assert aligned_correlation((one, other)) == aligned_correlation((other, one))


def test_one_value_is_like_nothing() -> None:
    blank, full = np.zeros((2, 48, 48), np.uint8), np.full((2, 48, 48), 200, np.uint8)
    assert aligned_correlation((blank, full)).tolist() == [0, 0]
    assert aligned_correlation((blank[:0], full[:0])).shape == (0,)


def test_hash_of_pixels_sees_pixels_not_how_they_are_stored(drawings: list[Image.Image]) -> None:
    grey = drawings[0]
    same = hash_pixels(grey)
    assert hash_pixels(grey.convert("RGB")) == same
    changed = grey.copy()
    changed.putpixel((0, 0), grey.getpixel((0, 0)) ^ 1)
    assert hash_pixels(changed) != same
    assert hash_pixels(Image.frombytes("L", (grey.height, grey.width), grey.tobytes())) != same
