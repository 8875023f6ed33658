"""From settings to batches: which pairs a run trains on and measures, as its model sees them.

G pairs over all ranks.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from ..config.schema import Config, DataConfig, Decode
from ..errors import InputError, WorkError
from ..imaging.jpeg import Picture
from ..models.factory import Clip
from ..runtime import distributed
from .augment import TrainingTransform
from .bad_samples import TrainingBatches
from .dataset import Pairs, StepSampler, Transform, load_batches, step_batches
from .sampler import Order
from .shards import ShardSet
from .stream import ShardStream, StreamSampler, is_stream

_MARGIN = 3.0
"""Features move with the decoder's scale: over 280 ROCOv2 files, EfficientNet-Lite0, the lowest
cosine with those of exact pixels was 0.971 at the smallest scale that covers the input, 0.9973 at
twice that (2 files below 0.999). At three times, none of those files is large enough to be reduced.
"""


@dataclass(frozen=True)
class TrainingData:
    """What a run trains on: shards that are read by position, or a stream."""

    source: ShardSet | ShardStream
    order: Order | None
    """Of the shards; a stream has its own."""
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
    found: ShardSet | None = None
    for turn in (world.main, not world.main):
        error: InputError | WorkError | None = None
        if turn:
            try:
                found = ShardSet.open(where, split)
            except (InputError, WorkError) as caught:
                error = caught
        distributed.raise_together(error, world.device)
    assert found is not None
    return found


def open_training(settings: DataConfig, seed: int, world: distributed.World) -> TrainingData:
    """Find the training pairs.

    Raises:
        InputError: as `ShardSet.open`; weights that don't fit the sets; a stream with weights, or
            without `data.samples_per_epoch`.
    """
    weights, epoch = settings.weights, settings.samples_per_epoch
    if is_stream(settings.train):
        if weights is not None or epoch is None:
            raise InputError(
                "data.weights: a stream can't be weighted; read the shards from a disk"
                if weights is not None
                else f"data.samples_per_epoch: needed, because {settings.train} is a stream"
            )
        cache = _writable(settings.cache_folder) if settings.cache_folder else None
        lanes, window = settings.stream_lanes, settings.stream_window
        stream = ShardStream(settings.train, seed=seed, lanes=lanes, window=window, cache=cache)
        return TrainingData(stream, None, epoch)
    shards = open_shards(settings.train, "train", world)
    if weights is not None and len(weights) != len(shards.sizes):
        raise InputError(
            f"data.weights: {len(weights)} numbers for {len(shards.sizes)} set(s) joined by :: in "
            "data.train"
        )
    order = Order(shards.sizes, seed=seed, weights=weights, pairs_per_epoch=epoch)
    if order.shares is not None and not order.shares.all():
        none = int(np.argmin(order.shares))
        raise InputError(
            f"data.weights: {weights}: set {none + 1} gets less than one of an epoch's "
            f"{order.pairs_per_epoch} pairs; raise its weight, or data.samples_per_epoch"
        )
    return TrainingData(shards, order, order.pairs_per_epoch)


def _writable(name: str) -> Path:
    """The folder that keeps streamed shards.

    Raises:
        InputError: it can't be written.
    """
    folder = Path(name).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise InputError(
            f"data.cache_folder: {folder} can't be written ({error.strerror})"
        ) from None
    return folder


def pairs(shards: ShardSet, clip: Clip, *, decode: Decode = "exact") -> Pairs:
    """Pairs as open_clip preprocesses them for this model."""
    return Pairs(shards, preprocess(clip), clip.tokenizer, decode=decode)


def preprocess(clip: Clip) -> Transform:
    """Pixels as open_clip preprocesses them for this model."""
    return _Preprocess(clip)


def augmented_pairs(shards: ShardSet | None, clip: Clip, settings: DataConfig, seed: int) -> Pairs:
    """Pairs as this model trains on them. `shards` is None for a stream."""
    preprocess = clip.description["preprocess"]
    transform = TrainingTransform(
        clip.image_size,
        preprocess["interpolation"],
        settings.augment,
        squash=preprocess["resize_mode"] != "shortest",
    )
    return Pairs(
        shards,
        transform,
        clip.tokenizer,
        seed=seed,
        decode=settings.decode,
        long_captions=settings.long_captions,
        replace=True,
    )


class _Preprocess:
    """open_clip's own preprocessing: a transform without randomness.

    Where decoding isn't exact, a JPEG of more than _MARGIN times the size that is needed is decoded
    smaller, and resized from there with the same geometry.
    """

    def __init__(self, clip: Clip) -> None:
        preprocess = clip.description["preprocess"]
        self.size, self.preprocess = clip.image_size, clip.preprocess
        self.mode = preprocess["resize_mode"]
        self.resample = Image.Resampling[preprocess["interpolation"].upper()]

    def __call__(self, picture: Picture, rng: np.random.Generator) -> Tensor:
        size = self._resized(picture.size)
        reduction = 1.0
        if size is not None:
            reduction = (
                min(full / own for full, own in zip(picture.size, size, strict=True)) / _MARGIN
            )
        image, scale = picture.image(reduction)
        if size is not None and scale < 1:
            whole = (0, 0, picture.size[0] * scale, picture.size[1] * scale)
            image = image.resize(size, self.resample, box=whole)
        # Padding may have a colour; otherwise grey stays grey, and the result is the same.
        return self.preprocess(image.convert("RGB") if self.mode == "longest" else image)

    def _resized(self, full: tuple[int, int]) -> tuple[int, int] | None:
        """(width, height) to which the preprocessing resizes a picture; None: not worked out."""
        height, width = self.size
        if self.mode == "squash":
            return width, height
        if self.mode != "shortest" or width != height:
            return None
        shortest = min(full)
        # as torchvision's Resize rounds
        return int(width * full[0] / shortest), int(height * full[1] / shortest)


def training_batches(
    data: TrainingData,
    clip: Clip,
    config: Config,
    world: distributed.World,
    say: Callable[[str], None],
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
        say: where a line about the data goes, on every rank.
        steps: of the whole run.
        start: pairs of the run that are already done; nothing of them is read. A stream goes on at
            a multiple of the global batch size only.

    Returns:
        Something to iterate over once, whose counts are part of a run's state.

    Raises:
        InputError, WorkError: while it is iterated over, see `TrainingBatches.over`; on every rank.
    """
    batch_size = config.train.global_batch_size
    share = batch_size // world.size
    how: dict[str, Any] = {
        "global_batch_size": batch_size,
        "loader_batch_size": min(config.train.micro_batch_size, share),
        "steps": steps - start // batch_size,
        "rank": world.rank,
        "world_size": world.size,
        "start": start,
    }
    shards = data.source if isinstance(data.source, ShardSet) else None
    pairs = augmented_pairs(shards, clip, config.data, config.run.seed)
    watch = TrainingBatches(
        world,
        say,
        steps=how["steps"],
        pairs_per_step=batch_size,
        pairs_per_epoch=data.pairs_per_epoch,
        max_bad_share=config.data.max_bad_share,
        long_captions=config.data.long_captions,
        context=pairs.captions.context,
        start=start,
    )
    if isinstance(data.source, ShardSet):
        assert data.order is not None
        sampler: StepSampler | StreamSampler = StepSampler(data.order, **how)
        watch.check = data.source.check
        if data.source.skipped:
            say(f"{data.source.skipped:,} entries of the shards have no image or no caption")
    else:
        sampler = StreamSampler(data.source, **how)
        watch.passed_over = data.source.incomplete
        if start:
            say(
                "going on in a stream: the shard in whose middle each lane stands is read again, "
                "and any before it whose number of pairs isn't known"
            )
    pin = world.device.type == "cuda"
    loads = load_batches(pairs, sampler, workers=config.data.workers, pin=pin)
    watch.loads = step_batches(loads, share)
    return watch
