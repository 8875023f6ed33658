"""From a configuration to the things a command works with. G pairs over all ranks."""

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from . import checkpoint, distributed, lora, model, trainable
from .config import Config, LossConfig, TrainConfig
from .errors import InputError
from .grad_cache import CachedStep
from .model import Clip
from .positives import Rule
from .replay import live_batch_norms

_OWN = ("config.yaml", "environment.txt", "log.txt", "metrics.jsonl", "wandb_id.txt")
_OWN_FOLDERS = ("checkpoints", "evaluations", "tensorboard", "wandb")


@dataclass(frozen=True)
class Plan:
    """The shape of a run, derived from the configuration and the number of pairs."""

    pairs: int
    global_batch: int
    pairs_per_rank: int
    chunks: int
    text_chunks: int
    steps: int
    steps_per_epoch: float
    warmup_steps: int
    unused_pairs: int

    def lines(self) -> list[str]:
        """What a user wants to know before the first step."""
        share = self.warmup_steps / self.steps
        texts = f", {self.text_chunks} of texts" if self.text_chunks != self.chunks else ""
        left = f"; the last {self.unused_pairs:,} pairs of the last epoch are left out"
        return [
            f"{self.pairs:,} training pairs, {self.steps:,} steps "
            f"({self.steps_per_epoch:.1f} per epoch{left if self.unused_pairs else ''})",
            f"each step contrasts {self.global_batch:,} pairs: {self.pairs_per_rank:,} per rank in "
            f"{self.chunks} chunk(s){texts}; warm-up {self.warmup_steps:,} steps "
            f"({share:.0%} of the run)",
        ]


def plan(settings: TrainConfig, warmup_steps: int | None, pairs: int, world_size: int) -> Plan:
    """Derive a run's steps, or say why the numbers don't go together.

    Raises:
        InputError: a global batch that the ranks can't share equally, or fewer pairs than one
            global batch, or a warm-up longer than the run.
    """
    batch, micro = settings.global_batch_size, settings.micro_batch_size
    text_micro = settings.text_micro_batch_size or micro
    if batch % world_size:
        raise InputError(
            f"train.global_batch_size: {batch} can't be shared equally by {world_size} processes; "
            f"the nearest sizes that can: {batch - batch % world_size or world_size} or "
            f"{batch + world_size - batch % world_size}"
        )
    if pairs < batch:
        raise InputError(
            f"train.global_batch_size: {batch} pairs per step, but data.train holds only {pairs}"
        )
    steps = settings.epochs * pairs // batch
    warmup = max(1, steps // 10) if warmup_steps is None else warmup_steps
    if warmup > steps:
        raise InputError(f"optim.warmup_steps: {warmup} is more than the run's {steps} steps")
    share = batch // world_size
    return Plan(
        pairs=pairs,
        global_batch=batch,
        pairs_per_rank=share,
        chunks=-(-share // micro),
        text_chunks=-(-share // text_micro),
        steps=steps,
        steps_per_epoch=pairs / batch,
        warmup_steps=warmup,
        unused_pairs=settings.epochs * pairs - steps * batch,
    )


def tune(clip: Clip, config: Config) -> None:
    """Freeze what is not to train, and put adapters into what is left, if asked for.

    Raises:
        InputError: the model has no such parts, or can't take such adapters.
    """
    trainable.freeze(clip.towers, config.optim)
    if config.lora.rank is None:
        return
    if config.train.compile:
        raise InputError("train.compile: not with adapters (lora.rank)")
    torch.manual_seed(config.run.seed)
    lora.insert(clip.towers, config.lora)


def cached_step(clip: Clip, config: Config, world: distributed.World) -> CachedStep:
    """The step that the settings ask for, with loss scaling for fp16.

    Raises:
        InputError: the loss needs a bias that the model lacks, or fp16 without CUDA.
    """
    settings = config.train
    if config.loss.name == "siglip":
        clip.towers.train_bias()
    return CachedStep(
        clip.towers,
        config.loss.name,
        world,
        micro_batch_size=settings.micro_batch_size,
        text_micro_batch_size=settings.text_micro_batch_size,
        keep_chunks=settings.keep_chunks,
        precision=settings.precision,
        scaler=gradient_scaler(settings.precision, world.device),
        compiled=settings.compile,
        rule=rule(config.loss),
    )


def rule(settings: LossConfig) -> Rule:
    """What is right for an image, as the settings say."""
    return Rule(settings.positives, settings.concept_strength, settings.label_smoothing)


def gradient_scaler(precision: str, device: torch.device) -> torch.amp.GradScaler | None:
    """Loss scaling for fp16; None for the other precisions."""
    check_precision(precision, device)
    return torch.amp.GradScaler(device.type) if precision == "fp16" else None


def check_precision(precision: str, device: torch.device) -> None:
    """Refuse fp16 on the CPU, which is slow at it and loses range."""
    if precision == "fp16" and device.type != "cuda":
        raise InputError("precision: fp16 needs CUDA; on the CPU use bf16 or fp32")


def trained_clip(path: str, world: distributed.World) -> tuple[Clip, dict[str, Any]]:
    """A checkpoint's model on this rank's device, and the configuration it was trained with."""
    content = checkpoint.load(path)
    clip = model.restore(content, path)
    clip.towers.to(world.device).eval()
    return clip, content["config"]


def has_live_batch_norm(clip: Clip) -> bool:
    """Whether a layer normalises by the batch it sees in training."""
    return bool(live_batch_norms(clip.towers.train()))


def create_run_folder(config: Config, world: distributed.World) -> Path:
    """Make RUN/ and RUN/checkpoints/, on the main rank; the others wait.

    Raises:
        InputError: an earlier run is there and run.overwrite is off, or the place can't be written.
    """
    folder = Path(config.run.folder)
    if world.main:
        try:
            _clear(folder, config.run.overwrite)
            (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
            (folder / "environment.txt").write_text(environment())
        except OSError as error:
            raise InputError(f"run.folder: {folder} can't be written ({error.strerror})") from error
    distributed.barrier()
    return folder


def environment() -> str:
    """The commit of the working tree and the versions that decide a result, one a line."""
    lines = [f"{name} {version}" for name, version in checkpoint.versions().items()]
    root = Path(__file__).parent
    git = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        commit = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
        lines.insert(0, f"commit {commit}")
    except (OSError, subprocess.CalledProcessError):
        pass  # installed from a package, or no git here
    return "\n".join(lines) + "\n"


def _clear(folder: Path, overwrite: bool) -> None:
    """Remove an earlier run's own files, and nothing else."""
    earlier = folder / "metrics.jsonl"
    if not earlier.exists() or not earlier.stat().st_size:  # it ended before its first step
        return
    if not overwrite:
        raise InputError(
            f"run.folder: {folder} holds an earlier run; choose another folder, or replace that "
            "run with --run.overwrite true"
        )
    for name in _OWN:
        (folder / name).unlink(missing_ok=True)
    for name in _OWN_FOLDERS:
        shutil.rmtree(folder / name, ignore_errors=True)


def describe(clip: Clip, config: Config, world: distributed.World) -> str:
    """One line on the model, where its weights come from, and the machine."""
    trainable = sum(p.numel() for p in clip.towers.parameters() if p.requires_grad)
    given = (config.model.pretrained, config.model.pretrained_image, config.model.pretrained_text)
    weights = " and ".join(source for source in given if source) or "random weights"
    if config.model.arch.startswith(("hf-hub:", "local-dir:")):
        weights = "its own weights"
    return (
        f"{config.model.arch} from {weights}, {trainable / 1e6:.1f} M trainable parameters, "
        f"{config.train.precision}, {world.size} process(es) on {world.device.type}"
    )
