"""The commands still make what `pins/` remembers; make_pins.py says what, and when it may move.

The same machine and versions must give the same bits. Elsewhere floats may differ by 1e-5, as sums
are rounded in another order; words, whole numbers and so ranks never (those that are floats, as
5.5 is, lie further apart). With another Pillow an image file has other bytes: no hash is compared.
"""

import json
from typing import Any

import pytest

from tests.pinned.make_pins import PINS, made_with, pins

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("pinned")]  # made once, by one worker
PINNED = {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in PINS.glob("*.json")}
HERE, THERE = made_with(), PINNED["made_with"]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return pins(tmp_path_factory.mktemp("pinned"))


def check(found: Any, pinned: Any, where: str, rel: float = 1e-5, abs: float = 0.0) -> None:
    """Compare two JSON values; `where` says which part is wrong."""
    if isinstance(pinned, dict):
        assert found.keys() == pinned.keys(), where
        for key, value in pinned.items():
            check(found[key], value, f"{where}/{key}", rel, abs)
    elif isinstance(pinned, list):
        assert len(found) == len(pinned), where
        for number, value in enumerate(pinned):
            check(found[number], value, f"{where}/{number}", rel, abs)
    elif isinstance(pinned, float) and HERE != THERE:
        assert found == pytest.approx(pinned, rel=rel, abs=abs), where
    else:
        assert found == pinned, where


@pytest.mark.parametrize("level", ["keys", "captions", "rejects", "members", "tars"])
def test_shards(found: dict[str, Any], level: str) -> None:
    """Headers or the order of members may change on purpose: then `tars` moves, and no other."""
    if level in ("members", "tars") and HERE["Pillow"] != THERE["Pillow"]:
        pytest.skip("another Pillow")
    check(found["shards"][level], PINNED["shards"][level], level)


@pytest.mark.parametrize("name", ["steps_1_process", "steps_2_processes", "evaluation"])
def test_numbers(found: dict[str, Any], name: str) -> None:
    check(found[name], PINNED[name], name)


def test_ranking(found: dict[str, Any]) -> None:
    # printed with six digits, whose last may be rounded the other way
    check(found["ranking"], PINNED["ranking"], "ranking", abs=1e-5)
