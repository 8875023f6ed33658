"""The training loader against open_clip's, on the same shards, each in a process of its own.

    pip install --no-deps --target /tmp/peer webdataset==0.2.86
    python tools/bench.py loader --source ROCOv2/ --peer-packages /tmp/peer

open_clip_train's pipeline works with webdataset up to 0.2.86; only its process sees that version.

The rate is images of a whole pass (reading, decoding, augmenting, tokenizing, batching) per
second of CPU time of one process, so that whatever else the machine does counts for neither side.
Ours runs with its whole recipe (crop, rotation, brightness, contrast), and with the crop alone,
which is all that open_clip's pipeline does.
Two sets of shards are made: one with the files as they are, one with the shorter side at --resize.
"""

import gc
import itertools
import multiprocessing
import os
import statistics
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from threading import Thread
from typing import NamedTuple

from pairs import gather, pack_table
from side_by_side import Comparison, in_turn, processor_seconds, ratios

from medclip_oc.config.checks import Count, Settings
from medclip_oc.errors import InputError, WorkError

PEER = "open_clip 3.3.0, webdataset 0.2.86"
PEER_VERSION = "0.2.86"
RECIPES = ("whole recipe", "crop alone")


@dataclass
class Config(Settings):
    """What to load, and how often."""

    source: str
    """Folder of a data set in any form that make_shards.py knows; all its splits are used."""
    peer_packages: str
    """Folder of webdataset 0.2.86 (see the top of tools/bench/loader.py)."""
    repeat: Count = 8
    """Each pair counts so many times."""
    shards: Count = 8
    """Tars that the pairs are spread over."""
    size: Count = 224
    """Side of the model's input in pixels."""
    resize: Count = 256
    """Shorter side of the files in the second set of shards."""
    batch_size: Count = 64
    """Images in a batch."""
    rounds: Count = 5
    """Runs of each side that count, after one that doesn't."""


class Side(NamedTuple):
    """What a process is to do."""

    recipe: str  # ours; or theirs
    shards: Path
    pairs: int
    size: int
    batch_size: int
    peer_packages: str


def run(config: Config) -> Iterator[Comparison]:
    """Measure every case. InputError: no such source, or no peer. WorkError: a side failed."""
    require_peer(config.peer_packages)
    sizes = config.size, config.batch_size, config.peer_packages
    with tempfile.TemporaryDirectory(prefix="bench_loader_") as name:
        table, images = gather(config.source, config.repeat, Path(name))
        per_shard, sides = -(-len(images) // config.shards), dict[tuple[str, str], Side]()
        kinds = {"original": None, f"{config.resize} px": config.resize}
        for kind, resize in kinds.items():
            shards = Path(name, kind)
            pairs = pack_table(table, shards, samples_per_shard=per_shard, resize=resize)
            for who in ("theirs", *RECIPES) if resize is None else RECIPES:
                sides[who, kind] = Side(who, shards, pairs, *sizes)
        rates = _rates(sides, config.rounds)
    other = rates["theirs", "original"]
    for (recipe, kind), mine in rates.items():
        if recipe in RECIPES:
            case = f"{recipe}, ours on {kind} files, theirs on original files, {config.size} px"
            figures = statistics.median(mine), PEER, statistics.median(other)
            told = {"images": sides[recipe, kind].pairs}
            unit = "images/s per core"
            yield Comparison("loader", case, *figures, unit, ratios(mine, other), told)


def require_peer(folder: str) -> None:
    """InputError: the folder has no webdataset; says how it gets one."""
    if not (Path(folder) / "webdataset").is_dir():
        way = f"pip install --no-deps --target {folder} webdataset=={PEER_VERSION}"
        raise InputError(f"--peer-packages: no webdataset in {folder}; {way}")


def _rates(sides: dict[tuple[str, str], Side], rounds: int) -> dict[tuple[str, str], list[float]]:
    """Images per second of processor time of each side, each in a process of its own."""
    with ExitStack() as stack:
        calls = {}
        for key, side in sides.items():
            spawn = multiprocessing.get_context("spawn")
            process = stack.enter_context(ProcessPoolExecutor(1, spawn, _watch_parent))
            numbers = itertools.count()
            calls[key] = lambda p=process, s=side, n=numbers: p.submit(_pass, s, next(n)).result()
        return in_turn(calls, rounds)


# ----------------------------------------------------------------------------------- one process


def _watch_parent() -> None:
    """A parent that is killed tells nobody; this process would wait for ever."""

    def end_with_parent() -> None:
        if parent := multiprocessing.parent_process():
            parent.join()
            os._exit(1)

    Thread(target=end_with_parent, daemon=True).start()


def _pass(side: Side, number: int) -> float:
    """Load all images once; returns how many a second of processor time."""
    batches = _maker(side)(number)
    gc.collect()
    before = processor_seconds()
    images = sum(batches)
    spent = processor_seconds() - before
    if images != side.pairs // side.batch_size * side.batch_size:
        raise WorkError(f"{side.recipe}: {images} images instead of {side.pairs}")
    return images / spent


@cache
def _maker(side: Side) -> Callable[[int], Iterator[int]]:
    """What gives the sizes of the batches of a pass."""
    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    return _ours(side) if side.recipe in RECIPES else _theirs(side)


def _ours(side: Side) -> Callable[[int], Iterator[int]]:
    from medclip_oc.config.schema import AugmentConfig, DataConfig, ModelConfig
    from medclip_oc.data import loader
    from medclip_oc.data.dataset import load_batches
    from medclip_oc.data.sampler import Order
    from medclip_oc.data.shards import ShardSet
    from medclip_oc.models import factory

    tower = {"image_size": side.size, "layers": 1, "width": 64, "patch_size": 32}
    text = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1}
    definition = {"embed_dim": 64, "vision_cfg": tower, "text_cfg": text}
    clip = factory.build(ModelConfig(arch="bench-loader", definition=definition))
    plain = AugmentConfig(scale=(0.9, 1.0), rotation_degrees=0, brightness=0, contrast=0)
    augment = AugmentConfig() if side.recipe == RECIPES[0] else plain
    size = side.batch_size

    def make(number: int) -> Iterator[int]:
        shards = ShardSet.open(str(side.shards), "train")
        pairs = loader.training_pairs(shards, clip, DataConfig(augment=augment), 0)
        order = Order(shards.sizes, seed=number)
        batches = order.shares(0, len(shards) // size, size, range(size))
        for loaded in load_batches(pairs, batches, workers=0, pin=False):
            yield len(loaded.batch["index"])

    return make


def _theirs(side: Side) -> Callable[[int], Iterator[int]]:
    sys.path.insert(0, side.peer_packages)
    import open_clip
    import webdataset
    from open_clip.transform import image_transform
    from open_clip_train.data import get_wds_dataset
    from open_clip_train.params import parse_args

    assert webdataset.__version__ == PEER_VERSION, webdataset.__version__
    mean, std = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
    preprocess = image_transform(side.size, is_train=True, mean=mean, std=std)
    tokenizer = open_clip.get_tokenizer("ViT-B-32")
    last, size = len(list(side.shards.glob("*.tar"))) - 1, side.batch_size

    words = [f"--train-data={side.shards}/train-{{000000..{last:06}}}.tar", "--workers=0"]
    words += [f"--train-num-samples={side.pairs // size * size}", f"--batch-size={size}"]

    def make(number: int) -> Iterator[int]:
        args = parse_args([*words, f"--seed={number}"])
        args.world_size = 1
        info = get_wds_dataset(args, preprocess, True, tokenizer=tokenizer)
        for images, _ in info.dataloader:
            yield len(images)

    return make
