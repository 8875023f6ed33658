"""What the doctor tries: a few pairs, the starting loss, memory, and the pace of loader and step.

See doctor.py. Each trial yields what it found; where something it needs could not be opened, it
finds nothing, because that was told before.
"""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from ..config.schema import Config
from ..errors import InputError, WorkError

if TYPE_CHECKING:
    from ..data.dataset import Pairs
    from ..data.loader import TrainingData
    from ..data.shards import ShardSet
    from ..models.factory import Clip
    from ..runtime.distributed import World
    from .build import Plan

PAIRS_READ = 64
"""Pairs that are read and decoded, spread over the whole set, by all ranks together."""
CAPTIONS_READ = 500
LONG_SHARE = 0.10
"""Captions cut, above which a warning is given: of ROCOv2's 2 % pass 77 tokens."""
STATE_COPIES = 3
"""Of weights that train: they, and AdamW's two averages."""
_LOSS_PAIRS = 64
_LOSS_SLACK = 2.0
"""How far above ln(G) a model that fits may start: confident, and wrong about a new domain."""
_MEMORY_SHARE = 0.9
_SECONDS = 2.0  # of steps that are timed


class Finding(NamedTuple):
    """What is wrong, and what to do about it."""

    level: Literal["error", "warning"]
    text: str


@dataclass
class Patient:
    """What could be opened of the run so far."""

    config: Config
    world: "World"
    data: "TrainingData | None" = None
    plan: "Plan | None" = None
    clip: "Clip | None" = None
    most_rows: int | None = None
    """Rows of a micro batch that fit into memory, where those asked for don't."""


def shards(patient: Patient) -> Iterator[Finding]:
    """Whether every shard is there, at its size."""
    shard_set = _shard_set(patient)
    if shard_set is None:
        return
    try:
        shard_set.check()
    except WorkError as error:
        yield Finding("error", f"data.train: {error}; restore it, or pack the folder again")


def _shard_set(patient: Patient) -> "ShardSet | None":
    from ..data.shards import ShardSet

    source = None if patient.data is None else patient.data.source
    return source if isinstance(source, ShardSet) else None


def _spread(count: int, wanted: int, world: "World") -> list[int]:
    """This rank's share of `wanted` positions, evenly spread over `count`."""
    wanted = min(count, wanted)
    return [place * count // wanted for place in range(wanted)][world.rank :: world.size]


def _training_pairs(patient: Patient) -> "Pairs | None":
    """As the run reads them, but without putting others in the place of unreadable ones."""
    from ..data import loader

    shard_set = _shard_set(patient)
    if shard_set is None or patient.clip is None:
        return None
    config = patient.config
    found = loader.training_pairs(shard_set, patient.clip, config.data, config.run.seed)
    found.replace = False
    return found


def pairs(patient: Patient) -> Iterator[Finding]:
    """Whether pairs can be read and decoded."""
    from ..runtime import distributed

    read = _training_pairs(patient)
    if read is None:
        return
    items = [read[(0, at)] for at in _spread(len(read), PAIRS_READ, patient.world)]
    reasons = [str(item["error"]) for item in items if "error" in item]
    bad, total = distributed.all_reduce_sum([len(reasons), len(items)], patient.world.device)
    if bad == total:
        patient.data = None  # what comes after would only say the same
    if not reasons:
        return  # another rank names one
    allowed = patient.config.data.max_bad_share
    if bad == total:
        yield Finding(
            "error",
            f"data.train: none of {total} pairs can be read ({reasons[0]}); see what "
            "tools/make_shards.py --verify says",
        )
    elif bad / total > allowed:
        yield Finding(
            "warning",
            f"data.train: {bad} of {total} pairs can't be read ({reasons[0]}); the run stops past "
            f"data.max_bad_share {allowed:g}: pack again with the decode check",
        )


def captions(patient: Patient) -> Iterator[Finding]:
    """How many captions the model cuts."""
    from ..runtime import distributed

    read = _training_pairs(patient)
    if read is None or patient.config.data.long_captions != "truncate":
        return
    long = seen = 0
    for at in _spread(len(read), CAPTIONS_READ, patient.world):
        try:
            caption = read.shards.read(at).caption
        except (InputError, WorkError):  # told by the check before
            continue
        long += read.captions.tokens(caption, [0])[1]
        seen += 1
    long, seen = distributed.all_reduce_sum([long, seen], patient.world.device)
    if seen and long / seen > LONG_SHARE:
        yield Finding(
            "warning",
            f"data.long_captions: {long / seen:.0%} of the captions are longer than "
            f"{read.captions.context} tokens and would be cut; take `sentences`, or a model with a "
            "longer context",
        )


def loss(patient: Patient) -> Iterator[Finding]:
    """The starting loss against that of features that say nothing, ln(G)."""
    import torch

    from ..contrastive import loss as losses
    from ..contrastive.micro_batches import autocast

    read, clip, config = _training_pairs(patient), patient.clip, patient.config
    if read is None or clip is None or config.loss.name != "clip":
        return
    items = [read[(0, at)] for at in _spread(len(read), _LOSS_PAIRS, patient.world)]
    sound = [item for item in items if "images" in item]
    if len(sound) < 2:
        return
    clip.towers.eval()
    parts = []
    with torch.inference_mode(), autocast(patient.world.device, config.train.precision):
        for first in range(0, len(sound), config.train.micro_batch_size):
            some = sound[first : first + config.train.micro_batch_size]
            sides = [torch.stack([i[n] for i in some]) for n in ("images", "tokens")]
            parts.append(clip.towers(*[side.to(patient.world.device) for side in sides])[:2])
    images, texts = (torch.cat(side) for side in zip(*parts, strict=True))
    value = losses.clip_loss(
        images.float(), texts.float(), clip.towers.inverse_temperature()
    ).item()
    chance = math.log(len(sound))
    if not value <= chance + _LOSS_SLACK:
        yield Finding(
            "warning",
            f"the loss of {len(sound)} pairs starts at {value:.2f}, above ln({len(sound)}) = "
            f"{chance:.2f} of features that say nothing: weights, activation (quickgelu) and "
            "model.preprocess may not belong together",
        )


def memory_use(patient: Patient) -> Iterator[Finding]:
    """The largest micro batch whose graph fits, by what a few pairs take."""
    from ..runtime import memory

    clip, train, world = patient.clip, patient.config.train, patient.world
    if clip is None:
        return
    free = memory.free_bytes(world.device)
    if free is None:
        return
    trained = sum(p.numel() * p.element_size() for p in clip.towers.parameters() if p.requires_grad)
    room = int(_MEMORY_SHARE * free) - STATE_COPIES * trained  # gradients and AdamW's averages
    if world.device.type == "cpu":
        room //= world.size
    texts = train.text_micro_batch_size or train.micro_batch_size
    for side, setting, size in (
        ("images", "micro_batch_size", train.micro_batch_size),
        ("tokens", "text_micro_batch_size", texts),
    ):
        each = _graph_bytes(patient, side)
        if each and each * min(size, patient.plan.pairs_per_rank if patient.plan else size) > room:
            fit = max(1, room // each)
            patient.most_rows = min(fit, patient.most_rows or fit)
            yield Finding(
                "error",
                f"train.{setting}: {size} {'images' if side == 'images' else 'texts'} need "
                f"{size * each / 1e9:.3g} GB, and {max(0, room) / 1e9:.3g} GB are free; take "
                f"{fit} or fewer, the result is the same",
            )


def _graph_bytes(patient: Patient, side: str) -> int:
    """Memory that one row takes in a forward with gradients; 0: none, or unknown."""
    import torch

    from ..contrastive.micro_batches import autocast
    from ..runtime import memory

    assert patient.clip is not None
    towers, device, few = patient.clip.towers.train(), patient.world.device, 8
    if side == "images":
        rows = torch.zeros(few, 3, *patient.clip.image_size, dtype=torch.uint8, device=device)
    else:
        rows = patient.clip.tokenizer(["a chest radiograph"] * few).to(device)
    embed = towers.embed_images if side == "images" else towers.embed_texts
    with autocast(device, patient.config.train.precision):
        embed(rows[:1])  # one-time costs
        before = memory.allocated_bytes(device)
        kept = embed(rows)
        after = memory.allocated_bytes(device)
        del kept
    return 0 if before is None or after is None else max(0, after - before) // few


def speed(patient: Patient) -> Iterator[Finding]:
    """What the loader gives against what a step takes, on this rank."""
    if patient.plan is None or patient.clip is None or _shard_set(patient) is None:
        return
    given, taken = loader_rate(patient), step_rate(patient)
    if given < taken:
        yield Finding(
            "warning",
            f"data.workers: {patient.config.data.workers} give {given:.0f} pairs/s, and a step "
            f"takes {taken:.0f} pairs/s: give more workers, or pack with --resize 256",
        )


def loader_rate(patient: Patient) -> float:
    """Pairs per second that this rank's loader gives, once it runs."""
    from ..data import loader

    assert patient.data is not None
    assert patient.clip is not None
    assert patient.plan is not None
    config, world, steps = patient.config, patient.world, patient.plan.steps
    every = loader.training_batches(
        patient.data, patient.clip, config, world, lambda line: None, steps=steps
    )
    batches = iter(every)
    next(batches)  # starts the workers
    began, given = time.perf_counter(), 0
    for _, batch in zip(range(3), batches, strict=False):
        given += len(batch["index"])
    return given / (time.perf_counter() - began) if given else math.inf


def step_rate(patient: Patient) -> float:
    """Pairs per second that this rank's share of a step takes: two forwards and a backward."""
    import torch

    from ..contrastive.micro_batches import autocast

    assert patient.clip is not None
    assert patient.plan is not None
    clip, device, train = patient.clip, patient.world.device, patient.config.train
    few = min(train.micro_batch_size, patient.plan.pairs_per_rank)
    few = min(few, patient.most_rows or few)  # more would end the doctor, not the run
    images = torch.zeros(few, 3, *clip.image_size, dtype=torch.uint8, device=device)
    tokens = clip.tokenizer(["a chest radiograph"] * few).to(device)
    towers = clip.towers.train()
    began, taken = 0.0, -few  # the first one warms up
    while taken < 0 or (time.perf_counter() - began < _SECONDS and taken < 8 * few):
        with autocast(device, train.precision):
            with torch.no_grad():
                towers(images, tokens)
            image_features, text_features, _ = towers(images, tokens)
            value = (image_features * text_features).sum()
        value.backward()
        value.item()  # waits for a GPU
        towers.zero_grad()
        taken += few
        began = time.perf_counter() if taken == 0 else began
    return taken / (time.perf_counter() - began)
