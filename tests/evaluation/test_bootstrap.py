"""Intervals that theory knows."""

import math

import numpy as np
import pytest
from scipy.stats import binomtest

from medclip_oc.evaluation import bootstrap
from medclip_oc.evaluation.metrics import KS


def test_intervals_hold_what_theory_says() -> None:
    """The share of 400 queries in the top 10 is binomial; its interval is known."""
    rng = np.random.default_rng(0)
    ranks = np.where(rng.random(400) < 0.3, 1.0, 50.0)
    share = np.mean(ranks <= 10)
    low, high = bootstrap.bootstrap(ranks, KS, 4000, 1)["R@10"]
    half = 1.96 * math.sqrt(share * (1 - share) / 400)
    assert low == pytest.approx(share - half, abs=0.004)
    assert high == pytest.approx(share + half, abs=0.004)


@pytest.mark.parametrize(("right", "n"), [(0, 3), (3, 3), (2, 4), (0, 40)])
def test_wilsons_interval(right: int, n: int) -> None:
    ends = binomtest(right, n).proportion_ci(method="wilson")
    assert bootstrap.wilson(right / n, n) == pytest.approx([ends.low, ends.high])


def test_queries_that_all_end_alike_leave_an_interval() -> None:
    drawn = bootstrap.bootstrap(np.full(40, 7.0), KS, 50, 0)
    assert drawn["R@5"] == pytest.approx([0, 0.0876], abs=5e-5)
    assert drawn["R@10"] == pytest.approx([0.9124, 1], abs=5e-5)


def test_intervals_are_seeded_and_drawn_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = np.arange(1.0, 60.0)
    one, two, three = (bootstrap.bootstrap(ranks, KS, 50, s) for s in (1, 1, 2))
    assert one == two != three
    assert set(one) == {"R@1", "R@5", "R@10", "median_rank", "mean_rank", "mrr"}
    monkeypatch.setattr(bootstrap, "_AT_ONCE", 59 * 7)
    assert bootstrap.bootstrap(ranks, KS, 50, 1) == one


def test_paired_differences_are_of_the_same_queries() -> None:
    """Each query is exactly one place better: the difference has no spread, its parts have."""
    theirs = np.random.default_rng(0).integers(2, 100, 200).astype(float)
    gained = bootstrap.bootstrap(theirs - 1, KS, 200, 0, theirs)
    assert gained["mean_rank"] == pytest.approx([-1, -1])
    assert gained["median_rank"] == pytest.approx([-1, -1])
    alone = bootstrap.bootstrap(theirs, KS, 200, 0)["mean_rank"]
    assert alone[1] - alone[0] > 3
