"""Rank captions: `python -m medclip_oc.zeroshot --checkpoint FILE --images A.jpg --texts "..."`.

Rows go to standard output as they are made, warnings to standard error. Exit code 1 where some
images couldn't be read: the others are ranked all the same.
"""

import sys
from pathlib import Path

from .config.inference import ZeroshotConfig
from .errors import WorkError
from .runtime import command


def main(settings: ZeroshotConfig) -> None:
    """Rank the candidate captions for every image and print the rows; or search an index."""
    from .evaluation import features
    from .inference import labels, prompt_sets, prompts, ranking, search
    from .inference.embedder import open_embedder
    from .inference.image_inputs import ImageSet, find
    from .reporting.output import RowWriter

    if settings.list_prompts:
        print(prompt_sets.text(settings.prompts))
        return
    if settings.index is not None:
        search.run(settings)
        return
    candidates = prompts.gather(settings)
    if settings.features_in:
        images = ImageSet(*features.load_images(Path(settings.features_in)))
    else:
        images = find(settings.images, settings.split)
    tables = labels.open_labels(settings, candidates, images)
    embedder = open_embedder(settings)
    several, top = settings.multi_label, settings.top
    ranked = ranking.embed_candidates(embedder, candidates, settings.threshold, multi_label=several)
    writer = RowWriter(sys.stdout, settings.format, ranked.fields)
    own = [table.scores for table in tables if table.images is images]
    explain = None
    if settings.explain is not None:
        from .relevance.overlay import map_writer  # matplotlib

        texts = [candidate.positive for candidate in candidates]
        explain = map_writer(settings.explain, embedder.clip, texts, settings.explain_top or 1)
    bad = ranking.write_rows(embedder, images, ranked, writer, top=top, scores=own, explain=explain)
    for table in tables:
        if table.images is not images:
            ranking.write_rows(embedder, table.images, ranked, None, scores=[table.scores])
    if tables:
        # the rows of a table are for people, all others for programs
        out = sys.stdout if settings.format == "table" else sys.stderr
        labels.report(settings, candidates, tables, out)
    if bad:
        raise WorkError(f"{bad:,} of {len(images):,} images can't be read; the others are ranked")


if __name__ == "__main__":
    command.run(main, ZeroshotConfig)
