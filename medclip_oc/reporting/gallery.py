"""Retrievals to look at: the best, median and worst queries, with their pictures."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ..config.vocabulary import DIRECTIONS
from . import html
from .html import Section, Text
from .run_files import Evaluated

_CAPTION_LETTERS = 260


class Example(NamedTuple):
    """A query of the gallery."""

    way: str
    """image_to_text or text_to_image."""
    kind: str
    """best, median, worst."""
    rank: float
    query: str
    """Id of the pair whose image or caption is the query."""
    found: str
    """Id of the pair whose caption or image came first."""


class Shown(NamedTuple):
    """A pair of the gallery."""

    caption: str
    jpeg: bytes


def examples(evaluated: Evaluated, each: int) -> list[Example]:
    """The best, median and worst queries of each direction; `each` of each."""
    arrays = evaluated.arrays
    if arrays is None or "image_to_text_nearest" not in arrays:
        return []
    chosen = []
    for way in DIRECTIONS:
        ranks, nearest = arrays[f"{way}_rank"], arrays[f"{way}_nearest"]
        order = np.argsort(ranks, kind="stable")
        middle = max(0, (len(order) - each) // 2)
        parts = (("best", order[:each]), ("median", order[middle : middle + each]))
        for kind, places in (*parts, ("worst", order[::-1][:each])):
            for place in places:
                ids = str(arrays["ids"][place]), str(nearest[place, 0])
                chosen.append(Example(way, kind, float(ranks[place]), *ids))
    return chosen


def sections(found: Sequence[Example], shown: Mapping[str, Shown], pool: int) -> list[Section]:
    """Cards of the examples, a section for each direction."""
    parts = []
    for way, title in DIRECTIONS.items():
        cards = [_card(one, shown, pool) for one in found if one.way == way]
        if cards:
            text = Text(_GALLERY[way])
            parts.append(Section(f"Gallery: {title}", [text, html.Cards(cards)]))
    return parts


_GALLERY = {
    "image_to_text": "Left the query, an image, with its own caption; right the caption that came "
    "first, with the image it belongs to.",
    "text_to_image": "Left the query, a caption, with its own image; right the image that came "
    "first, with its caption.",
}


def _card(one: Example, shown: Mapping[str, Shown], pool: int) -> html.Card:
    right = one.query == one.found
    rank = f"{one.rank:,.0f}" if one.rank == int(one.rank) else f"{one.rank:,.1f}"
    heading = f"{one.kind.capitalize()}: rank {rank} of {pool:,}"
    names = ("Query and its own caption", "First caption found")
    if one.way == "text_to_image":
        names = ("Query and its own image", "First image found")
    found = f"{names[1]}: the right one" if right else names[1]
    tone: html.Tone = "good" if right else "bad" if one.kind == "worst" else "plain"
    sides = [_side(names[0], shown.get(one.query)), _side(found, shown.get(one.found))]
    return html.Card(heading, sides, tone)


def _side(title: str, pair: Shown | None) -> html.Side:
    if pair is None:
        return html.Side(title, "this pair is not in the data", None)
    caption = pair.caption.strip()
    if len(caption) > _CAPTION_LETTERS:
        caption = caption[: _CAPTION_LETTERS - 1].rstrip() + "…"
    return html.Side(title, caption, pair.jpeg)
