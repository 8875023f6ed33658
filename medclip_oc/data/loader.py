"""From settings to batches: which pairs a run trains on and measures, as its model sees them.

G pairs over all ranks.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..config.checks import Decode
from ..config.schema import Config, DataConfig
from ..errors import InputError, WorkError
from ..models.clip import Clip
from ..runtime import distributed
from .augment import Preprocess, TrainingTransform
from .bad_samples import TrainingBatches
from .dataset import Pairs, StepSampler, load_batches, step_batches
from .remote import ShardStream, is_stream
from .sampler import Order
from .shards import ShardSet


@dataclass(frozen=True)
class TrainingData:
    """What a run trains on: shards that are read by position, or a stream."""

    source: ShardSet | ShardStream
    order: Order | ShardStream
    """Which pair comes when; a stream has its own order."""
    pairs_per_epoch: int

    @property
    def fingerprint(self) -> str | None:
        """Of the shards; None for a stream."""
        return self.source.fingerprint if isinstance(self.source, ShardSet) else None


def open_shards(where: str | list[str], split: str, world: distributed.World) -> ShardSet:
    """`ShardSet.open` on every rank. The main one comes first, so that one alone makes the index.

    Raises:
        InputError: on every rank, if any can't.
    """
    if is_stream(where):
        raise InputError(f"{where}: a stream can only be trained on; copy the shards to a disk")
    shards: ShardSet | None = None
    for turn in (world.main, not world.main):
        error: InputError | WorkError | None = None
        try:
            shards = ShardSet.open(where, split) if turn else shards
        except (InputError, WorkError) as caught:
            error = caught
        distributed.raise_together(error)
    assert shards is not None
    return shards


def open_training(settings: DataConfig, seed: int, world: distributed.World) -> TrainingData:
    """Find the training pairs.

    Raises:
        InputError: as `ShardSet.open`; weights that don't fit the sets; a stream with weights, or
            without `data.samples_per_epoch`.
    """
    if is_stream(settings.train):
        return _open_stream(settings, seed)
    weights = settings.weights
    shards = open_shards(settings.train, "train", world)
    if weights is not None and len(weights) != len(shards.sizes):
        raise InputError(
            f"data.weights: {len(weights)} numbers for {len(shards.sizes)} set(s) joined by :: in "
            "data.train"
        )
    epoch = settings.samples_per_epoch
    order = Order(shards.sizes, seed=seed, weights=weights, pairs_per_epoch=epoch)
    if order.shares_of_sets is not None and not order.shares_of_sets.all():
        raise InputError(
            f"data.weights: {weights}: set {int(np.argmin(order.shares_of_sets)) + 1} gets less "
            f"than one of an epoch's {order.pairs_per_epoch} pairs; raise its weight, or "
            "data.samples_per_epoch"
        )
    return TrainingData(shards, order, order.pairs_per_epoch)


def _open_stream(settings: DataConfig, seed: int) -> TrainingData:
    if settings.weights is not None:
        raise InputError("data.weights: a stream can't be weighted; read the shards from a disk")
    if settings.samples_per_epoch is None:
        raise InputError(f"data.samples_per_epoch: needed, because {settings.train} is a stream")
    cache = None
    if settings.cache_folder is not None:
        cache = Path(settings.cache_folder).expanduser()
        try:
            cache.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            reason = f"{cache} can't be written ({error.strerror})"
            raise InputError(f"data.cache_folder: {reason}") from None
    lanes, window = settings.stream_lanes, settings.stream_window
    stream = ShardStream(settings.train, seed=seed, lanes=lanes, window=window, cache=cache)
    return TrainingData(stream, stream, settings.samples_per_epoch)


def evaluation_pairs(shards: ShardSet, clip: Clip, *, decode: Decode = "exact") -> Pairs:
    """Pairs as open_clip preprocesses them for this model."""
    return Pairs(shards, Preprocess(clip), clip.tokenizer, decode=decode)


def training_pairs(shards: ShardSet, clip: Clip, settings: DataConfig, seed: int) -> Pairs:
    """Pairs as this model trains on them, augmented. `shards` is empty for a stream."""
    about, augment = clip.description["preprocess"], settings.augment
    squash = about["resize_mode"] != "shortest"
    transform = TrainingTransform(clip.image_size, about["interpolation"], augment, squash)
    return Pairs(
        shards,
        transform,
        clip.tokenizer,
        seed=seed,
        decode=settings.decode,
        long_captions=settings.long_captions,
        replace=True,
    )


def training_batches(
    data: TrainingData,
    clip: Clip,
    config: Config,
    world: distributed.World,
    log: Callable[[str], None],
    *,
    steps: int,
    start: int = 0,
) -> TrainingBatches:
    """This rank's part of every global batch of the run, augmented: one item per step.

    Args:
        data: see `open_training`.
        clip: whose preprocessing and tokenizer count.
        config: of the run.
        world: the ranks.
        log: where a line about the data goes, on every rank.
        steps: of the whole run.
        start: pairs of the run that are already done; nothing of them is read.

    Returns:
        Something to iterate over once, whose counts are part of a run's state.

    Raises:
        InputError: a stream that was begun with another global batch size.
        InputError, WorkError: while it is iterated over, on every rank.
    """
    size, source = config.train.global_batch_size, data.source
    shards = source if isinstance(source, ShardSet) else ShardSet([])
    pairs = training_pairs(shards, clip, config.data, config.run.seed)
    if shards.skipped:
        log(f"{shards.skipped:,} entries of the shards have no image or no caption")
    if isinstance(source, ShardStream) and start:
        if start % size:
            raise InputError(
                f"train.global_batch_size: {size}, but {start} pairs of a stream are done; a "
                "stream resumes only with the batch size it began with"
            )
        log("resuming in a stream: the shards in whose middle it stands are read again")
    share, left = size // world.size, steps - start // size
    sampler = StepSampler(
        data.order,
        global_batch_size=size,
        loader_batch_size=min(config.train.micro_batch_size, share),
        steps=left,
        rank=world.rank,
        world_size=world.size,
        start=start,
    )
    pin = world.device.type == "cuda"
    loaded = load_batches(pairs, sampler, workers=config.data.workers, pin=pin)
    return TrainingBatches(
        loaded=step_batches(loaded, share),
        settings=config.data,
        world=world,
        log=log,
        steps=left,
        pairs_per_step=size,
        pairs_per_epoch=data.pairs_per_epoch,
        context=pairs.captions.context,
        start=start,
        check=shards.check,
    )
