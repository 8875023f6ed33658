"""Brings images (or their features), labels and splits together for `evaluation.probes`."""

from pathlib import Path

import numpy as np
import torch

from ..config.evaluation import EvaluateConfig
from ..errors import InputError
from ..evaluation import features, probes
from ..packing.sources import SPLITS
from ..reporting import results
from ..runtime import distributed, npz
from . import image_inputs, labels
from .embedder import open_embedder
from .image_inputs import ImageSet


def run(settings: EvaluateConfig) -> list[str]:
    """Probe features of images with a table of labels, and keep the figures. Returns these, and
    lines on what was left out and what was written. InputError: see `labels.read`, `labels.match`,
    `probes.measure`; or an image can't be read. WorkError: a file can't be written.
    """
    if distributed.is_distributed():
        raise InputError("--probe: runs in one process, not under torchrun")
    file, where, seed = settings.probe or "", settings.data, settings.seed
    table = labels.read("--probe", file, None, settings.uncertain, splits=not where)
    sets = list[ImageSet]()
    if settings.features_in:
        names, given, _ = features.load_images(Path(settings.features_in))
    else:
        words = [where] if isinstance(where, str) else where or settings.images
        for split in SPLITS if where else (None,):
            sets.append(image_inputs.find(words, split, "--data" if where else "--images"))
        names = [images.name(n) for images in sets for n in range(len(images))]
    row_of = labels.match(table.where, {*table.truth.index}, names)
    kept = sorted(row_of)
    rows = [row_of[n] for n in kept]
    truth = table.truth.loc[rows].to_numpy()  # (n, M)
    lines = [f"{len(kept):,} of {len(names):,} images have a row, of {len(table.truth):,}"]
    if where:
        parts = np.repeat(range(len(sets)), [len(images) for images in sets])[kept]
    elif table.parts is not None:
        parts = table.parts.loc[rows].to_numpy()
    else:
        parts = _drawn(truth, seed)
        drawn = f"60, 20 and 20 % of the images are drawn with --seed {seed}, by image, not patient"
        lines.append(f"{file} has no column `split`: {drawn}")
    if sets:
        embedder = open_embedder(settings)
        given = torch.cat([embedder.every_image(images, shown=True) for images in sets]).cpu()
    known = given.numpy()  # (N, D)
    if settings.features_out:
        npz.write(Path(settings.features_out), ids=np.array(names), image_features=known)
    how = {"draws": settings.interval_draws, "seed": seed}
    record, left_out = probes.measure([*table.truth], known[kept], truth, parts, **how)
    lines += left_out + labels.keep(record, file, settings.checkpoint, settings.json)
    sizes = ", ".join(f"{n:,} {split}" for split, n in record["images"].items())
    return [results.text(record), f"images: {sizes}", *lines]


def _drawn(truth: np.ndarray, seed: int) -> np.ndarray:
    """Of every five images of the same labels (N, M) three in train, one in valid, one in test."""
    kinds = np.unique(truth, axis=0, return_inverse=True)[1].ravel()
    order = np.lexsort((np.random.default_rng(seed).random(len(truth)), kinds))
    parts = np.empty(len(truth), int)
    parts[order] = np.resize([0, 0, 0, 1, 2], len(truth))
    return parts
