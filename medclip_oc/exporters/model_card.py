"""The model card: what a checkpoint, its evaluations and its shards tell; it asks for the rest.

It is published: data and weights have their names there, never a path of this machine.
"""

import re
from collections import Counter
from contextlib import suppress
from pathlib import Path, PurePath
from typing import Any

from ..config.vocabulary import DIRECTIONS
from ..data.index import CAPTION
from ..data.shards import SETS, ShardSet
from ..errors import InputError, WorkError
from ..models import checkpoint, definition
from ..reporting import html, results, run_files

_LICENCE = re.compile(r"CC0|CC[ -]BY(?:-[A-Z]{2})*|public domain", re.IGNORECASE)
_PUBLIC = re.compile(r"package:.*|[\w-][\w.-]*(/[\w-]+)?")  # or a tag, or a name of the hub
# the folder of a set, or that in which its tars lie; after a tar's name a URL may hold a token
_SET = re.compile(r"([^/\s]+)/[^/\s]*\.tar|([^/]+)/?$")


def render(content: dict[str, Any], file: Path, form: str, out: Path, close: Any = None) -> str:
    """The card of the checkpoint in `file`, exported to `out`: Markdown. See `parity.closeness`."""
    about, in_run = content["model"], file.parent.name == "checkpoints"
    evaluations = run_files.evaluations(file.parent.parent) if in_run else []
    return html.render(
        "model_card.md.j2",
        model={**checkpoint.described_facts(about["definition"]), **about},
        facts=_facts(content),
        config=content.get("config"),
        close=close or {},
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
    """Data sets by their own names, without a path."""
    parts = where.split(SETS) if isinstance(where, str) else where
    matches = filter(None, map(_SET.search, parts))
    return ", ".join(dict.fromkeys(match[1] or match[2] for match in matches))


def _facts(content: dict[str, Any]) -> dict[str, str]:
    """What is known of the training; licences, if the shards that were trained on are there."""
    config = content.get("config") or {}
    model, data = config.get("model"), config.get("data", {})
    facts = {}
    if model:
        whole = PurePath(model.get("pretrained") or "").name  # of a tag or a file, never of the hub
        towers = (public(model.get(f"pretrained_{tower}") or "") for tower in ("image", "text"))
        facts["weights before"] = definition.weights_of(model["arch"], whole, *towers)
    sets = {"training data": data.get("train"), "validation data": data.get("valid")}
    facts |= {title: set_names(where) for title, where in sets.items() if where}
    if content.get("epoch"):
        pairs = round(content["position"] / content["epoch"])
        facts["training pairs in an epoch"] = f"{pairs:,}"
        with suppress(InputError, WorkError):  # the shards are gone
            key = data.get("caption_key", CAPTION)
            shards = ShardSet.open(data.get("train") or [], "train", key)
            if len(shards) == pairs:
                found = Counter(_licence(shards.facts(n).get("license")) for n in range(pairs))
                shown = (f"{name} ({count:,})" for name, count in found.most_common())
                facts["licences of the training samples"] = ", ".join(shown)
    counts = {"step": content.get("step"), "pairs seen": content.get("position")}
    facts |= {title: f"{count:,}" for title, count in counts.items() if count is not None}
    if versions := content.get("versions"):
        facts["made with"] = ", ".join(map(" ".join, versions.items()))
    return facts


def _licence(fact: object) -> str:
    named = _LICENCE.search(str(fact))
    return named[0].upper() if named else "another" if fact else "none said"
