"""Who is right for whom in a pool; scores and chance against what is worked out by hand."""

import numpy as np
import pytest

from medclip_oc.evaluation import metrics

IMAGES = np.array([5, 6, 5, 7, 8])
CAPTIONS = np.array([1, 2, 3, 1, 4])


def test_pairs_as_they_are() -> None:
    pool = metrics.pool_of(np.array([1, 4]), np.arange(5), np.arange(5))
    assert pool.images.tolist() == pool.texts.tolist() == [1, 4]
    assert pool.links.tolist() == [[0, 0], [1, 1]]


def test_copies_become_one() -> None:
    """Pairs 0 and 2 share an image, 0 and 3 a caption; a part of the pairs shares nothing."""
    pool = metrics.pool_of(np.arange(5), IMAGES, CAPTIONS)
    assert pool.images.tolist() == [0, 1, 3, 4]
    assert pool.texts.tolist() == [0, 1, 2, 4]
    assert pool.links.tolist() == [[0, 0], [0, 2], [1, 1], [2, 0], [3, 3]]
    assert pool.image_of.tolist() == [0, 1, 0, 2, 3]
    assert pool.text_of.tolist() == [0, 1, 2, 0, 3]
    # links are not followed further: the image of pair 3 has no claim on the caption of pair 2
    pool = metrics.pool_of(np.array([2, 3, 4]), IMAGES, CAPTIONS)
    assert pool.images.tolist() == pool.texts.tolist() == [2, 3, 4]
    assert pool.links.tolist() == [[0, 0], [1, 1], [2, 2]]


def test_draws_are_different_and_repeatable() -> None:
    first = metrics.draw_pool(0, 10, 100, 0)
    assert len(set(first.tolist())) == 10
    assert first.tolist() == sorted(first.tolist())
    assert np.array_equal(first, metrics.draw_pool(0, 10, 100, 0))
    assert not np.array_equal(first, metrics.draw_pool(0, 10, 100, 1))
    assert not np.array_equal(first, metrics.draw_pool(1, 10, 100, 0))
    counts = np.bincount(np.concatenate([metrics.draw_pool(0, 10, 20, n) for n in range(2000)]))
    assert counts.min() > 0.9 * counts.mean()


def test_summary_by_hand() -> None:
    scores = metrics.summary(np.array([1.0, 2.0, 5.0, 11.0]))
    assert scores == {
        "R@1": 0.25,
        "R@5": 0.75,
        "R@10": 0.75,
        "median_rank": 3.5,
        "mean_rank": 4.75,
        "mrr": pytest.approx((1 + 1 / 2 + 1 / 5 + 1 / 11) / 4),
    }


def test_chance_by_hand() -> None:
    """Of 5 candidates 1 is right for one query, 2 for the other."""
    scores = metrics.chance(5, np.array([1, 2]), [1, 2])
    assert scores["R@1"] == pytest.approx((1 / 5 + 2 / 5) / 2)
    assert scores["R@2"] == pytest.approx((2 / 5 + 1 - 3 / 5 * 2 / 4) / 2)
    assert scores["mean_rank"] == pytest.approx((6 / 2 + 6 / 3) / 2)
    for n, name, expected in (
        (4, "R@10", 1),
        (4, "median_rank", 2.5),
        (5, "median_rank", 3),
        (3, "mrr", (1 + 1 / 2 + 1 / 3) / 3),
    ):
        assert metrics.chance(n, np.ones(n, np.int64))[name] == pytest.approx(expected)


def test_retrieval_record_of_a_pool_with_copies() -> None:
    """Pairs 0 and 2 share their image: two images, three texts."""
    pool = metrics.pool_of(np.arange(3), np.array([7, 8, 7]), np.array([1, 2, 3]))
    record = metrics.retrieval((np.array([1.0, 2.0]), np.array([1.0, 1.0, 2.0])), pool, [1, 5, 10])
    assert (record["pool"], record["images"], record["texts"]) == (3, 2, 3)
    # image 0 has two of the three texts; each text has one of the two images
    assert record["chance"]["R@1"] == pytest.approx(((2 / 3 + 1 / 3) / 2 + 1 / 2) / 2)
    assert record["image_to_text"]["R@1"] == 0.5
    assert record["text_to_image"]["R@1"] == pytest.approx(2 / 3)
    assert record["mean_recall"] == pytest.approx((0.5 + 2 / 3 + 4) / 6)
    assert metrics.flat(record)["image_to_text/R@1"] == 0.5
