"""Features of N pairs, made by a model or read from a file. D embedding size.

A file (.npz) holds arrays, a row for each pair:

    ids             keys of the pairs, each once
    image_features  (N, D) float32
    text_features   (N, D) float32
    image_hash      (N,) int64, equal for copies of an image; may be absent
    caption_hash    (N,) int64, equal for copies of a caption; may be absent
    concepts        (N, K) int32 UMLS numbers (C0040405 is 40405), padded with 0; may be absent
    weights         (N,) float64, which model made them: see `averaging.size`; may be absent

A file that another program made does, if it has the two matrices, under these names or others (see
`_ALIASES`). Pairs without ids are numbered.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..data.dataset import Pairs, load_batches
from ..errors import InputError, Stopped
from ..models import averaging
from ..models.clip import SORTED, Clip
from ..runtime import distributed, npz
from ..runtime.devices import autocast
from ..runtime.progress import Progress

_FACTS = ("image_hash", "caption_hash", "concepts")
_ARRAYS = {  # dimensions, and kinds of numbers
    "ids": (1, "Uiu"),
    "image_features": (2, "f"),
    "text_features": (2, "f"),
    "image_hash": (1, "iu"),
    "caption_hash": (1, "iu"),
    "concepts": (2, "iu"),
    "weights": (1, "f"),
}
_ALIASES = {
    f"{side}_features": (f"{side}_embeds", f"{side}_embeddings", f"{side}s", side)
    for side in ("image", "text")
}
_UNIT = 1e-5  # rows whose length is nearer to 1 than this are left as they are


@dataclass
class Embedded:
    """What a model makes of N pairs: this rank's share of the features, and facts on all pairs."""

    images: Tensor  # (n, D) float32, normalised; of the pairs from `start` on
    texts: Tensor  # (n, D) float32, normalised
    start: int  # position of this rank's first pair
    ids: list[str]  # N keys, in the order of the set
    image_hash: np.ndarray | None  # (N,) int64. None: not known
    caption_hash: np.ndarray | None  # (N,) int64. None: not known
    concepts: np.ndarray | None  # (N, K) int32 UMLS numbers, 0 is none. None: nobody has any
    image_of: np.ndarray | None = None
    """(N,) int64, ascending: number of each pair's image, where several captions of an image are
    pairs of their own. None: no image has several."""
    study_of: np.ndarray | None = None
    """(N,) int64, 0 to S - 1: number of each pair's study. None: each pair stands alone."""

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def hashed(self) -> bool:
        """Whether copies of images and of captions are known."""
        return self.image_hash is not None and self.caption_hash is not None


def share(size: int, world: distributed.World) -> tuple[int, int]:
    """(start, stop) of this rank's pairs: equal contiguous parts, no padding."""
    return size * world.rank // world.size, size * (world.rank + 1) // world.size


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
    """Embed every pair once, or each caption of it; each rank keeps the features of its share.

    `stop` is asked after each batch whether to stop there (Stopped). InputError, WorkError: a pair
    can't be read. Each is raised on all ranks.
    """

    def halt_if_asked() -> None:
        if stop():
            raise Stopped("stopped by a signal")

    clip.towers.eval()
    start, end = share(len(pairs), world)
    places = [(0, index) for index in range(start, end)]
    batches = [places[i : i + batch_size] for i in range(0, len(places), batch_size)]
    # a rank may have no pair
    empty = torch.empty(0, clip.description["definition"]["embed_dim"], device=world.device)
    images, texts, waiting = [empty], [empty], list[Tensor]()
    hashes, concepts = list[Tensor](), list[Tensor]()
    pin, mixed = world.device.type == "cuda", autocast(world.device, precision)
    with (
        distributed.errors_together(),
        Progress(len(pairs), "pairs", "embed", shown=world.main) as progress,
    ):
        loaded = load_batches(pairs, batches, workers=workers, pin=pin, stop=stop)
        for left, (batch, *_) in zip(reversed(range(len(batches))), loaded, strict=True):
            with mixed():
                pixels = batch["images"].to(world.device)
                image_features = clip.towers.embed_images(pixels)  # (B, D)
            row = torch.arange(len(image_features)).repeat_interleave(batch["captions"])
            images.append(image_features[row.to(world.device)])
            waiting.append(batch["tokens"])
            facts = batch["image_hash"][row], batch["caption_hash"], batch["index"][row]
            hashes.append(torch.stack(facts, 1))  # (B, 3)
            concepts.append(batch["concepts"][row])  # (B, K)
            progress.update(len(image_features) * world.size)
            halt_if_asked()
            if not left or sum(map(len, waiting)) >= SORTED:
                order, chunks = clip.towers.by_length(torch.cat(waiting), batch_size)
                waiting, parts = [], list[Tensor]()
                for chunk in chunks:
                    with mixed():
                        parts.append(clip.towers.embed_texts(chunk.to(world.device)))  # (C, D)
                    halt_if_asked()
                texts.append(torch.cat(parts)[order.argsort()])
    image_hash, caption_hash, image_of = _gather(hashes, world.device).T  # (N,) each
    numbers, ids = _gather(concepts, world.device).astype(np.int32), pairs.shards.ids()  # (N, K)
    known = (image_hash, caption_hash, numbers if numbers.any() else None)
    several = image_of if len(image_of) > len(ids) else None
    if several is not None:
        captions = np.arange(len(several)) - np.searchsorted(several, several)  # 0 is the first
        ids = [f"{ids[i]}:{n}" if n else ids[i] for i, n in zip(several, captions, strict=True)]
        start = int(np.searchsorted(several, start))
    studies = pairs.shards.studies
    study_of = None if studies is None else studies.of_pair[image_of]
    return Embedded(torch.cat(images), torch.cat(texts), start, ids, *known, several, study_of)


def _gather(parts: list[Tensor], device: torch.device) -> np.ndarray:
    """(N, K) int64 of all pairs from each rank's (B, K), padded with 0 to the largest K."""
    own = max((part.shape[1] for part in parts), default=0)
    width = int(distributed.all_reduce_max_(torch.tensor([own], device=device)))
    padded = [torch.nn.functional.pad(part, (0, width - part.shape[1])) for part in parts]
    rows = torch.cat([torch.empty(0, width, dtype=torch.int64), *padded])
    return np.asarray(distributed.all_gather_ragged(rows.to(device)).cpu().numpy())


def save(
    path: Path, embedded: Embedded, world: distributed.World, clip: Clip | None = None
) -> None:
    """Write the features of all ranks, which a model made, if it is at hand; WorkError: it can't be
    written.
    """
    sides = {"image_features": embedded.images, "text_features": embedded.texts}
    arrays = {k: distributed.all_gather_ragged(v).cpu().numpy() for k, v in sides.items()}  # (N, D)
    if not world.main:
        return
    facts = {name: getattr(embedded, name) for name in _FACTS}
    arrays |= {name: fact for name, fact in facts.items() if fact is not None}
    if clip is not None:
        arrays["weights"] = np.full(len(embedded), averaging.size(clip.towers.clip.state_dict()))
    npz.write(path, ids=np.array(embedded.ids), **arrays)


def load(path: Path, world: distributed.World) -> Embedded:
    """Read a file, check whether it can be ranked, and keep this rank's share. InputError: see
    `npz.read`; an id comes twice, a concept is none of UMLS's numbers, or features are not finite
    or zero.
    """
    ids, arrays = _read(path, ("ids", "weights", *_FACTS))
    images, texts = (_unit(path, name, arrays[name]) for name in list(_ARRAYS)[1:3])
    if images.shape != texts.shape:
        raise InputError(f"{path}: features of {images.shape[1]} and of {texts.shape[1]} numbers")
    start, stop = share(len(ids), world)
    images, texts = (rows[start:stop].to(world.device) for rows in (images, texts))  # (n, D)
    image_hash, caption_hash, concepts = map(arrays.get, _FACTS)
    known = concepts if concepts is not None and concepts.any() else None
    if known is not None and (known.min() < 0 or known.max() >= 10**9):
        raise InputError(f"{path}: concepts: only UMLS numbers of up to 9 digits, and 0 for none")
    return Embedded(images, texts, start, ids, image_hash, caption_hash, known)


def load_images(path: Path) -> tuple[list[str], Tensor, float | None]:
    """Keys and image features (N, D) of a file, which may be without texts, and the size of the
    weights that made them, where known; InputError: see `load`.
    """
    ids, arrays = _read(path, ("ids", "text_features", "weights", *_FACTS))
    weights = float(arrays["weights"][0]) if "weights" in arrays else None
    return ids, _unit(path, "image_features", arrays["image_features"]), weights


def _read(path: Path, optional: tuple[str, ...]) -> tuple[list[str], dict[str, np.ndarray]]:
    """The keys of the pairs, and the arrays that are there."""
    arrays = npz.read(path, _ARRAYS, optional, _ALIASES)
    ids = list(map(str, arrays.get("ids", range(len(arrays["image_features"])))))
    repeated, times = Counter(ids).most_common(1)[0]
    if times > 1:
        raise InputError(f"{path}: the id {repeated} comes twice")
    return ids, arrays


def _unit(path: Path, name: str, rows: np.ndarray) -> Tensor:
    """Features as unit vectors: (N, D) float32."""
    with np.errstate(over="ignore"):  # what gets infinite is told below
        rows = rows.astype(np.float32)
    # in float64, where no square of a float32 is infinite
    lengths = np.sqrt(np.einsum("nd,nd->n", rows, rows, dtype=np.float64))
    good = np.isfinite(lengths) & (lengths > 0)
    if not good.all():
        raise InputError(f"{path}: {name} of row {good.argmin()} is zero, or holds NaN or infinity")
    if np.abs(lengths - 1).max() > _UNIT:
        rows = (rows / lengths[:, None]).astype(np.float32)
    return torch.from_numpy(rows)
