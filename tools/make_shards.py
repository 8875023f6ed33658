"""Pack radiology images and captions into tar shards.

    python tools/make_shards.py --source ROCOv2/ --out shards/rocov2

The source is the Kaggle form of ROCOv2: {split}_images/{split}/ID.jpg (or .png) and
{split}_captions.csv with the columns ID and Caption; {split}_concepts.csv (ID, CUIs) where there
is one. What is written, and how it is read again: shards/README.md. Every row that can't be packed
stands in rejects.csv with the reason.
"""

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script: tools/ is there

from medclip_oc import command
from medclip_oc.errors import InputError, WorkError

if TYPE_CHECKING:
    from medclip_oc.audit import Audit
    from medclip_oc.packing import PackReport
    from medclip_oc.sources import Source


@dataclass
class MakeShardsConfig:
    """What to pack, where to, and how."""

    source: str
    """Folder that holds the images and the caption tables."""
    out: str
    """Shard folder to write."""
    splits: list[str] = field(default_factory=lambda: ["train", "valid", "test"])
    """Which splits to pack: train, valid, test."""
    samples_per_shard: int = 1000
    """Pairs per tar."""
    workers: int | None = None
    """Processes that read and decode. null: one per CPU core. The shards are the same anyway."""
    no_decode_check: bool = False
    """Keep ordinary JPEG and PNG files unseen: faster, but damaged and blank ones get in."""
    overwrite: bool = False
    """Replace all shards that the folder holds, of every split."""
    audit: bool = False
    """Look for copies, leaks between splits, cut captions: audit.json, audit.html in the folder."""
    audit_only: bool = False
    """Write the audit, and no shards."""
    drop_leaks: bool = False
    """Leave out training pairs whose picture is in another split as well; implies --audit."""
    audit_arch: str = "ViT-B-16-quickgelu"
    """The model whose tokenizer and context length the audit counts with."""


def work(config: MakeShardsConfig) -> None:
    """Pack, and print the closing table."""
    from medclip_oc.packing import PackOptions, pack
    from medclip_oc.source_forms import open_source

    if config.samples_per_shard < 1:
        raise InputError(f"--samples-per-shard {config.samples_per_shard}: at least 1")
    if config.workers is not None and config.workers < 1:
        raise InputError(f"--workers {config.workers}: at least 1")
    source, out = open_source(Path(config.source).expanduser(), config.splits), Path(config.out)
    out, workers = out.expanduser(), config.workers or cores()
    source, audit = audited(source, out, config, workers)
    if config.audit_only:
        return
    options = PackOptions(
        config.samples_per_shard,
        decode_check=not config.no_decode_check,
        drop_leaks=config.drop_leaks,
    )
    try:
        report = pack(source, out, options, workers=workers, overwrite=config.overwrite)
    except WorkError:
        if audit:  # it may tell why
            audit.write(out)
        raise
    if audit:
        audit.write(out)
    print(table(report))
    print(f"{config.out}: done" + (", see rejects.csv" if report.rejected else ""))


def audited(
    source: "Source", out: Path, config: MakeShardsConfig, workers: int
) -> tuple["Source", "Audit | None"]:
    """Audit a source, if that is wanted, and print what was found.

    Returns:
        What is to be packed, and the audit. It is for the caller to write: packing may have to
        refuse or clear the folder first.
    """
    if not (config.audit or config.audit_only or config.drop_leaks):
        return source, None
    if out.exists() and not out.is_dir():  # rather now than after the work
        raise InputError(f"{out}: not a folder")
    from medclip_oc.audit import audit
    from medclip_oc.fingerprints import require_libraries
    from medclip_oc.leaks import Without

    require_libraries()  # before torch is imported
    from medclip_oc.model import token_counter

    try:
        counter = token_counter(config.audit_arch)
    except (InputError, WorkError) as error:
        raise type(error)(str(error).replace("model.arch", "--audit-arch")) from None
    found = audit(source, arch=config.audit_arch, token_counter=counter, workers=workers)
    print(found.summary())
    if config.audit_only:
        found.write(out)
        print(f"{out / 'audit.html'}: the page; audit.json has every finding")
    return (Without(source, found.dropped) if config.drop_leaks else source), found


def cores() -> int:
    """Cores that this process may use: fewer than the machine's, in a Slurm job."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def table(report: "PackReport") -> str:
    """Pairs read, packed and rejected, bytes and shards, by split; then the reasons."""
    head = ("split", "read", "packed", "rejected", "MB", "shards")
    rows: list[tuple[object, ...]] = [
        (
            split,
            report.read[split],
            report.packed[split],
            report.read[split] - report.packed[split],
            f"{report.bytes[split] / 1e6:.1f}",
            report.shards[split],
        )
        for split in report.read
    ]
    total = [sum(counts.values()) for counts in (report.read, report.packed, report.rejected)]
    megabytes = f"{sum(report.bytes.values()) / 1e6:.1f}"
    rows.append(("all", *total, megabytes, sum(report.shards.values())))
    lines = ["{:<6}{:>9}{:>9}{:>10}{:>11}{:>8}".format(*row) for row in (head, *rows)]
    for (split, reason), number in sorted(report.rejected.items()):
        lines.append(f"  rejected   {number:>6}  {split}: {reason}")
    for reason, number in sorted(report.reencoded.items()):
        lines.append(f"  re-encoded {number:>6}  {reason}")
    return "\n".join(lines)


if __name__ == "__main__":
    command.main(
        work,
        MakeShardsConfig,
        prog="make_shards.py",
        description="Pack radiology images and captions into tar shards.",
    )
