"""Retrieval measured on features that are shared out over ranks. N pairs, D embedding size.

Ranks are counted on all ranks together: each holds the features of its pairs, meets the texts of
every rank in turn, and all counts are added up. The figures are the same for any number of ranks.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..config.evaluation import MeasureConfig
from ..config.vocabulary import DIRECTIONS
from ..data.dataset import Pairs
from ..errors import InputError, WorkError
from ..models.clip import Clip
from ..runtime import distributed
from ..runtime.precision import check_finite
from . import bootstrap, candidate_pools, metrics
from . import ranks as counting
from .candidate_pools import Pool
from .concepts import Slice, concept_figures
from .features import Embedded, embed_pairs


@dataclass(frozen=True)
class Measured:
    """Figures over N pairs, and what they were computed from; the same on every rank."""

    record: dict[str, Any]
    """See `measure`."""
    pool: Pool
    ranks: tuple[np.ndarray, np.ndarray]
    """Of the pool's images (n,) and texts (m,)."""
    nearest: tuple[np.ndarray, np.ndarray] | None
    """(N, NEAREST) int64: pairs whose texts are nearest to each image, and whose images are nearest
    to each text; pairs as they are. None: not asked for."""

    def pair_ranks(self) -> tuple[np.ndarray, np.ndarray]:
        """Rank of each pair's image and of its text: (N,) float64 each."""
        return self.ranks[0][self.pool.image_of], self.ranks[1][self.pool.text_of]


# -------------------------------------------------------------------------------------------- ranks


def ranks(
    embedded: Embedded, pool: Pool, ties: metrics.Ties = "expected"
) -> tuple[np.ndarray, np.ndarray]:
    """Image-to-text (n,) and text-to-image (m,) ranks of a pool, float64, on every rank.

    Raises:
        WorkError: features that are not finite.
    """
    with counting.threads():
        return _ranks(embedded, pool, ties)


def _ranks(embedded: Embedded, pool: Pool, ties: metrics.Ties) -> tuple[np.ndarray, np.ndarray]:
    starts = _starts(embedded)
    images, first_image = _own(embedded.images, embedded.start, pool.images)
    texts, _ = _own(embedded.texts, embedded.start, pool.texts)
    device = images.device
    owner = pool.links[:, 0]
    mine = (owner >= first_image) & (owner < first_image + len(images))
    links = torch.from_numpy(pool.links[mine] - [first_image, 0]).to(device)
    text_ends = np.searchsorted(pool.texts, starts[1:]).tolist()
    blocks = list(zip([0, *text_ends[:-1]], text_ends, strict=True))

    scores = torch.empty(len(links), dtype=torch.float64, device=device)
    for (c, d), block in zip(blocks, distributed.blocks(texts), strict=True):
        here = (links[:, 1] >= c) & (links[:, 1] < d)
        scores[here] = counting.pair_scores(images, block, links[here] - links.new_tensor([0, c]))
    check_finite(images, "image")
    check_finite(texts, "text")
    image_best = counting.best_scores(scores, links[:, 0], len(images))
    text_best = counting.best_scores(scores, links[:, 1], len(pool.texts))
    distributed.all_reduce_max_(text_best)
    image_copies = counting.tied_with_best(scores, links[:, 0], image_best)
    text_copies = counting.tied_with_best(scores, links[:, 1], text_best)
    distributed.all_reduce_sum_(text_copies)

    image_counts = torch.zeros(2, len(images), dtype=torch.int64, device=device)
    text_counts = torch.zeros(2, len(pool.texts), dtype=torch.int64, device=device)
    for (c, d), block in zip(blocks, distributed.blocks(texts), strict=True):
        here = links[(links[:, 1] >= c) & (links[:, 1] < d)] - links.new_tensor([0, c])
        of_images, of_texts = counting.count(images, block, image_best, text_best[c:d], here)
        image_counts += of_images
        text_counts[:, c:d] += of_texts
    distributed.all_reduce_sum_(text_counts)
    image_ranks = distributed.all_gather_ragged(
        metrics.rank(image_counts[0], image_counts[1], image_copies, ties)
    )
    text_ranks = metrics.rank(text_counts[0], text_counts[1], text_copies, ties)
    return image_ranks.cpu().numpy(), text_ranks.cpu().numpy()


def _starts(embedded: Embedded) -> np.ndarray:
    """Position of each rank's first pair, and N: (ranks + 1,)."""
    own = torch.tensor([embedded.start], device=embedded.images.device)
    return np.append(distributed.all_gather(own).cpu().numpy(), len(embedded))


def _own(rows: Tensor, start: int, chosen: np.ndarray) -> tuple[Tensor, int]:
    """This rank's rows among those chosen (ascending positions), and the number of the first."""
    a, b = np.searchsorted(chosen, [start, start + len(rows)]).tolist()
    if b - a == len(rows):
        return rows, a
    return rows[torch.from_numpy(chosen[a:b] - start).to(rows.device)], a


# ------------------------------------------------------------------------------------------ figures


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

    Args:
        embedded: features of N pairs.
        settings: what to measure.
        slices: see concepts.find_slices.
        baseline: features of another model for the same pairs.
        baseline_name: what the record calls it.
        nearest: also look for the nearest candidates, and measure them by concepts.

    Returns:
        A record of metrics.retrieval (the pairs as they are, or copies merged where only that is
        asked for), with `ties`, `duplicates` and, where they apply: `intervals`, `merged` (the same
        with copies as one), `pools` (a list), `concepts`, `slices` (a list), `baseline`.

    Raises:
        InputError: a pool larger than the set; merging without hashes; a baseline of other pairs.
        WorkError: features that are not finite.
    """
    everyone = np.arange(len(embedded))
    check(embedded, settings, baseline)
    only_merged = settings.duplicates == "merge"
    pool = _pool(embedded, everyone, merge=only_merged)
    found = ranks(embedded, pool, settings.ties)
    record = _record(found, pool, settings)
    record |= {"ties": settings.ties, "duplicates": "merge" if only_merged else "keep"}
    if settings.duplicates == "both" and embedded.hashed:
        copies = _pool(embedded, everyone, merge=True)
        record["merged"] = _record(ranks(embedded, copies, settings.ties), copies, settings)
    if settings.pool_sizes():
        record["pools"] = [_small_pools(embedded, size, settings) for size in settings.pool_sizes()]
    lists = None
    if nearest:
        lists, by_concept = concept_figures(embedded, settings)
        if by_concept:
            record["concepts"] = by_concept
    if slices:
        record["slices"] = [_slice(one, found, pool, settings) for one in slices]
    if baseline is not None:
        theirs = ranks(baseline, pool, settings.ties)
        compared = _compared(found, theirs, pool, settings)
        record["baseline"] = {"name": baseline_name, **compared}
    return Measured(record, pool, found, lists)


def check(embedded: Embedded, settings: MeasureConfig, baseline: Embedded | None) -> None:
    """Refuse what can't be measured.

    Raises:
        InputError: see `measure`.
    """
    check_pools(settings, len(embedded))
    if settings.duplicates == "merge" and not embedded.hashed:
        raise InputError(
            "--duplicates merge: the features come without image_hash and caption_hash"
        )
    if baseline is not None:
        check_ids(embedded.ids, baseline.ids, "--baseline")


def check_pools(settings: MeasureConfig, pairs: int) -> None:
    """Refuse pools that can't be drawn.

    Raises:
        InputError: one is larger than the set.
    """
    sizes = settings.pool_sizes()
    if sizes and sizes[-1] > pairs:
        raise InputError(f"--pools: {sizes[-1]} pairs, but the set holds only {pairs}")


def check_ids(ours: list[str], theirs: list[str], what: str) -> None:
    """Refuse figures that would compare different pairs.

    Raises:
        InputError: other ids, or another order of them; names the first.
    """
    if len(ours) != len(theirs):
        raise InputError(f"{what}: {len(theirs)} pairs, but {len(ours)} are measured")
    for place, (own, other) in enumerate(zip(ours, theirs, strict=True)):
        if own != other:
            raise InputError(f"{what}: pair {place} is {other}, but {own} is measured there")


def _pool(embedded: Embedded, pairs: np.ndarray, *, merge: bool) -> Pool:
    if not merge:
        return candidate_pools.plain(pairs)
    assert embedded.image_hash is not None
    assert embedded.caption_hash is not None
    return candidate_pools.merged(pairs, embedded.image_hash, embedded.caption_hash)


def _record(
    found: tuple[np.ndarray, np.ndarray], pool: Pool, settings: MeasureConfig
) -> dict[str, Any]:
    record = metrics.retrieval(*found, settings.all_ks(), pool)
    if settings.interval_draws:
        record["intervals"] = _about(settings) | _intervals(found, settings)
    return record


def _about(settings: MeasureConfig) -> dict[str, Any]:
    """How intervals were made."""
    return {"level": bootstrap.LEVEL, "draws": settings.interval_draws, "seed": settings.seed}


def _intervals(found: tuple[np.ndarray, np.ndarray], settings: MeasureConfig) -> dict[str, Any]:
    return {
        way: bootstrap.bootstrap(values, _scores(settings), settings.interval_draws, settings.seed)
        for way, values in zip(DIRECTIONS, found, strict=True)
    }


def _scores(settings: MeasureConfig) -> bootstrap.Scores:
    ks = settings.all_ks()
    return lambda values: metrics.scores_of(values, ks)


def _small_pools(embedded: Embedded, size: int, settings: MeasureConfig) -> dict[str, Any]:
    """Figures averaged over random pools, and where the middle 95 % of these lie."""
    merge = settings.duplicates == "merge"
    records = []
    for number in range(settings.pool_draws):
        pairs = candidate_pools.draw(settings.seed, size, len(embedded), number)
        pool = _pool(embedded, pairs, merge=merge)
        found = ranks(embedded, pool, settings.ties)
        records.append(metrics.retrieval(*found, settings.all_ks(), pool))
    tail = (1 - bootstrap.LEVEL) / 2
    averaged: dict[str, Any] = {
        "pool": size,
        "draws": settings.pool_draws,
        "seed": settings.seed,
        "chance": _means([record["chance"] for record in records]),
    }
    spread = {}
    for way in DIRECTIONS:
        drawn = [record[way] for record in records]
        averaged[way] = _means(drawn)
        spread[way] = {
            name: np.quantile([one[name] for one in drawn], [tail, 1 - tail]).tolist()
            for name in drawn[0]
        }
    averaged["mean_recall"] = float(np.mean([record["mean_recall"] for record in records]))
    averaged["between_draws"] = {"level": bootstrap.LEVEL, **spread}
    return averaged


def _means(rows: list[dict[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def _slice(
    one: Slice, found: tuple[np.ndarray, np.ndarray], pool: Pool, settings: MeasureConfig
) -> dict[str, Any]:
    """Figures of the queries of a slice; the candidates are those of the whole pool.

    An image or a text is in it if one of the pairs that it stands for is.
    """
    owners = (pool.image_of[one.pairs], pool.text_of[one.pairs])
    chosen = tuple(values[np.unique(own)] for values, own in zip(found, owners, strict=True))
    record: dict[str, Any] = {
        "name": one.name,
        "concept": one.concept,
        "images": len(chosen[0]),
        "texts": len(chosen[1]),
    }
    for way, values in zip(DIRECTIONS, chosen, strict=True):
        record[way] = metrics.summary(values, settings.all_ks())
    if settings.interval_draws:
        record["intervals"] = _about(settings) | _intervals((chosen[0], chosen[1]), settings)
    return record


def _compared(
    ours: tuple[np.ndarray, np.ndarray],
    theirs: tuple[np.ndarray, np.ndarray],
    pool: Pool,
    settings: MeasureConfig,
) -> dict[str, Any]:
    """A baseline's figures, and ours less its, query by query."""
    record = _record(theirs, pool, settings)
    difference: dict[str, Any] = {}
    for way, own, other in zip(DIRECTIONS, ours, theirs, strict=True):
        first, second = (metrics.summary(values, settings.all_ks()) for values in (own, other))
        difference[way] = {name: first[name] - second[name] for name in first}
    if settings.interval_draws:
        difference["intervals"] = _about(settings)
        for way, own, other in zip(DIRECTIONS, ours, theirs, strict=True):
            difference["intervals"][way] = bootstrap.paired(
                own, other, _scores(settings), settings.interval_draws, settings.seed
            )
    return record | {"difference": difference}


def evaluate(
    clip: Clip,
    pairs: Pairs,
    world: distributed.World,
    *,
    batch_size: int,
    workers: int,
    precision: str,
    stop: Callable[[], bool] = lambda: False,
) -> Measured:
    """Embed every pair once and rank each image's caption, and each caption's image, among all.

    What training does between epochs: the figures of the whole pool as it is, and nothing beside.

    Raises:
        Stopped: `stop` said so, on any rank.
        InputError, WorkError: a pair can't be read.
    """
    how: dict[str, Any] = {"batch_size": batch_size, "workers": workers, "precision": precision}
    embedded = embed_pairs(clip, pairs, world, stop=stop, **how)
    settings = MeasureConfig(duplicates="keep", interval_draws=0)
    return measure(embedded, settings, nearest=False)


def save(measured: Measured, ids: list[str], file: Path, about: dict[str, Any]) -> None:
    """Write FILE (.json: `about` and the record) and beside it the ranks and nearest ids (.npz)."""
    names = np.array(ids)
    ranks = measured.pair_ranks()
    arrays: dict[str, Any] = {
        "ids": names,
        "image_to_text_rank": ranks[0],
        "text_to_image_rank": ranks[1],
    }
    if measured.nearest is not None:
        arrays["image_to_text_nearest"] = names[measured.nearest[0]]
        arrays["text_to_image_nearest"] = names[measured.nearest[1]]
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({**about, **measured.record}, indent=2) + "\n")
        np.savez(file.with_suffix(".npz"), **arrays)
    except OSError as error:
        raise WorkError(f"{file}: can't be written ({error.strerror})") from error
