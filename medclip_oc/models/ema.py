"""A running average of the weights (Polyak & Juditsky 1992): smoother than the last step's.

After each step, average = decay * average + (1 - decay) * weights, from the weights of the start.
Only what trains is averaged; with adapters, their matrices.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Ema:
    """The average of a model's trainable parameters.

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
        """One step was done."""
        own = self._parameters()
        # d a + (1 - d) w, as one fused pass
        torch._foreach_lerp_(
            list(self.average.values()), [own[name] for name in self.average], 1 - self.decay
        )

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model has the average for weights; its own are put back after, bit for bit."""
        own = self._parameters()
        before = {name: own[name].detach().clone() for name in self.average}
        _copy(self.average, own)
        try:
            yield
        finally:
            _copy(before, own)

    def state_dict(self) -> dict[str, Tensor]:
        """The average, by the parameters' names."""
        return {name: value.clone() for name, value in self.average.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from there.

        Raises:
            ValueError: other parameters train.
        """
        shapes = {name: value.shape for name, value in self.average.items()}
        if shapes != {name: value.shape for name, value in state.items()}:
            raise ValueError("it is an average of other parameters")
        _copy(state, self.average)


@torch.no_grad()
def _copy(values: dict[str, Tensor], into: dict[str, Tensor] | dict[str, nn.Parameter]) -> None:
    for name, value in values.items():
        into[name].copy_(value)
