"""Is the cached step exact here? `python -m medclip_oc.train --config FILE --selfcheck`.

Takes the user's own model, data, precision and processes, and compares one cached step with one
plain big batch on the main process: all graphs kept, the dense loss, one backward. Where the model
draws random numbers or normalises by the batch, the plain side embeds the same chunks under the
same random numbers, which is what the cached step promises to equal.
"""

import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from ..config.checks import Precision
from ..config.schema import Config, TrainConfig
from ..errors import InputError, WorkError

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from torch import Tensor

    from ..contrastive.grad_cache import CachedStep
    from ..data.dataset import Batch
    from ..models.clip import Clip
    from ..runtime.distributed import World

LIMIT = 1e-5
"""Largest relative error of a parameter's gradient in fp32."""
_SHARE_OF_FREE_MEMORY = 0.5


@dataclass
class Measured:
    """One step, cached or plain."""

    loss: float
    gradients: "dict[str, Tensor]"
    seconds: float
    peak_bytes: int | None
    chunked: bool = True
    """Whether the rows were embedded in chunks, not all at once."""


def check(config: Config) -> int:
    """Compare, print, and return 0 if the cached step is exact in fp32.

    Raises:
        WorkError: it is not; names the parameter.
    """
    from ..data import loader
    from ..runtime import distributed
    from . import build

    with distributed.process_group(config.run.device) as world:
        opened = build.open_data(config, world)
        data, plan = opened.train, opened.plan
        clip = build.model(config, world)
        clip.towers.train()
        tell = partial(say, world)
        batches = loader.training_batches(data, clip, config, world, tell, steps=plan.steps)
        batch = next(iter(batches))
        pairs = fitting_pairs(clip, batch["images"], batch["tokens"], config, world)
        batch = {name: rows[: pairs // world.size] for name, rows in batch.items()}
        images = batch["images"]
        config = replace(config, train=smaller_chunks(config, len(images)))
        say(world, describe(config, pairs, world))
        worst: list[tuple[float, str]] = []
        precisions: list[Precision] = [config.train.precision, "fp32"]
        for precision in dict.fromkeys(precisions):
            cached, plain = both(clip, batch, precision, config, world)
            if world.main:
                assert plain is not None
                worst = report(cached, plain, precision)
    error, name = max(worst, default=(0.0, ""))
    if error >= LIMIT:
        raise WorkError(f"selfcheck: {name}: relative error {error:.1e} in fp32, above {LIMIT:g}")
    say(world, f"holds: every relative error is under {LIMIT:g} in fp32")
    return 0


def fitting_pairs(
    clip: "Clip", images: "Tensor", tokens: "Tensor", config: Config, world: "World"
) -> int:
    """Of the global batch, how many pairs one plain big batch on one process has room for."""
    import torch

    from ..runtime import distributed, memory

    total = len(images) * world.size
    few = min(8, len(images))
    moved = [side[:few].to(world.device) for side in (images, tokens)]
    clip.towers(*[side[:1] for side in moved])  # one-time costs
    before = memory.allocated_bytes(world.device)
    outputs = clip.towers(*moved)
    after = memory.allocated_bytes(world.device)
    del outputs
    free = memory.free_bytes(world.device)
    fits = 2 * config.train.micro_batch_size * world.size
    if before is not None and after is not None and free is not None:
        fits = int(_SHARE_OF_FREE_MEMORY * free * few / max(1, after - before))
    chosen = torch.tensor([min(total, fits)], device=world.device)
    distributed.broadcast_([chosen])
    pairs = int(chosen.item()) // world.size * world.size
    if pairs < 2:
        raise InputError("selfcheck: there is no room for a plain batch of two pairs")
    return pairs


def smaller_chunks(config: Config, rows: int) -> TrainConfig:
    """The settings of train, with at least two chunks where a rank has two rows."""
    half = max(1, rows // 2)
    settings = config.train
    text = settings.text_micro_batch_size
    return replace(
        settings,
        micro_batch_size=min(settings.micro_batch_size, half),
        text_micro_batch_size=None if text is None else min(text, half),
    )


def both(
    clip: "Clip",
    batch: "Batch",
    precision: Precision,
    config: Config,
    world: "World",
) -> "tuple[Measured, Measured | None]":
    """A cached step on all ranks, and on the main one the plain step that it must equal."""
    import torch

    from ..contrastive import reference
    from ..contrastive.grad_cache import gather_labels
    from ..contrastive.recompute import live_batch_norms
    from ..contrastive.soft_targets import Labels
    from ..runtime import distributed
    from . import build

    images, tokens, labels = batch["images"], batch["tokens"], Labels.of(batch)
    config = replace(config, train=replace(config.train, precision=precision))
    step = build.cached_step(clip, config, world)
    all_images = distributed.all_gather(images.to(world.device)).cpu()
    all_tokens = distributed.all_gather(tokens.to(world.device)).cpu()
    targets = reference.dense_targets(step.rule, gather_labels(labels, world.device), step.loss)
    with exactly(precision, world.device):
        for _ in range(2):  # the first pays for what is done once
            torch.manual_seed(config.run.seed + world.rank)
            cached = measured(step, lambda: step(images, tokens, labels), world)
        distributed.barrier()
        if not world.main:
            return cached, None
        chunked = draws(step, images, tokens) or bool(live_batch_norms(step.towers))
        ranks = range(world.size if chunked else 1)
        alone = partial(
            reference.plain_step,
            step.towers,
            step.loss,
            all_images,
            all_tokens,
            micro_batches=(step.images.chunk, step.texts.chunk) if chunked else None,
            seeds=[config.run.seed + rank for rank in ranks],
            targets=targets,
            precision=precision,
            scaler=step.scaler,
        )
        plain = measured(step, alone, world)
        plain.chunked = chunked
        return cached, plain


def draws(step: "CachedStep", images: "Tensor", tokens: "Tensor") -> bool:
    """Whether the towers take random numbers in training."""
    import torch

    from ..contrastive.recompute import RandomState

    before = RandomState.now(step.world.device)
    with torch.no_grad():
        step.images.embed_chunk(images[:1])
        step.texts.embed_chunk(tokens[:1])
    return not before.equals(RandomState.now(step.world.device))


def measured(step: "CachedStep", run: "Callable[[], Tensor]", world: "World") -> Measured:
    """Loss, gradients without the scaler's factor, time and peak memory of one step."""
    import torch

    from ..runtime import memory

    with memory.Peak(world.device) as peak:
        began = time.perf_counter()
        loss = run()
        if world.device.type == "cuda":
            torch.cuda.synchronize(world.device)
        seconds = time.perf_counter() - began
    factor = 1.0 if step.scaler is None else step.scaler.get_scale()
    named = step.towers.named_parameters()
    gradients = {n: p.grad.cpu() / factor for n, p in named if p.grad is not None}
    return Measured(float(loss), gradients, seconds, peak.bytes)


def exactly(precision: str, device: "torch.device") -> AbstractContextManager[object]:
    """For fp32 on CUDA: convolutions in float32 itself, not in TF32's 10 bits."""
    import torch

    if precision != "fp32" or device.type != "cuda":
        return nullcontext()
    return torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)


def report(cached: Measured, plain: Measured, precision: str) -> list[tuple[float, str]]:
    """Print what was found; returns (error, parameter), the worst of each part."""
    from ..contrastive import reference

    parts: dict[str, list[tuple[float, str]]] = {}
    try:
        errors = reference.relative_errors(cached.gradients, plain.gradients)
    except ValueError as odd:
        raise WorkError(f"selfcheck: {odd}") from None
    for name, error in errors.items():
        parts.setdefault(part_of(name), []).append((error, name))
    worst = {part: max(found) for part, found in parts.items()}
    how = "the same chunks, since the model draws random numbers or normalises by the batch"
    how = how if plain.chunked else "all pairs embedded at once"
    print(f"{precision}: loss {cached.loss:.6f} cached, {plain.loss:.6f} plain ({how})")
    for part, (error, name) in sorted(worst.items()):
        print(f"  {part:<12} worst relative error {error:.1e}  {name}")
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


def describe(config: Config, pairs: int, world: "World") -> str:
    """What is compared."""
    settings = config.train
    texts = settings.text_micro_batch_size or settings.micro_batch_size
    less = f" (of {settings.global_batch_size}: as many as a plain batch has room for)"
    return (
        f"{pairs} pairs{less if pairs < settings.global_batch_size else ''} on {world.size} "
        f"process(es), {world.device.type}, in chunks of {settings.micro_batch_size} images and "
        f"{texts} texts, {settings.keep_chunks} kept, against one plain batch on one process"
    )


def say(world: "World", line: str) -> None:
    """Print, on the main rank."""
    if world.main:
        print(line, flush=True)
