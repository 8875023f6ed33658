"""A mapping from text to text that lies on disk: memory stays flat however many rows are joined."""

import sqlite3
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from .errors import WorkError


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
        with _told():
            self._database.executemany("INSERT OR IGNORE INTO pairs VALUES (?, ?)", pairs)

    def add(self, key: str, value: str = "") -> bool:
        """Put a pair in, unless the key is there; whether it was new."""
        with _told():
            done = self._database.execute("INSERT OR IGNORE INTO pairs VALUES (?, ?)", (key, value))
        return done.rowcount == 1

    def get(self, key: str) -> str | None:
        """The value of a key. None: it is not there."""
        with _told():
            row = self._database.execute("SELECT value FROM pairs WHERE key = ?", (key,)).fetchone()
        return None if row is None else row[0]

    def __contains__(self, key: str) -> bool:
        return self.get(key) is not None

    def __del__(self) -> None:
        self._database.close()


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        where = tempfile.gettempdir()
        raise WorkError(f"{where}: {error} (TMPDIR names another folder)") from None
