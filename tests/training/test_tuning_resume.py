"""Adapters, the running average and rates by layer go on as if nothing had come between."""

from pathlib import Path
from typing import Any

import pytest

from medclip_oc import train
from medclip_oc.config.schema import TrainCommand
from medclip_oc.models import checkpoint
from tests.support.cli import call, records, settings, write

WAYS: dict[str, dict[str, Any]] = {
    "adapters and average": {"lora": {"rank": 4}, "ema": {"decay": 0.9}},
    "layer decay": {"optim__image_layer_decay": 0.5, "loss": {"positives": "captions"}},
    "frozen images": {"optim__freeze": "image", "ema": {"decay": 0.9}},
}


@pytest.mark.parametrize("name", WAYS)
def test_going_on_is_bit_for_bit(name: str, packed: Path, tmp_path: Path) -> None:
    def run(folder: str, *words: object) -> Path:
        kept = {"checkpoint": {"every_steps": 2, "keep_last": 9}, "train__epochs": 2}
        tree = settings(packed, tmp_path / folder, **kept, **WAYS[name])
        file = write(tree, tmp_path / f"{folder}.yaml")
        assert call(train.main, TrainCommand, "--config", file, *words) == 0
        return tmp_path / folder

    whole = run("whole")
    [middle] = [f for f in (whole / "checkpoints").glob("step-*.pt") if "2" in f.stem[-2:]]
    rest = run("rest", "--resume", middle)
    for kept in ("last", "ema") if "ema" in WAYS[name] else ("last",):
        one, two = (
            checkpoint.load(folder / "checkpoints" / f"{kept}.pt")["state_dict"]
            for folder in (whole, rest)
        )
        assert all(value.equal(two[key]) for key, value in one.items()), kept
    timeless = [
        [
            {k: v for k, v in r.items() if k != "pairs_per_second"}
            for r in records(f)
            if r["step"] > 2
        ]
        for f in (whole, rest)
    ]
    assert timeless[0] == timeless[1]
