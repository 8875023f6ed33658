"""An audit's findings for people: the page audit.html, and a few lines for a terminal."""

from collections.abc import Callable, Iterator, Mapping
from itertools import combinations
from typing import Any

from matplotlib.figure import Figure

from . import html, plots
from .html import Card, Table, Tile

LEAKS_SHOWN, COPIES_SHOWN, CAPTIONS_SHOWN = 24, 8, 12
"""On the page, the worst first; audit.json has them all."""
_CAPTION_LETTERS = 180

Report = Mapping[str, Any]
Finding = Mapping[str, Any]
Place = tuple[str, str]  # split, id


def shown(report: Report) -> dict[Place, bool]:
    """Pairs that the page names, and whether it shows their pictures."""
    named = {place: False for entry in _near_captions(report) for place in _places(entry)}
    copies = (*_leaks(report), *_copies(report))
    return named | {place: True for entry in copies for place in _places(entry)}


def headlines(report: Report) -> Iterator[str]:
    """The main findings, a line each."""
    read, usable = _totals(report)
    yield f"audit: {read:,} pairs read, {usable:,} usable"
    splits = report["source"]["splits"]
    leaks = {(a, b): _copied(report, a, b) for a, b in combinations(splits, 2)}
    for (first, second), number in leaks.items():
        if number:
            of_second = _of_split(report, _copied(report, second, first), second)
            of_first = _of_split(report, number, first)
            yield f"  leak {first}-{second}: the pictures of {of_first} and {of_second}"
    if leaks and not any(leaks.values()):
        yield "  no picture is in two splits"
    inside = {split: _copied(report, split, split) for split in splits}
    if any(inside.values()):
        counted = ", ".join(f"{split} {number:,}" for split, number in inside.items())
        yield f"  pictures like an earlier one of their split: {counted}"
    for first, second in _split_pairs(report):
        ways = report["alike_captions"]["counts"][first][second]
        if any(ways.values()):
            like = f"an earlier one of {first}" if first == second else f"one of {second}"
            counted = ", ".join(f"{number:,} {way}" for way, number in ways.items() if number)
            yield f"  captions of {first} like {like}: {counted}"
    settings = report["settings"]
    yield (
        f"  captions longer than the {settings['context_length']} tokens of {settings['arch']}: "
        f"{_cut(report):,} ({_share(_cut(report), usable)})"
    )


def render(report: Report, pictures: Mapping[Place, bytes], captions: Mapping[Place, str]) -> str:
    """The page.

    Args:
        report: what stands in audit.json.
        pictures: JPEGs of the pairs that `shown` names.
        captions: theirs.
    """
    splits, (_, usable) = report["source"]["splits"], _totals(report)
    tokens, images = report["captions"]["tokens"], report["images"]
    bins = tokens["histogram"]
    limit = report["settings"]["context_length"]
    over_limit = (n for n, each in enumerate(bins) if each["from"] > limit)
    lengths = [(_edge(each, 1), each["count"]) for each in bins]
    sides = [(_edge(each, 0), each["count"]) for each in images["shorter_side"]]
    return html.render(
        "audit.html.j2",
        title="Audit of image-caption pairs",
        report=report,
        splits=splits,
        tiles=_tiles(report),
        pairs=[(s, f"{p['read']:,}", f"{p['usable']:,}") for s, p in report["pairs"].items()],
        unusable=[
            (split, reason, f"{number:,}")
            for split, pairs in report["pairs"].items()
            for reason, number in pairs["unusable"].items()
        ],
        leaks=_counts(report, "alike_images", [(a, b) for a in splits for b in splits if a != b]),
        leak_cards=_cards(_leaks(report), "bad", pictures, captions),
        leaks_found=sum(_copied(report, *both) for both in combinations(splits, 2)),
        copies=_counts(report, "alike_images", [(split, split) for split in splits]),
        copy_cards=_cards(_copies(report), "plain", pictures, captions),
        cut=f"{_cut(report):,} ({_share(_cut(report), usable)})",
        lengths=plots.histogram("Length in tokens", lengths, next(over_limit, None)),
        captions=_counts(report, "alike_captions", _split_pairs(report)),
        near_captions=[
            (
                f"{entry['likeness']:.2f}",
                *(f"{s}: {_shortened(captions, (s, name))}" for s, name in _places(entry)),
            )
            for entry in _near_captions(report)
        ],
        modalities=_modalities(report),
        shorter_side=plots.histogram("Shorter side, pixels from", sides),
        sizes=[
            (name, *("-" if n is None else f"{n:,}" for n in images[name].values()))
            for name in ("width", "height")
        ],
        kinds=[_shares("File formats", images["formats"]), _shares("Modes", images["modes"])],
    )


def _tiles(report: Report) -> list[Tile]:
    splits, (read, usable) = report["source"]["splits"], _totals(report)
    tiles = [(f"{read:,}", "pairs read", "plain")]
    tiles.append((f"{read - usable:,}", "unusable", "bad" if read > usable else "good"))
    for first, second in combinations(splits, 2):
        number = _copied(report, second, first)
        label = f"{second} pairs also in {first}"
        tiles.append((f"{number:,}", label, "bad" if number else "good"))
    copies = sum(_copied(report, split, split) for split in splits)
    tiles.append((f"{copies:,}", "copies inside a split", "plain"))
    return [*tiles, (_share(_cut(report), usable), "captions cut", "plain")]


def _counts(report: Report, what: str, splits: list[tuple[str, str]]) -> Table:
    """A row for each two splits, a column for each way to be alike."""
    counts = report[what]["counts"]
    rows = [(a, b, *(f"{n:,}" for n in counts[a][b].values())) for a, b in splits]
    first = report["source"]["splits"][0]
    return {"head": ("of", "like one of", *counts[first][first]), "rows": rows, "words": 2}


def _cards(
    entries: list[Finding],
    tone: str,
    pictures: Mapping[Place, bytes],
    captions: Mapping[Place, str],
) -> list[Card]:
    cards = []
    for entry in entries:
        near = f"near, likeness {entry['likeness']:.3f}" if entry["way"] == "near" else ""
        sides = [
            (": ".join(place), _shortened(captions, place), pictures.get(place))
            for place in _places(entry)
        ]
        cards.append({"heading": near or entry["way"], "tone": tone, "sides": sides})
    return cards


def _modalities(report: Report) -> list[Figure]:
    concepts, figures = report["concepts"], []
    for split, counts in concepts["splits"].items():
        usable = report["pairs"][split]["usable"]
        if not usable or counts["unknown"] == usable:
            continue
        named = {concepts["names"][cui]: number for cui, number in counts["modalities"].items()}
        named = dict(sorted(named.items(), key=lambda each: -each[1]))
        named["no modality among the concepts"] = counts["no_modality"]
        named["no concepts"] = counts["none"] + counts["unknown"]
        figures.append(_shares(split, named, usable))
    return figures


def _shares(title: str, counts: Mapping[str, int], total: int | None = None) -> Figure:
    total = sum(counts.values()) if total is None else total
    rows = [(name, n, f"{n:,} ({_share(n, total)})") for name, n in counts.items()]
    return plots.bars(title, rows)


# -------------------------------------------------------------------- what is shown, and the counts


def _places(entry: Mapping[str, Any]) -> tuple[Place, Place]:
    return (entry["split"], entry["id"]), (entry["other_split"], entry["other_id"])


def _split_pairs(report: Report) -> list[tuple[str, str]]:
    """Each split with itself, then each two splits once, in order."""
    splits = report["source"]["splits"]
    return [*((split, split) for split in splits), *combinations(splits, 2)]


def _findings(report: Report, what: str, most: int, is_shown: Callable[..., bool]) -> list[Finding]:
    """Each finding once, from the side that comes first (and is left out, if it is training)."""
    order = _split_pairs(report)
    entries = report[what]["list"]
    once = [e for e in entries if (e["split"], e["other_split"]) in order and is_shown(e)]
    return once[:most]


def _leaks(report: Report) -> list[Finding]:
    return _findings(report, "alike_images", LEAKS_SHOWN, lambda e: e["split"] != e["other_split"])


def _copies(report: Report) -> list[Finding]:
    return _findings(report, "alike_images", COPIES_SHOWN, lambda e: e["split"] == e["other_split"])


def _near_captions(report: Report) -> list[Finding]:
    """Identical ones need no looking at."""
    return _findings(report, "alike_captions", CAPTIONS_SHOWN, lambda e: e["way"] == "near")


def _copied(report: Report, split: str, other: str) -> int:
    """Pairs of a split that are alike one of another (or an earlier one of the same)."""
    return sum(report["alike_images"]["counts"][split][other].values())


def _totals(report: Report) -> tuple[int, int]:
    """Pairs read, and usable ones."""
    pairs = report["pairs"].values()
    return sum(each["read"] for each in pairs), sum(each["usable"] for each in pairs)


def _cut(report: Report) -> int:
    return sum(report["captions"]["tokens"]["truncated"].values())


def _of_split(report: Report, number: int, split: str) -> str:
    usable = report["pairs"][split]["usable"]
    return f"{number:,} of {usable:,} {split} pairs ({_share(number, usable)})"


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "0 %"


def _edge(each: Mapping[str, Any], lowest: int) -> str:
    """Label of a bin."""
    return f"{max(each['from'], lowest)}" + ("+" if each["to"] is None else "")


def _shortened(captions: Mapping[Place, str], place: Place) -> str:
    return html.shorten(captions.get(place, ""), _CAPTION_LETTERS)
