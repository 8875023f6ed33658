"""Nearest candidates and what they have in common with the query, by hand and by scikit-learn."""

import math

import numpy as np
import pytest
import sklearn.metrics
import torch

from medclip_oc.evaluation import relevance, top_k

CONCEPTS = np.array([[1, 2, 0], [2, 3, 0], [0, 0, 0], [1, 2, 0], [4, 0, 0], [2, 0, 2]])


def normal(rows: int, width: int, seed: int) -> torch.Tensor:
    made = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(made, dim=-1)


def test_overlap_by_hand() -> None:
    overlap = relevance.Overlap(CONCEPTS)
    assert overlap.sizes.tolist() == [2, 2, 0, 2, 1, 1]
    assert overlap.of(np.array([0]))[0].tolist() == [1, 1 / 3, 0, 1, 0, 0.5]
    assert overlap.of(np.array([2, 4])).tolist() == [[0] * 6, [0, 0, 0, 0, 1, 0]]


def test_overlap_of_sets() -> None:
    rng = np.random.default_rng(0)
    concepts = rng.integers(0, 12, (40, 5))
    sets = [set(row[row > 0].tolist()) for row in concepts]
    expected = [[len(a & b) / max(1, len(a | b)) for b in sets] for a in sets]
    assert relevance.Overlap(concepts).of(np.arange(40)) == pytest.approx(np.array(expected))


def test_modalities() -> None:
    ct, mri = 40405, 24485
    bits = relevance.modalities(np.array([[ct, 0], [7, mri], [ct, mri], [7, 0]]))
    assert [bin(b).count("1") for b in bits] == [1, 1, 2, 0]
    assert bits[0] & bits[2]
    assert bits[1] & bits[2]
    assert not bits[0] & bits[1]
    assert relevance.number("C0040405") == ct
    assert relevance.number("CT") is None


def found(queries: torch.Tensor, targets: torch.Tensor, k: int) -> list[top_k.Nearest]:
    parts = list(top_k.nearest(queries, targets, k))
    assert sorted(torch.cat([part.queries for part in parts]).tolist()) == list(range(len(queries)))
    return parts


def test_nearest_is_best_first() -> None:
    targets = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
    (part,) = found(targets[:1], targets, 2)
    assert part.index.tolist() == [[0, 1]]
    assert part.share(2)[0].tolist() == [[1, 0], [0, 1]]
    (part,) = found(targets, targets, 10)
    assert part.index.shape == (3, 3)


def test_nearest_equals_a_sort() -> None:
    queries, targets = normal(50, 16, 0), normal(90, 16, 1)
    (part,) = found(queries, targets, 10)
    order = (queries.double() @ targets.double().T).argsort(1, descending=True)
    assert part.index[part.queries.argsort()].equal(order[:, :10])


def test_equal_scores_share_their_places() -> None:
    """One target is best, 40 are the same, the rest is far: more than the list first looked at."""
    query = torch.tensor([[1.0, 0.0]])
    targets = torch.tensor([[0.0, 1.0]] * 5 + [[0.6, 0.8]] * 40 + [[1.0, 0.0]])
    (part,) = found(query, targets, 3)
    assert part.index[0].tolist() == [45, *range(5, 45)]
    share = part.share(3)[0]
    assert share[0].tolist() == [1, 0, 0]
    assert share[1:].unique(dim=0).tolist() == [[0, 1 / 40, 1 / 40]]
    assert share.sum(0).tolist() == pytest.approx([1, 1, 1])


@pytest.mark.parametrize("queries_at_once", [1, 7, 100])
def test_the_block_changes_nothing(queries_at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    queries, targets = normal(20, 8, 2), normal(30, 8, 3)[torch.arange(60) % 30]
    (whole,) = found(queries, targets, 5)
    monkeypatch.setattr(top_k, "_SCORES", 60 * queries_at_once)
    monkeypatch.setattr(top_k, "_SHARES", 40 * queries_at_once)
    parts = found(queries, targets, 5)
    rows = {int(q): row.tolist() for p in parts for q, row in zip(p.queries, p.index, strict=True)}
    assert [rows[n] for n in range(20)] == whole.index.tolist()
    assert whole.index.shape[1] == 6  # three groups of two


def test_graded_by_hand() -> None:
    """Query 0 finds 1 (a third in common), 5 (a half) and 3 (all), in this order."""
    overlap = relevance.Overlap(CONCEPTS).of(np.array([0]))
    index = np.array([[1, 5, 3]])
    share = np.eye(3)[None]
    scores = relevance.graded(overlap, index, share, [1, 3], 0.5)
    log2, log3 = math.log2(3), 2
    ideal = 1 + 1 / log2 + 0.5 / log3
    expected = 1 / 3 + 0.5 / log2 + 1 / log3
    assert scores["nDCG@3"].tolist() == pytest.approx([expected / ideal])
    assert scores["nDCG@1"].tolist() == pytest.approx([1 / 3])
    assert scores["relevant_recall@1"].tolist() == [0]
    assert scores["relevant_recall@3"].tolist() == pytest.approx([2 / 3])  # 0 itself is missing
    assert scores["relevant_precision@3"].tolist() == pytest.approx([2 / 3])


@pytest.mark.parametrize("copies", [1, 3, 30])
def test_ndcg_as_scikit_learn_has_it(copies: int) -> None:
    """With ties: the other implementation averages over them too."""
    queries = normal(30, 16, 4)
    targets = normal(90, 16, 5)[torch.arange(90) % (90 // copies)]
    concepts = np.random.default_rng(1).integers(1, 6, (90, 2))
    overlap = relevance.Overlap(concepts).of(np.arange(30))
    scores = queries.double() @ targets.double().T
    scores = scores[:, torch.arange(90) % (90 // copies)]  # equal to the last bit
    (part,) = found(queries, targets, 10)
    order = part.queries.numpy()
    graded = relevance.graded(
        overlap[order], part.index.numpy(), part.share(10).numpy(), [1, 5, 10], 0.5
    )
    for k in (1, 5, 10):
        theirs = sklearn.metrics.ndcg_score(overlap, scores.numpy(), k=k)
        assert graded[f"nDCG@{k}"].mean() == pytest.approx(theirs)


def test_agreement_is_the_share_of_the_first_place() -> None:
    """Two tie for the first place: one has the query's modality."""
    bits = np.array([1, 2, 3, 0])
    share = np.array([[[0.5, 0.5], [0.5, 0.5]], [[1.0, 0.0], [0.0, 1.0]]])
    index = np.array([[0, 1], [1, 2]])
    assert relevance.agreement(bits, np.array([0, 2]), index, share).tolist() == [0.5, 1]


def test_a_model_that_puts_everything_in_one_place() -> None:
    point = normal(1, 8, 6).repeat(50, 1)
    (part,) = found(point[:3], point, 4)
    assert part.index.tolist() == [list(range(50))] * 3
    assert part.share(4).sum(2).unique().tolist() == pytest.approx([4 / 50])
