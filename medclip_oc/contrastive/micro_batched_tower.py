"""One tower, chunk by chunk: features first, gradients back later.

In between, a chunk either keeps its graph (memory for time) or is embedded once more, and meets
what it met the first time: dropout draws the same random numbers, and the running statistics of
batch norm stay where the first forward put them. Leading blocks that no gradient reaches don't run
again, and a tower without gradient runs once.

Texts may be put in chunks by their length (`split`): a tower sees each row by itself, so features
and gradients only change places. Dropout draws chunk by chunk, in the order of these chunks.

B rows (images or texts) per rank, C rows per chunk, D embedding size.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..runtime import devices

Embed = Callable[[Tensor], Tensor]
Split = Callable[[Tensor, int], tuple[Tensor, Sequence[Tensor]]]
"""Rows (B, ...) and C -> the order to take the rows in, (B,), and the chunks that this makes."""
# Of the memory that is free: what frozen blocks' outputs may take.
_SHARE_FOR_FROZEN = 0.25


class RandomState(NamedTuple):
    """Where torch's generators stand: the CPU's, and that of the GPU in use."""

    cpu: Tensor
    cuda: Tensor | None

    @classmethod
    def now(cls, device: torch.device) -> "RandomState":
        """Where they stand now."""
        cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        return cls(torch.get_rng_state(), cuda)

    def set(self, device: torch.device) -> None:
        """Go there."""
        torch.set_rng_state(self.cpu)
        if self.cuda is not None:
            torch.cuda.set_rng_state(self.cuda, device)


def draws(embed: Embed, rows: Tensor, device: torch.device) -> tuple[Tensor, bool]:
    """What `embed` makes of rows, and whether it takes random numbers, which will come again."""
    before = RandomState.now(device)
    with torch.no_grad():
        output = embed(rows)
    states = list(zip(before, RandomState.now(device), strict=True))
    before.set(device)
    return output, any(a is not None and b is not None and not a.equal(b) for a, b in states)


def live_batch_norms(module: nn.Module) -> list[_BatchNorm]:
    """Batch-norm layers that normalise by the batch and keep running statistics."""
    return [m for m in module.modules() if isinstance(m, _BatchNorm) and m.training]


@contextmanager
def statistics_kept(module: nn.Module) -> Iterator[None]:
    """Normalise as in training, but leave running statistics alone."""
    live = live_batch_norms(module)
    before = [(layer.momentum, layer.num_batches_tracked) for layer in live]
    for layer in live:
        layer.momentum, layer.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for layer, (momentum, tracked) in zip(live, before, strict=True):
            layer.momentum, layer.num_batches_tracked = momentum, tracked


def as_they_come(rows: Tensor, size: int) -> tuple[Tensor, Sequence[Tensor]]:
    """Rows (B, ...) in chunks of C; the last one may be smaller."""
    return torch.arange(len(rows)), rows.split(size)


class MicroBatchedTower:
    """One tower during one step after another: `embed` makes features (C, D) of rows (C, ...) on
    the device; `blocks` are the tower's in the order in which they run, each feeding nothing but
    the next; none: all is run again.
    """

    keep = 0  # how many chunks keep their graph; a single one always does: nothing is cached
    trains: bool | None = None  # whether a gradient reaches the tower; None before the first step
    graph_bytes = 0  # of one chunk, on a GPU, as last seen; 0 for a frozen tower, and on a CPU

    def __init__(
        self,
        embed: Embed,
        device: torch.device,
        *,
        chunk: int,
        precision: str,
        blocks: Sequence[nn.Module] = (),
    ) -> None:
        self.embed, self.device = embed, device
        self.split: Split = as_they_come
        self.chunk, self.autocast = chunk, devices.autocast(device, precision)
        self._frozen, self._trusted = _FrozenBlocks(blocks, device), False

    def features(self, rows: Tensor) -> Tensor:
        """Embed all rows, (B, ...) on any device; only the chunk in work is moved: (B, D)."""
        self._order, self._chunks = self.split(rows, self.chunk)  # (C, ...) each
        self._graphs: dict[int, Tensor] = {}  # by chunk, as are the states: (C, D)
        self._states: dict[int, RandomState] = {}
        self._parts: list[Tensor] = []  # (C, D) each
        self._first()
        for number in range(1, min(self.keep, len(self._chunks)) if self.trains else 1):
            self._keep_graph(number, self._run(number))
        # One autocast around all, so that weights are cast once; safe where no graph is made.
        with torch.no_grad(), self.autocast():
            for number in range(len(self._parts), len(self._chunks)):
                if self.trains:
                    self._states[number] = RandomState.now(self.device)
                with self._frozen.recorded(number):
                    self._parts.append(self._run(number))
        features = torch.cat(self._parts)[self._order.argsort()]  # (B, D)
        if not self.trains:
            self._clear()
        return features

    def backward(self, gradient: Tensor) -> None:
        """Take the features' gradient (B, D) to the parameters.

        First through the graphs that were kept, which frees them; then the other chunks are
        embedded once more.
        """
        parts = gradient[self._order].split(self.chunk)  # (C, D) each
        for number in list(self._graphs):
            self._graphs.pop(number).backward(parts[number])  # (C, D)
        for number in self._states:
            with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
                output = self._again(number)  # (C, D)
            output.backward(parts[number])  # (C, D)
        self._clear()

    def embed_chunk(self, rows: Tensor) -> Tensor:
        """Features (C, D) of (C, ...) rows on any device, in the tower's precision."""
        with self.autocast():
            return self.embed(rows.to(self.device, non_blocking=True))

    def _run(self, number: int) -> Tensor:
        return self.embed_chunk(self._chunks[number])

    def _first(self) -> None:
        """Embed the first chunk with gradients on, which tells whether and where there are any."""
        state, frozen = RandomState.now(self.device), self._frozen
        on_gpu = self.device.type == "cuda"
        before = torch.cuda.memory_allocated(self.device) if on_gpu else 0
        with frozen.recorded(0, first=True):
            output = self._run(0)  # (C, D)
        after = torch.cuda.memory_allocated(self.device) if on_gpu else 0
        self.trains = output.requires_grad
        self.graph_bytes = max(0, after - before) if self.trains else 0
        needed = len(self._chunks) * sum(_tensor(kept).nbytes for kept, _ in frozen.kept.values())
        free = devices.free_bytes(self.device) if needed else None
        if not self.trains or (free is not None and needed > _SHARE_FOR_FROZEN * free):
            frozen.clear()
        if self.trains and (self.keep > 0 or len(self._chunks) == 1):
            frozen.kept.pop(0, None)
            self._keep_graph(0, output)
        else:
            self._states[0] = state
            self._parts.append(output.detach())

    def _keep_graph(self, number: int, output: Tensor) -> None:
        self._graphs[number] = output
        self._parts.append(output.detach())

    def _again(self, number: int) -> Tensor:
        """A chunk's features with their graph, embedded for the second time: (C, D)."""
        self._states[number].set(self.device)
        with self._frozen.handed_out(number):
            output = self._run(number)
        if not self._trusted and self._frozen.count:
            # a tower whose blocks feed more than the next one would give other features
            first = self._parts[number]
            self._trusted = bool(torch.dist(output.detach(), first) <= 1e-2 * first.norm())
            if not self._trusted:
                self._frozen = _FrozenBlocks((), self.device)
                self._states[number].set(self.device)
                return self._run(number)
        return output

    def _clear(self) -> None:
        self._frozen.clear()
        self._states.clear()
        self._parts.clear()
        del self._chunks


class _FrozenBlocks:
    """Runs the leading blocks of a tower that no gradient reaches only once.

    Autograd says which they are: those whose output needs no gradient. Only the last one's output
    is kept, per chunk; in the second forward it stands for the output of every block up to there.
    (What lies before the first block, the patch or word embedding, runs again: a hundredth of a
    tower.)
    """

    def __init__(self, blocks: Sequence[nn.Module], device: torch.device) -> None:
        self.blocks, self.device = list(blocks), device
        self.clear()

    def clear(self) -> None:
        """Forget what was kept."""
        self.count = 0  # of frozen blocks
        # by chunk: the last frozen block's output, and the random state after it
        self.kept: dict[int, tuple[Any, RandomState]] = {}

    @contextmanager
    def recorded(self, chunk: int, *, first: bool = False) -> Iterator[None]:
        """During a first forward: keep the output of the last frozen block, if there is one.

        The `first` of a step has gradients on, and tells which block that is.
        """

        def look(place: int, _: nn.Module, __: Any, output: Any) -> None:
            if first:
                if place != self.count or _tensor(output).requires_grad:
                    return
                self.count += 1
            self.kept[chunk] = output, RandomState.now(self.device)

        with ExitStack() as stack:
            for place, block in enumerate(self.blocks if first else self.blocks[: self.count][-1:]):
                stack.enter_context(block.register_forward_hook(partial(look, place)))
            yield

    @contextmanager
    def handed_out(self, chunk: int) -> Iterator[None]:
        """During a second forward: no frozen block runs, if the chunk's output was kept."""
        kept = self.kept.pop(chunk, None)

        def stand_in(*_: Any, **__: Any) -> Any:
            assert kept is not None
            kept[1].set(self.device)  # later blocks draw what they drew
            return kept[0]

        blocks = self.blocks[: self.count] if kept else []
        for block in blocks:
            block.forward = stand_in
        try:
            yield
        finally:
            for block in blocks:
                del block.forward  # back to its class's


def _tensor(output: Any) -> Tensor:
    """A block's hidden states; some towers' blocks return them within a tuple."""
    states = output[0] if isinstance(output, tuple) else output
    assert isinstance(states, Tensor)
    return states
