"""A frozen tower runs once per run: a file in the run folder has its features of every pair.

They are made before the first step, as a step makes them, if each epoch has the same input for it;
batches then bring rows in place of pixels, which nobody decodes, or of tokens.

N pairs, n of this rank, B of its step, D embedding size.
"""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..config.schema import Config
from ..contrastive.grad_cache import CachedStep
from ..contrastive.micro_batched_tower import draws, live_batch_norms
from ..data.augment import OFF
from ..data.dataset import Pairs, load_batches, step_batches
from ..data.loader import TrainingBatches
from ..errors import InputError, Stopped
from ..evaluation.features import share
from ..models import freezing
from ..models.clip import Clip
from ..runtime import distributed
from ..runtime.atomic import atomic_file
from ..runtime.progress import Progress

Stop = Callable[[], bool]


def once(
    step: CachedStep, clip: Clip, config: Config, batches: TrainingBatches, seen: int, stop: Stop
) -> None:
    """Let `batches`, of `seen` pairs in the whole run, have the features of a frozen tower that
    needn't run in each step. On all ranks: Stopped, as `stop` asked for it; WorkError: a shard
    changed, or the file can't be written; InputError: a node doesn't see it.
    """
    places, pairs = freezing.places(clip.towers), batches.pairs
    trained = {places[n].tower for n, p in clip.towers.named_parameters() if p.requires_grad}
    for side in {*freezing.TOWERS} - trained:  # one at most
        reasons = {
            "train.frozen_features is false": not config.train.frozen_features,
            "data.train is a stream": not len(pairs.shards),
            "the run ends within an epoch": seen <= len(pairs.shards),
            "data.augment is not off": side == "image" and config.data.augment != OFF,
            "batch norm is live": bool(live_batch_norms(clip.towers.train())),
        }
        reason = next((reason for reason, holds in reasons.items() if holds), "")
        rows = None if reason else _rows(step, clip, config, batches, side, stop)
        if rows is None:
            reason = reason or "its captions, or its dropout, are drawn anew"
            batches.log(f"{side} tower is frozen, but runs in each step: {reason}")
        else:
            pairs.features = {"images" if side == "image" else "tokens": rows}


def _rows(
    step: CachedStep, clip: Clip, config: Config, batches: TrainingBatches, side: str, stop: Stop
) -> np.ndarray | None:
    """Features of all pairs (N, D), of a file that is mapped; None: see `_embedded`."""
    world, pairs, folder = step.world, batches.pairs, Path(config.run.folder, "features")
    train, data, about = config.train, config.data, clip.description
    settings = data.caption_key, data.decode, data.long_captions, train.precision, train.compile
    facts = pairs.shards.fingerprint, settings, about["preprocess"], about["context_length"]
    digest = hashlib.sha256(json.dumps(facts).encode())
    for name, value in clip.towers.clip.state_dict().items():
        if name.startswith("visual.") == (side == "image") and not name.startswith("logit_"):
            digest.update(value.cpu().reshape(-1).view(torch.uint8).numpy())
    file = folder / f"{side}-{digest.hexdigest()[:16]}.npy"  # of what decides the features
    file, is_there = distributed.all_gather_objects((file, file.exists()))[0]
    if not is_there:
        count, width = len(pairs.shards), about["definition"]["embed_dim"]
        size = f"{4e-6 * count * width:.1f} MB in {folder}"
        batches.log(f"{side} tower is frozen: features of {count:,} pairs once, {size}")
        own = _embedded(step, config, pairs, side, width, stop)
        if own is None:
            return None
        parts = [part.cpu() for part in distributed.blocks(own.to(world.device)) if world.main]
        with distributed.errors_together():
            if world.main:
                shutil.rmtree(folder, ignore_errors=True)  # of other pairs, weights or settings
                folder.mkdir()
                with atomic_file(file) as partial, partial.open("wb") as opened:
                    np.save(opened, torch.cat(parts).numpy())
    with distributed.errors_together():
        try:  # each node has to see it
            rows: np.ndarray = np.load(file, mmap_mode="r")
        except (OSError, ValueError) as error:
            ways = "remove it, or take --train.frozen_features false"
            raise InputError(f"run.folder: {file} can't be read here ({error}): {ways}") from None
    return rows


def _embedded(
    step: CachedStep, config: Config, pairs: Pairs, side: str, width: int, stop: Stop
) -> Tensor | None:
    """Features (n, D) on the CPU of this rank's share of the pairs, NaN of those that can't be
    read; None on every rank: captions are drawn, or random numbers.
    """
    world, total, drawn = step.world, len(pairs.shards), False
    tower, name, inputs = step.images, "images", replace(pairs, take="first")
    if side == "text":  # no image is read
        images = {"images": np.zeros((total, 1), np.float32)}
        tower, name, inputs = step.texts, "tokens", replace(pairs, take="all", features=images)
    start, end = share(total, world)
    rows = torch.full((end - start, width), torch.nan)
    together = config.train.global_batch_size // world.size  # B
    part = min(config.train.micro_batch_size, together)
    places = [(0, index) for index in range(start, end)]
    # no smaller chunk at the end than in a step, whose rounding might differ
    places += places[-1:] * (-len(places) % min(tower.chunk, together))
    parts = [places[first : first + part] for first in range(0, len(places), part)]
    loaded = load_batches(inputs, parts, workers=config.data.workers, pin=False, stop=stop)
    cut, title = side == "text" and pairs.long_captions == "sentences", f"{side} features"
    with distributed.errors_together(), Progress(total, "pairs", title, shown=world.main) as bar:
        for batch, _, long in step_batches(loaded, together // part):
            index = batch["index"]
            features, drawn = draws(tower.features, batch[name], world.device)  # (B, D)
            drawn |= len(batch["tokens"]) > len(index) or (cut and long > 0)
            if drawn:
                break
            # in place of what can't be read comes another pair, perhaps of another rank
            own = (index >= start) & (index < end)
            rows[index[own] - start] = features.cpu()[own]
            bar.update(len(own) * world.size)
            if stop():
                raise Stopped("stopped by a signal")
    return None if distributed.all_reduce_sum([int(drawn)], world.device)[0] else rows
