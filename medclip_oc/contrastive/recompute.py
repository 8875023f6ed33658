"""What a second forward of the same chunk must meet again, and what it need not run again.

Random numbers: dropout draws what it drew the first time. Running statistics of batch norm: they
were updated by the first forward and stay. Leading blocks that no gradient reaches: their output
is kept and handed out, see `FrozenBlocks`.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class RandomState(NamedTuple):
    """Where torch's generators stand."""

    cpu: Tensor
    cuda: Tensor | None

    @classmethod
    def now(cls, device: torch.device) -> "RandomState":
        """The state of the CPU's generator, and of the GPU's that is in use."""
        cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        return cls(torch.get_rng_state(), cuda)

    def set(self, device: torch.device) -> None:
        """Go there."""
        torch.set_rng_state(self.cpu)
        if self.cuda is not None:
            torch.cuda.set_rng_state(self.cuda, device)

    def equals(self, other: "RandomState") -> bool:
        """Whether the same numbers follow."""
        if self.cuda is not None and other.cuda is not None and not self.cuda.equal(other.cuda):
            return False
        return self.cpu.equal(other.cpu)

    @contextmanager
    def again(self, device: torch.device) -> Iterator[None]:
        """Draw the numbers that followed once more, then resume from where we were."""
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            self.set(device)
            yield


def live_batch_norms(module: nn.Module) -> list[_BatchNorm]:
    """Batch-norm layers that normalise by the batch and keep running statistics."""
    return [m for m in module.modules() if isinstance(m, _BatchNorm) and m.training]


@contextmanager
def statistics_kept(module: nn.Module) -> Iterator[None]:
    """Normalise as in training, but leave running statistics alone."""
    live = live_batch_norms(module)
    before = [(layer.momentum, layer.num_batches_tracked) for layer in live]
    for layer in live:
        layer.momentum = 0.0
        layer.num_batches_tracked = None
    try:
        yield
    finally:
        for layer, (momentum, tracked) in zip(live, before, strict=True):
            layer.momentum, layer.num_batches_tracked = momentum, tracked


class FrozenBlocks:
    """Runs the leading blocks of a tower that no gradient reaches only once.

    Autograd says which they are: those whose output needs no gradient. Only the last one's output
    is kept, per chunk; in the second forward it stands for the output of every block up to there,
    as each of them feeds nothing but the next. (What lies before the first block, the patch or
    word embedding, runs again: a hundredth of a tower.)

    Args:
        blocks: in the order in which they run. []: nothing can be left out.
        device: where they run.
    """

    def __init__(self, blocks: Sequence[nn.Module], device: torch.device) -> None:
        self.blocks, self.device = list(blocks), device
        self.clear()

    def clear(self) -> None:
        """Forget what was kept."""
        # by chunk: the last frozen block's output, and the random state after it
        self._kept: dict[int, tuple[Any, RandomState]] = {}
        self.last: int | None = None

    def forget(self, chunk: int) -> None:
        """Drop what was kept of one chunk."""
        self._kept.pop(chunk, None)

    @property
    def kept_bytes(self) -> int:
        """Memory of all that is kept."""
        return sum(_tensor(output).nbytes for output, _ in self._kept.values())

    @contextmanager
    def recorded(self, chunk: int, *, first: bool = False) -> Iterator[None]:
        """During a first forward: keep the output of the last frozen block, if there is one.

        Args:
            chunk: its number.
            first: the forward has gradients on, and tells which block is the last frozen one.
        """
        if first:
            self.clear()

        def look(place: int, output: Any) -> None:
            if first:
                following = 0 if self.last is None else self.last + 1
                if place != following or _tensor(output).requires_grad:
                    return
                self.last = place
            self._kept[chunk] = output, RandomState.now(self.device)

        last = [] if self.last is None else [self.last]
        with ExitStack() as stack:
            for place in range(len(self.blocks)) if first else last:
                handle = self.blocks[place].register_forward_hook(
                    lambda _, __, output, place=place: look(place, output)
                )
                stack.callback(handle.remove)
            yield

    @contextmanager
    def handed_out(self, chunk: int) -> Iterator[None]:
        """During a second forward: no frozen block runs, if the chunk's output was kept."""
        kept = self._kept.pop(chunk, None)
        if kept is None or self.last is None:
            yield
            return
        output, state = kept

        def stand_in(*_: Any, **__: Any) -> Any:
            state.set(self.device)  # later blocks draw what they drew
            return output

        blocks = self.blocks[: self.last + 1]
        before = [vars(block).get("forward") for block in blocks]  # None: its class's
        for block in blocks:
            block.forward = stand_in
        try:
            yield
        finally:
            for block, own in zip(blocks, before, strict=True):
                del block.forward
                if own is not None:
                    block.forward = own


def _tensor(output: Any) -> Tensor:
    """A block's hidden states; some towers' blocks return them within a tuple."""
    states = output[0] if isinstance(output, tuple) else output
    assert isinstance(states, Tensor)
    return states
