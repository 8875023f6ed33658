"""A run's state, and how it gets to the disk and back.

Everything that decides how a run continues, as a checkpoint's `training` holds it:

    parts         name -> state of whatever has `state_dict` and `load_state_dict`
    random        where each rank's generators stand, in rank order
    best          highest validation metric so far
    validated     whether the validation that is due after this step was done
    stale         validations in a row without gain
    start_size    of the weights that the run began with, to know them again
    fingerprints  of the shards that data.train and data.valid stand for; None for a stream

The step stands beside it in the checkpoint, and with it the place in the schedule and in the data:
both are functions of the step. The weights are the checkpoint's `state_dict`; a run whose weights
are not those of the plain model (adapters, a running average) adds a part that holds its own, which
is loaded after them. Images and captions draw from generators of (seed, epoch, index), so of these
there is nothing to save.
"""

import math
import os
import shutil
import time
from collections.abc import Callable, Mapping
from concurrent import futures
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from ..config.schema import CheckpointConfig, Config
from ..contrastive.micro_batched_tower import RandomState
from ..errors import InputError, WorkError
from ..inference import frozen_features
from ..models import checkpoint
from ..models.clip import Clip
from ..runtime import distributed
from ..runtime.distributed import World
from .build import RunData
from .resume import Origin
from .run_dir import RunFolder

_OTHER_RANKS = 1_000_003
"""Steps between seeds where a rank's own state isn't known; so that no rank begins again."""


class OptimizerState:
    """An optimizer's running averages. Its rates and decays are those of the configuration."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer

    def state_dict(self) -> dict[str, Any]:
        """The averages of each parameter that had a gradient, by its number; how many have some;
        and the shape of each.
        """
        shapes = [list(p.shape) for group in self.optimizer.param_groups for p in group["params"]]
        state = self.optimizer.state_dict()["state"]
        return {"state": state, "averaged": len(state), "shapes": shapes}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the averages over; ValueError: they are of other parameters."""
        shapes = self.state_dict()["shapes"]
        if state["shapes"] != shapes:
            held = len(state["shapes"])
            raise ValueError(f"{len(shapes)} parameters train, but it holds {held}, or others")
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state["state"], "param_groups": groups})


@dataclass
class Progress:
    """How far a run is, besides its parts: the steps done, and what stands above."""

    step: int = 0
    best: float = float("-inf")
    validated: bool = True
    scores: dict[str, float] = field(default_factory=dict)
    """Of the last validation."""
    stale: int = 0
    start_size: float | None = None
    """See `validation.size`, of the start."""

    @classmethod
    def of(cls, content: Mapping[str, Any] | None, *, validated: bool = True) -> "Progress":
        """That of a checkpoint; None: of a run that begins, and may have step 0 `validated`."""
        if content is None:
            return cls(validated=validated)
        training, scores = content["training"], content["metrics"]
        since = training.get("stale", 0), training.get("start_size")  # older states have neither
        return cls(content["step"], training["best"], training["validated"], scores, *since)

    def take(self, scores: dict[str, float], metric: str) -> bool:
        """Note what a validation gave; returns whether it is the best so far."""
        score, before = scores.get(metric, -math.inf), self.best
        self.scores, self.validated, self.best = scores, True, max(score, before)
        self.stale = 0 if score > before or not scores else self.stale + 1
        return score > before


def capture(
    parts: Mapping[str, Any], progress: Progress, fingerprints: dict[str, Any], world: World
) -> dict[str, Any]:
    """What `restore` needs; every rank must call it, between two steps."""
    # the CPU's, and that of the rank's own GPU
    random = distributed.all_gather_objects(tuple(RandomState.now(world.device)))
    return {
        "parts": {name: part.state_dict() for name, part in parts.items()},
        "random": [{"cpu": cpu, "cuda": cuda} for cpu, cuda in random],
        "best": progress.best,
        "validated": progress.validated,
        "stale": progress.stale,
        "start_size": progress.start_size,
        "fingerprints": fingerprints,
    }


def restore(origin: Origin, parts: Mapping[str, Any], *, seed: int, world: World) -> None:
    """Put the parts and the generators where they stood when a state was saved, if there is one. A
    part that the state doesn't know begins anew; a rank that the saved run didn't have draws from
    the run's seed and the step. InputError: the state doesn't fit this run.
    """
    if origin.content is None:
        return
    training, name = origin.content["training"], ""
    try:
        for name in parts.keys() & training["parts"].keys():
            parts[name].load_state_dict(training["parts"][name])
        if world.rank < len(training["random"]):
            name, own = "state of random numbers", training["random"][world.rank]
            cuda = own["cuda"] if world.device.type == "cuda" else None
            RandomState(own["cpu"], cuda).set(world.device)
        else:
            torch.manual_seed(seed + world.rank + _OTHER_RANKS * int(origin.content["step"]))
    except (AttributeError, LookupError, TypeError, ValueError, RuntimeError) as error:
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        problem = f"its {name} doesn't fit this run ({reason})"
        way = "start a new run from its weights with model.pretrained"
        raise InputError(f"{origin.file}: {problem}; {way}") from error


def parameter_bytes(clip: Clip) -> tuple[int, int]:
    """Of all weights, and of those that train."""
    sizes = [(p.numel() * p.element_size(), p.requires_grad) for p in clip.towers.parameters()]
    return sum(size for size, _ in sizes), sum(size for size, trains in sizes if trains)


def room(config: Config, clip: Clip, data: RunData) -> str:
    """What the run's checkpoints, and the features of a tower that runs once, take on the disk, for
    the log; their folder may not be there yet. InputError: the disk has no room for them, or can't
    be written.
    """
    folder = Path(config.run.folder).absolute()
    folder = next(path for path in (folder, *folder.parents) if path.is_dir())
    if not os.access(folder, os.W_OK):
        raise InputError(f"run.folder: {folder} can't be written; choose another folder")
    whole, trained = parameter_bytes(clip)
    ema, adapters = config.ema.decay is not None, config.lora.rank is not None
    state = whole + 2 * trained + ema * trained + adapters * whole  # AdamW has two averages
    # best.pt, perhaps ema.pt and wise.pt, and what is being written: a state more, or best.pt
    kept = config.checkpoint.keep_last
    models = 1 + ema + (config.wise.alphas is not None)
    needed = models * whole + ((kept + 1) * state if kept else whole)
    once = frozen_features.made_once(clip, config, data.pairs, data.plan.seen)
    what = "checkpoints and features" if once else "checkpoints"
    needed += 4 * data.pairs * clip.description["definition"]["embed_dim"] if once else 0
    # an earlier start's are replaced; two names of one file count once
    old = [*folder.glob("checkpoints/*.pt"), *folder.glob("features/*.npy")]
    files = [file.stat() for file in old]
    free = shutil.disk_usage(folder).free + sum({f.st_ino: f.st_size for f in files}.values())
    if free < needed:
        told = f"{free / 1e9:.3g} GB free, and the {what} need about {needed / 1e9:.3g} GB"
        ways = "make room, choose another folder or less checkpoint.keep_last"
        raise InputError(f"run.folder: {folder} has {told}; {ways}")
    return f"{what} take up to {needed / 1e9:.3g} GB; {free / 1e9:.3g} GB are free"


@dataclass
class Checkpointer:
    """Writes a run's checkpoints, on the main rank; elsewhere it does nothing.

    The state is copied to host memory while the training stands still; a thread writes the copy. At
    most one is written at a time. best.pt comes before the state that knows of it, so that a run
    which is killed in between writes it once more.
    """

    folder: RunFolder
    settings: CheckpointConfig
    log: Callable[[str], None]
    main: bool
    step: int = -1  # of the last state that was given to it

    def __post_init__(self) -> None:
        self._writing: futures.Future[None] = futures.Future()
        self._writing.set_result(None)
        self._saved_at = time.monotonic()

    def due(self, step: int) -> bool:
        """Whether a state is to be saved after this step: the main rank's clock decides."""
        steps, minutes = self.settings.every_steps, self.settings.every_minutes
        if steps is not None and step % steps == 0:
            return True
        late = minutes is not None and time.monotonic() - self._saved_at > 60 * minutes
        return self.main and late

    def save(self, content: dict[str, Any], *, best: bool, since: float) -> None:
        """Copy a checkpoint's content, and have it written; as best.pt too, without `training`.
        `since`: when the training stopped for it (time.perf_counter), for the log. WorkError:
        writing failed, now or the last time.
        """
        self.step = content["step"]
        if not self.main or not (best or self.settings.keep_last):
            return
        self.wait()
        self._saved_at = time.monotonic()
        if not self.settings.background:
            self._write(content, best, since)
            return
        # in host memory, which no later step changes
        content = tree_map_only(Tensor, lambda t: t.detach().to("cpu", copy=True), content)
        paused = time.perf_counter() - since
        # one thread for one state: no idle one stands by while loader processes are forked
        with_thread = futures.ThreadPoolExecutor(1, "checkpoint")
        self._writing = with_thread.submit(self._write, content, best, since, paused)
        with_thread.shutdown(wait=False)

    def error(self) -> WorkError | None:
        """What went wrong with a state that was being written."""
        error = self._writing.exception() if self._writing.done() else None
        return error if isinstance(error, WorkError) else None

    def wait(self) -> None:
        """Return when the last state is on the disk; WorkError: it can't be."""
        self._writing.result()

    def close(self) -> None:
        """Let the last state get to the disk, whatever ends the run."""
        futures.wait([self._writing])

    def _write(
        self, content: dict[str, Any], best: bool, since: float, paused: float | None = None
    ) -> None:
        began, sizes = time.perf_counter(), dict[str, int]()
        if best:
            plain = {key: value for key, value in content.items() if key != "training"}
            sizes["best.pt"] = checkpoint.save(self.folder.best, plain)
        if self.settings.keep_last:
            file = self.folder.state(content["step"])
            sizes[file.name] = checkpoint.save(file, content)
            self.folder.keep(content["step"], self.settings.keep_last)
        now = time.perf_counter()
        saved = f"saved {' and '.join(sizes)}: {sum(sizes.values()) / 1e6:,.1f} MB"
        paused = now - since if paused is None else paused
        self.log(f"{saved} in {now - began:.2f} s; the training paused for {paused:.2f} s")
