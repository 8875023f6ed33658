"""Rank captions: `python -m medclip_oc.zeroshot --checkpoint FILE --images A.jpg --texts "..."`.

Rows go to standard output as they are made, warnings to standard error. Exit code 1 where some
images couldn't be read: the others are ranked all the same.
"""

import sys

from .config.inference import ZeroshotConfig
from .errors import WorkError
from .runtime import command


def main(settings: ZeroshotConfig) -> None:
    """Rank the candidate captions for every image and print the rows; or search an index."""
    from .inference import image_inputs, prompts, ranking, search
    from .inference.embedder import open_embedder
    from .inference.labels import Labels, read
    from .inference.output import RowWriter

    if settings.index is not None:
        search.run(settings)
        return
    limit, candidates = settings.threshold, prompts.gather(settings)
    images = image_inputs.find(settings.images, settings.split)
    names = [prompts.NONE] * (limit is not None) + [candidate.name for candidate in candidates]
    labels = None
    if settings.labels is not None:
        labels = Labels(read("--labels", settings.labels, names), images)
    embedder = open_embedder(settings)
    writer = RowWriter(sys.stdout, settings.format, ranking.FIELDS)
    ranked = ranking.embed_candidates(embedder, candidates, limit)
    bad = ranking.write_rows(embedder, images, ranked, writer, top=settings.top, labels=labels)
    if labels is not None:
        if labels.missing or labels.unused:
            counts = f"{labels.missing:,} images have no row, {labels.unused:,} rows have no image"
            print(f"warning: {settings.labels}: {counts}: not counted", file=sys.stderr)
        # the rows of a table are for people, all others for programs
        labels.report(sys.stdout if settings.format == "table" else sys.stderr, settings.figures)
    if bad:
        raise WorkError(f"{bad:,} of {len(images):,} images can't be read; the others are ranked")


if __name__ == "__main__":
    command.run(main, ZeroshotConfig)
