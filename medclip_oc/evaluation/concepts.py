"""Relevance by UMLS concepts: what a query finds besides its own partner. N pairs, b queries.

A candidate's relevance is the Jaccard overlap of its concepts with the query's: 1 for the same
concepts, 0 for none in common. Of equal scores each place holds the mean of the group (McSherry and
Najork 2008, "Computing information retrieval performance measures efficiently in the presence of
tied scores").
"""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..config.evaluation import MeasureConfig
from ..config.vocabulary import DIRECTIONS, MODALITIES
from ..runtime import distributed
from . import top_k
from .features import Embedded

NEAREST = 10  # how many nearest ids are kept per query, for reports


class Slice(NamedTuple):
    """Pairs with a concept, that get figures of their own."""

    name: str
    concept: str | None  # its CUI. None: pairs without a known modality
    pairs: np.ndarray  # (N,) bool


def concept_figures(
    embedded: Embedded, settings: MeasureConfig
) -> tuple[tuple[np.ndarray, np.ndarray], dict[str, Any]]:
    """Nearest pairs of each image and text, (N, NEAREST), and what they have in common with it.

    Each rank looks for its own queries; the targets, one side at a time, are brought together.
    Both are of the pairs as they are: by concepts, a copy of the right candidate is right anyway.
    """
    judge = None if embedded.concepts is None else Judge(embedded.concepts, settings)
    lists, record = [], dict[str, Any]()
    sides = (embedded.images, embedded.texts)
    for way, queries, own in zip(DIRECTIONS, sides, reversed(sides), strict=True):
        targets = distributed.all_gather_ragged(own)  # (N, D)
        index, scores = _of_queries(queries, targets, embedded.start, judge)
        lists.append(distributed.all_gather_ragged(index).cpu().numpy())
        if judge is not None:
            record[way] = judge.means(distributed.all_gather_ragged(scores).cpu().numpy())
    if judge is not None:
        record["queries"] = int((judge.sizes > 0).sum())
        record["queries_with_modality"] = int((judge.modalities > 0).sum())
        record["relevant"] = settings.relevant
    return (lists[0], lists[1]), record


def _of_queries(
    queries: Tensor, targets: Tensor, start: int, judge: "Judge | None"
) -> tuple[Tensor, Tensor]:
    """This rank's part: nearest pairs (n, NEAREST) int64 and scores (n, names) float64."""
    names, ks = ([], []) if judge is None else (judge.names, judge.ks)
    places, listed = (min(most, len(targets)) for most in (max([NEAREST, *ks]), NEAREST))
    index = torch.zeros(len(queries), listed, dtype=torch.int64, device=queries.device)
    scores = index.new_zeros(len(queries), len(names), dtype=torch.float64)
    for part in top_k.nearest(queries, targets, places):
        index[part.queries] = part.listed[:, :listed]
        if judge is not None:
            lists = part.queries + start, part.listed, part.share(places)
            values = judge.scores(*(each.cpu().numpy() for each in lists))
            scores[part.queries] = torch.from_numpy(values).to(scores)
    return index, scores


class Judge:
    """Judges what queries find by the concepts (N, K) int32 of all pairs; 0 is none."""

    def __init__(self, concepts: np.ndarray, settings: MeasureConfig) -> None:
        self.ks, self._relevant = settings.all_ks(), settings.relevant
        kinds = ("nDCG", "relevant_recall", "relevant_precision")
        self.names = [*(f"{kind}@{k}" for kind in kinds for k in self.ks), "modality_agreement@1"]
        self.modalities = modality_bits(concepts)  # (N,)
        rows, places = concepts.nonzero()
        concept_numbers, columns = np.unique(concepts[rows, places], return_inverse=True)
        links = torch.from_numpy(np.unique(np.stack([rows, columns]), axis=1))  # counted once each
        ones, shape = torch.ones(links.shape[1]), (len(concepts), len(concept_numbers))
        self._has = torch.sparse_coo_tensor(links, ones, shape, check_invariants=True).coalesce()
        self.sizes = np.bincount(links[0].numpy(), minlength=len(concepts))  # (N,) concepts of each

    def overlap(self, queries: np.ndarray) -> np.ndarray:
        """Jaccard overlap of b pairs with all: (b, N) float64; 0 where one has no concept."""
        own = self._has.index_select(0, torch.from_numpy(queries)).to_dense()  # (b, concepts)
        common = torch.sparse.mm(self._has, own.T).T.double().numpy()  # (b, N)
        union = self.sizes[queries, None] + self.sizes[None, :] - common
        return np.asarray(common / np.maximum(union, 1))

    def scores(self, queries: np.ndarray, index: np.ndarray, share: np.ndarray) -> np.ndarray:
        """The figures (b, names) of b queries, numbers of pairs; for the others see `graded`."""
        scores = graded(self.overlap(queries), index, share, self.ks, self._relevant)
        same = (self.modalities[index] & self.modalities[queries, None]) != 0  # (b, W)
        scores["modality_agreement@1"] = (same * share[:, :, 0]).sum(1)
        return np.stack([scores[name] for name in self.names], 1)

    def means(self, scores: np.ndarray) -> dict[str, float]:
        """Means of (N, names) over the queries that can be judged: with concepts, or a modality."""
        judged = scores[self.sizes > 0].mean(0)
        means = dict(zip(self.names, judged.tolist(), strict=True))
        del means["modality_agreement@1"]
        if (self.modalities > 0).any():
            means["modality_agreement@1"] = float(scores[self.modalities > 0, -1].mean())
        return means


def graded(
    overlap: np.ndarray, index: np.ndarray, share: np.ndarray, ks: Sequence[int], relevant: float
) -> dict[str, np.ndarray]:
    """What the first places hold, query by query.

    nDCG@K: sum of overlap / log2(place + 1) over the first K places, over that of the best order
    (Jarvelin and Kekalainen 2002). relevant_recall@K: share of the relevant candidates that stand
    in the first K places. relevant_precision@K: share of the first K places that hold one.

    From the overlap (b, N) of each query with every candidate; the W candidates listed, `index`
    (b, W) int64, and each one's `share` (b, W, k) of each place, k >= every K or all places (see
    `top_k.Nearest`). From an overlap of `relevant` on one is. Name -> (b,) float64.
    """
    gains = np.take_along_axis(overlap, index, 1)  # (b, W)
    places = share.shape[2]
    expected = np.einsum("bw,bwk->bk", gains, share)
    hits = np.einsum("bw,bwk->bk", (gains >= relevant).astype(float), share)
    best = -np.sort(-np.partition(overlap, -places, 1)[:, -places:], 1)  # (b, k)
    discount = 1 / np.log2(np.arange(places) + 2)
    total = (overlap >= relevant).sum(1)
    scores: dict[str, np.ndarray] = {}
    for k in ks:
        ideal = (best * discount)[:, :k].sum(1)
        scores[f"nDCG@{k}"] = (expected * discount)[:, :k].sum(1) / np.maximum(ideal, 1e-12)
        scores[f"relevant_recall@{k}"] = hits[:, :k].sum(1) / np.maximum(total, 1)
        scores[f"relevant_precision@{k}"] = hits[:, :k].sum(1) / min(k, places)
    return scores


def modality_bits(concepts: np.ndarray) -> np.ndarray:
    """The modalities of each pair, one bit each in the order of MODALITIES: (N,) int64."""
    bits = np.zeros(len(concepts), dtype=np.int64)
    for place, cui in enumerate(MODALITIES.values()):
        bits |= has(concepts, cui).astype(np.int64) << place
    return bits


def has(concepts: np.ndarray, cui: str) -> np.ndarray:
    """Which pairs have a concept: (N,) bool."""
    return np.asarray((concepts == int(cui[1:])).any(1))


def find_slices(
    concepts: np.ndarray | None, wanted: Sequence[str], packed: Mapping[str, str]
) -> tuple[list[Slice], str]:
    """A slice for each modality that occurs, and for each concept that is wanted; and a line on
    those that no pair has, or "".

    Concepts (N, K) are wanted by their CUI, or by a name; `packed` are names in lower case -> CUI.
    """
    if concepts is None:
        return [], ""
    numbers, counts = np.unique(concepts[concepts > 0], return_counts=True)
    present = [f"C{number:07}" for number in numbers[counts.argsort()[::-1]]]
    cui_of = {name.lower(): cui for name, cui in MODALITIES.items()}
    cui_of |= {**packed, **{cui.lower(): cui for cui in present}}
    named = {name: cui_of.get(name.lower()) for name in wanted}
    slices = [Slice(n, c, has(concepts, c)) for n, c in MODALITIES.items() if c in present]
    slices.sort(key=lambda each: -int(each.pairs.sum()))
    unknown = modality_bits(concepts) == 0
    if slices and unknown.any():
        slices.append(Slice("no known modality", None, unknown))
    slices += [Slice(n, c, has(concepts, c)) for n, c in named.items() if c in present]
    absent = [name for name, cui in named.items() if cui not in present]
    titles = {cui: name for name, cui in (*MODALITIES.items(), *packed.items())}
    most = [f"{titles[cui]} ({cui})" if cui in titles else cui for cui in present[:10]]
    hint = "" if packed else "; no names of concepts were packed, give CUIs"
    line = f"no pair has {', '.join(absent)}{hint}; the most frequent: {', '.join(most)}"
    return slices, textwrap.shorten(f"--slices: {line}", 300) if absent else ""
