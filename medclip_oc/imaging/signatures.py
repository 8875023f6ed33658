"""What a file is by its first bytes: for messages, and where a decoder doesn't tell.

Nothing here decodes; every function takes a whole file and reads a few bytes of it.
"""

_STARTS = (
    (b"%PDF", "a PDF"),
    (b"PK\x03\x04", "a zip"),
    (b"\x1f\x8b", "gzip"),
    (b"version https://git-lfs", "a Git LFS pointer in place of the file"),
    (b"<!doctype html", "a web page"),
    (b"<html", "a web page"),
)
# frame headers of JPEG: every 0xC0-0xCF but DHT, JPG and DAC (ITU-T T.81, table B.1)
_FRAMES = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_NO_LENGTH = {0x01, *range(0xD0, 0xD9)}  # markers that stand alone


def guess(data: bytes) -> str | None:
    """What a file that no decoder takes seems to be: "a PDF". None: no idea."""
    frame = jpeg_frame(data)
    if frame and frame[1] != 8:
        return f"a JPEG of {frame[1]} bits"
    if data[4:8] == b"ftyp":
        return "HEIF or AVIF"
    if not data.strip(b"\0"):
        return "nothing but zeros"
    if data[:2] in (b"\x02\0", b"\x08\0") and data[3:4] == b"\0":  # a first tag in these groups
        return "DICOM without its mark DICM at byte 128"
    start = data[:64].lstrip(b"\xef\xbb\xbf \t\r\n")
    names = (name for mark, name in _STARTS if start.lower().startswith(mark.lower()))
    return next(names, None)


def jpeg_frame(data: bytes) -> tuple[int, int] | None:
    """The kind of a JPEG's first frame (N of its marker SOFn) and its bits per sample.

    0, 1 and 2 are the Huffman-coded kinds that every decoder knows: baseline, extended and
    progressive. 3 is lossless, 9 to 11 are coded arithmetically. None: not a JPEG, or cut.
    """
    if data[:2] != b"\xff\xd8":
        return None
    position = 2
    while (position := data.find(b"\xff", position)) >= 0 and position + 5 <= len(data):
        kind = data[position + 1]
        if kind in _FRAMES:
            return kind - 0xC0, data[position + 4]
        if kind in (0x00, 0xFF) or kind in _NO_LENGTH:
            position += 1
        else:
            position += 2 + int.from_bytes(data[position + 2 : position + 4])
    return None


def ends_early(data: bytes) -> bool:
    """Whether a file holds less than its own header promises, or lacks its end mark.

    For a file that failed to decode: some sound ones have no end mark. JPEG decoders say it
    themselves.
    """
    size = len(data)
    if data[:4] == b"RIFF":  # WebP
        return int.from_bytes(data[4:8], "little") + 8 > size
    if data[:4] in (b"II*\0", b"MM\0*"):  # TIFF: where its directory is
        return int.from_bytes(data[4:8], "little" if data[:1] == b"I" else "big") + 2 > size
    if data[:2] == b"BM":
        return int.from_bytes(data[2:6], "little") > size
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return b"IEND" not in data[-4096:]
    if data[:4] == b"GIF8":
        return not data.rstrip(b"\0").endswith(b";")
    if data[:4] == b"\xffO\xffQ" or data[4:8] == b"jP  ":  # JPEG 2000, bare or in boxes
        return b"\xff\xd9" not in data[-64:]
    return False
