"""Is this run sound, before it takes days? `python -m medclip_oc.train --config FILE --doctor`.

Looks at the data, the settings, the weights, the machine and what the run will write, on every
rank, and trains nothing. Each finding is one line with its remedy: an `error` means that the run
would fail, or be wasted, and the exit code is 1; a `warning` that it may. A sound run has none.

B pairs, C pairs per micro batch, D embedding size.
"""

import math
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from ..config.schema import Config
from ..contrastive.loss import clip_loss
from ..data import loader
from ..data.dataset import Pairs
from ..data.shards import ShardSet
from ..errors import InputError, WorkError
from ..models.clip import Clip
from ..runtime import devices, distributed
from ..runtime.distributed import World
from . import build, logger
from .build import RunData

# usual peak learning rates: by what trains, lowest and highest
USUAL_LR: dict[str, tuple[float, float]] = {
    "adapters (lora.rank)": (2e-5, 2e-3),
    "one tower or some layers of a pretrained model": (1e-6, 5e-4),
    "a pretrained model in full": (1e-6, 1e-4),
    "two towers that never met": (1e-5, 1e-3),
    "a model from scratch": (5e-5, 5e-3),
}
PAIRS_READ = 64
"""Pairs that are read and decoded, spread over the whole set, by all ranks together."""
CAPTIONS_READ = 500
LONG_SHARE = 0.10
"""Captions cut, above which a warning is given: of ROCOv2's 2 % pass 77 tokens."""
STATE_COPIES = 3
"""Of weights that train: they, and AdamW's two averages."""
_LOSS_SLACK = 2.0
"""How far above ln(B) a model that fits may start: confident, and wrong about a new domain."""
_MEMORY_SHARE = 0.9
_STEP_SECONDS = 2.0


@dataclass(frozen=True)
class Opened:
    """The run that is examined."""

    config: Config
    world: World
    data: RunData
    clip: Clip


def check(config: Config) -> int:
    """Examine, print every finding once, and return 1 if there is an error, else 0."""
    with distributed.process_group(config.run.device) as world:
        every = distributed.all_gather_objects(list(examine(config, world)))
    findings = list(dict.fromkeys(line.replace("\n", " ") for lines in every for line in lines))
    if world.main:
        for line in sorted(findings, key=lambda line: line.startswith("warning")):
            print(line)
        if not findings:
            print(f"doctor: nothing found on {world.size} process(es)")
    return int(any(line.startswith("error") for line in findings))


def examine(config: Config, world: World) -> Iterator[str]:
    """Every check in turn, but those that need what could not be opened."""
    data: RunData | None = None
    clip: Clip | None = None
    try:
        data = build.open_data(config, world)
    except (InputError, WorkError) as error:
        of_shards = str(error).startswith(("data.train: ", "data.valid: "))
        yield f"error: {error}{'; pack it again, or correct the setting' if of_shards else ''}"
    try:
        clip = build.model(config, world)
        build.cached_step(clip, config, world)
    except (InputError, WorkError) as error:
        yield f"error: {error}"
    checks = [rates(config), wandb_mode(config, world)]
    if clip is not None:
        checks.append(disk(config, clip, world))
    if data is not None and clip is not None:
        checks.append(examine_pairs(Opened(config, world, data, clip)))
    for findings in checks:
        try:
            yield from findings
        except (InputError, WorkError) as error:
            yield f"error: {error}"
        except torch.OutOfMemoryError:
            yield "error: train.micro_batch_size: the GPU runs out of memory; take a smaller one"


def rates(config: Config) -> Iterator[str]:
    """The learning rate against what is usual for this way of training."""
    method = method_of(config)
    low, high = USUAL_LR[method]
    for name in ("lr", "image_lr", "text_lr"):
        lr = getattr(config.optim, name)
        if lr is not None and not low <= lr <= high:
            effect = "it forgets what it knew, or diverges" if lr > high else "it hardly learns"
            yield (
                f"{'error' if lr >= 5 * high else 'warning'}: optim.{name}: {lr:g} is not usual "
                f"for {method}: {effect}; take {low:g} to {high:g}"
            )


def method_of(config: Config) -> str:
    """The key of USUAL_LR."""
    model, optim = config.model, config.optim
    if config.lora.rank is not None:
        return "adapters (lora.rank)"
    if model.pretrained is None and not model.arch.startswith(("hf-hub:", "local-dir:")):
        towers = model.pretrained_image or model.pretrained_text
        return "two towers that never met" if towers else "a model from scratch"
    if optim.freeze or (optim.image_last_blocks, optim.text_last_blocks) != (None, None):
        return "one tower or some layers of a pretrained model"
    return "a pretrained model in full"


def disk(config: Config, clip: Clip, world: World) -> Iterator[str]:
    """Room for the run's checkpoints."""
    if not world.main:
        return
    folder = Path(config.run.folder).absolute()
    existing = next(path for path in (folder, *folder.parents) if path.is_dir())
    if not os.access(existing, os.W_OK):
        yield f"error: run.folder: {existing} can't be written; choose another folder"
        return
    whole, trained = parameter_bytes(clip)
    copies = 2 + (config.ema.decay is not None)  # best.pt, ema.pt, and one being written
    needed = copies * whole + 2 * (whole + STATE_COPIES * trained)
    free = shutil.disk_usage(existing).free
    if free < needed:
        yield (
            f"error: run.folder: {existing} has {free / 1e9:.3g} GB free, and the checkpoints need "
            f"about {needed / 1e9:.3g} GB; make room, or choose another folder"
        )


def wandb_mode(config: Config, world: World) -> Iterator[str]:
    """Whether wandb can be reached, where records are to go there."""
    reason = logger.wandb_trouble() if world.main and config.log.wandb == "online" else None
    if reason:
        yield (
            f"error: log.wandb: online does not work here: {reason}; run `wandb login`, or take "
            "offline and `wandb sync` later"
        )


def examine_pairs(run: Opened) -> Iterator[str]:
    """What the pairs and the model show; a stream has no shards of its own to read."""
    source = run.data.train.source
    if isinstance(source, ShardSet):
        source.check()  # says which shard is gone, or has another size
        pairs = loader.training_pairs(source, run.clip, run.config.data, run.config.run.seed)
        pairs.replace = False  # an unreadable pair is to be seen
        samples = [pairs[(0, at)] for at in _spread(len(pairs), PAIRS_READ, run.world)]
        reasons = [str(sample["error"]) for sample in samples if "error" in sample]
        counts = [len(reasons), len(samples)]
        bad, total = distributed.all_reduce_sum(counts, run.world.device)
        allowed = run.config.data.max_bad_share
        if reasons and bad == total:
            yield (
                f"error: data.train: none of {total} pairs can be read ({reasons[0]}); see what "
                "tools/make_shards.py --verify says"
            )
        elif reasons and bad / total > allowed:  # a rank without any leaves it to another
            yield (
                f"warning: data.train: {bad} of {total} pairs can't be read ({reasons[0]}); the "
                f"run stops past data.max_bad_share {allowed:g}: pack again with the decode check"
            )
        if bad == total:
            return  # what comes after would only say the same
        yield from captions(pairs, run)
        sound = [sample for sample in samples if "images" in sample]
        if run.config.loss.name == "clip" and len(sound) > 1:
            images, tokens = (torch.stack([s[n] for s in sound]) for n in ("images", "tokens"))
            yield from loss(images, tokens, run)
    fitting = run.config.train.micro_batch_size
    for setting, size, fit in too_large(run):
        yield (
            f"error: train.{setting}: {size} need more memory than is free; take {fit} or fewer, "
            "the result is the same"
        )
        fitting = min(fitting, fit)
    if not isinstance(source, ShardSet):
        return
    given, taken = loader_rate(run), step_rate(run, fitting)
    if given < taken:
        yield (
            f"warning: data.workers: {run.config.data.workers} give {given:.0f} pairs/s, and a "
            f"step takes {taken:.0f} pairs/s: give more workers, or pack with --resize 256"
        )


def captions(pairs: Pairs, run: Opened) -> Iterator[str]:
    """How many captions the model cuts."""
    if run.config.data.long_captions != "truncate":
        return
    assert pairs.shards is not None
    long = seen = 0
    for at in _spread(len(pairs), CAPTIONS_READ, run.world):
        try:
            caption = pairs.shards.read(at).caption
        except (InputError, WorkError):  # told by the check before
            continue
        long += pairs.captions.tokens(caption, [0])[1]
        seen += 1
    long, seen = distributed.all_reduce_sum([long, seen], run.world.device)
    if seen and long / seen > LONG_SHARE:
        yield (
            f"warning: data.long_captions: {long / seen:.0%} of the captions are longer than "
            f"{pairs.captions.context} tokens and would be cut; take `sentences`, or a model with "
            "a longer context"
        )


def loss(images: Tensor, tokens: Tensor, run: Opened) -> Iterator[str]:
    """The starting loss of B pairs against that of features that say nothing, ln(B)."""
    towers, device = run.clip.towers.eval(), run.world.device
    rows = run.config.train.micro_batch_size
    chunks = zip(images.to(device).split(rows), tokens.to(device).split(rows), strict=True)
    with torch.inference_mode(), devices.autocast(device, run.config.train.precision)():
        parts = [towers(image, token)[:2] for image, token in chunks]
    image_features, text_features = (torch.cat(side).float() for side in zip(*parts, strict=True))
    scale = towers.inverse_temperature()
    value = clip_loss(image_features, text_features, scale).item()
    chance = math.log(len(images))
    if not value <= chance + _LOSS_SLACK:
        yield (
            f"warning: the loss of {len(images)} pairs starts at {value:.2f}, above "
            f"ln({len(images)}) = {chance:.2f} of features that say nothing: weights, activation "
            "(quickgelu) and model.preprocess may not belong together"
        )


def too_large(run: Opened) -> Iterator[tuple[str, str, int]]:
    """Micro batches whose graph doesn't fit, by what a few rows take: (setting, "48 images", the
    largest that fits).
    """
    train, world = run.config.train, run.world
    free = devices.free_bytes(world.device)
    if free is None:
        return
    _, trained = parameter_bytes(run.clip)
    room = int(_MEMORY_SHARE * free) - STATE_COPIES * trained  # gradients and AdamW's averages
    if world.device.type == "cpu":
        room //= world.size
    images, tokens = _rows(run, 8)
    towers = run.clip.towers.train()
    texts = train.text_micro_batch_size or train.micro_batch_size
    for setting, size, name, embed, rows in (
        ("micro_batch_size", train.micro_batch_size, "images", towers.embed_images, images),
        ("text_micro_batch_size", texts, "texts", towers.embed_texts, tokens),
    ):
        with devices.autocast(world.device, train.precision)():
            each = devices.graph_bytes(embed, rows)
        if each * min(size, run.data.plan.pairs_per_rank) > room:
            yield setting, f"{size} {name}", max(1, room // each)


def loader_rate(run: Opened) -> float:
    """Pairs per second that this rank's loader gives, once it runs."""
    steps, data = run.data.plan.steps, run.data.train
    batches = iter(
        loader.training_batches(data, run.clip, run.config, run.world, lambda _: None, steps=steps)
    )
    next(batches)  # starts the workers
    began = time.perf_counter()
    given = sum(len(batch["index"]) for batch in islice(batches, 3))
    return given / (time.perf_counter() - began) if given else math.inf


def step_rate(run: Opened, most_rows: int) -> float:
    """Pairs per second that this rank's share of a step takes: two forwards and a backward."""
    device = run.world.device
    autocast = devices.autocast(device, run.config.train.precision)
    rows = min(most_rows, run.data.plan.pairs_per_rank)
    images, tokens = _rows(run, rows)
    towers = run.clip.towers.train()
    began, taken = 0.0, -rows  # the first one warms up
    while taken < 0 or (time.perf_counter() - began < _STEP_SECONDS and taken < 8 * rows):
        with autocast():
            with torch.no_grad():
                towers(images, tokens)
            image_features, text_features, _ = towers(images, tokens)  # (C, D) each
            value = (image_features * text_features).sum()
        value.backward()
        value.item()  # waits for a GPU
        towers.zero_grad()
        taken += rows
        began = time.perf_counter() if taken == 0 else began
    return taken / (time.perf_counter() - began)


def parameter_bytes(clip: Clip) -> tuple[int, int]:
    """Of all weights, and of those that train."""
    sizes = [(p.numel() * p.element_size(), p.requires_grad) for p in clip.towers.parameters()]
    return sum(size for size, _ in sizes), sum(size for size, trains in sizes if trains)


def _rows(run: Opened, count: int) -> tuple[Tensor, Tensor]:
    """So many blank images and equal texts, on the device."""
    device, size = run.world.device, run.clip.image_size
    images = torch.zeros(count, 3, *size, dtype=torch.uint8, device=device)  # (C, 3, H, W)
    return images, run.clip.tokenizer(["a chest radiograph"] * count).to(device)


def _spread(count: int, wanted: int, world: World) -> list[int]:
    """This rank's share of `wanted` positions, evenly spread over `count`."""
    wanted = min(count, wanted)
    return [place * count // wanted for place in range(wanted)][world.rank :: world.size]
