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
from typing import Any, TypeVar, get_args, get_origin

import jsonargparse

from .. import __version__
from ..errors import InputError
from . import fields
from .checks import option
from .fields import choices, describe, shorten

T = TypeVar("T")

# `--name`, `--name=value`, `-h`; not `-1`, not "- a caption that begins with a dash".
_OPTION = re.compile(r"--\w|-[A-Za-z]$")
_CONFIG_HELP = "settings from a YAML file, or from a recipe of training by its name; options win"
# Endings of a word without an option -> the options it may belong to; "": folders and tars.
_POSITIONAL: dict[tuple[str, ...], tuple[str, ...]] = {
    (".pt", ".pth"): ("checkpoint", "resume"),
    (".yaml", ".yml"): ("config",),
    (".jpg", ".jpeg", ".png", ".dcm"): ("images",),
    (".csv", ".tsv", ".parquet"): ("table", "texts_file"),
    ("",): ("run", "source", "data", "images", "data.train", "index"),
}


def parse(config_class: type[T], arguments: Sequence[str] | None = None, prog: str = "") -> T:
    """Read the settings of a command from words of the command line; None: those of this process.

    The docstring of the dataclass (perhaps of dataclasses) and those under its fields are the help,
    and a field without default is required. InputError: what the user gave is wrong, in one line.
    SystemExit: after `--help` and `--version`, with code 0.
    """
    settings = fields.settings_of(config_class)
    files: dict[str, tuple[str, Any]] = {}  # where it stands, and the value
    options: dict[str, tuple[str, Any]] = {}
    for name, words in _split(sys.argv[1:] if arguments is None else arguments, settings):
        # --samples-per-shard and --samples_per_shard are one setting
        key = name.removeprefix("--").replace("-", "_")
        if name in ("-h", "--help", "--version"):
            version = f"medclip_oc {__version__}\n"
            page = version if key == "version" else help_text(config_class, prog)
            print(page if os.environ.get("LOCAL_RANK", "0") == "0" else "", end="", flush=True)
            raise SystemExit(0)
        if name == "--config":
            files |= _read(_value(name, str, words), settings)
        elif not name.startswith("--") or key not in settings:
            raise InputError(f"{name}: {fields.no_such(key, settings, dashes=True)}")
        else:
            options[key] = name, _value(name, settings[key][0], words)
    values = {key: _convert(settings[key][0], *given) for key, given in (files | options).items()}
    required = [key for key, (_, default) in settings.items() if default is MISSING]
    if missing := [option(key) for key in required if key not in values]:
        raise InputError(f"{', '.join(missing)}: required, but not given")
    return fields.build(config_class, values)


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


def _value(name: str, kind: Any, words: list[str]) -> Any:
    """A single word or, where the type has a place for them, several."""
    kinds = choices(kind)
    if bool in kinds and not words:
        return True  # a bare --log.tensorboard switches it on
    several = {get_origin(choice) for choice in kinds} & {list, tuple}
    if several and len(words) > 1:
        return words
    if len(words) != 1:
        count = f"not {len(words)}: {shorten(words)}" if words else "and none is given"
        raise InputError(f"{name}: takes one value{' or more' if several else ''}, {count}")
    # one word is a list of one, but for a text or a choice such as auto
    alone = str in kinds or any(words[0] in get_args(choice) for choice in kinds)
    return words if list in several and not alone else words[0]


def _read(path: str, settings: Collection[str]) -> dict[str, tuple[str, Any]]:
    """The settings in a YAML file, by dotted name."""
    values: dict[str, tuple[str, Any]] = {}
    for key, value in fields.flatten(fields.load(path), settings):
        place = f"{path}: {key}"
        if key in values:
            raise InputError(f"{place}: given twice")
        if key in settings:
            values[key] = place, value
        elif not fields.is_group(key, settings):
            raise InputError(f"{place}: {fields.no_such(key, settings)}")
        elif value is not None:
            raise InputError(f"{place}: {shorten(value)} is not a mapping of settings")
    return values


def _convert(kind: Any, place: str, given: Any) -> Any:
    """The value in the type of its setting, or the error line."""
    wrong = InputError(f"{place}: {shorten(given)} is not {describe(kind)[0]}")
    if NoneType in choices(kind) and given in ("null", "None", ["null"], ["None"]):
        return None
    if given is None and NoneType not in choices(kind):
        raise wrong  # jsonargparse would let any setting be null
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


def help_text(config_class: Any, prog: str) -> str:
    """The page for `--help`: every setting with its docstring, values and default, in groups."""
    settings, docs = fields.settings_of(config_class), _docs(config_class)
    needed = [f"{option(key)} ..." for key, (_, value) in settings.items() if value is MISSING]
    usage = " ".join(["%(prog)s", *needed, "[--config FILE] [--SETTING VALUE ...]"])
    parser = argparse.ArgumentParser(prog=prog, description=docs[""], usage=usage)
    parser.add_argument("--version", action="version", help="show the version and exit")
    parser.add_argument("--config", metavar="FILE", help=_CONFIG_HELP)
    reads, writes = (getattr(config_class, name, "").split() for name in ("reads", "writes"))
    titles = ["what to read", "what to write", "how"] if reads else []
    groups: dict[str, Any] = {title: parser.add_argument_group(title) for title in titles}
    for key, (kind, default) in settings.items():
        title = key.rpartition(".")[0]
        if reads:
            title = titles[0 if key in reads else 1 if key in writes else 2]
        elif title not in groups:
            own = title and title not in settings  # resume.allow stands beside resume
            groups[title] = parser.add_argument_group(title, docs[title]) if own else parser
        how: dict[str, str] = {"action": "store_true"} if default is False else {}
        note = ""
        if default is not False:
            how["metavar"] = describe(kind)[1]
            text = " ".join(map(str, default)) if isinstance(default, list | tuple) else default
            shown = text if isinstance(text, str) else shorten(text)
            note = " (required)" if default is MISSING else f" (default: {shown})" if shown else ""
        groups[title].add_argument(option(key), help=(docs[key] + note).replace("%", "%%"), **how)
    return parser.format_help()


def _docs(config_class: Any, prefix: str = "") -> dict[str, str]:
    """Dotted name -> docstring, of settings and of the dataclasses that hold them."""
    from docstring_parser import parse_from_object  # 20 ms that only help pays

    owners = [parse_from_object(owner) for owner in config_class.__mro__ if is_dataclass(owner)]
    own = {p.arg_name: p.description or "" for owner in owners[::-1] for p in owner.params}
    docs = {prefix.removesuffix("."): owners[0].description or ""}
    for name, key, kind, _ in fields.fields_of(config_class, prefix):
        docs |= _docs(kind, f"{key}.") if is_dataclass(kind) else {key: own.get(name, "")}
    return docs
