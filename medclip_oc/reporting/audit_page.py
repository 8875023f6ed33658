"""An audit's findings for people: the page audit.html, and a few lines for a terminal."""

from collections.abc import Iterator, Mapping
from itertools import combinations, permutations
from typing import Any

from matplotlib.figure import Figure

from . import html, plots

LEAKS_SHOWN, COPIES_SHOWN, CAPTIONS_SHOWN = 24, 8, 12
"""On the page, the worst first; audit.json has them all."""

Report = Mapping[str, Any]
Place = tuple[str, str]  # split, id


def shown(report: Report) -> set[Place]:
    """Pairs whose pictures the page shows."""
    leaks, copies, _ = _findings(report)
    entries = leaks + copies
    return {(e["split"], e["id"]) for e in entries} | {
        (e["other_split"], e["other_id"]) for e in entries
    }


def headlines(report: Report) -> Iterator[str]:
    """The main findings, a line each."""
    read, usable = _totals(report)
    yield f"audit: {read:,} pairs read, {usable:,} usable"
    splits, copied = report["source"]["splits"], _copied(report)
    leaks = [(a, b) for a, b in combinations(splits, 2) if copied[a][b]]
    for first, second in leaks:
        counted = (
            f"{number:,} of {(whole := report['pairs'][split]['usable']):,} {split} pairs "
            f"({_share(number, whole)})"
            for split, number in ((first, copied[first][second]), (second, copied[second][first]))
        )
        yield f"  leak {first}-{second}: the pictures of {' and '.join(counted)}"
    if len(splits) > 1 and not leaks:
        yield "  no picture is in two splits"
    if any(copied[split][split] for split in splits):
        counts = ", ".join(f"{split} {copied[split][split]:,}" for split in splits)
        yield f"  pictures like an earlier one of their split: {counts}"
    for first, second in _split_pairs(splits):
        ways = report["alike_captions"]["counts"][first][second]
        if any(ways.values()):
            like = f"an earlier one of {first}" if first == second else f"one of {second}"
            counts = ", ".join(f"{number:,} {way}" for way, number in ways.items() if number)
            yield f"  captions of {first} like {like}: {counts}"
    settings, cut = report["settings"], _cut(report)
    yield (
        f"  captions longer than the {settings['context_length']} tokens of {settings['arch']}: "
        f"{cut:,} ({_share(cut, usable)})"
    )


def render(report: Report, pictures: Mapping[Place, bytes], captions: Mapping[Place, str]) -> str:
    """The page.

    Args:
        report: what stands in audit.json.
        pictures: JPEGs of the pairs that `shown` names.
        captions: theirs.
    """
    splits, (read, usable) = report["source"]["splits"], _totals(report)
    images, bins = report["images"], report["captions"]["tokens"]["histogram"]
    over = (n for n, b in enumerate(bins) if b["from"] > report["settings"]["context_length"])
    lengths = [(_edge(each, 1), each["count"]) for each in bins]
    sides = [(_edge(each, 0), each["count"]) for each in images["shorter_side"]]
    copied, (leaks, copies, near) = _copied(report), _findings(report)
    return html.render(
        "audit.html.j2",
        title="Audit of image-caption pairs",
        report=report,
        pictures=pictures,
        captions=captions,
        splits=splits,
        inside=[(split, split) for split in splits],
        crossing=list(combinations(splits, 2)),
        both_ways=list(permutations(splits, 2)),
        read=read,
        usable=usable,
        cut=_cut(report),
        share=_share,
        copied=copied,
        copied_inside=sum(copied[split][split] for split in splits),
        leaks=leaks,
        leaks_found=sum(copied[a][b] for a, b in combinations(splits, 2)),
        copies=copies,
        near=near,
        lengths=plots.histogram("Length in tokens", lengths, next(over, None)),
        modalities=_modalities(report),
        shorter_side=plots.histogram("Shorter side, pixels from", sides),
        kinds=[_shares("File formats", images["formats"]), _shares("Modes", images["modes"])],
    )


def _modalities(report: Report) -> list[Figure]:
    """A chart for each split that has concepts."""
    concepts, figures = report["concepts"], []
    for split, counts in concepts["splits"].items():
        usable = report["pairs"][split]["usable"]
        if not usable or counts["unknown"] == usable:
            continue
        ordered = sorted(counts["modalities"].items(), key=lambda item: -item[1])
        named = {concepts["names"][cui]: number for cui, number in ordered}
        named["no modality among the concepts"] = counts["no_modality"]
        named["no concepts"] = counts["none"] + counts["unknown"]
        figures.append(_shares(split, named, usable))
    return figures


def _shares(title: str, counts: Mapping[str, int], total: int | None = None) -> Figure:
    total = sum(counts.values()) if total is None else total
    rows = [(name, n, f"{n:,} ({_share(n, total)})") for name, n in counts.items()]
    return plots.bars(title, rows)


def _split_pairs(splits: list[str]) -> list[Place]:
    """Each split with itself, then each two splits once, in order."""
    return [*((split, split) for split in splits), *combinations(splits, 2)]


def _findings(report: Report) -> tuple[list[Report], list[Report], list[Report]]:
    """Leaks, copies and near captions that are shown.

    Each once, from the side that comes first (and is left out, if it is training).
    """
    once = _split_pairs(report["source"]["splits"])
    images, captions = (
        [e for e in report[part]["list"] if (e["split"], e["other_split"]) in once]
        for part in ("alike_images", "alike_captions")
    )
    leaks = [e for e in images if e["split"] != e["other_split"]]
    copies = [e for e in images if e["split"] == e["other_split"]]
    near = [e for e in captions if e["way"] == "near"]  # identical ones need no looking at
    return leaks[:LEAKS_SHOWN], copies[:COPIES_SHOWN], near[:CAPTIONS_SHOWN]


def _copied(report: Report) -> dict[str, dict[str, int]]:
    """Pairs of a split that are alike one of another (or an earlier one of the same)."""
    counts = report["alike_images"]["counts"]
    return {a: {b: sum(ways.values()) for b, ways in of_a.items()} for a, of_a in counts.items()}


def _totals(report: Report) -> tuple[int, int]:
    """Pairs read, and usable ones."""
    pairs = report["pairs"].values()
    return sum(each["read"] for each in pairs), sum(each["usable"] for each in pairs)


def _cut(report: Report) -> int:
    return sum(report["captions"]["tokens"]["truncated"].values())


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "0 %"


def _edge(each: Mapping[str, Any], lowest: int) -> str:
    """Label of a bin."""
    return f"{max(each['from'], lowest)}" + ("+" if each["to"] is None else "")
