"""Ranks and scores against matrices worked out by hand, and against a plain dense count."""

import itertools
import math

import numpy as np
import pytest
import sklearn.metrics
import torch

from medclip_oc.errors import WorkError
from medclip_oc.evaluation import candidate_pools, metrics


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


def test_several_captions_of_an_image_and_several_images_of_a_caption() -> None:
    """Image 0 has texts 0 and 1; text 2 belongs to images 1 and 2."""
    images = torch.eye(3)
    texts = torch.tensor([[0.0, 1.0, 0.0], [0.6, 0.0, 0.8], [0.0, 0.28, 0.96]])
    links = torch.tensor([[0, 0], [0, 1], [1, 2], [2, 2]])
    # scores: image 0 [0, .6, 0], image 1 [1, 0, .28], image 2 [0, .8, .96]
    image_ranks, text_ranks = metrics.retrieval_ranks(images, texts, links=links)
    # the better of its two captions comes first; text 0 beats image 1's; image 2 is right
    assert image_ranks.tolist() == [1, 2, 1]
    # text 0: image 1 beats its own, and image 2 ties with it; text 1: image 2 beats its own
    assert text_ranks.tolist() == [2.5, 2, 1]


@pytest.mark.parametrize(
    ("ties", "expected"),
    [("expected", [2.0, 1 + 2 / 3]), ("optimistic", [1, 1]), ("pessimistic", [3, 3])],
)
def test_each_rule_for_ties(ties: metrics.Ties, expected: list[float]) -> None:
    """All four texts look the same to both images: one is right for image 0, two for image 1."""
    images = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    texts = torch.tensor([[0.6, 0.8]]).repeat(4, 1)
    links = torch.tensor([[0, 0], [1, 1], [1, 2], [0, 3]])
    ranks, _ = metrics.retrieval_ranks(images, texts, links=links[:3], ties=ties)
    three_wrong = {"expected": 2.5, "optimistic": 1, "pessimistic": 4}[ties]
    assert ranks[0] == three_wrong
    assert ranks[1].item() == pytest.approx(expected[1])
    ranks, _ = metrics.retrieval_ranks(images, texts, links=links, ties=ties)
    assert ranks.tolist() == pytest.approx(
        [1 + 2 / 3, 1 + 2 / 3] if ties == "expected" else expected
    )


def test_the_expected_rank_is_the_mean_over_all_orders() -> None:
    """Three wrong and two right ones, tied: every order of them, counted out."""
    kinds = (0, 0, 0, 1, 1)
    firsts = [order.index(1) + 1 for order in itertools.permutations(kinds)]
    above, tied, copies = (torch.tensor([n]) for n in (0, 3, 2))
    assert metrics.rank(above, tied, copies).item() == pytest.approx(sum(firsts) / len(firsts))


@pytest.mark.parametrize("seed", [0, 1])
def test_as_scikit_learn_has_it(seed: int) -> None:
    """Another implementation, which counts equal scores against the right one."""
    images, texts = normal(80, 16, seed), normal(80, 16, seed + 10)
    texts[40:] = texts[:40]
    scores = (images.double() @ texts.double().T).numpy()
    scores[:, 40:] = scores[:, :40]  # equal to the last bit, as scikit-learn needs it
    found = metrics.retrieval_ranks(images, texts, ties="pessimistic")
    truth = np.eye(80)
    for ranks, table in zip(found, (scores, scores.T), strict=True):
        mine = metrics.summary(ranks)
        assert mine["mean_rank"] == pytest.approx(sklearn.metrics.coverage_error(truth, table))
        reciprocal = sklearn.metrics.label_ranking_average_precision_score(truth, table)
        assert mine["mrr"] == pytest.approx(reciprocal)
    plain = normal(80, 16, seed + 20)
    mine = metrics.summary(metrics.retrieval_ranks(images, plain)[0], [1, 3, 10])
    table = (images @ plain.T).numpy()
    for k in (1, 3, 10):
        score = sklearn.metrics.top_k_accuracy_score(np.arange(80), table, k=k)
        assert mine[f"R@{k}"] == pytest.approx(score)


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
    assert metrics.chance(4)["R@10"] == pytest.approx(1)


def test_chance_by_hand() -> None:
    """Of 5 candidates 1 is right for one query, 2 for the other."""
    found = metrics.chance(5, np.array([1, 2]), [1, 2])
    assert found["R@1"] == pytest.approx((1 / 5 + 2 / 5) / 2)
    assert found["R@2"] == pytest.approx((2 / 5 + 1 - 3 / 5 * 2 / 4) / 2)
    assert found["mean_rank"] == pytest.approx((6 / 2 + 6 / 3) / 2)
    assert metrics.chance(4)["median_rank"] == 2.5
    assert metrics.chance(5)["median_rank"] == 3
    assert metrics.chance(3)["mrr"] == pytest.approx((1 + 1 / 2 + 1 / 3) / 3)


def test_retrieval_record_of_a_pool_with_copies() -> None:
    """Pairs 0 and 2 share their image: two images, three texts."""
    pool = candidate_pools.merged(np.arange(3), np.array([7, 8, 7]), np.array([1, 2, 3]))
    record = metrics.retrieval(np.array([1.0, 2.0]), np.array([1.0, 1.0, 2.0]), [1, 2], pool)
    assert (record["pool"], record["images"], record["texts"]) == (3, 2, 3)
    # image 0 has two of the three texts; each text has one of the two images
    assert record["chance"]["R@1"] == pytest.approx(((2 / 3 + 1 / 3) / 2 + 1 / 2) / 2)
    assert record["text_to_image"]["R@1"] == pytest.approx(2 / 3)


def test_retrieval_record() -> None:
    record = metrics.retrieval(torch.tensor([1.0, 7.0]), torch.tensor([1.0, 1.0]))
    assert record["pool"] == 2
    assert record["image_to_text"]["R@1"] == 0.5
    assert record["text_to_image"]["R@1"] == 1.0
    assert math.isclose(record["mean_recall"], (0.5 + 0.5 + 1 + 1 + 1 + 1) / 6)
    assert metrics.flat(record)["text_to_image/R@1"] == 1.0


def test_features_that_are_not_finite() -> None:
    bad = normal(3, 4, 1)
    bad[1, 2] = float("nan")
    with pytest.raises(WorkError, match="text features hold NaN"):
        metrics.retrieval_ranks(normal(3, 4, 2), bad)
    bad[1, 2], bad[1, 3] = float("inf"), -float("inf")
    with pytest.raises(WorkError, match="image features hold NaN"):
        metrics.retrieval_ranks(bad, normal(3, 4, 2))
