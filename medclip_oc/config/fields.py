"""Dataclasses of settings: dotted names, types in plain words, the nearest name, and YAML."""

import dataclasses
import difflib
import json
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from ..errors import InputError
from .checks import option

_MOST_LETTERS, _MOST_ALIASES = 1_000_000, 10  # in a file of settings
_PACKAGE = Path(__file__).parents[1]
# in a checkout they lie at the top; setup.cfg puts them into the installed package
_PLACES = _PACKAGE / "recipes", _PACKAGE.parent / "configs"
RECIPES = {file.stem: file for file in sorted(next(filter(Path.is_dir, _PLACES)).glob("*.yaml"))}
# type -> one value of it, several of it, its place in help
_WORDS: dict[Any, tuple[str, str, str]] = {
    bool: ("true or false", "true/false values", "{true,false}"),
    int: ("a whole number", "whole numbers", "INT"),
    float: ("a number", "numbers", "NUMBER"),
    str: ("text", "texts", "TEXT"),
    NoneType: ("null", "nulls", ""),
    dict: ("a mapping", "mappings", "MAPPING"),
    Literal: ("", "", ""),  # its choices
}
# What other programs call a setting; the first that the command has is meant.
_MEANT = {
    "learning_rate": ("optim.lr",),
    "wd": ("optim.weight_decay",),
    "batch_size": ("train.global_batch_size",),
    "accum_freq": ("train.micro_batch_size",),
    "grad_accum": ("train.micro_batch_size",),
    "amp": ("train.precision", "precision"),
    "val_data": ("data.valid",),
    "dataset": ("data", "data.train", "source"),
    "weights": ("checkpoint", "model.pretrained"),
    "ckpt": ("checkpoint", "resume"),
    "captions": ("texts", "caption_column"),
    "prompts": ("texts", "templates"),
    "input": ("source", "data", "images"),
    "output": ("out", "run.folder", "json"),
    "output_dir": ("out", "run.folder"),
    "name": ("run.folder",),
}


def fields_of(config_class: Any, prefix: str = "") -> Iterator[tuple[str, str, Any, Any]]:
    """The name, dotted name, type and default (MISSING: required) of each field."""
    hints = get_type_hints(config_class)
    for field in dataclasses.fields(config_class):
        key, made = prefix + field.metadata.get("option", field.name), field.default_factory
        default = field.default if made is dataclasses.MISSING else made()
        yield field.name, key, hints[field.name], default


def settings_of(config_class: Any, prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Dotted name -> type and default, of every setting."""
    settings: dict[str, tuple[Any, Any]] = {}
    for _, key, kind, default in fields_of(config_class, prefix):
        nested = dataclasses.is_dataclass(kind)
        settings |= settings_of(kind, f"{key}.") if nested else {key: (kind, default)}
    return settings


def build(config_class: Any, values: Mapping[str, Any], prefix: str = "") -> Any:
    """An instance of the dataclass; what `values` (by dotted name) leaves out has its default."""
    given = {
        name: build(kind, values, f"{key}.") if dataclasses.is_dataclass(kind) else values[key]
        for name, key, kind, _ in fields_of(config_class, prefix)
        if dataclasses.is_dataclass(kind) or key in values
    }
    return config_class(**given)


def flatten(
    tree: Mapping[Any, Any], names: Collection[str], prefix: str = ""
) -> Iterator[tuple[str, Any]]:
    """Dotted names and values in a nested mapping; what is no group of settings is a leaf."""
    for name, value in tree.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and is_group(key, names):
            yield from flatten(value, names, f"{key}.")
        else:
            yield key, value


def choices(kind: Any) -> tuple[Any, ...]:
    """The members of a union; any other type alone."""
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def describe(kind: Any) -> tuple[str, str]:
    """A value of this type in an error line ("a number or null") and in help ("NUMBER")."""
    words, places = [], list[str]()
    for choice in choices(kind):
        origin, inner = get_origin(choice) or choice, get_args(choice)
        word, several, place = _WORDS[inner[0] if origin in (list, tuple) else origin]
        if origin is Literal:
            word, place = f"one of {', '.join(inner)}", f"{{{','.join(inner)}}}"
        elif origin is list:
            word, places = f"a list of {several}", []  # which has room for a single one, too
            place = f"{place} [{place} ...]"
        elif origin is tuple:
            word, place = f"{len(inner)} {several}", " ".join([place] * len(inner))
        words.append(word)
        places.append(place)
    return " or ".join(words), "|".join(filter(None, places))


def shorten(value: Any) -> str:
    """A value as an error line shows it: as YAML has it, and not too long."""
    plain = value is None or isinstance(value, bool)
    text = json.dumps(value) if plain else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def is_group(key: str, names: Collection[str]) -> bool:
    """Whether it names several settings, such as `optim`."""
    return any(name.startswith(f"{key}.") for name in names)


def no_such(key: str, names: Collection[str], *, dashes: bool = False) -> str:
    """The error about a name that is no setting: names the one that is meant, or the nearest."""
    if is_group(key, names):
        return f"a group of settings, such as {next(n for n in names if n.startswith(f'{key}.'))}"
    last = key.rpartition(".")[2]
    meant = [name for name in _MEANT.get(last, ()) if name in names]
    if not meant:  # optim.every_steps: among the settings with that last part, the nearest
        groups = sorted({name.rpartition(".")[0] for name in names} - {""})
        known = [*names, *(("config", "help", "version") if dashes else groups)]
        lasts = {name: name.rpartition(".")[2] for name in known}
        alike = difflib.get_close_matches(last, lasts.values(), 1)
        same = [name for name in known if lasts[name] in alike]
        meant = difflib.get_close_matches(key, same, 1, cutoff=0)
    if not meant:
        return "no such setting; see --help"
    return f"no such setting; did you mean {option(meant[0]) if dashes else meant[0]}?"


class _Loader(yaml.SafeLoader):
    """Plain values only, no key twice, and few aliases (`*name`), which multiply."""

    aliases = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self.aliases += self.check_event(yaml.AliasEvent)
        if self.aliases > _MOST_ALIASES:
            problem = f"over {_MOST_ALIASES} aliases (*name)"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=self.peek_event().start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value]
        if twice := [key for key, _ in node.value if names.count(key.value) > 1]:
            problem, mark = f"{twice[-1].value} is given twice", twice[-1].start_mark
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=mark)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes each text that `_Loader` would take for a number."""


for _class in (_Loader, _Dumper):  # people write 1e-5, where YAML 1.1 wants 1.0e-5
    _number = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$")
    _class.add_implicit_resolver("tag:yaml.org,2002:float", _number, list("-+.0123456789"))


def load(path: str) -> dict[Any, Any]:
    """The mapping in a YAML file or recipe, {} of an empty one; or an InputError with its line."""
    recipe = None if Path(path).exists() else RECIPES.get(path.removesuffix(".yaml"))
    try:
        with (recipe or Path(path)).open(encoding="utf-8") as file:
            text = file.read(_MOST_LETTERS + 1)
        if len(text) > _MOST_LETTERS:
            raise OSError(None, f"over {_MOST_LETTERS:,} characters: no file of settings")
        tree = yaml.load(text, Loader=_Loader)
    except OSError as error:
        named = "/" not in path or Path(path).stem in RECIPES
        hint = f"; recipes that need no path: {', '.join(RECIPES)}" if named else ""
        raise InputError(f"{path}: {error.strerror}{hint}") from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise InputError(f"{path}: line {line}: not valid YAML: {error.problem}") from None
    except (yaml.YAMLError, ValueError, RecursionError):
        raise InputError(f"{path}: not a YAML file") from None
    if not isinstance(tree, dict | None):
        raise InputError(f"{path}: a mapping of settings was expected, not {shorten(tree)}")
    return tree or {}


def save_yaml(config: Any, path: Path) -> None:
    """Write a dataclass of settings so that `--config` reads the same ones again."""
    tree = dataclasses.asdict(config)
    text = yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    path.write_text(text, encoding="utf-8")
