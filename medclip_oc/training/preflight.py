"""Is this run sound, before it takes days? `python -m medclip_oc.train --config FILE --doctor`.

Looks at the data, the settings, the weights, the machine and what the run will write, on every
rank, and trains nothing. Each check ends in a line with "ok", or in its findings with remedies: an
`error`: the run would fail, or be wasted (exit code 1); a `warning`: it may.

B pairs.
"""

import math
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..config.schema import Config
from ..contrastive.loss import clip_loss
from ..contrastive.micro_batched_tower import statistics_kept
from ..data import loader
from ..data.shards import ShardSet
from ..errors import InputError, WorkError
from ..inference import frozen_features
from ..models.clip import Clip
from ..runtime import devices, distributed
from ..runtime.distributed import World
from ..runtime.progress import rate
from . import build, checkpointer, logger, lr_range
from .build import RunData

_PAIRS_READ = 256  # and decoded, spread over the whole set, by all ranks together
_LOSS_PAIRS = 64  # of these, how many a rank takes the starting loss of
_LONG_SHARE = 0.10  # of captions cut, above which a warning is given: 2 % of ROCOv2's are
_LOSS_SLACK = 2.0  # above ln(B): a model that fits may be confident, and wrong about a new domain


@dataclass
class Opened:
    """The run that is examined."""

    config: Config
    world: World
    data: RunData
    clip: Clip
    text_length: int | None = None
    """Tokens that the text tower gets of a caption, on average, as `pairs` finds."""

    @property
    def made_once(self) -> list[str]:
        """Towers that no step runs."""
        counts = self.data.pairs, self.data.plan.seen
        return frozen_features.made_once(self.clip, self.config, *counts)


def check(config: Config, *, trials: bool = False) -> int:
    """Examine and, if all is well and they are asked for, try rates; 1: an error was found."""
    with distributed.process_group(config.run.device) as world:
        run = examine(config, world)
        if trials and run is not None:
            lr_range.search(config, world, run.data, run.clip)
    return int(run is None)


def examine(config: Config, world: World) -> Opened | None:
    """Print each check's findings, or "ok"; return what was opened, or None: there is an error."""
    data: RunData | None = None
    clip: Clip | None = None
    found: list[str] = []

    @contextmanager
    def checked() -> Iterator[list[str]]:
        lines: list[str] = []
        try:
            yield lines
        except (InputError, WorkError) as error:
            lines.append(f"error: {error}")
        of_ranks = distributed.all_gather_objects([line.replace("\n", " ") for line in lines])
        every = dict.fromkeys(line for own in of_ranks for line in own)
        findings = [line for line in every if line.startswith(("error", "warning"))]
        found.extend(findings)
        for line in (findings or [f"{fact}: ok" for fact in lines]) if world.main else ():
            print(line, flush=True)

    with checked() as lines:
        data = build.open_data(config, world)
        valid = len(data.valid or ())
        lines.append(f"data: {data.plan.pairs:,} pairs, {valid:,} of validation")
    with checked() as lines:
        clip = build.model(config, world)
        build.cached_step(clip, config, world)
        lines.append(f"model: {config.model.arch}")
    # on every rank, or on none
    run = None if found or not (data and clip) else Opened(config, world, data, clip)
    with checked() as lines:
        lines.extend([f"learning rate: {config.optim.lr:g}", *rates(config)])
    with checked() as lines:
        if world.main and logger.wandb_online(config.log):
            lines.append("wandb: online")
    with checked() as lines:
        if world.main and data and clip:
            lines.append(f"disk: {checkpointer.room(config, clip, data)}")
    for part in (shared_memory, pairs, speed):
        if run is not None:
            with checked() as lines:
                lines.extend(part(run))
    if world.main and not found:
        print(f"doctor: nothing found on {world.size} process(es)")
    return None if any(line.startswith("error") for line in found) else run


def rates(config: Config) -> Iterator[str]:
    """The peak learning rate against what is usual for this way of training."""
    model, optim = config.model, config.optim
    own_weights = model.pretrained is not None or model.arch.startswith(("hf-hub:", "local-dir:"))
    if config.lora.rank is not None:
        method, low, high = "adapters (lora.rank)", 2e-5, 2e-3
    elif not own_weights and (model.pretrained_image or model.pretrained_text):
        method, low, high = "two towers that never met", 1e-5, 1e-3
    elif not own_weights:
        method, low, high = "a model from scratch", 5e-5, 5e-3
    elif optim.freeze or (optim.image_last_blocks, optim.text_last_blocks) != (None, None):
        method, low, high = "one tower or some layers of a pretrained model", 1e-6, 5e-4
    else:
        method, low, high = "a pretrained model in full", 1e-6, 1e-4
    for name in ("lr", "image_lr", "text_lr"):
        lr = getattr(optim, name)
        if lr is not None and not low <= lr <= high:
            effect = "it forgets what it knew, or diverges" if lr > high else "it hardly learns"
            kind = "error" if lr >= 5 * high else "warning"
            told = f"{lr:g} is not usual for {method}: {effect}; take {low:g} to {high:g}"
            yield f"{kind}: optim.{name}: {told}"


def shared_memory(run: Opened) -> Iterator[str]:
    """Room for the batches on their way from loader processes, of all ranks of this machine."""
    train, shares = run.config.train, Path("/dev/shm")
    rows = min(train.micro_batch_size, run.data.plan.global_batch // run.world.size)
    tokens = 8 * run.clip.description["context_length"]
    batch = rows * (3 * math.prod(run.clip.image_size) + tokens)
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    needed = 2 * batch * run.config.data.workers * ranks  # each worker is two batches ahead
    yield f"shared memory: {needed / 1e6:.0f} MB needed"
    if shares.is_dir() and (free := shutil.disk_usage(shares).free) < needed:
        held = f"on {ranks} rank(s) hold up to {needed / 1e6:.0f} MB of batches in /dev/shm"
        ways = f"{free / 1e6:.0f} MB are free: take fewer, or give it more (docker --shm-size 8g)"
        yield f"error: data.workers: {run.config.data.workers} {held}, and {ways}"


def pairs(run: Opened) -> Iterator[str]:
    """What the pairs and the model show; a stream has no shards of its own to read."""
    source, settings, device = run.data.train.source, run.config.data, run.world.device
    if not isinstance(source, ShardSet):
        return
    read = loader.training_pairs(source, run.clip, settings, run.config.run.seed)
    read.replace = False  # an unreadable pair is to be seen
    samples = [read[(0, at)] for at in _spread(len(read), _PAIRS_READ, run.world)]
    reasons = [str(sample["error"]) for sample in samples if "error" in sample]
    sound = [sample for sample in samples if "images" in sample]
    rows = [row for s in sound for row in run.clip.towers.by_length(s["tokens"], 1)[1]]
    counts = [len(sound), len(samples), sum(sample["long"] for sample in sound)]
    counts.append(sum(row.shape[1] for row in rows))
    readable, total, long, length = distributed.all_reduce_sum(counts, device)
    context = read.captions.context
    run.text_length = context if run.config.train.compile else -(-length // max(1, readable))
    embedded = f"{run.text_length} of {context} tokens embedded on average"
    yield f"pairs: {total} read, {long} captions cut, {embedded}"
    if not readable:  # what comes after would only say the same
        way = "see what make_shards --verify says"
        yield f"error: data.train: none of {total} pairs can be read ({reasons[0]}); {way}"
        return
    bad = total - readable
    if reasons and bad / total > settings.max_bad_share:  # a rank without any leaves it to another
        ends = f"the run stops past data.max_bad_share {settings.max_bad_share:g}: pack again"
        yield f"warning: data.train: {bad} of {total} pairs can't be read ({reasons[0]}); {ends}"
    if settings.long_captions == "truncate" and long / readable > _LONG_SHARE:
        cut = f"{long / readable:.0%} of the captions are longer than {context} tokens"
        yield f"warning: data.long_captions: {cut}; take `sentences`, or a longer context"
    sound = sound[:_LOSS_PAIRS]
    if run.config.loss.name == "clip" and len(sound) > 1:
        images = torch.stack([s["images"] for s in sound])  # (B, 3, H, W)
        tokens = torch.cat([s["tokens"] for s in sound])  # (B, L): a caption each
        yield from loss(images, tokens, run)


def loss(images: Tensor, tokens: Tensor, run: Opened) -> Iterator[str]:
    """The starting loss of B pairs against that of features that say nothing, ln(B)."""
    towers, device = run.clip.towers.eval(), run.world.device
    rows = run.config.train.micro_batch_size
    chunks = zip(images.to(device).split(rows), tokens.to(device).split(rows), strict=True)
    with torch.inference_mode(), devices.autocast(device, run.config.train.precision)():
        parts = [towers(image, token)[:2] for image, token in chunks]
    image_features, text_features = (torch.cat(side).float() for side in zip(*parts, strict=True))
    value = clip_loss(image_features, text_features, towers.inverse_temperature()).item()
    chance = math.log(len(images))
    yield f"loss at start {value:.2f}, chance {chance:.2f}"
    if not value <= chance + _LOSS_SLACK:
        limit = f"ln({len(images)}) = {chance:.2f} of features that say nothing"
        why = "weights, activation (quickgelu) and model.preprocess may not belong together"
        yield f"warning: the loss starts at {value:.2f}, above {limit}: {why}"


def speed(run: Opened) -> Iterator[str]:
    """Whether a micro batch fits the GPU, and the loader keeps up with the steps."""
    train, share = run.config.train, run.data.plan.global_batch // run.world.size
    sizes = (train.micro_batch_size, train.text_micro_batch_size or train.micro_batch_size)
    part, taken = 1, None
    while taken is None:
        try:
            taken = step_rate(run, *(max(1, min(size, share) // part) for size in sizes))
        except torch.OutOfMemoryError:
            if part > max(sizes):
                raise WorkError("the GPU has no memory for one pair of this model") from None
            part *= 2
    if part > 1:
        way = f"take {max(1, min(sizes[0], share) // part)}, the result is the same"
        yield f"error: train.micro_batch_size: {sizes[0]} needs more memory than is free; {way}"
    given = loader_rate(run) if isinstance(run.data.train.source, ShardSet) else math.inf
    texts = f" (texts of {run.text_length} tokens)" if run.text_length else ""
    yield f"speed: step {rate(taken)} pairs/s{texts}, loader {rate(given)} pairs/s"
    if given < taken and "image" not in run.made_once:
        told = f"{run.config.data.workers} give {rate(given)} pairs/s, a step takes {rate(taken)}"
        yield f"warning: data.workers: {told}: give more workers, or pack with --resize 256"


def loader_rate(run: Opened) -> float:
    """Pairs per second that this rank's loader gives, once it runs."""
    steps, began, given = min(4, run.data.plan.steps), 0.0, 0
    for batch in loader.training_batches(
        run.data.train, run.clip, run.config, run.world, lambda _: None, steps=steps
    ):
        given += len(batch["index"]) if began else 0  # the first one starts the workers
        began = began or time.perf_counter()
    return given / (time.perf_counter() - began) if given else math.inf


def step_rate(run: Opened, images: int, texts: int) -> float:
    """Pairs per second that this rank's share of a step takes: two forwards and a backward of each
    tower, over so many rows, beside the averages of AdamW. Texts of the context's length have to
    fit; those of average length are timed.
    """
    device, towers = run.world.device, run.clip.towers.train()
    autocast = devices.autocast(device, run.config.train.precision)
    size = 2 * checkpointer.parameter_bytes(run.clip)[1]
    averages = torch.empty(size, dtype=torch.uint8, device=device)
    blank = torch.zeros(images, 3, *run.clip.image_size, dtype=torch.uint8, device=device)
    tokens = run.clip.tokenizer(["a chest radiograph"] * texts).to(device)
    seconds = 0.0  # of a pair
    usual = tokens[:, : run.text_length or None]
    image, text = (towers.embed_images, (blank, blank)), (towers.embed_texts, (tokens, usual))
    for side, (embed, batches) in {"image": image, "text": text}.items():
        for rows in batches:  # the first one warms up
            began = time.perf_counter()
            with autocast(), statistics_kept(towers):
                with torch.no_grad():
                    embed(rows)
                value = embed(rows).sum()
            if value.requires_grad:
                value.backward()
            value.item()  # waits for a GPU
            last = time.perf_counter() - began
        seconds += 0.0 if side in run.made_once else last / len(rows)
    towers.zero_grad()
    del averages
    return 1 / seconds


def _spread(count: int, wanted: int, world: World) -> list[int]:
    """This rank's share of `wanted` positions, evenly spread over `count`."""
    wanted = min(count, wanted)
    return [place * count // wanted for place in range(wanted)][world.rank :: world.size]
