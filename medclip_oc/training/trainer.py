"""A training run in progress: measured, saved and stopped, between its steps (train.py)."""

import dataclasses
import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from ..config.schema import Config
from ..errors import InputError, Stopped, WorkError

if TYPE_CHECKING:
    import torch

    from ..contrastive.grad_cache import CachedStep
    from ..data.bad_samples import TrainingBatches
    from ..data.dataset import Pairs
    from ..models.ema import Ema
    from ..models.factory import Clip
    from ..runtime.distributed import World
    from ..runtime.shutdown import Notice
    from .build import Plan
    from .checkpointer import Saver
    from .logger import RunLog
    from .resume import Origin
    from .run_dir import RunFolder
    from .run_state import Part, Progress


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
    batches: "TrainingBatches"
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
    from ..models import checkpoint

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
    from ..evaluation import metrics, retrieval
    from ..reporting import results

    if run.valid is None:
        return {}
    number = run.progress.step
    record = retrieval.evaluate(
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
        + results.brief(record)
    )
    return scores


def save_or_stop(run: Run) -> None:
    """After a step: save if it is time to, and stop if a signal asks for it; all ranks alike."""
    from ..runtime import distributed

    failure = run.saver.error()
    flags = [run.notice.given(), run.saver.due(run.progress.step), failure is not None]
    asked, due, failed = distributed.all_reduce_sum([int(flag) for flag in flags], run.world.device)
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
    from ..runtime import distributed

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
    from ..models import checkpoint, lora

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
