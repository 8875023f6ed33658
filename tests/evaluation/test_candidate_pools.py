"""Who is right for whom in a pool, and what random pools must give on average."""

import math

import numpy as np
import pytest

from medclip_oc.evaluation import bootstrap, candidate_pools, metrics

IMAGES = np.array([5, 6, 5, 7, 8])
CAPTIONS = np.array([1, 2, 3, 1, 4])


def test_pairs_as_they_are() -> None:
    pool = candidate_pools.plain(np.array([1, 4]))
    assert pool.images.tolist() == pool.texts.tolist() == [1, 4]
    assert pool.links.tolist() == [[0, 0], [1, 1]]


def test_copies_become_one() -> None:
    """Pairs 0 and 2 share an image, 0 and 3 a caption."""
    pool = candidate_pools.merged(np.arange(5), IMAGES, CAPTIONS)
    assert pool.images.tolist() == [0, 1, 3, 4]
    assert pool.texts.tolist() == [0, 1, 2, 4]
    assert pool.links.tolist() == [[0, 0], [0, 2], [1, 1], [2, 0], [3, 3]]
    assert pool.image_of.tolist() == [0, 1, 0, 2, 3]
    assert pool.text_of.tolist() == [0, 1, 2, 0, 3]
    # not followed further: the image of pair 3 has no claim on the caption of pair 2
    assert [2, 2] not in pool.links.tolist()
    assert pool.right(0).tolist() == [2, 1, 1, 1]
    assert pool.right(1).tolist() == [2, 1, 1, 1]


def test_a_part_of_the_pairs() -> None:
    pool = candidate_pools.merged(np.array([2, 3, 4]), IMAGES, CAPTIONS)
    assert pool.images.tolist() == pool.texts.tolist() == [2, 3, 4]
    assert pool.links.tolist() == [[0, 0], [1, 1], [2, 2]]


def test_without_copies_merging_changes_nothing() -> None:
    numbers = np.arange(9) * 3
    one, two = (
        candidate_pools.plain(np.arange(9)),
        candidate_pools.merged(np.arange(9), numbers, -numbers),
    )
    for name in ("images", "texts", "links", "image_of", "text_of"):
        assert np.array_equal(getattr(one, name), getattr(two, name))


def test_draws_are_different_and_repeatable() -> None:
    first = candidate_pools.draw(0, 10, 100, 0)
    assert len(set(first.tolist())) == 10
    assert first.tolist() == sorted(first.tolist())
    assert np.array_equal(first, candidate_pools.draw(0, 10, 100, 0))
    assert not np.array_equal(first, candidate_pools.draw(0, 10, 100, 1))
    assert not np.array_equal(first, candidate_pools.draw(1, 10, 100, 0))
    counts = np.bincount(np.concatenate([candidate_pools.draw(0, 10, 20, n) for n in range(2000)]))
    assert counts.min() > 0.9 * counts.mean()


def test_intervals_hold_what_theory_says() -> None:
    """The share of 400 queries in the top 10 is binomial; its interval is known."""
    rng = np.random.default_rng(0)
    ranks = np.where(rng.random(400) < 0.3, 1.0, 50.0)
    share = np.mean(ranks <= 10)
    low, high = bootstrap.bootstrap(ranks, metrics.scores_of, 4000, 1)["R@10"]
    half = 1.96 * math.sqrt(share * (1 - share) / 400)
    assert low == pytest.approx(share - half, abs=0.004)
    assert high == pytest.approx(share + half, abs=0.004)


def test_intervals_are_seeded() -> None:
    ranks = np.arange(1.0, 60.0)
    one, two, three = (bootstrap.bootstrap(ranks, metrics.scores_of, 50, s) for s in (1, 1, 2))
    assert one == two != three
    assert set(one) == {"R@1", "R@5", "R@10", "median_rank", "mean_rank", "mrr"}


def test_parts_of_the_draws_join(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = np.arange(1.0, 60.0)
    whole = bootstrap.bootstrap(ranks, metrics.scores_of, 50, 1)
    monkeypatch.setattr(bootstrap, "_AT_ONCE", 59 * 7)
    assert bootstrap.bootstrap(ranks, metrics.scores_of, 50, 1) == whole


def test_paired_differences_are_of_the_same_queries() -> None:
    """Each query is exactly one place better: the difference has no spread, its parts have."""
    theirs = np.random.default_rng(0).integers(2, 100, 200).astype(float)
    found = bootstrap.paired(theirs - 1, theirs, metrics.scores_of, 200, 0)
    assert found["mean_rank"] == pytest.approx([-1, -1])
    assert found["median_rank"] == pytest.approx([-1, -1])
    alone = bootstrap.bootstrap(theirs, metrics.scores_of, 200, 0)["mean_rank"]
    assert alone[1] - alone[0] > 3
