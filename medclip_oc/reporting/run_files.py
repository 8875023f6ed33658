"""What a run folder says of its run: records of training, and evaluations. No torch here."""

import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ..config.vocabulary import DIRECTIONS
from ..errors import InputError
from ..runtime import npz
from . import results

_SCORES = ("R@1", "R@5", "R@10", "median_rank", "mean_rank", "mrr")
_SHARES = ("mrr", "mean_recall", "level", "relevant")
_TEXTS = ("name", "data", "features", "split", "ties", "duplicates")
_NEAREST = {f"{direction}_nearest": (2, "U") for direction in DIRECTIONS}
_ARRAYS = {"ids": (1, "U")} | {f"{way}_rank": (1, "f") for way in DIRECTIONS} | _NEAREST
_MOST_POINTS = 300
_IN_LOG = {
    "training pairs": r"([\d,]+) training pairs",
    "planned": r"training pairs, ([\d,]+ steps)",
    "date": r"(?m)^(\d{4}-\d\d-\d\d \d\d:\d\d)",
    "outcome": r"  done: (.*)",
}


@dataclass(frozen=True)
class Evaluated:
    """One evaluation: `best-test.json` and what lies beside it."""

    name: str
    record: dict[str, Any]
    arrays: dict[str, np.ndarray] | None  # ids, ranks and nearest ids. None: the .npz is not there


def was_run(folder: Path) -> dict[str, str]:
    """What was run, in words, by what it is: an older run's folder says less. InputError:
    config.yaml is damaged.
    """
    files = [folder / name for name in ("config.yaml", "environment.txt", "log.txt")]
    texts = [file.read_text("utf-8", "replace") if file.is_file() else "" for file in files]
    found: dict[str, Any] = {}
    try:
        if tree := yaml.safe_load(texts[0]):
            model, data, keys = tree["model"], tree["data"], ("", "_image", "_text")
            weights = " and ".join(filter(None, (model.get(f"pretrained{key}") for key in keys)))
            own = "its own weights" if ":" in model["arch"] else "random weights"
            found |= {"architecture": model["arch"], "start weights": weights or own}
            found |= {"training data": results.origin({"data": data["train"]})}
            found |= {"validation data": results.origin({"data": data["valid"] or "none"})}
            found |= {"learning rate": tree["optim"]["lr"]}
            found |= {"batch": f"{tree['train']['global_batch_size']:,} pairs"}
    except Exception:  # of any kind: a file may hold anything
        raise InputError(f"{files[0]}: damaged, or no run's: remove it") from None
    found |= {name: (re.findall(each, texts[2]) or [None])[-1] for name, each in _IN_LOG.items()}
    found |= dict(re.findall(r"(?m)^(commit|torch|command) (.+)", texts[1]))
    return {name: str(words) for name, words in found.items() if words is not None}


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
            parsed.append(json.loads(line))
            assert 0 <= parsed[-1]["step"] <= 2**53
            for name, value in parsed[-1].items():  # of what isn't finite nothing is drawn
                if value is not None and math.isfinite(value):
                    assert _is_sound(value, name.split("/")[-1], 1e39, 0 if "/" in name else -1)
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
            _check(record)
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


def _check(record: dict[str, Any]) -> None:
    """Raise, of any kind, where what is shown of a record can't be made."""
    if record.get("task") in ("findings", "classification", "probe"):
        results.class_table(record)
        if "confusion" in record:
            classes, counts = (record["confusion"][name] for name in ("classes", "counts"))
            assert {len(classes)} == {len(counts), *map(len, counts)}
            assert all(type(each) is int and 0 <= each < 2**53 for row in counts for each in row)
        return
    assert all(record[part][name] >= 0 for part in (*DIRECTIONS, "chance") for name in _SCORES)
    assert record.get("ties", "expected") in ("expected", "optimistic", "pessimistic")
    assert _is_sound(record, "", record.get("pairs", record["pool"]))
    results.tables(record)
    results.recalls("", {each["name"]: each for each in record.get("slices", ())}, "images")


def _is_sound(value: Any, name: str, pool: float, least: int = 0) -> bool:
    """Whether what stands in a record under a name can stand there; only differences go below 0."""
    if isinstance(value, dict | list):
        if not value or (name in _TEXTS and isinstance(value, dict)):
            return False
        least = -1 if name == "difference" else least
        inner = value.items() if isinstance(value, dict) else ((name, each) for each in value)
        return all(_is_sound(each, key, pool, least) for key, each in inner)
    if isinstance(value, str) or value is None:
        return value is not None or name in ("concept", "data_fingerprint")
    most = 1 if "@" in name or name in _SHARES else pool if name.endswith("_rank") else 1e39
    return name not in _TEXTS and type(value) in (int, float) and least * most <= value <= most
