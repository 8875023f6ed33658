"""The mapping on disk, against a dict."""

import random

import pytest

from medclip_oc.packing import disk_table
from medclip_oc.packing.disk_table import Lookup


@pytest.mark.parametrize("bits", [8, 1 << 23])  # 8: nearly every absent key must be asked for
@pytest.mark.parametrize("recent", [1, 7, 1000])
def test_it_is_a_dict_whose_first_value_counts(
    monkeypatch: pytest.MonkeyPatch, bits: int, recent: int
) -> None:
    monkeypatch.setattr(disk_table, "_SEEN_BITS", bits)
    monkeypatch.setattr(disk_table, "_RECENT", recent)
    rng = random.Random(bits + recent)
    first = [(f"key {rng.randrange(300)}", f"first {n}") for n in range(200)]
    found, wanted = Lookup(first), dict(reversed(first))
    for number in range(2000):
        key = f"key {rng.randrange(600)}"
        assert (key in found) == (key in wanted)
        assert found.get(key) == wanted.get(key)
        if rng.random() < 0.5:
            assert found.add(key, f"then {number}") == (key not in wanted)
            wanted.setdefault(key, f"then {number}")
    assert all(found.get(key) == value for key, value in wanted.items())


def test_an_empty_value_is_there() -> None:
    found = Lookup()
    assert found.add("key")
    assert found.get("key") == ""
    assert not found.add("key", "other")
