"""Searching an index by text or image: what `zeroshot --index` does."""

import sys
from pathlib import Path
from typing import Any

import torch

from ..config.inference import ZeroshotConfig
from ..errors import InputError
from . import embedder as embedding
from . import image_inputs
from .embedder import Embedder
from .feature_index import Index, What
from .output import RowWriter

FIELDS = ("query", "rank", "id", "score", "caption", "shard", "position")
_TOP = 10


def main(settings: ZeroshotConfig) -> None:
    """Answer every query, and print the rows."""
    assert settings.index is not None
    index = Index(Path(settings.index))
    images = None
    if settings.search_image:
        images = image_inputs.find(settings.search_image, None, "--search-image")
    for number, text in enumerate(settings.search, 1):
        if not text.strip():
            raise InputError(f"--search: number {number} is empty")
    embedder = embedding.open_embedder(settings)
    check_model(index, embedder)
    writer = RowWriter(sys.stdout, settings.format, FIELDS)
    how: dict[str, Any] = {"what": settings.find, "engine": settings.engine}
    top = settings.top or _TOP
    if settings.search:
        features = embedder.texts(settings.search)
        writer.write(answers(index, settings.search, features, top, **how))
    if images is not None:
        for batch in embedder.images(images):
            for position, reason in batch.bad:
                raise InputError(f"{images.name(position)}: {reason}")
            names = [images.name(position) for position in batch.positions]
            writer.write(answers(index, names, batch.features, top, **how))
    writer.close()


def answers(
    index: Index,
    queries: list[str],
    features: torch.Tensor,
    top: int,
    *,
    what: What = "images",
    engine: str = "exact",
) -> list[dict[str, Any]]:
    """Rows with the keys FIELDS: each query's pairs, best first.

    Args:
        index: what is searched.
        queries: Q names.
        features: (Q, D), normalised.
        top: rows of each.
        what: see `Index.search`.
        engine: see `Index.search`.
    """
    scores, places = index.search(features, top, what=what, engine=engine)
    rows = []
    for query, own, found in zip(queries, scores.tolist(), places.tolist(), strict=True):
        kept = [(score, row) for score, row in zip(own, found, strict=True) if row >= 0]
        for rank, (score, row) in enumerate(kept, 1):
            known = {"query": query, "rank": rank, "score": round(score, 6), **index.pair(row)}
            rows.append({name: known[name] for name in FIELDS})
    return rows


def check_model(index: Index, embedder: Embedder) -> None:
    """Refuse an index of another model: its features lie in another space.

    Raises:
        InputError: names both.
    """
    ours = embedder.probes()
    theirs = index.about["probes"]
    alike = [
        len(theirs.get(name, [])) == len(row)
        and float(torch.tensor(theirs[name]) @ torch.tensor(row)) > embedding.SAME
        for name, row in ours.items()
    ]
    if not all(alike):
        name = embedder.clip.description["name"]
        raise InputError(
            f"--index: {index.folder} was made with other weights ({index.about['model']}) than "
            f"those at work ({name}); embed the data again"
        )
