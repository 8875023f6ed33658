"""The record of an evaluation as text for a terminal. No torch here."""

from typing import Any

from ..config.vocabulary import DIRECTIONS

Row = dict[str, Any]


def text(record: Row) -> str:
    """Tables of all that a record holds (see retrieval.measure), recalls in per cent."""
    title = _copies(record) if record.get("duplicates") == "merge" else None
    parts = [_figures(record, title or f"pool of {record['pool']:,} pairs")]
    merged = record.get("merged")
    if merged and has_copies(merged):
        parts.append(_figures(merged, _copies(merged)))
    elif merged:
        parts.append("no image and no caption of this pool is there twice")
    parts += [_small(one) for one in record.get("pools", [])]
    if "concepts" in record:
        parts.append(_concepts(record["concepts"]))
    if "slices" in record:
        parts.append(_slices(record["slices"]))
    if "baseline" in record:
        parts.append(_baseline(record["baseline"]))
    return "\n\n".join(parts)


def cell(name: str, value: float) -> str:
    """One figure: shares in per cent, ranks and MRR as they are."""
    return f"{_number(name, value)} %" if "@" in name else _number(name, value)


def interval(name: str, ends: list[float]) -> str:
    """[low, high] in the unit of the figure."""
    low, high = (_number(name, end) for end in ends)
    return f"[{low}, {high}]"


def has_copies(merged: Row) -> bool:
    """Whether taking copies as one made a difference."""
    return not merged["images"] == merged["texts"] == merged["pool"]


def words(name: str) -> str:
    """A score's name as a reader sees it."""
    return "MRR" if name == "mrr" else name.replace("_", " ")


def level(record: Row) -> str:
    """What the brackets of a record hold."""
    about = record.get("intervals")
    if not about:
        return ""
    return f"in brackets {about['level']:.0%} intervals, {about['draws']:,} bootstrap draws"


def _number(name: str, value: float) -> str:
    if "@" in name:
        return f"{100 * value:.1f}"
    return f"{value:.3f}" if name == "mrr" else f"{value:,.1f}"


def _copies(record: Row) -> str:
    return f"copies as one: {record['images']:,} images, {record['texts']:,} captions"


def _line(first: str, cells: list[str], last: str = "") -> str:
    return f"{first:<24}" + "".join(f"{one:>27}" for one in cells) + f"{last:>10}"


def _table(title: str, columns: list[Row], ranges: list[Row], chance: Row | None = None) -> str:
    """A row for each score, a column for each direction."""
    lines = [title, _line("", list(DIRECTIONS.values()), "chance" if chance else "")]
    for name in columns[0]:
        cells = [
            cell(name, scores[name]) + (f" {interval(name, ends[name])}" if ends else "")
            for scores, ends in zip(columns, ranges, strict=True)
        ]
        lines.append(_line(words(name), cells, cell(name, chance[name]) if chance else ""))
    return "\n".join(line.rstrip() for line in lines)


def _of_ways(record: Row, name: str = "") -> list[Row]:
    inner = record.get(name, {}) if name else record
    return [inner.get(way, {}) for way in DIRECTIONS]


def _figures(record: Row, title: str) -> str:
    about = level(record)
    title = f"{title} ({about})" if about else title
    return _table(title, _of_ways(record), _of_ways(record, "intervals"), record["chance"])


def _small(record: Row) -> str:
    title = (
        f"pools of {record['pool']:,} pairs, mean of {record['draws']:,} random ones "
        "(in brackets the middle 95 % of them)"
    )
    return _table(title, _of_ways(record), _of_ways(record, "between_draws"), record["chance"])


def _concepts(record: Row) -> str:
    title = (
        f"by concepts: {record['queries']:,} pairs with CUIs, relevant from an overlap of "
        f"{record['relevant']:g}"
    )
    return _table(title, _of_ways(record), [{}, {}])


def _slices(slices: list[Row]) -> str:
    lines = ["R@10 of queries of one kind, among all candidates"]
    lines.append(_line("", list(DIRECTIONS.values())))
    for one in slices:
        cells = []
        for scores, ends in zip(_of_ways(one), _of_ways(one, "intervals"), strict=True):
            brackets = f" {interval('R@10', ends['R@10'])}" if ends else ""
            cells.append(cell("R@10", scores["R@10"]) + brackets)
        lines.append(_line(f"{one['name']} ({one['images']:,})", cells))
    return "\n".join(line.rstrip() for line in lines)


def _baseline(record: Row) -> str:
    name, difference = record["name"], record["difference"]
    whole = _table(f"baseline {name}", _of_ways(record), _of_ways(record, "intervals"))
    title = f"difference to {name}, query by query"
    return f"{whole}\n\n" + _table(title, _of_ways(difference), _of_ways(difference, "intervals"))


def brief(record: Row) -> str:
    """Both directions' recalls in a few words, in per cent."""
    parts = []
    for way, title in DIRECTIONS.items():
        recalls = "/".join(f"{100 * record[way][f'R@{k}']:.1f}" for k in (1, 5, 10))
        parts.append(f"{title} R@1/5/10 {recalls} %")
    return ", ".join(parts)
