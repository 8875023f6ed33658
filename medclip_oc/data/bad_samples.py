"""The bad-sample policy: what can't be read is agreed on by all ranks, told once, and bounded.

A rank that stopped alone would leave the others waiting in a collective. So the ranks exchange
three numbers before each step (errors, unreadable pairs, long captions) and act alike.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from ..config.schema import DataConfig
from ..errors import InputError, WorkError
from ..runtime import distributed
from ..runtime.distributed import World
from .dataset import Batch, LoadedBatch

CHECK_SECONDS = 20.0
"""Between two looks at whether the shards are still there, besides one at each epoch."""


@dataclass(kw_only=True)
class TrainingBatches:
    """This rank's batches, one per step, under the policy; to be iterated over once."""

    loaded: Iterator[LoadedBatch]
    """Where they come from."""
    settings: DataConfig
    """The policy: `max_bad_share`, of the pairs seen or of an epoch's, whichever are more."""
    world: World
    log: Callable[[str], None]
    """Where a line for the user goes; called on every rank with the same lines."""
    steps: int
    """Batches to come."""
    pairs_per_step: int
    """G."""
    pairs_per_epoch: int
    context: int
    """Tokens of a caption that fit."""
    start: int = 0
    """Pairs that were done before the first of them."""
    check: Callable[[], None] = lambda: None
    """Raises ShardChanged if a shard is gone."""

    def __post_init__(self) -> None:
        self._checked = time.monotonic()
        self._state: dict[str, Any] = {"bad": 0, "long": 0, "named": set(), "reported": False}

    def state_dict(self) -> dict[str, Any]:
        """Unreadable pairs, long captions, and what was told so far; the same on every rank."""
        return {**self._state, "named": sorted(self._state["named"])}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue counting from there."""
        self._state = {**state, "named": set(state["named"])}

    def __iter__(self) -> Iterator[Batch]:
        """The batches.

        Raises:
            InputError, WorkError: on every rank, with the same words, whichever rank met it.
        """
        for step in range(self.steps):  # not to the end: a late error would be alone
            seen = self.start + (step + 1) * self.pairs_per_step
            loaded, error = self._next(seen - self.pairs_per_step)
            counts = [0, len(loaded.bad), loaded.long_captions] if loaded else [1, 0, 0]
            failed, bad, long = distributed.all_reduce_sum(counts, self.world.device)
            if failed:
                distributed.raise_together(error)
            assert loaded is not None
            self._state["long"] += long
            if bad:
                self._count_bad(loaded.bad, bad, seen)
            if seen >= self.pairs_per_epoch or step + 1 == self.steps:
                self._report_long(seen)
            yield loaded.batch

    def _next(self, seen: int) -> tuple[LoadedBatch | None, InputError | WorkError | None]:
        """This rank's next batch, or why there is none."""
        try:
            epoch_begins = seen % self.pairs_per_epoch < self.pairs_per_step
            due = epoch_begins or time.monotonic() - self._checked > CHECK_SECONDS
            if self.world.main and due:  # the others hear of it with everything else
                self.check()
                self._checked = time.monotonic()
            return next(self.loaded), None
        except (InputError, WorkError) as error:
            return None, error

    def _count_bad(self, own_lines: list[str], bad: int, seen: int) -> None:
        state, share = self._state, self.settings.max_bad_share
        state["bad"] += bad
        of_ranks = distributed.all_gather_objects(own_lines)
        lines = [line.replace("\n", " ") for of_rank in of_ranks for line in of_rank]
        for line in lines:
            if line not in state["named"]:
                state["named"].add(line)
                self.log(f"unreadable, replaced by another pair: {line}")
        allowed = share * max(seen, self.pairs_per_epoch)
        if state["bad"] > allowed:
            raise WorkError(
                f"{state['bad']:,} of the first {seen:,} pairs can't be read; data.max_bad_share: "
                f"{share} allows {int(allowed):,}; the last: {lines[-1]}"
            )

    def _report_long(self, seen: int) -> None:
        policy, long = self.settings.long_captions, self._state["long"]
        if long and not self._state["reported"]:
            treated = "cut there" if policy == "truncate" else "given in runs of sentences"
            self.log(
                f"{long:,} of {seen:,} captions ({long / seen:.1%}) are longer than {self.context} "
                f"tokens, and {treated} (data.long_captions: {policy})"
            )
        self._state["reported"] = True
