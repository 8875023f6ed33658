"""What a JPEG or PNG carries besides its picture, and the file without it, pixels untouched.

Segments and chunks stay or go whole. Of JPEG those stay that decoders read (ITU-T T.81, B.1), and
JFIF's and Adobe's marks, which tell the colour space, if nothing else is in them; of PNG the
critical chunks, tRNS, and those of a few numbers. Colour profiles go: decoding ignores them
(decode.py). No kept library does this: Pillow decodes, others leave what follows the end.
"""

from collections.abc import Iterator

from .decode import jpeg_segments

_SCAN, _END = 0xDA, 0xD9
_JPEG_KEPT = {*range(0xC0, 0xD0), 0xD8, _END, _SCAN, 0xDB, 0xDC, 0xDD} - {0xC8}
_MARKS = {(b"\xe0JFIF\0", 18), (b"\xeeAdobe", 16)}  # with their length
_KINDS = {b"\xe1Exif\0": "EXIF", b"\xe1http:": "XMP", b"\xe2ICC_P": "ICC profile"}
_KINDS |= {b"\xedPhoto": "IPTC", b"\xfe": "comment", b"eXIf": "EXIF", b"iCCP": "ICC profile"}
_KINDS |= dict.fromkeys((b"tEXt", b"zTXt", b"iTXt"), "text")
_PNG_KEPT = b"IHDR PLTE IDAT IEND tRNS gAMA cHRM sRGB pHYs sBIT bKGD".split()


def strip(data: bytes) -> tuple[bytes, set[str]]:
    """A JPEG or PNG without what isn't its picture, and the kinds of that; of another file, or one
    whose parts can't be told apart up to its end mark, no bytes.
    """
    parts = [*_jpeg_parts(data), *_png_parts(data)]  # of one alone
    whole = parts and parts[-1][0] == "after the end"
    kept = b"".join(part for kind, part in parts if not kind) if whole else b""
    return kept, {kind for kind, part in parts if kind and part}


def _jpeg_parts(data: bytes) -> Iterator[tuple[str, bytes]]:
    """The kind of each part, "" where it stays; at last what follows the end."""
    marker, end = 0, 0
    for start, segment in jpeg_segments(data):
        yield "" if marker == _SCAN else "other", data[end:start]  # else stray bytes
        marker, end, name = segment[1], start + len(segment), segment[1:2] + segment[4:9]
        kept = marker in _JPEG_KEPT or (name, len(segment)) in _MARKS
        kind = _KINDS.get(name) or _KINDS.get(name[:1], "other")
        yield "" if kept else kind, segment
    if marker == _END:
        yield "after the end", data[end:]


def _png_parts(data: bytes) -> Iterator[tuple[str, bytes]]:
    """As `_jpeg_parts`."""
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return
    name, end = b"", 8
    yield "", data[:end]
    while name != b"IEND" and end < len(data):
        begin, name = end, data[end + 4 : end + 8]
        end += int.from_bytes(data[begin : begin + 4]) + 12  # and length, name, checksum
        yield "" if name in _PNG_KEPT else _KINDS.get(name, "other"), data[begin:end]
    if name == b"IEND" and end <= len(data):
        yield "after the end", data[end:]
