"""Features of many images and texts. N images or texts, D embedding size."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..data.dataset import Pairs, load_batches
from ..errors import InputError, Stopped, WorkError
from ..models.clip import Clip
from ..runtime import distributed
from ..runtime.precision import autocast
from . import feature_file


@dataclass
class Embedded:
    """What a model makes of N pairs: this rank's share of the features, and facts on all pairs.

    Attributes:
        images: (n, D) float32, normalised; of the pairs from `start` on.
        texts: (n, D) float32, normalised.
        start: position of this rank's first pair.
        ids: N keys, in the order of the set.
        image_hash: (N,) int64. None: not known.
        caption_hash: (N,) int64. None: not known.
        concepts: (N, K) int32 UMLS numbers, 0 is none. None: nobody has any.
    """

    images: Tensor
    texts: Tensor
    start: int
    ids: list[str]
    image_hash: np.ndarray | None
    caption_hash: np.ndarray | None
    concepts: np.ndarray | None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def hashed(self) -> bool:
        """Whether copies of images and of captions are known."""
        return self.image_hash is not None and self.caption_hash is not None


def share(size: int, world: distributed.World) -> tuple[int, int]:
    """(start, stop) of this rank's pairs: equal contiguous parts, no padding."""
    start, stop = (size * place // world.size for place in (world.rank, world.rank + 1))
    return start, stop


@torch.inference_mode()
def embed_pairs(
    clip: Clip,
    pairs: Pairs,
    world: distributed.World,
    *,
    batch_size: int,
    workers: int,
    precision: str,
    stop: Callable[[], bool] = lambda: False,
) -> Embedded:
    """Embed every pair once; each rank keeps the features of its share.

    Args:
        clip: the model.
        pairs: N of them.
        world: the ranks.
        batch_size: pairs at once.
        workers: loader processes per rank.
        precision: see `TrainConfig`.
        stop: asked after each batch whether to leave it at that.

    Raises:
        Stopped: `stop` said so, on whichever rank; raised on all.
        InputError, WorkError: a pair can't be read, on whichever rank; raised on all.
    """
    clip.towers.eval()
    start, end = share(len(pairs), world)
    places = [(0, index) for index in range(start, end)]
    batches = [places[i : i + batch_size] for i in range(0, len(places), batch_size)]
    rows: dict[str, list[Tensor]] = {name: [] for name in ("images", "texts", *_FACTS)}
    failure: InputError | WorkError | Stopped | None = None
    bar = tqdm(total=len(pairs), unit="pair", desc="embed", leave=False, disable=_silent(world))
    pin = world.device.type == "cuda"
    with bar:
        try:
            for batch, *_ in load_batches(pairs, batches, workers=workers, pin=pin):
                moved = [batch[name].to(world.device) for name in ("images", "tokens")]
                with autocast(world.device, precision):
                    image_features, text_features, _ = clip.towers(*moved)
                rows["images"].append(image_features)
                rows["texts"].append(text_features)
                for name in _FACTS:
                    rows[name].append(batch[name])
                bar.update(len(image_features) * world.size)
                if stop():
                    raise Stopped("stopped by a signal")
        except (InputError, WorkError, Stopped) as error:
            failure = error  # the others wait at the next line for this rank
    distributed.raise_together(failure, world.device)
    width = clip.description["definition"]["embed_dim"]
    empty = torch.empty(0, width, device=world.device)  # a rank may have no pair
    concepts = _gather_concepts(rows["concepts"], world)
    return Embedded(
        images=torch.cat([empty, *rows["images"]]),
        texts=torch.cat([empty, *rows["texts"]]),
        start=start,
        ids=pairs.shards.ids(),
        image_hash=_gather_facts(rows["image_hash"], world).numpy(),
        caption_hash=_gather_facts(rows["caption_hash"], world).numpy(),
        concepts=concepts.numpy() if concepts.shape[1] else None,
    )


def from_file(path: str, world: distributed.World) -> Embedded:
    """Features that a file holds (see feature_file); each rank keeps its share.

    Raises:
        InputError: the file is missing, damaged or can't be ranked.
    """
    found = feature_file.load(Path(path))
    start, stop = share(len(found.ids), world)
    images, texts = (
        torch.from_numpy(rows[start:stop].copy()).to(world.device)
        for rows in (found.images, found.texts)
    )
    facts = (found.image_hash, found.caption_hash, found.concepts)
    return Embedded(images, texts, start, found.ids, *facts)


_FACTS = ("image_hash", "caption_hash", "concepts")


def _gather_facts(parts: list[Tensor], world: distributed.World) -> Tensor:
    """(N,) int64 on the CPU, from each rank's batches."""
    own = torch.cat([torch.empty(0, dtype=torch.int64), *parts])
    return distributed.all_gather_ragged(own.to(world.device)).cpu()


def _gather_concepts(parts: list[Tensor], world: distributed.World) -> Tensor:
    """(N, K) int32 on the CPU, padded with 0 to the most that a pair has."""
    own = max([part.shape[1] for part in parts], default=0)
    most = int(distributed.all_reduce_max_(torch.tensor([own], device=world.device)))
    padded = [torch.nn.functional.pad(part, (0, most - part.shape[1])) for part in parts]
    rows = torch.cat([torch.empty(0, most, dtype=torch.int32), *padded])
    return distributed.all_gather_ragged(rows.to(world.device)).cpu()


def _silent(world: distributed.World) -> bool | None:
    """No bar but on the main rank's terminal (None lets tqdm look for one)."""
    return None if world.main else True
