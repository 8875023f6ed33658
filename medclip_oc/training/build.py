"""From a configuration to the things a command works with. G pairs over all ranks."""

from dataclasses import dataclass

import torch

from ..config.schema import Config, LossConfig, TrainConfig
from ..contrastive.grad_cache import CachedStep
from ..contrastive.recompute import live_batch_norms
from ..contrastive.soft_targets import Rule
from ..errors import InputError
from ..models import freezing, lora
from ..models.factory import Clip
from ..runtime import distributed


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
    freezing.freeze(clip.towers, config.optim)
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
    distributed.check_precision(precision, device)
    return torch.amp.GradScaler(device.type) if precision == "fp16" else None


def has_live_batch_norm(clip: Clip) -> bool:
    """Whether a layer normalises by the batch it sees in training."""
    return bool(live_batch_norms(clip.towers.train()))


def describe(clip: Clip, config: Config, plan: Plan, world: distributed.World) -> list[str]:
    """The model, where its weights began, the machine and the plan, a line each."""
    freezing = sum(p.numel() for p in clip.towers.parameters() if p.requires_grad)
    given = (config.model.pretrained, config.model.pretrained_image, config.model.pretrained_text)
    weights = " and ".join(source for source in given if source) or "random weights"
    if config.model.arch.startswith(("hf-hub:", "local-dir:")):
        weights = "its own weights"
    lines = [
        f"{config.model.arch} from {weights}, {freezing / 1e6:.1f} M trainable parameters, "
        f"{config.train.precision}, {world.size} process(es) on {world.device.type}",
        *plan.lines(),
    ]
    if plan.chunks * world.size > 1 and has_live_batch_norm(clip):
        lines.append(
            "batch norm is live: each chunk is normalised by itself, so the step equals one big "
            "batch of the same chunks, not one that is normalised whole (model.freeze_batch_norm)"
        )
    return lines
