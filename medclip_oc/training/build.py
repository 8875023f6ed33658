"""From a configuration to what a run works with: pairs, plan, model, step. They are built here and
nowhere else: the training, `--doctor` and `--selfcheck` see the same ones.
"""

import os
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..config.schema import METRICS, Config, TrainConfig
from ..contrastive.grad_cache import CachedStep
from ..contrastive.micro_batched_tower import live_batch_norms
from ..contrastive.soft_targets import Rule
from ..data import loader
from ..data.balance import read_studies
from ..data.loader import TrainingData
from ..data.shards import ShardSet
from ..errors import InputError, WorkError
from ..inference.zeroshot_scores import ZeroshotScores
from ..models import definition, factory, freezing, lora
from ..models.clip import Clip
from ..runtime import devices, distributed
from ..runtime.distributed import World


@dataclass(frozen=True)
class Plan:
    """The shape of a run, derived from the configuration and the number of pairs."""

    pairs: int
    """Of an epoch."""
    global_batch: int
    steps: int
    warmup_steps: int

    @property
    def seen(self) -> int:
        """Pairs of the whole run, each as often as it comes."""
        return self.steps * self.global_batch

    @property
    def steps_per_epoch(self) -> float:
        """Steps in one pass over the pairs."""
        return self.pairs / self.global_batch


def plan(settings: TrainConfig, warmup_steps: int | None, pairs: int, world_size: int) -> Plan:
    """Derive a run's steps, or say (InputError) why the numbers don't go together."""
    batch = settings.global_batch_size
    if over := batch % world_size:
        near = f"{batch - over or world_size} or {batch + world_size - over}"
        problem = f"{batch} can't be shared equally by {world_size} processes"
        raise InputError(f"train.global_batch_size: {problem}; the nearest sizes that can: {near}")
    passes, longest = settings.epochs, settings.max_steps
    if (seen := round(min(1, passes) * pairs)) < batch:
        held = f"{min(1, passes):g} epoch of data.train holds only {seen}"
        raise InputError(f"train.global_batch_size: {batch} pairs per step, but {held}")
    steps = round(passes * pairs) // batch  # 0.07 * 100 is a little over 7
    if longest is not None and longest > steps:
        ending = f"train.epochs: {passes:g} ends after {steps} steps; raise that, or take fewer"
        raise InputError(f"train.max_steps: {longest}, but {ending}")
    steps = longest or steps
    warmup = max(1, steps // 10) if warmup_steps is None else warmup_steps
    if warmup > steps:
        more = f"{warmup} is more than the run's {steps} steps"
        raise InputError(f"optim.warmup_steps: {more}; null takes a tenth")
    return Plan(pairs, batch, steps, warmup)


@dataclass(frozen=True)
class RunData:
    """The pairs of a run, opened."""

    train: TrainingData
    valid: ShardSet | None
    plan: Plan
    zeroshot: ZeroshotScores | None

    @property
    def pairs(self) -> int:
        """Of training, in shards; 0: a stream."""
        return len(self.train.source) if isinstance(self.train.source, ShardSet) else 0

    @property
    def fingerprints(self) -> dict[str, str | None]:
        """Of shards and labels, by setting; None for a stream."""
        valid = None if self.valid is None else self.valid.fingerprint
        found = {"data.train": self.train.source.fingerprint, "data.valid": valid}
        return found | ({"valid.zeroshot": self.zeroshot.fingerprint} if self.zeroshot else {})


def open_data(config: Config, world: World) -> RunData:
    """Find the pairs and work out the steps; what is cheapest to refuse comes first. InputError:
    fp16 or `keep_chunks: auto` without CUDA, shards that can't be opened, numbers that don't fit.
    """
    devices.check_precision(config.train.precision, world.device)
    if config.train.keep_chunks == "auto" and world.device.type != "cuda":
        raise InputError("train.keep_chunks: auto needs CUDA; on the CPU give a number of chunks")
    if not config.checkpoint.keep_last and config.data.valid is None:
        raise InputError("checkpoint.keep_last: 0 keeps best.pt alone, which needs data.valid")
    setting = "data.train"
    try:
        train = loader.open_training(config.data, config.run.seed, world)
        steps = plan(config.train, config.optim.warmup_steps, train.pairs_per_epoch, world.size)
        setting, valid, zeroshot = "data.valid", None, None
        if config.data.valid is not None:
            valid = loader.open_shards(config.data.valid, "valid", world, config.data.caption_key)
            if config.data.unit == "study":
                names = {*train.studies} & {*read_studies(valid, world, needed=False).names} - {""}
                advice = "which flatters it; split by study (make_shards --split-by)"
                told = f"; {len(names):,} of them are in data.valid too, {advice}" if names else ""
                train = replace(train, note=train.note + told)
        if any(vars(config.valid.zeroshot).values()) or config.valid.metric not in METRICS:
            setting = "valid.zeroshot"
            with distributed.errors_together():
                zeroshot = ZeroshotScores(config.valid, valid, world)
    except (InputError, WorkError) as error:
        named = str(error).startswith(("data.", "train.", "optim.", "valid."))
        raise type(error)(str(error) if named else f"{setting}: {error}") from error
    return RunData(train, valid, steps, zeroshot)


def model(
    config: Config, world: World, content: dict[str, Any] | None = None, file: str = ""
) -> Clip:
    """The model on its device, with what doesn't train frozen and any adapters in place: that of a
    checkpoint's content (`file` is its name), or as `model` in the configuration says. InputError:
    the model can't be built, has no such parts, or can't take such adapters.
    """
    if content is None:
        clip = factory.build(config.model, seed=config.run.seed)
    else:
        clip = factory.restore(content, file, config.model)
    freezing.freeze(clip.towers, config.optim)
    if config.lora.rank is not None:
        if config.train.compile:
            raise InputError("train.compile: not with adapters; leave it out, or lora.rank")
        torch.manual_seed(config.run.seed)
        lora.insert(clip.towers, config.lora)
    clip.towers.to(world.device)
    return clip


def cached_step(clip: Clip, config: Config, world: World) -> CachedStep:
    """The step of the settings; InputError: the loss needs a bias that the model lacks."""
    settings, loss = config.train, config.loss
    if loss.name == "siglip":
        clip.towers.train_bias()
    fp16 = settings.precision == "fp16"
    return CachedStep(
        clip.towers,
        loss.name,
        world,
        micro_batch_size=settings.micro_batch_size,
        text_micro_batch_size=settings.text_micro_batch_size,
        keep_chunks=settings.keep_chunks,
        precision=settings.precision,
        scaler=torch.amp.GradScaler(world.device.type) if fp16 else None,
        compiled=settings.compile,
        rule=Rule(loss.positives, loss.concept_strength, loss.label_smoothing),
    )


def describe(clip: Clip, config: Config, plan: Plan, world: World) -> list[str]:
    """The model, where its weights began, the machine and the plan, a line each."""
    model, train = config.model, config.train
    trained = sum(p.numel() for p in clip.towers.parameters() if p.requires_grad)
    towers = model.pretrained_image, model.pretrained_text
    weights = definition.weights_of(model.arch, model.pretrained, *towers)
    share = plan.global_batch // world.size
    rows = (train.micro_batch_size, train.text_micro_batch_size or train.micro_batch_size)
    chunks, text_chunks = (-(-share // size) for size in rows)
    texts = f", {text_chunks} of texts" if text_chunks != chunks else ""
    unused = round(train.epochs * plan.pairs) - plan.steps * plan.global_batch
    unit = "studies" if config.data.unit == "study" else "pairs"
    left = f"; the last {unused:,} {unit} of {train.epochs:g} epochs are left out" if unused else ""
    lines = [
        f"{model.arch} from {weights}, {trained / 1e6:.1f} M trainable parameters, "
        f"{train.precision}, {world.size} process(es) on {world.device.type}",
        f"{plan.pairs:,} training {unit}, {plan.steps:,} steps "
        f"({plan.steps_per_epoch:.1f} per epoch{left})",
        f"each step contrasts {plan.global_batch:,} pairs: {share:,} per rank in {chunks} "
        f"chunk(s){texts}; warm-up {plan.warmup_steps:,} steps "
        f"({plan.warmup_steps / plan.steps:.0%} of the run)",
    ]
    if stretched := clip.description.get("stretched"):
        lines.append(f"model.context_length: {stretched}, linearly (Long-CLIP)")
    tasks = os.environ.get("SLURM_NTASKS", "1")
    if tasks != "1" and "RANK" not in os.environ:
        several = "torchrun makes it one of several (see jobs/multinode.sh)"
        lines.append(f"SLURM_NTASKS is {tasks}, but this is a run of one process: {several}")
    if chunks * world.size > 1 and live_batch_norms(clip.towers.train()):
        line = "batch norm is live: each chunk is normalised by itself (model.freeze_batch_norm)"
        lines.append(line)
    return lines
