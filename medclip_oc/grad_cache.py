"""The exact cached step: contrast G pairs while the graphs of only one chunk are in memory.

Gradient caching (GradCache, Gao et al. 2021, section 3) splits a step in three:

1. every chunk's features, without a graph;
2. ONE loss over all G pairs, whose gradient with respect to the features is kept;
3. every chunk once more, with a graph, whose backward starts from those feature gradients.

The result is the gradient of one big batch, for every parameter, the temperature included. Dropout
and patch dropout see the same random numbers in both passes. Batch norm is exact against one big
batch while its statistics are frozen; with live statistics the step is exact against the same
chunks normalised one by one, and the running statistics are updated once (by pass 1).

With one chunk there is nothing to cache, and pass 1 keeps its graph. Across ranks each feature is
gathered once, and each parameter's gradient is averaged once: earlier chunks run under `no_sync`,
and the forward of the last chunk, which arms the averaging, comes after every other backward.

B pairs per rank, G pairs over all ranks, C pairs per chunk, D embedding size.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from . import distributed

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(image features (G, D), text features (G, D), inverse temperature ()) -> loss ()."""
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """Mixed precision for a forward of the towers ("bf16", "fp16"); nothing for "fp32"."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, _DTYPES[precision])


class CachedStep:
    """Computes loss and gradients of one optimizer step; the optimizer itself is the caller's.

    Args:
        towers: the model, on its device: (images, tokens) -> image features (C, D), text features
            (C, D), inverse temperature ().
        loss: a function of all G pairs, in float32.
        world: this process among the others.
        micro_batch_size: C. The step holds the graphs of this many pairs.
        precision: "fp32", "bf16" or "fp16".
        scaler: loss scaling for fp16; its `unscale_` and `step` are the caller's.
    """

    def __init__(
        self,
        towers: nn.Module,
        loss: Loss,
        world: distributed.World,
        *,
        micro_batch_size: int,
        precision: str = "fp32",
        scaler: torch.amp.GradScaler | None = None,
    ) -> None:
        self.towers, self.loss, self.world = towers, loss, world
        self.micro_batch_size, self.precision = micro_batch_size, precision
        self.scaler = scaler
        self.parallel = distributed.data_parallel(towers, world.device)

    def __call__(self, images: Tensor, tokens: Tensor) -> Tensor:
        """Add the gradients of one step to `.grad` of every trainable parameter.

        Args:
            images: (B, 3, H, W) uint8, on any device; only the chunk in work is moved.
            tokens: (B, L) int64, on any device.

        Returns:
            The loss over all G pairs, (), float32; the same on every rank.
        """
        chunks = [
            slice(first, first + self.micro_batch_size)
            for first in range(0, len(images), self.micro_batch_size)
        ]
        move = lambda rows: (  # noqa: E731
            images[rows].to(self.world.device, non_blocking=True),
            tokens[rows].to(self.world.device, non_blocking=True),
        )
        if len(chunks) == 1:
            outputs = self._forward(self.parallel, *move(chunks[0]))
            loss, gradients = self._feature_gradients(*[o.detach() for o in outputs])
            self._backward(outputs, gradients)
        else:
            loss = self._cached(chunks, move)
        self._share_statistics()
        return loss

    def _cached(
        self, chunks: list[slice], move: Callable[[slice], tuple[Tensor, Tensor]]
    ) -> Tensor:
        states, parts = [], []
        with torch.no_grad():
            for rows in chunks:
                states.append(_random_state(self.world.device))
                parts.append(self._forward(self.towers, *move(rows)))
        image_features = torch.cat([part[0] for part in parts])  # (B, D)
        text_features = torch.cat([part[1] for part in parts])  # (B, D)
        scale = parts[0][2]
        loss, (image_grad, text_grad, scale_grad) = self._feature_gradients(
            image_features, text_features, scale
        )
        with _replayed_statistics(self.towers):
            for rows, state in zip(chunks, states, strict=True):
                last = rows is chunks[-1]
                with nullcontext() if last else self._no_sync(), _replayed_random(state):
                    outputs = self._forward(self.parallel, *move(rows))
                    # The temperature belongs to no chunk; it must be in the synchronised backward.
                    once = scale_grad if last else torch.zeros_like(scale_grad)
                    self._backward(outputs, (image_grad[rows], text_grad[rows], once))
        return loss

    def _forward(self, module: nn.Module, images: Tensor, tokens: Tensor) -> tuple[Tensor, ...]:
        with autocast(self.world.device, self.precision):
            return module(images, tokens)

    def _feature_gradients(
        self, image_features: Tensor, text_features: Tensor, scale: Tensor
    ) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        """Loss over all ranks' pairs, and its gradients for this rank's (B, D) features and scale.

        Averaging over W ranks follows in the backward, so what only this rank computes (the
        features' share) is multiplied by W, and what every rank computes alike (scale) is not.
        """
        local, world = len(image_features), self.world
        leaves = [
            distributed.gather_equal(image_features).requires_grad_(),  # (G, D)
            distributed.gather_equal(text_features).requires_grad_(),  # (G, D)
            scale.detach().clone().requires_grad_(),  # ()
        ]
        loss = self.loss(*leaves)
        target = loss if self.scaler is None else self.scaler.scale(loss)
        image_grad, text_grad, scale_grad = torch.autograd.grad(target, leaves)
        own = slice(world.rank * local, (world.rank + 1) * local)
        return loss.detach(), (
            image_grad[own] * world.size,
            text_grad[own] * world.size,
            scale_grad,
        )

    def _backward(self, outputs: tuple[Tensor, ...], gradients: tuple[Tensor, ...]) -> None:
        pairs = [(o, g) for o, g in zip(outputs, gradients, strict=True) if o.requires_grad]
        torch.autograd.backward([o for o, _ in pairs], [g for _, g in pairs])

    def _no_sync(self) -> AbstractContextManager[Any]:
        no_sync: Callable[[], AbstractContextManager[Any]]
        no_sync = getattr(self.parallel, "no_sync", nullcontext)  # one process has nothing to sync
        return no_sync()

    def _share_statistics(self) -> None:
        """Average live running statistics, so that every rank holds the same model."""
        live = _live_batch_norms(self.towers)
        running = [s for layer in live for s in (layer.running_mean, layer.running_var)]
        distributed.average_([s for s in running if s is not None])


def _random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    return torch.get_rng_state(), cuda


@contextmanager
def _replayed_random(state: tuple[Tensor, Tensor | None]) -> Iterator[None]:
    """Draw the random numbers of an earlier forward again, then go on from where we were."""
    cpu, cuda = state
    devices = [] if cuda is None else [torch.cuda.current_device()]
    with torch.random.fork_rng(devices):
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state(cuda)
        yield


@contextmanager
def _replayed_statistics(towers: nn.Module) -> Iterator[None]:
    """Normalise as in training, but leave running statistics alone: pass 1 updated them."""
    live = _live_batch_norms(towers)
    before = [(layer.momentum, layer.num_batches_tracked) for layer in live]
    for layer in live:
        layer.momentum = 0.0
        layer.num_batches_tracked = None
    yield
    for layer, (momentum, tracked) in zip(live, before, strict=True):
        layer.momentum, layer.num_batches_tracked = momentum, tracked


def _live_batch_norms(module: nn.Module) -> list[_BatchNorm]:
    """Batch-norm layers that normalise by the batch and keep running statistics."""
    return [m for m in module.modules() if isinstance(m, _BatchNorm) and m.training]
