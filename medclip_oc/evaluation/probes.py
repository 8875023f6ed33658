"""What frozen features know: classifiers fitted on train, chosen on valid, measured on test.

- knn: the k nearest images of train vote.
- linear: logistic regression, its L2 penalty of strength 1 / C.
- few_shot: the same at C = 10, of 1 to 16 images of each class (of a finding: with it, and
  without), which are drawn 10 times.

Where each image has one class, one classifier tells all apart; else each finding has one of its
own, of the images where it is known. k and C have the best accuracy, or macro mean of AUROC.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import InputError
from ..packing.sources import SPLITS
from ..runtime.extras import needed
from . import bootstrap, classification, findings

LogisticRegression = needed("sklearn.linear_model", "probe").LogisticRegression
KNeighborsClassifier = needed("sklearn.neighbors", "probe").KNeighborsClassifier
_KS, _STRENGTHS = (1, 3, 5, 11, 21, 51), (0.01, 0.1, 1.0, 10.0, 100.0, 1000.0)
_SHOTS, _DRAWS, _FIXED = (1, 2, 4, 8, 16), 10, 10.0


class Task:
    """Images to learn from and to judge by; see `measure`."""

    def __init__(
        self, names: Sequence[str], features: np.ndarray, truth: np.ndarray, split: np.ndarray
    ) -> None:
        self.names, self.features = names, features
        self.single = len(names) > 1 and (truth >= 0).all() and ((truth == 1).sum(1) == 1).all()
        self.truth = truth.argmax(1) if self.single else truth
        self.rows = [np.flatnonzero(split == part) for part in range(len(SPLITS))]
        self.images = dict(zip(SPLITS, map(len, self.rows), strict=True))
        counts = [np.sum(truth[self.rows[0]] == label, 0) for label in (0, 1)]
        self.fewest = np.min(counts, 0)  # (M,) images in train with it, or without
        self.known = int(np.sum(counts, 0).min())
        if not all(self.images.values()):
            raise InputError(f"--probe: images with a label {self.images}: each split needs some")
        if not self.fewest.all():
            problem = f"train has no image of {names[self.fewest.argmin()]}, or no other"
            raise InputError(f"--probe: {problem}: leave this class out")

    def figures(self, model: Any, part: int, shots: int = 0, **how: int) -> dict[str, Any]:
        """Of a split, by a model fitted on train, or on so many of each class in it."""
        rows, told, rng = self.rows[part], [], np.random.default_rng(how.get("seed", 0))
        for target in [self.truth] if self.single else self.truth.T:  # (N,)
            fitted = self.rows[0][target[self.rows[0]] >= 0]
            if shots:
                classes = [fitted[target[fitted] == each] for each in np.unique(target[fitted])]
                fitted = np.concatenate([rng.choice(own, shots, replace=False) for own in classes])
            model.fit(self.features[fitted], target[fitted])
            found = model.predict_proba(self.features[rows])
            told.append(found if self.single else found[:, 1:])
        judge = classification.measure if self.single else findings.measure
        return judge(self.names, self.truth[rows], np.concatenate(told, 1), **how)


def measure(
    names: Sequence[str],
    features: np.ndarray,
    truth: np.ndarray,
    split: np.ndarray,
    *,
    draws: int = 1000,
    seed: int = 0,
) -> tuple[dict[str, Any], list[str]]:
    """All figures of N images with normalised features (N, D), labels (N, M) int8 (1, 0, or -1 for
    unknown) and a split each, (N,) index in SPLITS; with 0 draws of the test images no intervals.

    Returns task; images of each split; knn with k and linear with C: figures of `classification` or
    `findings`; few_shot: by the number of images the mean of the draws, and their interval. And
    lines on what was left out. InputError: a split has no image; train has none of a class, or all;
    valid can't choose.
    """
    task = Task(names, features, truth, split)
    record: dict[str, Any] = {"task": "probe", "images": task.images}
    models: dict[tuple[str, str], dict[float, Any]] = {
        ("knn", "k"): {k: KNeighborsClassifier(k) for k in _KS if k <= task.known},
        ("linear", "C"): {c: LogisticRegression(C=c, max_iter=10_000) for c in _STRENGTHS},
    }
    for (name, key), choices in models.items():
        on_valid = [_scores(task.figures(model, 1, draws=0))[0] for model in choices.values()]
        if None in on_valid:
            raise InputError("--probe: valid has no finding that some images have and others lack")
        best = [*choices][int(np.argmax(np.array(on_valid, float)))]
        record[name] = {key: best, **task.figures(choices[best], 2, draws=draws, seed=seed)}
    record["few_shot"], least = {"C": _FIXED, "draws": _DRAWS}, task.fewest.min()
    for shots in (shots for shots in _SHOTS if shots <= least):
        seeds, model = range(seed, seed + _DRAWS), models["linear", "C"][_FIXED]
        drawn = [_scores(task.figures(model, 2, shots, draws=0, seed=each)) for each in seeds]
        values = np.array(drawn, float).T  # (scores, draws)
        values = np.column_stack([values.mean(1), values])
        record["few_shot"][str(shots)] = bootstrap.record(_shown(record["linear"]), values)
    rare = f"train has only {least} of {names[task.fewest.argmin()]}"
    few = [f"few-shot of more than {least} left out: {rare}"]
    return record, few if least < _SHOTS[-1] else []


def _shown(figures: dict[str, Any]) -> tuple[str, ...]:
    """What probes are compared by; the first one chooses k and C."""
    if figures["task"] == "classification":
        return ("accuracy", "balanced_accuracy", "auroc")
    return ("auroc", "average_precision")


def _scores(figures: dict[str, Any]) -> list[float | None]:
    return [figures.get("macro", figures)[name] for name in _shown(figures)]
