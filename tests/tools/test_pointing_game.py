"""The pointing game's arithmetic by hand, and the tool on a handful of phantoms."""

import json
from pathlib import Path

import make_phantoms
import numpy as np
import pandas as pd
import pointing_game
import pytest
from PIL import Image
from pointing_game import PointingConfig

from medclip_oc.models import factory
from medclip_oc.relevance.maps import explain
from tests.support.cli import call, one_line, run_training, write_config


def test_a_point_is_within_the_box_or_its_tolerance() -> None:
    """The box holds rows 2 and 3, columns 3 and 4."""
    nearest = {(2, 3): 0, (3, 4): 0, (1, 3): 1, (3, 6): 2, (5, 7): 13**0.5, (0, 0): 13**0.5}
    for place, away in nearest.items():
        values = np.zeros((7, 9))
        values[place] = values[6, 8] = 1  # the first of two
        hits = [pointing_game.is_hit(values, (3, 2, 5, 4), n) for n in range(5)]
        assert hits == [away <= n for n in range(5)]


def test_pixels_of_the_largest_values_come_first() -> None:
    values = np.array([[0.1, 0.9], [0.5, 0.9]])
    start, end = np.array([[1, 2], [3, 4]]), np.zeros((2, 2), int)
    found = pointing_game.exchanged(start, end, values, 4).reshape(5, 4).tolist()
    assert found == [[1, 2, 3, 4], [1, 0, 3, 4], [1, 0, 3, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    assert pointing_game.exchanged(start, end, values, 2).reshape(3, 4).tolist() == found[::2]


@pytest.mark.slow
def test_it_measures_the_test_pictures(
    packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_training(write_config(packed, tmp_path, train__epochs=1)) == 0
    file, folder = tmp_path / "run" / "checkpoints" / "last.pt", tmp_path / "phantoms"
    make_phantoms.main(make_phantoms.PhantomConfig(str(folder), 2, 1, 6, size=32))
    words = ("--checkpoint", file, "--phantoms", folder, "--json")
    capsys.readouterr()
    assert call(pointing_game.main, PointingConfig, *words) == 0
    record, boxes = json.loads(capsys.readouterr().out), pd.read_csv(folder / "boxes.csv")[3:]
    pictures = [np.asarray(Image.open(folder / image)) for image in boxes["image"]]
    y, x = np.array([pixels.shape for pixels in pictures]).T // 2
    inside = (boxes.left <= x) & (x < boxes.right) & (boxes.top <= y) & (y < boxes.bottom)
    assert record["in the box, centre"] == pytest.approx(inside.mean())
    assert len(record["intervals"]) == 9

    clip, pixels, text = factory.load(file), pictures[0], boxes["finding"].iloc[0]
    clip.towers.eval()
    grey = np.full_like(pixels, pixels.mean())
    steps = map(Image.fromarray, pointing_game.exchanged(pixels, grey, pixels, 10))
    first, *between, last = (explain(clip, image, [text])[0].cosine for image in steps)
    deletion, _ = pointing_game.areas(clip, pixels, text, pixels)
    assert deletion == pytest.approx((first / 2 + sum(between) + last / 2) / 10, abs=1e-6)

    (folder / "boxes.csv").unlink()
    assert call(pointing_game.main, PointingConfig, *words) == 2
    assert "boxes.csv" in one_line(capsys.readouterr().err)
