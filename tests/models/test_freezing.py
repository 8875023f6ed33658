"""Which parameters train, by the words of the configuration and by towers of each make."""

from typing import Any

import pytest

from medclip_oc.config.schema import OptimConfig
from medclip_oc.errors import InputError
from medclip_oc.models import freezing
from medclip_oc.models.clip import Towers
from medclip_oc.models.freezing import Place
from tests.support.reference import HF, RESNET, build, timm
from tests.support.tiny_models import TEXT

LOGITS = {"logit_scale", "logit_bias"}


def trained(towers: Towers, **settings: Any) -> set[str]:
    """What is left to train, in towers of which everything trained before."""
    towers.requires_grad_(True)
    freezing.freeze(towers, OptimConfig(**settings))
    return {n.removeprefix("clip.") for n, p in towers.named_parameters() if p.requires_grad}


RESNET_PLACES = {
    "visual.bn2.bias": (0, 4),
    "visual.layer1.0.conv1.weight": (1, 4),
    "visual.layer4.0.bn3.weight": (4, 4),
    "visual.attnpool.c_proj.weight": (5, 4),
}
TIMM_PLACES = {
    "visual.trunk.cls_token": (0, 6),
    "visual.trunk.blocks.0.attn.qkv.weight": (1, 6),
    "visual.trunk.norm.weight": (7, 6),
    "visual.head.proj.weight": (7, 6),
    "text.transformer.embeddings.word_embeddings.weight": (0, 2),
    "text.transformer.encoder.layer.1.output.dense.weight": (2, 2),
    "text.proj.weight": (3, 2),
}
CNN_PLACES = {
    "visual.trunk.bn1.weight": (0, 5),
    "visual.trunk.blocks.0.0.conv.weight": (1, 5),
    "visual.trunk.bn2.weight": (6, 5),
}


@pytest.mark.parametrize(
    ("vision", "text", "places", "projections"),
    [
        (RESNET, TEXT, RESNET_PLACES, {f"visual.attnpool.c_proj.{n}" for n in ("weight", "bias")}),
        (timm("test_vit"), HF, TIMM_PLACES, {"visual.head.proj.weight", "text.proj.weight"}),
        (timm("test_efficientnet"), TEXT, CNN_PLACES, {"visual.head.proj.weight"}),
    ],
    ids=["resnet", "timm and hf", "cnn"],
)
def test_towers_of_each_make(
    vision: Any, text: Any, places: dict[str, tuple[int, int]], projections: set[str]
) -> None:
    towers = build(vision, text)
    found = freezing.places(towers)
    assert {n: tuple(found[f"clip.{n}"])[1:] for n in places} == places
    assert found["clip.logit_scale"] == Place("both", 0, 0)
    left = trained(towers, freeze="all_but_projections")
    assert left - LOGITS - {"text_projection"} == projections


def test_words_and_last_blocks() -> None:
    towers = build()
    every = trained(towers)
    image = {n for n in every if n.startswith("visual.")}
    for word, wanted in {
        "image": every - image,
        "text": image | LOGITS,
        "all_but_projections": {"visual.proj", "text_projection"} | LOGITS,
        r"resblocks\.0\.": {n for n in every if "resblocks.0." not in n},
        "^logit_scale$": every - {"logit_scale"},
    }.items():
        assert trained(towers, freeze=word) == wanted, word
    after = ("visual.ln_post", "visual.proj", "ln_final", "text_projection", "logit_")
    last = {n for n in every if n.startswith(("visual.transformer.resblocks.1.", *after))}
    assert trained(towers, image_last_blocks=1, text_last_blocks=0) == last
    assert "visual.transformer.resblocks.1.attn.in_proj_weight" in last


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"freeze": "resblok"}, "'resblok' is neither .* one is positional_embedding|one is "),
        ({"freeze": ["image", "text"]}, "leaves nothing of either tower"),
        ({"freeze": "("}, r"optim.freeze: '\(' is not a regular expression"),
        ({"image_last_blocks": 3}, "optim.image_last_blocks: 3, but the image tower has 2 blocks"),
    ],
)
def test_mistakes(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        trained(build(), **settings)
