"""What a run starts from: a state of its own, a file, or nothing; and whether it may.

A run resumes only as the run that it was: with other settings, or other shards, its figures would
belong to neither. What can't change the result may differ; the rest has to be allowed by name.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from ..config import fields
from ..config.schema import Config
from ..errors import DamagedCheckpoint, InputError, Stopped
from ..models import checkpoint, description
from ..models.description import Natural, NotNegative
from ..runtime import distributed
from ..runtime.distributed import World
from .build import RunData
from .run_dir import RunFolder

# settings, and groups of them, that change no figure, but for rounding
_FREE: tuple[str, ...] = ("run.folder", "run.device", "run.overwrite", "run.timeout_seconds")
_FREE += ("data.workers", "data.cache_folder", "valid.at_start", "wise.", "log.", "checkpoint.")
_FREE += ("train.frozen_features",)
_REPLACE = "replace it (--run.overwrite true), or choose another folder"
_ANEW = "start a new run from its weights with model.pretrained"
_SHAPED = ("exp_avg", "exp_avg_sq", "step")  # what AdamW has of a parameter
_PARAMETER: Any = description.open_mapping(dict.fromkeys(_SHAPED, Any))
_STATE = description.open_mapping(
    {
        "step": Natural,
        "position": Natural,
        "epoch": NotNegative,
        "metrics": dict[str, Any],
        "config": {"train": {"global_batch_size": int, "precision": str}},
        "training": {
            "parts": {
                "optimizer": {"state": dict[int, _PARAMETER], "shapes": list[list[int]]},
                "data": {"bad": Natural, "long": Natural, "named": list[str], "reported": bool},
            },
            "random": list[dict[str, Any]],
            "best": Annotated[float, Field(le=1, allow_inf_nan=True)],  # -inf before the first one
            "validated": bool,
            "stale?": Natural,
            "start_size?": float | None,
            "fingerprints": dict[str, str | None],
        },
    }
)


@dataclass
class Origin:
    """What a run starts from: a state, or nothing."""

    file: Path | None = None
    content: dict[str, Any] | None = None
    """Of the checkpoint."""
    lines: list[str] = field(default_factory=list)
    """For the log."""


def start(
    source: str,
    allow: Sequence[str],
    config: Config,
    folder: RunFolder,
    data: RunData,
    world: World,
    opened: ExitStack,
) -> Origin:
    """Find what a run starts from, and have its folder ready, for this run alone until `opened` is
    closed.

    The main rank looks, and decides for all; the others read the same file. `source` is "auto",
    "never", or a checkpoint file; `allow` names settings that may differ from those of the state.
    InputError: the folder is in use, can't be written, or holds a run that can't be resumed; says
    what to do about it. Stopped: the launcher starts again what was told to stop.
    """
    _check_names(allow)
    if distributed.restarts() and folder.marker.exists():
        raise Stopped("the run was told to stop, and has saved; not started again")
    origin = Origin()
    # the launcher starts again what it found in the folder, whatever the user first asked for
    restarted = distributed.restarts() > 0
    overwrite = config.run.overwrite and not restarted
    with distributed.errors_together():
        try:
            if world.main:
                folder.hold(opened)
                origin = _choose(source, folder, overwrite=overwrite, restarted=restarted)
                if origin.file is not None and origin.content is not None:
                    origin.lines += _compare(origin.content, origin.file, config, data, allow)
                    if folder.owns(origin.file):
                        folder.set_aside_after(origin.content["step"])
                folder.prepare(clear=overwrite)
        except OSError as error:
            problem = f"can't be written ({error.strerror}); choose another folder"
            raise InputError(f"run.folder: {folder.path} {problem}") from error
    origin.file = distributed.all_gather_objects(origin.file)[0]
    with distributed.errors_together():
        if origin.file is not None and not world.main:
            try:
                origin.content = checkpoint.load(origin.file, verify=False)
            except InputError as error:
                raise InputError(f"{error}; every node must see the run folder") from None
    return origin


def _choose(source: str, folder: RunFolder, *, overwrite: bool, restarted: bool) -> Origin:
    """A state that this run may resume from, or none."""
    if source not in ("auto", "never") and not (restarted and folder.states()):
        file = Path(source)
        content, own = _open(file), folder.owns(file)
        if own and overwrite:
            raise InputError(f"--resume {file}: run.overwrite would remove it; leave that out")
        if not own and folder.begun() and not (overwrite or restarted):
            held = f"another run than --resume {file}"
            raise InputError(f"run.folder: {folder.path} holds {held}; {_REPLACE}")
        return Origin(file, content)
    if overwrite or not folder.begun():
        return Origin()
    if source == "never" and not restarted:
        held = "an earlier run; resume it (--resume auto)"
        raise InputError(f"run.folder: {folder.path} holds {held}, {_REPLACE}")
    return _newest(folder)


def _newest(folder: RunFolder) -> Origin:
    """The newest state that is sound, with a line for each damaged one."""
    damaged: list[str] = []
    for file in folder.states():
        try:
            return Origin(file, _open(file), [f"{d}; the state before it is used" for d in damaged])
        except DamagedCheckpoint as error:
            damaged.append(str(error))
    if damaged:
        told = f"no sound checkpoint to resume from ({'; '.join(damaged)})"
        raise InputError(f"run.folder: {folder.path} has {told}; {_REPLACE}")
    return Origin(lines=[f"{folder.path}: no state to resume from; it begins again"])


def _open(file: Path) -> dict[str, Any]:
    content = checkpoint.load(file)
    checkpoint.description_of(content, str(file))
    if "training" not in content:
        ways = f"use a step-*.pt or last.pt, or {_ANEW}"
        raise InputError(f"{file}: holds a model, and no training state to resume from; {ways}")
    try:
        description.check(_STATE, content, f"{file}: ")
        _check_whole(content, f"{file}: no state to resume from (use another)")
    except InputError as error:
        raise DamagedCheckpoint(str(error)) from None
    return content


def _check_whole(content: dict[str, Any], where: str) -> None:
    """Refuse a state that lacks a part which its run had, or whose places differ."""
    parts, names = content["training"]["parts"], fields.settings_of(Config)
    config = dict(fields.flatten(content["config"], names))
    scaled = config["train.precision"] == "fp16"
    had = {"scaler": scaled, "adapters": config.get("lora.rank"), "ema": config.get("ema.decay")}
    lost = [name for name, used in had.items() if used and name not in parts]
    if lost:
        raise InputError(f"{where}: it has no {', '.join(lost)}")
    step, position, size = content["step"], content["position"], config["train.global_batch_size"]
    if step * size != position:
        raise InputError(f"{where}: step {step} of {size} pairs, yet position {position}")
    scaled |= step == 0  # of step 0 there are none
    _check_averages(parts["optimizer"], step, scaled, f"{where}: optimizer")


def _check_averages(optimizer: dict[str, Any], step: int, scaled: bool, where: str) -> None:
    """Refuse averages that AdamW can't have then, or lack of them."""
    state, shapes = optimizer["state"], optimizer["shapes"]
    averaged = optimizer.get("averaged", len(state))  # not said by states of before
    if not (state or scaled) or len(state) != averaged or not state.keys() <= {*range(len(shapes))}:
        raise InputError(f"{where}: it has averages of {len(state)} of {len(shapes)} parameters")
    for number, averages in state.items():
        at = f"{where}, parameter {number}"
        checkpoint.check_weights(averages, at)
        shape, squares, count = shapes[number], averages["exp_avg_sq"], averages["step"]
        if [list(averages[name].shape) for name in _SHAPED] != [shape, shape, []]:
            raise InputError(f"{at}: its averages have another shape than {shape}")
        if (squares < 0).any() or not 1 <= count <= step:
            raise InputError(f"{at}: negative squares, or {count:g} steps of {step}")


# ----------------------------------------------------------------------------- what has changed


def _check_names(allow: Sequence[str]) -> None:
    """Refuse a name that is no setting, and one that can't be allowed."""
    names = fields.settings_of(Config)
    for key in allow:
        if key not in names:
            raise InputError(f"--resume.allow {key}: {fields.no_such(key, names)}")
        if _is_fixed(key):
            raise InputError(f"--resume.allow {key}: a run can't resume with another; {_ANEW}")


def differences(before: Mapping[str, Any], now: Config) -> dict[str, str]:
    """Settings that had another value: name -> "NAME THEN, now NOW".

    A setting that was unknown then had what is its default today.
    """
    names = fields.settings_of(Config)
    usual, then, today = (
        dict(fields.flatten(json.loads(json.dumps(tree)), names))  # a list for each tuple
        for tree in (asdict(Config()), before, asdict(now))
    )
    then = usual | then
    return {
        key: f"{key} {_shown(then[key])}, now {_shown(today[key])}"
        for key in names
        if then[key] != today[key]
    }


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else fields.shorten(value)


def _compare(
    content: dict[str, Any], file: Path, config: Config, data: RunData, allow: Sequence[str]
) -> list[str]:
    """Lines for the log on what has changed; InputError: it matters, and nobody allowed it."""
    changed = differences(content["config"], config)
    before, may_differ = content["training"]["fingerprints"], set(allow)
    for key, now in data.fingerprints.items():
        if before.get(key) != now:
            changed.setdefault(key, f"{key}, whose files have changed since")
        elif now is not None:  # moved shards are the same; of a stream there is but the address
            may_differ.add(key)
    wrong = [key for key in changed if key not in may_differ and not key.startswith(_FREE)]
    if wrong:
        advice = "take another run.folder, or begin anew (--run.overwrite)"
        if not any(map(_is_fixed, wrong)):
            advice = f"resume all the same (--resume.allow {' '.join(wrong)}), {advice}"
        listed = "; ".join([changed[key] for key in wrong[:3]] + ["..."] * (len(wrong) > 3))
        raise InputError(f"{file} was made with other settings: {listed}; {advice}")
    step, steps = content["step"], data.plan.steps
    if step > steps:
        key = "train.epochs" if config.train.max_steps is None else "train.max_steps"
        ended = f"the run ends after {steps} steps, but {file} is {step} steps old"
        raise InputError(f"{key}: {ended}; give more, or begin anew (--run.overwrite)")
    epoch = content["position"] / data.plan.pairs
    if not any(key.startswith("data.") for key in changed) and abs(content["epoch"] - epoch) > 1e-6:
        told = f"its epoch is {content['epoch']:g}, but its step's is {epoch:g}"
        raise InputError(f"{file}: {told}; use another")
    told = "; ".join(words for key, words in changed.items() if not key.startswith("run."))
    lines = [f"resumes with other settings: {told}"] if told else []
    return [*lines, f"resumes from {file}, step {step:,} of {steps:,}"]


def _is_fixed(key: str) -> bool:
    """Whether the weights, or the count of steps, depend on it."""
    free = ("model.freeze_batch_norm", "model.grad_checkpointing", "model.patch_dropout")
    fixed = ("train.global_batch_size", "data.unit")
    return key in fixed or (key.startswith("model.") and key not in free)
