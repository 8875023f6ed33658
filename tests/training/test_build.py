"""The shape of a run, by hand; and the numbers that don't go together."""

from typing import Any

import pytest
import torch

from medclip_oc.config.schema import Config, ModelConfig, TrainConfig
from medclip_oc.errors import InputError
from medclip_oc.runtime.distributed import World
from medclip_oc.training import build
from tests.support.reference import RESNET
from tests.support.tiny_models import TINY


def planned(warmup: int | None = None, pairs: int = 47, world: int = 2, **train: Any) -> build.Plan:
    sizes = {"global_batch_size": 20, "micro_batch_size": 4, "text_micro_batch_size": 10}
    return build.plan(TrainConfig(**{**sizes, "epochs": 3, **train}), warmup, pairs, world)


def test_a_plan_by_hand() -> None:
    plan = planned()
    assert plan == build.Plan(
        pairs=47,
        global_batch=20,
        pairs_per_rank=10,
        chunks=3,
        text_chunks=1,
        steps=7,
        steps_per_epoch=2.35,
        warmup_steps=1,
        unused_pairs=1,
    )
    assert plan.lines() == [
        "47 training pairs, 7 steps (2.4 per epoch; the last 1 pairs of the last epoch are left "
        "out)",
        "each step contrasts 20 pairs: 10 per rank in 3 chunk(s), 1 of texts; warm-up 1 steps (14% "
        "of the run)",
    ]
    assert planned(pairs=20).unused_pairs == 0
    assert planned(text_micro_batch_size=None).text_chunks == 3
    assert planned(epochs=30).warmup_steps == 7, "a tenth of 70"
    assert planned(warmup=7).warmup_steps == 7


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"world": 3}, "20 can't be shared equally by 3 processes; .*that can: 18 or 21"),
        ({"world": 21}, "that can: 21 or 21"),
        ({"pairs": 19}, "20 pairs per step, but data.train holds only 19"),
        ({"warmup": 8}, "optim.warmup_steps: 8 is more than the run's 7 steps"),
    ],
)
def test_numbers_that_do_not_fit(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        planned(**change)


def test_what_the_log_says_of_a_model() -> None:
    definition = {**TINY, "vision_cfg": RESNET}
    model = ModelConfig(arch="build-test", definition=definition, freeze_batch_norm=False)
    config, world = Config(model=model), World(0, 1, torch.device("cpu"))
    clip = build.model(config, world)
    count = sum(p.numel() for p in clip.towers.parameters())
    first, *_, last = build.describe(clip, config, planned(), world)
    assert first == (
        f"build-test from random weights, {count / 1e6:.1f} M trainable parameters, bf16, "
        "1 process(es) on cpu"
    )
    assert last.startswith("batch norm is live: ")
    one_chunk = planned(micro_batch_size=20, world=1)
    assert len(build.describe(clip, config, one_chunk, world)) == 3, "that is one big batch"
