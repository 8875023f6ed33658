"""Retrieval measured on features that are shared out over ranks. N pairs, n images, m texts."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..config.evaluation import MeasureConfig
from ..config.vocabulary import DIRECTIONS, FEW_QUERIES
from ..data.dataset import Pairs
from ..errors import InputError
from ..models.clip import Clip
from ..runtime import distributed, npz
from ..runtime.atomic import atomic_file
from . import metrics
from .bootstrap import LEVEL, TAILS, bootstrap
from .concepts import Slice, concept_figures
from .features import Embedded, embed_pairs
from .metrics import KS, Pool, Ranks
from .ranks import Ties, retrieval_ranks


@dataclass(frozen=True)
class Measured:
    """Figures over N pairs, and what they were computed from; the same on every rank."""

    record: dict[str, Any]  # see `measure`
    pool: Pool
    ranks: Ranks  # of the pool's images (n,) and texts (m,)
    nearest: tuple[np.ndarray, np.ndarray] | None
    """(N, NEAREST) int64: pairs whose texts are nearest to each image, and whose images are nearest
    to each text; pairs as they are. None: not asked for."""
    embedded: Embedded

    def pair_ranks(self) -> Ranks:
        """Rank of each pair's image and of its text: (N,) float64 each."""
        return self.ranks[0][self.pool.image_of], self.ranks[1][self.pool.text_of]

    def save(self, file: Path, ids: list[str], about: dict[str, Any]) -> None:
        """Write FILE.json: `about` and the record; and FILE.npz: ranks and nearest ids; WorkError:
        one of them can't be written.
        """
        names = np.array(ids)
        arrays = dict(zip((f"{way}_rank" for way in DIRECTIONS), self.pair_ranks(), strict=True))
        for way, index in zip(DIRECTIONS, self.nearest or (), strict=False):
            arrays[f"{way}_nearest"] = names[index]
        npz.write(file.with_suffix(".npz"), ids=names, **arrays)
        with atomic_file(file) as partial:
            partial.write_text(json.dumps({**about, **self.record}, indent=2) + "\n", "utf-8")


def evaluate(clip: Clip, pairs: Pairs, world: distributed.World, **options: Any) -> Measured:
    """What training does between epochs: figures of the whole pool as it is; see `embed_pairs`."""
    embedded = embed_pairs(clip, pairs, world, **options)
    return measure(embedded, MeasureConfig(duplicates="keep", interval_draws=0), nearest=False)


def pool_ranks(embedded: Embedded, pool: Pool, ties: Ties = "expected") -> Ranks:
    """Image-to-text (n,) and text-to-image (m,) ranks of a pool, float64, on every rank;
    WorkError: features that are not finite.
    """
    images, first = _own(embedded.images, embedded.start, pool.images)
    texts, _ = _own(embedded.texts, embedded.start, pool.texts)
    mine = (pool.links[:, 0] >= first) & (pool.links[:, 0] < first + len(images))
    links = torch.from_numpy(pool.links[mine] - [first, 0]).to(images.device)  # (E, 2)
    of_images, of_texts = retrieval_ranks(images, texts, links, ties=ties)
    return of_images.cpu().numpy(), of_texts.cpu().numpy()


def _own(rows: Tensor, start: int, chosen: np.ndarray) -> tuple[Tensor, int]:
    """This rank's rows among those chosen (ascending positions), and the number of the first."""
    a, b = np.searchsorted(chosen, [start, start + len(rows)]).tolist()
    return rows[torch.from_numpy(chosen[a:b] - start).to(rows.device)], a


def measure(
    embedded: Embedded,
    settings: MeasureConfig,
    *,
    slices: list[Slice] | None = None,
    baseline: Embedded | None = None,
    baseline_name: str = "",
    nearest: bool = True,
) -> Measured:
    """All figures that the settings ask for; every rank takes part, and has them afterwards.

    `baseline` are features of another model for the same pairs. With `nearest` the nearest
    candidates are looked for, and measured by concepts; not where images have several captions, nor
    by study.

    The record is that of metrics.retrieval (the pairs as they are, or copies merged where only that
    is asked for), with `ties`, `duplicates` and, where they apply: `intervals`, `merged` (the same
    with copies as one), `pools` (a list), `concepts`, `slices` (a list), `baseline`; by study
    `unit` and how many `pairs` there are. InputError: merging without hashes; a baseline of other
    pairs. WorkError: features that are not finite.
    """
    if baseline is not None:
        check_ids(embedded.ids, baseline.ids, "--baseline")
    everyone = np.arange(len(embedded))
    only_merged = settings.duplicates == "merge"
    pool = _pool(embedded, everyone, merge=only_merged)
    ranks = pool_ranks(embedded, pool, settings.ties)
    record = _record(ranks, pool, settings)
    record |= {"ties": settings.ties, "duplicates": "merge" if only_merged else "keep"}
    if embedded.study_of is not None:
        record |= {"unit": "study", "pairs": len(embedded)}
    if settings.duplicates == "both" and embedded.hashed:
        copies = _pool(embedded, everyone, merge=True)
        merged_ranks = pool_ranks(embedded, copies, settings.ties)
        record["merged"] = _record(merged_ranks, copies, settings)
    if settings.pool_sizes():
        record["pools"] = [_small_pools(embedded, size, settings) for size in settings.pool_sizes()]
    lists = None
    if nearest and embedded.image_of is None and embedded.study_of is None:
        lists, by_concept = concept_figures(embedded, settings)
        if by_concept:
            record["concepts"] = by_concept
    if slices:
        record["slices"] = [_slice(chosen, ranks, pool, settings) for chosen in slices]
    if baseline is not None:
        theirs = pool_ranks(baseline, pool, settings.ties)
        others = _record(theirs, pool, settings)
        difference = _directions(ranks, settings, theirs)
        difference["mean_recall"] = record["mean_recall"] - others["mean_recall"]
        alone, studies = len(pool.images) == len(pool.links) == len(pool.texts), embedded.study_of
        if "intervals" in difference and (alone or studies is not None):
            # the parts of pairs or studies, plus 1: as ranks, whose mean is then bootstrapped
            owners = everyone if studies is None else studies
            own, its = (1 + _parts(each, pool, owners) for each in (ranks, theirs))
            ends = bootstrap(own, KS, settings.interval_draws, settings.seed, its)["mean_rank"]
            difference["intervals"]["mean_recall"] = ends
        record["baseline"] = {"name": baseline_name, **others, "difference": difference}
    return Measured(record, pool, ranks, lists, embedded)


def _parts(ranks: Ranks, pool: Pool, owners: np.ndarray) -> np.ndarray:
    """Values (pool,) of its pairs or studies, `owners` (N,), whose mean is the mean recall."""
    parts = []
    for values, chosen in zip(ranks, (pool.images, pool.texts), strict=True):
        hits = np.mean([values <= k for k in KS], 0)  # (n,)
        parts.append(np.bincount(owners[chosen], hits, pool.size) * pool.size / len(chosen))
    return np.mean(parts, 0)


def check_ids(ours: list[str], theirs: list[str], option: str) -> None:
    """Refuse to compare other pairs, or another order of them; InputError: names the first."""
    if len(ours) != len(theirs):
        raise InputError(f"{option}: {len(theirs)} pairs, but {len(ours)} are measured")
    for place, (own, their) in enumerate(zip(ours, theirs, strict=True)):
        if own != their:
            raise InputError(f"{option}: pair {place} is {their}, but {own} is measured there")


def _pool(embedded: Embedded, pairs: np.ndarray, *, merge: bool) -> Pool:
    images, texts, studies = embedded.image_hash, embedded.caption_hash, embedded.study_of
    if not merge:
        rows = np.arange(len(embedded))
        images = rows if embedded.image_of is None else embedded.image_of
        # a caption of all its images is one text, in another study another: (N, 2)
        texts = rows if studies is None or texts is None else np.stack([studies, texts], 1)
    if images is None or texts is None:
        reason = "the features come without image_hash and caption_hash"
        raise InputError(f"--duplicates merge: {reason}")
    pool = metrics.pool_of(pairs, images, texts)
    return pool if studies is None else metrics.study_pool(pool, studies[pairs])


def _record(ranks: Ranks, pool: Pool, settings: MeasureConfig) -> dict[str, Any]:
    """`metrics.retrieval`, with intervals."""
    return metrics.retrieval(ranks, pool, settings.all_ks()) | _directions(ranks, settings)


def _directions(
    ranks: Ranks, settings: MeasureConfig, baseline: Ranks | None = None
) -> dict[str, Any]:
    """Scores of both directions, with intervals; less the baseline's, query by query."""
    ks, draws, seed = settings.all_ks(), settings.interval_draws, settings.seed
    if baseline is not None and min(map(len, ranks)) < FEW_QUERIES:
        draws = 0  # resampled, so few pairs would show what is mostly luck
    scores: dict[str, Any] = {}
    intervals: dict[str, Any] = {"level": LEVEL, "draws": draws, "seed": seed}
    for side, way in enumerate(DIRECTIONS):
        theirs = None if baseline is None else baseline[side]
        less = {} if theirs is None else metrics.summary(theirs, ks)
        own = metrics.summary(ranks[side], ks)
        scores[way] = {name: value - less.get(name, 0) for name, value in own.items()}
        if draws:
            intervals[way] = bootstrap(ranks[side], ks, draws, seed, theirs)
    return scores | ({"intervals": intervals} if draws else {})


def _slice(chosen: Slice, ranks: Ranks, pool: Pool, settings: MeasureConfig) -> dict[str, Any]:
    """Figures of the queries of a slice; the candidates are those of the whole pool.

    An image or a text is in it if one of the pairs that it stands for is.
    """
    images = ranks[0][np.unique(pool.image_of[chosen.pairs])]
    texts = ranks[1][np.unique(pool.text_of[chosen.pairs])]
    return {
        "name": chosen.name,
        "concept": chosen.concept,
        "images": len(images),
        "texts": len(texts),
        **_directions((images, texts), settings),
    }


def _small_pools(embedded: Embedded, size: int, settings: MeasureConfig) -> dict[str, Any]:
    """Figures averaged over random pools, and where the middle 95 % of these lie."""
    records, owners = [], embedded.image_of if embedded.study_of is None else embedded.study_of
    owners = np.arange(len(embedded)) if owners is None else owners
    for number in range(settings.pool_draws):
        chosen = metrics.draw_pool(settings.seed, size, int(owners.max()) + 1, number)
        pairs = np.flatnonzero(np.isin(owners, chosen))
        pool = _pool(embedded, pairs, merge=settings.duplicates == "merge")
        ranks = pool_ranks(embedded, pool, settings.ties)
        records.append(metrics.retrieval(ranks, pool, settings.all_ks()))
    means: dict[str, Any] = {}
    spread: dict[str, Any] = {"level": LEVEL}
    for part in ("chance", *DIRECTIONS):
        drawn = {name: [record[part][name] for record in records] for name in records[0][part]}
        means[part] = {name: float(np.mean(values)) for name, values in drawn.items()}
        if part != "chance":
            spread[part] = {n: np.quantile(values, TAILS).tolist() for n, values in drawn.items()}
    return {
        "pool": size,
        "draws": settings.pool_draws,
        "seed": settings.seed,
        **means,
        "mean_recall": float(np.mean([record["mean_recall"] for record in records])),
        "between_draws": spread,
    }
