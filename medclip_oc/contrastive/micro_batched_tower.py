"""One tower, chunk by chunk: features first, gradients back later.

`features` embeds all rows; `backward` takes the gradient of those features to the parameters. In
between, a chunk either keeps its graph (memory for time) or is embedded once more, with the same
random numbers. A tower without gradient is embedded once.

B rows (images or texts) per rank, C rows per chunk, D embedding size.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ..runtime import devices
from .recompute import FrozenBlocks, RandomState
from .soft_targets import slices

Embed = Callable[[Tensor], Tensor]
# Of the memory that is free: what frozen blocks' outputs may take.
_SHARE_FOR_FROZEN = 0.25


class MicroBatchedTower:
    """One tower during one step after another.

    Args:
        embed: rows (C, ...) on the device -> features (C, D).
        device: where it runs.
        chunk: C.
        precision: "fp32", "bf16" or "fp16".
        blocks: the tower's blocks in their order, see `FrozenBlocks`; none: all is run again.
    """

    keep = 0
    """How many chunks keep their graph. A single chunk always does: there is nothing to cache."""
    trains: bool | None = None
    """Whether a gradient reaches the tower; None before the first step."""
    graph_bytes = 0
    """GPU memory of one chunk's graph as last seen; 0 for a frozen tower, and on a CPU."""

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
        self.chunk, self.autocast = chunk, devices.autocast(device, precision)
        self._frozen = FrozenBlocks(blocks, device)
        self._trusted = False

    def chunks(self, rows: int) -> list[slice]:
        """The chunks that so many rows make; the last one may be smaller."""
        return slices(0, rows, self.chunk)

    def features(self, rows: Tensor) -> Tensor:
        """Embed all rows, (B, ...) on any device; only the chunk in work is moved: (B, D)."""
        self._rows, self._chunks = rows, self.chunks(len(rows))
        self._graphs: dict[int, Tensor] = {}
        self._states: dict[int, RandomState] = {}
        self._parts: list[Tensor] = []
        self._first()
        keep = len(self._chunks) if len(self._chunks) == 1 else self.keep
        for number in range(1, min(keep, len(self._chunks)) if self.trains else 1):
            self._add(number, self._run(number))
        # One autocast around all, so that weights are cast once; safe where no graph is made.
        with torch.no_grad(), self.autocast():
            for number in range(len(self._parts), len(self._chunks)):
                if self.trains:
                    self._states[number] = RandomState.now(self.device)
                with self._frozen.recorded(number):
                    self._parts.append(self._run(number))
        features = torch.cat(self._parts)  # (B, D)
        if not self.trains:
            self._clear()
        return features

    def backward(self, gradient: Tensor) -> None:
        """Take the features' gradient (B, D) to the parameters.

        First through the graphs that were kept, which frees them; then the other chunks are
        embedded once more.
        """
        for number in list(self._graphs):
            self._graphs.pop(number).backward(gradient[self._chunks[number]])  # (C, D)
        for number, state in self._states.items():
            with state.again(self.device):
                output = self._again(number)  # (C, D)
            output.backward(gradient[self._chunks[number]])
        self._clear()

    def _first(self) -> None:
        """Embed the first chunk with gradients on, which tells whether and where there are any."""
        state = RandomState.now(self.device)
        on_gpu = self.device.type == "cuda"
        before = torch.cuda.memory_allocated(self.device) if on_gpu else 0
        with self._frozen.recorded(0, first=True):
            output = self._run(0)
        after = torch.cuda.memory_allocated(self.device) if on_gpu else 0
        self.trains = output.requires_grad
        self.graph_bytes = max(0, after - before) if self.trains else 0
        if not self.trains or not self._frozen_fit():
            self._frozen.clear()
        if self.trains and (self.keep > 0 or len(self._chunks) == 1):
            self._frozen.forget(0)
            self._add(0, output)
        else:
            self._states[0] = state
            self._parts.append(output.detach())

    def _add(self, number: int, output: Tensor) -> None:
        self._graphs[number] = output
        self._parts.append(output.detach())

    def _clear(self) -> None:
        self._frozen.clear()
        self._states.clear()
        self._parts.clear()
        del self._rows

    def _again(self, number: int) -> Tensor:
        """A chunk's features with their graph, embedded for the second time."""
        before = RandomState.now(self.device)
        with self._frozen.handed_out(number):
            output = self._run(number)
        if self._trusted or self._frozen.last is None:
            return output
        # a tower whose blocks feed more than the next one would give other features
        first = self._parts[number]
        self._trusted = bool(torch.dist(output.detach(), first) <= 1e-2 * first.norm())
        if self._trusted:
            return output
        self._frozen = FrozenBlocks((), self.device)
        before.set(self.device)
        return self._run(number)

    def embed_chunk(self, rows: Tensor) -> Tensor:
        """Features (C, D) of (C, ...) rows on any device, in the tower's precision."""
        with self.autocast():
            return self.embed(rows.to(self.device, non_blocking=True))

    def _run(self, number: int) -> Tensor:
        return self.embed_chunk(self._rows[self._chunks[number]])

    def _frozen_fit(self) -> bool:
        """Whether there is room for the output of the last frozen block in all chunks."""
        needed = self._frozen.kept_bytes * len(self._chunks)
        free = devices.free_bytes(self.device) if needed else None
        return free is None or needed <= _SHARE_FOR_FROZEN * free
