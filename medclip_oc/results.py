"""The record of an evaluation as text for a terminal. No torch here."""

from typing import Any

WAYS = (("image to text", "image_to_text"), ("text to image", "text_to_image"))
_COLUMN = 21
_FIRST = 26


def text(record: dict[str, Any]) -> str:
    """Tables of all that a record holds (see retrieval.measure), recalls in per cent."""
    parts = [_figures(record, _title(record), record.get("duplicates") == "merge")]
    if "merged" in record:
        parts.append(_figures(record["merged"], _title(record["merged"]), True))
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
    return f"{100 * value:.1f} %" if "@" in name else f"{value:.4g}"


def interval(name: str, ends: list[float]) -> str:
    """[low, high] in the unit of the figure."""
    low, high = (f"{100 * end:.1f}" if "@" in name else f"{end:.4g}" for end in ends)
    return f"[{low}, {high}]"


def names_of(record: dict[str, Any]) -> list[str]:
    """The scores' names, in the order of columns."""
    return list(record["image_to_text"])


def _title(record: dict[str, Any]) -> str:
    return f"pool of {record['pool']:,} pairs"


def _line(first: str, cells: list[str]) -> str:
    return f"{first:<{_FIRST}}" + "".join(f"{one:>{_COLUMN}}" for one in cells)


def _head(first: str, names: list[str]) -> str:
    return _line(first, [name.replace("_", " ") for name in names])


def _figures(record: dict[str, Any], title: str, merged: bool) -> str:
    names = names_of(record)
    lines = [_head(title, names)]
    if merged:
        counts = f"{record['images']:,} images and {record['texts']:,} captions"
        lines.insert(0, f"copies taken as one: {counts} that differ")
    for first, way in WAYS:
        ranges = record.get("intervals", {}).get(way)
        lines.append(_line(first, _cells(record[way], ranges)))
    lines.append(_line("chance", [cell(name, record["chance"][name]) for name in names]))
    return "\n".join(lines)


def _cells(scores: dict[str, float], ranges: dict[str, list[float]] | None) -> list[str]:
    return [
        cell(name, value) + (f" {interval(name, ranges[name])}" if ranges else "")
        for name, value in scores.items()
    ]


def _small(record: dict[str, Any]) -> str:
    names = names_of(record)
    lines = [f"mean of {record['draws']} random pools; in brackets the middle 95 % of them"]
    lines.append(_head(_title(record), names))
    for first, way in WAYS:
        lines.append(_line(first, _cells(record[way], record["between_draws"][way])))
    lines.append(_line("chance", [cell(name, record["chance"][name]) for name in names]))
    return "\n".join(lines)


def _concepts(record: dict[str, Any]) -> str:
    lines = [
        f"by concepts: {record['queries']:,} pairs with CUIs; relevant from an overlap of "
        f"{record['relevant']:g}"
    ]
    lines.append(_line("", [title for title, _ in WAYS]))
    for name in record["image_to_text"]:
        cells = [cell(name, record[way][name]) for _, way in WAYS]
        lines.append(_line(name.replace("_", " "), cells))
    return "\n".join(lines)


def _slices(slices: list[dict[str, Any]]) -> str:
    lines = ["queries of one kind, among all candidates: R@10 of either direction"]
    for one in slices:
        cells = []
        for _, way in WAYS:
            ranges = one.get("intervals", {}).get(way)
            cells.append(_cells({"R@10": one[way]["R@10"]}, ranges)[0])
        lines.append(_line(f"{one['name']} ({one['images']:,})"[: _FIRST - 1], cells))
    return "\n".join(lines)


def _baseline(record: dict[str, Any]) -> str:
    names = names_of(record)
    lines = [_head(f"baseline: {record['name']}"[: _FIRST - 1], names)]
    for first, way in WAYS:
        lines.append(_line(first, [cell(name, record[way][name]) for name in names]))
    lines.append("difference to it, query by query")
    ranges = record["difference"].get("intervals", {})
    for first, way in WAYS:
        lines.append(_line(first, _cells(record["difference"][way], ranges.get(way))))
    return "\n".join(lines)
