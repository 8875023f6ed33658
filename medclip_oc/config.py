"""Every setting, one dataclass per owner. Defaults < YAML (--config) < options (--optim.lr).

Words that mean one thing everywhere: `global_batch_size` is the number of pairs contrasted per
optimizer step over all ranks, `micro_batch_size` the number embedded at once on one rank. `None`
means off or "derived". A duration carries its unit in its name.

No torch here: `--help` reads this module. A field's help is the docstring under it.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

Precision = Literal["fp32", "bf16", "fp16"]
Device = Literal["auto", "cpu", "cuda"]
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
    """Replace what an earlier run left in the folder; without it, that run is an error."""


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


@dataclass
class AugmentConfig:
    """Gentle by intent: a caption says left and right, so nothing is ever flipped."""

    scale: tuple[float, float] = (0.8, 1.0)
    """Area of the random crop, as a share of the image. [1, 1]: no crop."""
    rotation_degrees: float = 10.0
    """Largest rotation, either way."""
    brightness: float = 0.1
    """Largest relative change of brightness."""
    contrast: float = 0.1
    """Largest relative change of contrast."""


@dataclass
class DataConfig:
    """Where the pairs come from. A value is a shard folder (made by tools/make_shards.py, whose
    split of that name is taken), or a brace pattern, a glob, or a list of tar files.
    """

    train: str | list[str] = "shards/rocov2"
    """Pairs to train on."""
    valid: str | list[str] | None = "shards/rocov2"
    """Pairs to choose the best checkpoint with. None: no validation."""
    workers: int = 4
    """Loader processes per rank. 0: load in the training process."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)


@dataclass
class TrainConfig:
    """The optimizer step and its budget."""

    global_batch_size: int = 1024
    """Pairs contrasted with each other per optimizer step, over all ranks."""
    micro_batch_size: int = 128
    """Pairs embedded at once on one rank: sets the memory, never the result."""
    epochs: int = 10
    """Passes over the training pairs."""
    precision: Precision = "bf16"
    """bf16 (CPU and CUDA), fp16 with loss scaling (CUDA), fp32."""


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


@dataclass
class ValidConfig:
    """Validation, and the metric that names `best.pt`."""

    every_epochs: int | None = 1
    """Validate after this many epochs. The end of the run is always validated."""
    every_steps: int | None = None
    """Validate after this many steps, besides."""
    metric: RecallName = "mean_recall"
    """Higher is better. mean_recall: the mean of R@1, R@5 and R@10 of both directions."""


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


@dataclass
class Config:
    """One training run."""

    run: RunConfig = field(default_factory=RunConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    valid: ValidConfig = field(default_factory=ValidConfig)
    log: LogConfig = field(default_factory=LogConfig)


@dataclass
class EvaluateConfig:
    """Retrieval over held-out pairs."""

    checkpoint: str
    """A checkpoint written by training."""
    data: str | list[str] | None = None
    """Shard folder, brace pattern, glob or list of tars. None: the one the run validated on."""
    split: Literal["train", "valid", "test"] = "test"
    """Split of the shard folder."""
    json: str | None = None
    """Write the result here too (always: RUN/evaluations/CHECKPOINT-SPLIT.json)."""
    batch_size: int = 64
    """Pairs embedded at once on one rank."""
    workers: int = 2
    """Loader processes per rank."""
    precision: Precision = "fp32"
    """bf16 (CPU and CUDA), fp16 (CUDA), fp32."""
    device: Device = "auto"
    """auto: CUDA where there is a GPU, else the CPU."""


@dataclass
class ZeroshotConfig:
    """Rank captions for images."""

    checkpoint: str
    """A checkpoint written by training."""
    images: list[str]
    """Image files."""
    texts: list[str]
    """Candidate captions."""
    top: int | None = None
    """Print only the K best of each image."""
    format: Literal["table", "json", "jsonl", "csv"] = "table"
    """Rows have the fields image, rank, text, cosine, probability, margin."""
    batch_size: int = 64
    """Images or captions embedded at once."""
    precision: Precision = "fp32"
    """bf16 (CPU and CUDA), fp16 (CUDA), fp32."""
    device: Device = "auto"
    """auto: CUDA where there is a GPU, else the CPU."""
