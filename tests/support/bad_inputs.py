"""Image files and tables as they come, each with its outcome (test_bad_inputs.py packs them)."""

import gzip
import struct
import zlib
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from tests.support.image_files import (
    ARITHMETIC_JPEG,
    ARITHMETIC_PIXELS,
    chunk,
    dicom,
    file,
    png,
    png_16,
)
from tests.support.tiny_dataset import picture

SMOOTH = picture(6, (24, 18))
GREY = np.asarray(SMOOTH)  # (18, 24)
RGB = Image.merge("RGB", (SMOOTH, SMOOTH.rotate(180), SMOOTH.transpose(0)))
COLOUR = np.asarray(RGB)  # (18, 24, 3)
ALPHA = SMOOTH.transpose(1)
ANOTHER: dict[str, Any] = {"save_all": True, "append_images": [RGB.rotate(180)]}
"""Options of Pillow for a second frame."""
DEEP = np.dstack([COLOUR, np.asarray(ALPHA)]).astype(np.uint16) * 15 + 200  # (18, 24, 4), 12 bits


class Kept(NamedTuple):
    """The source's bytes; the member ends in this."""

    extension: str


class Shown(NamedTuple):
    """A new file that shows this: (H, W) or (H, W, 3)."""

    pixels: np.ndarray
    reencoded: str
    slack: int = 0


class Refused(NamedTuple):
    """A line in rejects.csv."""

    reason: str
    detail: str = ""


NOT_READ = "not one of JPEG, PNG, .*DICOM"
WINDOWED = ((DEEP[..., 0] - DEEP[..., 0].min()) / np.ptp(DEEP[..., 0]) * 255).round()
JPEG, PNG = file(RGB, "JPEG", quality=95), file(RGB, "PNG")
TWELVE_BITS = JPEG.replace(b"\xff\xc0\0\x11\x08", b"\xff\xc0\0\x11\x0c")
TEXT_BOMB = PNG[:33] + chunk(b"zTXt", b"k\0\0" + zlib.compress(b"x" * (1 << 22))) + PNG[33:]
LONG_TEXT = PNG[:33] + chunk(b"tEXt", b"k\0" + b"x" * (1 << 21)) + PNG[33:]
BOMB = png(60_000, 60_000, 8, 0, bytes(1000))
OLD_DICOM = dicom(COLOUR)[dicom(COLOUR).index(b"\x08\0\x16\0") :]  # without what leads it in
DEEP_REASON = "more than 8 bits per channel"
BITS_32 = file(Image.fromarray(DEEP[..., 0].astype(np.int32) * 5000), "TIFF")
CLEAR = file(Image.merge("RGBA", (*RGB.split(), ALPHA)), "PNG")
OPACITY = np.asarray(ALPHA)[..., None] / 255
WHITE_IS_ZERO = file(Image.fromarray(DEEP[..., 0]), "TIFF").replace(
    struct.pack("<HHIH", 262, 3, 1, 1), struct.pack("<HHIH", 262, 3, 1, 0)
)

IMAGES: dict[str, tuple[str, bytes, Kept | Shown | Refused]] = {
    # kept as they are
    "JPEG": ("a.jpg", JPEG, Kept("jpg")),
    "JPEG, junk after its end": ("a.jpg", JPEG + b"junk" * 999, Kept("jpg")),
    "MPO": ("a.jpg", file(RGB, "MPO", **ANOTHER), Kept("jpg")),
    "PNG named .jpg": ("a.jpg", PNG, Kept("png")),
    "JPEG named .dcm": ("a.dcm", JPEG, Kept("jpg")),
    "APNG": ("a.png", file(RGB, "PNG", **ANOTHER), Kept("png")),
    "PNG with a long text": ("a.png", LONG_TEXT, Kept("png")),
    # stored anew
    "16-bit grey": ("a.png", png_16(DEEP[..., :1]), Shown(WINDOWED, DEEP_REASON)),
    "white is zero": ("a.tif", WHITE_IS_ZERO, Shown(255 - WINDOWED, "TIFF file", slack=1)),
    "32-bit TIFF": ("a.tif", BITS_32, Shown(WINDOWED, "TIFF file")),
    "arithmetic": ("a.jpg", ARITHMETIC_JPEG, Shown(ARITHMETIC_PIXELS, "arithmetic-coded JPEG", 6)),
    "colour with alpha": ("a.png", CLEAR, Shown(COLOUR * OPACITY, "transparency", slack=1)),
    "GIF": ("a.gif", file(SMOOTH, "GIF", **ANOTHER), Shown(np.dstack([GREY] * 3), "GIF file")),
    "WebP": ("a.webp", file(RGB, "WEBP", lossless=True, **ANOTHER), Shown(COLOUR, "WEBP file")),
    "JPEG 2000": ("a.jp2", file(RGB, "JPEG2000"), Shown(COLOUR, "JPEG2000 file")),
    "BMP": ("a.bmp", file(RGB, "BMP"), Shown(COLOUR, "BMP file")),
    "DICOM named .jpg": ("a.jpg", dicom(COLOUR), Shown(COLOUR, "DICOM file")),
    "DICOM without its mark": ("a", dicom(COLOUR)[132:], Shown(COLOUR, "DICOM file")),
    "DICOM as of old": ("a.ima", OLD_DICOM, Shown(COLOUR, "DICOM file")),
    # refused
    "no bytes": ("a.jpg", b"", Refused("empty", "0 bytes")),
    "zeros": ("a.jpg", bytes(5000), Refused("undecodable", NOT_READ)),
    "a text": ("a.jpg", b"ID,Caption\n", Refused("undecodable", NOT_READ)),
    "a web page": ("a.jpg", b"<!DOCTYPE html><p>404", Refused("undecodable", "seems a web page")),
    "PDF": ("a.jpg", b"%PDF-1.7\n%", Refused("undecodable", NOT_READ)),
    "gzip": ("a.png", gzip.compress(PNG), Refused("undecodable", "seems gzip")),
    "HEIC": ("a.jpg", b"\0\0\0\x18ftypheic" + bytes(99), Refused("undecodable", NOT_READ)),
    "LFS": ("a.png", b"version https://git-lfs.x/v1\n", Refused("undecodable", "Git LFS")),
    "12-bit JPEG": ("a.jpg", TWELVE_BITS, Refused("undecodable", "seems a JPEG of 12 bits")),
    "16-bit colour": ("a.png", png_16(DEEP[..., :3]), Refused("undecodable", "more than 8 bits")),
    "16-bit alpha": ("a.png", png_16(DEEP[..., :2]), Refused("undecodable", "more than 8 bits")),
    "PNG bomb": ("a.png", BOMB, Refused("over max pixels", "pixels")),
    "PNG text bomb": ("a.png", TEXT_BOMB, Refused("undecodable", "MAX_TEXT_CHUNK")),
    "odd PPM": ("a.jpg", b"P6 3\x000 20 255 ", Refused("undecodable", "decoder failed$")),
    "PNG, one byte changed": ("a.png", PNG[:80] + b"?" + PNG[81:], Refused("undecodable")),
    "black": ("a.png", file(Image.new("L", (9, 9)), "PNG"), Refused("blank", "is 0")),
    "white": ("a.jpg", file(Image.new("RGB", (9, 9), "white"), "JPEG"), Refused("blank", "255")),
    "PNG cut in its header": ("a.png", PNG[:20], Refused("truncated")),
}
for _end in ("jpeg", "png", "gif", "bmp", "tiff", "webp"):
    IMAGES[f"cut {_end}"] = (f"a.{_end}", file(RGB, _end.upper())[:-60], Refused("truncated"))


HEAD = "ID,Caption\n"
FILES = ("a.jpg", "b.PNG", "c.jpg", "1.2.840.jpg", "s1/x.jpg", "\u00e9\U0001fac0.jpg")
LONG = "word " * 40_000
EMOJI = "\U0001fac0 \U0001f469\u200d\u2695\ufe0f \u05dc\u05d1 \u0642\u0644\u0628"

WHOLE: dict[str, str | bytes] = {  # a: heart, b: lung
    "BOM": b"\xef\xbb\xbfID,Caption\na,heart\nb,lung\n",
    "CRLF": "ID,Caption\r\na,heart\r\nb,lung\r\n",
    "CR alone": "ID,Caption\ra,heart\rb,lung\r",
    "tabs in a .csv": "ID\tCaption\na\theart\nb\tlung\n",
    "semicolons": 'ID;"Caption, cleaned";Caption\na;x;heart\nb;y;lung\n',
    "bars": "ID|Caption\na|heart\nb|lung\n",
    "Excel's separator": "sep=;\r\nID;Caption\r\na;heart\r\nb;lung\r\n",
    "a comma at the end of rows": "ID,Caption\na,heart,\nb,lung\n",
    "commas at the end of all lines": "ID,Caption,,\na,heart,,\nb,lung,\n",
    "200 kB in a column that nobody wants": f"ID,Caption,x\na,heart,{'A' * 200_000}\nb,lung,\n",
    "two columns of a name that nobody wants": "ID,x,Caption,x\na,1,heart,2\nb,,lung,\n",
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
    ("b,lung,,", "b", "malformed row"),
    ("b,lung,,left", "b", "malformed row"),
    ("b,", "b", "caption empty"),
    ("b, \u2003\u00a0 ", "b", "caption empty"),
    ("b,\u200b\ufeff", "b", "caption empty"),
    ("a.jpg,again", "a.jpg", "duplicate id"),
    *(
        (f"{unsafe},x", unsafe, "unsafe id")
        for unsafe in ("../a", "s1/../a", "/etc/passwd", "..\\a", "...", "a//b", ".jpg", "b\u200b")
    ),
    (",", "", "caption empty"),
    ('"b\nc",x', "b\nc", "unsafe id"),
    ("b\0,x", "b\0", "unsafe id"),
    *((f"{absent},x", absent, "image missing") for absent in ("z", "a.jpg.jpg", "b" * 300)),
]
BROKEN: dict[str, tuple[str | bytes, str]] = {  # the whole table is refused, in a line that says so
    "blank lines alone": ("\n\n \n", "test_captions.csv: empty"),
    "header alone": (HEAD, "test_captions.csv: no rows under the header"),
    "a column missing": ("ID,Text\na,heart\n", "no column 'Caption'; found 'ID', 'Text'"),
    "LFS": ("version https://git-lfs.github.com/v1\n", "a Git LFS pointer in place .*git lfs pull"),
    "UTF-16": (f"{HEAD}a,heart\n".encode("utf-16"), "UTF-16 by its first bytes; save"),
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
    "a column twice": ("ID,Caption,Caption\na,b,c\n", "2 columns are called 'Caption'; rename"),
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
    ('{"i": "b.PNG", "t": NaN}', "caption empty"),
    *((f'{{"i": "b.PNG", "t": {it}}}', "malformed row") for it in ("7", "1.5", "true", "{}")),
    *((f'{{"i": "b.PNG", "t": {it}}}', "malformed row") for it in ('["x", 7]', '[["x", {}]]')),
    *((f'{{"i": "b.PNG", "t": {it}}}', "caption empty") for it in ("[]", '[" ", null]')),
    ('{"i": {"x": 1}, "t": "x"}', "image missing"),
    ('{"t": "x"}', "image missing"),
]
