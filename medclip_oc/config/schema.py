"""Every setting, one dataclass per owner. Defaults < YAML (--config) < options (--optim.lr).

Words that mean one thing everywhere: `global_batch_size` is the number of pairs contrasted per
optimizer step over all ranks, `micro_batch_size` the number embedded at once on one rank. `null`
(None in Python) means off or "derived". A duration carries its unit in its name.

No torch here: `--help` reads this module. A field's help is the docstring under it.
"""

from dataclasses import dataclass, field, fields
from typing import Annotated, Any, Literal

from . import checks
from .checks import Bound, Count, Natural, Positive, Settings
from .vocabulary import DIRECTIONS

METRICS = ["mean_recall"]
METRICS += [f"{way}/{score}" for way in DIRECTIONS for score in ("R@1", "R@5", "R@10", "mrr")]
"""What validation may choose the best checkpoint by; beside the figures of valid.zeroshot."""
_NAMED = f"one of {', '.join(METRICS)}; or of valid.zeroshot, as zeroshot/auroc"
Metric = Annotated[str, Bound(_NAMED, lambda v: v in METRICS or v.startswith("zeroshot/"))]


@dataclass
class RunConfig(Settings, section="run."):
    """Where the run lives and what makes it repeatable."""

    folder: checks.Name = "runs/default"
    """Run folder: config, logs and checkpoints go here."""
    seed: Natural = 0
    """Seed of weights, sample order, augmentation and dropout."""
    device: checks.Device = "auto"
    """auto: CUDA where there is a GPU, else the CPU."""
    overwrite: bool = False
    """Replace what an earlier run left in the folder, instead of resuming it."""
    timeout_seconds: Positive = 600.0
    """Longest wait for another rank, which then hangs or is gone: the run ends."""


@dataclass
class ModelConfig(Settings, section="model."):
    """Which open_clip model, from which weights."""

    arch: checks.Name = "ViT-B-16-quickgelu"
    """open_clip architecture, or `hf-hub:ORG/NAME`, or `local-dir:FOLDER`."""
    pretrained: str | None = None
    """open_clip weight tag (`openai`), or a checkpoint file. null: random weights."""
    definition: dict[str, Any] | None = None
    """The full open_clip config (embed_dim, vision_cfg, text_cfg), registered under `arch`."""
    preprocess: dict[str, Any] | None = None
    """mean, std, interpolation, resize_mode, where they differ from the architecture's."""
    pretrained_image: str | None = None
    """Weights of the image tower alone: a file, or `package:NAME/FILE` inside a Python package."""
    pretrained_text: str | None = None
    """Weights of a Hugging Face text tower: a folder, a hub name, or `package:NAME/FOLDER`."""
    image_size: Count | None = None
    """Side of the input in pixels, where it differs from the architecture's."""
    context_length: Annotated[int, Bound("1 to 4096", lambda n: 1 <= n <= 4096)] | None = None
    """Tokens of a caption, where more than the architecture's; positions after 20 are stretched."""
    patch_dropout: checks.ShareBelowOne | None = None
    """Share of a ViT's patches that a training step leaves out. null: the architecture's."""
    freeze_batch_norm: bool = True
    """Batch-norm statistics stay as they are; the cached step is then exact."""
    grad_checkpointing: bool = False
    """Recompute activations block by block: less memory, about a third more time."""


@dataclass
class AugmentConfig(Settings, section="data.augment."):
    """Gentle by intent: captions say left and right, and colour means something in radiology."""

    scale: tuple[float, float] = (0.8, 1.0)
    """Area of the random crop, as a share of the largest crop of the input's shape."""
    rotation_degrees: Annotated[float, Bound("in [0, 180]", lambda v: 0 <= v <= 180)] = 10.0
    """Largest rotation, either way."""
    brightness: checks.ShareBelowOne = 0.1
    """Largest relative change of brightness."""
    contrast: checks.ShareBelowOne = 0.1
    """Largest relative change of contrast."""
    flip: bool = False
    """Mirror half of the images: not for radiology."""
    hue: Annotated[float, Bound("in [0, 0.5]", lambda value: 0 <= value <= 0.5)] = 0.0
    """Largest change of hue, up to 0.5: leave it at 0 for radiology."""

    def __post_init__(self) -> None:
        super().__post_init__()
        low, high = self.scale
        self.require(0 < low <= high <= 1, "scale", "low and high in (0, 1]")


@dataclass
class DataConfig(Settings, section="data."):
    """Where the pairs come from. A value is a shard folder (made by tools/make_shards.py, whose
    split of that name is taken), or a brace pattern, a glob, or a list of tar files; several are
    joined by `::`. Shards behind a URL or a `pipe:` command are streamed.
    """

    train: str | list[str] = "shards/rocov2"
    """Pairs to train on."""
    valid: str | list[str] | None = "shards/rocov2"
    """Pairs to choose the best checkpoint with. null: no validation."""
    caption_key: str = "caption"
    """Ending, or key of KEY.json, that has the captions; this default comes after KEY.txt."""
    unit: checks.Unit = "image"
    """study: an epoch has each `study` (of KEY.json) once, by one of its images and captions."""
    workers: Natural = 4
    """Loader processes per rank. 0: load in the training process."""
    weights: list[Positive] | None = None
    """How often each set joined by `::` is drawn from, relative to the others. null: by size."""
    balance: checks.Name | None = None
    """Field of KEY.json (`modality`), or concept (`C0040405`), whose groups come more evenly."""
    balance_strength: checks.Share = 0.5
    """A group of n pairs is drawn by n ** (1 - this). 0: as often as it comes. 1: groups alike."""
    samples_per_epoch: Count | None = None
    """Pairs that count as an epoch. null: as many as there are; a stream needs a number."""
    decode: checks.Decode = "fast"
    """fast: JPEGs at the smallest scale that covers the crop. exact: in full."""
    long_captions: checks.LongCaptions = "truncate"
    """Longer than the context: cut, or given as a run of whole sentences, another each epoch."""
    max_bad_share: checks.ShareBelowOne = 0.01
    """Unreadable pairs are replaced by others, up to this share; past it the run stops."""
    cache_folder: str | None = None
    """Keep streamed shards here, and read them from here the next time. In any case a web server
    that is silent for 60 s is given up; to open a shard, after 5 tries."""
    stream_lanes: Count = 8
    """Streamed shards read at once, over all ranks: each batch mixes pairs of all of them."""
    stream_window: Count = 512
    """Pairs of a streamed shard that are held in memory and shuffled at once."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)


@dataclass
class TrainConfig(Settings, section="train."):
    """The optimizer step and its budget."""

    global_batch_size: Annotated[int, Bound("at least 2", lambda value: value >= 2)] = 1024
    """Pairs contrasted with each other per optimizer step, over all ranks."""
    micro_batch_size: Count = 128
    """Pairs embedded at once on one rank: sets the memory, not the result."""
    epochs: int | Positive = 10
    """Passes over the training pairs; a fraction ends within one."""
    max_steps: Count | None = None
    """End after this many optimizer steps, before the epochs do. null: with the epochs."""
    precision: checks.Precision = "bf16"
    """bf16 (CPU and CUDA), fp16 with loss scaling (CUDA), fp32."""
    text_micro_batch_size: Count | None = None
    """Texts embedded at once on one rank. null: as many as images, micro_batch_size."""
    keep_chunks: Natural | Literal["auto"] = 0
    """Chunks whose graph is kept in place of a second forward. auto (CUDA): all that fit."""
    frozen_features: bool = True
    """Embed once, into RUN/features, for a frozen tower whose input is the same in every epoch."""
    compile: bool = False
    """Run the towers through torch.compile: slow first steps, then faster ones."""


@dataclass
class LossConfig(Settings, section="loss."):
    """What a step minimises over all its pairs."""

    name: Literal["clip", "siglip"] = "clip"
    """clip: softmax both ways (InfoNCE). siglip: yes or no; needs a model with a bias."""
    positives: Literal["pairs", "captions", "concepts"] = "pairs"
    """Right answers: the own caption; copies' too; or, in part, all that share UMLS concepts."""
    concept_strength: checks.Share = 0.3
    """Share of the answer that positives: concepts gives to the overlap of concepts."""
    label_smoothing: checks.ShareBelowOne = 0.0
    """Share of the answer that is spread evenly over the batch; for clip."""

    def __post_init__(self) -> None:
        super().__post_init__()
        usable = self.name == "clip" or not self.label_smoothing
        self.require(usable, "label_smoothing", "0, as loss.name: siglip needs")


@dataclass
class OptimConfig(Settings, section="optim."):
    """AdamW with linear warm-up and a cosine to zero."""

    lr: Positive = 1e-5
    """Peak learning rate."""
    betas: tuple[checks.ShareBelowOne, checks.ShareBelowOne] = (0.9, 0.98)
    """Decay of AdamW's two running averages."""
    eps: Positive = 1e-6
    """Added to AdamW's denominator."""
    weight_decay: checks.NotNegative = 0.1
    """On matrices only: none on gains, biases and the temperature."""
    warmup_steps: Natural | None = None
    """Steps of linear warm-up. null: a tenth of the run."""
    clip_norm: Positive | None = 1.0
    """Largest norm of the gradient over all parameters. null: no clipping."""
    image_lr: Positive | None = None
    """Peak learning rate of the image tower. null: lr."""
    text_lr: Positive | None = None
    """Peak learning rate of the text tower. null: lr."""
    image_layer_decay: checks.ShareAboveZero = 1.0
    """Each layer's rate is this times that of the layer after it. 1: all layers alike."""
    text_layer_decay: checks.ShareAboveZero = 1.0
    """The same in the text tower."""
    freeze: checks.Pattern | list[checks.Pattern] | None = None
    """What doesn't train: image, text, all_but_projections, or patterns of parameters' names."""
    image_last_blocks: Natural | None = None
    """Train only so many of the image tower's last blocks, and what follows them. null: all."""
    text_last_blocks: Natural | None = None
    """The same in the text tower."""


@dataclass
class LoraConfig(Settings, section="lora."):
    """Low-rank adapters in place of training the towers' own weights (LoRA)."""

    rank: Count | None = None
    """r: each adapted matrix changes by one of this rank. null: no adapters."""
    alpha: Positive = 16.0
    """The change is alpha / r times the product of the two small matrices."""
    towers: Literal["both", "image", "text"] = "both"
    """Which towers get adapters; the other one is frozen."""


@dataclass
class EmaConfig(Settings, section="ema."):
    """A running average of the weights, evaluated and saved beside them."""

    decay: Annotated[float, Bound("in (0, 1)", lambda value: 0 < value < 1)] | None = None
    """After each step: average = decay * average + (1 - decay) * weights. null: no average."""


@dataclass
class ZeroshotConfig(Settings, section="valid.zeroshot."):
    """Zero-shot classification at each validation, as `medclip_oc.zeroshot --prompts` does it."""

    prompts: str | None = None
    """A set of `zeroshot --list-prompts`, or a FILE.yaml. null: no classification."""
    labels: str | None = None
    """Table of what is true of each image."""
    images: list[str] = field(default_factory=list)
    """Files, folders, shard folders (split valid), tars. None given: the pairs of data.valid."""


@dataclass
class ValidConfig(Settings, section="valid."):
    """Validation, and the metric that names `best.pt`."""

    every_epochs: Count | None = 1
    """Validate after this many epochs. The end of the run is always validated."""
    every_steps: Count | None = None
    """Validate after this many steps, besides."""
    at_start: bool | None = None
    """Validate before the first step too. null: where the model starts from weights."""
    patience: Count | None = None
    """End the training after this many validations in a row without gain. null: never."""
    metric: Metric = METRICS[0]
    """mean_recall (of R@1, R@5, R@10, both directions), or one as text_to_image/R@1 or .../mrr; or
    of valid.zeroshot, as zeroshot/auroc or zeroshot/auroc/Edema."""
    decode: checks.Decode = "exact"
    """exact: the pixels of open_clip's own preprocessing. fast: JPEGs at a reduced scale."""
    zeroshot: ZeroshotConfig = field(default_factory=ZeroshotConfig)


@dataclass
class WiseConfig(Settings, section="wise."):
    """After the last step: weights between the start and best.pt (WiSE-FT)."""

    alphas: Literal["auto"] | list[checks.Share] | None = None
    """Validate at these, from start (0) to best.pt (1); the best is wise.pt. auto: quarters."""


@dataclass
class CheckpointConfig(Settings, section="checkpoint."):
    """What is kept to resume from. Each validation is followed by a checkpoint in any case."""

    every_steps: Count | None = None
    """Save after this many steps, besides."""
    every_minutes: Positive | None = 15.0
    """Save at the first step after this time since the last save, besides."""
    keep_last: Natural = 2
    """Newest checkpoints that are kept; best.pt comes on top. 0: it alone, no run resumes."""
    background: bool = True
    """Training continues while a copy of the state is written; it costs host memory of its size."""


@dataclass
class LogConfig(Settings, section="log."):
    """metrics.jsonl and log.txt are always written; these come on top."""

    every_steps: Count = 10
    """Steps between two records."""
    tensorboard: bool = False
    """Event files in RUN/tensorboard."""
    wandb: bool | Literal["disabled", "offline", "online"] = "disabled"
    """online (or true) needs `wandb login`; offline writes RUN/wandb, for `wandb sync` later."""
    wandb_project: str = "medclip_oc"
    """The run's name there is that of the run folder."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.wandb, bool):
            self.wandb = "online" if self.wandb else "disabled"


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
    wise: WiseConfig = field(default_factory=WiseConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    log: LogConfig = field(default_factory=LogConfig)


@dataclass
class TrainCommand(Config):
    """Fine-tune an open_clip model on image-caption shards."""

    resume: str = "auto"
    """The run in the folder, if there is one (auto); this checkpoint (FILE); or nothing (never)."""
    resume_allow: list[str] | None = field(default=None, metadata={"option": "resume.allow"})
    """Names of settings that may differ from what they were when the resumed run began."""
    selfcheck: bool = False
    """Compare the cached step with one big batch, on these settings and data, and stop."""
    doctor: bool = False
    """Look for what would make this run fail or be wasted, and stop. Exit code 1: an error."""
    lr_range: bool = False
    """As --doctor, and if all is well try learning rates for some steps each, and suggest one."""

    def config(self) -> Config:
        """The settings alone."""
        return Config(**{f.name: getattr(self, f.name) for f in fields(Config)})
