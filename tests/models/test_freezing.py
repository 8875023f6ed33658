"""Which parameters train, by the words of the configuration and by towers of each make."""

from typing import Any

import pytest

from medclip_oc.config.schema import OptimConfig
from medclip_oc.errors import InputError
from medclip_oc.models import freezing
from medclip_oc.models.freezing import Place
from tests.support.reference import HF, RESNET, build, timm
from tests.support.tiny_models import TEXT


def trained(towers: Any) -> set[str]:
    return {name for name, p in towers.named_parameters() if p.requires_grad}


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
                "text.transformer.embeddings.word_embeddings.weight": (0, 2),
                "text.transformer.encoder.layer.1.output.dense.weight": (2, 2),
                "text.proj.weight": (3, 2),
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
