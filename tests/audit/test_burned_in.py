"""Text drawn into pictures is noticed, and pictures without text are not."""

import numpy as np
from PIL import Image

from medclip_oc.audit.burned_in import count_letters
from tests.support.image_files import KINDS, phantom, written


def test_text_near_an_edge_is_seen_and_nothing_else() -> None:
    dark, noise = Image.new("L", (512, 512), 10), np.random.default_rng(0).bytes(160_000)
    assert min(count_letters(written(dark, (x, y))) for x in (10, 300) for y in (10, 480)) >= 8
    blank = [Image.new("L", size, 255) for size in ((1, 1), (3, 700), (40, 40))]
    plain = [phantom(n).resize((512, 512)) for n in range(0, len(KINDS), 3)]
    for image in (written(dark, (150, 250)), Image.frombytes("L", (400, 400), noise), *blank):
        assert count_letters(image) == 0
    assert not any(map(count_letters, plain))
    assert min(count_letters(written(image, (10, 10))) for image in plain) >= 8
