"""What lists have in common with the query, by hand and by scikit-learn."""

import numpy as np
import pytest
import sklearn.metrics
import torch

from medclip_oc.config.evaluation import MeasureConfig
from medclip_oc.evaluation import concepts, top_k
from tests.support.tiny_models import unit_vectors

CONCEPTS = np.array([[1, 2, 0], [2, 3, 0], [0, 0, 0], [1, 2, 0], [4, 0, 0], [2, 0, 2]])
CT, MRI, LUNG = 40405, 24485, 24109


def overlap(pairs: np.ndarray, queries: np.ndarray) -> np.ndarray:
    return concepts.Judge(pairs, MeasureConfig()).overlap(queries)


def test_overlap_by_hand() -> None:
    assert concepts.Judge(CONCEPTS, MeasureConfig()).sizes.tolist() == [2, 2, 0, 2, 1, 1]
    assert overlap(CONCEPTS, np.array([0]))[0].tolist() == [1, 1 / 3, 0, 1, 0, 0.5]
    assert overlap(CONCEPTS, np.array([2, 4])).tolist() == [[0] * 6, [0, 0, 0, 0, 1, 0]]


def test_figures_of_a_list() -> None:
    """Two tie for the first place: one has the query's modality."""
    pairs = np.array([[CT, LUNG], [MRI, LUNG], [CT, MRI], [7, 0]])
    judge = concepts.Judge(pairs, MeasureConfig())
    share = np.array([[[0.5, 0.5], [0.5, 0.5]], [[1.0, 0.0], [0.0, 1.0]]])
    scores = judge.scores(np.array([0, 2]), np.array([[0, 1], [1, 2]]), share)
    assert scores[:, -1].tolist() == [0.5, 1]
    places = [judge.names.index(f"relevant_recall@{k}") for k in (1, 5)]
    # query 0 finds itself in half of the first place; query 2 finds itself second
    assert scores[:, places].tolist() == [[0.5, 1], [0, 1]]
    # pair 3 has no modality, and doesn't count there
    means = judge.means(np.array([[1.0] * 10, [0.0] * 10, [0.5] * 10, [9.0] * 10]))
    assert means["nDCG@1"] == pytest.approx(10.5 / 4)
    assert means["modality_agreement@1"] == pytest.approx(1.5 / 3)


def test_slices_of_names() -> None:
    pairs = np.array([[CT, LUNG], [CT, 0], [MRI, 0], [0, 0]])
    packed = {"lung": "C0024109", "gout": "C0018099"}
    slices, absent = concepts.find_slices(pairs, ["Lung", "PET", "ct", "c0024109"], packed)
    assert "no pair has PET; " in absent
    assert [(s.name, s.concept, s.pairs.nonzero()[0].tolist()) for s in slices] == [
        ("CT", "C0040405", [0, 1]),
        ("MRI", "C0024485", [2]),
        ("no known modality", None, [3]),
        ("Lung", "C0024109", [0]),
        ("ct", "C0040405", [0, 1]),
        ("c0024109", "C0024109", [0]),
    ]
    assert concepts.find_slices(pairs, ["CT"], packed)[1] == ""
    assert concepts.find_slices(None, ["CT"], {}) == ([], "")
    line = concepts.find_slices(pairs[:2], ["MRI", "gout"], packed)[1]
    assert line == (
        "--slices: no pair has MRI, gout; the most frequent: CT (C0040405), lung (C0024109)"
    )
    line = concepts.find_slices(np.arange(1, 99)[:, None], ["gout"], {})[1]
    assert "no names of concepts were packed, give CUIs; the most frequent: C0000098, C" in line
    assert len(line) < 300
    assert line.count("C00") == 10


@pytest.mark.parametrize("copies", [1, 30])
def test_ndcg_as_scikit_learn_has_it(copies: int) -> None:
    """With ties: the other implementation averages over them too."""
    queries = unit_vectors(30, 16, 4)
    targets = unit_vectors(90, 16, 5)[torch.arange(90) % (90 // copies)]
    pairs = np.random.default_rng(1).integers(1, 6, (90, 2))
    overlaps = overlap(pairs, np.arange(30))
    scores = queries.double() @ targets.double().T
    scores = scores[:, torch.arange(90) % (90 // copies)]  # equal to the last bit
    (part,) = top_k.nearest(queries, targets, 10)
    order = part.queries.numpy()
    graded = concepts.graded(
        overlaps[order], part.listed.numpy(), part.share(10).numpy(), [1, 5, 10], 0.5
    )
    for k in (1, 5, 10):
        theirs = sklearn.metrics.ndcg_score(overlaps, scores.numpy(), k=k)
        assert graded[f"nDCG@{k}"].mean() == pytest.approx(theirs)
