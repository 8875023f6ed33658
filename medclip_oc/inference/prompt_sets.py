"""Prompt sets: the phrasings that stand for each class of a label set.

YAML, which docs/ranking.md shows; those of `prompt_sets/` are shipped.
"""

import difflib
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from pydantic import StringConstraints

from ..config import fields
from ..errors import InputError
from ..models import description

_FOLDER = Path(__file__).parent / "prompt_sets"
_TEXTS = list[Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]]
_mapping = partial(description.open_mapping, extra="forbid")
_SIDES = {"positive?": _TEXTS, "negative?": _TEXTS}
_CLASS: Any = _mapping(_SIDES | {"names?": _TEXTS, "aliases?": _TEXTS})
_FILE = _mapping(
    {"multi_label": bool, "source?": str, "templates?": _SIDES, "classes": dict[str, _CLASS]}
)


@dataclass(frozen=True)
class PromptClass:
    """One class or finding, and the texts that say that it is there, or isn't."""

    name: str
    positive: tuple[str, ...]  # at least one
    negative: tuple[str, ...] = ()  # at least one where several classes may be true
    aliases: tuple[str, ...] = ()
    names: tuple[str, ...] = ()  # what fills the templates


@dataclass(frozen=True)
class PromptSet:
    """The classes of one label set."""

    name: str
    source: str
    multi_label: bool
    classes: tuple[PromptClass, ...]
    templates: tuple[str, ...] = ("{}",)  # the positive ones


def names() -> list[str]:
    """The sets that are shipped."""
    return sorted(file.stem for file in _FOLDER.glob("*.yaml"))


def load(name_or_file: str) -> PromptSet:
    """A shipped set, or that of a file; InputError: there is none, or a mistake in it."""
    shipped = name_or_file in names()
    file = _FOLDER / f"{name_or_file}.yaml" if shipped else Path(name_or_file)
    if not file.is_file():
        near = difflib.get_close_matches(name_or_file, names(), 1)
        hint = f"did you mean {near[0]}?" if near else f"those are {', '.join(names())}"
        raise InputError(f"{name_or_file}: no such file, and no prompt set; {hint}")
    tree = fields.load(str(file))
    description.check(_FILE, tree, f"{name_or_file}: ")
    several, forms = tree["multi_label"], tree.get("templates", {})
    if bad := [form for texts in forms.values() for form in texts if "{}" not in form]:
        raise InputError(f"{name_or_file}: templates: no {{}} in {bad[0]!r}")
    if len(tree["classes"]) < 2 - several:
        raise InputError(f"{name_or_file}: classes: too few: wanted are {2 - several} or more")
    owners, classes = dict[str, str](), []
    for name, given in tree["classes"].items():
        where = f"{name_or_file}: classes: {name}"
        classes.append(_class(where, name, given, forms))
        if several and not classes[-1].negative:
            raise InputError(f"{where}: no negative phrasing, which multi_label needs")
        for word in (name, *classes[-1].aliases):
            if (owner := owners.setdefault(word.casefold(), name)) != name:
                raise InputError(f"{where}: {word!r} is a name or alias of {owner} too")
    templates = tuple(forms.get("positive", ())) or PromptSet.templates
    return PromptSet(file.stem, tree.get("source", ""), several, tuple(classes), templates)


def text(name_or_file: str | None) -> str:
    """All phrasings of a set, + positive and - negative ones; of None a line for each set."""
    if name_or_file is None:
        sets = map(load, names())
        return "\n".join(f"{s.name:18}{len(s.classes):3} classes  {s.source}" for s in sets)
    chosen = load(name_or_file)
    lines = [f"{chosen.name}: {chosen.source}"]
    for each in chosen.classes:
        signed = {"+": each.positive, "-": each.negative}
        lines += [each.name, *(f"  {s} {text}" for s, texts in signed.items() for text in texts)]
    return "\n".join(lines)


def _class(where: str, name: str, given: dict[str, Any], forms: dict[str, Any]) -> PromptClass:
    """A class of the file: its names in the templates, then its further phrasings; each once."""
    sides = []
    for side in ("positive", "negative"):
        filled = [f.replace("{}", n) for n in given.get("names", []) for f in forms.get(side, [])]
        sides.append(tuple(dict.fromkeys(filled + given.get(side, []))))
    positive, negative = sides
    if not positive:
        raise InputError(f"{where}: no positive phrasing: give names and templates, or positive")
    if both := {*positive} & {*negative}:
        raise InputError(f"{where}: {min(both)!r} is both positive and negative")
    further = tuple(given.get("aliases", [])), tuple(given.get("names") or [name])
    return PromptClass(name, positive, negative, *further)
