"""Timing two ways of doing the same work in turn, so that a drifting machine harms neither.

A benchmark module of this folder yields `Comparison`s; bench.py prints each as a JSON line.
"""

import gc
import resource
import statistics
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


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
        names = ("bench", "case", "ours", "peer", "theirs", "unit", "better", "rounds")
        figures = {name: getattr(self, name) for name in names} | self.extra
        return {name: _short(value) for name, value in figures.items()}


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

    Args (the others as in `Comparison`):
        ours: our way; called without arguments.
        theirs: the peer's way to the same result.
        rounds: paired runs that count, after `warmup` others.
        items: how many items one call works on; the figures are then items per second, else the
            seconds of a call.
        before: called before each run of either, untimed; to clear away what the last one left.
    """
    sides = {"ours": partial(seconds, ours, before), "theirs": partial(seconds, theirs, before)}
    measured = in_turn(sides, rounds, warmup)
    (mine, spent), (peers, spent_by_peer) = (zip(*measured[side], strict=True) for side in sides)
    figures = [statistics.median(times) for times in (mine, peers)]
    unit = "s" if items is None else f"{item}/s"
    if items is not None:
        figures = [items / figure for figure in figures]
    more = {**(extra or {}), "cpu_rounds": ratios(spent_by_peer, spent)}
    return Comparison(bench, case, figures[0], peer, figures[1], unit, ratios(peers, mine), more)


def in_turn(sides: Mapping[K, Callable[[], V]], rounds: int, warmup: int = 1) -> dict[K, list[V]]:
    """What each side's call returns in each of the rounds that count, those before left out."""
    measured: dict[K, list[V]] = {side: [] for side in sides}
    for number in range(warmup + rounds):
        # who goes first alternates too: the second finds warm caches
        for side, call in list(sides.items())[:: -1 if number % 2 else 1]:
            measured[side].append(call())
    return {side: results[warmup:] for side, results in measured.items()}


def ratios(over: Sequence[float], under: Sequence[float]) -> list[float]:
    """The quotients, round by round."""
    return [a / b if b else float("nan") for a, b in zip(over, under, strict=True)]


def processor_seconds() -> float:
    """Of this process, and of those that it started and that ended."""
    return sum(
        used.ru_utime + used.ru_stime
        for used in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def seconds(
    call: Callable[[], Any], before: Callable[[], Any] | None = None
) -> tuple[float, float]:
    """Wall and processor time of one call; `before` isn't timed, and old garbage is collected."""
    if before:
        before()
    gc.collect()
    spent, start = processor_seconds(), time.perf_counter()
    call()
    return time.perf_counter() - start, processor_seconds() - spent


def _short(value: Any) -> Any:
    """A figure, or each of a list, at four significant digits, as a person reads it."""
    if isinstance(value, list):
        return [_short(each) for each in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value
