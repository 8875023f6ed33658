"""Candidates for ranking: prompt sets, or texts from words, files and standard input, in templates.

A candidate is what a row names, and the texts that stand for it: its features are the mean of
theirs (Radford et al. 2021, section 3.1.4).
"""

import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from ..config.inference import ZeroshotConfig
from ..errors import InputError
from ..packing.tables import Table
from ..runtime.progress import print_line
from . import prompt_sets
from .prompt_sets import PromptClass

NONE = "none of these"  # the candidate that a threshold adds
# the built-in templates: of any modality, in the words of captions
RADIOLOGY = Path(__file__).parent / "prompt_sets" / "radiology.txt"
_NO_TEXT = re.compile(r"<!doctype html|<html|.*[\0\ud800-\udfff]", re.IGNORECASE | re.DOTALL)
_TABLES = (".csv", ".tsv", ".json", ".jsonl", ".parquet", ".xlsx")
_NO_LINES = (".yaml", ".yml", ".zip", ".xls", ".docx", ".pdf")


def gather(settings: ZeroshotConfig) -> list[PromptClass]:
    """All candidates in the order in which they were given, each name once; InputError: no text, an
    empty one, or a file that can't be read. Phrasings that weren't given are told on stderr.
    """
    if settings.prompts is not None:
        chosen = prompt_sets.load(settings.prompts)
        counts = [sum(len(getattr(c, s)) for c in chosen.classes) for s in ("positive", "negative")]
        told = f"{len(chosen.classes)} classes, {counts[0]} positive and {counts[1]} negative texts"
        if bare := [c.name for c in chosen.classes if settings.multi_label and not c.negative]:
            raise InputError(f"--multi-label: {settings.prompts}: no negative text of {bare[0]}")
        print_line(f"prompts: {chosen.name}, {told}; --list-prompts shows them")
        return [*chosen.classes]
    given = (checked(f"--texts: number {n}", text) for n, text in enumerate(settings.texts, 1))
    texts_of = {text: {text: None} for text in given}
    for name, text in _of_file(settings) if settings.texts_file else ():
        texts_of.setdefault(name, {})[text] = None
    if settings.threshold is not None and NONE in texts_of:
        raise InputError(f"--threshold: adds {NONE!r}, but that is a text already")
    if not texts_of:
        raise InputError(f"--texts-file: {settings.texts_file} holds no text")
    forms = _templates(settings.templates)
    return [
        PromptClass(name, tuple(form.replace("{}", text) for text in texts for form in forms))
        for name, texts in texts_of.items()
    ]


def checked(where: str, text: str) -> str:
    """A text that came as UTF-8, whatever the locale; InputError: an empty one, or none."""
    with suppress(UnicodeError):  # Python disguises bytes that are none of the locale's
        text = text.encode(errors="surrogateescape").decode()
    if _NO_TEXT.match(text):
        raise InputError(f"{where}: {text[:40]!a}: a web page, or not text in UTF-8")
    if not text.strip():
        raise InputError(f"{where} is empty")
    return text


def open_table(option: str, file: str, header: tuple[str, ...] = ()) -> Table:
    """The table that an option names; InputError: no such file."""
    if not Path(file).is_file():
        problem = "a folder, not a file" if Path(file).is_dir() else "no such file"
        raise InputError(f"{option}: {file}: {problem}")
    return Table((Path(file),), header=header)


def read_table(
    option: str, file: str, columns: Sequence[str], texts: int, header: tuple[str, ...] = ()
) -> Iterator[tuple[str, list[str]]]:
    """Rows of a `Table` that an option names: where each stands, for errors, and its cells.
    InputError: no such file, a damaged row, or an empty cell among the first `texts`.
    """
    for row in open_table(option, file, header).rows(columns):
        where = f"{option}: {file}: {row.location}"
        if row.problem:
            raise InputError(f"{where}: {row.problem}")
        cells = [str(value).strip() for value in row.values]
        for n, column in enumerate(columns[:texts]):
            if not isinstance(row.values[n], str) or not cells[n]:
                raise InputError(f"{where}: no text in {column.replace('|', ' or ')}")
            cells[n] = checked(where, cells[n])
        yield where, cells


def _of_file(settings: ZeroshotConfig) -> Iterator[tuple[str, str]]:
    """(name, text) of each row; the name is the label where there is one."""
    file, label = settings.texts_file or "", settings.label_column
    if file == "-":  # standard input
        content = sys.stdin.buffer.read().decode("utf-8-sig", errors="surrogateescape")
        lines = filter(None, map(str.strip, content.splitlines()))
        yield from ((text, checked("--texts-file -", text)) for text in lines)
        return
    columns, header = [settings.text_column], tuple[str, ...]()
    if file.lower().endswith(_NO_LINES):
        raise InputError(f"--texts-file: {file}: wanted are lines of text, or {', '.join(_TABLES)}")
    if file.lower().removesuffix(".gz").endswith(_TABLES) and Path(file).is_file():
        if label is None and "label" in Table((Path(file),)).names():
            label = "label"
        columns += [label] if label else []
    elif label is not None:
        raise InputError(f"--label-column {label}: {file} is no table")
    else:
        columns, header = ["text"], ("text",)
    try:
        for _, cells in read_table("--texts-file", file, columns, 2, header):
            yield cells[-1], cells[0]
    except InputError as error:
        options = "; --text-column and --label-column name others"
        raise InputError(f"{error}{options if 'no column' in str(error) else ''}") from None


def _templates(given: str | None) -> tuple[str, ...]:
    if given is None:
        return ("{}",)
    file = str(RADIOLOGY) if given == "radiology" else given
    if not Path(file).is_file():
        raise InputError(f"--templates: {given}: no such file, and not `radiology`")
    templates = dict[str, None]()
    for where, [template] in read_table("--templates", file, ["text"], 1, ("text",)):
        if "{}" not in template:
            raise InputError(f"{where}: no {{}} in {template!r}")
        templates[template] = None
    if not templates:
        raise InputError(f"--templates: {given} holds no template")
    if given == "radiology":
        print_line(f"templates: {' | '.join(templates)}")
    return tuple(templates)
