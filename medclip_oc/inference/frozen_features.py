"""A frozen tower runs once per run: a file in the run folder has its features of every pair.

They are made before the first step, as a step makes them, if each epoch has the same input for it;
batches then bring rows in place of pixels, which nobody decodes, or of tokens.

N pairs, n of this rank, B of its step, D embedding size.
"""

import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
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
    for side in freezing.frozen(clip.towers):  # one at most
        reason = against(side, clip, config, len(batches.pairs.shards), seen)
        rows = reason or _rows(step, clip, config, batches, side, stop)
        if isinstance(rows, str):
            batches.log(f"{side} tower is frozen, but runs in each step: {rows}")
        else:
            batches.pairs.features = {"images" if side == "image" else "tokens": rows}


def against(side: str, clip: Clip, config: Config, pairs: int, seen: int) -> str:
    """Why a frozen tower has to run in each step, as far as it shows before a pair is read."""
    reasons = {
        "train.frozen_features is false": not config.train.frozen_features,
        "data.train is a stream": not pairs,
        "the run ends within an epoch": seen <= pairs,
        "data.augment is not off": side == "image" and config.data.augment != OFF,
        "batch norm is live": bool(live_batch_norms(clip.towers.train())),
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


def made_once(clip: Clip, config: Config, pairs: int, seen: int) -> list[str]:
    """Towers that no step runs, unless captions turn out to be drawn."""
    frozen = freezing.frozen(clip.towers)
    return [side for side in frozen if not against(side, clip, config, pairs, seen)]


def _rows(
    step: CachedStep, clip: Clip, config: Config, batches: TrainingBatches, side: str, stop: Stop
) -> np.ndarray | str:
    """Features of all pairs (N, D), of a file that is mapped; or why not, see `_embedded`."""
    world, pairs, folder = step.world, batches.pairs, Path(config.run.folder, "features")
    train, data, about = config.train, config.data, clip.description
    settings = data.caption_key, data.decode, data.long_captions, train.precision, train.compile
    facts = pairs.shards.fingerprint, settings, about["preprocess"], about["context_length"]
    digest = hashlib.sha256(json.dumps(facts).encode())
    for name, value in clip.towers.clip.state_dict().items():
        if name.startswith("visual.") == (side == "image") and not name.startswith("logit_"):
            digest.update(value.cpu().reshape(-1).view(torch.uint8).numpy())
    name = f"{side}-{digest.hexdigest()[:16]}"  # of what decides the features
    there = folder.glob(f"{name}-*.npy") if world.main else ()
    file = next((file for file in there if _read(file) is not None), None)
    file = distributed.all_gather_objects(file)[0]
    if file is None:
        count, width = len(pairs.shards), about["definition"]["embed_dim"]
        size = f"{4e-6 * count * width:.3g} MB in {folder}"
        batches.log(f"{side} tower is frozen: embedding {count:,} pairs once, {size}")
        own = _embedded(step, config, pairs, side, width, stop)
        if isinstance(own, str):
            return own
        parts = [part.cpu() for part in distributed.blocks(own.to(world.device)) if world.main]
        with distributed.errors_together():
            file = _write(folder, name, torch.cat(parts).numpy()) if world.main else None
        file = distributed.all_gather_objects(file)[0]
    assert file is not None
    with distributed.errors_together():
        if (rows := _read(file)) is None:  # each node has to see it
            ways = "let every node see the folder, or take --train.frozen_features false"
            raise InputError(f"run.folder: {file} can't be read here: {ways}")
    return rows


def _write(folder: Path, name: str, rows: np.ndarray) -> Path:
    """Into a file whose name has their hash; those of other pairs, weights or settings go."""
    file = folder / f"{name}-{_hash(rows)}.npy"
    with suppress(OSError):  # which is said of the file
        for old in [*folder.glob("image-*.npy*"), *folder.glob("text-*.npy*")]:
            old.unlink()
        folder.mkdir(exist_ok=True)
    with atomic_file(file) as partial, partial.open("wb") as opened:
        np.save(opened, rows)
    return file


def _read(file: Path) -> np.ndarray | None:
    """The rows of a file, mapped; None: it isn't whole, or not as it was written."""
    with suppress(OSError, ValueError, EOFError):
        rows: np.ndarray = np.load(file, mmap_mode="r")
        if file.stem.endswith(_hash(rows)):
            return rows
    return None


def _hash(rows: np.ndarray) -> str:
    return hashlib.sha256(rows.data).hexdigest()[:16]


def _embedded(
    step: CachedStep, config: Config, pairs: Pairs, side: str, width: int, stop: Stop
) -> Tensor | str:
    """Features (n, D) on the CPU of this rank's share of the pairs, NaN of those that can't be
    read; on every rank why they would be others in another epoch.
    """
    world, total, why = step.world, len(pairs.shards), ""
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
            reasons = {
                "it draws random numbers (dropout)": drawn,
                "pairs have several captions": len(batch["tokens"]) > len(index),
                "of long captions sentences are drawn": cut and long > 0,
            }
            if why := next((reason for reason, holds in reasons.items() if holds), ""):
                break
            # in place of what can't be read comes another pair, perhaps of another rank
            own = (index >= start) & (index < end)
            rows[index[own] - start] = features.cpu()[own]
            bar.update(len(own) * world.size)
            if stop():
                raise Stopped("stopped by a signal")
    return next(filter(None, distributed.all_gather_objects(why)), rows)
