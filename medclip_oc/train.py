"""Fine-tune: `torchrun -m medclip_oc.train --config FILE`, or `python -m` for one process."""

import dataclasses
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from .config.schema import Config, TrainCommand
from .runtime import command
from .training.trainer import Run, check_finite, save_or_stop, validate, validation_due

if TYPE_CHECKING:
    from .data.dataset import Batch
    from .runtime.distributed import World
    from .runtime.shutdown import Notice
    from .training.logger import RunLog
    from .training.resume import Origin, Resume
    from .training.run_dir import RunFolder
    from .training.run_state import Part


def train(config: Config, wanted: "Resume | None" = None) -> None:
    """Run the configured training from where it stands to its last step.

    Args:
        config: of the run.
        wanted: what to go on from; None: from what the run folder holds.

    Raises:
        Stopped: a signal came, and the state was saved.
    """
    from .runtime import distributed, shutdown
    from .training import run_state

    with (
        shutdown.noticed() as notice,
        distributed.process_group(
            config.run.device, timeout_seconds=config.run.timeout_seconds
        ) as world,
    ):
        run = prepare(config, wanted, world, notice)
        with closing(run.log), closing(run.saver):
            run_state.restore(run.origin, run.parts, seed=config.run.seed, world=world)
            run.origin = None
            train_loop(run)


def train_loop(run: Run) -> None:
    """The steps that are left, and what comes between them."""
    from .training import logger

    done, total = run.progress.step, run.plan.steps
    with run.log.progress(total, done) as progress:
        rate = logger.Throughput(run.config.train.global_batch_size)
        if not run.progress.validated:  # a signal came in the middle of it
            validate(run)
        for number, batch in enumerate(run.batches, done + 1):
            values = optimizer_step(run, batch, number)
            run.progress.step = number
            rate.count()
            if number % run.config.log.every_steps == 0 or number in (1, total):
                run.log.record(number, values | {"pairs_per_second": rate.take()})
            progress.update(values | {"pairs_per_second": rate.latest})
            if validation_due(run, number):
                validate(run)
                rate.restart()
            save_or_stop(run)
        conclude(run)


def main(settings: TrainCommand) -> int | None:
    """What the command line asks for: to train, or to check the step first."""
    if settings.selfcheck:
        from .training import gradcheck

        return gradcheck.main(settings.config())
    if settings.doctor:
        from .training import preflight

        return preflight.main(settings.config())
    from .training.resume import Resume

    train(settings.config(), Resume(settings.resume, tuple(settings.resume_allow or ())))
    return None


def prepare(config: Config, wanted: "Resume | None", world: "World", notice: "Notice") -> Run:
    """Open the data, build the model, start the logs; the cheapest check comes first."""
    import torch

    from .data import loader
    from .models import factory, lora
    from .models.ema import Ema
    from .runtime import distributed
    from .training import build, resume, run_state
    from .training import optimizer as optim
    from .training.checkpointer import Saver
    from .training.run_dir import RunFolder

    distributed.check_precision(config.train.precision, world.device)
    data = loader.open_training(config.data, config.run.seed, world)
    plan = build.plan(config.train, config.optim.warmup_steps, data.pairs_per_epoch, world.size)
    where = config.data.valid
    valid = None if where is None else loader.open_shards(where, "valid", world)
    folder = RunFolder(Path(config.run.folder))
    prints = {"data.train": data.fingerprint, "data.valid": valid.fingerprint if valid else None}
    origin = resume.start(wanted or resume.Resume(), config, folder, prints, plan.steps, world)
    if origin.content is None:
        clip = factory.build(config.model, seed=config.run.seed)
    else:
        clip = factory.restore(origin.content, str(origin.file), config.model)
    build.tune(clip, config)
    clip.towers.to(world.device)
    step = build.cached_step(clip, config, world)
    optimizer = optim.adamw(clip.towers, config.optim)
    about = optim.describe(optimizer, clip.towers)
    log = start_log(config, folder, origin, world)
    for line in (*build.describe(clip, config, plan, world), *about, *origin.lines):
        log.message(line)
    batches = loader.training_batches(
        data, clip, config, world, log.message, steps=plan.steps, start=origin.position
    )
    parts: dict[str, Part] = {"optimizer": run_state.Optimizer(optimizer), "data": batches}
    if step.scaler is not None:
        parts["scaler"] = step.scaler
    if config.lora.rank is not None:
        parts["adapters"] = lora.Adapters(clip.towers)
    ema = None if config.ema.decay is None else Ema(clip.towers, config.ema.decay)
    if ema is not None:
        parts["ema"] = ema
    torch.manual_seed(config.run.seed + world.rank)  # dropout differs between ranks
    return Run(
        config=config,
        world=world,
        folder=folder,
        plan=plan,
        clip=clip,
        step=step,
        optimizer=optimizer,
        batches=batches,
        valid=None
        if valid is None
        else loader.evaluation_pairs(valid, clip, decode=config.valid.decode),
        log=log,
        saver=Saver(folder, config.checkpoint, main=world.main),
        notice=notice,
        parts=parts,
        fingerprints=prints,
        origin=origin,
        progress=run_state.Progress(origin.step, origin.best, origin.validated),
        scores=origin.scores,
        ema=ema,
    )


def start_log(config: Config, folder: "RunFolder", origin: "Origin", world: "World") -> "RunLog":
    """The log of the run, and its configuration beside it."""
    from .config import fields
    from .training.logger import RunLog

    log = RunLog(
        folder.path,
        config.log,
        config=dataclasses.asdict(config),
        name=folder.path.name,
        main=world.main,
        done=origin.step,
        validated=origin.validated,
    )
    if world.main:
        fields.save_yaml(config, folder.config)
    return log


def optimizer_step(run: Run, batch: "Batch", number: int) -> dict[str, float]:
    """One step (1-based `number`) over one global batch; returns what is logged of it."""
    from .contrastive.soft_targets import Labels
    from .training import optimizer as optim
    from .training.schedule import warmup_cosine

    settings, towers = run.config.optim, run.clip.towers
    towers.train()
    factor = warmup_cosine(number - 1, run.plan.warmup_steps, run.plan.steps)
    optim.set_lr(run.optimizer, factor)
    loss = run.step(batch["images"], batch["tokens"], Labels.of(batch)).item()
    for line in run.step.notices():
        run.log.message(line)
    check_finite("loss", loss, number, run.folder)
    scaler = run.step.scaler
    if scaler is not None:
        scaler.unscale_(run.optimizer)
    norm = optim.clip(towers, settings.clip_norm)
    if scaler is None:
        check_finite("norm of the gradient", norm, number, run.folder)
        run.optimizer.step()
    else:  # leaves the step out where scaling overflowed
        scaler.step(run.optimizer)
        scaler.update()
    towers.clamp_temperature()
    if run.ema is not None:
        run.ema.update()
    temperature = 1 / towers.inverse_temperature().item()
    return {"loss": loss, "lr": settings.lr * factor, "temperature": temperature, "grad_norm": norm}


def conclude(run: Run) -> None:
    """Have everything on the disk, and say where the results are."""
    run.saver.wait()
    for line in run.saver.lines():
        run.log.message(line)
    if run.valid is None:
        run.log.message(f"done: {run.folder.last} (no validation data, so no best.pt)")
    else:
        name, best = run.config.valid.metric, run.progress.best
        run.log.message(f"done: best valid/{name} {best:.4f} in {run.folder.best}")


if __name__ == "__main__":
    command.run(
        main,
        TrainCommand,
        prog="python -m medclip_oc.train",
        description="Fine-tune an open_clip model on image-caption shards.",
    )
