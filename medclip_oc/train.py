"""Fine-tune: `torchrun -m medclip_oc.train --config FILE`, or `python -m` for one process."""

import dataclasses
import math
import time
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from . import command
from .config import Config, TrainCommand
from .errors import WorkError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import torch

    from .data import Batch, Pairs
    from .distributed import World
    from .ema import Ema
    from .grad_cache import CachedStep
    from .model import Clip
    from .run_log import RunLog
    from .setup import Plan


@dataclass
class Run:
    """A training run in progress."""

    config: Config
    world: "World"
    folder: "Path"
    plan: "Plan"
    clip: "Clip"
    step: "CachedStep"
    optimizer: "torch.optim.Optimizer"
    batches: "Iterator[Batch]"
    valid: "Pairs | None"
    log: "RunLog"
    ema: "Ema | None" = None
    best: float = float("-inf")


def train(config: Config) -> None:
    """Run the configured training from its first step to its last."""
    from . import distributed

    with distributed.started(config.run.device) as world:
        run = prepare(config, world)
        with closing(run.log), run.log.progress(run.plan.steps) as progress:
            rate = Throughput(config.train.global_batch_size)
            for number, batch in enumerate(run.batches, 1):
                values = optimizer_step(run, batch, number)
                rate.count()
                if number % config.log.every_steps == 0 or number in (1, run.plan.steps):
                    run.log.record(number, values | {"pairs_per_second": rate.take()})
                progress.update(values | {"pairs_per_second": rate.latest})
                if validation_due(run, number):
                    validate_and_save(run, number)
                    validate_and_save_average(run, number)
                    rate.restart()
            conclude(run)


def work(settings: TrainCommand) -> int | None:
    """What the command line asks for: to train, or to check the step first."""
    if settings.selfcheck:
        from . import selfcheck

        return selfcheck.work(settings.config())
    if settings.doctor:
        from . import doctor

        return doctor.work(settings.config())
    train(settings.config())
    return None


def prepare(config: Config, world: "World") -> Run:
    """Open the data, build the model, start the logs; the cheapest check comes first."""
    import torch

    from . import feed, model, optim, settings, setup
    from .ema import Ema
    from .run_log import RunLog

    setup.check_precision(config.train.precision, world.device)
    data = feed.open_training(config.data, config.run.seed, world)
    plan = setup.plan(config.train, config.optim.warmup_steps, data.pairs_per_epoch, world.size)
    where = config.data.valid
    valid = None if where is None else feed.open_shards(where, "valid", world)
    clip = model.build(config.model, seed=config.run.seed)
    setup.tune(clip, config)
    clip.towers.to(world.device)
    step = setup.cached_step(clip, config, world)
    folder = setup.create_run_folder(config, world)
    resolved = dataclasses.asdict(config)
    log = RunLog(folder, config.log, config=resolved, name=folder.name, main=world.main)
    if world.main:
        settings.save_yaml(config, folder / "config.yaml")
    optimizer = optim.adamw(clip.towers, config.optim)
    about = optim.describe(optimizer, clip.towers)
    for line in (setup.describe(clip, config, world), *about, *plan.lines()):
        log.message(line)
    if plan.chunks * world.size > 1 and setup.has_live_batch_norm(clip):
        log.message(
            "batch norm is live: each chunk is normalised by itself, so the step equals one big "
            "batch of the same chunks, not one that is normalised whole (model.freeze_batch_norm)"
        )
    torch.manual_seed(config.run.seed + world.rank)  # dropout differs between ranks
    return Run(
        config=config,
        world=world,
        folder=folder,
        plan=plan,
        clip=clip,
        step=step,
        optimizer=optimizer,
        batches=feed.training_batches(data, clip, config, world, log.message, steps=plan.steps),
        valid=None if valid is None else feed.pairs(valid, clip, decode=config.valid.decode),
        log=log,
        ema=None if config.ema.decay is None else Ema(clip.towers, config.ema.decay),
    )


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


def check_finite(what: str, value: float, step: int, folder: "Path") -> None:
    """Stop a run that is lost.

    Raises:
        WorkError: the value is infinite or not a number; names the step.
    """
    if math.isfinite(value):
        return
    last = folder / "checkpoints" / "last.pt"
    kept = f"{last} is the newest saved state" if last.exists() else "nothing was saved yet"
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


def validate_and_save(run: Run, number: int) -> None:
    """Measure retrieval on the validation pairs; write last.pt, and best.pt if it is the best."""
    from . import checkpoint

    weights = math.fsum(p.detach().sum().item() for p in run.clip.towers.parameters())
    check_finite("sum of the weights", weights, number, run.folder)
    scores = validate(run, number, "valid")
    better = scores.get(run.config.valid.metric, float("-inf")) > run.best
    run.best = scores[run.config.valid.metric] if better else run.best
    if not run.world.main:
        return
    for name in ("last", "best") if better else ("last",):
        checkpoint.save(
            run.folder / "checkpoints" / f"{name}.pt", checkpoint_content(run, number, scores)
        )


def validate_and_save_average(run: Run, number: int) -> None:
    """The same for the running average of the weights, if there is one: ema.pt."""
    from . import checkpoint

    if run.ema is None:
        return
    with run.ema.in_place():
        scores = validate(run, number, "valid_ema")
        if run.world.main:
            file = run.folder / "checkpoints" / "ema.pt"
            checkpoint.save(file, checkpoint_content(run, number, scores))


def validate(run: Run, number: int, name: str) -> dict[str, float]:
    """Measure retrieval with the weights as they are; log it under `name`, and return it."""
    from . import metrics
    from .evaluate import evaluate

    if run.valid is None:
        return {}
    try:
        record = evaluate(
            run.clip,
            run.valid,
            run.world,
            batch_size=run.config.train.micro_batch_size,
            workers=run.config.data.workers,
            precision=run.config.train.precision,
        ).record
    except WorkError as error:
        raise WorkError(f"step {number}: {error}") from error
    scores = metrics.flat(record)
    run.log.record(number, {f"{name}/{key}": value for key, value in scores.items()})
    average = " of the average" if name == "valid_ema" else ""
    run.log.message(
        f"step {number}: validation{average} over {record['pool']:,} pairs, " + brief(record)
    )
    return scores


def checkpoint_content(run: Run, number: int, scores: dict[str, float]) -> dict[str, object]:
    """What a checkpoint holds: always the plain model, adapters merged."""
    from . import checkpoint, lora

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


def brief(record: dict[str, object]) -> str:
    """Both directions' recalls in a few words, in per cent."""
    parts = []
    for title, way in (("image to text", "image_to_text"), ("text to image", "text_to_image")):
        scores = record[way]
        assert isinstance(scores, dict)
        recalls = "/".join(f"{100 * scores[f'R@{k}']:.1f}" for k in (1, 5, 10))
        parts.append(f"{title} R@1/5/10 {recalls} %")
    return ", ".join(parts)


def conclude(run: Run) -> None:
    """Say where the results are."""
    folder = run.folder / "checkpoints"
    if run.valid is None:
        run.log.message(f"done: {folder}/last.pt (no validation data, so no best.pt)")
    else:
        name = run.config.valid.metric
        run.log.message(f"done: best valid/{name} {run.best:.4f} in {folder}/best.pt")


class Throughput:
    """Pairs per second of wall time, over all ranks, without validation."""

    def __init__(self, pairs_per_step: int) -> None:
        self.pairs_per_step = pairs_per_step
        self.latest = 0.0
        self.restart()

    def restart(self) -> None:
        """Begin a new stretch."""
        self.steps, self.since = 0, time.perf_counter()

    def count(self) -> None:
        """One step was done."""
        self.steps += 1
        self.latest = self.steps * self.pairs_per_step / (time.perf_counter() - self.since)

    def take(self) -> float:
        """Rate of the stretch, which ends here."""
        rate = self.latest
        self.restart()
        return rate


if __name__ == "__main__":
    command.main(
        work,
        TrainCommand,
        prog="python -m medclip_oc.train",
        description="Fine-tune an open_clip model on image-caption shards.",
    )
