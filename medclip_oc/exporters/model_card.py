"""The model card: what a checkpoint, its evaluations and its shards tell; it asks for the rest.

It is published: data and weights have their names there, never a path of this machine.
"""

import re
from collections import Counter
from contextlib import suppress
from pathlib import Path, PurePath
from typing import Any

from ..config.vocabulary import DIRECTIONS
from ..data.shards import SETS, ShardSet
from ..errors import InputError, WorkError
from ..models import checkpoint, definition
from ..reporting import html, results, run_files

_LICENCE = re.compile(r"CC0|CC[ -]BY(?:-[A-Z]{2})*|public domain", re.IGNORECASE)
_PUBLIC = re.compile(r"package:.*|[\w-][\w.-]*(/[\w-]+)?")  # or a tag, or a name of the hub
_MOST_SAMPLES = 100_000


def render(content: dict[str, Any], file: Path, form: str, out: Path) -> str:
    """The card of the checkpoint in `file`, exported to `out`, in Markdown."""
    in_run = file.parent.name == "checkpoints"
    evaluations = run_files.evaluations(file.parent.parent) if in_run else []
    about, config = content["model"], content.get("config") or {}
    trained = config.get("model") or {}
    whole = PurePath(trained.get("pretrained") or "").name  # of a tag or a file, never of the hub
    towers = (trained.get(f"pretrained_{tower}") or "" for tower in ("image", "text"))
    weights = definition.weights_of(trained.get("arch", ""), whole, *map(public, towers))
    return html.render(
        "model_card.md.j2",
        content=content,
        model={**checkpoint.described_facts(about["definition"]), **about},
        weights=weights if trained else None,
        data=_data(config.get("data") or {}, content),
        form=form,
        evaluations=[each for each in evaluations if each.name.startswith(f"{file.stem}-")],
        public=public,
        set_names=set_names,
        directions=DIRECTIONS,
        figure=results.figure,
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
    """Sets that were trained on and validated with; pairs; licences, if these shards have them."""
    splits = {"training data": settings.get("train"), "validation data": settings.get("valid")}
    facts = {title: set_names(where) for title, where in splits.items() if where}
    if content.get("epoch"):
        pairs = round(content["position"] / content["epoch"])
        facts["training pairs in an epoch"] = f"{pairs:,}"
        with suppress(InputError, WorkError):  # the shards are gone
            shards = ShardSet.open(settings.get("train") or [], "train")
            if len(shards) == pairs:
                looked_at = range(0, pairs, 1 + pairs // _MOST_SAMPLES)
                found = Counter(_licence(shards.facts(n).get("license")) for n in looked_at)
                shown = (f"{name} ({count:,})" for name, count in found.most_common())
                facts["licences of the training samples"] = ", ".join(shown)
    return facts


def _licence(fact: object) -> str:
    named = _LICENCE.search(str(fact))
    return named[0].upper() if named else "another" if fact else "none said"
