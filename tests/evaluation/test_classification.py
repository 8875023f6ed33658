"""Figures of a classifier, by hand and against scikit-learn."""

import numpy as np
import pytest
from sklearn import metrics

from medclip_oc.evaluation import classification


def test_by_hand() -> None:
    """Two of three "a" right, one "b" taken for "a"; "c" never occurs and is never predicted."""
    probabilities = np.array([[0.8, 0.1, 0.1], [0.6, 0.3, 0.1], [0.2, 0.7, 0.1], [0.5, 0.4, 0.1]])
    found = classification.measure(["a", "b", "c"], np.array([0, 0, 0, 1]), probabilities)
    assert (found["images"], found["accuracy"]) == (4, 0.5)
    # of the pairs (an "a", the "b"), ordered by the probability of "a": 0.8, 0.6 right; 0.2 wrong
    assert found["classes"]["a"] == {"images": 3, "recall": 2 / 3, "auroc": pytest.approx(2 / 3)}
    assert found["classes"]["b"] == {"images": 1, "recall": 0.0, "auroc": pytest.approx(2 / 3)}
    assert found["confusion"] == {"classes": ["a", "b"], "counts": [[2, 1], [1, 0]]}


def test_ties_count_half_and_one_class_has_no_area() -> None:
    scores = np.array([0.5, 0.5, 0.2])
    assert classification.auroc(scores, np.array([True, False, False])) == 0.75
    assert classification.auroc(scores, np.array([True, True, True])) is None
    found = classification.measure(["a", "b"], np.array([0, 0]), np.array([[0.9, 0.1], [0.2, 0.8]]))
    assert found["auroc"] is None
    assert found["confusion"] == {"classes": ["a", "b"], "counts": [[1, 1], [0, 0]]}
    assert "-" in classification.text(found)


def test_against_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    scores = np.round(rng.random((60, 4)) + 0.5 * np.eye(4)[rng.integers(4, size=60)], 1)
    probabilities = scores / scores.sum(1, keepdims=True)
    truth = np.concatenate([np.arange(4), rng.integers(4, size=56)])
    found = classification.measure(list("abcd"), truth, probabilities)
    predicted = probabilities.argmax(1)
    assert found["accuracy"] == pytest.approx(metrics.accuracy_score(truth, predicted))
    balanced = metrics.balanced_accuracy_score(truth, predicted)
    assert found["balanced_accuracy"] == pytest.approx(balanced)
    for m, name in enumerate("abcd"):
        area = metrics.roc_auc_score(truth == m, probabilities[:, m])
        assert found["classes"][name]["auroc"] == pytest.approx(area)
    assert found["confusion"]["counts"] == metrics.confusion_matrix(truth, predicted).tolist()
