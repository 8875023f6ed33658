"""What is true of each image, from a table, and how well it is told. N images, M classes."""

import difflib
import json
import os
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten as cut
from typing import Any, TextIO

import numpy as np
import pandas as pd

from ..config.evaluation import Uncertain
from ..config.fields import shorten
from ..config.inference import ZeroshotConfig
from ..config.packing import SPLIT_OF
from ..data.index import say
from ..errors import InputError
from ..evaluation import classification, findings
from ..packing.image_store import fold, stem
from ..packing.sources import SPLITS
from ..reporting import results
from ..runtime import atomic
from .image_inputs import ImageSet, find
from .prompt_sets import PromptClass
from .prompts import NONE, open_table, read_table

_IMAGE = ["image", "id", "file", "path", "filename", "file_name", "image_id", "image index"]
_LABEL = ["label", "class", "labels", "findings", "finding labels"]
_OTHERS = ["split", "patient", "patient_id", "study", "group", "slice"]  # no findings
_CODES = {"0": 0, "0.0": 0, "false": 0, "1": 1, "1.0": 1, "true": 1, "": -1}
_PARTS = {word: SPLITS.index(split) for word, split in SPLIT_OF.items()}
_UNCERTAIN = {"ones": 1, "zeros": 0, "ignore": -1}
_MOST = 1000  # classes of a table
_NORMAL = ("no finding", "none", "normal")  # no class is true, where none has that name
_NO_THRESHOLDS = "balanced accuracy, F1, MCC are left out: they need --threshold-labels"


@dataclass(frozen=True)
class LabelTable:
    """What a table says of its images."""

    where: str  # the option and the file, for errors
    truth: pd.DataFrame
    """A row for each image, as the table calls it, a column for each class: 1 true, 0 false, -1
    unknown.
    """
    parts: pd.Series | None  # of each row, the index in SPLITS. None: not asked for, or not there

    def check_single(self) -> None:
        """InputError: an image has no true class, or several."""
        for image, row in self.truth[(self.truth > 0).sum(axis=1) != 1].iterrows():
            told = f"true are {[*row.index[row == 1]] or 'none'}"
            wanted = "one class is wanted (--multi-label takes several)"
            raise InputError(f"{self.where}: {image}: {told:.80}; {wanted}")


def read(
    option: str,
    file: str,
    classes: Sequence[PromptClass] | None,
    uncertain: Uncertain | None = None,
    *,
    splits: bool = False,
) -> LabelTable:
    """Read a table with a column of images (`image`, `id`, `file`, `path`, ...), and either one of
    names (`label`, `class`, `labels`, `findings`; `a|b` for several), or one for each class: 0, 1,
    blank for unknown, -1 for uncertain (None: as `ignore`, unknown). InputError: a mistake in it,
    by its row.

    The M classes are found by names and aliases, in any capitals; columns of others are passed
    over, and a class without a column is unknown. None: all that the table has. With `splits` a
    column `split` counts too, if there is one.
    """
    where, header = f"{option}: {file}", open_table(option, file).names()
    lower = {column.lower(): column for column in header}
    known = (_IMAGE, _LABEL, ["split"] * splits)
    image, label, split = (next((lower[n] for n in names if n in lower), "") for names in known)
    if classes is None and not label:
        classes = _named(c for c in header if c and c.lower() not in _IMAGE + _OTHERS)
    class_of = _spellings(classes or ())
    if label and len({*class_of.values()}) < len(classes or ()):
        raise InputError(f"{where}: some candidates differ in capitals alone, which labels may not")
    found = [None if c in (image, label) else class_of.get(c.casefold()) for c in header]
    columns = {c: name for c, name in zip(header, found, strict=True) if name is not None}
    if not image or bool(columns) == bool(label):
        wanted = f"images ({', '.join(_IMAGE[:3])}, ...), and either of labels or of each class"
        raise InputError(f"{where}: has {_listed(header)}; wanted are columns of {wanted}")
    if twice := [c for c, name in columns.items() if found.count(name) > 1]:
        raise InputError(f"{where}: several columns of one class: {_listed(twice)}")
    texts = [*filter(None, (image, label, split))]
    chosen = [*texts, *columns]
    rows = dict(read_table(option, file, chosen, len(texts)))
    cells = pd.DataFrame.from_dict(rows, "index", object, chosen)  # the index tells the places
    if cells.empty:
        raise InputError(f"{where}: no rows")
    if columns:
        codes = _CODES | dict.fromkeys(("-1", "-1.0"), _UNCERTAIN[uncertain or "ignore"])
        truth = _coded(cells[[*columns]], codes, "0, 1, -1 (uncertain) or nothing (unknown)")
        truth = truth.rename(columns=columns)
        truth = truth.reindex(columns=[each.name for each in classes or ()], fill_value=-1)
    else:
        truth = _of_words(cells[label], classes)
    parts = _coded(cells[[split] if split else []], _PARTS, ", ".join(_PARTS))
    paths = cells[image].str.replace("\\", "/").map(os.path.normpath)  # without ./
    for kind, told in (("label", truth), ("split", parts)):
        differs = (told != told.groupby(paths, sort=False).transform("first")).any(axis=1)
        for place, path in paths[differs].items():
            raise InputError(f"{place}: {path} has another {kind} before")
    first = ~paths.duplicated().to_numpy()
    truth, parts = (frame.set_axis(paths)[first] for frame in (truth.astype(np.int8), parts))
    return LabelTable(where, truth, parts[split] if split else None)


def _named(names: Iterable[str]) -> list[PromptClass]:
    return [PromptClass(name, ()) for name in names]


def _spellings(classes: Sequence[PromptClass]) -> dict[str, str]:
    """Name or alias, without capitals -> name."""
    words = [(word, each.name) for each in classes for word in (each.name, *each.aliases)]
    return {word.casefold(): name for word, name in words[::-1]}  # of equal ones the first


def _listed(words: Iterable[str]) -> str:
    return cut(", ".join(words), 110, placeholder=" ...")


def _coded(cells: pd.DataFrame, codes: dict[str, int], wanted: str) -> pd.DataFrame:
    """What cells stand for, in any capitals."""
    found = cells.apply(lambda column: column.str.lower().map(codes))
    if (bad := found.isna()).any(axis=None):
        place, column = bad.stack().idxmax()
        cell = str(cells.at[place, column])
        raise InputError(f"{place}: {column}: {cell[:40]!r}: wanted is {wanted}")
    return found


def _of_words(cells: pd.Series, classes: Sequence[PromptClass] | None) -> pd.DataFrame:
    """What the cells of a column of names say."""
    words = cells.str.split("|").explode().str.strip()
    plain = words.str.casefold()
    if classes is None:
        classes = _named(sorted(dict(zip(plain, words, strict=True)).values()))
    names, found = [each.name for each in classes], plain.map(_spellings(classes))
    for place, bad in words[found.isna() & ~plain.isin(_NORMAL)].items():
        near = _listed(difflib.get_close_matches(bad, names, 3) or names[:5])
        raise InputError(f"{place}: {bad[:40]!r} is no candidate; the nearest are {near}")
    if (mixed := found.isna() & found.index.duplicated(keep=False)).any():
        raise InputError(f"{mixed.idxmax()}: {words[mixed].iloc[0]!r} beside a class")
    if len(names) > _MOST:
        problem = f"{len(names):,} different labels: a column of captions?"
        raise InputError(f"{cells.index[0]}: {problem}")
    true = pd.get_dummies(found).groupby(level=0, sort=False).max()
    return true.reindex(columns=names, fill_value=False)


class Labels:
    """What a table says of n images of a set of N, and the scores of all N: (N, M) probabilities,
    which come later; NaN of images that can't be read.

    InputError: see `match`; no figure could follow; or (single) `LabelTable.check_single`.
    """

    def __init__(self, table: LabelTable, images: ImageSet, *, single: bool) -> None:
        self.table, self.images, self.single = table, images, single
        self.scores = np.full((len(images), len(table.truth.columns)), np.nan)
        if single:
            table.check_single()
        rows = dict.fromkeys(table.truth.index)
        row_of = match(table.where, rows, images.names(rows))
        self.positions, self.rows = np.array([*row_of]), [*row_of.values()]
        self.truth = table.truth.loc[self.rows].to_numpy()  # (n, M)
        self.unused = len(rows) - len(self.rows)
        figured = (self.truth == 0).any(0) & (self.truth == 1).any(0)
        if not figured.any():
            raise InputError(f"{table.where}: all {len(row_of):,} images are alike: no figures")
        if not (single or figured.all()):
            lacking = _listed(table.truth.columns[~figured])
            told = f"no positive, or no negative image of {lacking}"
            say(f"warning: {table.where}: {told}")

    def judged(self) -> tuple[np.ndarray, np.ndarray]:
        """Truth and probabilities, (n, M) both, of the images that were read."""
        probabilities = self.scores[self.positions]
        known = ~np.isnan(probabilities[:, 0])
        if not known.any():
            raise InputError(f"{self.table.where}: no image with a label can be read")
        return self.truth[known], probabilities[known]

    def measure(self, **how: Any) -> dict[str, Any]:
        """The figures of the scores as they are: see `classification` (single), or `findings`."""
        (truth, probabilities), names = self.judged(), [*self.table.truth]
        if self.single:
            return classification.measure(names, truth.argmax(1), probabilities, **how)
        return findings.measure(names, truth, probabilities, **how)


def open_labels(
    settings: ZeroshotConfig, candidates: Sequence[PromptClass], images: ImageSet
) -> list[Labels]:
    """Those of --labels, if given, and of --threshold-labels; InputError: see `Labels`, or an image
    is in both.
    """
    classes = [*_named([NONE] * (settings.threshold is not None)), *candidates]
    others, labels = images, list[Labels]()
    if settings.threshold_images:
        others = find(settings.threshold_images, None, "--threshold-images", "valid")
    files = {"--labels": settings.labels, "--threshold-labels": settings.threshold_labels}
    for (option, file), judged in zip(files.items(), (images, others), strict=True):
        if file is not None:
            table = read(option, file, classes, settings.uncertain)
            labels.append(Labels(table, judged, single=not settings.multi_label))
    # where images lie, and what rows call them
    places = [{*map(os.path.realpath, map(x.images.name, x.positions)), *x.rows} for x in labels]
    if labels[1:] and (both := places[0] & places[1]):
        problem = f"{min(both)} is in --labels too; thresholds come from other images"
        raise InputError(f"{labels[1].table.where}: {problem}")
    missing = len(images) - sum(len(each.truth) for each in labels if each.images is images)
    unused = sum(each.unused for each in labels)
    if labels and (missing or unused):
        counts = f"{missing:,} images have no row, {unused:,} rows have no image"
        say(f"warning: {settings.labels}: {counts}: not counted")
    return labels


def report(
    settings: ZeroshotConfig,
    candidates: Sequence[PromptClass],
    labels: Sequence[Labels],
    out: TextIO,
) -> None:
    """Print the figures of the scores that the labels have now, and `keep` them."""
    how: dict[str, Any] = {"draws": settings.interval_draws, "seed": settings.seed}
    if settings.multi_label:
        how["thresholds"] = findings.thresholds(*labels[1].judged()) if labels[1:] else None
        how["min_positives"] = settings.min_positives
    figures = labels[0].measure(**how)
    print(results.text(figures), file=out)
    if settings.multi_label and not labels[1:]:
        print(_NO_THRESHOLDS, file=out)
    phrasings = {c.name: {"positive": c.positive, "negative": c.negative} for c in candidates}
    names = ("features_in", "uncertain", "threshold_labels", "threshold_images", "min_positives")
    figures |= {"prompts": phrasings, "prompt_set": settings.prompts}
    figures |= {name: getattr(settings, name) for name in names}
    for line in keep(figures, settings.labels or "", settings.checkpoint, settings.figures):
        print(line, file=out)


def keep(
    figures: dict[str, Any], labels: str, checkpoint: str | None, file: str | None
) -> list[str]:
    """Write figures to a file, if one is named, and of a run's checkpoint to
    RUN/evaluations/CHECKPOINT-FOLDER-LABELS-TASK.json, by the folder of the table of labels; no
    record of retrieval ends so. Returns lines that say so; WorkError: it can't be written.
    """
    files, run = [Path(file)] if file else [], Path(checkpoint or "x").absolute().parent
    if run.name == "checkpoints":
        table = Path(labels).absolute()
        parts = (Path(checkpoint or "").stem, table.parent.name, table.stem, figures["task"])
        files.append(run.parent / "evaluations" / f"{'-'.join(parts)}.json")
    about = {"checkpoint": checkpoint, "labels": labels}
    for path in files:
        with suppress(OSError):  # writing says why
            path.parent.mkdir(parents=True, exist_ok=True)
        with atomic.atomic_file(path) as partial:
            text = json.dumps(figures | about, indent=2, ensure_ascii=False)
            partial.write_text(text + "\n", encoding="utf-8")
    return [f"written to {path}" for path in files]


def match(where: str, rows: Collection[str], names: Sequence[str]) -> dict[int, str]:
    """Which of a table's rows names each image (a path, or key): position -> row; InputError: a row
    names two images, or none names any.

    An image is named by its path or the end of that, such as `normal/a.png` or `a.png`; the
    extension may be absent. Failing that, the file name decides, where it is unique.
    """
    here = Path.cwd()
    paths = [name if name.startswith("/") else f"{here}/{name}" for name in names]
    matched = {n: row for n, path in enumerate(paths) if (row := _longest_end(path, rows))}
    if not (matched := matched or _by_file_name(paths, rows)):
        pair = f"{shorten(next(iter(rows), ''))}, {shorten(names[0])}; write paths or file names"
        raise InputError(f"{where}: none of its rows names one of the images: {pair}")
    image_of = dict[str, str]()
    for n, row in matched.items():
        if image_of.setdefault(row, paths[n]) != paths[n]:
            both = f"{shorten(image_of[row])} and {shorten(paths[n])}"
            raise InputError(f"{where}: {row} is the end of {both}: write more of it")
    return matched


def _longest_end(path: str, rows: Collection[str]) -> str | None:
    """The row that is the path, or the most of its end, with or without its extension."""
    forms = [path.split("/"), stem(path).split("/")]
    ends = ("/".join(parts[start:]) for start in range(len(forms[0])) for parts in forms)
    return next((end for end in ends if end in rows), None)


def _by_file_name(paths: Collection[str], rows: Collection[str]) -> dict[Any, str]:
    """Positions and rows of the same file name, without extension, which either has once."""
    names = pd.Series([*map(fold, paths)]).drop_duplicates(keep=False)
    row_of = pd.Series([*rows], [*map(fold, rows)])
    return names.map(row_of[~row_of.index.duplicated(keep=False)]).dropna().to_dict()
