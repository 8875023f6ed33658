"""An audit's findings for people: the page audit.html, and a few lines for a terminal."""

from collections.abc import Iterator, Mapping
from itertools import combinations, permutations
from math import nan
from typing import Any

from matplotlib.figure import Figure

from . import html, plots

LEAKS_SHOWN, COPIES_SHOWN, CAPTIONS_SHOWN, TEXTS_SHOWN = 24, 8, 12, 24  # the worst first

Report = Mapping[str, Any]
Place = tuple[str, str]  # split, id


def shown(report: Report) -> set[Place]:
    """Pairs whose pictures the page shows."""
    found = _found(report)
    sides = (("split", "id"), ("other_split", "other_id"))
    pairs = {(e[s], e[i]) for e in found["leaks"] + found["copies"] for s, i in sides}
    return pairs | {(e["split"], e["id"]) for e in found["texts"]}


def headlines(report: Report) -> Iterator[str]:
    """The main findings, a line each."""
    found = _found(report)
    splits, copied, usable = found["splits"], found["copied"], found["usable"]
    yield f"audit: {found['read']:,} pairs read, {usable:,} usable"
    leaks = [(a, b) for a, b in found["crossing"] if copied[a][b]]
    for first, second in leaks:
        counted = (
            f"{number:,} of {(whole := report['pairs'][split]['usable']):,} {split} pairs "
            f"({_share(number, whole)})"
            for split, number in ((first, copied[first][second]), (second, copied[second][first]))
        )
        yield f"  leak {first}-{second}: the pictures of {' and '.join(counted)}"
    if len(splits) > 1 and not leaks:
        yield "  no picture is in two splits"
    if (groups := report["groups"])["known"]:
        number = f"{len(groups['in_several']):,} of {groups['known']:,}"
        yield f"  groups in several splits: {number}, with {groups['leaking_pairs']:,} train pairs"
    if found["copied_inside"]:
        counts = ", ".join(f"{split} {copied[split][split]:,}" for split in splits)
        yield f"  pictures like an earlier one of their split: {counts}"
    for first, second in found["inside"] + found["crossing"]:
        ways = report["alike_captions"]["counts"][first][second]
        if any(ways.values()):
            like = f"an earlier one of {first}" if first == second else f"one of {second}"
            counts = ", ".join(f"{number:,} {way}" for way, number in ways.items() if number)
            yield f"  captions of {first} like {like}: {counts}"
    length, arch = (report["settings"][name] for name in ("context_length", "arch"))
    longer = f"  captions longer than the {length} tokens of {arch}"
    yield f"{longer}: {found['cut']:,} ({_share(found['cut'], usable)})"
    if carried := found["carried"]:
        yield f"  files with metadata, which --strip-metadata removes: {carried}"
    if texts := report["images"]["burned_in_text"]:
        yield f"  pictures that may have text burned in: {len(texts):,}"


def render(
    name: str, report: Report, pictures: Mapping[Place, bytes], captions: Mapping[Place, str]
) -> str:
    """The page of a data set's audit.json, with a JPEG and a caption of each pair `shown`."""
    images, bins = report["images"], report["captions"]["tokens"]["histogram"]
    bins = bins[: max((n for n, each in enumerate(bins, 1) if each["count"]), default=1)]
    over = (n for n, b in enumerate(bins) if b["from"] > report["settings"]["context_length"])
    return html.render(
        "audit.html.j2",
        title=f"Audit of {name}",
        report=report,
        pictures=pictures,
        captions=captions,
        share=_share,
        **_found(report),
        lengths=plots.histogram("Length in tokens", _bins(bins, 1), next(over, None)),
        modalities=_modalities(report),
        shorter_side=plots.histogram("Shorter side, pixels from", _bins(images["shorter_side"])),
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
    rows = [(k, n / (total or 1), nan, f"{n:,} ({_share(n, total)})") for k, n in counts.items()]
    return plots.bars(title, rows)


def _found(report: Report) -> dict[str, Any]:
    """What headlines and page tell of: counts, and the `leaks`, `copies` and `near` captions shown.

    `copied[a][b]` are pairs of split a that are like one of split b, or an earlier one of a itself.
    What is shown is shown once, from the side that comes first (and is left out, if it is
    training).
    """
    splits, pairs = report["source"]["splits"], report["pairs"].values()
    carried = report["images"]["metadata"].items()
    inside, crossing = [(split, split) for split in splits], list(combinations(splits, 2))
    images, captions = (
        [e for e in report[part]["list"] if (e["split"], e["other_split"]) in inside + crossing]
        for part in ("alike_images", "alike_captions")
    )
    counts = report["alike_images"]["counts"]
    copied = {a: {b: sum(ways.values()) for b, ways in of_a.items()} for a, of_a in counts.items()}
    return {
        "splits": splits,
        "inside": inside,
        "crossing": crossing,
        "copied": copied,
        "both_ways": list(permutations(splits, 2)),
        "read": sum(each["read"] for each in pairs),
        "usable": sum(each["usable"] for each in pairs),
        "cut": sum(report["captions"]["tokens"]["truncated"].values()),
        "copied_inside": sum(copied[split][split] for split in splits),
        "leaks_found": sum(copied[a][b] for a, b in crossing),
        "leaks": [e for e in images if e["split"] != e["other_split"]][:LEAKS_SHOWN],
        "copies": [e for e in images if e["split"] == e["other_split"]][:COPIES_SHOWN],
        "carried": ", ".join(f"{kind} {number:,}" for kind, number in carried),
        "texts": report["images"]["burned_in_text"][:TEXTS_SHOWN],
        # identical ones need no looking at
        "near": [e for e in captions if e["way"] == "near"][:CAPTIONS_SHOWN],
    }


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "0 %"


def _bins(bins: list[Report], lowest: int = 0) -> list[tuple[str, int]]:
    return [(f"{max(b['from'], lowest)}{'+' * (b['to'] is None)}", b["count"]) for b in bins]
