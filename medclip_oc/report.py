"""A page on a run: `python -m medclip_oc.report RUN` writes RUN/report.html, and PNGs beside it."""

import sys
from pathlib import Path
from typing import Any

from .config.evaluation import ReportConfig
from .errors import BadImage, InputError
from .runtime import command


def main(settings: ReportConfig) -> None:
    """Write the page, and its charts as pictures."""
    from .data.index import CAPTION
    from .data.shards import ShardSet
    from .imaging.decode import decode
    from .reporting import html, run_page

    folder, data = Path(settings.run), settings.data
    if not folder.is_dir():
        raise InputError(f"{folder}: no such run folder")

    def read_pairs(ids: set[str], record: dict[str, Any]) -> tuple[run_page.Pairs, list[str]]:
        try:
            split, key = record.get("split") or "test", record.get("caption_key", CAPTION)
            shards = ShardSet.open(data or record["data"], split, key)
        except InputError as error:
            if data:
                raise
            return {}, [f"Gallery: {error}. Name their place with --data."]
        changed = record.get("data_fingerprint") not in (None, shards.fingerprint)
        notes = ["Gallery: the pairs changed since they were evaluated."] if changed else []
        pairs = {}
        for position, key in enumerate(shards.ids()):
            if key in ids:
                sample = shards.read(position)
                try:
                    picture = html.preview(decode(sample.image).convert("RGB"))
                    pairs[key] = sample.caption, picture
                except BadImage as error:
                    notes.append(f"Gallery: {key}: {error}.")
        return pairs, notes

    files, notes = run_page.write(folder, settings.gallery, read_pairs)
    written = f"written to {files[0]}, and {len(files) - 1} charts to {folder / 'report'}"
    print(*notes, written, sep="\n")


if __name__ == "__main__":
    words = sys.argv[1:]
    alone = bool(words) and not words[0].startswith("-")  # the folder, without --run
    command.run(main, ReportConfig, arguments=["--run", *words] if alone else words)
