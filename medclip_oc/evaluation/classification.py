"""How well a classifier does, given the truth. N images, M classes. Pure functions.

- accuracy: the share of images whose best candidate is the true one; Wilson's interval.
- balanced accuracy: the mean over the classes that occur of their recall, so that each class
  counts the same, however many images it has.
- AUROC of a class: how probable it is that an image of the class gets a higher probability for it
  than one of another class, see `findings`. None: it has no image, or there is no other.
- calibration error: as in `findings`, of the best candidate's probability.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from . import bootstrap
from .findings import Ordered, calibration_error, mean


def measure(
    names: Sequence[str],
    truth: np.ndarray,
    probabilities: np.ndarray,
    *,
    draws: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """All figures of the probabilities (N, M) of M candidates, by the index of the true one, (N,)
    int64; "none of these" may be one that is never true. With 0 draws there are no intervals.

    Returns task; images; accuracy; balanced_accuracy; auroc, the mean of the classes' (None: no
    class has one); calibration_error; intervals; classes: of each true or predicted class its
    images, recall, auroc, intervals; confusion: the classes' names, and counts with a row for each
    true class and a column for each predicted.
    """
    predicted, size, total = probabilities.argmax(1), len(names), len(truth)
    counts = np.bincount(truth * size + predicted, minlength=size * size).reshape(size, size)
    shown = np.flatnonzero(counts.sum(0) + counts.sum(1)).tolist()
    is_class = truth[:, None] == shown  # (N, C) of the classes shown
    right = is_class & (predicted == truth)[:, None]
    orders = [Ordered(is_class[:, c], probabilities[:, m]) for c, m in enumerate(shown)]

    def recalls_and_areas(weights: np.ndarray) -> np.ndarray:
        drawn, hits = (weights.T.astype(float) @ each for each in (is_class, right))
        areas = np.stack([each.scores(weights)[0] for each in orders], 1)
        return np.stack([hits / np.where(drawn > 0, drawn, np.nan), areas])

    scores = bootstrap.resample(recalls_and_areas, total, draws, seed)  # (2, 1 + draws, C)
    accuracy = float((predicted == truth).mean())

    found = bootstrap.record(("balanced_accuracy", "auroc"), mean(scores, np.ones(len(shown))))
    if draws:
        found["intervals"] |= {"accuracy": bootstrap.wilson(accuracy, total)}
    found["intervals"] |= {"level": bootstrap.LEVEL, "draws": draws}
    return {
        "task": "classification",
        "images": total,
        "accuracy": accuracy,
        **found,
        "calibration_error": calibration_error(probabilities.max(1), predicted == truth),
        "classes": {
            names[m]: {"images": int(counts[m].sum())}
            | bootstrap.record(("recall", "auroc"), scores[..., c])
            for c, m in enumerate(shown)
        },
        "confusion": {
            "classes": [names[m] for m in shown],
            "counts": counts[np.ix_(shown, shown)].tolist(),
        },
    }
