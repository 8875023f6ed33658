"""Draw groups of pairs more evenly than they come; KEY.json says of which group or study a pair is.

N pairs, K groups.
"""

import re
from typing import Any

import numpy as np

from ..config.schema import DataConfig
from ..errors import InputError
from ..runtime import distributed
from ..runtime.distributed import World
from .sampler import Order
from .shards import ShardSet, Studies

_MOST_GROUPS, _SHOWN = 1000, 10  # a field with more values tells pairs apart, as an id does
_CONCEPT = re.compile("C[0-9]{7}")


def read_studies(shards: ShardSet, world: World, *, needed: bool = True) -> Studies:
    """Set `shards.studies`; sets joined by `::` share none. InputError: needed, but absent."""
    with distributed.errors_together():  # the main rank reads for all
        found: Any = _studies(shards, needed) if world.main else None
    studies: Studies = distributed.all_gather_objects(found)[0]
    shards.studies = studies
    return studies


def _studies(shards: ShardSet, needed: bool) -> Studies:
    found = (shards.facts(index).get("study") for index in range(len(shards)))
    names = ["" if name is None else str(name) for name in found]
    if needed and not any(names):
        hint = "make_shards --study-column adds it; unit image takes each pair alone"
        raise InputError(f"no pair has `study` in its KEY.json, as unit study needs ({hint})")
    sets = np.repeat(np.arange(len(shards.sizes)), shards.sizes).tolist()
    pairs = enumerate(zip(sets, names, strict=True))
    keys = [(place, name, 0 if name else index) for index, (place, name) in pairs]
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    return Studies([name for _, name, _ in numbers], np.array([numbers[key] for key in keys]))


def balanced_order(
    shards: ShardSet, settings: DataConfig, seed: int, world: World
) -> tuple[Order, str]:
    """The order of pairs by `data.balance`, and a line on the shares of the groups. InputError: as
    `group_by`, on every rank; or a group gets no pair of an epoch.
    """
    key, strength = str(settings.balance), settings.balance_strength
    with distributed.errors_together():  # the main rank reads for all
        found: Any = group_by(shards, key) if world.main else None
    names, codes = distributed.all_gather_objects(found)[0]
    sizes = np.bincount(codes)  # (K,)
    weights, members = (sizes ** (1 - strength)).tolist(), np.argsort(codes, kind="stable")
    how: dict[str, Any] = {"pairs_per_epoch": settings.samples_per_epoch, "members": members}
    order = Order(sizes.tolist(), seed=seed, weights=weights, **how)
    shares = np.asarray(order.shares_of_sets)  # (K,)
    if not shares.all():
        raise InputError(
            f"data.balance: {key}: {names[shares.argmin()]!r:.60} gets less than one of an epoch's "
            f"{order.pairs_per_epoch} pairs; raise data.samples_per_epoch or data.balance_strength"
        )
    before, after = (100 * counts / counts.sum() for counts in (sizes, shares))
    largest = np.argsort(-sizes, kind="stable")[:_SHOWN]
    told = [f"{names[n]:.40} {before[n]:.3g} % -> {after[n]:.3g} %" for n in largest]
    often = f"a pair comes up to {(shares / sizes).max():,.1f} times an epoch"
    title = f"data.balance: {key}, strength {strength:g}, {len(names):,} groups"
    return order, f"{title}, the largest: {', '.join(told)}; {often}"


def group_by(shards: ShardSet, key: str) -> tuple[list[str], np.ndarray]:
    """Read KEY.json of every pair: a group for each value of this field, or for the pairs with and
    without this concept. Returns the groups' names and each pair's group, (N,) int64. InputError:
    there is but one group, or too many.
    """
    codes, names, fields = np.empty(len(shards), np.int64), dict[str, int](), set[str]()
    for index in range(len(shards)):
        facts = shards.facts(index)
        fields |= facts.keys()
        value, cuis = facts.get(key), facts.get("concepts")
        if _CONCEPT.fullmatch(key):
            value = f"with {key}" if isinstance(cuis, list) and key in cuis else None
        name = f"without {key}" if value in (None, "") else str(value)
        codes[index] = names.setdefault(name, len(names))
        if len(names) > _MOST_GROUPS:
            raise InputError(f"data.balance: {key} has over {_MOST_GROUPS:,} values, as an id has")
    if len(names) == 1:
        there = f"KEY.json has {', '.join(sorted(fields)) or 'nothing':.90} (--keep-columns adds)"
        told = f"all {len(shards):,} pairs are one group, {next(iter(names))!r:.50}; {there}"
        raise InputError(f"data.balance: {told}; or a concept: C0040405")
    return list(names), codes
