"""Is the cached step exact here? `python -m medclip_oc.train --config FILE --selfcheck`.

Takes the user's own model, data, precision and processes, and compares one cached step with one
plain big batch on the main process (contrastive/reference.py). Where the model draws random numbers
or normalises by the batch, the plain side embeds the same chunks under the same random numbers,
which is what the cached step promises to equal.

B pairs per rank, G pairs over all ranks.
"""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from ..config.checks import Precision
from ..config.schema import Config
from ..contrastive import reference
from ..contrastive.grad_cache import CachedStep, gather_labels
from ..contrastive.recompute import RandomState, live_batch_norms
from ..contrastive.soft_targets import Labels
from ..data import loader
from ..data.dataset import Batch
from ..errors import InputError, WorkError
from ..models.clip import Clip
from ..runtime import devices, distributed
from ..runtime.distributed import World
from . import build

LIMIT = 1e-5
"""Largest relative error of a parameter's gradient in fp32."""
_SHARE_OF_FREE_MEMORY = 0.5


@dataclass
class Measured:
    """One step, cached or plain."""

    loss: float
    gradients: dict[str, Tensor]
    seconds: float
    peak_bytes: int | None


def check(config: Config) -> int:
    """Compare, print, and return 0 if the cached step is exact in fp32.

    Raises:
        WorkError: it is not; names the parameter.
    """
    with distributed.process_group(config.run.device) as world:
        say = partial(print, flush=True) if world.main else lambda line: None
        data = build.open_data(config, world)
        clip = build.model(config, world)
        clip.towers.train()
        steps = data.plan.steps
        batch = next(
            iter(loader.training_batches(data.train, clip, config, world, say, steps=steps))
        )
        pairs = fitting_pairs(clip, batch["images"], batch["tokens"], config, world)
        batch = {name: rows[: pairs // world.size] for name, rows in batch.items()}
        whole, half = config.train.global_batch_size, max(1, pairs // world.size // 2)
        images = min(config.train.micro_batch_size, half)  # at least two chunks of two rows
        texts = min(config.train.text_micro_batch_size or images, half)
        less = f" (of {whole}: as many as a plain batch has room for)" if pairs < whole else ""
        say(
            f"{pairs} pairs{less} on {world.size} process(es), {world.device.type}, in chunks of "
            f"{images} images and {texts} texts, {config.train.keep_chunks} kept, against one "
            "plain batch on one process"
        )
        train = replace(config.train, micro_batch_size=images, text_micro_batch_size=texts)
        worst: list[tuple[float, str]] = []
        precisions: list[Precision] = [train.precision, "fp32"]
        for precision in dict.fromkeys(precisions):
            settings = replace(config, train=replace(train, precision=precision))
            worst = compare(clip, batch, settings, world)
    error, name = max(worst, default=(0.0, ""))
    if error >= LIMIT:
        raise WorkError(f"selfcheck: {name}: relative error {error:.1e} in fp32, above {LIMIT:g}")
    say(f"holds: every relative error is under {LIMIT:g} in fp32")
    return 0


def fitting_pairs(clip: Clip, images: Tensor, tokens: Tensor, config: Config, world: World) -> int:
    """Of the global batch, how many pairs one plain big batch on one process has room for."""
    few = [side[:8].to(world.device) for side in (images, tokens)]
    free = devices.free_bytes(world.device)
    fitting = 2 * config.train.micro_batch_size * world.size
    if free is not None and len(images) > 1:
        fitting = int(_SHARE_OF_FREE_MEMORY * free) // devices.graph_bytes(clip.towers, *few)
    chosen = torch.tensor([min(len(images) * world.size, fitting)], device=world.device)
    distributed.broadcast_([chosen])
    pairs = int(chosen.item()) // world.size * world.size
    if pairs < 2:
        raise InputError("selfcheck: there is no room for a plain batch of two pairs")
    return pairs


def compare(clip: Clip, batch: Batch, config: Config, world: World) -> list[tuple[float, str]]:
    """A cached step on all ranks, on the main one the plain step that it must equal, and what was
    found, printed: (error, parameter), the worst of each part of the model; [] on other ranks.
    """
    images, tokens, labels = batch["images"], batch["tokens"], Labels.of(batch)
    train = config.train
    step = build.cached_step(clip, config, world)
    all_images = distributed.all_gather(images.to(world.device)).cpu()  # (G, 3, H, W)
    all_tokens = distributed.all_gather(tokens.to(world.device)).cpu()  # (G, L)
    all_labels = gather_labels(labels, world.device)
    seeds = [config.run.seed + rank for rank in range(world.size)]
    exact: AbstractContextManager[object] = nullcontext()
    if train.precision == "fp32" and world.device.type == "cuda":  # not in TF32's 10 bits
        exact = torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)
    with exact:
        for _ in range(2):  # the first pays for what is done once
            torch.manual_seed(seeds[world.rank])
            cached = measure(step, lambda: step(images, tokens, labels))
        distributed.barrier()
        if not world.main:
            return []
        chunked = draws(step, images, tokens) or bool(live_batch_norms(step.towers))
        sizes = (train.micro_batch_size, train.text_micro_batch_size or train.micro_batch_size)
        plain = measure(
            step,
            lambda: reference.plain_step(
                step.towers,
                step.loss,
                all_images,
                all_tokens,
                micro_batches=sizes if chunked else None,
                seeds=seeds if chunked else None,
                targets=reference.dense_targets(step.rule, all_labels, step.loss),
                precision=train.precision,
                scaler=step.scaler,
            ),
        )
    return report(cached, plain, train.precision, chunked)


def draws(step: CachedStep, images: Tensor, tokens: Tensor) -> bool:
    """Whether the towers take random numbers in training."""
    before = RandomState.now(step.world.device)
    with torch.no_grad():
        step.images.embed_chunk(images[:1])
        step.texts.embed_chunk(tokens[:1])
    return not before.equals(RandomState.now(step.world.device))


def measure(step: CachedStep, run: Callable[[], Tensor]) -> Measured:
    """Loss, gradients without the scaler's factor, time and (CUDA) peak memory of one step."""
    device, peak, before = step.world.device, None, 0
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
    began = time.perf_counter()
    loss = float(run())  # waits for a GPU
    seconds = time.perf_counter() - began
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device) - before
    factor = 1.0 if step.scaler is None else step.scaler.get_scale()
    gradients = {n: g.cpu() / factor for n, g in reference.gradients(step.towers).items()}
    return Measured(loss, gradients, seconds, peak)


def report(
    cached: Measured, plain: Measured, precision: str, chunked: bool
) -> list[tuple[float, str]]:
    """Print what was found; returns (error, parameter), the worst of each part of the model."""
    try:
        errors = reference.relative_errors(cached.gradients, plain.gradients)
    except ValueError as error:
        raise WorkError(f"selfcheck: {error}") from error
    parts: dict[str, list[tuple[float, str]]] = {}
    for name, relative in errors.items():
        parts.setdefault(part_of(name), []).append((relative, name))
    worst = {part: max(pairs) for part, pairs in sorted(parts.items())}
    way = "all pairs embedded at once"
    if chunked:
        way = "the same chunks, since the model draws random numbers or normalises by the batch"
    print(f"{precision}: loss {cached.loss:.6f} cached, {plain.loss:.6f} plain ({way})")
    for part, (relative, name) in worst.items():
        print(f"  {part:<12} worst relative error {relative:.1e}  {name}")
    for title, side in (("cached step", cached), ("plain step", plain)):
        peak = "" if side.peak_bytes is None else f", peak memory {side.peak_bytes / 1e6:,.0f} MB"
        print(f"  {title:<12} {side.seconds:.2f} s{peak}", flush=True)
    return list(worst.values())


def part_of(parameter: str) -> str:
    """The part of the model that a parameter of `Towers` belongs to."""
    last = parameter.rpartition(".")[2]
    if last in ("logit_scale", "logit_bias"):
        return {"logit_scale": "temperature", "logit_bias": "bias"}[last]
    return "image tower" if parameter.startswith("clip.visual.") else "text tower"
