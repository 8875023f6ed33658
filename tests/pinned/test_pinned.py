"""The commands still make what `pins/` remembers; make_pins.py says what, and when it may move.

The same machine and versions must give the same bits. Elsewhere floats may differ by 1e-5, as sums
are rounded in another order; words, whole numbers and so ranks never (those that are floats, as
5.5 is, lie further apart). With another Pillow an image file has other bytes: no hash is compared.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.pinned.make_pins import PINS, made_with, pins

PINNED = {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in PINS.glob("*.json")}
HERE, THERE = made_with(), PINNED["made_with"]


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


@pytest.mark.slow
def test_pins(tmp_path: Path) -> None:
    """All in one test, or each worker would make them.

    Headers or the order of members may change on purpose: then `tars` moves, and no other.
    """
    found = pins(tmp_path)
    rows = [(level, found["shards"], PINNED["shards"]) for level in PINNED["shards"]]
    rows += [(name, found, PINNED) for name in ("steps_1_process", "steps_2_processes")]
    rows += [(name, found, PINNED) for name in ("evaluation", "ranking")]
    wrong = []
    for name, here, there in rows:
        if name in ("members", "tars") and HERE["Pillow"] != THERE["Pillow"]:
            continue
        try:  # a ranking is printed with six digits, whose last may be rounded the other way
            check(here[name], there[name], name, abs=1e-5 if name == "ranking" else 0.0)
        except AssertionError as error:
            wrong.append(str(error))
    assert not wrong, "\n".join(wrong)
