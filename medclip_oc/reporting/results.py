"""The figures of an evaluation as tables, for a page and for a terminal. No torch here."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from ..config.vocabulary import DIRECTIONS, FEW_QUERIES

Record = dict[str, Any]
Table = dict[str, Any]  # `title`, `head`, `rows` of texts; a space in a figure is a no-break space
CONCEPT_FIGURES = (
    "nDCG@K: concepts that the first K share with the query, the best K being 100 %",
    "relevant recall@K: how many of all relevant candidates are among the first K",
    "relevant precision@K: how many of the first K candidates are relevant",
    "modality agreement@1: how often the first candidate is of the query's modality",
)
"""What each figure by concepts says, a line each."""
_COUNTS = ("images", "positives", "negatives", "unknown", "findings")
_CLASS_FIGURES = [*_COUNTS[:-1], "auroc", "average_precision", "threshold", "accuracy"]
_CLASS_FIGURES += ["balanced_accuracy", "f1", "mcc", "recall", "calibration_error"]
_SHORT = ("auroc", "f1", "mcc", "mrr")
_QUERIES = {"image_to_text": "images", "text_to_image": "texts"}  # how many, by their key


def text(record: Record) -> str:
    """All tables of a record for a terminal, recalls in per cent."""
    if "task" in record:
        return _class_text(record)
    shown = tables(record)
    parts = [_lines(table) for table in shown["retrieval"]]
    if record.get("merged") and not has_copies(record):
        parts.insert(1, "no image and no caption of this pool is there twice")
    parts += ["\n".join([_lines(table), *explained(table)]) for table in shown["concepts"]]
    parts += [_lines(table) for table in shown["baseline"]]
    if "slices" in record:
        slices = {each["name"]: each for each in record["slices"]}
        title = "R@10 of queries of one kind, among all candidates"
        parts.append(_lines({"title": title, **recalls("", slices, "images", ("R@10",))}))
    return "\n\n".join(parts)


def units(record: Record) -> str:
    """What a record's pool counts."""
    return "studies" if record.get("unit") == "study" else "pairs"


def explained(table: Table) -> list[str]:
    """What each figure of a table by concepts says."""
    return [line for line in CONCEPT_FIGURES if line.partition("@")[0] in str(table["rows"])]


def tables(record: Record) -> dict[str, list[Table]]:
    """Tables of all scores: of `retrieval`, by `concepts`, and against the `baseline`."""
    is_merged = record.get("duplicates") == "merge"
    title = f"pool of {record['pool']:,} {units(record)}"
    if is_merged or "unit" in record or record.get("images") != record.get("texts"):
        words = f"{title}:" if "unit" in record else "pool of"
        title = _sizes(record, "copies as one:" if is_merged else words)
    retrieval, concepts, baseline = [_scores(record, title)], [], []
    if has_copies(record):
        retrieval.append(_scores(record["merged"], _sizes(record["merged"], "copies as one:")))
    for pool in record.get("pools", []):
        title = f"pools of {pool['pool']:,} {units(record)}, mean of {pool['draws']:,} random ones"
        title += " (in brackets the middle 95 % of them)"
        retrieval.append(_scores(pool, title, "between_draws"))
    if part := record.get("concepts"):
        title = f"by concepts: {part['queries']:,} pairs with CUIs, relevant from an overlap of "
        concepts = [_scores(part, f"{title}{part['relevant']:g}")]
    if part := record.get("baseline"):
        title = f"this model less {part['name']}, query by query (% are percentage points)"
        baseline = [_scores(part, f"baseline {part['name']}"), _scores(part["difference"], title)]
    return {"retrieval": retrieval, "concepts": concepts, "baseline": baseline}


def recalls(
    first: str, records: Mapping[str, Record], size: str, names: Sequence[str] = ("R@1", "R@10")
) -> Table:
    """Recalls of several records, a row each; behind its name stands the number under `size`."""
    columns = [(name, direction) for name in names for direction in DIRECTIONS]
    rows = [
        [f"{label} ({record[size]:,})", *(figure(record, way, name) for name, way in columns)]
        for label, record in records.items()
    ]
    return {"head": [first, *(f"{name}, {DIRECTIONS[way]}" for name, way in columns)], "rows": rows}


def class_table(record: Record) -> Table:
    """Findings and their means, classes and all of them, or probes: a row each."""
    rows = class_rows(record)
    title = "intervals: of the test images, of the draws for few-shot"
    if record["task"] != "probe":
        title = f"{score(record, 'images')} images with a label"
    if any(label.endswith(" *") for label in rows):
        title += f"; * fewer than {FEW_QUERIES} positives"
    names = [name for name in _CLASS_FIGURES if any(name in each for each in rows.values())]
    cells = [[label, *(score(each, n) for n in names)] for label, each in rows.items()]
    return {"title": title, "head": ["", *map(_words, names)], "rows": cells}


def class_rows(record: Record) -> dict[str, Record]:
    """Label -> figures, see `class_table`."""
    if record["task"] == "probe":
        rows = {f"{n}, {k} {record[n][k]:g}": record[n] for n, k in (("knn", "k"), ("linear", "C"))}
        rows |= {f"few-shot, {n} each": f for n, f in record["few_shot"].items() if n.isdigit()}
        return {label: each.get("macro", each) for label, each in rows.items()}
    if record["task"] == "classification":
        return {"all": record} | record["classes"]
    rows = {k + " *" * (f["positives"] < FEW_QUERIES): f for k, f in record["findings"].items()}
    macro = f"macro mean of {score(record['macro'], 'findings')}"
    return rows | {macro: record["macro"], "weighted mean": record["weighted"]}


def weakest(record: Record) -> tuple[str, str, str] | None:
    """Of the slices, findings or classes with enough queries the worst, its figures, and chance."""
    if "task" not in record:
        parts = [each for each in record.get("slices", ()) if each["images"] >= FEW_QUERIES]
        low = min(parts, key=lambda e: sum(e[way]["R@10"] for way in DIRECTIONS), default=None)
        if low is None:
            return None
        shares = " and ".join(figure(low, way, "R@10", "") for way in DIRECTIONS)
        return low["name"], f"R@10 {shares}", cell("R@10", record["chance"]["R@10"])
    name, size = ("auroc", "positives") if "findings" in record else ("recall", "images")
    groups = record.get("findings") or record.get("classes") or {}  # a probe has none
    told = [n for n, g in groups.items() if g[size] >= FEW_QUERIES and g.get(name) is not None]
    if not told:
        return None
    worst = min(told, key=lambda n: groups[n][name])
    chance = "0.5" if name == "auroc" else f"{1 / len(groups):.3f}"
    return worst, f"{_words(name)} {score(groups[worst], name)}", chance


def score(figures: Record, name: str) -> str:
    """A count, or a share with its interval if it has one; "-": there is none."""
    value, ends = figures.get(name), figures["intervals"].get(name, ())
    if value is None:
        return "-"
    kind, most = (int, 2**53) if name in _COUNTS else (float, 1 + 1e-9)  # sums may be rounded up
    assert all(type(each) is kind and -1 <= each <= most for each in (value, *ends))
    interval = " [{:.3f},\u00a0{:.3f}]".format(*ends) if name in figures["intervals"] else ""
    return f"{value:,}" if kind is int else f"{value:.3f}{interval}"


def cell(name: str, value: float, unit: str = "\u00a0%") -> str:
    """One figure: shares in per cent, ranks and MRR as they are."""
    if "@" in name:
        return f"{100 * value:.1f}{unit}"
    return f"{value:.3f}" if name == "mrr" else f"{value:,.1f}"


def figure(record: Record, direction: str, name: str, ranges: str = "intervals") -> str:
    """A figure, and its [low, high] if it has one; a recall of few queries is a count."""
    value, ends = record[direction][name], record[ranges][direction] if ranges in record else None
    queries = record.get(_QUERIES[direction], FEW_QUERIES)
    if queries < FEW_QUERIES and name.startswith("R@"):
        return f"{value * queries:.0f}\u00a0of\u00a0{queries}"
    text = cell(name, value)
    if ends and queries >= FEW_QUERIES and ends[name][0] < ends[name][1]:
        text += " [" + ",\u00a0".join(cell(name, end, "") for end in ends[name]) + "]"
    return text  # which may be broken before the bracket


def has_copies(record: Record) -> bool:
    """Whether taking copies as one made a difference."""
    merged = record.get("merged")
    return merged is not None and any(merged[n] != record[n] for n in ("images", "texts"))


def origin(record: Record) -> str:
    """What was evaluated: where the pairs lie, or the file of features."""
    place = record.get("data") or record.get("features") or "unknown data"
    return place if isinstance(place, str) else ", ".join(place)


def brief(record: Record) -> str:
    """Both directions' recalls in a few words, in per cent."""
    parts = []
    for way, title in DIRECTIONS.items():
        shares = "/".join(cell(name, record[way][name], "") for name in ("R@1", "R@5", "R@10"))
        parts.append(f"{title} R@1/5/10 {shares} %")
    return ", ".join(parts)


def _sizes(record: Record, words: str) -> str:
    return f"{words} {record['images']:,} images, {record['texts']:,} captions"


def _scores(record: Record, title: str, ranges: str = "intervals") -> Table:
    """A row for each score, a column for each direction, and one for chance where that is known."""
    about, chance = record.get(ranges, {}), record.get("chance")
    if "draws" in about and record.get("images", FEW_QUERIES) >= FEW_QUERIES:
        level = f"{100 * about['level']:.0f} % intervals, {about['draws']:,} bootstrap draws"
        title += f" (in brackets {level})"
    rows = []
    for name in record["image_to_text"]:
        cells = [figure(record, direction, name, ranges) for direction in DIRECTIONS]
        rows.append([_words(name), *cells, *([cell(name, chance[name])] if chance else [])])
    head = ["", *DIRECTIONS.values(), *(["chance"] if chance else [])]
    return {"title": title, "head": head, "rows": rows}


def _class_text(record: Record) -> str:
    parts = [_lines(class_table(record))]
    if "confusion" in record:
        title = "confusion: a row for each true class, a column for each predicted one, as listed"
        classes, counts = (record["confusion"][name] for name in ("classes", "counts"))
        rows = [[name, *row] for name, row in zip(classes, counts, strict=True)]
        head = ["", *(str(n) for n in range(1, len(classes) + 1))]
        parts.append(_lines({"title": title, "head": head, "rows": rows}))
    return "\n".join(parts)


def _lines(table: Table) -> str:
    labels, figures = [row[0] for row in table["rows"]], [row[1:] for row in table["rows"]]
    shown = pd.DataFrame(figures, labels, table["head"][1:]).to_string()
    return f"{table['title']}\n{shown}".replace("\u00a0", " ")


def _words(name: str) -> str:
    return name.upper() if name in _SHORT else name.replace("_", " ")
