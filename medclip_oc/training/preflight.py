"""Is this run sound, before it takes days? `python -m medclip_oc.train --config FILE --doctor`.

Looks at the data, the settings, the weights, the machine and what the run will write, on every
rank, and trains nothing. Each finding is one line with its remedy: an `error` means that the run
would fail, or be wasted, and the exit code is 1; a `warning` that it may. A sound run has none.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ..config.schema import Config
from ..errors import InputError, WorkError
from . import preflight_checks
from .preflight_checks import Finding, Patient

if TYPE_CHECKING:
    from ..runtime.distributed import World
    from .build import Plan

# usual peak learning rates: by what trains, lowest and highest
USUAL_LR: dict[str, tuple[float, float]] = {
    "adapters (lora.rank)": (2e-5, 2e-3),
    "one tower or some layers of a pretrained model": (1e-6, 5e-4),
    "a pretrained model in full": (1e-6, 1e-4),
    "two towers that never met": (1e-5, 1e-3),
    "a model from scratch": (5e-5, 5e-3),
}


def main(config: Config) -> int:
    """Examine, print every finding once, and return 1 if there is an error, else 0."""
    from ..runtime import distributed

    with distributed.process_group(config.run.device) as world:
        own = [f"{level}: {text}" for level, text in examine(config, world)]
        every = distributed.all_gather_texts(own, world.device)
    found = list(dict.fromkeys(line for lines in every for line in lines))
    errors = sum(line.startswith("error") for line in found)
    if world.main:
        for line in sorted(found, key=lambda line: line.startswith("warning")):
            print(line)
        if not found:
            print(f"doctor: nothing found on {world.size} process(es)")
    return 1 if errors else 0


def examine(config: Config, world: "World") -> Iterator[Finding]:
    """Every check in turn; what one of them needs and could not be opened is passed over."""
    import torch

    patient = Patient(config, world)
    checks = (
        ranks,
        opened,
        preflight_checks.shards,
        preflight_checks.pairs,
        preflight_checks.captions,
        rates,
        preflight_checks.loss,
    )
    for check in (*checks, preflight_checks.memory_use, preflight_checks.speed, disk, wandb_mode):
        try:
            yield from check(patient)
        except (InputError, WorkError) as error:
            yield Finding("error", str(error))
        except torch.OutOfMemoryError:
            yield Finding(
                "error", "train.micro_batch_size: the GPU's memory doesn't do for it; take less"
            )


def ranks(patient: Patient) -> Iterator[Finding]:
    """Whether all ranks hear each other."""
    from ..runtime import distributed

    world = patient.world
    answered = distributed.all_reduce_sum([1], world.device)[0]
    if answered != world.size:
        yield Finding("error", f"{answered} of {world.size} ranks add up; check the network")


def opened(patient: Patient) -> Iterator[Finding]:
    """Open the data, work out the steps and build the model, as the run would."""
    from ..data import loader
    from ..models import factory
    from ..runtime import distributed
    from . import build

    config, world = patient.config, patient.world
    train = config.train
    try:
        distributed.check_precision(train.precision, world.device)
    except InputError as error:
        yield Finding("error", str(error))
    told = ""
    try:
        patient.data = loader.open_training(config.data, config.run.seed, world)
    except (InputError, WorkError) as error:
        told = str(error)
        yield Finding("error", f"data.train: {told}; pack it again, or correct data.train")
    if config.data.valid is not None:
        try:
            loader.open_shards(config.data.valid, "valid", world)
        except (InputError, WorkError) as error:
            if str(error) != told:  # of one folder, once is enough
                yield Finding("error", f"data.valid: {error}; pack it again, or correct data.valid")
    if patient.data is not None:
        count = patient.data.pairs_per_epoch
        try:
            patient.plan = build.plan(train, config.optim.warmup_steps, count, world.size)
            yield from _schedule(patient.plan)
        except InputError as error:
            yield Finding("error", f"{error}; change it, or train.epochs")
    try:
        clip = factory.build(config.model, seed=config.run.seed)
        build.tune(clip, config)
        build.cached_step(clip, config, world)
        clip.towers.to(world.device)
        patient.clip = clip
    except (InputError, WorkError) as error:
        yield Finding("error", str(error))


def _schedule(plan: "Plan") -> Iterator[Finding]:
    share = plan.warmup_steps / plan.steps
    if share > 0.5 and plan.steps > 10:
        yield Finding(
            "warning",
            f"optim.warmup_steps: {plan.warmup_steps} of {plan.steps} steps ({share:.0%}) warm up; "
            "null takes a tenth",
        )


def rates(patient: Patient) -> Iterator[Finding]:
    """The learning rate against what is usual for this way of training."""
    method = method_of(patient.config)
    low, high = USUAL_LR[method]
    optim = patient.config.optim
    named = [("lr", optim.lr)]
    named += [(f"{t}_lr", v) for t in ("image", "text") if (v := getattr(optim, f"{t}_lr"))]
    for name, lr in named:
        if not low <= lr <= high:
            hurt = "it forgets what it knew, or diverges" if lr > high else "it hardly learns"
            yield Finding(
                "error" if lr >= 5 * high else "warning",
                f"optim.{name}: {lr:g} is not usual for {method}: {hurt}; take {low:g} to {high:g}",
            )


def method_of(config: Config) -> str:
    """The key of USUAL_LR."""
    factory, optim = config.model, config.optim
    full_names = ("hf-hub:", "local-dir:")
    if config.lora.rank is not None:
        return "adapters (lora.rank)"
    if factory.pretrained is None and not factory.arch.startswith(full_names):
        towers = factory.pretrained_image or factory.pretrained_text
        return "two towers that never met" if towers else "a model from scratch"
    some = optim.freeze or optim.image_last_blocks is not None or optim.text_last_blocks is not None
    return (
        "one tower or some layers of a pretrained model" if some else "a pretrained model in full"
    )


def disk(patient: Patient) -> Iterator[Finding]:
    """Room for the run's checkpoints."""
    if patient.clip is None or not patient.world.main:
        return
    folder = Path(patient.config.run.folder).absolute()
    existing = next(path for path in (folder, *folder.parents) if path.is_dir())
    if not os.access(existing, os.W_OK):
        yield Finding("error", f"run.folder: {existing} can't be written; choose another folder")
        return
    parameters = list(patient.clip.towers.parameters())
    whole = sum(p.numel() * p.element_size() for p in parameters)
    trained = sum(p.numel() * p.element_size() for p in parameters if p.requires_grad)
    copies = 2 + (patient.config.ema.decay is not None)  # best.pt, ema.pt, and one being written
    needed = copies * whole + 2 * (whole + preflight_checks.STATE_COPIES * trained)
    free = shutil.disk_usage(existing).free
    if free < needed:
        yield Finding(
            "error",
            f"run.folder: {existing} has {free / 1e9:.3g} GB free, and the checkpoints need about "
            f"{needed / 1e9:.3g} GB; make room, or choose another folder",
        )


def wandb_mode(patient: Patient) -> Iterator[Finding]:
    """Whether wandb can be reached, where records are to go there."""
    from . import logger

    if patient.world.main and patient.config.log.wandb == "online":
        reason = logger.wandb_trouble()
        if reason:
            yield Finding(
                "error",
                f"log.wandb: online does not work here: {reason}; run `wandb login`, or take "
                "offline and `wandb sync` later",
            )
