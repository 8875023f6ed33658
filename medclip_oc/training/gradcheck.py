"""Is the cached step exact here? `python -m medclip_oc.train --config FILE --selfcheck`.

Takes the user's own model, data, precision and processes, and compares one cached step with one
plain big batch on the main process (contrastive/reference.py). Where the model draws random numbers
or normalises by the batch, the plain side embeds the same chunks under the same random numbers,
which is what the cached step promises to equal.

G pairs over all ranks.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from ..config.schema import Config
from ..contrastive import reference
from ..contrastive.grad_cache import CachedStep, gather_labels
from ..contrastive.micro_batched_tower import as_they_come, draws, live_batch_norms
from ..contrastive.soft_targets import Labels
from ..data import loader
from ..data.dataset import Batch
from ..errors import WorkError
from ..models.clip import Clip
from ..runtime import distributed
from ..runtime.distributed import World
from . import build

LIMIT = 1e-5
"""Largest relative error of a parameter's gradient in fp32."""
_CHUNKS = 4
Measured = tuple[float, dict[str, Tensor], str]
"""Loss, gradients by parameter, and what it cost, of one step."""


def check(config: Config) -> int:
    """Compare, print, return 0; WorkError: the step isn't exact in fp32 (names the parameter)."""
    train = config.train
    with distributed.process_group(config.run.device) as world:
        say = partial(print, flush=True) if world.main else lambda line: None
        data = build.open_data(config, world)
        clip = build.model(config, world)
        clip.towers.train()
        [batch] = loader.training_batches(data.train, clip, config, world, say, steps=1)
        # the plain batch is on one process, which has room for a micro batch
        most = min(train.global_batch_size, max(train.micro_batch_size, 2 * world.size))
        share = most // world.size
        batch = {name: rows[:share] for name, rows in batch.items()}
        images = max(1, share // _CHUNKS)
        texts = min(train.text_micro_batch_size or images, max(1, share // 2))
        pairs = f"{share * world.size} of {train.global_batch_size} pairs"
        where = f"on {world.size} process(es), {world.device.type}"
        chunks = f"in chunks of {images} images and {texts} texts, {train.keep_chunks} kept"
        say(f"{pairs} {where}, {chunks}, against one plain batch on one process")
        for precision in dict.fromkeys([train.precision, "fp32"]):
            changed = replace(
                train, precision=precision, micro_batch_size=images, text_micro_batch_size=texts
            )
            error, name = compare(clip, batch, replace(config, train=changed), world)
    if error >= LIMIT:
        raise WorkError(f"selfcheck: {name}: relative error {error:.1e} in fp32, above {LIMIT:g}")
    say(f"holds: every relative error is under {LIMIT:g} in fp32")
    return 0


def compare(clip: Clip, batch: Batch, config: Config, world: World) -> tuple[float, str]:
    """A cached step on all ranks, on the main one the plain step that it must equal, and what was
    found, printed; returns the worst (error, parameter), 0 on other ranks.
    """
    images, tokens, labels = batch["images"], batch["tokens"], Labels.of(batch)
    train = config.train
    step = build.cached_step(clip, config, world)
    all_images = distributed.all_gather(images.to(world.device)).cpu()  # (G, 3, H, W)
    all_tokens = distributed.all_gather(tokens.to(world.device)).cpu()  # (G, L)
    all_labels = gather_labels(labels, world.device)
    seeds = [config.run.seed + rank for rank in range(world.size)]
    exact = train.precision == "fp32"  # not in TF32's 10 bits
    with torch.backends.cudnn.flags(enabled=True, deterministic=exact, allow_tf32=not exact):
        for _ in range(2):  # the first pays for what is done once
            torch.manual_seed(seeds[world.rank])
            cached = measure(step, lambda: step(images, tokens, labels))
        distributed.barrier()
        if not world.main:
            return 0.0, ""
        texts_draw = draws(step.texts.embed_chunk, tokens[:1], world.device)[1]
        images_draw = draws(step.images.embed_chunk, images[:1], world.device)[1]
        chunked = texts_draw or images_draw or bool(live_batch_norms(step.towers))
        sizes = (train.micro_batch_size, train.text_micro_batch_size or train.micro_batch_size)
        plain = measure(
            step,
            lambda: reference.plain_step(
                step.towers,
                step.loss,
                all_images,
                all_tokens,
                micro_batches=sizes if chunked else None,
                split=step.texts.split if texts_draw else as_they_come,
                seeds=seeds if chunked else None,
                targets=reference.dense_targets(step.rule, all_labels, step.loss),
                precision=train.precision,
                scaler=step.scaler,
            ),
        )
    return report(cached, plain, train.precision, chunked)


def measure(step: CachedStep, run: Callable[[], Tensor]) -> Measured:
    """Gradients are without the scaler's factor; the cost is time and, on CUDA, peak memory."""
    device, before = step.world.device, 0
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
    began = time.perf_counter()
    loss = run().item()  # waits for a GPU
    cost = f"{time.perf_counter() - began:.2f} s"
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device) - before
        cost += f", peak memory {peak / 1e6:,.0f} MB"
    factor = 1.0 if step.scaler is None else step.scaler.get_scale()
    gradients = {n: g.cpu() / factor for n, g in reference.gradients(step.towers).items()}
    return loss, gradients, cost


def report(cached: Measured, plain: Measured, precision: str, chunked: bool) -> tuple[float, str]:
    """Print what was found, the worst of each part of the model; returns the worst of all."""
    (loss, gradients, cost), (plain_loss, wanted, plain_cost) = cached, plain
    try:
        errors = reference.relative_errors(gradients, wanted)
    except ValueError as error:
        raise WorkError(f"selfcheck: {error}") from error
    names = {"clip.logit_scale": "temperature", "clip.logit_bias": "bias"}
    worst: dict[str, tuple[float, str]] = {}
    for name, relative in errors.items():
        tower = "image tower" if name.startswith("clip.visual.") else "text tower"
        part = names.get(name, tower)
        worst[part] = max(worst.get(part, (0.0, "")), (relative, name))
    way = "all pairs embedded at once"
    if chunked:
        way = "the same chunks, since the model draws random numbers or normalises by the batch"
    print(f"{precision}: loss {loss:.6f} cached, {plain_loss:.6f} plain ({way})")
    for part, (relative, name) in sorted(worst.items()):
        print(f"  {part:<12} worst relative error {relative:.1e}  {name}")
    print(f"  cached step  {cost}\n  plain step   {plain_cost}", flush=True)
    return max(worst.values(), default=(0.0, ""))
