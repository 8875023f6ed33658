"""Figures of findings: by hand, and against scikit-learn, whose sample weights are the draws."""

from collections.abc import Callable

import numpy as np
import pytest
from sklearn import metrics

from medclip_oc.evaluation import bootstrap, findings
from medclip_oc.reporting import results

NAN = float("nan")
TABLES: dict[str, tuple[list[int], list[float], float, float]] = {
    # truth, probabilities -> AUROC, average precision
    "a tie of both": ([1, 0, 1], [0.9, 0.5, 0.5], 0.75, 5 / 6),
    "all tie": ([1, 0, 0, 1], [0.5] * 4, 0.5, 0.5),
    "unknown doesn't count": ([1, -1, 0, -1], [0.3, 0.9, 0.6, 0.1], 0.0, 0.5),
    "no negative": ([1, 1, -1], [0.3, 0.9, 0.6], NAN, NAN),
    "no positive": ([0, 0, -1], [0.3, 0.9, 0.6], NAN, NAN),
    "nothing known": ([-1, -1], [0.3, 0.9], NAN, NAN),
}
FIGURES: dict[str, Callable[..., float]] = {
    "auroc": metrics.roc_auc_score,
    "average_precision": metrics.average_precision_score,
    "balanced_accuracy": metrics.balanced_accuracy_score,
    "f1": metrics.f1_score,
    "mcc": metrics.matthews_corrcoef,
}


def table(seed: int, digits: int) -> tuple[np.ndarray, np.ndarray]:
    """Findings of 60 images from rare to frequent, some unknown; ties where digits are few."""
    rng = np.random.default_rng(seed)
    truth = (rng.random((60, 4)) < (0.05, 0.3, 0.6, 0.9)).astype(np.int8)
    truth[rng.random((60, 4)) < 0.2] = -1
    truth[:2] = [[0], [1]]
    probabilities = 0.6 * rng.random((60, 4)) + 0.4 * rng.random((60, 4)) * truth.clip(0)
    return truth, probabilities.round(digits)


@pytest.mark.parametrize("name", TABLES)
def test_by_hand(name: str) -> None:
    labels, values, *expected = TABLES[name]
    truth, probabilities = np.array([labels], np.int8).T, np.array([values]).T
    found = findings.measure(["x"], truth, probabilities, draws=20)
    areas = [found["findings"]["x"][name] for name in ("auroc", "average_precision")]
    assert np.array(areas, float) == pytest.approx(expected, abs=1e-12, nan_ok=True)
    assert ("x *" in results.text(found)) == found["findings"]["x"]["few"]
    assert np.isnan(findings.thresholds(truth, probabilities)[0]) == np.isnan(expected[0])
    bare = findings.measure(["x"], truth, probabilities, draws=0)
    assert bare["findings"]["x"]["intervals"] == bare["macro"]["intervals"] == {}
    assert "mcc" not in bare["weighted"]


@pytest.mark.parametrize("digits", [9, 1])
def test_figures_and_draws_are_scikit_learns(digits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    (truth, values), limits = table(0, digits), findings.thresholds(*table(9, digits))
    monkeypatch.setattr(bootstrap, "_AT_ONCE", 60 * 7)  # the draws come in two pieces
    found = findings.measure(
        list("abcd"), truth, values, draws=10, thresholds=limits, min_positives=10
    )
    assert found["macro"]["findings"] == 3
    assert [each["few"] for each in found["findings"].values()] == [True, False, False, False]
    draws = np.concatenate([*bootstrap.draw_weights(60, 10, 0)], 1)  # (60, 11)
    positives = (truth == 1).sum(0)
    for name, figure in FIGURES.items():
        told = values if name in ("auroc", "average_precision") else values >= limits
        expected = np.full((11, 4), NAN)
        for d, m in np.ndindex(11, 4):
            drawn = (truth[:, m] >= 0) & (draws[:, d] > 0)
            if 0 < truth[drawn, m].sum() < drawn.sum():
                weights = draws[drawn, d]
                expected[d, m] = figure(truth[drawn, m], told[drawn, m], sample_weight=weights)
        columns = dict(zip("abcd", expected.T, strict=True))
        for mean, weights in (("macro", positives >= 10), ("weighted", positives)):
            exists = np.ma.masked_invalid(expected)
            columns[mean] = np.ma.average(exists, axis=1, weights=1.0 * weights).filled(NAN)
        for key, column in columns.items():
            record = found["findings"].get(key) or found[key]
            assert record[name] == pytest.approx(column[0], abs=1e-9)
            ends = np.nanquantile(column[1:], bootstrap.TAILS)
            assert record["intervals"][name] == pytest.approx(ends, abs=1e-9)


@pytest.mark.parametrize("digits", [9, 1])
def test_thresholds_have_the_greatest_mcc(digits: int) -> None:
    truth, values = table(3, digits)
    for m, limit in enumerate(findings.thresholds(truth, values)):
        known = truth[:, m] >= 0
        labels, scores = truth[known, m], values[known, m]
        each = {p: metrics.matthews_corrcoef(labels, scores >= p) for p in np.unique(scores)}
        assert each[limit] == pytest.approx(max(each.values()))


def test_calibration_error_is_that_of_guo() -> None:
    """Against its definition, ends of bins included."""
    rng = np.random.default_rng(0)
    values, edges = np.concatenate([rng.random(300), np.arange(16) / 15]), np.linspace(0, 1, 16)
    true = rng.random(316) < values**2
    expected = 0.0
    for low, high in zip(edges[:-1] - (edges[:-1] == 0), edges[1:], strict=True):
        inside = (values > low) & (values <= high)
        expected += inside.mean() * abs(true[inside].mean() - values[inside].mean())
    assert findings.calibration_error(values, true) == pytest.approx(expected, abs=1e-12)
