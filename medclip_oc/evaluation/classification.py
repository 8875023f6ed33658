"""How well a zero-shot classifier does, given the truth. N images, M classes. Pure functions.

- accuracy: the share of images whose best candidate is the true one.
- balanced accuracy: the mean over the classes that occur of their recall, so that each class
  counts the same, however many images it has.
- AUROC of a class: how probable it is that an image of the class gets a higher probability for it
  than one of another class; ties count half (Hanley and McNeil 1982). None: it has no image, or
  there is no other.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd


def measure(names: Sequence[str], truth: np.ndarray, probabilities: np.ndarray) -> dict[str, Any]:
    """All figures.

    Args:
        names: of the M candidates; "none of these" may be one that is never true.
        truth: (N,) int64, index of the true one.
        probabilities: (N, M).

    Returns:
        images; accuracy; balanced_accuracy; auroc, the mean of the classes' (None: no class has
        one); classes: of each true or predicted class its images, recall, auroc; confusion: the
        classes' names, and counts with a row for each true class and a column for each predicted.
    """
    predicted = probabilities.argmax(1)
    size = len(names)
    counts = np.bincount(truth * size + predicted, minlength=size * size).reshape(size, size)
    totals = counts.sum(1)
    shown = np.flatnonzero(totals + counts.sum(0)).tolist()
    recalls = {m: float(counts[m, m] / totals[m]) for m in np.flatnonzero(totals).tolist()}
    areas = {m: auroc(probabilities[:, m], truth == m) for m in recalls}
    known = [area for area in areas.values() if area is not None]
    return {
        "images": len(truth),
        "accuracy": float((predicted == truth).mean()),
        "balanced_accuracy": float(np.mean(list(recalls.values()))),
        "auroc": float(np.mean(known)) if known else None,
        "classes": {
            names[m]: {"images": int(totals[m]), "recall": recalls.get(m), "auroc": areas.get(m)}
            for m in shown
        },
        "confusion": {
            "classes": [names[m] for m in shown],
            "counts": counts[np.ix_(shown, shown)].tolist(),
        },
    }


def auroc(scores: np.ndarray, positive: np.ndarray) -> float | None:
    """Area under the ROC curve of (N,) scores, where (N,) bool says which are of the class."""
    number, others = int(positive.sum()), int((~positive).sum())
    if not number or not others:
        return None
    ranks = pd.Series(scores).rank().to_numpy()  # equal scores share the mean of their ranks
    return float((ranks[positive].sum() - number * (number + 1) / 2) / (number * others))


def text(figures: dict[str, Any]) -> str:
    """The figures for people: lines, and the confusion matrix."""
    classes = pd.DataFrame.from_dict(figures["classes"], orient="index")
    confusion = figures["confusion"]
    area = figures["auroc"]
    return "\n".join(
        [
            f"{figures['images']:,} images with a label: accuracy {figures['accuracy']:.3f}, "
            f"balanced accuracy {figures['balanced_accuracy']:.3f}, "
            f"mean AUROC {'-' if area is None else f'{area:.3f}'}",
            classes.astype({"recall": float, "auroc": float}).to_string(
                float_format="{:.3f}".format, na_rep="-"
            ),
            "confusion: a row for each true class, a column for each predicted one, as listed",
            pd.DataFrame(confusion["counts"], confusion["classes"]).to_string(header=False),
        ]
    )
