"""The model card: what a checkpoint, its evaluations and its shards tell; it asks for the rest.

A card is published: data and weights have their names there, never a path of this machine.
"""

import re
from collections import Counter
from pathlib import Path, PurePath
from typing import Any

from ..config.vocabulary import DIRECTIONS
from ..data.shards import SETS, ShardSet
from ..errors import InputError, WorkError
from ..models import checkpoint, definition
from ..reporting import html, run_files

_LICENCE = re.compile(r"CC0|CC[ -]BY(?:-[A-Z]{2})*|public domain", re.IGNORECASE)
_PUBLIC = re.compile(r"package:.*|[\w-][\w.-]*(/[\w-]+)?")
"""A tag, a name of the hub, or a place in a Python package."""
_MOST_SAMPLES = 100_000


def render(content: dict[str, Any], file: Path, form: str, out: Path) -> str:
    """The card of the checkpoint in `file`, exported to `out`, in Markdown."""
    evaluations = []
    if file.parent.name == "checkpoints":  # in its run folder
        evaluations = run_files.evaluations(file.parent.parent)
    about = {**checkpoint.described_facts(content["model"]["definition"]), **content["model"]}
    config = content.get("config") or {}
    trained = {"arch": "", **(config.get("model") or {})}
    keys = ("pretrained", "pretrained_image", "pretrained_text")
    given = (public(trained[key]) if trained.get(key) else None for key in keys)
    return html.render(
        "model_card.md.j2",
        content=content,
        model=about,
        tokenizer=public(about["tokenizer"]),
        weights=definition.weights_of(trained["arch"], *given) if config.get("model") else None,
        data=_data(config.get("data") or {}, content),
        form=form,
        evaluations=[
            (set_names(one.record.get("data") or "not said"), one)
            for one in evaluations
            if one.name.startswith(f"{file.stem}-")
        ],
        directions=DIRECTIONS,
        folder=out.resolve().name,
    )


def public(reference: str) -> str:
    """What names weights or a tokenizer; of a path on this machine the last part."""
    return reference if _PUBLIC.fullmatch(reference) else PurePath(reference).name


def set_names(where: str | list[str]) -> str:
    """Data sets by the names of their folders, or of those that their tars lie in."""
    names = []
    for part in where.split(SETS) if isinstance(where, str) else where:
        # of a command the word that names tars; of a URL no query, which may hold a token
        word = next((word for word in part.split() if ".tar" in word), part).partition("?")[0]
        path = PurePath(word)
        names.append((path.parent if ".tar" in path.name else path).name)
    return ", ".join(dict.fromkeys(names))


def _data(settings: dict[str, Any], content: dict[str, Any]) -> dict[str, str]:
    """Names of the sets that were trained on and validated with, counts, and licences."""
    facts = {}
    for title, split in (("training", "train"), ("validation", "valid")):
        if where := settings.get(split):
            facts[f"{title} data"] = set_names(where)
    if content.get("epoch") and content.get("position"):
        pairs = round(content["position"] / content["epoch"])
        facts["training pairs in an epoch"] = f"{pairs:,}"
        if licences := _licences(settings.get("train"), pairs):
            facts["licences of the training samples"] = licences
    return facts


def _licences(where: str | list[str] | None, pairs: int) -> str:
    """Of the samples, and how many have it; "" where the shards are gone, or are others now."""
    try:
        shards = ShardSet.open(where or [], "train")
        if len(shards) != pairs:
            return ""
        looked_at = range(0, pairs, 1 + pairs // _MOST_SAMPLES)
        found = Counter(_licence(shards.facts(n).get("license")) for n in looked_at)
    except (InputError, WorkError):
        return ""
    return ", ".join(f"{name} ({count:,})" for name, count in found.most_common())


def _licence(fact: object) -> str:
    named = _LICENCE.search(str(fact))
    return named[0].upper() if named else "another" if fact else "none said"
