"""Kinds of settings: a bound stands in the type, and is checked when the dataclass is made."""

import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, get_args, get_type_hints

from ..errors import InputError

Precision = Literal["fp32", "bf16", "fp16"]
Device = Literal["auto", "cpu", "cuda"]
Decode = Literal["fast", "exact"]
Split = Literal["train", "valid", "test"]
LongCaptions = Literal["truncate", "sentences"]
Unit = Literal["image", "study"]


class Bound(NamedTuple):
    """What a number or a text must be; of a list each."""

    words: str
    holds: Callable[[Any], object]


def _is_regex(text: str) -> object:
    with suppress(re.error):
        return re.compile(text)
    return None


Count = Annotated[int, Bound("at least 1", lambda value: value >= 1)]
Natural = Annotated[int, Bound("at least 0", lambda value: value >= 0)]
Positive = Annotated[float, Bound("above 0", lambda value: value > 0)]
NotNegative = Annotated[float, Bound("at least 0", lambda value: value >= 0)]
Share = Annotated[float, Bound("in [0, 1]", lambda value: 0 <= value <= 1)]
ShareBelowOne = Annotated[float, Bound("in [0, 1)", lambda value: 0 <= value < 1)]
ShareAboveZero = Annotated[float, Bound("in (0, 1]", lambda value: 0 < value <= 1)]
Name = Annotated[str, Bound("a name", str.strip)]
Pattern = Annotated[str, Bound("a regular expression", _is_regex)]
JsonFile = Annotated[str, Bound("a file name that ends in .json", lambda v: v.endswith(".json"))]


class Settings:
    """Base of dataclasses of settings. InputError: a value is out of its bounds."""

    section: ClassVar[str] = ""  # place in YAML, `optim.`; a command's options have none
    reads: ClassVar[str] = ""  # fields that say what a command reads, for its help
    writes: ClassVar[str] = ""  # those that say what it writes; help has the rest under "how"

    def __init_subclass__(cls, section: str | None = None) -> None:
        cls.section = cls.section if section is None else section

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self), include_extras=True)
        for field in fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            values = value if isinstance(value, list | tuple) else [value]
            for kind, bound in _bounds(hints[field.name]):
                bounded = [v for v in values if isinstance(v, str if kind is str else int | float)]
                self.require(all(map(bound.holds, bounded)), field.name, bound.words)

    def require(self, holds: bool, name: str, allowed: str) -> None:
        """Refuse the value of a field; None, which means off, is for the caller to leave out."""
        if not holds:
            value = getattr(self, name)
            raise InputError(f"{self.option(name)}: {value!r} is not {allowed}")

    def option(self, name: str) -> str:
        """A field as the user writes it: `optim.lr`, or `--batch-size`."""
        return self.section + name if self.section else option(name)


def option(key: str) -> str:
    """A setting on the command line: hyphens, except in the dotted keys that YAML has too."""
    return f"--{key}" if "." in key else f"--{key.replace('_', '-')}"


def _bounds(kind: Any) -> list[tuple[type, Bound]]:
    """The bounds anywhere in a type, each with what it bounds."""
    own = [(kind.__origin__, bound) for bound in getattr(kind, "__metadata__", ())]
    return own + [bound for part in get_args(kind) for bound in _bounds(part)]
