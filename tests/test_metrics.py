"""Ranks and scores against matrices worked out by hand, and against a plain dense count."""

import math

import pytest
import torch

from medclip_oc import metrics
from medclip_oc.errors import WorkError


def normal(rows: int, width: int, seed: int) -> torch.Tensor:
    made = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(made, dim=-1)


def dense_ranks(scores: torch.Tensor) -> torch.Tensor:
    """Rank of the diagonal in each row, from the whole matrix; no ties."""
    return 1 + (scores > scores.diagonal()[:, None]).sum(1).double()


def test_directions_are_not_swapped() -> None:
    """Image 0 is nearest to text 1, while each text is nearest to its own image."""
    images = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    texts = torch.tensor([[0.8, 0.6], [0.96, 0.28]])
    # scores: image 0 [0.8, 0.96], image 1 [0.6, 0.28]
    image_ranks, text_ranks = metrics.retrieval_ranks(images, texts)
    assert image_ranks.tolist() == [2, 2]
    assert text_ranks.tolist() == [1, 2]


def test_ties_score_the_expected_rank() -> None:
    """Three texts are the same: the right one is first, second or third, 2 on average."""
    images = torch.eye(4)
    texts = torch.stack([images[0], images[0], images[0], images[3]])
    image_ranks, text_ranks = metrics.retrieval_ranks(images, texts)
    assert image_ranks.tolist() == [2.0, 2.5, 2.5, 1.0]
    # every text but the last looks like image 0; the other three images tie at zero
    assert text_ranks.tolist() == [1.0, 3.0, 3.0, 1.0]


@pytest.mark.parametrize("tile", [(1, 1), (7, 5), (64, 3), (512, 2048)])
def test_tiled_equals_dense(tile: tuple[int, int]) -> None:
    images, texts = normal(50, 16, 1), normal(50, 16, 2)
    image_ranks, text_ranks = metrics.retrieval_ranks(images, texts, tile)
    assert image_ranks.equal(dense_ranks(images @ texts.T))
    assert text_ranks.equal(dense_ranks(texts @ images.T))


def test_exact_copies_tie_in_any_tiling() -> None:
    images, texts = normal(40, 64, 3), normal(20, 64, 4).repeat(2, 1)
    first = metrics.retrieval_ranks(images, texts, (3, 7))
    second = metrics.retrieval_ranks(images, texts, (40, 40))
    assert first[0].equal(second[0])
    assert first[1].equal(second[1])
    assert (first[0] % 1 == 0.5).all()  # each text has one copy


def test_summary_by_hand() -> None:
    scores = metrics.summary(torch.tensor([1.0, 2.0, 5.0, 11.0]))
    assert scores == {
        "R@1": 0.25,
        "R@5": 0.75,
        "R@10": 0.75,
        "median_rank": 3.5,
        "mean_rank": 4.75,
        "mrr": pytest.approx((1 + 1 / 2 + 1 / 5 + 1 / 11) / 4),
    }


def test_chance_is_what_random_features_score() -> None:
    expected = metrics.chance(300)
    runs = [
        metrics.retrieval_ranks(normal(300, 32, s), normal(300, 32, s + 1000)) for s in range(20)
    ]
    found = metrics.summary(torch.cat([ranks for pair in runs for ranks in pair]))
    assert found["R@10"] == pytest.approx(expected["R@10"], rel=0.1)
    assert found["mean_rank"] == pytest.approx(expected["mean_rank"], rel=0.02)
    assert found["mrr"] == pytest.approx(expected["mrr"], rel=0.1)
    assert metrics.chance(4)["R@10"] == 1


def test_retrieval_record() -> None:
    record = metrics.retrieval(torch.tensor([1.0, 7.0]), torch.tensor([1.0, 1.0]))
    assert record["pool"] == 2
    assert record["image_to_text"]["R@1"] == 0.5
    assert record["text_to_image"]["R@1"] == 1.0
    assert math.isclose(record["mean_recall"], (0.5 + 0.5 + 1 + 1 + 1 + 1) / 6)
    assert metrics.flat(record)["text_to_image/R@1"] == 1.0


def test_nearest_is_best_first() -> None:
    targets = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
    assert metrics.nearest(targets[:1], targets, 2).tolist() == [[0, 1]]
    assert metrics.nearest(targets, targets, 10, tile=2).shape == (3, 3)


def test_features_that_are_not_finite() -> None:
    bad = normal(3, 4, 1)
    bad[1, 2] = float("nan")
    with pytest.raises(WorkError, match="text features hold NaN"):
        metrics.retrieval_ranks(normal(3, 4, 2), bad)
