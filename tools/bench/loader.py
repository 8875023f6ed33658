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
import io
import json
import resource
import statistics
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

if __name__ == "__main__":  # one of the sides
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from side_by_side import Comparison

from medclip_oc.errors import InputError, WorkError

if TYPE_CHECKING:
    from medclip_oc.data.shards import Sample

PEER = "open_clip 3.3.0, webdataset 0.2.86"
PEER_VERSION = "0.2.86"
RECIPES = ("whole recipe", "crop alone")


@dataclass
class Config:
    """What to load, and how often."""

    source: str
    """Folder of a data set in any form that make_shards.py knows; all its splits are used."""
    peer_packages: str
    """Folder of webdataset 0.2.86 (see the top of tools/bench/loader.py)."""
    repeat: int = 8
    """Each pair counts so many times."""
    shards: int = 8
    """Tars that the pairs are spread over."""
    size: int = 224
    """Side of the model's input in pixels."""
    resize: int = 256
    """Shorter side of the files in the second set of shards."""
    batch_size: int = 64
    """Images in a batch."""
    rounds: int = 5
    """Runs of each side that count, after one that doesn't."""


@dataclass
class Side:
    """What a process is to do."""

    who: str
    """ours, or theirs."""
    folder: str
    recipe: str
    config: dict[str, Any]

    @property
    def urls(self) -> str:
        """All shards, as a brace pattern."""
        return f"{self.folder}/{{{0:06}..{self.config['shards'] - 1:06}}}.tar"


def run(config: Config) -> Iterator[Comparison]:
    """Measure every case.

    Raises:
        InputError: no such source, or no peer.
        WorkError: a side failed.
    """
    if not (Path(config.peer_packages) / "webdataset").is_dir():
        raise InputError(
            f"--peer-packages: no webdataset in {config.peer_packages}; pip install --no-deps "
            f"--target {config.peer_packages} webdataset=={PEER_VERSION}"
        )
    with tempfile.TemporaryDirectory(prefix="bench_loader_") as name:
        folder = Path(name)
        pairs = _make_shards(config, folder)
        yield from _rates(config, folder, pairs)


def _rates(config: Config, folder: Path, pairs: int) -> Iterator[Comparison]:
    """Every side in turn, round after round; then the comparisons that they allow."""
    sets = ("original", f"{config.resize} px")
    sides = {
        ("theirs", kind): Side("theirs", str(folder / kind), "", asdict(config)) for kind in sets
    }
    for kind in sets:
        for recipe in RECIPES:
            sides[recipe, kind] = Side("ours", str(folder / kind), recipe, asdict(config))
    processes = {key: _Process(side) for key, side in sides.items()}
    rates: dict[tuple[str, str], list[float]] = {key: [] for key in sides}
    try:
        for number in range(config.rounds + 1):
            for key, process in list(processes.items())[:: 1 if number % 2 else -1]:
                answer = process.ask()
                if answer["images"] != pairs // config.batch_size * config.batch_size:
                    raise WorkError(f"{key}: {answer['images']} images instead of {pairs}")
                if number:
                    rates[key].append(answer["images"] / answer["cpu_seconds"])
    finally:
        for process in processes.values():
            process.close()
    for recipe in RECIPES:
        for ours, theirs in ((sets[0], sets[0]), (sets[1], sets[0]), (sets[1], sets[1])):
            mine, other = rates[recipe, ours], rates["theirs", theirs]
            yield Comparison(
                "loader",
                f"{recipe}, ours on {ours} files, theirs on {theirs} files, {config.size} px",
                statistics.median(mine),
                PEER,
                statistics.median(other),
                "images/s per core",
                [a / b for a, b in zip(mine, other, strict=True)],
                {"images": pairs},
            )


def _make_shards(config: Config, folder: Path) -> int:
    """Both sets of shards; returns the number of pairs in each."""
    from medclip_oc.data.shards import ShardSet
    from medclip_oc.packing.formats import open_source
    from medclip_oc.packing.pack import PackOptions, pack

    source, counts = open_source(Path(config.source)), set[int]()
    for kind, resize in (("original", None), (f"{config.resize} px", config.resize)):
        packed = folder / f"packed {kind}"
        pack(source, packed, PackOptions(resize=resize))
        splits = [ShardSet.open(str(packed), split) for split in source.splits]
        samples = [split.read(n) for split in splits for n in range(len(split))]
        _spread(samples, folder / kind, config)
        counts.add(config.repeat * len(samples))
    [count] = counts
    return count


def _spread(samples: "list[Sample]", folder: Path, config: Config) -> None:
    """Every pair `repeat` times, dealt to the shards in turn."""
    folder.mkdir()
    for shard in range(config.shards):
        with tarfile.open(folder / f"{shard:06}.tar", "w") as tar:
            for number in range(shard, config.repeat * len(samples), config.shards):
                turn, place = divmod(number, len(samples))
                sample = samples[place]
                facts = json.dumps(sample.facts).encode()
                parts = {sample.extension: sample.image, "txt": sample.caption.encode()}
                for end, data in (parts | {"json": facts}).items():
                    info = tarfile.TarInfo(f"{sample.key}_{turn}.{end}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))


# ----------------------------------------------------------------------------------- one process


class _Process:
    """A side in a process of its own, which waits to be asked."""

    def __init__(self, side: Side) -> None:
        words = [sys.executable, "-W", "ignore", __file__, json.dumps(asdict(side))]
        self.side, pipe = side, subprocess.PIPE
        self.child = subprocess.Popen(words, stdin=pipe, stdout=pipe, text=True)

    def ask(self) -> dict[str, float]:
        """Let it do a pass; returns what it measured."""
        assert self.child.stdin is not None
        assert self.child.stdout is not None
        self.child.stdin.write("pass\n")
        self.child.stdin.flush()
        line = self.child.stdout.readline()
        if not line:
            raise WorkError(f"the process of {self.side.who} failed; its messages stand above")
        answer: dict[str, float] = json.loads(line)
        return answer

    def close(self) -> None:
        """End it."""
        self.child.communicate()


def answer(side: Side) -> None:
    """Do a pass for each line on stdin, and answer in JSON lines."""
    import torch

    torch.set_num_threads(1)
    make = _theirs(side) if side.who == "theirs" else _ours(side)
    for number, _ in enumerate(sys.stdin):
        gc.collect()
        print(json.dumps(_pass(make(number))), flush=True)


def _pass(batches: Iterable[int]) -> dict[str, float]:
    before = resource.getrusage(resource.RUSAGE_SELF)
    images = sum(batches)
    after = resource.getrusage(resource.RUSAGE_SELF)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"images": images, "cpu_seconds": seconds}


def _ours(side: Side) -> Any:
    from medclip_oc.config.schema import AugmentConfig, DataConfig, ModelConfig
    from medclip_oc.data import loader
    from medclip_oc.data.dataset import load_batches
    from medclip_oc.data.sampler import Order
    from medclip_oc.data.shards import ShardSet
    from medclip_oc.models import factory

    tower = {"image_size": side.config["size"], "layers": 1, "width": 64, "patch_size": 32}
    text = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1}
    definition = {"embed_dim": 64, "vision_cfg": tower, "text_cfg": text}
    clip = factory.build(ModelConfig(arch="bench-loader", definition=definition))
    plain = AugmentConfig(scale=(0.9, 1.0), rotation_degrees=0, brightness=0, contrast=0)
    augment = AugmentConfig() if side.recipe == RECIPES[0] else plain
    size = side.config["batch_size"]

    def make(number: int) -> Iterator[int]:
        shards = ShardSet.open(side.urls, "train")
        pairs = loader.training_pairs(shards, clip, DataConfig(augment=augment), 0)
        order = Order(shards.sizes, seed=number)
        batches = order.shares(0, len(shards) // size, size, range(size))
        for loaded in load_batches(pairs, batches, workers=0, pin=False):
            yield len(loaded.batch["index"])

    return make


def _theirs(side: Side) -> Any:
    sys.path.insert(0, side.config["peer_packages"])
    import open_clip
    import webdataset
    from open_clip.transform import image_transform
    from open_clip_train.data import get_wds_dataset

    assert webdataset.__version__ == PEER_VERSION, webdataset.__version__
    mean, std = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
    preprocess = image_transform(side.config["size"], is_train=True, mean=mean, std=std)
    tokenizer = open_clip.get_tokenizer("ViT-B-32")
    pairs = len(list(_keys(side)))

    def make(number: int) -> Iterator[int]:
        size = side.config["batch_size"]
        args = SimpleNamespace(
            train_data=side.urls,
            train_num_samples=pairs // size * size,
            val_data=None,
            val_num_samples=None,
            dataset_resampled=False,
            train_data_upsampling_factors=None,
            seed=number,
            batch_size=size,
            workers=0,
            world_size=1,
        )
        info = get_wds_dataset(args, preprocess, True, tokenizer=tokenizer)
        for images, _ in info.dataloader:
            yield len(images)

    return make


def _keys(side: Side) -> Iterator[str]:
    for number in range(side.config["shards"]):
        with tarfile.open(f"{side.folder}/{number:06}.tar") as tar:
            yield from (name for name in tar.getnames() if name.endswith(".txt"))


if __name__ == "__main__":
    answer(Side(**json.loads(sys.argv[1])))
