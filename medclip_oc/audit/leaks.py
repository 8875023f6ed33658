"""A source without the pairs that would leak into training (audit.py says which do)."""

import hashlib
import json
from collections.abc import Iterator, Mapping

from ..packing.sources import Pair, Reject, Source


class Without(Source):
    """A source of which some pairs are rejected, with the reason "leak".

    Args:
        source: the whole.
        dropped: (split, key) of each such pair -> what stands in rejects.csv.
    """

    def __init__(self, source: Source, dropped: Mapping[tuple[str, str], str]) -> None:
        self.form, self.splits = source.form, source.splits
        self._source, self._dropped = source, dict(dropped)

    def count(self, split: str) -> int:
        """Rows of a split, the dropped ones too: they are read, and rejected."""
        return self._source.count(split)

    def records(self, split: str) -> Iterator[Pair | Reject]:
        """As many records as the whole source has."""
        for record in self._source.records(split):
            reason = None
            if isinstance(record, Pair):
                reason = self._dropped.get((record.split, record.key))
            yield Reject(record.id, split, "leak", reason) if reason is not None else record

    def fingerprints(self) -> dict[str, str]:
        """Those of the whole source, and a hash of which pairs are `dropped`."""
        dropped = hashlib.sha256(json.dumps(sorted(self._dropped.items())).encode()).hexdigest()
        return {**self._source.fingerprints(), "dropped": dropped}
