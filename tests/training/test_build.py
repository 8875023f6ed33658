"""The shape of a run, by hand; and the numbers that don't go together."""

from pathlib import Path
from typing import Any

import pytest
import torch

from medclip_oc.config.schema import Config, DataConfig, ModelConfig, TrainConfig
from medclip_oc.errors import InputError
from medclip_oc.runtime.distributed import World
from medclip_oc.training import build
from tests.support.reference import ONE, RESNET
from tests.support.tiny_dataset import write_captions, write_pairs
from tests.support.tiny_models import TINY

SIZES: dict[str, Any] = {
    "global_batch_size": 20,
    "micro_batch_size": 4,
    "text_micro_batch_size": 10,
}


def planned(
    warmup: int | None = None, pairs: int = 47, world: int = 2, epochs: float = 3, **settings: int
) -> build.Plan:
    return build.plan(TrainConfig(**SIZES, epochs=epochs, **settings), warmup, pairs, world)


def test_a_plan_by_hand() -> None:
    assert planned() == build.Plan(pairs=47, global_batch=20, steps=7, warmup_steps=1)
    assert planned().steps_per_epoch == 2.35
    assert planned(epochs=40).warmup_steps == 9, "a tenth of 94"
    assert planned(warmup=7).warmup_steps == 7
    assert planned(epochs=2.5).steps == 5, "of 117.5 pairs"
    assert planned(epochs=0.58, pairs=100).steps == 2, "58 pairs, though 0.58 * 100 is below 58"
    assert planned(epochs=40, max_steps=20).warmup_steps == 2, "a tenth of these"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"world": 3}, "20 can't be shared equally by 3 processes; .*that can: 18 or 21"),
        ({"world": 21}, "that can: 21 or 21"),
        ({"pairs": 19}, "20 pairs per step, but 1 epoch of data.train holds only 19"),
        ({"epochs": 0.41}, "20 pairs per step, but 0.41 epoch of data.train holds only 19"),
        ({"max_steps": 8}, "train.max_steps: 8, but train.epochs: 3 ends after 7 steps"),
        ({"max_steps": 3, "warmup": 4}, "optim.warmup_steps: 4 is more than the run's 3 steps"),
        ({"warmup": 8}, "optim.warmup_steps: 8 is more than the run's 7 steps"),
    ],
)
def test_numbers_that_do_not_fit(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        planned(**change)


def test_studies_of_both_splits_are_told(tmp_path: Path) -> None:
    """A validation set without any is one of single images."""
    where = str(write_pairs(tmp_path / "x.tar", range(8)))
    both, none = write_pairs(tmp_path / "y.tar", range(5, 9)), write_captions(tmp_path / "z.tar")
    for valid, told in ((both, "; 2 of them are in data.valid too, which"), (none, "")):
        config = Config(train=TrainConfig(global_batch_size=4, precision="fp32"))
        config.data = DataConfig(train=where, valid=str(valid), unit="study")
        found = build.open_data(config, ONE)
        assert found.train.note.startswith(f"data.unit: 4 studies with 8 images{told}")


def test_what_the_log_says_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    definition = {**TINY, "vision_cfg": RESNET}
    model = ModelConfig(arch="build-test", definition=definition, freeze_batch_norm=False)
    config = Config(model=model, train=TrainConfig(**SIZES, epochs=3))
    alone, two = (World(0, size, torch.device("cpu")) for size in (1, 2))
    clip = build.model(config, alone)
    count = sum(p.numel() for p in clip.towers.parameters())
    *lines, last = build.describe(clip, config, planned(), two)
    assert lines == [
        f"build-test from random weights, {count / 1e6:.1f} M trainable parameters, bf16, "
        "2 process(es) on cpu",
        "47 training pairs, 7 steps (2.4 per epoch; the last 1 pairs of 3 epochs are left out)",
        "each step contrasts 20 pairs: 10 per rank in 3 chunk(s), 1 of texts; warm-up 1 steps (14% "
        "of the run)",
    ]
    assert last.startswith("batch norm is live: ")
    _, told, *_ = build.describe(clip, config, planned(max_steps=4), two)
    assert told.endswith("4 steps (2.4 per epoch; the last 61 pairs of 3 epochs are left out)")
    config.data.unit = "study"
    _, told, *_ = build.describe(clip, config, planned(), two)
    assert told == lines[1].replace("pairs", "studies")
    config.train = TrainConfig(global_batch_size=20, micro_batch_size=20, epochs=1)
    *_, last = build.describe(clip, config, planned(pairs=20, epochs=1), alone)
    assert last.startswith("each step contrasts 20 pairs: 20 per rank in 1 chunk(s); warm-up")
    monkeypatch.setenv("SLURM_NTASKS", "4")
    *_, last = build.describe(clip, config, planned(pairs=20, epochs=1), alone)
    assert last.startswith("SLURM_NTASKS is 4, but this is")
