"""Settings of a command: defaults < YAML (`--config FILE`) < options, wherever these stand.

jsonargparse checks and converts each value, argparse lays out the help; this module sorts the words
of the command line, so that an error can say in one line where a value stood, what it was and what
is allowed. No torch here: `--help` pays for this module.
"""

import argparse
import math
import os
import re
import sys
from collections.abc import Collection, Sequence
from dataclasses import MISSING, is_dataclass
from types import NoneType
from typing import Any, NoReturn, TypeVar, get_origin

import jsonargparse

from .. import __version__
from ..errors import InputError
from .checks import option
from .fields import build, choices, describe, flatten, is_group, load, no_such, settings_of, shorten

T = TypeVar("T")

# `--name`, `--name=value`, `-h`; not `-1`, not "- a caption that begins with a dash".
_OPTION = re.compile(r"--\w|-[A-Za-z]$")
_NULL = ("null", "None")
_LONGEST_CHOICES = 40  # longer ones move from the left column of help to the right
# Endings of a word without an option -> the options it may belong to; "": folders and tars.
_POSITIONAL: dict[tuple[str, ...], tuple[str, ...]] = {
    (".pt", ".pth"): ("checkpoint", "resume"),
    (".yaml", ".yml"): ("config",),
    (".jpg", ".jpeg", ".png", ".dcm"): ("images",),
    (".csv", ".tsv", ".parquet"): ("table", "texts_file"),
    ("",): ("run", "source", "data", "images", "data.train", "index"),
}


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
    settings = settings_of(config_class)
    from_files: dict[str, tuple[str, Any]] = {}  # where it stands in the file, and the value
    from_words: dict[str, tuple[str, Any]] = {}
    for name, words in _split(sys.argv[1:] if arguments is None else arguments, settings):
        # --samples-per-shard and --samples_per_shard are one setting
        key = name.removeprefix("--").replace("-", "_")
        if name in ("-h", "--help"):
            _print_and_stop(help_text(config_class, prog, description))
        elif name == "--version":
            _print_and_stop(f"medclip_oc {__version__}\n")
        elif name == "--config":
            from_files |= _read(_single(name, words), settings)
        elif not name.startswith("--") or key not in settings:
            raise InputError(f"{name}: {no_such(key, settings, dashes=True)}")
        else:
            from_words[key] = name, _from_words(name, settings[key][0], words)
    values = {
        key: _convert(settings[key][0], place, value)
        for key, (place, value) in (from_files | from_words).items()
    }
    required = [key for key, (_, default) in settings.items() if default is MISSING]
    if missing := [option(key) for key in required if key not in values]:
        raise InputError(f"{', '.join(missing)}: required, but not given")
    config: T = build(config_class, values)
    return config


def _print_and_stop(text: str) -> NoReturn:
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print(text, end="", flush=True)
    raise SystemExit(0)


def _split(arguments: Sequence[str], settings: Collection[str]) -> list[tuple[str, list[str]]]:
    """Cut the command line into options, each with the words that follow it."""
    groups: list[tuple[str, list[str]]] = []
    closed = True  # `--name=value` takes no further word
    for word in arguments:
        if _OPTION.match(word):
            name, equals, value = word.partition("=")
            groups.append((name, [value] if equals else []))
            closed = bool(equals)
        elif closed:
            hint = "settings are given as --NAME VALUE"
            keys = next((k for ends, k in _POSITIONAL.items() if word.endswith(ends)), ())
            if meant := [key for key in keys if key in (*settings, "config")]:
                hint = f"did you mean {option(meant[0])} {word}?"
            raise InputError(f"{shorten(word)}: unexpected; {hint}")
        else:
            groups[-1][1].append(word)
    return groups


def _single(name: str, words: list[str]) -> str:
    if len(words) != 1:
        count = f"not {len(words)}: {shorten(words)}" if words else "and none is given"
        raise InputError(f"{name}: takes one value, {count}")
    return words[0]


def _from_words(name: str, kind: Any, words: list[str]) -> Any:
    """A single word or, where the type has a place for them, several."""
    kinds = choices(kind)
    origins = {get_origin(choice) for choice in kinds}
    if bool in kinds and not words:
        return True  # a bare --log.tensorboard switches it on
    if len(words) == 1 and words[0] in _NULL and NoneType in kinds:
        return None
    if origins & {list, tuple}:
        if not words:
            raise InputError(f"{name}: takes one value or more, and none is given")
        if len(words) > 1 or (list in origins and str not in kinds):
            return words
    return _single(name, words)


def _read(path: str, settings: Collection[str]) -> dict[str, tuple[str, Any]]:
    """The settings in a YAML file, by dotted name."""
    values: dict[str, tuple[str, Any]] = {}
    for key, value in flatten(load(path), settings):
        place = f"{path}: {key}"
        if key in values:
            raise InputError(f"{place}: given twice")
        if key in settings:
            values[key] = place, value
        elif not is_group(key, settings):
            raise InputError(f"{place}: {no_such(key, settings)}")
        elif value is not None:
            raise InputError(f"{place}: {shorten(value)} is not a mapping of settings")
    return values


def _convert(kind: Any, place: str, given: Any) -> Any:
    """The value in the type of its setting, or the error line."""
    wrong = InputError(f"{place}: {shorten(given)} is not {describe(kind)[0]}")
    if given is None and NoneType not in choices(kind):
        raise wrong  # jsonargparse would let any setting be null
    if given in _NULL and NoneType in choices(kind):
        return None
    if isinstance(given, dict) and dict[str, Any] in choices(kind):
        return given  # jsonargparse would turn the text "1e-5" in it into a number
    check = jsonargparse.ArgumentParser(exit_on_error=False)
    check.add_argument("--value", type=kind)
    try:
        value = check.parse_object({"value": given}, defaults=False)["value"]
    except (argparse.ArgumentError, TypeError, ValueError, OverflowError):
        raise wrong from None
    numbers = value if isinstance(value, list | tuple) else [value]
    if any(isinstance(number, float) and not math.isfinite(number) for number in numbers):
        raise wrong
    return value


# ---------------------------------------------------------------------------------------- help


def help_text(config_class: Any, prog: str, description: str) -> str:
    """The page for `--help`: every setting with its docstring, values and default, in groups."""
    settings = settings_of(config_class)
    docs = _docs(config_class)
    needed = [f"{option(key)} ..." for key, (_, value) in settings.items() if value is MISSING]
    usage = " ".join(["%(prog)s", *needed, "[--config FILE] [--SETTING VALUE ...]"])
    parser = argparse.ArgumentParser(prog=prog, description=description, usage=usage)
    parser.add_argument("--version", action="version", help="show the version and exit")
    parser.add_argument("--config", metavar="FILE", help="settings from a YAML file; options win")
    groups: dict[str, Any] = {"": parser}
    reads, writes = getattr(config_class, "reads", ()), getattr(config_class, "writes", ())
    order = [*reads, *writes, *(key for key in settings if key not in {*reads, *writes})]
    for key in order:
        kind, default = settings[key]
        if reads:
            title = "what to read" if key in reads else "what to write" if key in writes else "how"
        else:
            title = key.rpartition(".")[0]
        if title not in groups:
            groups[title] = parser.add_argument_group(title, docs.get(title))
        _add_option(groups[title], key, kind, default, docs.get(key, ""))
    return parser.format_help()


def _docs(config_class: Any, prefix: str = "") -> dict[str, str]:
    """Dotted name -> docstring, of settings and of the dataclasses that hold them."""
    from docstring_parser import parse_from_object  # 20 ms that only help pays

    docs: dict[str, str] = {}
    for owner in config_class.__mro__[::-1]:  # what a dataclass extends documents its own fields
        if is_dataclass(owner):
            parsed = parse_from_object(owner)
            docs |= {prefix + p.arg_name: p.description or "" for p in parsed.params}
            docs[prefix.removesuffix(".")] = parsed.description or ""
    for name, field in config_class.__dataclass_fields__.items():
        if is_dataclass(field.type):
            docs |= _docs(field.type, f"{prefix}{name}.")
        elif "option" in field.metadata:
            docs[prefix + field.metadata["option"]] = docs[prefix + name]
    return docs


def _add_option(group: Any, key: str, kind: Any, default: Any, doc: str) -> None:
    if default is False:
        group.add_argument(option(key), action="store_true", help=doc.replace("%", "%%"))
        return
    words, place = describe(kind)
    notes = []
    if len(place) > _LONGEST_CHOICES:
        place, notes = "CHOICE", [words]
    if default != []:
        notes.append("required" if default is MISSING else f"default: {_shown(default)}")
    note = f" ({'; '.join(notes)})" if notes else ""
    group.add_argument(option(key), metavar=place, help=f"{doc}{note}".replace("%", "%%"))


def _shown(default: Any) -> str:
    if isinstance(default, list | tuple):
        return " ".join(map(str, default))
    return default if isinstance(default, str) else shorten(default)
