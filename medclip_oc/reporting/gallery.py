"""Retrievals to look at: the best, median and worst queries, with their pictures."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ..config.vocabulary import DIRECTIONS
from .html import Card, shorten
from .run_files import Evaluated

Pair = tuple[str, bytes]
"""Caption, and its image as a JPEG."""
_CAPTION_LETTERS = 260
_SIDES = {
    "image_to_text": ("Query and its own caption", "First caption found"),
    "text_to_image": ("Query and its own image", "First image found"),
}


class Example(NamedTuple):
    """A query of the gallery."""

    direction: str
    kind: str
    """best, median, worst."""
    rank: float
    query: str
    """Id of the pair whose image or caption is the query."""
    first: str
    """Id of the pair whose caption or image came first."""


def examples(evaluated: Evaluated, number: int) -> list[Example]:
    """The best, median and worst queries of each direction, so many of each kind."""
    arrays = evaluated.arrays
    if arrays is None or "image_to_text_nearest" not in arrays:
        return []
    chosen = []
    for direction in DIRECTIONS:
        ranks, nearest = arrays[f"{direction}_rank"], arrays[f"{direction}_nearest"]
        order = np.argsort(ranks, kind="stable")
        middle = max(0, (len(order) - number) // 2)
        kinds = {
            "best": order[:number],
            "median": order[middle : middle + number],
            "worst": order[::-1][:number],
        }
        for kind, places in kinds.items():
            for place in places:
                ids = str(arrays["ids"][place]), str(nearest[place, 0])
                chosen.append(Example(direction, kind, float(ranks[place]), *ids))
    return chosen


def cards(chosen: Sequence[Example], pairs: Mapping[str, Pair], pool: int) -> dict[str, list[Card]]:
    """Cards of the examples for each direction; `pairs` by id."""
    return {
        direction: [_card(each, pairs, pool) for each in chosen if each.direction == direction]
        for direction in DIRECTIONS
    }


def _card(example: Example, pairs: Mapping[str, Pair], pool: int) -> Card:
    is_right = example.query == example.first
    rank = f"{example.rank:,.1f}".removesuffix(".0")
    left, right = _SIDES[example.direction]
    right += ": the right one" if is_right else ""
    return {
        "heading": f"{example.kind.capitalize()}: rank {rank} of {pool:,}",
        "tone": "good" if is_right else "bad" if example.kind == "worst" else "plain",
        "sides": [_side(left, pairs.get(example.query)), _side(right, pairs.get(example.first))],
    }


def _side(title: str, pair: Pair | None) -> tuple[str, str, bytes | None]:
    if pair is None:
        return title, "this pair is not in the data", None
    return title, shorten(pair[0], _CAPTION_LETTERS), pair[1]
