"""A training run: one object, built whole, whose loop is `Trainer.run`.

G pairs over all ranks.
"""

import dataclasses
import math
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NoReturn

import torch
from open_clip_train.scheduler import cosine_lr
from torch import nn

from ..config import fields
from ..config.schema import Config
from ..contrastive.grad_cache import CachedStep
from ..contrastive.soft_targets import Labels
from ..data import loader
from ..data.dataset import Batch
from ..errors import InputError, Stopped, WorkError
from ..inference import frozen_features
from ..models import averaging, checkpoint, lora
from ..models.averaging import Ema
from ..runtime import distributed, shutdown
from ..runtime.distributed import World
from ..runtime.progress import Progress, rate
from ..runtime.shutdown import StopRequest
from . import build, checkpointer, resume, validation
from . import optimizer as optim
from .checkpointer import Checkpointer
from .logger import RunLog
from .run_dir import RunFolder
from .validation import Validation

_SHOWN = "loss {loss:.4g}  lr {lr:.1e}  temperature {temperature:.4g}  {speed} pairs/s"


def train(config: Config, source: str = "auto", allow: Sequence[str] = ()) -> None:
    """Run the configured training from where it stands (see resume.start) to its last step."""
    seconds = config.run.timeout_seconds
    with (
        shutdown.stop_requests() as request,
        distributed.process_group(config.run.device, timeout_seconds=seconds) as world,
        ExitStack() as opened,
    ):
        Trainer(config, world, request, opened, source, allow).run()


def take_step(
    step: CachedStep, adamw: torch.optim.AdamW, batch: Batch, clip_norm: float | None, factor: float
) -> tuple[float, float]:
    """A step at `factor` times the peak rates; loss, and norm of the gradient before clipping."""
    for group in adamw.param_groups:
        group["lr"] = factor * group["peak_lr"]
    towers, scaler = step.towers.train(), step.scaler
    loss = step(batch["images"], batch["tokens"], Labels.of(batch)).item()
    if scaler is not None:
        scaler.unscale_(adamw)
    norm = nn.utils.clip_grad_norm_(towers.parameters(), clip_norm or math.inf).item()
    if scaler is not None:  # leaves the step out where scaling overflowed
        scaler.step(adamw)
        scaler.update()
    elif math.isfinite(norm):
        adamw.step()
    towers.clamp_temperature()
    return loss, norm


class Trainer:
    """A training run on this rank: what it works with, and how far it is. When `opened` is closed,
    the last checkpoint and the last records get to the disk. InputError: data, model, settings or
    an earlier run in the folder don't allow the run.
    """

    def __init__(
        self,
        config: Config,
        world: World,
        request: StopRequest,
        opened: ExitStack,
        source: str = "auto",
        allow: Sequence[str] = (),
    ) -> None:
        self.config, self.world, self.stop_request = config, world, request
        self.folder = RunFolder(Path(config.run.folder))
        self.data = build.open_data(config, world)
        self.plan = self.data.plan
        origin = resume.start(source, allow, config, self.folder, self.data, world, opened)
        first = validation.measures_start(config)
        self.progress = checkpointer.Progress.of(origin.content, validated=not first)
        self.clip = build.model(config, world, origin.content, str(origin.file))
        if origin.content is None:
            self.progress.start_size = averaging.size(lora.plain_state(self.clip.towers))
        with distributed.errors_together():
            if world.main:
                origin.lines.append(checkpointer.room(config, self.clip, self.data))
        self.cached_step = build.cached_step(self.clip, config, world)
        self.optimizer = optim.adamw(self.clip.towers, config.optim)
        # linear warm-up, then a cosine to zero (SGDR, Loshchilov & Hutter 2017, eq. 5, no restart)
        self.schedule = cosine_lr(self.optimizer, 1.0, self.plan.warmup_steps, self.plan.steps)
        self.ema = None if config.ema.decay is None else Ema(self.clip.towers, config.ema.decay)
        if world.main:
            fields.save_yaml(config, self.folder.config)
        self.log = RunLog(self.folder.path, config, self.progress, opened, main=world.main)
        say = self.log.message
        plan = build.describe(self.clip, config, self.plan, world)
        for line in (*plan, *optim.describe(self.optimizer, self.clip.towers), *origin.lines):
            say(line)
        self.checkpointer = Checkpointer(self.folder, config.checkpoint, say, main=world.main)
        opened.callback(self.checkpointer.close)
        stop, train, data = self.asked_to_stop, self.data.train, self.data
        self.validation = Validation(config, self.clip, data, world, self.log, self.folder, stop)
        if data.valid is None and (config.valid.patience or config.wise.alphas is not None):
            say("data.valid is null: valid.patience and wise.alphas have no effect")
        elif config.wise.alphas is not None:
            count = len(validation.alphas(config))
            why = "" if count else " (step 0 isn't validated)"
            say(f"wise.alphas: validations after the last step: {count}{why}")
        steps, start = self.plan.steps, self.progress.step * self.plan.global_batch
        self.batches = loader.training_batches(
            train, self.clip, config, world, say, steps=steps, start=start, stop=stop
        )
        parts = {
            "optimizer": checkpointer.OptimizerState(self.optimizer),
            "data": self.batches,
            "scaler": self.cached_step.scaler,
            "adapters": None if config.lora.rank is None else lora.adapters(self.clip.towers),
            "ema": self.ema,
        }
        self.parts = {name: part for name, part in parts.items() if part is not None}
        # dropout differs between ranks; of open_clip_train's random_seed this is all that is
        # drawn from, and its module imports wandb, tensorboard and torchvision
        torch.manual_seed(config.run.seed + world.rank)
        checkpointer.restore(origin, self.parts, seed=config.run.seed, world=world)

    # ------------------------------------------------------------------------------- the loop

    def run(self) -> None:
        """The steps that are left, and the end. Stopped: a signal came, and the state was saved.
        WorkError: loss or weights are no longer finite, or a checkpoint can't be written.
        """
        try:
            self.take_steps()
            self.checkpointer.wait()
            self.log.message(f"done: {self.validation.conclude(self.progress, self.plan.steps)}")
        except Stopped:
            self.stop()

    def take_steps(self) -> None:
        """A step, its record, validation, saving; until the last one, or patience ends."""
        progress, last = self.progress, self.plan.steps
        if not progress.validated:  # step 0, or a signal came in the middle of it
            self.validate()
        batches = () if self.out_of_patience() else self.batches
        if batches and self.batches.steps:
            about, seen = (self.clip, self.config), self.plan.seen
            frozen_features.once(self.cached_step, *about, self.batches, seen, self.asked_to_stop)
        with Progress(
            last, "steps", "training", progress.step, shown=self.world.main, lines=False
        ) as bar:
            counted_from, since = progress.step, time.perf_counter()
            for step, batch in enumerate(batches, progress.step + 1):
                progress.step = step
                values = self.optimizer_step(batch)
                bar.update()

                if step % self.config.log.every_steps == 0 or step in (1, last):
                    pairs = (step - counted_from) * self.plan.global_batch
                    values["pairs_per_second"] = pairs / (time.perf_counter() - since)
                    self.log.record(step, values)
                    shown = _SHOWN.format(**values, speed=rate(values["pairs_per_second"]))
                    self.log.message(f"step {step}/{last}  {shown}")
                    counted_from, since = step, time.perf_counter()

                if validation.due(self.config.valid, self.plan, step):
                    self.validate()
                    counted_from, since = step, time.perf_counter()

                asked_to_stop, save_due = self.agree()
                if asked_to_stop and step < last:
                    raise Stopped
                if save_due and self.checkpointer.step < step:
                    self.save()
                if self.out_of_patience():
                    break

    def out_of_patience(self) -> bool:
        """Whether so many validations brought no gain that the schedule's rest is not run."""
        patience = self.config.valid.patience
        return patience is not None and self.progress.stale >= patience

    def asked_to_stop(self) -> bool:
        """Whether a signal came, to this rank."""
        return self.stop_request.signal is not None

    def optimizer_step(self, batch: Batch) -> dict[str, float]:
        """One step over one global batch; returns what is logged of it."""
        settings = self.config.optim
        factor = self.schedule(self.progress.step - 1)  # of one rate for all groups
        loss, norm = take_step(self.cached_step, self.optimizer, batch, settings.clip_norm, factor)
        for line in self.cached_step.notices():
            self.log.message(line)
        self.require_finite("loss", loss)
        if self.cached_step.scaler is None:
            self.require_finite("norm of the gradient", norm)
        if self.ema is not None:
            self.ema.update()
        known = {"loss": loss, "lr": settings.lr * factor, "grad_norm": norm}
        return known | {"temperature": 1 / self.clip.towers.inverse_temperature().item()}

    def agree(self) -> tuple[bool, bool]:
        """Whether any rank is asked to stop, and whether a state is due; the same on every rank.
        WorkError: the state before could not be written, or the folder is no longer this run's; on
        every rank.
        """
        failure = self.checkpointer.error() or self.folder.lost()
        due_here = self.checkpointer.due(self.progress.step)
        flags = [int(self.asked_to_stop()), int(due_here), int(failure is not None)]
        asked, due, failed = distributed.all_reduce_sum(flags, self.world.device)
        if failed:
            with distributed.errors_together():
                if failure is not None:
                    raise failure
        return asked > 0, due > 0

    def validate(self) -> None:
        """Measure retrieval, and save; best.pt too, if it's the best yet; the average as ema.pt."""
        progress, step = self.progress, self.progress.step
        progress.validated = False
        self.checkpointer.wait()  # loader processes are not to be forked while it is written
        try:
            scores = self.validation.measure(step)
            if self.ema is not None and step:  # before the first step it is the weights
                with self.ema.in_place():
                    average = self.content(self.validation.measure(step, "valid_ema"))
                    if self.world.main:
                        checkpoint.save(self.folder.average, average)
        except (InputError, WorkError) as error:
            if step:
                self.save()  # none of the training is lost
                self.checkpointer.wait()
            raise type(error)(f"step {step}: data.valid: {error}") from error
        self.save(best=progress.take(scores, self.config.valid.metric))

    # ------------------------------------------------------------------------ saving, stopping

    def save(self, *, best: bool = False) -> None:
        """Have the run's state written, and best.pt where it is the best."""
        since = time.perf_counter()
        total = math.fsum(p.detach().sum().item() for p in self.clip.towers.parameters())
        self.require_finite("sum of the weights", total)
        known = self.data.fingerprints
        training = checkpointer.capture(self.parts, self.progress, known, self.world)
        self.log.flush()
        content = self.content(self.progress.scores) | {"training": training}
        self.checkpointer.save(content, best=best, since=since)

    def content(self, scores: dict[str, float]) -> dict[str, Any]:
        """What a checkpoint holds of the model as it is: the plain one, any adapters merged."""
        position = self.progress.step * self.plan.global_batch
        return {
            "state_dict": lora.plain_state(self.clip.towers),
            "model": self.clip.description,
            "config": dataclasses.asdict(self.config),
            "step": self.progress.step,
            "epoch": position / self.plan.pairs,
            "position": position,
            "metrics": scores,
            "versions": checkpoint.versions(),
        }

    def stop(self) -> NoReturn:
        """Save, leave the marker in the run folder, and end; WorkError: no states are kept."""
        step = self.progress.step
        if self.checkpointer.step < step:
            self.save()
        self.checkpointer.wait()
        signal = self.stop_request.signal or "a signal on another rank"
        words = f"{signal}: stopped after step {step} of {self.plan.steps}"
        if not self.config.checkpoint.keep_last:
            raise WorkError(f"{words}; nothing to resume from is kept (checkpoint.keep_last is 0)")
        words += ", and saved"
        if self.world.main:
            self.folder.mark(words)
        self.log.message(words)
        distributed.barrier()
        raise Stopped(f"{words}; the same command resumes it")

    def require_finite(self, name: str, value: float) -> None:
        """Stop a run that is lost: a WorkError with the step, where the value isn't finite."""
        if math.isfinite(value):
            return
        states = self.folder.states()
        kept = f"{states[0]} is the newest saved state" if states else "nothing was saved yet"
        raise WorkError(
            f"step {self.progress.step}: the {name} is {value}; {kept}. "
            "A lower optim.lr, or train.precision bf16 or fp32, usually helps"
        )
