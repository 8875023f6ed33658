"""Caption tables as they come, each with its outcome (test_bad_inputs.py reads them)."""

HEAD = "ID,Caption\n"
FILES = ("a.jpg", "b.PNG", "c.jpg", "1.2.840.jpg", "s1/x.jpg", "\u00e9\U0001fac0.jpg")
LONG = "word " * 20_000
EMOJI = "\U0001fac0 \U0001f469\u200d\u2695\ufe0f \u05dc\u05d1 \u0642\u0644\u0628"

WHOLE: dict[str, str | bytes] = {  # a: heart, b: lung
    "BOM": b"\xef\xbb\xbfID,Caption\na,heart\nb,lung\n",
    "CRLF": "ID,Caption\r\na,heart\r\nb,lung\r\n",
    "CR alone": "ID,Caption\ra,heart\rb,lung\r",
    "tabs in a .csv": "ID\tCaption\na\theart\nb\tlung\n",
    "columns in another order": "Caption,n,ID\nheart,1,a\nlung,2,b\n",
    "columns in another case": "id,CAPTION\na,heart\nb,lung\n",
    "all quoted": '"ID","Caption"\n"a","heart"\n"b","lung"',
    "blank lines": "\n\nID,Caption\n\na,heart\n\n\nb,lung\n\n",
    "ids with extension and blanks": "ID,Caption\n a.jpg ,heart\nb.PNG ,lung\n",
}
CAPTIONS: list[tuple[str, str]] = [  # as they stand in a table, and as they are read
    ('"two\nlines, ""so"" said\r\nthree"', 'two\nlines, "so" said\r\nthree'),
    *((word, word) for word in ("NA", "None", "null", "nan", "007", "left\0lung", '5" mass')),
    ("\u2009\u202fleft\u2009lung\u00a0", "left\u2009lung"),
    ("\u0153de\u0300me", "\u0153d\u00e8me"),  # NFC
    (EMOJI, EMOJI),
    (LONG, LONG.strip()),
]
BAD_ROWS: list[tuple[str, str, str]] = [  # a row after that of a, its id, and the reason
    ("b", "b", "malformed row"),
    ("b,lung, left", "b", "malformed row"),
    (f"b,{'lung, ' * 90}", "b", "malformed row"),
    ("b,lung,", "b", "malformed row"),
    ("b,", "b", "caption empty"),
    ("b, \u2003\u00a0 ", "b", "caption empty"),
    ("b,\u200b\ufeff", "b", "caption empty"),
    ("a.jpg,again", "a.jpg", "duplicate id"),
    *(
        (f"{unsafe},x", unsafe, "unsafe id")
        for unsafe in ("../a", "s1/../a", "/etc/passwd", "..\\a", "...", "a//b", ".jpg", "b\u200b")
    ),
    (",", "", "unsafe id"),
    ('"b\nc",x', "b\nc", "unsafe id"),
    ("b\0,x", "b\0", "unsafe id"),
    *((f"{absent},x", absent, "image missing") for absent in ("z", "a.jpg.jpg", "b" * 300)),
]
BROKEN: dict[str, tuple[str | bytes, str]] = {  # the whole table is refused, in a line that says so
    "blank lines alone": ("\n\n \n", "test_captions.csv: empty"),
    "header alone": (HEAD, "test_captions.csv: no rows"),
    "a column missing": ("ID,Text\na,heart\n", "no column 'Caption'; found 'ID', 'Text'"),
    "UTF-16": (f"{HEAD}a,heart\n".encode("utf-16"), "line 1 .* not UTF-8; save"),
    "UTF-16 without mark": (f"{HEAD}a,heart\n".encode("utf-16-le"), "NUL bytes: UTF-16"),
    "half a surrogate pair": (HEAD.encode() + b"a,\xed\xa0\x80\n", "line 2 .* is not UTF-8"),
    "Latin-1 after a caption of two lines": (
        'ID,Caption\na,"two\nlines"\nb,\u00e8\n'.encode("latin-1"),
        r"line 4 \('b,.* is not UTF-8",
    ),
    "a quote left open, a huge rest": (f'{HEAD}a,"lung\n' + "b,x\n" * 50_000, "line 2: not CSV"),
    "a quote left open after 1,000 rows of two lines": (
        HEAD + 'a,"two\nlines"\n' * 1001 + 'b,"lung\n',
        "line 2004: not CSV",
    ),
    "text after a quote": (f'{HEAD}a,"heart" left\n', "line 2: not CSV"),
    "200 kB": (f"{HEAD}a,{LONG * 2}\n", "line 2: not CSV: field larger than field limit"),
}
LINES: list[tuple[str, str]] = [  # a line of JSON between two sound ones, and the reason
    (r'{"i": "b.PNG", "t": "\ud83e"}', "caption empty"),
    (r'{"i": "\udce9.jpg", "t": "x"}', "malformed row"),
    ('{"i": "b.PNG", "t": ', "malformed row"),
    ('["b.PNG", "x"]', "malformed row"),
    ('{"i": "b.PNG", "t": "x"}, {"i": "c.jpg", "t": "y"}', "malformed row"),
    ("[" * 100_000, "malformed row"),
    ('{"i": "b.PNG"}', "caption empty"),
    ('{"i": "b.PNG", "t": null}', "caption empty"),
    ('{"i": "b.PNG", "t": ["x"]}', "malformed row"),
    ('{"i": {"x": 1}, "t": "x"}', "unsafe id"),
    ('{"t": "x"}', "unsafe id"),
]
