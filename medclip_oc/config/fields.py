"""Dataclasses of settings: dotted names, types in plain words, help, and YAML.

In YAML here 1e-5 is a number, and a key given twice an error.
"""

import dataclasses
import difflib
import re
from argparse import Action
from collections.abc import Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import jsonargparse
import yaml

from ..errors import InputError

# type -> one of it, several of it, its place in help
_WORDS: dict[Any, tuple[str, str, str]] = {
    bool: ("true or false", "true/false values", "{true,false}"),
    int: ("a whole number", "whole numbers", "INT"),
    float: ("a number", "numbers", "NUMBER"),
    str: ("text", "texts", "TEXT"),
    NoneType: ("null", "nulls", ""),
    Any: ("a value", "values", "VALUE"),
}
_LONGEST_CHOICES = 40  # longer ones move from the left column of help to the right

# YAML 1.1 wants a dot and a sign in 1.0e-5; people write 1e-5.
_NUMBER = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$")


# ------------------------------------------------------------------------------ names and types


def _fields(config_class: Any) -> list[tuple[dataclasses.Field[Any], Any]]:
    hints = get_type_hints(config_class)
    return [(field, hints[field.name]) for field in dataclasses.fields(config_class)]


def _name(field: dataclasses.Field[Any]) -> str:
    """As the user spells it: the field's name, or its metadata's `option`."""
    name: str = field.metadata.get("option", field.name)
    return name


def leaf_types(config_class: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted name -> type, of every setting."""
    found: dict[str, Any] = {}
    for field, kind in _fields(config_class):
        key = prefix + _name(field)
        found |= leaf_types(kind, f"{key}.") if dataclasses.is_dataclass(kind) else {key: kind}
    return found


def leaves(tree: Mapping[str, Any], known: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted name -> value, of those settings in a nested mapping that are known."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        key = f"{prefix}{name}"
        if key in known:
            found[key] = _plain(value)
        elif isinstance(value, Mapping):
            found |= leaves(value, known, f"{key}.")
    return found


def required(config_class: Any, prefix: str = "") -> list[str]:
    """Dotted names of the settings without default."""
    found: list[str] = []
    for field, kind in _fields(config_class):
        key = prefix + _name(field)
        if dataclasses.is_dataclass(kind):
            found += required(kind, f"{key}.")
        elif field.default is field.default_factory is dataclasses.MISSING:
            found.append(key)
    return found


def build(config_class: Any, settings: Mapping[str, Any], prefix: str = "") -> Any:
    """An instance of the dataclass; what `settings` leaves out has its default."""
    values: dict[str, Any] = {}
    for field, kind in _fields(config_class):
        key = prefix + _name(field)
        if dataclasses.is_dataclass(kind):
            values[field.name] = build(kind, settings, f"{key}.")
        elif key in settings:
            values[field.name] = settings[key]
    return config_class(**values)


def choices(kind: Any) -> tuple[Any, ...]:
    """The members of a union; any other type alone."""
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def allowed(kind: Any) -> str:
    """What a value of this type looks like: "one of fp32, bf16", "a number or null"."""
    return " or ".join(_allowed_alone(choice) for choice in choices(kind))


def _allowed_alone(kind: Any) -> str:
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        return f"one of {', '.join(map(str, inner))}"
    if origin is list:
        return f"a list of {_WORDS[inner[0]][1]}"
    if origin is tuple:
        return f"{len(inner)} {_WORDS[inner[0]][1]}"
    if origin is dict:
        return "a mapping"
    return _WORDS[kind][0]


def shorten(value: Any) -> str:
    """A value as an error line shows it."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def is_group(key: str, types: Mapping[str, Any]) -> bool:
    """Whether it names several settings, such as `optim`."""
    return any(known.startswith(f"{key}.") for known in types)


def no_such(key: str, types: Mapping[str, Any], dashes: str = "") -> str:
    """What to say of a name that is no setting: the nearest one that is."""
    if is_group(key, types):
        return f"a group of settings, such as {next(t for t in types if t.startswith(f'{key}.'))}"
    groups = {name.rpartition(".")[0] for name in types} - {""}
    known = [*types, "config", "help", "version"] if dashes else [*types, *sorted(groups)]
    last = [name.rpartition(".")[2] for name in known]
    alike = difflib.get_close_matches(key.rpartition(".")[2], last, len(last))
    close = (
        [name for name, word in zip(known, last, strict=True) if word == alike[0]] if alike else []
    )
    near = difflib.get_close_matches(
        key, close, 1, cutoff=0
    )  # optim.every_steps or log.every_steps
    return f"no such setting; {f'did you mean {dashes}{near[0]}?' if near else 'see --help'}"


# ---------------------------------------------------------------------------------------- help


class _Formatter(jsonargparse.DefaultHelpFormatter):
    """Settings as they are typed: no alias, no type in Python's words."""

    def _get_help_string(self, action: Action) -> str:
        return action.help or ""

    def _format_action_invocation(self, action: Action) -> str:
        place = f" {action.metavar}" if action.metavar else ""
        return ", ".join(action.option_strings) + place


def help_text(config_class: Any, prog: str, description: str) -> str:
    """The page for `--help`: every setting with its docstring, values and default."""
    needed = [f"--{key} ..." for key in required(config_class)]
    parser = jsonargparse.ArgumentParser(
        prog=prog,
        description=description,
        usage=" ".join(["%(prog)s", *needed, "[--config FILE] [--SETTING VALUE ...]"]),
        formatter_class=_Formatter,
    )
    parser.add_argument("--version", action="version", version="", help="show the version and exit")
    parser.add_argument("--config", metavar="FILE", help="settings from a YAML file; options win")
    _add_help(parser, parser, config_class, "")
    return parser.format_help()


def _add_help(parser: Any, group: Any, config_class: Any, prefix: str) -> None:
    """A line for each setting, and a group for each dataclass among them."""
    from docstring_parser import parse_from_object  # 20 ms that only help pays

    # a dataclass that extends another: each class documents its own, and its own come first
    owners = [one for one in config_class.__mro__ if dataclasses.is_dataclass(one)]
    params = [param for one in owners for param in parse_from_object(one).params]
    docs: dict[str, str | None] = {}
    for param in params:
        docs.setdefault(param.arg_name, param.description)
    places = {name: place for place, name in enumerate(docs)}
    shown = sorted(_fields(config_class), key=lambda one: places.get(one[0].name, len(places)))
    for field, kind in shown:
        key = prefix + _name(field)
        if dataclasses.is_dataclass(kind):
            inner = parser.add_argument_group(key, parse_from_object(kind).description)
            _add_help(parser, inner, kind, f"{key}.")
        else:
            place, note = _place(kind), _default(field)
            if len(place) > _LONGEST_CHOICES:
                place, note = "CHOICE", f"{allowed(kind)}; {note}"
            doc = f"{docs.get(field.name) or ''} ({note})".strip().replace("%", "%%")
            group.add_argument(f"--{key}", metavar=place, help=doc)


def _default(field: dataclasses.Field[Any]) -> str:
    value: Any = field.default
    if field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    if value is dataclasses.MISSING:
        return "required"
    if isinstance(value, list | tuple):
        return f"default: {' '.join(map(str, value))}"
    if value is None or isinstance(value, bool):
        value = {None: "null", True: "true", False: "false"}[value]  # as YAML writes them
    return f"default: {value}"


def _place(kind: Any) -> str:
    """The value's place in help: INT, {a,b}, TEXT [TEXT ...]."""
    origins = {get_origin(choice): get_args(choice) for choice in choices(kind)}
    if list in origins:
        name = _WORDS[origins[list][0]][2]
        return f"{name} [{name} ...]"
    if tuple in origins:
        return " ".join(_WORDS[inner][2] for inner in origins[tuple])
    if dict in origins:
        return "MAPPING"
    return "|".join(_place_alone(choice) for choice in choices(kind) if choice is not NoneType)


def _place_alone(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return f"{{{','.join(map(str, get_args(kind)))}}}"
    return _WORDS[kind][2]


# ---------------------------------------------------------------------------------------- YAML


class _Loader(yaml.SafeLoader):
    """Plain values only, and no key twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else id(key)
            if name in seen and name != "<<":
                raise yaml.constructor.ConstructorError(
                    problem=f"{name} is given twice", problem_mark=key.start_mark
                )
            seen.add(name)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes each text that `_Loader` would take for a number."""

    def ignore_aliases(self, data: Any) -> bool:
        return True  # a list used twice is written twice, not as *id001


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _NUMBER, list("-+.0123456789"))
_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", _NUMBER, list("-+.0123456789"))


def load(path: str) -> dict[Any, Any]:
    """The mapping in a YAML file; an empty file is an empty one.

    Raises:
        InputError: no such file, not YAML (with the line), or not a mapping.
    """
    try:
        tree = yaml.load(Path(path).read_text(encoding="utf-8"), Loader=_Loader)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f"line {mark.line + 1}: " if mark else ""
        raise InputError(f"{path}: {line}not valid YAML: {error.problem}") from None
    except (yaml.YAMLError, ValueError, RecursionError):
        raise InputError(f"{path}: not a YAML file") from None
    if not isinstance(tree, dict | None):
        raise InputError(f"{path}: a mapping of settings was expected, not {shorten(tree)}")
    return tree or {}


def to_dict(config: Any) -> dict[str, Any]:
    """A dataclass of settings as plain dicts, lists, numbers and texts, nested as in YAML."""
    plain: dict[str, Any] = _plain(dataclasses.asdict(config))
    return plain


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value


def save_yaml(config: Any, path: Path) -> None:
    """Write a dataclass of settings so that `--config` reads the same ones again."""
    text = yaml.dump(to_dict(config), Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    path.write_text(text, encoding="utf-8")
