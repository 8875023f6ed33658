"""Everything that decides how a run continues, as a checkpoint's `training` holds it.

    parts         name -> state of whatever has `state_dict` and `load_state_dict`
    random        where each rank's generators stand, in rank order
    best          highest validation metric so far
    validated     whether the validation that is due after this step was done
    fingerprints  of the shards that data.train and data.valid stand for; None for a stream

The step stands beside it in the checkpoint, and with it the place in the schedule and in the data:
both are functions of the step. The weights are the checkpoint's `state_dict`; a run whose weights
are not those of the plain model (adapters, a running average) adds a part that holds its own, which
is loaded after them. Images and captions draw from generators of (seed, epoch, index), so of these
there is nothing to save.

Only tensors and plain values: the file is opened without running code from it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..contrastive.recompute import RandomState
from ..errors import InputError
from ..runtime import distributed
from ..runtime.distributed import World

_OTHER_RANKS = 1_000_003
"""Steps between seeds where a rank's own state isn't known; so that no rank begins again."""


class OptimizerState:
    """An optimizer's running averages. Its rates and decays are those of the configuration.

    Args:
        optimizer: over the parameters of the model, in the model's order.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer

    def state_dict(self) -> dict[str, Any]:
        """The averages of each parameter, by its number; and its shape."""
        shapes = [list(p.shape) for group in self.optimizer.param_groups for p in group["params"]]
        return {"state": self.optimizer.state_dict()["state"], "shapes": shapes}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the averages over.

        Raises:
            ValueError: they are of other parameters.
        """
        shapes = self.state_dict()["shapes"]
        if state["shapes"] != shapes:
            raise ValueError(
                f"{len(shapes)} parameters train, but it holds {len(state['shapes'])}, or others"
            )
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state["state"], "param_groups": groups})


@dataclass
class Progress:
    """How far a run is, besides its parts."""

    step: int = 0
    """Steps done."""
    best: float = float("-inf")
    """Highest validation metric so far."""
    validated: bool = True
    """Whether the validation that is due after this step was done."""
    scores: dict[str, float] = field(default_factory=dict)
    """Of the last validation."""

    @classmethod
    def of(cls, content: Mapping[str, Any] | None) -> "Progress":
        """That of a checkpoint; None: of a run that begins."""
        if content is None:
            return cls()
        training = content["training"]
        return cls(
            int(content["step"]),
            float(training["best"]),
            bool(training["validated"]),
            dict(content["metrics"]),
        )


def capture(
    parts: Mapping[str, Any], progress: Progress, fingerprints: dict[str, Any], world: World
) -> dict[str, Any]:
    """What `restore` needs; every rank must call it, between two steps."""
    return {
        "parts": {name: part.state_dict() for name, part in parts.items()},
        "random": _gather_random(world),
        "best": progress.best,
        "validated": progress.validated,
        "fingerprints": fingerprints,
    }


def restore(
    content: Mapping[str, Any], file: Path, parts: Mapping[str, Any], *, seed: int, world: World
) -> None:
    """Put the parts and the generators where they stood when a state was saved.

    Args:
        content: of the checkpoint.
        file: its name, for errors.
        parts: those of this run; one that the state doesn't know begins anew.
        seed: of the run, for ranks that the saved run didn't have.
        world: this rank among the others.

    Raises:
        InputError: the state doesn't fit this run.
    """
    training = content["training"]
    for name in parts.keys() & training["parts"].keys():
        try:
            parts[name].load_state_dict(training["parts"][name])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"{file}: its {name} doesn't fit this run ({error})") from error
    random = training["random"]
    if world.rank < len(random):
        own = random[world.rank]
        cuda = own["cuda"] if world.device.type == "cuda" else None
        RandomState(own["cpu"], cuda).set(world.device)
    else:
        torch.manual_seed(seed + world.rank + _OTHER_RANKS * int(content["step"]))


def _gather_random(world: World) -> list[dict[str, torch.Tensor | None]]:
    """Each rank's generators: torch's, of the CPU and of the rank's own GPU."""
    own = RandomState.now(world.device)
    ranks: dict[str, list[torch.Tensor | None]] = {}
    for name, state in (("cpu", own.cpu), ("cuda", own.cuda)):
        if state is None:
            ranks[name] = [None] * world.size
        else:
            rows = distributed.all_gather(state.to(world.device)[None]).cpu()
            ranks[name] = list(rows.clone().unbind())
    return [{"cpu": c, "cuda": g} for c, g in zip(ranks["cpu"], ranks["cuda"], strict=True)]
