"""What trains, at which rate, and what the log says of it."""

from typing import Any

import pytest
import torch

from medclip_oc.config.schema import ModelConfig, OptimConfig
from medclip_oc.errors import InputError
from medclip_oc.models import factory, freezing
from medclip_oc.models.freezing import Place
from medclip_oc.training import optimizer as optim
from tests.support.reference import HF, RESNET, build, timm
from tests.support.tiny_models import TEXT, VIT


def names_of(towers: Any, group: dict[str, Any]) -> set[str]:
    names = {id(p): name for name, p in towers.named_parameters()}
    return {names[id(p)] for p in group["params"]}


def rates(towers: Any, settings: OptimConfig) -> dict[str, float]:
    groups = optim.parameter_groups(towers, settings)
    return {name: group["peak_lr"] for group in groups for name in names_of(towers, group)}


def trained(towers: Any) -> set[str]:
    return {name for name, p in towers.named_parameters() if p.requires_grad}


def test_gains_biases_and_temperature_do_not_decay(tiny: ModelConfig) -> None:
    towers = factory.build(tiny).towers
    groups = optim.parameter_groups(towers, OptimConfig(weight_decay=0.1))
    decayed, free = (
        set().union(*(names_of(towers, g) for g in groups if g["weight_decay"] == decay))
        for decay in (0.1, 0.0)
    )
    assert decayed | free == set(dict(towers.named_parameters()))
    assert not decayed & free
    assert "clip.logit_scale" in free
    assert all(
        name.endswith("bias") or "ln" in name
        for name in free - {"clip.logit_scale", "clip.visual.class_embedding"}
    )
    assert "clip.transformer.resblocks.0.attn.in_proj_weight" in decayed


def test_frozen_parameters_are_left_out(tiny: ModelConfig) -> None:
    towers = factory.build(tiny).towers
    freezing.freeze(towers, OptimConfig(freeze="image"))
    groups = optim.adamw(towers, OptimConfig()).param_groups
    kept = sum(len(group["params"]) for group in groups)
    assert 0 < kept == sum(p.requires_grad for p in towers.parameters())


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
        "visual.class_embedding": 2 * 0.5**3,
        "visual.positional_embedding": 2 * 0.5**3,
        "visual.ln_pre.weight": 2 * 0.5**3,
        "visual.transformer.resblocks.0.attn.in_proj_weight": 2 * 0.5**2,
        "visual.transformer.resblocks.1.mlp.c_fc.bias": 2 * 0.5,
        "visual.ln_post.weight": 2.0,
        "visual.proj": 2.0,
        "token_embedding.weight": 3 * 0.1**3,
        "positional_embedding": 3 * 0.1**3,
        "transformer.resblocks.0.ln_1.weight": 3 * 0.1**2,
        "transformer.resblocks.1.attn.out_proj.weight": 3 * 0.1,
        "ln_final.weight": 3.0,
        "text_projection": 3.0,
    }.items():
        assert found[f"clip.{name}"] == pytest.approx(wanted), name
    optimizer = optim.adamw(towers, settings)
    optim.set_lr(optimizer, 0.25)
    assert all(g["lr"] == 0.25 * g["peak_lr"] for g in optimizer.param_groups)


@pytest.mark.parametrize(
    ("vision", "text", "wanted"),
    [
        (
            RESNET,
            TEXT,
            {
                "visual.conv1.weight": (0, 4),
                "visual.bn2.bias": (0, 4),
                "visual.layer1.0.conv1.weight": (1, 4),
                "visual.layer4.0.bn3.weight": (4, 4),
                "visual.attnpool.positional_embedding": (5, 4),
                "visual.attnpool.c_proj.weight": (5, 4),
            },
        ),
        (
            timm("test_vit"),
            HF,
            {
                "visual.trunk.patch_embed.proj.weight": (0, 6),
                "visual.trunk.cls_token": (0, 6),
                "visual.trunk.blocks.0.attn.qkv.weight": (1, 6),
                "visual.trunk.norm.weight": (7, 6),
                "visual.head.proj.weight": (7, 6),
                "text.transformer.embeddings.word_embeddings.weight": (0, 6),
                "text.transformer.encoder.layer.5.output.dense.weight": (6, 6),
                "text.proj.weight": (7, 6),
            },
        ),
        (
            timm("test_efficientnet"),
            TEXT,
            {
                "visual.trunk.conv_stem.weight": (0, 5),
                "visual.trunk.bn1.weight": (0, 5),
                "visual.trunk.blocks.0.0.conv.weight": (1, 5),
                "visual.trunk.conv_head.weight": (6, 5),
                "visual.trunk.bn2.weight": (6, 5),
            },
        ),
    ],
    ids=["resnet", "timm and hf", "cnn"],
)
def test_places(vision: Any, text: Any, wanted: dict[str, tuple[int, int]]) -> None:
    found = freezing.places(build(vision, text))
    assert {n: tuple(found[f"clip.{n}"])[1:] for n in wanted} == wanted
    assert found["clip.logit_scale"] == Place("both", 0, 0)


def test_presets() -> None:
    every = trained(build())
    image = {n for n in every if n.startswith("clip.visual.")}
    logits = {"clip.logit_scale", "clip.logit_bias"}
    for word, wanted in {
        "image": every - image,
        "text": image | logits,
        "all_but_projections": {"clip.visual.proj", "clip.text_projection"} | logits,
        r"resblocks\.0\.": {n for n in every if "resblocks.0." not in n},
        "^logit_scale$": every - {"clip.logit_scale"},
    }.items():
        towers = build()
        freezing.freeze(towers, OptimConfig(freeze=word))
        assert trained(towers) == wanted, word


@pytest.mark.parametrize(
    ("vision", "text", "wanted"),
    [
        (RESNET, TEXT, {"visual.attnpool.c_proj.weight", "visual.attnpool.c_proj.bias"}),
        (timm("test_vit"), HF, {"visual.head.proj.weight", "text.proj.weight"}),
    ],
)
def test_projections_of_other_towers(vision: Any, text: Any, wanted: set[str]) -> None:
    towers = build(vision, text)
    freezing.freeze(towers, OptimConfig(freeze="all_but_projections"))
    found = {name.removeprefix("clip.") for name in trained(towers)}
    assert found - {"logit_scale", "logit_bias", "text_projection"} == wanted


def test_last_blocks() -> None:
    towers = build()
    freezing.freeze(towers, OptimConfig(image_last_blocks=1, text_last_blocks=0))
    found = {name.removeprefix("clip.") for name in trained(towers)}
    assert all(n.startswith(("visual.transformer.resblocks.1.", "visual.ln_post", "visual.proj",
        "ln_final", "text_projection", "logit_")) for n in found)  # fmt: skip
    assert "visual.transformer.resblocks.1.attn.in_proj_weight" in found


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"freeze": "resblok"}, "'resblok' is neither .* one is positional_embedding|one is "),
        ({"freeze": ["image", "text"]}, "leaves nothing of either tower"),
        ({"image_last_blocks": 3}, "optim.image_last_blocks: 3, but the image tower has 2 blocks"),
    ],
)
def test_mistakes(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        freezing.freeze(build(), OptimConfig(**settings))


def test_a_broken_regular_expression() -> None:
    with pytest.raises(InputError, match=r"optim.freeze: '\(' is not a regular expression"):
        OptimConfig(freeze="(")


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


def test_clip_reports_the_norm_before() -> None:
    layer = torch.nn.Linear(2, 1, bias=False)
    layer.weight.grad = torch.tensor([[3.0, 4.0]])
    assert optim.clip(layer, None) == 5
    assert layer.weight.grad.norm() == 5
    assert optim.clip(layer, 1.0) == 5
    torch.testing.assert_close(layer.weight.grad, torch.tensor([[0.6, 0.8]]))
