"""A page on a run: `python -m medclip_oc.report RUN` writes RUN/report.html, and PNGs beside it."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from .config.schema import ReportConfig
from .errors import InputError, WorkError
from .runtime import command

if TYPE_CHECKING:
    from .reporting.gallery import Example, Shown
    from .reporting.run_files import Evaluated


def main(settings: ReportConfig) -> None:
    """Write the page, and the charts as pictures where matplotlib is there."""
    from .reporting import gallery, run_files, run_page

    folder = Path(settings.run)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such run folder")
    records, evaluations = run_files.records(folder), run_files.evaluations(folder)
    if not records and not evaluations:
        raise InputError(
            f"{folder}: no run folder: neither metrics.jsonl nor evaluations/ is there"
        )
    notes = [] if records else ["Training: this folder has no metrics.jsonl with records."]
    pictures = []
    if evaluations:
        first = evaluations[0]
        chosen = gallery.examples(first, settings.gallery)
        shown, problems = _pictures(chosen, first, settings)
        notes += problems
        if shown:
            pictures = gallery.sections(chosen, shown, first.record["pool"])
    html = run_page.render(folder.resolve().name, records, evaluations, pictures, notes)
    file = folder / "report.html"
    try:
        file.write_text(html, encoding="utf-8")
        files = _plots(folder / "report", records, evaluations)
    except OSError as error:
        raise WorkError(f"{error.filename or file}: can't be written ({error.strerror})") from error
    for note in notes:
        print(note)
    print("written to " + ", ".join(str(name) for name in (file, *files)))


def _pictures(
    chosen: "list[Example]", evaluated: "Evaluated", settings: ReportConfig
) -> "tuple[dict[str, Shown], list[str]]":
    """The pairs of the gallery by id, or why there are none."""
    from .data.shards import ShardSet
    from .errors import BadImage
    from .imaging.encode import decode
    from .reporting.audit_page import preview
    from .reporting.gallery import Shown

    record = evaluated.record
    where = settings.data or record.get("data")
    if not chosen or where is None:
        missing = "nearest ids" if not chosen else "the place of its pairs"
        return {}, [f"Gallery: {evaluated.name} doesn't say {missing}."] if settings.gallery else []
    try:
        shards = ShardSet.open(where, record.get("split") or "test")
    except InputError as error:
        if settings.data:
            raise
        return {}, [f"Gallery: {error}. Name their place with --data."]
    wanted = {one for example in chosen for one in (example.query, example.found)}
    shown = {}
    notes = []
    if record.get("data_fingerprint") not in (None, shards.fingerprint):
        notes.append("Gallery: the pairs changed since they were evaluated.")
    for position, key in enumerate(shards.ids()):
        if key not in wanted:
            continue
        sample = shards.read(position)
        try:
            shown[key] = Shown(sample.caption, preview(decode(sample.image).convert("RGB")))
        except BadImage as error:
            notes.append(f"Gallery: {key}: {error}.")
    return shown, notes


def _plots(
    folder: Path, records: list[dict[str, object]], evaluations: "list[Evaluated]"
) -> list[Path]:
    """PNGs of the charts; none without matplotlib, and said."""
    try:
        from .reporting import plots
    except ImportError:
        print("no PNGs of the charts: they need matplotlib: pip install 'medclip_oc[plot]'")
        return []
    folder.mkdir(exist_ok=True)
    return plots.draw(folder, records, evaluations)


if __name__ == "__main__":
    words = sys.argv[1:]
    if words and not words[0].startswith("-"):
        words = ["--run", *words]  # the folder may stand alone
    command.run(
        main,
        ReportConfig,
        prog="python -m medclip_oc.report",
        description="Write RUN/report.html: training, retrieval, slices, ranks and a gallery.",
        arguments=words,
    )
