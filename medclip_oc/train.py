"""Fine-tune: `torchrun -m medclip_oc.train --config FILE`, or `python -m` for one process."""

import dataclasses
import math
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from . import command
from .config import Config, TrainCommand
from .errors import InputError, Stopped, WorkError

if TYPE_CHECKING:
    import torch

    from .data import Batch, Pairs
    from .distributed import World
    from .ema import Ema
    from .grad_cache import CachedStep
    from .model import Clip
    from .resume import Origin, Resume
    from .run_folder import RunFolder
    from .run_log import RunLog
    from .run_state import Part, Progress
    from .saver import Saver
    from .setup import Plan
    from .signals import Notice
    from .watch import Watch


@dataclass
class Run:
    """A training run in progress."""

    config: Config
    world: "World"
    folder: "RunFolder"
    plan: "Plan"
    clip: "Clip"
    step: "CachedStep"
    optimizer: "torch.optim.Optimizer"
    batches: "Watch"
    valid: "Pairs | None"
    log: "RunLog"
    saver: "Saver"
    notice: "Notice"
    parts: "dict[str, Part]"
    """What a checkpoint holds besides the weights, by name."""
    fingerprints: "dict[str, str | None]"
    """Of the shards, by setting."""
    origin: "Origin | None"
    """What it starts from, until that is restored: it may be large."""
    progress: "Progress"
    scores: dict[str, float]
    """Of the last validation."""
    ema: "Ema | None" = None


def train(config: Config, wanted: "Resume | None" = None) -> None:
    """Run the configured training from where it stands to its last step.

    Args:
        config: of the run.
        wanted: what to go on from; None: from what the run folder holds.

    Raises:
        Stopped: a signal came, and the state was saved.
    """
    from . import distributed, run_state, signals

    with (
        signals.noticed() as notice,
        distributed.started(config.run.device, timeout_seconds=config.run.timeout_seconds) as world,
    ):
        run = prepare(config, wanted, world, notice)
        with closing(run.log), closing(run.saver):
            run_state.restore(run.origin, run.parts, seed=config.run.seed, world=world)
            run.origin = None
            go(run)


def go(run: Run) -> None:
    """The steps that are left, and what comes between them."""
    from . import run_log

    done, total = run.progress.step, run.plan.steps
    with run.log.progress(total, done) as progress:
        rate = run_log.Throughput(run.config.train.global_batch_size)
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


def work(settings: TrainCommand) -> int | None:
    """What the command line asks for: to train, or to check the step first."""
    if settings.selfcheck:
        from . import selfcheck

        return selfcheck.work(settings.config())
    if settings.doctor:
        from . import doctor

        return doctor.work(settings.config())
    from .resume import Resume

    train(settings.config(), Resume(settings.resume, tuple(settings.resume_allow or ())))
    return None


def prepare(config: Config, wanted: "Resume | None", world: "World", notice: "Notice") -> Run:
    """Open the data, build the model, start the logs; the cheapest check comes first."""
    import torch

    from . import feed, lora, model, optim, resume, run_state, setup
    from .ema import Ema
    from .run_folder import RunFolder
    from .saver import Saver

    setup.check_precision(config.train.precision, world.device)
    data = feed.open_training(config.data, config.run.seed, world)
    plan = setup.plan(config.train, config.optim.warmup_steps, data.pairs_per_epoch, world.size)
    where = config.data.valid
    valid = None if where is None else feed.open_shards(where, "valid", world)
    folder = RunFolder(Path(config.run.folder))
    prints = {"data.train": data.fingerprint, "data.valid": valid.fingerprint if valid else None}
    origin = resume.start(wanted or resume.Resume(), config, folder, prints, plan.steps, world)
    if origin.content is None:
        clip = model.build(config.model, seed=config.run.seed)
    else:
        clip = model.restore(origin.content, str(origin.file), config.model)
    setup.tune(clip, config)
    clip.towers.to(world.device)
    step = setup.cached_step(clip, config, world)
    optimizer = optim.adamw(clip.towers, config.optim)
    about = optim.describe(optimizer, clip.towers)
    log = start_log(config, folder, origin, world)
    for line in (*setup.describe(clip, config, plan, world), *about, *origin.lines):
        log.message(line)
    batches = feed.training_batches(
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
        valid=None if valid is None else feed.pairs(valid, clip, decode=config.valid.decode),
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
    from . import settings
    from .run_log import RunLog

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
        settings.save_yaml(config, folder.config)
    return log


def optimizer_step(run: Run, batch: "Batch", number: int) -> dict[str, float]:
    """One step (1-based `number`) over one global batch; returns what is logged of it."""
    from . import optim
    from .positives import Labels
    from .schedule import warmup_cosine

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


def check_finite(what: str, value: float, step: int, folder: "RunFolder") -> None:
    """Stop a run that is lost.

    Raises:
        WorkError: the value is infinite or not a number; names the step.
    """
    if math.isfinite(value):
        return
    states = folder.states()
    kept = f"{states[0]} is the newest saved state" if states else "nothing was saved yet"
    raise WorkError(
        f"step {step}: the {what} is {value}; {kept}. "
        "A lower optim.lr, or train.precision bf16 or fp32, usually helps"
    )


def validation_due(run: Run, number: int) -> bool:
    """After the last step, and as often as the configuration says."""
    settings = run.config.valid
    steps = settings.every_steps is not None and number % settings.every_steps == 0
    epoch = run.plan.steps_per_epoch * (settings.every_epochs or float("inf"))
    return number == run.plan.steps or steps or number // epoch > (number - 1) // epoch


def validate(run: Run) -> None:
    """Measure retrieval on the validation pairs, and save; best.pt too, if it's the best so far.

    So with the running average of the weights, if there is one: ema.pt.
    """
    from . import checkpoint

    run.saver.wait()  # loader processes are not to be forked while it is written
    try:
        scores = measured(run, "valid")
        if run.ema is not None:
            with run.ema.in_place():
                average = plain(run, measured(run, "valid_ema"))
                if run.world.main:
                    checkpoint.save(run.folder.average, average)
    except (InputError, WorkError) as error:
        run.progress.validated = False
        save(run)  # none of the training is lost
        run.saver.wait()
        raise type(error)(f"step {run.progress.step}: data.valid: {error}") from error
    except Stopped:
        run.progress.validated = False
        stop(run)
    run.scores = scores
    run.progress.validated = True
    score = run.scores.get(run.config.valid.metric, float("-inf"))
    better = score > run.progress.best
    run.progress.best = max(run.progress.best, score)
    save(run, best=better)


def measured(run: Run, name: str) -> dict[str, float]:
    """Retrieval with the weights as they are, logged under `name`; {} without validation pairs."""
    from . import evaluate, metrics

    if run.valid is None:
        return {}
    number = run.progress.step
    record = evaluate.evaluate(
        run.clip,
        run.valid,
        run.world,
        batch_size=run.config.train.micro_batch_size,
        workers=run.config.data.workers,
        precision=run.config.train.precision,
        stop=run.notice.given,
    ).record
    scores = metrics.flat(record)
    run.log.record(number, {f"{name}/{key}": value for key, value in scores.items()})
    average = " of the average" if name == "valid_ema" else ""
    run.log.message(
        f"step {number}: validation{average} over {record['pool']:,} pairs, "
        + evaluate.brief(record)
    )
    return scores


def save_or_stop(run: Run) -> None:
    """After a step: save if it is time to, and stop if a signal asks for it; all ranks alike."""
    from . import distributed

    failure = run.saver.error()
    flags = [run.notice.given(), run.saver.due(run.progress.step), failure is not None]
    asked, due, failed = distributed.add_up([int(flag) for flag in flags], run.world.device)
    if failed:
        distributed.raise_together(failure, run.world.device)
    if asked and run.progress.step < run.plan.steps:
        stop(run)
    if due and run.saver.step < run.progress.step:
        save(run)
    for line in run.saver.lines():
        run.log.message(line)


def stop(run: Run) -> NoReturn:
    """Save, leave word in the run folder, and end."""
    from . import distributed

    step = run.progress.step
    if run.saver.step < step:
        save(run)
    run.saver.wait()
    signal = run.notice.name or "a signal on another rank"
    words = f"{signal}: stopped after step {step} of {run.plan.steps}, and saved"
    if run.world.main:
        run.folder.mark(words)
    run.log.message(words)
    distributed.barrier()
    raise Stopped(f"{words}; the same command goes on from there")


def save(run: Run, *, best: bool = False) -> None:
    """Have the run's state written, and best.pt where it is the best."""
    from . import run_state

    since = time.perf_counter()
    weights = math.fsum(p.detach().sum().item() for p in run.clip.towers.parameters())
    check_finite("sum of the weights", weights, run.progress.step, run.folder)
    training = run_state.capture(run.parts, run.progress, run.fingerprints, run.world)
    run.log.store()
    run.saver.save(plain(run, run.scores) | {"training": training}, best=best, since=since)


def plain(run: Run, scores: dict[str, float]) -> dict[str, Any]:
    """What a checkpoint holds of the model as it is: the plain one, any adapters merged."""
    from . import checkpoint, lora

    number = run.progress.step
    position = number * run.config.train.global_batch_size
    return {
        "state_dict": lora.plain_state(run.clip.towers),
        "model": run.clip.description,
        "config": dataclasses.asdict(run.config),
        "step": number,
        "epoch": position / run.plan.pairs,
        "position": position,
        "metrics": scores,
        "versions": checkpoint.versions(),
    }


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
    command.main(
        work,
        TrainCommand,
        prog="python -m medclip_oc.train",
        description="Fine-tune an open_clip model on image-caption shards.",
    )
