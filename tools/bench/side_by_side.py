"""Timing two ways of doing the same work in turn, so that a drifting machine harms neither.

A benchmark module of this folder yields `Comparison`s; bench.py prints each as a JSON line.
"""

import gc
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Comparison:
    """Ours against a peer's, measured in turn in one call."""

    bench: str
    """Name of the benchmark: pack, step, ..."""
    case: str
    """What was done, with its sizes."""
    ours: float
    """Median of our figure, in `unit`."""
    peer: str
    """Whose figure `theirs` is."""
    theirs: float
    unit: str
    rounds: list[float]
    """How many times better than the peer each pair of runs was."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Further figures, which stand beside the others in the line."""

    @property
    def better(self) -> float:
        """How many times better than the peer: above 1 is better, whatever the unit."""
        return statistics.median(self.rounds)

    def line(self) -> dict[str, Any]:
        """The JSON object of this comparison."""
        return {
            "bench": self.bench,
            "case": self.case,
            "ours": _short(self.ours),
            "peer": self.peer,
            "theirs": _short(self.theirs),
            "unit": self.unit,
            "better": _short(self.better),
            "rounds": [_short(ratio) for ratio in self.rounds],
            **{key: _short(value) for key, value in self.extra.items()},
        }


def compare(
    bench: str,
    case: str,
    ours: Callable[[], Any],
    theirs: Callable[[], Any],
    *,
    peer: str,
    rounds: int,
    items: int | None = None,
    item: str = "pairs",
    warmup: int = 1,
    before: Callable[[], Any] | None = None,
    extra: dict[str, Any] | None = None,
) -> Comparison:
    """Time both, one after the other, `rounds` times.

    Beside the wall time stand `cpu_rounds`: the same ratios of processor time, which other programs
    on the machine touch less. With OMP_WAIT_POLICY=passive no processor time goes into waiting.

    Args:
        bench: name of the benchmark.
        case: what is done, with its sizes.
        ours: our way; called without arguments.
        theirs: the peer's way to the same result.
        peer: who the peer is.
        rounds: paired runs that count.
        items: how many items one call works on; the figures are then items per second, else the
            seconds of a call.
        item: what they are, in the plural.
        warmup: paired runs beforehand that don't count.
        before: called before each run of either, untimed; to clear away what the last one left.
        extra: see `Comparison`.
    """
    wall: dict[str, list[float]] = {"ours": [], "theirs": []}
    processor: dict[str, list[float]] = {"ours": [], "theirs": []}
    for number in range(warmup + rounds):
        # who goes first alternates too: the second finds warm caches
        pair = [("ours", ours), ("theirs", theirs)][:: 1 if number % 2 == 0 else -1]
        for side, call in pair:
            if before:
                before()
            spent = processor_seconds()
            wall[side].append(seconds(call))
            processor[side].append(processor_seconds() - spent)
    mine, peers = (statistics.median(wall[side][warmup:]) for side in ("ours", "theirs"))
    unit = "s" if items is None else f"{item}/s"
    if items is not None:
        mine, peers = items / mine, items / peers
    cpu_rounds = [_short(ratio) for ratio in _ratios(processor, warmup)]
    more = {**(extra or {}), "cpu_rounds": cpu_rounds}
    return Comparison(bench, case, mine, peer, peers, unit, _ratios(wall, warmup), more)


def _ratios(times: dict[str, list[float]], warmup: int) -> list[float]:
    """How many times less ours took, of each round that counts."""
    rounds = zip(times["ours"][warmup:], times["theirs"][warmup:], strict=True)
    return [theirs / ours if ours else float("nan") for ours, theirs in rounds]


def processor_seconds() -> float:
    """Of this process, and of those that it started and that ended."""
    return sum(
        used.ru_utime + used.ru_stime
        for used in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def seconds(call: Callable[[], Any]) -> float:
    """Wall time of one call; the garbage of earlier ones is collected before."""
    gc.collect()
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _short(value: Any) -> Any:
    """A figure at four significant digits, as a person reads it."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    return value
