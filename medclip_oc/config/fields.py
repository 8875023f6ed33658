"""Dataclasses of settings: dotted names, types in plain words, the nearest name, and YAML.

In YAML here 1e-5 is a number, and a key given twice an error.
"""

import dataclasses
import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from ..errors import InputError
from .checks import option

# type -> one value of it, several of it, its place in help
WORDS: dict[Any, tuple[str, str, str]] = {
    bool: ("true or false", "true/false values", "{true,false}"),
    int: ("a whole number", "whole numbers", "INT"),
    float: ("a number", "numbers", "NUMBER"),
    str: ("text", "texts", "TEXT"),
    NoneType: ("null", "nulls", ""),
    Any: ("a value", "values", "VALUE"),
    dict: ("a mapping", "mappings", "MAPPING"),
}
# What other programs call a setting; the first that the command has is meant.
_MEANT = {
    "learning_rate": ("optim.lr",),
    "wd": ("optim.weight_decay",),
    "warmup": ("optim.warmup_steps",),
    "batch_size": ("train.global_batch_size",),
    "accum_freq": ("train.micro_batch_size",),
    "grad_accum": ("train.micro_batch_size",),
    "amp": ("train.precision", "precision"),
    "num_workers": ("data.workers", "workers"),
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
# YAML 1.1 wants a dot and a sign in 1.0e-5; people write 1e-5.
_NUMBER = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$")


def leaves_of(config_class: Any, prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Dotted name -> type and default (MISSING: required), of every setting."""
    settings: dict[str, tuple[Any, Any]] = {}
    hints = get_type_hints(config_class)
    for field in dataclasses.fields(config_class):
        key, kind = prefix + field.metadata.get("option", field.name), hints[field.name]
        if dataclasses.is_dataclass(kind):
            settings |= leaves_of(kind, f"{key}.")
        elif field.default_factory is not dataclasses.MISSING:
            settings[key] = kind, field.default_factory()
        else:
            settings[key] = kind, field.default
    return settings


def leaf_types(config_class: Any) -> dict[str, Any]:
    """Dotted name -> type, of every setting."""
    return {key: kind for key, (kind, _) in leaves_of(config_class).items()}


def leaves(tree: Mapping[str, Any], types: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted name -> value, of those settings in a nested mapping that `types` knows."""
    values: dict[str, Any] = {}
    for name, value in tree.items():
        key = f"{prefix}{name}"
        if key in types:
            values[key] = _plain(value)
        elif isinstance(value, Mapping):
            values |= leaves(value, types, f"{key}.")
    return values


def build(config_class: Any, settings: Mapping[str, Any], prefix: str = "") -> Any:
    """An instance of the dataclass; what `settings` leaves out has its default."""
    values: dict[str, Any] = {}
    hints = get_type_hints(config_class)
    for field in dataclasses.fields(config_class):
        key = prefix + field.metadata.get("option", field.name)
        if dataclasses.is_dataclass(hints[field.name]):
            values[field.name] = build(hints[field.name], settings, f"{key}.")
        elif key in settings:
            values[field.name] = settings[key]
    return config_class(**values)


def choices(kind: Any) -> tuple[Any, ...]:
    """The members of a union; any other type alone."""
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def allowed(kind: Any) -> str:
    """What a value of this type looks like: "one of fp32, bf16", "a number or null"."""
    words = []
    for choice in choices(kind):
        origin, inner = get_origin(choice) or choice, get_args(choice)
        if origin is Literal:
            words.append(f"one of {', '.join(map(str, inner))}")
        elif origin in (list, tuple):
            number = "a list of" if origin is list else str(len(inner))
            words.append(f"{number} {WORDS[inner[0]][1]}")
        else:
            words.append(WORDS[origin][0])
    return " or ".join(words)


def shorten(value: Any) -> str:
    """A value as an error line shows it: as YAML has it, and not too long."""
    text = repr(value)
    if value is None or isinstance(value, bool):
        text = {None: "null", True: "true", False: "false"}[value]
    return text if len(text) <= 80 else f"{text[:77]}..."


def is_group(key: str, types: Mapping[str, Any]) -> bool:
    """Whether it names several settings, such as `optim`."""
    return any(name.startswith(f"{key}.") for name in types)


def no_such(key: str, types: Mapping[str, Any], *, dashes: bool = False) -> str:
    """What to say of a name that is no setting: the one that is meant, or the nearest."""
    if is_group(key, types):
        return f"a group of settings, such as {next(t for t in types if t.startswith(f'{key}.'))}"
    groups = {name.rpartition(".")[0] for name in types} - {""}
    names = [*types, "config", "help", "version"] if dashes else [*types, *sorted(groups)]
    last = key.rpartition(".")[2]
    meant = [name for name in _MEANT.get(last, ()) if name in types]
    if not meant:  # optim.every_steps: among the settings with that last part, the nearest
        lasts = [name.rpartition(".")[2] for name in names]
        alike = difflib.get_close_matches(last, lasts, 1)
        same = [name for name in names if name.rpartition(".")[2] in alike]
        meant = difflib.get_close_matches(key, same, 1, cutoff=0)
    if not meant:
        return "no such setting; see --help"
    return f"no such setting; did you mean {option(meant[0]) if dashes else meant[0]}?"


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


for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver("tag:yaml.org,2002:float", _NUMBER, list("-+.0123456789"))


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
