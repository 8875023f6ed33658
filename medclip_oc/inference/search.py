"""Searching an index by text or image: what `zeroshot --index` does."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..config.inference import ZeroshotConfig
from ..errors import InputError
from ..reporting.output import RowWriter
from . import image_inputs
from .embedder import SAME, Embedder, open_embedder
from .feature_index import Index, Target
from .prompts import checked

FIELDS = ("query", "rank", "id", "score", "caption", "shard", "position")
_TOP = 10


def run(settings: ZeroshotConfig) -> None:
    """Answer every query, and print the rows; InputError: an index or query that can't be used."""
    index, images = Index(Path(settings.index or "")), None
    if settings.search_image:
        images = image_inputs.find(settings.search_image, None, "--search-image")
    texts = [checked(f"--search: number {n}", text) for n, text in enumerate(settings.search, 1)]
    embedder = open_embedder(settings)
    check_model(index, embedder)
    writer = RowWriter(sys.stdout, settings.format, FIELDS)

    def write(queries: Sequence[str], features: torch.Tensor) -> None:
        top = settings.top or _TOP
        rows = answers(index, queries, features, top, target=settings.find, engine=settings.engine)
        writer.write(rows)

    if texts:
        write(texts, embedder.texts(texts)[0])
    if images is not None:
        for positions, features, bad in embedder.images(images):
            for position, reason in bad.items():
                raise InputError(f"{images.name(position)}: {reason}")
            write([images.name(position) for position in positions], features)
    writer.close()


def answers(
    index: Index,
    queries: Sequence[str],
    features: torch.Tensor,
    top: int,
    *,
    target: Target = "images",
    engine: str = "exact",
) -> list[dict[str, Any]]:
    """Rows with the keys FIELDS: the `top` pairs of each of Q queries, best first.

    Features are (Q, D), normalised; for target and engine see `Index.search`.
    """
    scores, places = index.search(features, top, target=target, engine=engine)  # (Q, K)
    rows = []
    for query, values, places_of in zip(queries, scores.tolist(), places.tolist(), strict=True):
        for rank, (score, row) in enumerate(zip(values, places_of, strict=True), 1):
            pair = index.pair(row) if row >= 0 else {}  # faiss may find fewer; those come last
            if pair and (target == "images" or pair["caption"]):
                facts = {"query": query, "rank": rank, "score": round(score, 6), **pair}
                rows.append({name: facts[name] for name in FIELDS})
    if queries and not rows:
        raise InputError(f"--find captions: {index.folder} has none, only images; leave it out")
    return rows


def check_model(index: Index, embedder: Embedder) -> None:
    """Refuse an index of another model, whose features lie in another space: InputError."""
    for name, ours in embedder.probes().items():
        theirs = index.about["probes"].get(name, [])
        if len(theirs) != len(ours) or torch.tensor(theirs) @ torch.tensor(ours) <= SAME:
            made_by, now = index.about["model"], embedder.clip.description["name"]
            told = f"was made with other weights ({made_by}) than those of {now} now"
            raise InputError(f"--index: {index.folder} {told}; embed the data again")
