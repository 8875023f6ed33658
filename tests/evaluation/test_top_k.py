"""Lists of the nearest, best first; equal ones share their places."""

import pytest
import torch

from medclip_oc.evaluation import top_k
from tests.support.tiny_models import unit_vectors


def nearest(queries: torch.Tensor, targets: torch.Tensor, k: int) -> list[top_k.Nearest]:
    parts = list(top_k.nearest(queries, targets, k))
    assert sorted(torch.cat([part.queries for part in parts]).tolist()) == list(range(len(queries)))
    return parts


def test_nearest_equals_a_sort() -> None:
    queries, targets = unit_vectors(50, 16, 0), unit_vectors(90, 16, 1)
    order = (queries.double() @ targets.double().T).argsort(1, descending=True)
    (part,) = nearest(queries, targets, 10)
    assert part.listed[part.queries.argsort()].equal(order[:, :10])
    (part,) = nearest(queries, targets, 100)
    assert part.listed.shape == (50, 90)


def test_equal_scores_share_their_places() -> None:
    """One target is best, 40 are the same, the rest is far: more than the list first looked at."""
    query = torch.tensor([[1.0, 0.0]])
    targets = torch.tensor([[0.0, 1.0]] * 5 + [[0.6, 0.8]] * 40 + [[1.0, 0.0]])
    (part,) = nearest(query, targets, 3)
    assert part.listed[0].tolist() == [45, *range(5, 45)]
    share = part.share(3)[0]
    assert share[0].tolist() == [1, 0, 0]
    assert share[1:].unique(dim=0).tolist() == [[0, 1 / 40, 1 / 40]]
    assert share.sum(0).tolist() == pytest.approx([1, 1, 1])


@pytest.mark.parametrize("queries_at_once", [1, 7])
def test_the_block_changes_nothing(queries_at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    queries, targets = unit_vectors(20, 8, 2), unit_vectors(30, 8, 3)[torch.arange(60) % 30]
    (whole,) = nearest(queries, targets, 5)
    monkeypatch.setattr(top_k, "_SCORES", 60 * queries_at_once)
    monkeypatch.setattr(top_k, "_SHARES", 40 * queries_at_once)
    parts = nearest(queries, targets, 5)
    rows = {int(q): row.tolist() for p in parts for q, row in zip(p.queries, p.listed, strict=True)}
    assert [rows[n] for n in range(20)] == whole.listed.tolist()
    assert whole.listed.shape[1] == 6  # three groups of two
