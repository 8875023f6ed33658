"""Pixels of picture files, no finer than needed, by the same rules as everywhere."""

import numpy as np
import pytest
from PIL import Image

from medclip_oc.errors import BadImage
from medclip_oc.imaging import decode
from medclip_oc.imaging.jpeg import Picture
from tests.support.image_files import FILES


def pixels(data: bytes) -> np.ndarray:
    """What decoding.decode makes of it: (H, W, C)."""
    array = np.asarray(decode.decode(data))
    return array[..., None] if array.ndim == 2 else array


@pytest.mark.parametrize("name", FILES)
def test_full_pixels_follow_the_rules(name: str) -> None:
    for exact in (False, True):
        found = Picture(FILES[name], exact=exact)
        assert found.size == decode.decode(FILES[name]).size
        assert np.array_equal(found.pixels()[0], pixels(FILES[name]))
        assert np.array_equal(np.asarray(found.image()[0]), np.asarray(decode.decode(FILES[name])))


@pytest.mark.parametrize("name", ["grey", "colour", "chroma halved", "progressive"])
@pytest.mark.parametrize("reduction", [1.0, 1.9, 2.0, 2.7, 3.9, 4.0, 7.9, 8.0, 30.0])
def test_reduced_pixels_cover_what_is_needed(name: str, reduction: float) -> None:
    full = pixels(FILES[name])
    found, scale = Picture(FILES[name]).pixels(reduction)
    eighths = next((n for n in (1, 2, 3, 4) if n * reduction >= 8), 8)
    assert scale == eighths / 8
    for side, whole in zip(found.shape[:2], full.shape[:2], strict=True):
        assert side >= whole / reduction - 1e-9
        assert side == -(-whole * eighths // 8)
    assert found.shape[2] == full.shape[2] == (1 if name == "grey" else 3)
    assert np.array_equal(Picture(FILES[name], exact=True).pixels(reduction)[0], full)
    # the same picture: its means over a coarse grid agree
    image, whole = Picture(FILES[name]).image(reduction)[0], decode.decode(FILES[name])
    one, other = (np.asarray(i.resize((6, 4), Image.Resampling.BOX), float) for i in (image, whole))
    assert np.corrcoef(one.ravel(), other.ravel())[0, 1] > 0.99


@pytest.mark.parametrize("name", ["grey", "colour", "PNG"])
@pytest.mark.parametrize("exact", [False, True])
def test_damage_is_named(name: str, exact: bool) -> None:
    data = FILES[name]
    for cut in (0, 5, 200, len(data) // 2, len(data) - 40):
        with pytest.raises(BadImage):
            Picture(data[:cut], exact=exact).pixels(4.0)
