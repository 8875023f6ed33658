"""What goes wrong while pairs are loaded: agreed on by all ranks, said once, bounded.

A rank that stopped alone would leave the others waiting in a collective. So the ranks exchange
three numbers before each step (errors, unreadable pairs, long captions) and act alike.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from ..config.schema import LongCaptions
from ..errors import InputError, WorkError
from ..runtime import distributed
from ..runtime.distributed import World
from . import captions
from .dataset import Batch, Loaded

CHECK_SECONDS = 20.0
"""Between two looks at whether the shards are still there, besides one at each epoch."""


@dataclass
class TrainingBatches:
    """Passes batches on, and stops every rank together when that can't go on.

    Args:
        world: the ranks.
        say: where a line for the user goes; called on every rank with the same lines.
        steps: batches to come.
        pairs_per_step: G.
        pairs_per_epoch: of the training pairs.
        max_bad_share: unreadable pairs allowed, as a share of those seen or of an epoch's,
            whichever are more.
        long_captions: what becomes of them, and `context` tokens that fit: for the report.
        check: raises ShardChanged if a shard is gone.
        passed_over: further unreadable pairs of this rank, since it was called last.
        loads: what the batches come from.
        start: pairs that were done before the first of them.
    """

    world: World
    say: Callable[[str], None]
    steps: int
    pairs_per_step: int
    pairs_per_epoch: int
    max_bad_share: float
    long_captions: LongCaptions
    context: int
    check: Callable[[], None] = lambda: None
    passed_over: Callable[[], list[str]] = list
    loads: Iterable[Loaded] = ()
    start: int = 0
    bad: int = 0
    long: int = 0
    _named: set[str] = field(default_factory=set)
    _checked: float = field(default_factory=time.monotonic)
    _reported: bool = False

    def state_dict(self) -> dict[str, Any]:
        """What was counted so far; the same on every rank."""
        named = sorted(self._named)
        return {"bad": self.bad, "long": self.long, "named": named, "reported": self._reported}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on counting from there."""
        self.bad, self.long, self._reported = state["bad"], state["long"], state["reported"]
        self._named = set(state["named"])

    def __iter__(self) -> Iterator[Batch]:
        return self.over(iter(self.loads))

    def over(self, loads: Iterator[Loaded]) -> Iterator[Batch]:
        """The batches of `loads`, one per step.

        Raises:
            InputError, WorkError: on every rank, with the same words, whichever rank met it.
        """
        for step in range(self.steps):  # not to the end of `loads`: a late error would be alone
            seen = self.start + (step + 1) * self.pairs_per_step
            loaded, error = self._next(loads, seen - self.pairs_per_step)
            lines = [*loaded.bad, *self.passed_over()] if loaded else []
            numbers = [int(error is not None), len(lines), loaded.long_captions if loaded else 0]
            failed, bad, long = distributed.all_reduce_sum(numbers, self.world.device)
            if failed:
                distributed.raise_together(error, self.world.device)
            assert loaded is not None
            self.long += long
            if bad:
                self._count_bad(lines, bad, seen)
            if seen >= self.pairs_per_epoch or step + 1 == self.steps:
                self._report_long(seen)
            yield loaded.batch

    def _next(
        self, loads: Iterator[Loaded], seen: int
    ) -> tuple[Loaded | None, InputError | WorkError | None]:
        """This rank's next batch, or why there is none."""
        try:
            self._check_now_and_then(seen)
            return next(loads), None
        except (InputError, WorkError) as error:
            return None, error

    def _check_now_and_then(self, seen: int) -> None:
        """One rank looks; the others hear of it with everything else."""
        begins = seen % self.pairs_per_epoch < self.pairs_per_step
        due = begins or time.monotonic() - self._checked > CHECK_SECONDS
        if self.world.main and due:
            self.check()
            self._checked = time.monotonic()

    def _count_bad(self, own: list[str], bad: int, seen: int) -> None:
        self.bad += bad
        allowed = self.max_bad_share * max(seen, self.pairs_per_epoch)
        lines = [
            line for lines in distributed.all_gather_texts(own, self.world.device) for line in lines
        ]
        for line in lines:
            if line not in self._named:
                self._named.add(line)
                self.say(f"unreadable, replaced by another pair: {line}")
        if self.bad > allowed:
            raise WorkError(
                f"{self.bad:,} of the first {seen:,} pairs can't be read; data.max_bad_share: "
                f"{self.max_bad_share} allows {int(allowed):,}; the last: {lines[-1]}"
            )

    def _report_long(self, seen: int) -> None:
        if self._reported:
            return
        self._reported = True
        line = captions.report(self.long, seen, self.long_captions, self.context)
        if line:
            self.say(line)
