"""A mapping from text to text that lies on disk: memory stays flat however many rows are joined."""

import sqlite3
import tempfile
from collections.abc import Iterable

from ..errors import WorkError

_SEEN_BITS = 1 << 23
"""One MB: of 80,000 keys it knows 99 % of the others not to be there, without asking the disk."""
_RECENT = 1000
"""Pairs that wait in memory to be written: together they cost a fifth of one by one."""


class Lookup:
    """Text -> text in a temporary file, which goes with the object. Not shared by processes.

    Args:
        pairs: first content. Of equal keys the first counts.

    Raises:
        WorkError: any call, where the disk for temporary files is full.
    """

    def __init__(self, pairs: Iterable[tuple[str, str]] = ()) -> None:
        # "" is SQLite's name for a temporary database: cached in memory, spilled to disk
        self._database = sqlite3.connect("", isolation_level=None)
        self._database.execute("PRAGMA journal_mode = OFF")
        self._database.execute(
            "CREATE TABLE pairs (key TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID"
        )
        self._database.execute("BEGIN")  # one transaction for good: nothing here outlives us
        self._find = self._database.cursor()
        self._recent = dict[str, str]()
        self._seen = bytearray(_SEEN_BITS // 8)
        self._write((self._note(key), value) for key, value in pairs)

    def add(self, key: str, value: str = "") -> bool:
        """Put a pair in, unless the key is there; whether it was new."""
        if key in self:
            return False
        self._recent[self._note(key)] = value
        if len(self._recent) >= _RECENT:
            self._write(self._recent.items())
            self._recent.clear()
        return True

    def get(self, key: str) -> str | None:
        """The value of a key. None: it is not there."""
        place = hash(key) % _SEEN_BITS
        if not self._seen[place >> 3] & 1 << (place & 7):
            return None
        if (value := self._recent.get(key)) is not None:
            return value
        try:
            self._find.execute("SELECT value FROM pairs WHERE key = ?", (key,))
            row = self._find.fetchone()
        except sqlite3.Error as error:
            raise _told(error) from None
        return None if row is None else row[0]

    def __contains__(self, key: str) -> bool:
        return self.get(key) is not None

    def _note(self, key: str) -> str:
        """The key, which is remembered to be there."""
        place = hash(key) % _SEEN_BITS
        self._seen[place >> 3] |= 1 << (place & 7)
        return key

    def _write(self, pairs: Iterable[tuple[str, str]]) -> None:
        try:
            self._database.executemany("INSERT OR IGNORE INTO pairs VALUES (?, ?)", pairs)
        except sqlite3.Error as error:
            raise _told(error) from None

    def __del__(self) -> None:
        self._database.close()


def _told(error: sqlite3.Error) -> WorkError:
    return WorkError(f"{tempfile.gettempdir()}: {error} (TMPDIR names another folder)")
