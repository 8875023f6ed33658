"""What trains, at which rate, and what the log says of it."""

from typing import Any

import pytest

from medclip_oc.config.schema import ModelConfig, OptimConfig
from medclip_oc.models import factory, freezing
from medclip_oc.training import optimizer as optim
from tests.support.reference import build
from tests.support.tiny_models import VIT


def names_of(towers: Any, group: dict[str, Any]) -> set[str]:
    names = {id(p): name for name, p in towers.named_parameters()}
    return {names[id(p)] for p in group["params"]}


def rates(towers: Any, settings: OptimConfig) -> dict[str, float]:
    groups = optim.parameter_groups(towers, settings)
    return {name: group["peak_lr"] for group in groups for name in names_of(towers, group)}


def test_gains_biases_and_temperature_do_not_decay(tiny: ModelConfig) -> None:
    towers = factory.build(tiny).towers
    groups = optim.parameter_groups(towers, OptimConfig(weight_decay=0.1))
    decayed, free = (
        set().union(*(names_of(towers, g) for g in groups if g["weight_decay"] == decay))
        for decay in (0.1, 0.0)
    )
    titles = {"image tower", "text tower", "temperature"}
    assert {group["title"] for group in groups} == titles, "no layers without a decay by layers"
    assert decayed | free == set(dict(towers.named_parameters()))
    assert not decayed & free
    assert "clip.logit_scale" in free
    assert all(
        name.endswith("bias") or "ln" in name
        for name in free - {"clip.logit_scale", "clip.visual.class_embedding"}
    )
    assert "clip.transformer.resblocks.0.attn.in_proj_weight" in decayed


def test_layer_decay_is_the_formula() -> None:
    """lr * decay^(n + 1 - layer), each tower with its own."""
    towers = build()  # 2 blocks each
    settings = OptimConfig(
        lr=1.0, image_lr=2.0, text_lr=3.0, image_layer_decay=0.5, text_layer_decay=0.1
    )
    found = rates(towers, settings)
    assert found["clip.logit_scale"] == 1.0
    for name, wanted in {
        "visual.conv1.weight": 2 * 0.5**3,
        "visual.positional_embedding": 2 * 0.5**3,
        "visual.transformer.resblocks.0.attn.in_proj_weight": 2 * 0.5**2,
        "visual.transformer.resblocks.1.mlp.c_fc.bias": 2 * 0.5,
        "visual.proj": 2.0,
        "positional_embedding": 3 * 0.1**3,
        "transformer.resblocks.0.ln_1.weight": 3 * 0.1**2,
        "ln_final.weight": 3.0,
        "text_projection": 3.0,
    }.items():
        assert found[f"clip.{name}"] == pytest.approx(wanted), name
    assert len({group["lr"] for group in optim.adamw(towers, settings).param_groups}) > 4


def test_the_list_of_what_trains() -> None:
    towers = build(VIT)
    settings = OptimConfig(freeze="text", image_layer_decay=0.5, lr=1e-3)
    freezing.freeze(towers, settings)
    lines = optim.describe(optim.adamw(towers, settings), towers)
    # a block of width 32: 12 * 32^2 + 13 * 32 numbers, of them 12 * 32^2 in matrices
    assert (
        "trains: image tower, layer 1 of 3: 12,704 parameters, lr 0.00025, "
        "weight decay 0.1 on 12,288" in lines
    )
    assert "trains: temperature: 2 parameters, lr 0.001, weight decay 0" in lines
    frozen = sum(p.numel() for p in towers.parameters() if not p.requires_grad)
    assert f"frozen: text tower: {frozen:,} parameters" in lines
    assert len(lines) == 6
