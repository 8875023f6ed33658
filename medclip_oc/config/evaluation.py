"""Settings of the commands that measure a model: evaluate and report. No torch, as in `schema`."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from ..errors import InputError
from . import checks
from .checks import Bound, Count, JsonFile, Natural, Settings

Uncertain = Literal["ones", "zeros", "ignore"]
NpzFile = Annotated[str, Bound("a file name that ends in .npz", lambda v: v.endswith(".npz"))]


@dataclass(kw_only=True)
class ModelSource(Settings):
    """Which model works, and how it embeds."""

    batch_size: Count = 64
    """Pairs, images or texts embedded at once on one rank."""
    precision: checks.Precision = "fp32"
    """bf16 (CPU and CUDA), fp16 (CUDA), fp32."""
    device: checks.Device = "auto"
    """auto: CUDA where there is a GPU, else the CPU."""
    checkpoint: str | None = None
    """A checkpoint written by training."""
    model: str | None = None
    """In place of a checkpoint: an open_clip name, `hf-hub:ORG/NAME`, or `local-dir:FOLDER` of
    open_clip or of transformers' CLIPModel."""
    pretrained: str | None = None
    """Weights for --model: an open_clip tag, or a file."""

    def __post_init__(self) -> None:
        super().__post_init__()
        own = self.model is None or self.model.startswith(("hf-hub:", "local-dir:"))
        if self.model is None:
            self.require(self.pretrained is None, "pretrained", "used without --model")
        elif self.checkpoint is not None:
            raise InputError(f"--model: {self.checkpoint} names its own model; give one of the two")
        elif not own and (self.pretrained is None or "/" in self.model):
            ways = "an architecture with --pretrained, or without it local-dir:FOLDER, hf-hub:NAME"
            raise InputError(f"--model {self.model}: give {ways}")


@dataclass(kw_only=True)
class MeasureConfig(Settings):
    """What is measured of the features of a set of pairs."""

    ks: list[Count] = field(default_factory=lambda: [1, 5, 10])
    """The K of R@K and of the concept figures. R@1, R@5 and R@10 are always there."""
    ties: Literal["expected", "optimistic", "pessimistic"] = "expected"
    """How equal scores count: at their expected rank, or as if the right one came first or last."""
    duplicates: Literal["both", "keep", "merge"] = "both"
    """Copies of a right one count as wrong (keep), or as right (merge); both: two figures."""
    pools: list[str] = field(default_factory=list)
    """Sizes of smaller random pools, as in 32,1000,full; the full one is always measured."""
    pool_draws: Count = 100
    """Random pools drawn of each size."""
    slices: list[str] = field(default_factory=list)
    """Concepts, by name or CUI, whose pairs get figures of their own, beside the modalities."""
    relevant: checks.ShareAboveZero = 0.5
    """Least overlap of concepts (Jaccard) of a relevant candidate."""
    interval_draws: Natural = 1000
    """Bootstrap draws behind each interval. 0: no intervals."""
    seed: Natural = 0
    """Seed of pools and intervals."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.pool_sizes()

    def pool_sizes(self) -> list[int]:
        """The smaller pools, in order; InputError: one is no number of pairs."""
        sizes = {word.strip() for word in ",".join(self.pools).split(",")} - {"", "full"}
        for size in sizes:
            if not size.isdecimal() or not int(size):
                raise InputError(f"--pools: {size!r} is not a number of pairs, or full")
        return sorted(map(int, sizes))

    def all_ks(self) -> list[int]:
        """The K in order, with those that everyone reports."""
        return sorted({1, 5, 10, *self.ks})


@dataclass
class EvaluateConfig(ModelSource, MeasureConfig):
    """Retrieval over held-out pairs, both ways: recall, ranks, intervals, concepts; or probes."""

    reads = """checkpoint model pretrained data split caption_key baseline features_in probe images
        uncertain"""
    writes = "json features_out"

    data: str | list[str] | None = None
    """Shard folder, brace pattern, glob or list of tars. null: what the run validated on."""
    split: checks.Split | None = None
    """Split of a shard folder. null: test. Tars named one by one are all taken."""
    caption_key: str | None = None
    """Where captions lie, see data.caption_key of training. null: where those of the run lay."""
    captions: Literal["first", "all"] = "first"
    """Of an image's several captions the first, as others measure; or all, each a right answer."""
    unit: checks.Unit | None = None
    """study: images and captions of a study are right for each other. null: as the run trained."""
    baseline: str | None = None
    """Another one to compare: a checkpoint; `start`, the weights that the run began from; a tag of
    open_clip (`openai`), or ARCHITECTURE:TAG; or a file of features."""
    features_in: NpzFile | None = None
    """Take the features (image_features, text_features) from this .npz in place of a model."""
    json: JsonFile | None = None
    """Write the result here, beside RUN/evaluations/CHECKPOINT-SPLIT.json of a run's checkpoint."""
    features_out: NpzFile | None = None
    """Write the features to this file (.npz)."""
    workers: Natural = 2
    """Loader processes per rank."""
    probe: str | None = None
    """In place of retrieval: a table of labels for the images of --data (all splits), --images or
    --features-in, which classifiers learn from their features (see docs/evaluation.md)."""
    images: list[str] = field(default_factory=list)
    """Of --probe: files, folders, globs. The table's column `split` says which are in train."""
    uncertain: Uncertain | None = None
    """What -1 in --probe is taken for. null: unknown (ignore)."""
    decode: checks.Decode = "exact"
    """exact: the pixels of open_clip's own preprocessing. fast: JPEGs at a reduced scale."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("features_in", "features_out", "baseline") if self.json else ():
            # --json writes an .npz of ranks beside it
            free = getattr(self, name) != str(self.json).removesuffix(".json") + ".npz"
            self.require(free, name, "another name than that of --json")
        in_file = self.features_in or self.features_out
        self.require(not in_file or self.captions == "first", "captions", "first, as a file has it")
        if self.checkpoint is None and (self.model is None) == (self.features_in is None):
            raise InputError("--checkpoint: required; or --model, or --features-in, one of the two")
        others = ["split", "caption_key", "baseline", "pools", "slices"]
        given = sum(map(bool, (self.data, self.images, self.features_in)))
        if self.probe is not None and given != 1:
            raise InputError("--probe: give --data, --images or --features-in, one of them")
        for name in ["images", "uncertain"] if self.probe is None else others:
            how = "without" if self.probe is None else "with"
            self.require(not getattr(self, name), name, f"allowed {how} --probe")


@dataclass
class ReportConfig(Settings):
    """Write RUN/report.html: training, retrieval, slices, ranks and a gallery."""

    reads = "run data"

    run: str
    """The run folder. It may stand alone, without --run."""
    data: str | list[str] | None = None
    """Where the evaluated pairs are now, for the pictures. null: where they were evaluated."""
    gallery: Natural = 3
    """Best, median and worst retrievals shown of each direction, so many of each."""
    maps: bool = False
    """Show where in these images the scores come from: needs the checkpoint, and a while."""
