"""What images and texts find besides their own partners, and pairs chosen by concept. N pairs."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..config.evaluation import MeasureConfig
from ..config.vocabulary import DIRECTIONS, MODALITIES
from ..errors import InputError
from ..runtime import distributed
from . import relevance, top_k
from .features import Embedded

NEAREST = 10
"""How many nearest ids are kept per query, for reports."""


@dataclass(frozen=True)
class Slice:
    """Pairs with a concept, that get figures of their own."""

    name: str
    concept: str | None
    """Its CUI. None: pairs without a known modality."""
    pairs: np.ndarray
    """(N,) bool."""


def concept_figures(
    embedded: Embedded, settings: MeasureConfig
) -> tuple[tuple[np.ndarray, np.ndarray], dict[str, Any]]:
    """Nearest pairs of each image and text, and what they have in common with it.

    Each rank looks for its own queries; the targets, one side at a time, are brought together.

    Both are of the pairs as they are: by concepts, a copy of the right candidate is right anyway.
    """
    concepts = embedded.concepts
    overlap = None if concepts is None else relevance.Overlap(concepts)
    bits = None if concepts is None else relevance.modalities(concepts)
    ks = settings.all_ks()
    lists, record = [], dict[str, Any]()
    sides = (embedded.images, embedded.texts)
    for way, queries, own in zip(DIRECTIONS, sides, reversed(sides), strict=True):
        targets = distributed.all_gather_ragged(own)
        index, scores = _of_queries(
            queries, targets, embedded.start, ks if overlap else [], settings, overlap, bits
        )
        lists.append(distributed.all_gather_ragged(index).cpu().numpy())
        if overlap is not None and bits is not None:
            names = _names(ks)
            values = distributed.all_gather_ragged(scores).cpu().numpy()
            record[way] = _concept_means(names, values, overlap.sizes, bits)
    if overlap is not None and bits is not None:
        record |= {
            "queries": int((overlap.sizes > 0).sum()),
            "queries_with_modality": int((bits > 0).sum()),
            "relevant": settings.relevant,
        }
    return (lists[0], lists[1]), record


def _names(ks: list[int]) -> list[str]:
    kinds = ("nDCG", "relevant_recall", "relevant_precision")
    return [*(f"{kind}@{k}" for kind in kinds for k in ks), "modality_agreement@1"]


def _concept_means(
    names: list[str], values: np.ndarray, sizes: np.ndarray, bits: np.ndarray
) -> dict[str, float]:
    """Means over the queries that can be judged: those with concepts, or with a modality."""
    judged = values[sizes > 0].mean(0) if (sizes > 0).any() else values[:0].sum(0)
    means = dict(zip(names, judged.tolist(), strict=True))
    if not (bits > 0).any():
        del means["modality_agreement@1"]
        return means
    return means | {"modality_agreement@1": float(values[bits > 0, -1].mean())}


def _of_queries(
    queries: Tensor,
    targets: Tensor,
    start: int,
    ks: list[int],
    settings: MeasureConfig,
    overlap: relevance.Overlap | None,
    bits: np.ndarray | None,
) -> tuple[Tensor, Tensor]:
    """This rank's part: nearest pairs (n, NEAREST) int64 and scores (n, names) float64."""
    places = min(max([NEAREST, *ks]), len(targets))
    device = queries.device
    index = torch.zeros(len(queries), min(NEAREST, len(targets)), dtype=torch.int64, device=device)
    scores = torch.zeros(len(queries), len(_names(ks)), dtype=torch.float64, device=device)
    for part in top_k.nearest(queries, targets, places):
        index[part.queries] = part.index[:, : index.shape[1]]
        if overlap is None or bits is None:
            continue
        listed, share = part.index.cpu().numpy(), part.share(places).cpu().numpy()
        pairs = part.queries.cpu().numpy() + start
        graded = relevance.graded(overlap.of(pairs), listed, share, ks, settings.relevant)
        agreed = relevance.agreement(bits, pairs, listed, share)
        values = np.stack([*graded.values(), agreed], 1)
        scores[part.queries] = torch.from_numpy(values).to(device)
    return index, scores


def find_slices(
    embedded: Embedded, names: list[str], known: dict[str, str] | None = None
) -> list[Slice]:
    """A slice for each modality that occurs, and for each concept named.

    Args:
        embedded: whose concepts are looked at.
        names: CUIs, or names of concepts in any case.
        known: name in lower case -> CUI.

    Raises:
        InputError: concepts are named, but the pairs have none, or not these.
    """
    concepts = embedded.concepts
    if concepts is None:
        if names:
            raise InputError(f"--slices: {names[0]}: the pairs have no concepts (CUIs)")
        return []
    bits = relevance.modalities(concepts)
    slices = [
        Slice(name, cui, (bits >> place & 1).astype(bool))
        for place, (name, cui) in enumerate(MODALITIES.items())
    ]
    slices = [one for one in slices if one.pairs.any()]
    slices.sort(key=lambda one: -int(one.pairs.sum()))
    if slices and not bits.all():
        slices.append(Slice("no known modality", None, bits == 0))
    present = {relevance.cui(number) for number in np.unique(concepts).tolist() if number}
    for name in names:
        cui = resolve(name, known or {}, present)
        slices.append(Slice(name, cui, relevance.has(concepts, relevance.number(cui) or -1)))
    return slices


def resolve(name: str, known: dict[str, str], present: set[str]) -> str:
    """The CUI that a name stands for.

    Args:
        name: a CUI, or a concept's name in any case.
        known: name in lower case -> CUI; the modalities' names are known anyway.
        present: CUIs that pairs have.

    Raises:
        InputError: no pair has it.
    """
    named = {title.lower(): cui for title, cui in MODALITIES.items()} | known
    cui = named.get(name.lower(), name.upper())
    if not present:
        raise InputError(f"--slices: {name}: the pairs have no concepts (CUIs)")
    if cui not in present:
        raise InputError(f"--slices: {name}: no pair has a concept of this name or CUI")
    return cui
