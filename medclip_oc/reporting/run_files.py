"""What a run folder says of its run: records of training, and evaluations. No torch here."""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from ..config.vocabulary import DIRECTIONS
from ..errors import InputError

_SCORES = ("R@1", "R@5", "R@10", "median_rank", "mean_rank", "mrr")
_MOST_POINTS = 300


@dataclass(frozen=True)
class Evaluated:
    """One evaluation: `best-test.json` and what lies beside it."""

    name: str
    record: dict[str, Any]
    arrays: dict[str, np.ndarray] | None
    """ids, ranks and nearest ids. None: the .npz is not there."""


def records(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; without one that a crash cut short. None there: an empty list.

    Raises:
        InputError: a line that is no record.
    """
    file = folder / "metrics.jsonl"
    if not file.is_file():
        return []
    parsed = []
    *whole_lines, _rest = file.read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(whole_lines, 1):
        try:
            parsed.append(json.loads(line))
            float(parsed[-1]["step"])
        except (ValueError, TypeError, KeyError):
            raise InputError(f"{file}: line {number} is no record of a run") from None
    return parsed


def series(
    records: Iterable[dict[str, Any]], name: str, most: int = _MOST_POINTS
) -> list[tuple[float, float]]:
    """(step, value) of a name that was recorded; means of neighbours where there are too many."""
    recorded = ((float(record["step"]), record.get(name)) for record in records)
    points = [(step, float(v)) for step, v in recorded if v is not None and math.isfinite(v)]
    if len(points) <= most:
        return points
    groups = np.array_split(np.array(points), most)
    return [(float(group[-1, 0]), float(group[:, 1].mean())) for group in groups]


def evaluations(folder: Path) -> list[Evaluated]:
    """The run's evaluations, that of the best checkpoint on the test split first.

    Raises:
        InputError: a file that is no evaluation, or damaged.
    """
    files = sorted((folder / "evaluations").glob("*.json"))
    files.sort(key=lambda file: (file.stem != "best-test", not file.stem.startswith("best-")))
    return [_evaluated(file) for file in files]


def _evaluated(file: Path) -> Evaluated:
    try:
        record, arrays = json.loads(file.read_text(encoding="utf-8")), None
        pool = int(record["pool"])
        for part in (*DIRECTIONS, "chance"):
            assert all(math.isfinite(record[part][name]) for name in _SCORES)
        assert record.get("ties", "expected") in ("expected", "optimistic", "pessimistic")
    except (ValueError, TypeError, KeyError, AssertionError):
        raise InputError(f"{file}: not the record of an evaluation") from None
    beside = file.with_suffix(".npz")
    try:
        if beside.is_file():
            with np.load(beside, allow_pickle=False) as opened:
                arrays = dict(opened)
            _ = arrays["ids"], [arrays[f"{direction}_rank"] for direction in DIRECTIONS]
    except (OSError, ValueError, EOFError, KeyError, BadZipFile):
        raise InputError(f"{beside}: damaged, or not of an evaluation") from None
    if any(len(array) != pool for array in (arrays or {}).values()):
        raise InputError(f"{beside}: not of the {pool:,} pairs of {file.name}")
    return Evaluated(file.stem, record, arrays)
