"""Caption tables as they come, each with its outcome (test_bad_inputs.py packs them)."""

from typing import NamedTuple


class Rows(NamedTuple):
    """Captions by id, and [id, reason] of the rejected."""

    captions: dict[str, str]
    rejects: list[tuple[str, str]] = []  # noqa: RUF012


class Broken(NamedTuple):
    """The whole table is refused, in a line that says this."""

    message: str


HEAD = "ID,Caption\n"
AB = Rows({"a": "heart", "b": "lung"})
LONG = "word " * 20_000
EMOJI = "\U0001fac0 \U0001f469\u200d\u2695\ufe0f \u05dc\u05d1 \u0642\u0644\u0628"


def rejects(*rows: tuple[str, str]) -> Rows:
    return Rows({"a": "heart"}, list(rows))


TABLES: dict[str, tuple[str | bytes, Rows | Broken]] = {
    # as people have them
    "BOM": (b"\xef\xbb\xbfID,Caption\na,heart\nb,lung\n", AB),
    "CRLF": (b"ID,Caption\r\na,heart\r\nb,lung\r\n", AB),
    "CR alone": (b"ID,Caption\ra,heart\rb,lung\r", AB),
    "tabs in a .csv": ("ID\tCaption\na\theart\nb\tlung\n", AB),
    "columns in another order": ("Caption,n,ID\nheart,1,a\nlung,2,b\n", AB),
    "columns in another case": ("id,CAPTION\na,heart\nb,lung\n", AB),
    "all quoted": ('"ID","Caption"\n"a","heart"\n"b","lung"', AB),
    "blank lines": ("\n\nID,Caption\n\na,heart\n\n\nb,lung\n\n", AB),
    "ids with extension": ("ID,Caption\na.jpg,heart\nb.PNG,lung\n", AB),
    "ids with blanks": ("ID,Caption\n a ,heart\nb ,lung\n", AB),
    "embedded newlines and quotes": (
        f'{HEAD}a,"two\nlines, ""so"" said\r\nthree"\n',
        Rows({"a": 'two\nlines, "so" said\r\nthree'}),
    ),
    "NA, None, null, nan": (
        f"{HEAD}a,NA\nb,None\nc,null\nd,nan\n",
        Rows({"a": "NA", "b": "None", "c": "null", "d": "nan"}),
    ),
    "thin and unbreakable spaces": (
        f"{HEAD}a,\u2009\u202fleft\u2009lung\u00a0\n",
        Rows({"a": "left\u2009lung"}),
    ),
    "NFC": (f"{HEAD}a,\u0153de\u0300me\n", Rows({"a": "\u0153d\u00e8me"})),
    "emoji and right-to-left": (f"{HEAD}a,{EMOJI}\n", Rows({"a": EMOJI})),
    "100 kB": (f"{HEAD}a,{LONG}\n", Rows({"a": LONG.strip()})),
    "NUL in a caption": (f"{HEAD}a,left\0lung\n", Rows({"a": "left\0lung"})),
    "a number": (f"{HEAD}a,007\n", Rows({"a": "007"})),
    "a quote within": (f'{HEAD}a,5" mass\n', Rows({"a": '5" mass'})),
    "an id with dots": (f"{HEAD}1.2.840,heart\n", Rows({"1.2.840": "heart"})),
    "an id with a folder": (f"{HEAD}s1/x,heart\n", Rows({"s1/x": "heart"})),
    "an id that isn't ASCII": (
        f"{HEAD}\u00e9\U0001fac0,heart\n",
        Rows({"\u00e9\U0001fac0": "heart"}),
    ),
    # rows that can't be packed
    "caption absent": (f"{HEAD}a,heart\nb\n", rejects(("b", "malformed row"))),
    "caption empty": (f"{HEAD}a,heart\nb,\n", rejects(("b", "caption empty"))),
    "caption blank": (f"{HEAD}a,heart\nb, \u2003\u00a0 \n", rejects(("b", "caption empty"))),
    "caption unseen": (f"{HEAD}a,heart\nb,\u200b\ufeff\n", rejects(("b", "caption empty"))),
    "a comma too many": (f"{HEAD}a,heart\nb,lung, left\n", rejects(("b", "malformed row"))),
    "many commas too many": (
        f"{HEAD}a,heart\nb,{'lung, ' * 90}\nc\n",
        rejects(("b", "malformed row"), ("c", "malformed row")),
    ),
    "a comma at each end": (
        f"{HEAD}a,heart\nb,lung,\nc,x,\n",
        rejects(("b", "malformed row"), ("c", "malformed row")),
    ),
    "commas alone": (f"{HEAD}a,heart\n,\n", rejects(("", "unsafe id"))),
    "twice": (f"{HEAD}a,heart\na,again\n", rejects(("a", "duplicate id"))),
    "twice, with extension": (f"{HEAD}a,heart\na.jpg,again\n", rejects(("a.jpg", "duplicate id"))),
    "up": (f"{HEAD}a,heart\n../a,x\n", rejects(("../a", "unsafe id"))),
    "up within": (f"{HEAD}a,heart\ns1/../a,x\n", rejects(("s1/../a", "unsafe id"))),
    "absolute": (f"{HEAD}a,heart\n/etc/passwd,x\n", rejects(("/etc/passwd", "unsafe id"))),
    "backslashes": (f"{HEAD}a,heart\n..\\a,x\n", rejects(("..\\a", "unsafe id"))),
    "dots alone": (f"{HEAD}a,heart\n...,x\n", rejects(("...", "unsafe id"))),
    "a blank step": (f"{HEAD}a,heart\na//b,x\n", rejects(("a//b", "unsafe id"))),
    "an extension alone": (f"{HEAD}a,heart\n.jpg,x\n", rejects((".jpg", "unsafe id"))),
    "an extension twice": (
        f"{HEAD}a,heart\na.jpg.jpg,x\n",
        rejects(("a.jpg.jpg", "image missing")),
    ),
    "unseen in the id": (f"{HEAD}a,heart\nb\u200b,x\n", rejects(("b\u200b", "unsafe id"))),
    "a newline in the id": (f'{HEAD}a,heart\n"b\nc",x\n', rejects(("b\nc", "unsafe id"))),
    "a bell in the id": (f"{HEAD}a,heart\nb\a,x\n", rejects(("b\a", "unsafe id"))),
    "NUL in the id": (f"{HEAD}a,heart\nb\0,x\n", rejects(("b\0", "unsafe id"))),
    "an endless id": (f"{HEAD}a,heart\n{'b' * 300},x\n", rejects(("b" * 300, "image missing"))),
    "image missing": (f"{HEAD}a,heart\nz,x\n", rejects(("z", "image missing"))),
    # tables that are no such table
    "no bytes": ("", Broken("test_captions.csv: empty")),
    "blank lines alone": ("\n\n \n", Broken("test_captions.csv: empty")),
    "header alone": (HEAD, Broken("test_captions.csv: no rows")),
    "a column missing": ("ID,Text\na,heart\n", Broken("no column 'Caption'; found 'ID', 'Text'")),
    "no header": ("a,heart\nb,lung\n", Broken("no column 'ID'; found 'a', 'heart'")),
    "semicolons": ("ID;Caption\na;heart\n", Broken("no column 'ID'; found 'ID;Caption'")),
    "UTF-16": (f"{HEAD}a,heart\n".encode("utf-16"), Broken("line 1 .* not UTF-8; save")),
    "UTF-16 without mark": (f"{HEAD}a,heart\n".encode("utf-16-le"), Broken("NUL bytes: UTF-16")),
    "Latin-1": (
        f"{HEAD}a,heart\nb,\u0153d\u00e8me\n".encode("cp1252"),
        Broken(r"line 3 \('b,.* is not UTF-8"),
    ),
    "half a surrogate pair": (
        HEAD.encode() + b"a,\xed\xa0\x80\n",
        Broken("line 2 .* is not UTF-8"),
    ),
    "Latin-1 after a caption of two lines": (
        'ID,Caption\na,"two\nlines"\nb,\u00e8\n'.encode("latin-1"),
        Broken("line 4 .* is not UTF-8"),
    ),
    "a quote left open, and a huge rest": (
        f'{HEAD}a,"lung\n' + "b,x\n" * 50_000,
        Broken("line 2: not CSV"),
    ),
    "a quote left open after 1,000 rows of two lines": (
        HEAD + 'a,"two\nlines"\n' * 1001 + 'b,"lung\n',
        Broken("line 2004: not CSV"),
    ),
    "a quote left open": (f'{HEAD}a,heart\nb,"lung\nc,x\n', Broken("line 3: not CSV")),
    "text after a quote": (f'{HEAD}a,"heart" left\n', Broken("line 2: not CSV")),
    "200 kB": (f"{HEAD}a,{LONG * 2}\n", Broken("line 2: not CSV: field larger than field limit")),
}
FILES = ("a.jpg", "b.PNG", "c.jpg", "d.jpg", "1.2.840.jpg", "s1/x.jpg", "\u00e9\U0001fac0.jpg")


LINES: dict[str, tuple[str, str]] = {
    "half a surrogate pair": (r'{"i": "b.PNG", "t": "\ud83e"}', "caption empty"),
    "half a pair in the path": (r'{"i": "\udce9.jpg", "t": "x"}', "malformed row"),
    "no JSON": ('{"i": "b.PNG", "t": ', "malformed row"),
    "a list": ('["b.PNG", "x"]', "malformed row"),
    "a text": ('"b.PNG"', "malformed row"),
    "two on one line": ('{"i": "b.PNG", "t": "x"}, {"i": "c.jpg", "t": "y"}', "malformed row"),
    "nested without end": ("[" * 100_000, "malformed row"),
    "no caption": ('{"i": "b.PNG"}', "caption empty"),
    "null": ('{"i": "b.PNG", "t": null}', "caption empty"),
    "a list for a caption": ('{"i": "b.PNG", "t": ["x"]}', "malformed row"),
    "a mapping for a path": ('{"i": {"x": 1}, "t": "x"}', "unsafe id"),
    "no path": ('{"t": "x"}', "unsafe id"),
    "a path with NUL": (r'{"i": "b\u0000.jpg", "t": "x"}', "unsafe id"),
}
