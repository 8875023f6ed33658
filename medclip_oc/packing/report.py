"""What a packing did: its counts, and what the command prints of them."""

import shlex
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class PackReport:
    """What packing did. Counts are by split, where nothing else is said."""

    read: Counter[str] = field(default_factory=Counter)  # rows; of a volume once for each slice
    rows: Counter[str] = field(default_factory=Counter)  # each once
    packed: Counter[str] = field(default_factory=Counter)
    rejected: Counter[tuple[str, str]] = field(default_factory=Counter)  # (split, reason) -> rows
    further: Counter[str] = field(default_factory=Counter)
    """Rows whose image an earlier row has: their captions are in its pair."""
    reencoded: Counter[str] = field(default_factory=Counter)
    """Reason -> images that could not keep their bytes."""
    multi_frame: int = 0  # images of which the first of several frames or pages is packed
    shards: Counter[str] = field(default_factory=Counter)
    bytes: Counter[str] = field(default_factory=Counter)  # of the tars
    before: int = 0  # rows of all splits that an earlier run of the same packing had done

    def add(self, line: dict[str, Any]) -> None:
        """Count a line of the journal (see journal.py)."""
        self.read[line["split"]] = line["read"]
        self.rows[line["split"]] = line.get("rows", line["read"])  # as before there were slices
        self.reencoded.update(line["reencoded"])
        self.multi_frame += line.get("multi_frame", 0)
        self.further[line["split"]] += line.get("further", 0)
        self.rejected.update((split, reason) for _, split, reason, _ in line["rejects"])
        if line["shard"]:
            self.add_shard(line["shard"])

    def add_shard(self, shard: dict[str, Any]) -> None:
        """Count a shard by its entry in the index."""
        split = shard["split"]
        self.packed[split] += shard["samples"]
        self.shards[split] += 1
        self.bytes[split] += shard["bytes"]

    def rejected_of(self, split: str) -> int:
        """Rejected rows of a split."""
        return sum(number for (of, _), number in self.rejected.items() if of == split)

    def table(self) -> str:
        """Pairs read, packed and rejected, megabytes and shards, by split; then the reasons."""
        row = "{:<6}{:>9}{:>9}{:>10}{:>11}{:>8}".format
        lines = [row("split", "read", "packed", "rejected", "MB", "shards")]
        for split in (*self.read, "all"):
            own = self.read if split == "all" else (split,)
            read, packed, size, shards = (
                sum(counts[each] for each in own)
                for counts in (self.read, self.packed, self.bytes, self.shards)
            )
            rejected = sum(map(self.rejected_of, own))
            lines.append(row(split, read, packed, rejected, f"{size / 1e6:.1f}", shards))
        for (split, reason), number in sorted(self.rejected.items()):
            lines.append(f"  rejected   {number:>6}  {split}: {reason}")
        for split, number in (+self.further).items():
            lines.append(f"  further    {number:>6}  {split}: rows whose image is packed already")
        for reason, number in sorted(self.reencoded.items()):
            lines.append(f"  re-encoded {number:>6}  {reason}")
        if self.multi_frame:
            lines.append(f"  shortened  {self.multi_frame:>6}  to the first frame (see --slices)")
        return "\n".join(lines)

    def closing(self, out: Path | str, form: str) -> str:
        """The last lines: where the shards are, what there is to know about them, what is next."""
        total = self.read.total()
        if self.before == total:
            line = f"{out}: complete already, with this source and these settings; nothing done"
            more = " (rows that were rejected then are looked at again with --overwrite)"
            return line + more * bool(self.rejected)
        line = f"{out}: done (source: {form})"
        if self.before:
            line += f"; {self.before:,} of {total:,} rows were done by an earlier run"
        line += "; see rejects.csv" * bool(self.rejected)
        folder = shlex.quote(str(out))
        sets = f"--data.train {folder} --data.valid {folder if self.packed['valid'] else 'null'}"
        after = f"train --config vitb16 {sets}"
        if not self.packed["train"]:
            after = f"evaluate --checkpoint FILE --data {folder} --split {next(iter(self.packed))}"
        return f"{line}\nnext: python -m medclip_oc.{after}"
