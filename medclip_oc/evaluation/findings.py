"""How well findings are told, several to an image. N images, M findings. Pure functions.

Each finding has a probability of its own, and labels 1, 0 and -1 (unknown), which leaves an image
out of this finding alone.

- AUROC: how probable it is that a positive image gets a higher probability than a negative one;
  ties count half (Hanley and McNeil 1982).
- average precision: precision times gain in recall, summed over the distinct probabilities.
- calibration error: mean distance between probability and share of positives, over 15 equal bins
  (low, high] of the probability (Guo et al. 2017).
- balanced accuracy, F1, MCC: at thresholds, which must come from other images.

Intervals are bootstrap percentiles. A draw gives each image a weight, how often it is drawn, the
same for all findings; each finding is sorted once, and its figures are sums of weights along that.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..config.vocabulary import FEW_QUERIES
from . import bootstrap

_LABELS = {"positives": 1, "negatives": 0, "unknown": -1}
_EDGES = np.linspace(0, 1, 16)[1:-1]  # between the bins
_AREAS, _DECISIONS = ["auroc", "average_precision"], ["balanced_accuracy", "f1", "mcc"]


class Ordered:
    """A finding's images of known label, of (N,) labels 1, 0 or -1, highest probability first; P
    positives in g groups, each of one probability. From `limit` on it counts as told; NaN: no limit
    is known.
    """

    def __init__(self, truth: np.ndarray, probabilities: np.ndarray, limit: float = np.nan) -> None:
        known = np.flatnonzero(truth >= 0)
        self.images = known[np.argsort(-probabilities[known], kind="stable")]
        falling, places = -probabilities[self.images], np.flatnonzero(truth[self.images] == 1)
        self.positives, self.limit = self.images[places], limit
        groups, sizes = np.unique(falling[places], return_counts=True)
        self.values, self.ends = -groups, np.append(0, np.cumsum(sizes))  # among the positives
        # images above a group's probability, and above or at it: (g,)
        self.above, self.upto = (np.searchsorted(falling, groups, s) for s in ("left", "right"))
        self.told = np.searchsorted(falling, -limit, "right")
        self.right = np.searchsorted(places, self.told)  # told and positive

    def scores(self, weights: np.ndarray) -> np.ndarray:
        """_AREAS and _DECISIONS of (N, draws) weights: (5, draws); NaN where a draw has no
        positive, or no negative, or there is no limit.
        """
        every, own = (_sums(weights, rows) for rows in (self.images, self.positives))
        images, positives = every[-1].astype(float), own[-1].astype(float)
        positives[(positives == 0) | (positives == images)] = np.nan
        negatives = images - positives
        grouped, seen = own.take(self.ends, 0), every.take(self.upto, 0)
        gain, right = np.diff(grouped, axis=0), grouped[1:]  # (g, draws)
        wrong = every.take(self.above, 0) - grouped[:-1] + seen - right  # ties once, others twice
        auroc = 1 - (gain * wrong.astype(float)).sum(0) / (2 * positives * negatives)
        precision = (gain * (right / np.maximum(seen, 1))).sum(0) / positives
        told, true = every[self.told] + 0 * self.limit, own[self.right]  # (draws,)
        balanced = (true / positives + 1 - (told - true) / negatives) / 2
        f1, mcc = 2 * true / (told + positives), _mcc(true, told, positives, images)
        return np.stack([auroc, precision, balanced, f1, mcc])


def _sums(weights: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Of the first 0, 1, ..., n of the rows: (n + 1, draws)."""
    sums = np.zeros((len(rows) + 1, weights.shape[1]), weights.dtype)
    np.cumsum(weights.take(rows, 0), 0, weights.dtype, sums[1:])
    return sums


def _mcc(true: Any, told: Any, positives: Any, images: Any) -> Any:
    """Matthews's correlation, of numbers of images; 0 where all are told, or none."""
    spread = 1.0 * told * (images - told) * positives * (images - positives)
    return (images * true - told * positives) / np.sqrt(np.maximum(spread, 1))


def calibration_error(probabilities: np.ndarray, true: np.ndarray) -> float:
    """Of (n,) probabilities of what came true or not, (n,) 1 or 0; NaN of none."""
    bins = np.searchsorted(_EDGES, probabilities)
    gaps = np.bincount(bins, true - np.asarray(probabilities, float))
    return float(np.abs(gaps).sum() / len(true)) if len(true) else np.nan


def thresholds(truth: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """The limit (M,) of each finding of the greatest MCC (Tiu et al. 2022), from other images than
    those that are judged: (N, M) both. NaN: there is no positive, or no negative.
    """
    limits = []
    for finding in map(Ordered, truth.T, np.asarray(probabilities, float).T):
        positives, images = len(finding.positives), len(finding.images)
        # the best limit is always that of a positive
        mcc = _mcc(finding.ends[1:], finding.upto, positives, images)
        limits.append(finding.values[mcc.argmax()] if 0 < positives < images else np.nan)
    return np.array(limits)


def mean(scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(...) of (..., M) scores, weighted (M,): of those that are not NaN; NaN where none is."""
    total = ~np.isnan(scores) @ weights.astype(float)
    return np.nan_to_num(scores) @ weights / np.where(total > 0, total, np.nan)


def measure(
    names: Sequence[str],
    truth: np.ndarray,
    probabilities: np.ndarray,
    *,
    draws: int = 1000,
    seed: int = 0,
    thresholds: np.ndarray | None = None,
    min_positives: int = 1,
) -> dict[str, Any]:
    """All figures of probabilities (N, M), by labels (N, M) int8: 1, 0 or -1. Decisions are by
    `thresholds` (M,), see there; the macro mean takes findings with `min_positives`; with 0 draws
    there are no intervals.

    Returns task; images; findings: of each its positives, negatives, unknown, few (fewer than 10
    positives), threshold, scores (None: it has no positive, or no negative) and intervals; macro
    and weighted, the means, the second by positives; intervals: level and draws.
    """
    probabilities = np.asarray(probabilities, float)
    limits = np.full(len(names), np.nan) if thresholds is None else thresholds
    orders = [Ordered(*each) for each in zip(truth.T, probabilities.T, limits, strict=True)]

    def of_all(weights: np.ndarray) -> np.ndarray:
        return np.stack([each.scores(weights) for each in orders], 2)

    scores = bootstrap.resample(of_all, len(truth), draws, seed)  # (5, 1 + draws, M)
    errors = np.full_like(scores[:1], np.nan)  # without intervals
    for m, each in enumerate(orders):
        errors[0, 0, m] = calibration_error(probabilities[each.images, m], truth[each.images, m])
    shown = ["calibration_error", *_AREAS, *_DECISIONS * (thresholds is not None)]
    scores = np.concatenate([errors, scores])[: len(shown)]
    found = {}
    for m, name in enumerate(names):
        about = {key: np.sum(truth[:, m] == label).item() for key, label in _LABELS.items()}
        about |= {"few": about["positives"] < FEW_QUERIES}
        if thresholds is not None:
            about |= {"threshold": None if np.isnan(limits[m]) else limits[m].item()}
        found[name] = about | bootstrap.record(shown, scores[..., m])
    positives = (truth == 1).sum(0)
    taken = positives >= min_positives
    return {
        "task": "findings",
        "images": len(truth),
        "findings": found,
        "macro": {"findings": int(taken.sum())} | bootstrap.record(shown, mean(scores, taken)),
        "weighted": bootstrap.record(shown, mean(scores, positives)),
        "intervals": {"level": bootstrap.LEVEL, "draws": draws},
    }
