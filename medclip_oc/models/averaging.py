"""Averages of the weights of models with the same start: WiSE-FT and soups, on state dicts.

Fine-tuning forgets; on the straight line between the weights before and after lie models that
remember more and know nearly as much of the new (WiSE-FT, Wortsman et al. 2022a). Models of several
runs from the same start can be averaged as well (model soups, Wortsman et al. 2022b).
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from ..errors import InputError

State = Mapping[str, Tensor]


def check_alike(states: Mapping[str, State]) -> None:
    """Refuse models of different builds, by the names of their files.

    Raises:
        InputError: names both files, and what differs.
    """
    (first, one), *others = states.items()
    for name, other in others:
        odd = sorted(one.keys() ^ other.keys())
        odd += [key for key in one if key in other and one[key].shape != other[key].shape]
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
    first = states[0]
    return {
        name: torch.stack([state[name].double() for state in states]).mean(0).to(value.dtype)
        if value.is_floating_point()
        else value
        for name, value in first.items()
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
        found = score(mean([states[n] for n in (*chosen, number)]))
        if found >= best:
            chosen, best = [*chosen, number], found
    return chosen, alone
