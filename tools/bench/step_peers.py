"""Other ways to take one contrastive step, and the towers and batches that all of them get.

open_clip's accumulation is written here from its description (README of open_clip, "Gradient
Accumulation"); its `ClipLoss` is used as shipped.
"""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.distributed as dist
from open_clip.loss import ClipLoss
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from medclip_oc.config.schema import ModelConfig
from medclip_oc.contrastive.grad_cache import CachedStep
from medclip_oc.contrastive.reference import gradients, plain_step, relative_errors
from medclip_oc.models import factory
from medclip_oc.models.clip import Towers
from medclip_oc.runtime import distributed
from medclip_oc.runtime.distributed import World

ONE = World(0, 1, torch.device("cpu"))
LIGHT: dict[str, Any] = {
    "embed_dim": 512,
    "vision_cfg": {"image_size": 64, "patch_size": 16, "width": 64, "head_width": 32, "layers": 2},
    "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
}
COLLECTIVES = [
    "all_reduce",
    "all_gather",
    "all_gather_into_tensor",
    "reduce_scatter_tensor",
    "broadcast",
]


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


class Precomputed(nn.Module):
    """Towers whose images are features already: what is left of a step is the text tower's."""

    def __init__(self, towers: Towers) -> None:
        super().__init__()
        self.towers = towers
        self.embed_texts, self.text_blocks = towers.embed_texts, towers.text_blocks
        self.by_length, self.cuts_text = towers.by_length, towers.cuts_text
        self.inverse_temperature, self.logit_bias = towers.inverse_temperature, towers.logit_bias

    def embed_images(self, features: Tensor) -> Tensor:
        """(C, D) as they are."""
        return features

    def image_blocks(self) -> list[nn.Module]:
        """None."""
        return []


def worst_error(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    """Largest relative error of the gradients that `wanted` names."""
    return max(relative_errors({name: found[name] for name in wanted}, wanted).values())


def sent_per_step(rank: int, size: int, port: int, pairs: int, chunk: int, answer: Path) -> None:
    """One of `size` processes: both ways take one step over the same pairs; rank 0 writes what was
    sent, the losses and the gradients' difference to the file `answer`.
    """
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    os.environ |= dict(zip(names, map(str, (rank, rank, size, "127.0.0.1", port)), strict=True))
    torch.set_num_threads(1)
    with distributed.process_group("cpu") as world:
        towers = light()
        own = slice(rank * pairs // size, (rank + 1) * pairs // size)
        everything = batch(towers, pairs)
        images, tokens = (side[own] for side in everything)
        step = CachedStep(towers, "clip", world, micro_batch_size=chunk)
        with watched() as sent:
            value = step(images, tokens)
        ours = sum(size for _, size in sent)
        reduced = sum(size for name, size in sent if name == "all_reduce")
        found = gradients(towers)
        theirs, value_of_theirs = _sent_by_accumulation(rank, size, images, tokens, chunk)
        if rank == 0:
            alone = whole(towers, *everything)().item()
            error = worst_error(found, gradients(towers))
            losses = (value.item(), value_of_theirs, alone)
            answer.write_text(json.dumps([ours, reduced, theirs, losses, error]), encoding="utf-8")
        dist.barrier()


@contextmanager
def watched() -> Iterator[list[tuple[str, int]]]:
    """What torch's own collectives are given: name, and bytes of the whole."""
    sent: list[tuple[str, int]] = []
    own = {name: getattr(dist, name) for name in COLLECTIVES}

    def watching(name: str) -> Any:
        def call(*inputs: Any, **options: Any) -> Any:
            several = inputs[0] if isinstance(inputs[0], list) else []
            tensors = several or [max((x for x in inputs if torch.is_tensor(x)), key=torch.numel)]
            sent.append((name, sum(x.nbytes for x in tensors)))
            return own[name](*inputs, **options)

        return call

    for name in COLLECTIVES:
        setattr(dist, name, watching(name))
    try:
        yield sent
    finally:
        for name, function in own.items():
            setattr(dist, name, function)


def _sent_by_accumulation(
    rank: int, size: int, images: Tensor, tokens: Tensor, chunk: int
) -> tuple[int, float]:
    """Bytes that open_clip's way gives to collectives in one step, and its loss."""

    def hook(
        _: object,
        bucket: dist.GradBucket,  # type: ignore[name-defined]
    ) -> torch.futures.Future[Tensor]:
        done = dist.all_reduce(bucket.buffer().div_(size), async_op=True).get_future()
        return done.then(lambda future: future.value()[0])

    parallel = DistributedDataParallel(light())
    parallel.register_comm_hook(None, hook)
    loss = ClipLoss(cache_labels=True, rank=rank, world_size=size)
    with watched() as sent:
        value = accumulated(parallel, images, tokens, chunk, loss)()
    return sum(size for _, size in sent), value.item()
