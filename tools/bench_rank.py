"""Ranking captions for many images, against the forward passes alone.

    python tools/bench.py rank --source ROCOv2/test_images     # any folder of images

- time: from the loaded model to the written result (reading, decoding, both towers, ranking, JSON
  lines), against the same batches through the same towers with the pixels and tokens at hand; wall
  time and, beside it, processor time with the loader processes'.
- memory: the most resident memory above that at the start, with four times the images against the
  images alone, in one process (--workers 0), a small tower.

Weights are random: they cost the same as trained ones.
"""

import os
import resource
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from side_by_side import Comparison, compare

from medclip_oc.config.schema import ModelConfig
from medclip_oc.errors import InputError, WorkError
from medclip_oc.inference.embedder import Embedder
from medclip_oc.inference.image_inputs import Files, ImageSet, find
from medclip_oc.inference.output import RowWriter
from medclip_oc.inference.prompts import Candidate
from medclip_oc.inference.ranking import FIELDS
from medclip_oc.models import factory
from medclip_oc.runtime.memory import Peak
from medclip_oc.zeroshot import rank_of, write_ranks

CASES = ("time", "memory")
_MEGABYTE = 1e6
_TIMES = 4
_SMALL: dict[str, Any] = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": 224, "patch_size": 32, "width": 64, "head_width": 32, "layers": 2},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
}


@dataclass
class Config:
    """What is ranked for what."""

    source: str
    """Folder of image files; each counts as often as --images needs."""
    cases: list[str] = field(default_factory=lambda: list(CASES))
    """Which to run: time, memory."""
    arch: str = "ViT-B-32"
    """The model of the time case."""
    images: int = 1000
    """How many."""
    texts: int = 200
    """How many."""
    batch_size: int = 64
    """Images or texts embedded at once."""
    rounds: int = 3
    """Paired runs that count."""
    warmup: int = 1
    """Paired runs before them that don't."""
    threads: int = 2
    """Threads of torch."""

    def __post_init__(self) -> None:
        for name in self.cases:
            if name not in CASES:
                raise InputError(f"--cases: {name!r} is not one of {', '.join(CASES)}")
        for name in ("images", "texts", "batch_size", "rounds", "threads"):
            if getattr(self, name) < 1:
                raise InputError(f"--{name}: {getattr(self, name)} is not at least 1")


def run(config: Config) -> Iterator[Comparison]:
    """The comparisons of the cases asked for.

    Raises:
        InputError: no image in the source.
    """
    torch.set_num_threads(config.threads)
    files = find([config.source], None, "--source")
    with tempfile.TemporaryDirectory(prefix="bench_rank_") as name:
        if "time" in config.cases:
            yield timed(config, repeated(files, config.images, Path(name, "time")))
        if "memory" in config.cases:
            yield memory(config, files, Path(name))


def repeated(files: ImageSet, number: int, folder: Path) -> Files:
    """So many image files: copies of those that are there, each a file of its own."""
    folder.mkdir()
    paths = []
    for n in range(number):
        source = Path(files.name(n % len(files)))
        paths.append(folder / f"{n:06}{source.suffix}")
        shutil.copyfile(source, paths[-1])
    return Files(paths)


def texts(number: int) -> list[Candidate]:
    """Captions of some ten tokens, each another one."""
    names = [f"radiograph number {n} with an opacity of the left lung" for n in range(number)]
    return [Candidate(name, (name,)) for name in names]


def timed(config: Config, images: Files) -> Comparison:
    """Everything against the forward passes."""
    embedder = open_model(ModelConfig(arch=config.arch), config.batch_size)
    candidates = texts(config.texts)
    spent: dict[str, list[float]] = {"ours": [], "theirs": []}

    def counted(name: str, what: Callable[[], None]) -> None:
        start = _processor_seconds()
        what()
        spent[name].append(_processor_seconds() - start)

    found = compare(
        "rank",
        f"time: {config.images:,} images x {config.texts:,} texts, {config.arch}, "
        f"{config.threads} threads",
        partial(counted, "ours", partial(whole, embedder, images, candidates)),
        partial(counted, "theirs", partial(forwards, embedder, config.images, candidates)),
        peer="the forward passes alone",
        rounds=config.rounds,
        warmup=config.warmup,
    )
    ratios = [b / a for a, b in zip(spent["ours"], spent["theirs"], strict=True)]
    found.extra["cpu_rounds"] = [float(f"{ratio:.4g}") for ratio in ratios[config.warmup :]]
    return found


def _processor_seconds() -> float:
    """Of this process and of those that it started and that ended: the loader's."""
    return sum(
        used.ru_utime + used.ru_stime
        for used in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def open_model(settings: ModelConfig, batch_size: int, workers: int | None = None) -> Embedder:
    """A model of random weights."""
    clip = factory.build(settings)
    clip.towers.eval()
    return Embedder(clip, torch.device("cpu"), batch_size, workers)


def whole(embedder: Embedder, images: Files, candidates: list[Candidate]) -> None:
    """What zeroshot does once the model is loaded."""
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as out:
        writer = RowWriter(out, "jsonl", FIELDS)  # type: ignore[arg-type]
        bad = write_ranks(embedder, images, rank_of(embedder, candidates), writer)
        os.fsync(out.fileno())
    if bad:
        raise WorkError(f"--source: {bad} images can't be read")


def forwards(embedder: Embedder, images: int, candidates: list[Candidate]) -> None:
    """As many images and texts through the towers, and nothing else."""
    towers, size = embedder.clip.towers, embedder.batch_size
    height, width = embedder.clip.image_size
    pixels = torch.randint(0, 256, (size, 3, height, width), dtype=torch.uint8)
    tokens = embedder.clip.tokenizer([one.name for one in candidates[:size]])
    for total, embed, batch in (
        (len(candidates), towers.embed_texts, tokens),
        (images, towers.embed_images, pixels),
    ):
        for first in range(0, total, size):
            embedder.forward(embed, batch[: min(size, total - first)])


def memory(config: Config, files: ImageSet, folder: Path) -> Comparison:
    """Peak memory of many images against that of a quarter of them."""
    settings = ModelConfig(arch="small-rank", definition=_SMALL)
    embedder = open_model(settings, config.batch_size, workers=0)
    candidates = texts(config.texts)
    sizes = (config.images, _TIMES * config.images)
    sets = [repeated(files, size, folder / str(size)) for size in sizes]
    whole(embedder, sets[0], candidates)  # what torch and Pillow keep from their first calls
    used = []
    for images in sets:
        with Peak(embedder.device) as peak:
            whole(embedder, images, candidates)
        if peak.bytes is None:
            raise WorkError("memory: this system doesn't say how much a process uses")
        used.append(peak.bytes / _MEGABYTE)
    return Comparison(
        "rank",
        f"memory: {sizes[1]:,} images x {config.texts:,} texts, a small tower",
        used[1],
        f"{sizes[0]:,} images",
        used[0],
        "MB",
        [used[0] / used[1]],
    )
