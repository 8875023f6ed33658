"""What a run starts from: a state of its own, a file, or nothing; and whether it may.

A run goes on only as the run that it was: with other settings, or other shards, its figures would
belong to neither. What can't change the result may differ; the rest has to be allowed by name.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..config import fields
from ..config.schema import Config
from ..errors import DamagedCheckpoint, InputError, Stopped, WorkError
from ..models import checkpoint
from ..runtime import distributed
from ..runtime.distributed import World
from .run_dir import RunFolder

# settings that change no figure
_FREE = {"run.folder", "run.device", "run.overwrite", "run.timeout_seconds", "data.workers"}
_FREE |= {"data.cache_folder"}
_FREE_GROUPS = ("log.", "checkpoint.")
_DATA = ("data.train", "data.valid")
# on these hang the weights, and the count of steps
_FIXED = ("train.global_batch_size",)
_MODEL_NOT_FIXED = ("model.freeze_batch_norm", "model.grad_checkpointing")


@dataclass(frozen=True)
class Resume:
    """What the user asks for.

    Attributes:
        how: "auto", "never", or a checkpoint file.
        allow: settings that may differ.
    """

    how: str = "auto"
    allow: tuple[str, ...] = ()


@dataclass(frozen=True)
class Origin:
    """What a run starts from: a state, or nothing."""

    file: Path | None = None
    content: dict[str, Any] | None = None
    """Of the checkpoint."""
    lines: tuple[str, ...] = ()
    """What to say about it."""
    damaged: tuple[Path, ...] = ()
    """Newer states, which can't be used."""

    @property
    def step(self) -> int:
        """Steps done."""
        return 0 if self.content is None else int(self.content["step"])

    @property
    def position(self) -> int:
        """Pairs done."""
        return 0 if self.content is None else int(self.content["position"])

    @property
    def best(self) -> float:
        """Highest validation metric so far."""
        return float("-inf") if self.content is None else float(self.content["training"]["best"])

    @property
    def scores(self) -> dict[str, float]:
        """Of the last validation."""
        return {} if self.content is None else dict(self.content["metrics"])

    @property
    def validated(self) -> bool:
        """Whether the validation that is due after the last step was done."""
        return self.content is None or bool(self.content["training"]["validated"])


def start(
    wanted: Resume,
    config: Config,
    folder: RunFolder,
    fingerprints: Mapping[str, str | None],
    steps: int,
    world: World,
) -> Origin:
    """Find what the run starts from, and have its folder ready.

    The main rank looks, and decides for all; the others read what it found.

    Args:
        wanted: what the user asks for.
        config: of this run.
        folder: of this run.
        fingerprints: of the shards that data.train and data.valid stand for; None for a stream.
        steps: of the whole run.
        world: the ranks.

    Raises:
        InputError: the folder holds a run that can't be gone on with; what to do about it.
        Stopped: the launcher starts again what was told to stop.
    """
    _check_names(wanted.allow)
    if distributed.restarts() and folder.marker.exists():
        raise Stopped("the run was told to stop, and has saved; not started again")
    origin = Origin()
    error: InputError | WorkError | None = None
    if world.main:
        try:
            origin = _choose(wanted, config, folder)
            if origin.content is not None:
                _check_data(origin, config, fingerprints, wanted.allow)
                _check_steps(origin, steps)
                line = f"goes on from {origin.file}, step {origin.step:,} of {steps:,}"
                origin = replace(origin, lines=(*origin.lines, line))
            _make_ready(folder, origin, config.run.overwrite)
        except (InputError, WorkError) as caught:
            error = caught
    distributed.raise_together(error, world.device)
    found = distributed.all_gather_texts([str(origin.file)] if origin.file else [], world.device)[0]
    if found and not world.main:
        try:
            origin = Origin(Path(found[0]), checkpoint.load(found[0], verify=False))
        except InputError as caught:
            error = InputError(f"{caught}; every node must see the run folder")
    distributed.raise_together(error, world.device)
    return origin


def _make_ready(folder: RunFolder, origin: Origin, overwrite: bool) -> None:
    """The folder without what belongs to no run, or to the one that isn't gone on with."""
    if origin.file is None:
        # one that was never saved begins again, and keeps its log
        folder.prepare(clear=overwrite and not distributed.restarts())
    elif folder.owns(origin.file):
        folder.prepare(clear=False)
        for file in origin.damaged:
            folder.set_aside(file, "damaged")
        folder.set_aside_after(origin.step)
    else:
        folder.prepare(clear=overwrite)


def _choose(wanted: Resume, config: Config, folder: RunFolder) -> Origin:
    """A state that this run may go on from, or none."""
    again = distributed.restarts() > 0  # it isn't the user who starts it now, but the launcher
    if wanted.how not in ("auto", "never") and not (again and folder.states()):
        return _from_file(wanted, config, folder)
    if not folder.begun() or (config.run.overwrite and not again):
        return Origin()
    if wanted.how == "never" and not again:
        raise InputError(
            f"run.folder: {folder.path} holds an earlier run; go on with it (--resume auto), "
            "replace it (--run.overwrite true), or choose another folder"
        )
    origin = _newest(folder)
    if origin.content is not None:
        changes = _compare(origin.content["config"], config, wanted.allow, folder.path)
        return replace(origin, lines=(*origin.lines, *changes))
    changes = _compare(_saved_config(folder), config, wanted.allow, folder.path)
    return Origin(lines=(f"{folder.path}: nothing was saved yet; it begins again", *changes))


def _from_file(wanted: Resume, config: Config, folder: RunFolder) -> Origin:
    file = Path(wanted.how)
    content = _open(file)
    own = folder.owns(file)
    if not own and folder.begun() and not config.run.overwrite:
        raise InputError(
            f"run.folder: {folder.path} holds another run than --resume {file}; replace it "
            "(--run.overwrite true), or choose another folder"
        )
    if own and config.run.overwrite:
        raise InputError(f"--resume {file}: run.overwrite would remove it with its run")
    changes = _compare(content["config"], config, wanted.allow, file)
    return Origin(file, content, tuple(changes))


def _newest(folder: RunFolder) -> Origin:
    """The newest state that is sound; damaged ones are said."""
    damaged: dict[Path, str] = {}
    for file in folder.states():
        try:
            content = _open(file)
        except DamagedCheckpoint as error:
            damaged[file] = str(error)
            continue
        lines = [f"{reason}; the state before it is used" for reason in damaged.values()]
        return Origin(file, content, tuple(lines), tuple(damaged))
    if damaged:
        raise InputError(
            f"run.folder: {folder.path} has no sound checkpoint to go on from "
            f"({'; '.join(damaged.values())}); replace the run with --run.overwrite true"
        )
    return Origin()


def _open(file: Path) -> dict[str, Any]:
    content = checkpoint.load(file)
    if "training" not in content:
        raise InputError(
            f"{file}: holds a model, and nothing to go on training from; use a step-*.pt or "
            "last.pt, or start a new run from it with model.pretrained"
        )
    return content


def _saved_config(folder: RunFolder) -> dict[str, Any]:
    try:
        return fields.load(str(folder.config))
    except InputError as error:
        raise InputError(
            f"run.folder: {folder.path} holds an earlier run without a checkpoint ({error}); "
            "replace it with --run.overwrite true"
        ) from error


# ----------------------------------------------------------------------------- what has changed


def _check_names(allow: Sequence[str]) -> None:
    """Refuse a name that is no setting, and one that can't be allowed."""
    known = fields.leaf_types(Config)
    for key in allow:
        if key not in known:
            raise InputError(f"--resume.allow {key}: {fields.no_such(key, known)}")
        if _is_fixed(key):
            raise InputError(
                f"--resume.allow {key}: a run can't go on with another one; start a new run from "
                "its weights with model.pretrained"
            )


def differences(before: Mapping[str, Any], now: Config) -> dict[str, tuple[Any, Any]]:
    """Settings that had another value: name -> (then, now).

    A setting that was unknown then had what is its default today.
    """
    known = fields.leaf_types(Config)
    usual, today = (fields.leaves(fields.to_dict(c), known) for c in (Config(), now))
    then = usual | fields.leaves(before, known)
    return {key: (then[key], today[key]) for key in known if then[key] != today[key]}


def _compare(
    before: Mapping[str, Any], now: Config, allow: Sequence[str], where: Path
) -> list[str]:
    """What to say of settings that differ.

    Raises:
        InputError: they matter, and nobody allowed it.
    """
    changed = differences(before, now)
    said = {key: f"{key} {_shown(then)}, now {_shown(new)}" for key, (then, new) in changed.items()}
    # of data.train and data.valid the pairs decide, see _check_data
    wrong = [key for key in changed if not _is_free(key) and key not in (*_DATA, *allow)]
    if wrong:
        what = f"{where} was made with other settings: {'; '.join(said[key] for key in wrong)}"
        rest = "take another run.folder for another run"
        if not any(map(_is_fixed, wrong)):
            rest = f"go on all the same with --resume.allow {' '.join(wrong)}, or {rest}"
        raise InputError(f"{what}; {rest}")
    tell = [words for key, words in said.items() if not key.startswith("run.")]
    return [f"goes on with other settings: {'; '.join(tell)}"] if tell else []


def _check_data(
    origin: Origin, config: Config, now: Mapping[str, str | None], allow: Sequence[str]
) -> None:
    """Compare the shards with those of the state: moved ones are the same, and of a stream only the
    address can be compared.

    Raises:
        InputError: they have changed, and nobody allowed it.
    """
    assert origin.content is not None
    before = origin.content["training"]["fingerprints"]
    changed = differences(origin.content["config"], config)
    for key in _DATA:
        same = before[key] == now[key] and (now[key] is not None or key not in changed)
        if same or key in allow:
            continue
        what = "the shards have changed since"
        if key in changed:
            what = (
                f"{_shown(changed[key][0])}, now {_shown(changed[key][1])}: other pairs than when"
            )
        raise InputError(
            f"{key}: {what} {origin.file} was saved; go on all the same with --resume.allow {key}, "
            "or take another run.folder for another run"
        )


def _check_steps(origin: Origin, steps: int) -> None:
    if origin.step > steps:
        raise InputError(
            f"train.epochs: the run ends after {steps} steps, but {origin.file} is {origin.step} "
            "steps old"
        )


def _is_free(key: str) -> bool:
    return key in _FREE or key.startswith(_FREE_GROUPS)


def _is_fixed(key: str) -> bool:
    return key in _FIXED or (key.startswith("model.") and key not in _MODEL_NOT_FIXED)


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else fields.shorten(value)
