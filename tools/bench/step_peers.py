"""Other ways to take one contrastive step, and the towers and batches that all of them get.

open_clip's accumulation is written here from its description (README of open_clip, "Gradient
Accumulation"); its `ClipLoss` is used as shipped.
"""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import open_clip
import torch
from open_clip.loss import ClipLoss
from torch import Tensor, nn

from medclip_oc.config.schema import ModelConfig
from medclip_oc.contrastive.grad_cache import CachedStep
from medclip_oc.contrastive.reference import plain_step, relative_errors
from medclip_oc.models import factory
from medclip_oc.models.clip import Towers
from medclip_oc.runtime.distributed import World

ONE = World(0, 1, torch.device("cpu"))
LIGHT: dict[str, Any] = {
    "embed_dim": 512,
    "vision_cfg": {"image_size": 64, "patch_size": 16, "width": 64, "head_width": 32, "layers": 2},
    "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
}


def light() -> Towers:
    """Two small towers, with which the loss and the bookkeeping weigh most."""
    settings = ModelConfig(arch="light-tower", definition=LIGHT)
    return factory.build(settings).towers.train()


def vitb32_like() -> Towers:
    """open_clip's ViT-B/32 with 3 of its 12 layers: the towers are nearly all of the work.

    Widths, heads, tokens and vocabulary are those of ViT-B/32, so every layer costs what it costs
    there; a step takes a quarter of the time.
    """
    definition = deepcopy(open_clip.get_model_config("ViT-B-32"))
    for side in ("vision_cfg", "text_cfg"):
        definition[side]["layers"] = 3
    return factory.build(ModelConfig(arch="ViT-B-32-like", definition=definition)).towers.train()


def batch(towers: Towers, pairs: int) -> tuple[Tensor, Tensor]:
    """Noise of the towers' sizes: images (G, 3, H, W) uint8 and tokens (G, L) int64."""
    generator = torch.Generator().manual_seed(pairs)
    side, length = towers.clip.visual.preprocess_cfg["size"], towers.clip.context_length
    height, width = (side, side) if isinstance(side, int) else side
    images = torch.empty(pairs, 3, height, width, dtype=torch.uint8)
    for block in images.split(1024):  # drawing makes a wider copy
        block.copy_(torch.randint(256, block.shape, dtype=torch.uint8, generator=generator))
    tokens = torch.randint(1, 49408, (pairs, length), generator=generator)
    return images, tokens


def cached(
    towers: Any, images: Tensor, tokens: Tensor, chunk: int, keep: int = 0
) -> Callable[[], Tensor]:
    """Ours: a call is one step."""
    step = CachedStep(towers, "clip", ONE, micro_batch_size=chunk, keep_chunks=keep)
    return lambda: step(images, tokens)


def accumulated(
    towers: nn.Module, images: Tensor, tokens: Tensor, chunk: int, loss: nn.Module | None = None
) -> Callable[[], Tensor]:
    """open_clip 3.3.0's `--accum-freq`: a call is one step.

    Features of all chunks without a graph; then, for each chunk, its features once more with a
    graph, put in place among the others', the whole loss, and a backward.
    """
    loss = loss or ClipLoss(cache_labels=True)

    def step() -> Tensor:
        towers.zero_grad()
        parts = list(zip(images.split(chunk), tokens.split(chunk), strict=True))
        with torch.no_grad():
            features = [towers(*part)[:2] for part in parts]
        value = torch.zeros(())
        for number, part in enumerate(parts):
            image, text, scale = towers(*part)
            both = [*features[:number], (image, text), *features[number + 1 :]]
            value = loss(*(torch.cat(side) for side in zip(*both, strict=True)), scale)
            value.backward()
        return value.detach()

    return step


def whole(towers: nn.Module, images: Tensor, tokens: Tensor) -> Callable[[], Tensor]:
    """One plain big batch: a call is one step."""
    return lambda: plain_step(towers, "clip", images, tokens)


def worst_error(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    """Largest relative error of the gradients that `wanted` names."""
    return max(relative_errors({name: found[name] for name in wanted}, wanted).values())
