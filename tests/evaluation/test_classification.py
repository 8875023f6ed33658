"""Figures of a classifier, by hand where they are undefined, and against scikit-learn."""

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics

from medclip_oc.evaluation import bootstrap, classification, findings
from medclip_oc.reporting import results


def test_one_class_has_no_area() -> None:
    found = classification.measure(["a", "b"], np.array([0, 0]), np.array([[0.9, 0.1], [0.2, 0.8]]))
    assert found["auroc"] is None
    assert found["confusion"] == {"classes": ["a", "b"], "counts": [[1, 1], [0, 0]]}
    assert "-" in results.text(found)


def test_against_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    scores = np.round(rng.random((60, 4)) + 0.5 * np.eye(4)[rng.integers(4, size=60)], 1)
    probabilities = np.pad(scores / scores.sum(1, keepdims=True), [(0, 0), (0, 1)])
    truth = np.concatenate([np.arange(4), rng.integers(4, size=56)])
    found = classification.measure(list("abcde"), truth, probabilities, draws=200)  # nothing is "e"
    predicted = probabilities.argmax(1)
    assert found["accuracy"] == pytest.approx(metrics.accuracy_score(truth, predicted))
    classes = pd.DataFrame.from_dict(found["classes"], orient="index")
    assert classes.index.tolist() == found["confusion"]["classes"] == list("abcd")
    assert classes.images.tolist() == np.bincount(truth).tolist()
    recalls = metrics.recall_score(truth, predicted, average=None)
    assert classes.recall.to_list() == pytest.approx(recalls)
    areas = [metrics.roc_auc_score(truth == m, probabilities[:, m]) for m in range(4)]
    assert classes.auroc.to_list() == pytest.approx(areas)
    means = pytest.approx((recalls.mean(), np.mean(areas)))
    assert (found["balanced_accuracy"], found["auroc"]) == means
    assert found["confusion"]["counts"] == metrics.confusion_matrix(truth, predicted).tolist()
    error = findings.calibration_error(probabilities.max(1), predicted == truth)
    assert found["calibration_error"] == error
    draws = np.concatenate([*bootstrap.draw_weights(60, 200, 0)], 1)[:, 1:]
    weighed = [metrics.balanced_accuracy_score(truth, predicted, sample_weight=w) for w in draws.T]
    ends = np.quantile(weighed, bootstrap.TAILS)
    assert found["intervals"]["balanced_accuracy"] == pytest.approx(ends, abs=1e-9)
    assert found["intervals"]["accuracy"] == bootstrap.wilson(found["accuracy"], 60)
    low, high = found["intervals"]["auroc"]
    assert low < found["auroc"] < high
