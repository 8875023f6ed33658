"""A page on a run: `python -m medclip_oc.report RUN` writes RUN/report.html, and PNGs beside it."""

import sys
from pathlib import Path
from typing import Any

from .config.evaluation import ReportConfig
from .errors import InputError, WorkError
from .runtime import command


def main(settings: ReportConfig) -> None:
    """Write the page, and its charts as pictures."""
    from .data.index import CAPTION
    from .data.shards import ShardSet
    from .reporting import html, run_page

    if settings.maps:  # which take torch
        from .relevance.overlay import previews

    folder, data = Path(settings.run), settings.data

    def read_gallery(wanted: list[run_page.Pair], record: dict[str, Any]) -> run_page.Gallery:
        try:
            split, key = record.get("split") or "test", record.get("caption_key", CAPTION)
            shards = ShardSet.open(data or record["data"], split, key)
        except InputError as error:
            if data:
                raise
            return {}, {}, [f"Gallery: {error}. Name their place with --data."]
        same = record.get("data_fingerprint") in (None, shards.fingerprint)
        notes = [] if same else ["Gallery: the pairs changed since they were evaluated."]
        read, bad = shards.pictures({name for ids in wanted for name in ids})
        notes += [f"Gallery: {name}: {error}." for name, error in bad.items()]
        small = {name: html.preview(image.convert("RGB")) for name, (_, image) in read.items()}
        pairs = {name: (text, small[name]) for name, (text, _) in read.items()}
        maps = dict[run_page.Pair, bytes]()
        if settings.maps:
            checkpoint = folder / "checkpoints" / Path(record.get("checkpoint", "")).name
            whole = [ids for ids in wanted if pairs.keys() >= {*ids}]
            try:
                maps = previews(checkpoint, {(a, b): (read[a][1], read[b][0]) for a, b in whole})
            except (InputError, WorkError) as error:
                notes.append(f"Gallery: no relevance maps: {error}.")
        return pairs, maps, notes

    files, notes = run_page.write(folder, settings.gallery, read_gallery)
    written = f"written to {files[0]}, and {len(files) - 1} charts to {folder / 'report'}"
    print(*notes, written, sep="\n")


if __name__ == "__main__":
    words = sys.argv[1:]
    alone = bool(words) and not words[0].startswith("-")  # the folder, without --run
    command.run(main, ReportConfig, arguments=["--run", *words] if alone else words)
