"""Settings of a command, read from YAML files and the command line.

Settings: defaults < YAML (`--config FILE`) < command line (`--optim.lr 1e-5`), wherever the options
stand. jsonargparse checks and converts each value and lays out the help; this module sorts the
words, so that an error can say in one line where a value stood, what it was and what is allowed.

No torch here, and nothing of ours but errors and YAML: `--help` pays for this module.
"""

import math
import os
import re
import sys
from argparse import ArgumentError
from collections.abc import Mapping, Sequence
from types import NoneType
from typing import Any, NamedTuple, NoReturn, TypeVar, get_origin

import jsonargparse

from .. import __version__
from ..errors import InputError
from .fields import (
    allowed,
    build,
    choices,
    help_text,
    is_group,
    leaf_types,
    load,
    no_such,
    required,
    shorten,
)
from .fields import save_yaml as save_yaml  # a command writes its settings beside its results
from .fields import to_dict as to_dict

T = TypeVar("T")

# `--name`, `--name=value`, `-h`; not `-1`, not "- a caption that begins with a dash".
_OPTION = re.compile(r"--\w|-[A-Za-z]$")
_NULL = ("null", "None")


class _Given(NamedTuple):
    """A value as the user wrote it, and where: `--optim.lr`, or `configs/x.yaml: optim.lr`."""

    where: str
    value: Any


def parse(
    config_class: type[T], arguments: Sequence[str] | None = None, *, prog: str, description: str
) -> T:
    """Read the settings of a command.

    Args:
        config_class: a dataclass, perhaps of dataclasses; the docstring under a field is its help,
            and a field without default is required. It may raise InputError in `__post_init__`.
        arguments: words of the command line; None: those of this process.
        prog: name of the command, for help.
        description: what the command does, for help.

    Returns:
        An instance of `config_class`.

    Raises:
        InputError: what the user gave is wrong, in one line (without `prog`).
        SystemExit: after `--help` and `--version`, with code 0.
    """
    types = leaf_types(config_class)
    given: dict[str, _Given] = {}
    overrides: dict[str, _Given] = {}
    for option, words in _split(sys.argv[1:] if arguments is None else arguments):
        # --samples-per-shard and --samples_per_shard are one setting
        key = option.removeprefix("--").replace("-", "_")
        if option in ("-h", "--help"):
            _say_and_stop(help_text(config_class, prog, description))
        elif option == "--version":
            _say_and_stop(f"medclip_oc {__version__}\n")
        elif option == "--config":
            given |= _from_file(_one_word(option, words), types)
        elif not option.startswith("--") or key not in types:
            raise InputError(f"{option}: {no_such(key, types, '--')}")
        else:
            overrides[key] = _Given(option, _from_words(option, types[key], words))
    given |= overrides

    settings = {key: _convert(types[key], value) for key, value in given.items()}
    missing = [f"--{key}" for key in required(config_class) if key not in settings]
    if missing:
        raise InputError(f"{', '.join(missing)}: required, but not given")
    config: T = build(config_class, settings)
    return config


def _say_and_stop(text: str) -> NoReturn:
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print(text, end="", flush=True)
    raise SystemExit(0)


# --------------------------------------------------------------------- from words to settings


def _split(arguments: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Cut the command line into options, each with the words that follow it."""
    groups: list[tuple[str, list[str]]] = []
    closed = True  # `--name=value` takes no further word
    for word in arguments:
        if _OPTION.match(word):
            name, equals, value = word.partition("=")
            groups.append((name, [value] if equals else []))
            closed = bool(equals)
        elif closed:
            raise InputError(f"{shorten(word)}: unexpected; settings are given as --NAME VALUE")
        else:
            groups[-1][1].append(word)
    return groups


def _one_word(option: str, words: list[str]) -> str:
    if len(words) != 1:
        got = f"not {len(words)}: {shorten(words)}" if words else "and none is given"
        raise InputError(f"{option}: takes one value, {got}")
    return words[0]


def _from_words(option: str, kind: Any, words: list[str]) -> Any:
    """A single word or, where the type has a place for them, several."""
    kinds = choices(kind)
    if bool in kinds and not words:
        return True  # a bare --log.tensorboard switches it on
    if len(words) == 1 and words[0] in _NULL and NoneType in kinds:
        return None
    many = {list, tuple} & {get_origin(choice) for choice in kinds}
    if many and not words:
        raise InputError(f"{option}: takes one value or more, and none is given")
    if len(words) > 1 and many:
        return words
    listed = any(get_origin(choice) is list for choice in kinds)
    return words if listed and str not in kinds else _one_word(option, words)


def _from_file(path: str, types: Mapping[str, Any]) -> dict[str, _Given]:
    """The settings in a YAML file, by dotted name."""
    found: dict[str, _Given] = {}

    def walk(branch: Mapping[Any, Any], prefix: str) -> None:
        for name, value in branch.items():
            key = f"{prefix}{name}"
            where = f"{path}: {key}"
            if key in found:
                raise InputError(f"{where}: given twice")
            if key in types:
                found[key] = _Given(where, value)
            elif not is_group(key, types):
                raise InputError(f"{where}: {no_such(key, types)}")
            elif not isinstance(value, dict | None):
                raise InputError(f"{where}: {shorten(value)} is not a mapping of settings")
            else:
                walk(value or {}, f"{key}.")

    walk(load(path), "")
    return found


def _convert(kind: Any, given: _Given) -> Any:
    """The value in the type of its setting, or the error line."""
    wrong = InputError(f"{given.where}: {shorten(given.value)} is not {allowed(kind)}")
    if given.value is None and NoneType not in choices(kind):
        raise wrong  # jsonargparse would let any setting be null
    if given.value in _NULL and NoneType in choices(kind):
        return None
    if isinstance(given.value, dict) and dict[str, Any] in choices(kind):
        return given.value  # jsonargparse would turn the text "1e-5" in it into a number
    check = jsonargparse.ArgumentParser(exit_on_error=False)
    check.add_argument("--value", type=kind)
    try:
        value = check.parse_object({"value": given.value}, defaults=False)["value"]
    except (ArgumentError, TypeError, ValueError, OverflowError):
        raise wrong from None
    numbers = value if isinstance(value, list | tuple) else [value]
    if any(isinstance(number, float) and not math.isfinite(number) for number in numbers):
        raise wrong
    return value
