"""Whatever becomes of an index, of shards or of features: the right pairs, or one line."""

import random
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from medclip_oc.data.shards import ShardSet
from medclip_oc.errors import InputError, ShardChanged
from medclip_oc.inference import feature_index, search
from medclip_oc.packing.verify import verify
from tests.support.fault_injection import mutated
from tests.support.tiny_dataset import write_pairs, write_shards
from tests.support.tiny_models import unit_vectors

ROWS = unit_vectors(20, 16, 1)
PAIRS = [{"id": f"i{n}", "caption": f"c{n}", "shard": "s", "position": n} for n in range(20)]
ABOUT = {"model": "m", "probes": {"text": [0.5, 0.25]}}


def pairs_of(where: str) -> Any:
    shards = ShardSet.open(where, "train")
    return shards.ids(), [shards.read(n) for n in range(len(shards))]


def answers(folder: Path) -> Any:
    index = feature_index.Index(folder)
    return index.about, search.answers(index, ["a", "b"], ROWS[[3, 7]], 20)


@pytest.mark.slow
def test_an_index_that_is_damaged_gives_the_right_pairs_or_one_line(tmp_path: Path) -> None:
    foreign, index = tmp_path / "foreign", tmp_path / "index"
    packed = write_shards(tmp_path, {"train": 7, "valid": 2}, samples_per_shard=3)
    foreign.mkdir()
    for n in range(3):
        write_pairs(foreign / f"{n}.tar", range(2 * n, 2 * n + 2))
    feature_index.write(index, (20, 16), "float16", [(ROWS, ROWS, PAIRS)], ABOUT)
    pairs_of(tars := f"{foreign}/*.tar")
    (kept,) = foreign.glob(".index-*.json.gz")
    reads: dict[Path, Callable[[], Any]] = {kept: partial(pairs_of, tars)}
    reads |= {file: partial(answers, index) for file in index.iterdir()}
    for name in ("index", "sizes"):
        reads[packed / f"{name}.json"] = partial(pairs_of, str(packed))
    contents = {file: (file.read_bytes(), read()) for file, read in reads.items()}
    rng, lines = random.Random(17), list[str]()
    for number in range(1000):
        file = packed / "index.json" if number % 2 else rng.choice(sorted(reads))
        intact, right = contents[file]
        file.write_bytes(mutated(intact, rng))
        try:
            assert reads[file]() == right, f"{number}: {file.name}"
        except (InputError, ShardChanged) as error:
            lines.append(f"{error}{' is rebuilt in silence' * (file == kept)}")
        if file.name == "index.json" and number % 4 == 1:
            with suppress(InputError):
                verify(packed, decode=False)
        file.write_bytes(intact)
    assert len(lines) > 600
    assert not [line for line in lines if "\n" in line or line.endswith("in silence")]
