"""From settings to batches: which pairs a run trains on and measures, as its model sees them.

Training goes on where a pair can't be read: another one takes its place. `TrainingBatches` is the
policy for that; a rank that stopped alone would leave the others waiting in a collective, so the
ranks exchange three numbers before each step and act alike.

G pairs over all ranks.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..config.checks import Decode
from ..config.schema import Config, DataConfig
from ..errors import InputError, Stopped, WorkError
from ..models.clip import Clip
from ..runtime import distributed
from ..runtime.distributed import World
from .augment import OFF, Preprocess, TrainingTransform
from .balance import balanced_order, read_studies
from .dataset import Batch, LoadedBatch, Pairs, Take, load_batches, step_batches, step_parts
from .index import CAPTION
from .remote import ShardStream, is_stream
from .sampler import Order
from .shards import ShardSet


@dataclass(frozen=True)
class TrainingData:
    """What a run trains on: shards that are read by position, or a stream."""

    source: ShardSet | ShardStream
    order: Order | ShardStream  # which pair comes when; a stream has its own order
    pairs_per_epoch: int
    note: str = ""  # for the log
    studies: Sequence[str] = ()  # their names, by `data.unit: study`


def open_shards(
    where: str | list[str], split: str, world: World, key: str = CAPTION, bare: bool = False
) -> ShardSet:
    """`ShardSet.open` with this `caption_key` on every rank; the main one first makes the index.
    InputError: on every rank, if any can't.
    """
    if is_stream(where):
        raise InputError(f"{where}: a stream can only be trained on; copy the shards to a disk")
    shards: ShardSet | None = None
    for turn in (world.main, not world.main):
        with distributed.errors_together():
            shards = ShardSet.open(where, split, key, bare) if turn else shards
    assert shards is not None
    return shards


def open_training(settings: DataConfig, seed: int, world: World) -> TrainingData:
    """Find the training pairs; InputError: as `ShardSet.open`, `balanced_order` and `read_studies`,
    weights that don't fit the sets, a stream with what it can't have or without an epoch's length.
    """
    weights, epoch, note = settings.weights, settings.samples_per_epoch, ""
    if is_stream(settings.train):
        return _open_stream(settings, seed)
    shards = open_shards(settings.train, "train", world, key := settings.caption_key)
    looked_at = range(0, len(shards), len(shards) // 1000 + 1)
    if key != CAPTION and not any(map(shards.has_key, looked_at)):
        reason = f"{len(looked_at):,} pairs tried have no KEY.{key}, nor that key in KEY.json"
        raise InputError(f"data.caption_key: {reason}; leave it out for KEY.txt")
    if settings.balance is not None:
        if weights is not None:
            raise InputError("data.balance: not with data.weights; leave out one of them")
        if settings.unit == "study":
            raise InputError("data.balance: not with data.unit: study; leave out one of them")
        order, note = balanced_order(shards, settings, seed, world)
        return TrainingData(shards, order, order.pairs_per_epoch, note)
    if weights is not None and len(weights) != len(shards.sizes):
        raise InputError(
            f"data.weights: {len(weights)} numbers for {len(shards.sizes)} set(s) joined by :: in "
            "data.train"
        )
    sizes, names = shards.sizes, list[str]()
    if settings.unit == "study":
        names, of_pair = read_studies(shards, world)
        sizes = [len(np.unique(part)) for part in np.split(of_pair, np.cumsum(sizes)[:-1])]
        note = f"data.unit: {len(names):,} studies with {len(shards):,} images"
    order = Order(sizes, seed=seed, weights=weights, pairs_per_epoch=epoch)
    if order.shares_of_sets is not None and not order.shares_of_sets.all():
        raise InputError(
            f"data.weights: {weights}: set {int(order.shares_of_sets.argmin()) + 1} gets less "
            f"than one of an epoch's {order.pairs_per_epoch} pairs; raise its weight, or "
            "data.samples_per_epoch"
        )
    return TrainingData(shards, order, order.pairs_per_epoch, note, names)


def _open_stream(settings: DataConfig, seed: int) -> TrainingData:
    for name in ("weights", "balance"):
        if getattr(settings, name) is not None:
            raise InputError(f"data.{name}: a stream can't be weighted; read shards from a disk")
    if settings.unit == "study":
        raise InputError("data.unit: a stream's studies aren't known; read shards from a disk")
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
    how: dict[str, Any] = {"lanes": settings.stream_lanes, "window": settings.stream_window}
    how["caption_key"] = settings.caption_key
    stream = ShardStream(settings.train, seed=seed, cache=cache, **how)
    return TrainingData(stream, stream, settings.samples_per_epoch)


def evaluation_pairs(
    shards: ShardSet, clip: Clip, *, decode: Decode = "exact", take: Take = "first"
) -> Pairs:
    """Pairs as open_clip preprocesses them for this model."""
    return Pairs(shards, Preprocess(clip), clip.tokenizer, decode=decode, take=take)


def training_pairs(shards: ShardSet, clip: Clip, settings: DataConfig, seed: int) -> Pairs:
    """Pairs as this model trains on them, augmented. `shards` is empty for a stream."""
    about, augment = clip.description["preprocess"], settings.augment
    squash = about["resize_mode"] != "shortest"
    random = TrainingTransform(clip.image_size, about["interpolation"], augment, squash)
    how: dict[str, Any] = {"decode": settings.decode, "long_captions": settings.long_captions}
    how |= {"seed": seed, "take": "drawn", "replace": True}
    return Pairs(shards, Preprocess(clip) if augment == OFF else random, clip.tokenizer, **how)


@dataclass(kw_only=True)
class TrainingBatches:
    """This rank's batches, one per step, to be iterated over once. What can't be read is agreed on
    by all ranks, told once, and bounded; the counts are part of a run's state.
    """

    loaded: Iterator[LoadedBatch]
    pairs: Pairs  # may be given features as long as none was loaded
    settings: DataConfig
    """Of it `max_bad_share`, of the pairs seen or of an epoch's, whichever are more."""
    world: World
    log: Callable[[str], None]  # takes a line for the user, the same on every rank
    steps: int  # batches to come
    pairs_per_step: int  # G
    pairs_per_epoch: int
    context: int  # tokens of a caption that fit
    start: int = 0  # pairs that were done before the first of them

    def __post_init__(self) -> None:
        self._state: dict[str, Any] = {"bad": 0, "long": 0, "named": set(), "reported": False}

    def state_dict(self) -> dict[str, Any]:
        """Unreadable pairs, long captions, and what was told so far; the same on every rank."""
        return {**self._state, "named": sorted(self._state["named"])}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue counting from there."""
        self._state = {**state, "named": set(state["named"])}

    def __iter__(self) -> Iterator[Batch]:
        """The batches. InputError, Stopped, WorkError: on every rank, with the same words,
        whichever met it.
        """
        for step in range(self.steps):  # not to the end: a late error would be alone
            seen = self.start + (step + 1) * self.pairs_per_step
            loaded, error = None, None
            try:
                loaded = next(self.loaded)
            except (InputError, Stopped, WorkError) as caught:
                error = caught
            counts = [0, len(loaded.bad), loaded.long_captions] if loaded else [1, 0, 0]
            failed, bad, long = distributed.all_reduce_sum(counts, self.world.device)
            if failed:
                with distributed.errors_together():
                    if error is not None:
                        raise error
            assert loaded is not None
            self._state["long"] += long
            if bad:
                self._count_bad(loaded.bad, bad, seen)
            if seen >= self.pairs_per_epoch or step + 1 == self.steps:
                self._report_long(seen)
            yield loaded.batch

    def _count_bad(self, own_lines: list[str], bad: int, seen: int) -> None:
        state, share = self._state, self.settings.max_bad_share
        state["bad"] += bad
        of_ranks = distributed.all_gather_objects(own_lines)
        lines = [line.replace("\n", " ") for of_rank in of_ranks for line in of_rank]
        for line in lines:
            if line not in state["named"]:
                state["named"].add(line)
                self.log(f"unreadable, replaced by another pair: {line}")
        allowed = share * max(seen, self.pairs_per_epoch)
        if state["bad"] > allowed:
            raise WorkError(
                f"{state['bad']:,} bad pairs on the way to {seen:,}; data.max_bad_share: {share} "
                f"allows {int(allowed):,}; the last: {lines[-1]}"
            )

    def _report_long(self, seen: int) -> None:
        policy, long = self.settings.long_captions, self._state["long"]
        if long and not self._state["reported"]:
            treated = "cut there" if policy == "truncate" else "given in runs of sentences"
            self.log(
                f"{long:,} of {seen:,} captions ({long / seen:.1%}) are longer than {self.context} "
                f"tokens, and {treated} (data.long_captions: {policy})"
            )
        self._state["reported"] = True


def training_batches(
    data: TrainingData,
    clip: Clip,
    config: Config,
    world: World,
    log: Callable[[str], None],
    *,
    steps: int,
    start: int = 0,
    stop: Callable[[], bool] = lambda: False,
) -> TrainingBatches:
    """This rank's part of every global batch of the run, augmented: one item per step.

    `steps` are those of the whole run; the first `start` pairs are already done, and not read
    again. `stop` as in `load_batches`. InputError: a stream begun with another global batch size.
    """
    size, source, shards = config.train.global_batch_size, data.source, ShardSet([])
    if data.note:
        log(data.note)
    if isinstance(source, ShardSet):
        shards = source
    elif start:
        if start % size:
            raise InputError(
                f"train.global_batch_size: {size}, but {start} pairs of a stream are done; a "
                "stream resumes only with the batch size it began with"
            )
        log("resuming in a stream: the shards in whose middle it stands are read again")
    pairs = training_pairs(shards, clip, config.data, config.run.seed)
    share, left = size // world.size, steps - start // size
    part = min(config.train.micro_batch_size, share)
    parts = step_parts(data.order, world, size=size, part=part, steps=left, start=start)
    pin = world.device.type == "cuda"
    loaded = load_batches(pairs, parts, workers=config.data.workers, pin=pin, stop=stop)
    return TrainingBatches(
        loaded=step_batches(loaded, -(-share // part)),
        pairs=pairs,
        settings=config.data,
        world=world,
        log=log,
        steps=left,
        pairs_per_step=size,
        pairs_per_epoch=data.pairs_per_epoch,
        context=pairs.captions.context,
        start=start,
    )
