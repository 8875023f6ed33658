"""An audit's findings for people: the page audit.html, and a few lines for a terminal."""

import io
from collections.abc import Iterator, Mapping
from typing import Any

from PIL import Image

from . import html

LEAKS_SHOWN, COPIES_SHOWN, CAPTIONS_SHOWN = 24, 8, 12
"""On the page, the worst first; audit.json has them all."""
_PREVIEW_SIDE = 224
_CAPTION_LETTERS = 180

Report = Mapping[str, Any]
Place = tuple[str, str]  # split, id


def preview(picture: Image.Image) -> bytes:
    """A small JPEG."""
    small = picture.copy()
    small.thumbnail((_PREVIEW_SIDE, _PREVIEW_SIDE))
    file = io.BytesIO()
    small.save(file, "JPEG", quality=80)
    return file.getvalue()


def shown(report: Report) -> dict[Place, bool]:
    """Pairs that the page names, and whether it shows their pictures."""
    found = {place: False for entry in _captions(report) for place in _places(entry)}
    pictures = (*_leaks(report), *_copies(report))
    return found | {place: True for entry in pictures for place in _places(entry)}


def headlines(report: Report) -> Iterator[str]:
    """The main findings, a line each."""
    pairs = report["pairs"].values()
    read, usable = (sum(each[key] for each in pairs) for key in ("read", "usable"))
    yield f"audit: {read:,} pairs read, {usable:,} usable"
    splits = report["source"]["splits"]
    for one, other in _across(splits):
        if number := _affected(report, one, other):
            both = _of(report, number, one), _of(report, _affected(report, other, one), other)
            yield f"  leak {one}-{other}: the pictures of {both[0]} and {both[1]}"
    if len(splits) > 1 and not any(_affected(report, *both) for both in _across(splits)):
        yield "  no picture is in two splits"
    inside = {split: _affected(report, split, split) for split in splits}
    if any(inside.values()):
        counted = ", ".join(f"{split} {number:,}" for split, number in inside.items())
        yield f"  pictures like an earlier one of their split: {counted}"
    for one, other in [*((split, split) for split in splits), *_across(splits)]:
        ways = report["alike_captions"]["counts"][one][other]
        if any(ways.values()):
            which = f"an earlier one of {one}" if one == other else f"one of {other}"
            counted = ", ".join(f"{number:,} {way}" for way, number in ways.items() if number)
            yield f"  captions of {one} like {which}: {counted}"
    cut = sum(report["captions"]["tokens"]["truncated"].values())
    settings = report["settings"]
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

    def cards(entries: list[dict[str, Any]], tone: html.Tone) -> html.Cards:
        return html.Cards([_card(entry, tone, pictures, captions) for entry in entries])

    leaks, copies = _leaks(report), _copies(report)
    source = report["source"]
    sections = [
        html.Section("At a glance", [_tiles(report)]),
        html.Section("Pairs", _pairs(report)),
        html.Section("Leaks between splits", [*_leak_texts(report), cards(leaks, "bad")]),
        html.Section("Copies inside a split", [_copy_table(report), cards(copies, "plain")]),
        html.Section("Captions", _caption_blocks(report, captions)),
        html.Section("Modalities", _modalities(report)),
        html.Section("Images", _image_blocks(report)),
        html.Section("How it was found", [html.Text(text) for text in _method(report)]),
    ]
    lead = f"Source of the form {source['form']}, splits {', '.join(source['splits'])}."
    footer = "Made by medclip_oc. audit.json beside this page has every finding."
    return html.render("Audit of image-caption pairs", lead, sections, footer=footer)


# ------------------------------------------------------------------------------------ what is shown


def _places(entry: Mapping[str, Any]) -> tuple[Place, Place]:
    return (entry["split"], entry["id"]), (entry["other_split"], entry["other_id"])


def _across(splits: list[str]) -> list[tuple[str, str]]:
    """Each two splits once, in order."""
    return [(a, b) for number, a in enumerate(splits) for b in splits[number + 1 :]]


def _leaks(report: Report) -> list[dict[str, Any]]:
    """Each leak once, from the side that comes first (and is left out, if it is training)."""
    order = _across(report["source"]["splits"])
    entries = report["alike_images"]["list"]
    return [e for e in entries if (e["split"], e["other_split"]) in order][:LEAKS_SHOWN]


def _copies(report: Report) -> list[dict[str, Any]]:
    entries = report["alike_images"]["list"]
    return [e for e in entries if e["split"] == e["other_split"]][:COPIES_SHOWN]


def _captions(report: Report) -> list[dict[str, Any]]:
    """Near ones: identical ones need no looking at."""
    order = [*_across(report["source"]["splits"]), *((s, s) for s in report["source"]["splits"])]
    entries = report["alike_captions"]["list"]
    near = [e for e in entries if (e["split"], e["other_split"]) in order and e["way"] == "near"]
    return near[:CAPTIONS_SHOWN]


# -------------------------------------------------------------------------------------- the numbers


def _affected(report: Report, split: str, other: str) -> int:
    """Pairs of a split that are alike one of another (or an earlier one of the same)."""
    return sum(report["alike_images"]["counts"][split][other].values())


def _of(report: Report, number: int, split: str) -> str:
    usable = report["pairs"][split]["usable"]
    return f"{number:,} of {usable:,} {split} pairs ({_share(number, usable)})"


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "0 %"


# --------------------------------------------------------------------------------------- the blocks


def _tiles(report: Report) -> html.Tiles:
    splits = report["source"]["splits"]
    read = sum(each["read"] for each in report["pairs"].values())
    usable = sum(each["usable"] for each in report["pairs"].values())
    tiles = [
        html.Tile(f"{read:,}", "pairs read"),
        html.Tile(f"{read - usable:,}", "unusable", "bad" if read > usable else "good"),
    ]
    for one, other in _across(splits):
        number = _affected(report, other, one)
        tone: html.Tone = "bad" if number else "good"
        tiles.append(html.Tile(f"{number:,}", f"{other} pairs also in {one}", tone))
    copies = sum(_affected(report, split, split) for split in splits)
    tiles.append(html.Tile(f"{copies:,}", "copies inside a split"))
    cut = sum(report["captions"]["tokens"]["truncated"].values())
    tiles.append(html.Tile(_share(cut, usable), "captions cut"))
    return html.Tiles(tiles)


def _pairs(report: Report) -> list[html.Block]:
    rows = [(s, f"{p['read']:,}", f"{p['usable']:,}") for s, p in report["pairs"].items()]
    blocks: list[html.Block] = [html.Table(("split", "read", "usable"), rows)]
    unusable = [
        (split, reason, f"{number:,}")
        for split, pairs in report["pairs"].items()
        for reason, number in pairs["unusable"].items()
    ]
    if unusable:
        blocks.append(html.Table(("split", "reason", "pairs"), unusable, 2, "Unusable"))
    return blocks


def _leak_texts(report: Report) -> list[html.Block]:
    splits = report["source"]["splits"]
    if len(splits) < 2:
        return [html.Text("One split alone: nothing can leak.")]
    counts = report["alike_images"]["counts"]
    ways = next(iter(next(iter(counts.values())).values()))
    rows = [
        (one, other, *(f"{n:,}" for n in counts[one][other].values()))
        for one in splits
        for other in splits
        if one != other
    ]
    text = (
        f"{report['leaking_pairs']:,} training pairs are in another split as well; --drop-leaks "
        "leaves them out. Of a leak between valid and test nothing is left out."
    )
    total = sum(_affected(report, *both) for both in _across(splits))
    if total > LEAKS_SHOWN:
        text += f" The {LEAKS_SHOWN} worst of {total:,} are shown."
    return [html.Text(text), html.Table(("pairs of", "also in", *ways), rows, 2)]


def _copy_table(report: Report) -> html.Table:
    counts = report["alike_images"]["counts"]
    rows = [(split, *(f"{n:,}" for n in counts[split][split].values())) for split in counts]
    ways = next(iter(next(iter(counts.values())).values()))
    return html.Table(("like an earlier one", *ways), rows)


def _card(
    entry: Mapping[str, Any],
    tone: html.Tone,
    pictures: Mapping[Place, bytes],
    captions: Mapping[Place, str],
) -> html.Card:
    heading = entry["way"]
    if heading == "near":
        heading = f"near, likeness {entry['likeness']:.3f}"
    sides = []
    for split, name in _places(entry):
        caption = captions.get((split, name), "")
        sides.append(
            html.Side(f"{split}: {name}", _shortened(caption), pictures.get((split, name)))
        )
    return html.Card(heading, sides, tone)


def _shortened(caption: str) -> str:
    if len(caption) <= _CAPTION_LETTERS:
        return caption
    return caption[:_CAPTION_LETTERS].rsplit(maxsplit=1)[0] + " ..."


def _caption_blocks(report: Report, captions: Mapping[Place, str]) -> list[html.Block]:
    tokens, settings = report["captions"]["tokens"], report["settings"]
    bins = tokens["histogram"]
    limit = settings["context_length"]
    bars = [html.Bar(_bin(each, 1), each["count"], f"{each['count']:,} captions") for each in bins]
    cut = sum(tokens["truncated"].values())
    usable = sum(each["usable"] for each in report["pairs"].values())
    said = (
        f"Median {tokens['median']}, longest {tokens['max']}. {cut:,} ({_share(cut, usable)}) are "
        f"longer than {settings['arch']} reads ({limit} tokens, start and end included)."
    )
    marked = next((n for n, each in enumerate(bins) if each["from"] > limit), None)
    counts, splits = report["alike_captions"]["counts"], report["source"]["splits"]
    both = [*((split, split) for split in splits), *_across(splits)]
    rows = [(a, b, *(f"{n:,}" for n in counts[a][b].values())) for a, b in both]
    ways = next(iter(next(iter(counts.values())).values()))
    title = "Captions like another one; in the same split, like an earlier one"
    blocks: list[html.Block] = [
        html.Histogram("Length in tokens", bars, marked, said),
        html.Table(("captions of", "like one of", *ways), rows, 2, title),
    ]
    near = [
        (f"{e['likeness']:.2f}", *(f"{s}: {_shortened(captions.get((s, n), ''))}" for s, n in both))
        for e in _captions(report)
        for both in [_places(e)]
    ]
    if near:
        title = "Nearly alike (words in common / all words)"
        blocks.append(html.Table(("share", "caption", "is like"), near, 3, title))
    return blocks


def _bin(each: Mapping[str, Any], lowest: int) -> str:
    return f"{max(each['from'], lowest)}" + ("+" if each["to"] is None else "")


def _modalities(report: Report) -> list[html.Block]:
    concepts, blocks = report["concepts"], list[html.Block]()
    for split, counts in concepts["splits"].items():
        usable = report["pairs"][split]["usable"]
        if not usable or counts["unknown"] == usable:
            continue
        named = [(concepts["names"][cui], n) for cui, n in counts["modalities"].items()]
        named.sort(key=lambda each: -each[1])
        named += [("no modality among the concepts", counts["no_modality"])]
        named += [("no concepts", counts["none"] + counts["unknown"])]
        bars = [html.Bar(name, n, f"{n:,} ({_share(n, usable)})") for name, n in named]
        blocks.append(html.Bars(split, bars))
    return blocks or [html.Text("The source has no concepts.")]


def _image_blocks(report: Report) -> list[html.Block]:
    images = report["images"]
    bars = [
        html.Bar(_bin(each, 0), each["count"], f"{each['count']:,} images")
        for each in images["shorter_side"]
    ]
    sizes = [
        (name, *("-" if n is None else f"{n:,}" for n in images[name].values()))
        for name in ("width", "height")
    ]
    blocks: list[html.Block] = [
        html.Histogram("Shorter side, pixels from", bars),
        html.Table(("pixels", "smallest", "median", "largest"), sizes),
    ]
    for title, kinds in (("File formats", images["formats"]), ("Modes", images["modes"])):
        total = sum(kinds.values())
        bars = [html.Bar(name, n, f"{n:,} ({_share(n, total)})") for name, n in kinds.items()]
        blocks.append(html.Bars(title, bars))
    return blocks


def _method(report: Report) -> list[str]:
    s = report["settings"]
    return [
        "Same file: equal SHA-256 of the bytes. Same pixels: equal once decoded. Near: pHash "
        f"within {s['hash_radius']} of 64 bits and {s['fine_radius']} of 256, and a correlation "
        f"of at least {s['likeness']} once one thumbnail is laid over the other. Re-encoded, "
        "resized, brighter and slightly cropped copies are found, and neighbouring slices of one "
        "scan; mirrored, turned and inverted ones are not.",
        "Same words: equal sets of words, upper and lower case alike. Near captions: "
        f"{s['jaccard']:.0%} or more of all their words in common, among candidates that MinHash "
        "signatures give.",
        "A pair counts once for each split that has one like it, however many there are.",
    ]
