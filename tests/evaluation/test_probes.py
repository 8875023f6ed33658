"""Probes of features that hold a class, or nothing; and scikit-learn's own by hand."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from medclip_oc.errors import InputError
from medclip_oc.evaluation import probes

SPLIT = np.resize([0, 0, 0, 1, 2], 150)


def images(signal: float, several: bool) -> tuple[np.ndarray, np.ndarray]:
    """Features that hold 3 classes, or findings of which some are unknown, by so much."""
    rng = np.random.default_rng(0)
    truth = np.eye(3, dtype=np.int8)[rng.integers(3, size=150)]
    features = rng.normal(size=(150, 6)) + signal * np.pad(truth, ((0, 0), (0, 3)))
    if several:
        truth[rng.random((150, 3)) < 0.1] = -1
    return features / np.linalg.norm(features, axis=1, keepdims=True), truth


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("signal", [0, 20])
def test_what_features_hold_is_told_and_nothing_else(
    signal: float, several: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probes, "_DRAWS", 3)
    features, truth = images(signal, several)
    record, lines = probes.measure(list("abc"), features, truth, SPLIT, draws=20)
    assert record["images"] == {"train": 90, "valid": 30, "test": 30}
    assert {*record["few_shot"]} == {"C", "draws", "1", "2", "4", "8", "16"}
    assert lines == []
    for each in (record["knn"], record["linear"], record["few_shot"]["16"]):
        figures = each.get("macro", each)
        assert figures["auroc"] > 0.99 if signal else 0.35 < figures["auroc"] < 0.65
        low, high = figures["intervals"]["auroc"]
        assert low <= figures["auroc"] <= high
    if not several:  # by hand, on train alone
        linear = LogisticRegression(C=record["linear"]["C"], max_iter=10_000)
        for name, model in (("linear", linear), ("knn", KNeighborsClassifier(record["knn"]["k"]))):
            model.fit(features[SPLIT == 0], truth[SPLIT == 0].argmax(1))
            told = model.score(features[SPLIT == 2], truth[SPLIT == 2].argmax(1))
            assert record[name]["accuracy"] == pytest.approx(told)


def test_what_cannot_be_learned_is_said() -> None:
    features, truth = images(1, several=False)
    of_a = (SPLIT == 0) & (truth[:, 0] == 1)
    rare = np.argsort(~of_a, kind="stable")[of_a.sum() - 3 :]  # with the last three of them
    record, lines = probes.measure(list("abc"), features[rare], truth[rare], SPLIT[rare], draws=0)
    assert lines == ["few-shot of more than 3 left out: train has only 3 of a"]
    assert {*record["few_shot"]} == {"C", "draws", "1", "2"}
    with pytest.raises(InputError, match="train has no image of a, or no other"):
        probes.measure(list("abc"), features[rare[3:]], truth[rare[3:]], SPLIT[rare[3:]])
    with pytest.raises(InputError, match="'test': 0"):
        probes.measure(list("abc"), features, truth, SPLIT % 2)
