"""Is this run sound, before it takes days? `python -m medclip_oc.train --config FILE --doctor`.

Looks at the data, the settings, the weights, the machine and what the run will write, on every
rank, and trains nothing. Each finding is one line with its remedy: an `error` means that the run
would fail, or be wasted, and the exit code is 1; a `warning` that it may. A sound run has none.
"""

import os
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch

from ..config.schema import Config
from ..errors import InputError, WorkError
from ..models.clip import Clip
from ..runtime import distributed
from ..runtime.distributed import World
from . import build, logger, preflight_checks
from .build import RunData

# usual peak learning rates: by what trains, lowest and highest
USUAL_LR: dict[str, tuple[float, float]] = {
    "adapters (lora.rank)": (2e-5, 2e-3),
    "one tower or some layers of a pretrained model": (1e-6, 5e-4),
    "a pretrained model in full": (1e-6, 1e-4),
    "two towers that never met": (1e-5, 1e-3),
    "a model from scratch": (5e-5, 5e-3),
}
_REPACK = ("data.train: ", "data.valid: ")


def check(config: Config) -> int:
    """Examine, print every finding once, and return 1 if there is an error, else 0."""
    with distributed.process_group(config.run.device) as world:
        every = distributed.all_gather_texts(list(examine(config, world)), world.device)
    findings = list(dict.fromkeys(line for lines in every for line in lines))
    if world.main:
        for line in sorted(findings, key=lambda line: line.startswith("warning")):
            print(line)
        if not findings:
            print(f"doctor: nothing found on {world.size} process(es)")
    return int(any(line.startswith("error") for line in findings))


def examine(config: Config, world: World) -> Iterator[str]:
    """Every check in turn, but those that need what could not be opened."""
    data: RunData | None = None
    clip: Clip | None = None
    try:
        data = build.open_data(config, world)
    except (InputError, WorkError) as error:
        remedy = "pack it again, or correct the setting"
        yield f"error: {error}" + (f"; {remedy}" if str(error).startswith(_REPACK) else "")
    try:
        clip = build.model(config, world)
        build.cached_step(clip, config, world)
    except (InputError, WorkError) as error:
        yield f"error: {error}"
    checks = [partial(rates, config), partial(wandb_mode, config, world)]
    if clip is not None:
        checks.append(partial(disk, config, clip, world))
    if data is not None and clip is not None:
        opened = preflight_checks.Opened(config, world, data, clip)
        checks.append(partial(preflight_checks.examine, opened))
    for one_check in checks:
        try:
            yield from one_check()
        except (InputError, WorkError) as error:
            yield f"error: {error}"
        except torch.OutOfMemoryError:
            yield "error: train.micro_batch_size: the GPU runs out of memory; take a smaller one"


def rates(config: Config) -> Iterator[str]:
    """The learning rate against what is usual for this way of training."""
    method = method_of(config)
    low, high = USUAL_LR[method]
    for name in ("lr", "image_lr", "text_lr"):
        lr = getattr(config.optim, name)
        if lr is not None and not low <= lr <= high:
            effect = "it forgets what it knew, or diverges" if lr > high else "it hardly learns"
            yield (
                f"{'error' if lr >= 5 * high else 'warning'}: optim.{name}: {lr:g} is not usual "
                f"for {method}: {effect}; take {low:g} to {high:g}"
            )


def method_of(config: Config) -> str:
    """The key of USUAL_LR."""
    model, optim = config.model, config.optim
    if config.lora.rank is not None:
        return "adapters (lora.rank)"
    if model.pretrained is None and not model.arch.startswith(("hf-hub:", "local-dir:")):
        towers = model.pretrained_image or model.pretrained_text
        return "two towers that never met" if towers else "a model from scratch"
    partly = optim.freeze or (optim.image_last_blocks, optim.text_last_blocks) != (None, None)
    return (
        "one tower or some layers of a pretrained model"
        if partly
        else ("a pretrained model in full")
    )


def disk(config: Config, clip: Clip, world: World) -> Iterator[str]:
    """Room for the run's checkpoints."""
    if not world.main:
        return
    folder = Path(config.run.folder).absolute()
    existing = next(path for path in (folder, *folder.parents) if path.is_dir())
    if not os.access(existing, os.W_OK):
        yield f"error: run.folder: {existing} can't be written; choose another folder"
        return
    whole, trained = preflight_checks.parameter_bytes(clip)
    copies = 2 + (config.ema.decay is not None)  # best.pt, ema.pt, and one being written
    needed = copies * whole + 2 * (whole + preflight_checks.STATE_COPIES * trained)
    free = shutil.disk_usage(existing).free
    if free < needed:
        yield (
            f"error: run.folder: {existing} has {free / 1e9:.3g} GB free, and the checkpoints need "
            f"about {needed / 1e9:.3g} GB; make room, or choose another folder"
        )


def wandb_mode(config: Config, world: World) -> Iterator[str]:
    """Whether wandb can be reached, where records are to go there."""
    reason = logger.wandb_trouble() if world.main and config.log.wandb == "online" else None
    if reason:
        yield (
            f"error: log.wandb: online does not work here: {reason}; run `wandb login`, or take "
            "offline and `wandb sync` later"
        )
