"""Who is right for whom in a pool."""

import numpy as np

from medclip_oc.evaluation import candidate_pools

IMAGES = np.array([5, 6, 5, 7, 8])
CAPTIONS = np.array([1, 2, 3, 1, 4])


def test_pairs_as_they_are() -> None:
    pool = candidate_pools.plain(np.array([1, 4]))
    assert pool.images.tolist() == pool.texts.tolist() == [1, 4]
    assert pool.links.tolist() == [[0, 0], [1, 1]]


def test_copies_become_one() -> None:
    """Pairs 0 and 2 share an image, 0 and 3 a caption; a part of the pairs shares nothing."""
    pool = candidate_pools.merged(np.arange(5), IMAGES, CAPTIONS)
    assert pool.images.tolist() == [0, 1, 3, 4]
    assert pool.texts.tolist() == [0, 1, 2, 4]
    assert pool.links.tolist() == [[0, 0], [0, 2], [1, 1], [2, 0], [3, 3]]
    assert pool.image_of.tolist() == [0, 1, 0, 2, 3]
    assert pool.text_of.tolist() == [0, 1, 2, 0, 3]
    # links are not followed further: the image of pair 3 has no claim on the caption of pair 2
    pool = candidate_pools.merged(np.array([2, 3, 4]), IMAGES, CAPTIONS)
    assert pool.images.tolist() == pool.texts.tolist() == [2, 3, 4]
    assert pool.links.tolist() == [[0, 0], [1, 1], [2, 2]]


def test_draws_are_different_and_repeatable() -> None:
    first = candidate_pools.draw(0, 10, 100, 0)
    assert len(set(first.tolist())) == 10
    assert first.tolist() == sorted(first.tolist())
    assert np.array_equal(first, candidate_pools.draw(0, 10, 100, 0))
    assert not np.array_equal(first, candidate_pools.draw(0, 10, 100, 1))
    assert not np.array_equal(first, candidate_pools.draw(1, 10, 100, 0))
    counts = np.bincount(np.concatenate([candidate_pools.draw(0, 10, 20, n) for n in range(2000)]))
    assert counts.min() > 0.9 * counts.mean()
