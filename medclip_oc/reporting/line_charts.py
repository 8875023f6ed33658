"""Line charts of a page: where their lines and numbers stand, for SVG."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class Series:
    """A line of a chart."""

    label: str
    points: Sequence[tuple[float, float]]
    """(x, y), x ascending."""


@dataclass(frozen=True)
class Lines:
    """Lines over a common axis."""

    kind: ClassVar = "lines"
    title: str
    series: Sequence[Series]
    unit: str = ""
    """Stands behind the numbers of the upright axis."""
    across: str = "step"
    """What runs to the right."""

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Least and most x, least and most y, with some room."""
        xs, ys = ([p[i] for one in self.series for p in one.points] for i in (0, 1))
        low, high = min(ys), max(ys)
        room = 0.06 * (high - low) or abs(high) or 1.0
        return min(xs), max(xs), low - room, high + room

    def path(self, number: int) -> str:
        """A line as SVG wants it: "x,y x,y", in a field of WIDTH by HEIGHT."""
        left, right, low, high = self.box
        return " ".join(
            f"{WIDTH * (x - left) / ((right - left) or 1):.1f},"
            f"{HEIGHT * (high - y) / (high - low):.1f}"
            for x, y in self.series[number].points
        )

    @property
    def heights(self) -> list[tuple[float, str]]:
        """Where a horizontal line helps, and its value: (y in the field, text)."""
        _, _, low, high = self.box
        step = _round_step((high - low) / 3)
        first = math.ceil(low / step)
        ticks = [step * number for number in range(first, math.floor(high / step) + 1)]
        # a multiple of a step in binary may have a long tail
        return [(HEIGHT * (high - t) / (high - low), f"{t:.4g}{self.unit}") for t in ticks]

    @property
    def ends(self) -> tuple[str, str]:
        """The least and the most x."""
        left, right, _, _ = self.box
        return f"{left:,.0f}", f"{right:,.0f}"


WIDTH, HEIGHT = 360, 170
"""The field of a line chart."""


def _round_step(value: float) -> float:
    """The next number of the form 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(power * times for times in (1, 2, 5, 10) if power * times >= value)


@dataclass(frozen=True)
class Charts:
    """Line charts, side by side where there is room. One without a point is left out."""

    kind: ClassVar = "charts"
    charts: Sequence[Lines]

    @property
    def drawn(self) -> list[Lines]:
        """Those with a point."""
        return [chart for chart in self.charts if any(one.points for one in chart.series)]
