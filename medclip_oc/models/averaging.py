"""Averages of weights: over the steps of a run (EMA), and of models with the same start.

EMA (Polyak & Juditsky 1992): after each step, average = decay * average + (1 - decay) * weights,
from the weights of the start; smoother than the last step's.

Fine-tuning forgets; on the straight line between the weights before and after lie models that
remember more and know nearly as much of the new (WiSE-FT, Wortsman et al. 2022a). Models of several
runs from the same start can be averaged as well (model soups, Wortsman et al. 2022b).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..errors import InputError

State = Mapping[str, Tensor]


class Ema:
    """The running average of what trains of a model; with adapters, of their matrices.

    Args:
        model: in training, on its device.
        decay: d, in (0, 1).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model, self.decay = model, decay
        self.average = {name: p.detach().clone() for name, p in self._parameters().items()}

    def _parameters(self) -> dict[str, nn.Parameter]:
        return {n: p for n, p in self.model.named_parameters() if p.requires_grad}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights after a step."""
        weights = self._parameters()
        # d a + (1 - d) w, as one fused pass
        torch._foreach_lerp_(
            list(self.average.values()), [weights[name] for name in self.average], 1 - self.decay
        )

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model has the average for weights; its own are put back after, bit for bit."""
        weights = self._parameters()
        before = {name: weights[name].detach().clone() for name in self.average}
        _copy(self.average, weights)
        try:
            yield
        finally:
            _copy(before, weights)

    def state_dict(self) -> dict[str, Tensor]:
        """The average, by the parameters' names."""
        return {name: value.clone() for name, value in self.average.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Resume from there.

        Raises:
            ValueError: other parameters train.
        """
        resume_from(state, self.average, "it is an average of other parameters")


@torch.no_grad()
def _copy(values: State, into: State) -> None:
    for name, value in values.items():
        into[name].copy_(value)


def resume_from(saved: State, into: State, mismatch: str) -> None:
    """Copy tensors that were saved into those of now.

    Raises:
        ValueError: other names or shapes; says `mismatch`.
    """
    saved_shapes, shapes = ({n: t.shape for n, t in side.items()} for side in (saved, into))
    if saved_shapes != shapes:
        raise ValueError(mismatch)
    _copy(saved, into)


def check_alike(states: Mapping[str, State]) -> None:
    """Refuse models of different builds, by the names of their files.

    Raises:
        InputError: names both files, and what differs.
    """
    (first, start), *others = states.items()
    for name, state in others:
        odd = sorted(start.keys() ^ state.keys())
        odd += [key for key in start if key in state and start[key].shape != state[key].shape]
        if odd:
            raise InputError(f"{first} and {name} are not of one model: {odd[0]} differs")


@torch.no_grad()
def interpolated(start: State, end: State, alpha: float) -> dict[str, Tensor]:
    """(1 - alpha) start + alpha end; 0 and 1 are the very weights of either.

    Counters and other whole numbers are those of `end`, but for alpha 0.
    """
    if alpha in (0, 1):
        return dict(end if alpha else start)
    return {
        # float64, so that weights that are equal stay as they are
        name: start[name].double().lerp(value.double(), alpha).to(value.dtype)
        if value.is_floating_point()
        else value
        for name, value in end.items()
    }


@torch.no_grad()
def mean(states: Sequence[State]) -> dict[str, Tensor]:
    """The uniform soup. Whole numbers are those of the first."""
    return {
        name: torch.stack([state[name].double() for state in states]).mean(0).to(value.dtype)
        if value.is_floating_point()
        else value
        for name, value in states[0].items()
    }


def greedy(
    states: Sequence[State], score: Callable[[State], float]
) -> tuple[list[int], list[float]]:
    """The greedy soup (Wortsman et al. 2022b, algorithm 1).

    Best first, a model joins if the mean with it scores no less than the mean without.

    Args:
        states: the models.
        score: higher is better, on held-out data.

    Returns:
        numbers of the models that joined, and the score of each model alone.
    """
    alone = [score(state) for state in states]
    order = sorted(range(len(states)), key=lambda number: -alone[number])
    chosen, best = order[:1], alone[order[0]]
    for number in order[1:]:
        joint = score(mean([states[n] for n in (*chosen, number)]))
        if joint >= best:
            chosen, best = [*chosen, number], joint
    return chosen, alone
