"""Every setting, one dataclass per owner. Defaults < YAML (--config) < options (--optim.lr).

Words that mean one thing everywhere: `global_batch_size` is the number of pairs contrasted per
optimizer step over all ranks, `micro_batch_size` the number embedded at once on one rank. `None`
means off or "derived". A duration carries its unit in its name.

No torch here: `--help` reads this module. A field's help is the docstring under it.
"""

import re
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from ..errors import InputError

Precision = Literal["fp32", "bf16", "fp16"]
Device = Literal["auto", "cpu", "cuda"]
Decode = Literal["fast", "exact"]
LongCaptions = Literal["truncate", "sentences"]
RecallName = Literal[
    "mean_recall",
    "image_to_text/R@1",
    "image_to_text/R@5",
    "image_to_text/R@10",
    "image_to_text/mrr",
    "text_to_image/R@1",
    "text_to_image/R@5",
    "text_to_image/R@10",
    "text_to_image/mrr",
]


def _require(holds: bool, key: str, value: object, allowed: str) -> None:
    """Refuse a value out of its range, by the setting's dotted name."""
    if not holds:
        raise InputError(f"{key}: {value!r} is not {allowed}")


def _at_least(least: int, section: str, owner: object, *names: str) -> None:
    """Refuse settings below `least`; None means off, and stays."""
    for name in names:
        value = getattr(owner, name)
        _require(value is None or value >= least, f"{section}{name}", value, f"at least {least}")


def _is_regex(text: str) -> bool:
    try:
        re.compile(text)
    except re.error:
        return False
    return True


@dataclass
class RunConfig:
    """Where the run lives and what makes it repeatable."""

    folder: str = "runs/default"
    """Run folder: config, logs and checkpoints go here."""
    seed: int = 0
    """Seed of weights, sample order, augmentation and dropout."""
    device: Device = "auto"
    """auto: CUDA where there is a GPU, else the CPU."""
    overwrite: bool = False
    """Replace what an earlier run left in the folder, in place of going on with it."""
    timeout_seconds: float = 600.0
    """A rank that waits this long for another one ends the run: that one hangs, or is gone."""

    def __post_init__(self) -> None:
        _require(bool(self.folder.strip()), "run.folder", self.folder, "the name of a folder")
        _at_least(0, "run.", self, "seed")
        seconds = self.timeout_seconds
        _require(seconds > 0, "run.timeout_seconds", seconds, "above 0")


@dataclass
class ModelConfig:
    """Which open_clip model, from which weights."""

    arch: str = "ViT-B-16-quickgelu"
    """open_clip architecture, or `hf-hub:ORG/NAME`, or `local-dir:FOLDER`."""
    pretrained: str | None = None
    """open_clip weight tag (`openai`), or a checkpoint file. None: random weights."""
    definition: dict[str, Any] | None = None
    """The full open_clip config (embed_dim, vision_cfg, text_cfg), registered under `arch`."""
    preprocess: dict[str, Any] | None = None
    """mean, std, interpolation, resize_mode, where they differ from what the architecture says."""
    pretrained_image: str | None = None
    """Weights of the image tower alone: a file, or `package:NAME/FILE` inside a Python package."""
    pretrained_text: str | None = None
    """Weights of a Hugging Face text tower: a folder, a hub name, or `package:NAME/FOLDER`."""
    image_size: int | None = None
    """Side of the input in pixels, where it differs from the architecture's."""
    freeze_batch_norm: bool = True
    """Batch-norm statistics stay as they are; the cached step is then exact."""
    grad_checkpointing: bool = False
    """Recompute activations block by block: less memory, about a third more time."""

    def __post_init__(self) -> None:
        _require(bool(self.arch.strip()), "model.arch", self.arch, "the name of an architecture")
        _at_least(1, "model.", self, "image_size")


@dataclass
class AugmentConfig:
    """Gentle by intent: a caption says left and right, so nothing is ever flipped."""

    scale: tuple[float, float] = (0.8, 1.0)
    """Area of the random crop, as a share of the largest crop of the input's shape."""
    rotation_degrees: float = 10.0
    """Largest rotation, either way."""
    brightness: float = 0.1
    """Largest relative change of brightness."""
    contrast: float = 0.1
    """Largest relative change of contrast."""
    flip: bool = False
    """Mirror half of the images. Captions say left and right: leave it off for radiology."""
    hue: float = 0.0
    """Largest change of hue, up to 0.5. Colour means something in radiology: leave it at 0."""

    def __post_init__(self) -> None:
        low, high = self.scale
        _require(0 < low <= high <= 1, "data.augment.scale", self.scale, "low and high in (0, 1]")
        degrees, where = self.rotation_degrees, "data.augment.rotation_degrees"
        _require(0 <= degrees <= 180, where, degrees, "in [0, 180]")
        for name in ("brightness", "contrast"):
            value = getattr(self, name)
            _require(0 <= value < 1, f"data.augment.{name}", value, "in [0, 1)")
        _require(0 <= self.hue <= 0.5, "data.augment.hue", self.hue, "in [0, 0.5]")


@dataclass
class DataConfig:
    """Where the pairs come from. A value is a shard folder (made by tools/make_shards.py, whose
    split of that name is taken), or a brace pattern, a glob, or a list of tar files; several are
    joined by `::`. Shards behind a URL or a `pipe:` command are streamed.
    """

    train: str | list[str] = "shards/rocov2"
    """Pairs to train on."""
    valid: str | list[str] | None = "shards/rocov2"
    """Pairs to choose the best checkpoint with. None: no validation."""
    workers: int = 4
    """Loader processes per rank. 0: load in the training process."""
    weights: list[float] | None = None
    """How often each set joined by `::` is drawn from, relative to the others. None: by size."""
    samples_per_epoch: int | None = None
    """Pairs that count as an epoch. None: as many as there are; a stream needs a number."""
    decode: Decode = "fast"
    """fast: JPEGs at the smallest scale that covers the crop. exact: in full."""
    long_captions: LongCaptions = "truncate"
    """Longer than the context: cut, or given as a run of whole sentences, another each epoch."""
    max_bad_share: float = 0.01
    """Unreadable pairs are replaced by others, up to this share; past it the run stops."""
    cache_folder: str | None = None
    """Keep streamed shards here, and read them from here the next time."""
    stream_lanes: int = 8
    """Streamed shards read at once, over all ranks: each batch mixes pairs of all of them."""
    stream_window: int = 512
    """Pairs of a streamed shard that are held in memory and shuffled at once."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)

    def __post_init__(self) -> None:
        _at_least(0, "data.", self, "workers")
        _at_least(1, "data.", self, "samples_per_epoch", "stream_lanes", "stream_window")
        share, weights = self.max_bad_share, self.weights
        _require(0 <= share < 1, "data.max_bad_share", share, "in [0, 1)")
        sound = weights is None or all(weight > 0 for weight in weights)
        _require(sound, "data.weights", weights, "numbers above 0")


@dataclass
class TrainConfig:
    """The optimizer step and its budget."""

    global_batch_size: int = 1024
    """Pairs contrasted with each other per optimizer step, over all ranks."""
    micro_batch_size: int = 128
    """Pairs embedded at once on one rank: sets the memory, not the result (see grad_cache)."""
    epochs: int = 10
    """Passes over the training pairs."""
    precision: Precision = "bf16"
    """bf16 (CPU and CUDA), fp16 with loss scaling (CUDA), fp32."""
    text_micro_batch_size: int | None = None
    """Texts embedded at once on one rank. None: as many as images, micro_batch_size."""
    keep_chunks: int | Literal["auto"] = 0
    """Chunks whose graph is kept in place of a second forward: memory for time, the result is the
    same. auto: as many as fit the free memory, from the third step on."""
    compile: bool = False
    """Run the towers through torch.compile: slow first steps, then faster ones."""

    def __post_init__(self) -> None:
        _at_least(2, "train.", self, "global_batch_size")  # one pair has nothing to contrast with
        _at_least(1, "train.", self, "micro_batch_size", "text_micro_batch_size", "epochs")
        if self.keep_chunks != "auto":
            _at_least(0, "train.", self, "keep_chunks")


@dataclass
class LossConfig:
    """What a step minimises over all its pairs."""

    name: Literal["clip", "siglip"] = "clip"
    """clip: softmax over each row and column (InfoNCE). siglip: yes or no for each pairing; needs a
    model with a bias."""
    positives: Literal["pairs", "captions", "concepts"] = "pairs"
    """Right answers of an image. pairs: its own caption. captions: those of all pairs with the same
    caption or the same image. concepts: these, and in part all that share UMLS concepts."""
    concept_strength: float = 0.3
    """Share of the answer that positives: concepts gives to the overlap, in [0, 1]; for siglip, how
    much of a copy's yes a whole overlap is."""
    label_smoothing: float = 0.0
    """Share of the answer that is spread evenly over the batch; for clip."""

    def __post_init__(self) -> None:
        strength, smoothing = self.concept_strength, self.label_smoothing
        _require(0 <= strength <= 1, "loss.concept_strength", strength, "in [0, 1]")
        _require(0 <= smoothing < 1, "loss.label_smoothing", smoothing, "in [0, 1)")
        alone = self.name == "clip" or not smoothing
        _require(alone, "loss.label_smoothing", smoothing, "0, as loss.name: siglip needs")


@dataclass
class OptimConfig:
    """AdamW with linear warm-up and a cosine to zero."""

    lr: float = 1e-5
    """Peak learning rate."""
    betas: tuple[float, float] = (0.9, 0.98)
    """Decay of AdamW's two running averages."""
    eps: float = 1e-6
    """Added to AdamW's denominator."""
    weight_decay: float = 0.1
    """On matrices only: none on gains, biases and the temperature."""
    warmup_steps: int | None = None
    """Steps of linear warm-up. None: a tenth of the run."""
    clip_norm: float | None = 1.0
    """Largest norm of the gradient over all parameters. None: no clipping."""
    image_lr: float | None = None
    """Peak learning rate of the image tower. None: lr."""
    text_lr: float | None = None
    """Peak learning rate of the text tower. None: lr."""
    image_layer_decay: float = 1.0
    """Each layer's rate is this times that of the layer after it: early layers, which know what is
    general, move least. 1: all layers alike."""
    text_layer_decay: float = 1.0
    """The same in the text tower."""
    freeze: str | list[str] | None = None
    """What doesn't train: image, text (the whole tower), all_but_projections, or regular
    expressions that match names of open_clip's parameters."""
    image_last_blocks: int | None = None
    """Train only so many of the image tower's last blocks, and what follows them. None: all."""
    text_last_blocks: int | None = None
    """The same in the text tower."""

    def __post_init__(self) -> None:
        for name in ("lr", "image_lr", "text_lr"):
            value = getattr(self, name)
            _require(value is None or value > 0, f"optim.{name}", value, "above 0")
        for name in ("image_layer_decay", "text_layer_decay"):
            value = getattr(self, name)
            _require(0 < value <= 1, f"optim.{name}", value, "in (0, 1]")
        for word in [self.freeze] if isinstance(self.freeze, str) else self.freeze or []:
            _require(_is_regex(word), "optim.freeze", word, "a regular expression")
        _at_least(0, "optim.", self, "image_last_blocks", "text_last_blocks")
        _require(self.eps > 0, "optim.eps", self.eps, "above 0")
        _require(all(0 <= b < 1 for b in self.betas), "optim.betas", self.betas, "in [0, 1)")
        _at_least(0, "optim.", self, "weight_decay", "warmup_steps")
        norm = self.clip_norm
        _require(norm is None or norm > 0, "optim.clip_norm", norm, "above 0, or null")


@dataclass
class LoraConfig:
    """Low-rank adapters in place of training the towers' own weights (LoRA)."""

    rank: int | None = None
    """r: each adapted matrix changes by one of this rank. None: no adapters."""
    alpha: float = 16.0
    """The change is alpha / r times the product of the two small matrices."""
    towers: Literal["both", "image", "text"] = "both"
    """Which towers get adapters; the other one is frozen."""

    def __post_init__(self) -> None:
        _at_least(1, "lora.", self, "rank")
        _require(self.alpha > 0, "lora.alpha", self.alpha, "above 0")


@dataclass
class EmaConfig:
    """A running average of the weights, evaluated and saved beside them."""

    decay: float | None = None
    """After each step: average = decay * average + (1 - decay) * weights. None: no average."""

    def __post_init__(self) -> None:
        decay = self.decay
        _require(decay is None or 0 < decay < 1, "ema.decay", decay, "in (0, 1)")


@dataclass
class ValidConfig:
    """Validation, and the metric that names `best.pt`."""

    every_epochs: int | None = 1
    """Validate after this many epochs. The end of the run is always validated."""
    every_steps: int | None = None
    """Validate after this many steps, besides."""
    metric: RecallName = "mean_recall"
    """Higher is better. mean_recall: the mean of R@1, R@5 and R@10 of both directions."""
    decode: Decode = "exact"
    """exact: the pixels of open_clip's own preprocessing. fast: JPEGs at a reduced scale."""

    def __post_init__(self) -> None:
        _at_least(1, "valid.", self, "every_epochs", "every_steps")


@dataclass
class CheckpointConfig:
    """What is kept to go on from. Each validation is followed by a checkpoint in any case."""

    every_steps: int | None = None
    """Save after this many steps, besides."""
    every_minutes: float | None = 15.0
    """Save at the first step after this time since the last save, besides."""
    keep_last: int = 2
    """Newest checkpoints that are kept; best.pt comes on top."""
    background: bool = True
    """Training goes on while a copy of the state is written; it costs host memory of its size."""

    def __post_init__(self) -> None:
        _at_least(1, "checkpoint.", self, "every_steps", "keep_last")
        minutes = self.every_minutes
        _require(minutes is None or minutes > 0, "checkpoint.every_minutes", minutes, "above 0")


@dataclass
class LogConfig:
    """metrics.jsonl and log.txt are always written; these come on top."""

    every_steps: int = 10
    """Steps between two records."""
    tensorboard: bool = False
    """Event files in RUN/tensorboard."""
    wandb: Literal["disabled", "offline", "online"] = "disabled"
    """online needs `wandb login`; offline writes RUN/wandb, for `wandb sync` later."""
    wandb_project: str = "medclip_oc"
    """The run's name there is that of the run folder."""

    def __post_init__(self) -> None:
        _at_least(1, "log.", self, "every_steps")


@dataclass
class Config:
    """One training run."""

    run: RunConfig = field(default_factory=RunConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    ema: EmaConfig = field(default_factory=EmaConfig)
    valid: ValidConfig = field(default_factory=ValidConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    log: LogConfig = field(default_factory=LogConfig)


@dataclass
class TrainCommand(Config):
    """One training run, or a check before it."""

    resume: str = "auto"
    """auto: go on with the run in the folder, if there is one. never: that run is an error. FILE:
    go on from this checkpoint."""
    resume_allow: list[str] | None = field(default=None, metadata={"option": "resume.allow"})
    """Names of settings that may differ from what they were when the resumed run began."""
    selfcheck: bool = False
    """Compare the cached step with one big batch, on these settings and data, and stop."""
    doctor: bool = False
    """Look for what would make this run fail or be wasted, and stop. Exit code 1: an error."""

    def config(self) -> Config:
        """The settings alone."""
        return Config(**{f.name: getattr(self, f.name) for f in fields(Config)})


@dataclass(kw_only=True)
class MeasureConfig:
    """What is measured of the features of a set of pairs."""

    ks: list[int] = field(default_factory=lambda: [1, 5, 10])
    """The K of R@K and of the concept figures. R@1, R@5 and R@10 are always there."""
    ties: Literal["expected", "optimistic", "pessimistic"] = "expected"
    """How equal scores count: at their expected rank, or as if the right one came first or last."""
    duplicates: Literal["both", "keep", "merge"] = "both"
    """Copies of a right caption or image: keep counts them as wrong; merge takes copies as one, so
    that all that came with any of them is right; both shows both figures."""
    pools: list[str] = field(default_factory=list)
    """Sizes of smaller pools, as in 32,1000,full: figures averaged over random ones. The full pool
    is always measured."""
    pool_draws: int = 100
    """Random pools drawn of each size."""
    slices: list[str] = field(default_factory=list)
    """Concepts, by name or CUI, whose pairs get figures of their own, beside the modalities."""
    relevant: float = 0.5
    """Least overlap of concepts (Jaccard) of a relevant candidate."""
    interval_draws: int = 1000
    """Bootstrap draws behind each interval. 0: no intervals."""
    seed: int = 0
    """Seed of pools and intervals."""

    def __post_init__(self) -> None:
        _require(all(k >= 1 for k in self.ks), "--ks", self.ks, "at least 1 each")
        _require(0 < self.relevant <= 1, "--relevant", self.relevant, "above 0 and at most 1")
        _at_least(1, "--", self, "pool_draws")
        _at_least(0, "--", self, "interval_draws", "seed")
        self.pool_sizes()

    def pool_sizes(self) -> list[int]:
        """The smaller pools, in order.

        Raises:
            InputError: one is no number of pairs.
        """
        sizes = set()
        for word in ",".join(self.pools).split(","):
            size = word.strip()
            if size and size != "full":
                number = size.isdecimal() and int(size) > 0
                _require(number, "--pools", size, "a number of pairs, or full")
                sizes.add(int(size))
        return sorted(sizes)

    def all_ks(self) -> list[int]:
        """The K in order, with those that everyone reports."""
        return sorted({1, 5, 10, *self.ks})


@dataclass
class EvaluateConfig(MeasureConfig):
    """Retrieval over held-out pairs."""

    checkpoint: str | None = None
    """A checkpoint written by training. Needed unless features are read from a file."""
    data: str | list[str] | None = None
    """Shard folder, brace pattern, glob or list of tars. None: the shard folder that the run
    validated on."""
    split: Literal["train", "valid", "test"] | None = None
    """Split of a shard folder. None: test. Tars named one by one are all taken."""
    baseline: str | None = None
    """Measure this too, and the difference: a checkpoint; `start`, the weights that the run began
    from; an open_clip tag of the same architecture (`openai`), or ARCHITECTURE:TAG; or a file of
    features."""
    features_in: str | None = None
    """Take the features from this file (.npz, .parquet) in place of a model."""
    features_out: str | None = None
    """Write the features to this file (.npz, .parquet)."""
    json: str | None = None
    """Write the result here too. A checkpoint in its run folder always gets
    RUN/evaluations/CHECKPOINT-SPLIT.json."""
    batch_size: int = 64
    """Pairs embedded at once on one rank."""
    workers: int = 2
    """Loader processes per rank."""
    decode: Decode = "exact"
    """exact: the pixels of open_clip's own preprocessing. fast: JPEGs at a reduced scale."""
    precision: Precision = "fp32"
    """bf16 (CPU and CUDA), fp16 (CUDA), fp32."""
    device: Device = "auto"
    """auto: CUDA where there is a GPU, else the CPU."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _at_least(1, "--", self, "batch_size")
        _at_least(0, "--", self, "workers")
        named = self.json is None or self.json.endswith(".json")
        _require(named, "--json", self.json, "a file name that ends in .json")
        for name in ("features_in", "features_out"):
            file = getattr(self, name)
            kind = file is None or file.endswith((".npz", ".parquet"))
            _require(kind, f"--{name}", file, "a file name that ends in .npz or .parquet")
        if self.json and self.features_out:  # --json brings an .npz of ranks along
            taken = self.json.removesuffix(".json") + ".npz"
            other = self.features_out != taken
            _require(other, "--features_out", self.features_out, "another name than that of --json")
        if self.checkpoint is None and self.features_in is None:
            raise InputError("--checkpoint: required, unless --features-in names a file")


@dataclass
class ReportConfig:
    """A page on a run."""

    run: str
    """The run folder. It may stand alone, without --run."""
    data: str | list[str] | None = None
    """Where the evaluated pairs are now, for the pictures. None: where they were evaluated."""
    gallery: int = 3
    """Best, median and worst retrievals shown of each direction, so many of each."""

    def __post_init__(self) -> None:
        _at_least(0, "--", self, "gallery")
