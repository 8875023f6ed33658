"""Adapters by their definition: W + (alpha / r) B A, and nothing else moves."""

import re
from copy import deepcopy
from typing import Any

import pytest
import torch

from medclip_oc.config.schema import LoraConfig, OptimConfig
from medclip_oc.contrastive.reference import gradients, plain_step
from medclip_oc.errors import InputError
from medclip_oc.models import freezing, lora
from medclip_oc.training import optimizer as optim
from tests.support import reference
from tests.support.tiny_models import TEXT, VIT

TOWERS: dict[str, tuple[dict[str, Any], dict[str, Any], int, dict[str, Any]]] = {
    "open_clip": (VIT, TEXT, 32, {}),
    "checkpointed": (reference.DROPOUT, TEXT, 32, {}),
    "timm and hf": (reference.timm("test_vit"), reference.HF, 160, {}),
    "cnn": (reference.timm("test_efficientnet"), TEXT, 160, {}),
    "resnet": (reference.RESNET, TEXT, 32, {"towers": "image"}),
    "text alone": (VIT, reference.HF, 32, {"towers": "text"}),
}


def features(towers: Any, size: int = 32) -> torch.Tensor:
    towers.eval()
    with torch.inference_mode():
        images, texts, _ = towers(*reference.batch(6, size))
    return torch.cat([images, texts])


@pytest.mark.parametrize("name", TOWERS)
def test_no_change_at_the_start_and_merged_equals_unmerged(name: str) -> None:
    vision, text, size, settings = TOWERS[name]
    plain = reference.build(vision, text)
    start = reference.adapted(vision, text, live=False, **settings)
    before, state = features(plain, size), plain.clip.state_dict()
    assert features(start, size).equal(before)
    merged = lora.plain_state(start)
    assert merged.keys() == state.keys()
    assert all(value.equal(state[n]) for n, value in merged.items())
    towers = reference.adapted(vision, text, **settings)
    found = features(towers, size)
    assert (found - before).norm() > 1e-3 * before.norm(), "the adapters change something"
    plain.clip.load_state_dict(lora.plain_state(towers))
    assert features(plain, size).equal(found)
    with torch.autocast("cpu", torch.bfloat16):
        assert features(plain, size).equal(features(towers, size))


def test_merging_is_the_formula() -> None:
    towers, start = reference.adapted(), reference.build().clip.state_dict()
    found = lora.plain_state(towers)
    weights = dict(towers.clip.named_parameters())
    for layer, weight in (
        ("visual.transformer.resblocks.0.attn", "in_proj_weight"),
        ("visual.transformer.resblocks.0.attn.out_proj", "weight"),
        ("transformer.resblocks.1.mlp.c_fc", "weight"),
    ):
        a, b = (weights[f"{layer}.parametrizations.{weight}.0.{side}"] for side in "ab")
        assert a.shape[0] == b.shape[1] == 4
        wanted = start[f"{layer}.{weight}"] + 8.0 / 4 * b @ a
        torch.testing.assert_close(found[f"{layer}.{weight}"], wanted)


def test_only_adapters_move() -> None:
    """Bit for bit, through steps and evaluations: nothing wanders by a rounding."""
    towers, start = reference.adapted(live=False), reference.build().clip.state_dict()
    optimizer = optim.adamw(towers, OptimConfig(lr=1e-2, weight_decay=0.1))
    step = reference.cached(towers, keep_chunks=1)
    for _ in range(3):
        towers.train()
        step(*reference.batch(12))
        optimizer.step()
        features(towers)
    now, fresh = towers.clip.state_dict(), reference.adapted(live=False).clip.state_dict()
    plain = {n: re.sub(r"parametrizations\.(\w+)\.original$", r"\1", n) for n in now}
    moved = {n for n in now if plain[n] in start and not now[n].equal(start[plain[n]])}
    assert moved == {"logit_scale"}  # which trains as it would without adapters
    own = {n for n in now if n.endswith((".0.a", ".0.b"))}
    assert len(own) == 4 * 2 * 4, "two of each of four matrices of four blocks"
    assert all(not now[n].equal(fresh[n]) for n in own)
    trains = {n.removeprefix("clip.") for n, p in towers.named_parameters() if p.requires_grad}
    assert trains - {"logit_scale", "logit_bias"} == own


@pytest.mark.parametrize(
    ("name", "keep"), [*((n, 0) for n in TOWERS), ("open_clip", 1), ("cnn", 1)]
)
def test_the_cached_step_equals_one_big_batch(name: str, keep: int) -> None:
    vision, text, size, settings = TOWERS[name]
    towers = reference.adapted(vision, text, **settings)
    whole = deepcopy(towers)
    if name == "checkpointed":
        towers.clip.set_grad_checkpointing()
    torch.manual_seed(7)
    plain_step(whole, "clip", *reference.batch(12, size), micro_batches=(5, 5))
    torch.manual_seed(7)
    reference.cached(towers, keep_chunks=keep)(*reference.batch(12, size))
    assert reference.worst_error(gradients(towers), gradients(whole)) < 1e-5


def test_frozen_parts_get_none() -> None:
    towers = reference.build()
    freezing.freeze(towers, OptimConfig(freeze=["text", "logit_scale"], image_last_blocks=1))
    lora.insert(towers, LoraConfig(rank=2))
    trains = {n for n, p in towers.named_parameters() if p.requires_grad} - {"clip.logit_bias"}
    assert {freezing.places(towers)[n] for n in trains} == {freezing.Place("image", 2, 2)}
    towers = reference.build()
    freezing.freeze(towers, OptimConfig(freeze=["image"]))
    with pytest.raises(InputError, match="the image tower has no layer to adapt that isn't frozen"):
        lora.insert(towers, LoraConfig(rank=4, towers="image"))


def test_resuming_from_a_merged_checkpoint() -> None:
    """The unmerged matrices and the adapters come back bit for bit."""
    towers, again, other = reference.adapted(), reference.build(), reference.build()
    state = lora.adapters(towers).state_dict()
    again.clip.load_state_dict(lora.plain_state(towers))
    lora.insert(again, LoraConfig(rank=4, alpha=8.0))
    lora.adapters(again).load_state_dict(deepcopy(state))
    found = again.clip.state_dict()
    assert all(value.equal(found[name]) for name, value in towers.clip.state_dict().items())
    lora.insert(other, LoraConfig(rank=2))
    with pytest.raises(ValueError, match="another rank"):
        lora.adapters(other).load_state_dict(state)
