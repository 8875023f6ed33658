"""Rank captions: `python -m medclip_oc.zeroshot --checkpoint FILE --images A.jpg --texts "..."`.

Rows go to standard output as they are made; what is to be said besides goes to standard error.
Exit code 1 where some images couldn't be read: the others are ranked all the same.
"""

import json
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .config.inference import ZeroshotConfig
from .errors import InputError, WorkError
from .runtime import command

if TYPE_CHECKING:
    from .inference.embedder import Embedder
    from .inference.image_inputs import ImageSet
    from .inference.labels import Truth
    from .inference.output import RowWriter
    from .inference.prompts import Candidate
    from .inference.ranking import Ranking

_PROG = "python -m medclip_oc.zeroshot"


def main(settings: ZeroshotConfig) -> None:
    """Rank the candidate captions for every image and print the rows."""
    from .inference import image_inputs
    from .inference import prompts as candidates

    if settings.index is not None:
        from .inference import search

        search.main(settings)
        return
    limit = settings.threshold
    found = candidates.gather(
        settings.texts,
        settings.texts_file,
        text_column=settings.text_column,
        label_column=settings.label_column,
        templates=settings.templates,
        threshold=limit is not None,
    )
    images = image_inputs.find(settings.images, settings.split)
    truth = None
    if settings.labels is not None:
        from .inference.labels import Truth

        none = [] if limit is None else [candidates.NONE]
        truth = Truth(settings.labels, [*none, *(one.name for one in found)], images)
    from .inference import embedder as embedding
    from .inference import ranking as rank
    from .inference.output import RowWriter

    embedder = embedding.open_embedder(settings)
    writer = RowWriter(sys.stdout, settings.format, rank.FIELDS)
    ranking = rank_of(embedder, found, limit)
    bad = write_ranks(embedder, images, ranking, writer, top=settings.top, truth=truth)
    if truth is not None:
        _conclude(truth, settings)
    if bad:
        raise WorkError(f"{bad:,} of {len(images):,} images can't be read; the others are ranked")


def rank_of(
    embedder: "Embedder", candidates: "list[Candidate]", threshold: float | None = None
) -> "Ranking":
    """The candidates, embedded; a warning for each text that the context cuts."""
    from .config.fields import shorten
    from .inference import ranking as rank

    prompts = len({prompt for one in candidates for prompt in one.prompts})
    with _progress(prompts, "texts", embedder.batch_size) as progress:
        features, cut = embedder.candidates(candidates, progress.update if progress else None)
    context = embedder.clip.description["context_length"]
    for prompt in cut:
        _say(f"cut at {context} tokens, the rest doesn't count: {shorten(prompt)}")
    scale = embedder.clip.towers.inverse_temperature().item()
    return rank.Ranking([one.name for one in candidates], features, scale, threshold)


def write_ranks(
    embedder: "Embedder",
    images: "ImageSet",
    ranking: "Ranking",
    writer: "RowWriter",
    *,
    top: int | None = None,
    truth: "Truth | None" = None,
) -> int:
    """Rank the candidates for every image, and write the rows batch by batch.

    Returns:
        How many images couldn't be read; each is named on standard error.

    Raises:
        InputError: none of them can be read.
    """
    total, number = len(images), 0
    quiet = sys.stdout.isatty()  # the rows are there to be seen
    with nullcontext() if quiet else _progress(total, "images", embedder.batch_size) as progress:
        for batch in embedder.images(images):
            for position, reason in batch.bad:
                number += 1
                line = f"{images.name(position)}: {reason}"
                if total == 1:
                    raise InputError(line)
                _say(line)
            scores = ranking.scores(batch.features)
            names = [images.name(position) for position in batch.positions]
            writer.write(ranking.rows(names, scores, top))
            if truth is not None:
                truth.add(batch.positions, scores.probabilities.numpy())
            if progress:
                progress.update(len(batch.positions) + len(batch.bad))
    writer.close()
    if number == total:
        raise InputError(f"none of the {total:,} images can be read")
    return number


def _conclude(truth: "Truth", settings: ZeroshotConfig) -> None:
    """Print the figures: with the rows of a table, beside those of a program."""
    from .evaluation import classification

    if truth.unknown:
        _say(f"{truth.unknown:,} images have no row in {settings.labels}: they don't count")
    figures = truth.figures()
    out = sys.stdout if settings.format == "table" else sys.stderr
    print(classification.text(figures), file=out)
    if settings.figures is not None:
        file = Path(settings.figures)
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(figures, indent=2, ensure_ascii=False) + "\n")
        except OSError as error:
            raise WorkError(f"{file}: can't be written ({error.strerror})") from error


def _progress(total: int, what: str, batch: int) -> Any:
    """A bar, where there is more than one batch."""
    from .runtime.progress import Progress

    return Progress(total, what, "embed") if total > batch else nullcontext()


def _say(line: str) -> None:
    from tqdm import tqdm

    tqdm.write(f"{_PROG}: {line}", file=sys.stderr)


if __name__ == "__main__":
    command.run(
        main,
        ZeroshotConfig,
        prog=_PROG,
        description="Rank candidate captions for images, best first, or search an index.",
    )
