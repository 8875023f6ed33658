"""What a run folder says of its run: records of training, and evaluations. No torch here."""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..config.vocabulary import DIRECTIONS
from ..errors import InputError
from ..runtime import npz
from . import results

_NEAREST = {f"{direction}_nearest": (2, "U") for direction in DIRECTIONS}
_ARRAYS = {"ids": (1, "U")} | {f"{way}_rank": (1, "f") for way in DIRECTIONS} | _NEAREST
_MOST_POINTS = 300


@dataclass(frozen=True)
class Evaluated:
    """One evaluation: `best-test.json` and what lies beside it."""

    name: str
    record: dict[str, Any]
    arrays: dict[str, np.ndarray] | None  # ids, ranks and nearest ids. None: the .npz is not there


def records(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, if there are any, without one that a crash cut short; InputError:
    a line that is no record.
    """
    file = folder / "metrics.jsonl"
    if not file.is_file():
        return []
    parsed = []
    *whole_lines, _rest = file.read_bytes().split(b"\n")
    for number, line in enumerate(whole_lines, 1):
        try:
            record = json.loads(line)
            assert record["step"] >= 0
            np.array([*record.values()], float)  # raises where one is no number
            parsed.append(record)
        except Exception:  # of any kind: a line may hold anything
            raise InputError(f"{file}: line {number} is no record of a run: remove it") from None
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


def evaluations(folder: Path, *, of_classes: bool = False) -> list[Evaluated]:
    """The run's figures of retrieval; or of findings, of classes and of probes. Those of the best
    checkpoint on the test split come first; InputError: a file that is none, or damaged.
    """
    found = []
    files = sorted((folder / "evaluations").glob("*.json"))
    files.sort(key=lambda file: (file.stem != "best-test", not file.stem.startswith("best-")))
    for file in files:
        try:
            record, arrays = json.loads(file.read_text(encoding="utf-8")), None
            if ("task" in record) != of_classes:
                continue
            results.text(record)  # made of all that a page shows
        except Exception:  # of any kind: a record may hold anything
            problem = "damaged, or not the record of an evaluation: make it again"
            raise InputError(f"{file}: {problem}") from None
        if not of_classes and (beside := file.with_suffix(".npz")).is_file():
            arrays, n = npz.read(beside, _ARRAYS, _NEAREST), record.get("pairs", record["pool"])
            ranks = np.stack([arrays[f"{direction}_rank"] for direction in DIRECTIONS])
            if len(arrays["ids"]) != n or not ((ranks >= 1) & (ranks <= n)).all():
                raise InputError(f"{beside}: not of the {n:,} pairs of {file.name}: evaluate again")
        found.append(Evaluated(file.stem, record, arrays))
    return found
