"""Candidate texts for ranking: from words, files and standard input, in templates, with labels.

A candidate is what a row names, and the prompts that stand for it: its features are the mean of
theirs (Radford et al. 2021, section 3.1.4).
"""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from ..errors import InputError
from ..packing.tables import Table

STDIN = "-"
NONE = "none of these"
"""The candidate that a threshold adds."""
RADIOLOGY = (
    "{}",
    "an image showing {}.",
    "radiological image showing {}.",
    "imaging of a patient with {}.",
    "findings of {}.",
    "evidence of {}.",
    "there is {}.",
    "{} is seen.",
)
"""The built-in templates: of any modality, in the words of captions."""
_TABLES = (".csv", ".tsv", ".jsonl", ".parquet")


class Candidate(NamedTuple):
    """What is ranked."""

    name: str
    """What the rows call it."""
    prompts: tuple[str, ...]
    """Texts whose mean it is: at least one."""


def gather(
    texts: Sequence[str],
    file: str | None,
    *,
    text_column: str,
    label_column: str | None,
    templates: str | None,
    threshold: bool = False,
) -> list[Candidate]:
    """All candidates in the order in which they were given, each name once.

    Args:
        texts: given one by one.
        file: see `ZeroshotConfig.texts_file`.
        text_column: of a table.
        label_column: of a table. None: "label", if it has one.
        templates: see `ZeroshotConfig.templates`.
        threshold: whether NONE will be one more.

    Raises:
        InputError: no text, an empty one, or a file that can't be read.
    """
    named: dict[str, dict[str, None]] = {}
    for number, text in enumerate(texts, 1):
        if not text.strip():
            raise InputError(f"--texts: number {number} is empty")
        named.setdefault(text, {})[text] = None
    for name, text in _of_file(file, text_column, label_column) if file else ():
        named.setdefault(name, {})[text] = None
    if threshold and NONE in named:
        raise InputError(f"--threshold: adds {NONE!r}, but that is a text already")
    if not named:
        raise InputError(f"--texts-file: {file} holds no text")
    forms = _templates(templates)
    return [
        Candidate(name, tuple(form.replace("{}", text) for text in prompts for form in forms))
        for name, prompts in named.items()
    ]


def _of_file(file: str, text_column: str, label_column: str | None) -> Iterator[tuple[str, str]]:
    """(name, text) of each row; the name is the label where there is one."""
    if file == STDIN:
        yield from ((line, line) for line in _standard_input())
        return
    path = Path(file)
    if not path.is_file():
        what = "a folder, not a file" if path.is_dir() else "no such file"
        raise InputError(f"--texts-file: {file}: {what}")
    if path.suffix.lower() not in _TABLES:
        if label_column is not None:
            raise InputError(f"--label-column {label_column}: {file} is no table")
        for row in Table((path,), header=("text",)).rows(["text"]):
            yield row.values[0].strip(), row.values[0].strip()
        return
    table = Table((path,))
    if label_column is None and "label" in table.names():
        label_column = "label"
    columns = [text_column] + ([label_column] if label_column else [])
    for row in table.rows(columns):
        if row.problem:
            raise InputError(f"--texts-file: {file}: {row.location}: {row.problem}")
        text, name = row.values[0], row.values[-1]
        for column, value in zip(columns, row.values, strict=True):
            if not isinstance(value, str) or not value.strip():
                raise InputError(f"--texts-file: {file}: {row.location}: no text in {column}")
        yield name.strip(), text.strip()


def _standard_input() -> Iterator[str]:
    try:
        content = sys.stdin.buffer.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"--texts-file -: not UTF-8 (byte {error.start})") from None
    return (line.strip() for line in content.splitlines() if line.strip())


def _templates(given: str | None) -> tuple[str, ...]:
    if given is None:
        return ("{}",)
    if given == "radiology":
        return RADIOLOGY
    if not Path(given).is_file():
        raise InputError(f"--templates: {given}: no such file, and not `radiology`")
    found = []
    for row in Table((Path(given),), header=("text",)).rows(["text"]):
        template = row.values[0].strip()
        if "{}" not in template:
            raise InputError(f"--templates: {given}: {row.location}: no {{}} in {template!r}")
        found.append(template)
    if not found:
        raise InputError(f"--templates: {given} holds no template")
    return tuple(dict.fromkeys(found))
