"""Averages of weights: over the steps of a run (EMA), and of models with the same start.

EMA (Polyak & Juditsky 1992): after each step, average = decay * average + (1 - decay) * weights,
from the weights of the start; smoother than the last step's.

Fine-tuning forgets; on the straight line between the weights before and after lie models that
remember more and know nearly as much of the new (WiSE-FT, Wortsman et al. 2022a). Models of several
runs from the same start can be averaged as well (model soups, Wortsman et al. 2022b).
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..errors import InputError

State = Mapping[str, Tensor]


class Resumable:
    """Tensors by their names, each on its device, that training saves and resumes from."""

    def __init__(self, tensors: dict[str, Tensor], mismatch: str) -> None:
        self.tensors, self.mismatch = tensors, mismatch

    def state_dict(self) -> dict[str, Tensor]:
        """Copies of them."""
        return _clones(self.tensors)

    def load_state_dict(self, state: State) -> None:
        """Take these values; a ValueError, `mismatch`, if names or shapes differ."""
        if {n: t.shape for n, t in state.items()} != {n: t.shape for n, t in self.tensors.items()}:
            raise ValueError(self.mismatch)
        _copy(state, self.tensors)


class Ema(Resumable):
    """The running average of what trains of a model on its device; of adapters, their matrices."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = {name: p for name, p in model.named_parameters() if p.requires_grad}
        super().__init__(_clones(self.weights), "it is an average of other parameters")

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights after a step."""
        # d a + (1 - d) w, as one fused pass
        average, weights = list(self.tensors.values()), list[Tensor](self.weights.values())
        torch._foreach_lerp_(average, weights, 1 - self.decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model has the average for weights; its own are put back after, bit for bit."""
        before = _clones(self.weights)
        _copy(self.tensors, self.weights)
        try:
            yield
        finally:
            _copy(before, self.weights)


def _clones(state: State) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in state.items()}


@torch.no_grad()
def _copy(values: State, into: State) -> None:
    for name, value in values.items():
        into[name].copy_(value)


def size(state: State) -> float:
    """The sum of the squares of all weights, which tells models apart: see `is_of_size`."""
    floats = (value for value in state.values() if value.is_floating_point())
    return math.fsum(value.double().square().sum().item() for value in floats)


def is_of_size(state: State, known: float | None) -> bool:
    """Whether the `size` is the one known, but for rounding; None: nothing is known."""
    return known is None or math.isclose(size(state), known, rel_tol=1e-7)


def check_alike(states: Mapping[str, State]) -> None:
    """Refuse models of different builds: an InputError with the names of two, and a tensor's."""
    (first, start), *others = states.items()
    shapes = {(key, value.shape) for key, value in start.items()}
    for name, state in others:
        if odd := shapes ^ {(key, value.shape) for key, value in state.items()}:
            raise InputError(f"{first} and {name} are not of one model: {min(odd)[0]} differs")


def interpolated(start: State, end: State, alpha: float) -> dict[str, Tensor]:
    """(1 - alpha) start + alpha end; 0 and 1 are the very weights of either.

    Counters and other whole numbers are those of `end`, but for alpha 0.
    """
    if alpha in (0, 1):
        return dict(end if alpha else start)
    return mean([end, start], [alpha, 1 - alpha])


@torch.no_grad()
def mean(states: Sequence[State], shares: Sequence[float] | None = None) -> dict[str, Tensor]:
    """The uniform soup, or one by shares. Whole numbers are those of the first."""
    shares = shares or [1 / len(states)] * len(states)
    # float64, so that weights that are equal stay as they are
    weights = torch.tensor(shares, dtype=torch.float64)
    return {
        name: torch.tensordot(weights, torch.stack([s[name].double() for s in states]), 1).to(value)
        if value.is_floating_point()
        else value
        for name, value in states[0].items()
    }


def greedy(
    states: Sequence[State], score: Callable[[State], float]
) -> tuple[list[int], list[float]]:
    """The greedy soup (Wortsman et al. 2022b, algorithm 1).

    Best first, a model joins if the mean with it scores no less (on held-out data) than without.
    Returns the numbers of the models that joined, and the score of each model alone.
    """
    alone = [score(state) for state in states]
    order = sorted(range(len(states)), key=lambda number: -alone[number])
    chosen, best = order[:1], alone[order[0]]
    for number in order[1:]:
        joint = score(mean([states[n] for n in (*chosen, number)]))
        if joint >= best:
            chosen, best = [*chosen, number], joint
    return chosen, alone
