"""Maps against their equations in float64, without hooks; and where they lie in an image."""

import sys
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import ExifTags, Image
from torch import Tensor

from medclip_oc.config.schema import ModelConfig
from medclip_oc.errors import InputError, WorkError
from medclip_oc.models import factory
from medclip_oc.models.clip import Clip
from medclip_oc.relevance import maps
from medclip_oc.relevance.maps import explain
from tests.support.reference import RESNET, timm
from tests.support.tiny_dataset import picture
from tests.support.tiny_models import TINY, VIT

TEXTS = ["a mass in the left lung", "no finding"]
B32 = {"image_size": 224, "patch_size": 32, "width": 64, "layers": 3, "head_width": 16}
LIKE_RESNET = {**RESNET, "image_size": 128}
VITS = {
    "ViT-B/32": B32,
    "timm, average": timm("test_vit2"),
    "timm, of another size": timm("test_vit2", 96),
    "timm, attention pool": {**timm("test_vit3"), "timm_pool": "map"},
}
CONVOLUTIONAL = {"ResNet": LIKE_RESNET, "ConvNeXt": timm("test_convnext")}


def build(vision: dict[str, Any], seed: int = 1, **settings: Any) -> Clip:
    definition = {**TINY, "vision_cfg": vision}
    clip = factory.build(ModelConfig(arch="maps", definition=definition, **settings), seed=seed)
    with torch.no_grad():  # what begins at 0 hides mistakes
        for parameter in clip.towers.clip.visual.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    return clip


def attended(block: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """A block's output by its equations, and its attention map (heads, tokens, tokens)."""
    own = block.attn
    plain = isinstance(own, torch.nn.MultiheadAttention)
    norms = (block.ln_1, block.ln_2) if plain else (block.norm1, block.norm2)
    y = norms[0](x)[0]
    y = y @ own.in_proj_weight.T + own.in_proj_bias if plain else own.qkv(y)
    q, k, v = y.reshape(len(y), 3, own.num_heads, -1).permute(1, 2, 0, 3)
    attention = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
    merged = (attention @ v).transpose(0, 1).flatten(1)[None]
    scales = (block.ls_1, block.ls_2) if plain else (block.ls1, block.ls2)
    x = x + scales[0]((own.out_proj if plain else own.proj)(merged))
    return x + scales[1](block.mlp(norms[1](x))), attention


def legrad_written_out(visual: Any, pixels: Tensor, texts: Tensor) -> Tensor:
    trunk = getattr(visual, "trunk", None)
    blocks = trunk.blocks if trunk else visual.transformer.resblocks
    x = trunk._pos_embed(trunk.patch_embed(pixels)) if trunk else visual._embeds(pixels)
    total = torch.zeros(len(texts), x.shape[1] - 1, dtype=torch.float64)
    for block in blocks:
        x, attention = attended(block, x.detach())
        if trunk is None:
            feature = visual.ln_post(x)[:, 0] @ visual.proj
        elif trunk.attn_pool is not None:
            feature = visual.head(trunk.attn_pool(trunk.norm(x)))
        else:
            feature = visual.head(trunk.fc_norm(trunk.norm(x)[:, 1:].mean(1)))
        for m, text in enumerate(texts):
            score = feature[0] @ text / feature.norm()
            (gradient,) = torch.autograd.grad(score, attention, retain_graph=True)
            total[m] += gradient.clamp(min=0).mean(0).mean(0)[1:] / len(blocks)
    return total.unflatten(1, (round(total.shape[1] ** 0.5), -1))


def hires_cam_written_out(visual: Any, pixels: Tensor, texts: Tensor) -> Tensor:
    trunk = getattr(visual, "trunk", None)
    if trunk is None:
        x = visual.layer4(visual.layer3(visual.layer2(visual.layer1(visual.stem(pixels)))))
        feature = visual.attnpool(x)
    else:
        x = trunk.forward_features(pixels)
        feature = visual.head(trunk.forward_head(x))
    cosines = texts @ F.normalize(feature[0], dim=0)
    gradients = (torch.autograd.grad(cosine, x, retain_graph=True)[0] for cosine in cosines)
    return torch.cat([(gradient * x).sum(1).clamp(min=0) for gradient in gradients]).detach()


@pytest.mark.parametrize("name", [*VITS, *CONVOLUTIONAL])
def test_maps_are_the_equations(name: str) -> None:
    clip = build((VITS | CONVOLUTIONAL)[name])
    image = picture(5, clip.image_size)
    found = explain(clip, image, TEXTS)
    towers = deepcopy(clip.towers).double().eval()
    visual, texts = towers.clip.visual, towers.embed_texts(clip.tokenizer(TEXTS)).detach()
    pixels = (clip.preprocess(image.convert("RGB"))[None] - towers.mean) / towers.std
    written_out = legrad_written_out if name in VITS else hires_cam_written_out
    wanted = written_out(visual, pixels, texts)
    cosines = (F.normalize(visual(pixels)) @ texts.T)[0].tolist()
    assert [each.cosine for each in found] == pytest.approx(cosines, abs=1e-5)
    for each, grid in zip(found, wanted, strict=True):
        grid = (grid - grid.min()) / (grid.max() - grid.min()).clamp(min=1e-30)
        whole = F.interpolate(grid[None, None], size=clip.image_size, mode="bilinear")[0, 0]
        torch.testing.assert_close(torch.tensor(each.values), whole.float(), atol=1e-4, rtol=0)
    assert np.abs(found[0].values - found[1].values).max() > 0.01, "each text has its own map"


@pytest.mark.parametrize("vision", [B32, LIKE_RESNET], ids=["ViT", "ResNet"])
def test_a_map_is_of_the_weights_and_leaves_the_model_as_it_was(vision: dict[str, Any]) -> None:
    clip, image = build(vision), picture(5, (90, 70))
    (alone,) = explain(clip, image, TEXTS[:1])
    (other,) = explain(build(vision, seed=2), image, TEXTS[:1])
    assert np.abs(other.values - alone.values).max() > 0.2  # the check of Adebayo et al. 2018
    towers = clip.towers.train()
    towers.clip.visual.requires_grad_(False)
    before = {name: value.clone() for name, value in towers.state_dict().items()}
    modes = [module.training for module in towers.modules()]
    random = torch.get_rng_state()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        (found,) = explain(clip, image, TEXTS[:1])
    assert found.cosine == pytest.approx(alone.cosine, abs=1e-6)
    np.testing.assert_allclose(found.values, alone.values, atol=1e-5)
    assert torch.get_rng_state().equal(random)
    assert [module.training for module in towers.modules()] == modes
    assert all(value.equal(before[name]) for name, value in towers.state_dict().items())
    assert all(parameter.grad is None for parameter in towers.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in towers.modules())


@pytest.mark.parametrize("size", [64, [48, 80]], ids=["square", "wide"])
@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("kind", ["grey", "turned", "16 bits"])
def test_a_bright_square_is_found(
    size: Any, mode: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = build({**VIT, "image_size": size}, preprocess={"resize_mode": mode})

    def brightness(_: Any, seen: Tensor, texts: Tensor) -> tuple[Tensor, Tensor]:
        return F.avg_pool2d(seen[:, 0].float(), 4), texts[0]

    monkeypatch.setattr(maps, "method_of", lambda _: brightness)
    pixels = np.full((200, 300), 100, dtype=np.uint8)
    pixels[110:150, 180:220], pixels[60:100, 100:140] = 255, 0
    image = Image.fromarray(pixels)
    if kind == "turned":
        image = image.transpose(Image.Transpose.ROTATE_90)
        image.getexif()[ExifTags.Base.Orientation] = 6
    if kind == "16 bits":
        image = Image.fromarray(pixels.astype(np.uint16) * 200)
    (found,) = explain(clip, image, ["a square"])
    assert found.values.shape == (200, 300)
    rows, columns = np.nonzero(found.values > 0.7)
    assert (rows.mean(), columns.mean()) == pytest.approx((129.5, 199.5), abs=2)
    assert (np.ptp(rows), np.ptp(columns)) == pytest.approx((40, 40), abs=12)
    cropped = found.values == 0  # and the middle of the dark square
    assert cropped[:, :50].all() == cropped[:, 250:].all() == (mode == "shortest" and size == 64)


def test_words_are_left_out_in_turn() -> None:
    clip, image = build(B32), picture(5, (90, 70))
    first, empty = explain(clip, image, ["a mass,\n left", ""], words=True)
    others = explain(clip, image, ["mass, left", "a left", "a mass,"])
    wanted = [first.cosine - other.cosine for other in others]
    words, shares = zip(*(first.words or []), strict=True)
    assert (words, shares) == (("a", "mass,", "left"), pytest.approx(wanted, abs=1e-6))
    assert (empty.words, others[0].words) == ([], None)


def test_what_has_no_map_is_refused_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    image = picture(1)
    with pytest.raises(InputError, match="EfficientNet; not this VisionTransformerRelPos"):
        explain(build(timm("test_vit_relpos")), image, TEXTS)
    clip = build(VIT)
    clip.towers.clip.visual.proj.data.fill_(torch.nan)
    with pytest.raises(WorkError, match="image or text features hold NaN"):
        explain(clip, image, TEXTS)
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(InputError, match=r"needs captum.attr: pip install 'medclip_oc\[explain\]'"):
        explain(build(LIKE_RESNET), image, TEXTS)
