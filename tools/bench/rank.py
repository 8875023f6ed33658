"""Ranking captions for many images, against the forward passes alone.

    python tools/bench.py rank --source ROCOv2/test_images     # any folder of images

- text (--captions TABLE.csv): its captions embedded as zeroshot and evaluate do, cut to their
  length, against the same batches with their padding.
- time: from the loaded model to the written result (reading, decoding, both towers, ranking, JSON
  lines), against the same batches through the same towers with the pixels and tokens at hand.
Weights are random: they cost the same as trained ones.
"""

import itertools
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from pairs import read_captions
from side_by_side import Comparison, compare

from medclip_oc.config.checks import Count, Settings
from medclip_oc.config.schema import ModelConfig
from medclip_oc.errors import WorkError
from medclip_oc.inference.embedder import Embedder
from medclip_oc.inference.image_inputs import ImageSet, find
from medclip_oc.inference.prompt_sets import PromptClass
from medclip_oc.inference.ranking import FIELDS, embed_candidates, write_rows
from medclip_oc.models import factory
from medclip_oc.reporting.output import RowWriter


@dataclass
class Config(Settings):
    """What is ranked for what."""

    source: str
    """Folder of image files; each counts as often as --images needs."""
    captions: str | None = None
    """Table (.csv) with a column Caption; null: no comparison of texts."""
    arch: str = "ViT-B-32"
    """The model."""
    images: Count = 1000
    """How many."""
    texts: Count = 200
    """How many."""
    batch_size: Count = 64
    """Images or texts embedded at once."""
    rounds: Count = 3
    """Paired runs that count."""
    threads: Count = 2
    """Threads of torch."""


def run(config: Config) -> Iterator[Comparison]:
    """The comparisons of the cases asked for. InputError: no image in the source."""
    torch.set_num_threads(config.threads)
    files = find([config.source], None, "--source")
    if config.captions is not None:
        yield captioned(config, read_captions(config.captions))
    places = itertools.islice(itertools.cycle(files.places), config.images)
    yield timed(config, ImageSet([*places]))


def texts(number: int) -> list[PromptClass]:
    """Captions of some ten tokens, each another one."""
    names = [f"radiograph number {n} with an opacity of the left lung" for n in range(number)]
    return [PromptClass(name, (name,)) for name in names]


def captioned(config: Config, captions: list[str]) -> Comparison:
    """Texts cut to their length against padded ones."""
    embedder = open_model(ModelConfig(arch=config.arch), config.batch_size)
    tokens = embedder.clip.tokenizer(captions)  # (M, L)
    return compare(
        "rank",
        f"text: {len(captions):,} captions, {config.arch}, {config.threads} threads",
        lambda: embedder.tokens(tokens),
        lambda: [embedder.forward("text", batch) for batch in tokens.split(config.batch_size)],
        peer="padded to the context length",
        rounds=config.rounds,
        items=len(captions),
        item="texts",
    )


def timed(config: Config, images: ImageSet) -> Comparison:
    """Everything against the forward passes."""
    embedder = open_model(ModelConfig(arch=config.arch), config.batch_size)
    candidates = texts(config.texts)
    return compare(
        "rank",
        f"time: {config.images:,} images x {config.texts:,} texts, {config.arch}, "
        f"{config.threads} threads",
        partial(whole, embedder, images, candidates),
        partial(forwards, embedder, config.images, candidates),
        peer="the forward passes alone",
        rounds=config.rounds,
    )


def open_model(settings: ModelConfig, batch_size: int, workers: int | None = None) -> Embedder:
    """A model of random weights."""
    clip = factory.build(settings)
    clip.towers.eval().cuts_text()  # tries it once
    return Embedder(clip, torch.device("cpu"), batch_size, workers)


def whole(embedder: Embedder, images: ImageSet, candidates: list[PromptClass]) -> None:
    """What zeroshot does once the model is loaded."""
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl", encoding="utf-8") as out:
        writer = RowWriter(out, "jsonl", FIELDS)  # type: ignore[arg-type]
        bad = write_rows(embedder, images, embed_candidates(embedder, candidates), writer)
        os.fsync(out.fileno())
    if bad:
        raise WorkError(f"--source: {bad} images can't be read")


def forwards(embedder: Embedder, images: int, candidates: list[PromptClass]) -> None:
    """As many images and texts through the towers, and nothing else."""
    size = embedder.batch_size
    height, width = embedder.clip.image_size
    pixels = torch.randint(0, 256, (size, 3, height, width), dtype=torch.uint8)
    embedder.tokens(embedder.clip.tokenizer([one.name for one in candidates]))
    for first in range(0, images, size):
        embedder.forward("image", pixels[: min(size, images - first)])
