"""Pairs as batches: which pair comes when, and how its bytes become tensors.

The order is a pure function of (seed, epoch, index), see sampler.py. Global batch k of a run is the
pairs [kG, (k+1)G) of one stream, and rank r takes the r-th of the batch's equal parts. So the
sequence of global batches is the same at any world size and worker count, and the place in it is
one integer: the number of pairs consumed.

G pairs over all ranks, B pairs per rank or of a loader batch, L context length, K most concepts of
a pair in the batch, k concepts of one pair.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import KW_ONLY, dataclass, field, replace
from itertools import islice
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset, get_worker_info

from ..config.checks import Decode, LongCaptions
from ..errors import BadImage, InputError, Stopped, WorkError
from ..imaging.jpeg import Picture
from ..runtime import shutdown
from ..runtime.distributed import World
from .remote import ShardStream, Streamed
from .sampler import Order, Place, permuted, shuffled
from .shards import Sample, ShardSet

Transform = Callable[[Picture, np.random.Generator], Tensor]
"""Picture and a source of randomness -> (3, H, W) uint8."""
Batch = dict[str, Tensor]
"""images uint8 (B, 3, H, W), tokens int64 (B, L), index (of the pair, or the study drawn) int64
(B,), caption_hash and image_hash int64 (B,), concepts int32 (B, K) padded with 0, captions int64
(B,): how many rows of tokens and caption_hash are each pair's, 1 but where all are taken. In place
of images or tokens may be features, float32 (B, D), see `Pairs.features`."""

Take = Literal["first", "all", "drawn"]
"""Of a pair's captions; drawn: (seed, pass, index) decides, each once before any comes again."""
PATIENCE_SECONDS = 10.0
"""How long a batch is waited for, once there is to be a stop; torchrun kills after 30 seconds."""
_NO_ROOM = (
    "loader processes find no room in /dev/shm: take fewer data.workers or a smaller "
    "train.micro_batch_size, or give it more (docker run --shm-size 8g)"
)
_SHA256 = re.compile("[0-9a-f]{64}")
_CUI = re.compile("C[0-9]{1,9}")
_REPLACEMENTS = 1 << 32  # from here on, the numbers of the permutations that replace bad pairs
_VIEWS, _TEXTS = 1 << 33, 1 << 34  # and those that draw a study's image, and its caption
_TRIES = 20  # unreadable pairs in a row, at which no other one is looked for
# A sentence ends where white space follows its mark, unless that is the dot of one of these.
_ABBREVIATIONS = ("Fig", "Figs", "No", "Dr", "vs", "al", "ca", "approx", "e.g", "i.e", "cf")
_BREAK = re.compile(
    "".join(rf"(?<!\b{re.escape(a)}\.)" for a in _ABBREVIATIONS) + r"(?<=[.!?;])\s+"
)


class Captions:
    """Turns captions into tokens.

    Args:
        tokenizer: M texts, and perhaps `context_length` -> (M, L) int64; it cuts what is too long.
        long: "truncate" leaves it at that. "sentences" takes a run of whole sentences that fits,
            another one each time.
    """

    def __init__(self, tokenizer: Callable[..., Tensor], long: LongCaptions = "truncate") -> None:
        self.tokenizer, self.long = tokenizer, long
        self.context = len(tokenizer([""])[0])  # L
        self._pad = int(tokenizer([""], context_length=self.context + 1)[0, -1])

    def tokens(self, caption: str, seed: list[int]) -> tuple[Tensor, bool]:
        """Tokens (L,) int64 of a caption, and whether it is longer than that; `seed` decides which
        sentences are taken.
        """
        row, long = self._cut(caption)
        if long and self.long == "sentences":
            parts = [part for part in _BREAK.split(caption.strip()) if part] or [caption]
            row, _ = self._cut(self._run(parts, np.random.default_rng(seed)))
        return row, long

    def _run(self, parts: list[str], rng: np.random.Generator) -> str:
        """Consecutive sentences from a random one on, as many as fit; earlier ones if room is left.

        A sentence that doesn't fit alone is cut by the tokenizer.
        """
        first = int(rng.integers(len(parts)))
        last = first + 1
        while last < len(parts) and not self._cut(" ".join(parts[first : last + 1]))[1]:
            last += 1
        while first > 0 and not self._cut(" ".join(parts[first - 1 : last]))[1]:
            first -= 1
        return " ".join(parts[first:last])

    def _cut(self, text: str) -> tuple[Tensor, bool]:
        """The tokens (L,), and whether the tokenizer cut the text."""
        row = self.tokenizer([text])[0]  # (L,)
        # a token is a byte or more
        if len(text.encode()) + 2 <= self.context or row[-2:].tolist() == [self._pad, self._pad]:
            return row, False
        # with room for one more token, it would differ
        longer = self.tokenizer([text], context_length=self.context + 1)[0]  # (L + 1,)
        return row, bool((longer[:-1] != row).any() or longer[-1] != self._pad)


def step_parts(
    order: Order | ShardStream, world: World, *, size: int, part: int, steps: int, start: int = 0
) -> Iterator[list[Place] | list[Streamed]]:
    """One rank's pairs in each of `steps` global batches of `size`, in loader batches of up to
    `part`, which never span two steps. `start` pairs are done (of a stream a multiple of `size`).
    """
    share = size // world.size
    own = range(world.rank * share, (world.rank + 1) * share)  # places within a global batch
    for pairs in order.shares(start, steps, size, own):
        for first in range(0, share, part):
            yield pairs[first : first + part]


@dataclass(eq=False)
class Pairs(Dataset[dict[str, Any]]):
    """Pairs as tensors. Where captions are drawn and `shards` has studies, an item is a study: the
    image of one of its pairs and the caption of one, each pair's once before any comes again.
    """

    shards: ShardSet  # where they lie; an empty set where every pair comes out of a stream
    transform: Transform  # its generator depends on (seed, pass, index) alone
    tokenizer: Callable[..., Tensor]  # see `Captions`
    _: KW_ONLY
    seed: int = 0  # of the transform's randomness
    decode: Decode = "exact"  # at full size; "fast": JPEGs no finer than the transform needs
    long_captions: LongCaptions = "truncate"  # see `Captions`
    take: Take = "first"
    replace: bool = False
    """An unreadable pair is replaced by another one, which (seed, pass, index) decides; or else it
    is an error."""
    features: dict[str, np.ndarray] = field(default_factory=dict)
    """By pair, (N, D) float32: what stands for `images`, or for the `tokens` of its only caption.
    NaN: it couldn't be read; it is read again, to be told and replaced."""

    def __post_init__(self) -> None:
        self.captions, self._views = Captions(self.tokenizer, self.long_captions), None
        if self.take == "drawn" and self.shards.studies is not None:
            of_pair = self.shards.studies.of_pair
            ends = np.cumsum(np.bincount(of_pair))
            self._views = np.split(np.argsort(of_pair, kind="stable"), ends[:-1])  # S of (k,)

    def __len__(self) -> int:
        return len(self.shards if self._views is None else self._views)

    def __getitem__(self, item: Place | Streamed) -> dict[str, Any]:
        """The tensors of a pair, `bad` and `long`; or `error` alone.

        A worker's exception would reach the user as a traceback; the error travels as a value.
        """
        try:
            return self._streamed(item) if isinstance(item, Streamed) else self._placed(*item)
        except (InputError, WorkError) as error:
            return {"error": error}

    def _placed(self, epoch: int, position: int) -> dict[str, Any]:
        bad, unit = list[str](), position
        while True:
            views = [unit] if self._views is None else self._views[unit].tolist()
            index = views[0] if len(views) == 1 else self._draw(views, epoch, _VIEWS + unit)
            view = index if len(views) == 1 else self._draw(views, epoch, _TEXTS + unit)
            try:
                rows = self._rows(index, view)
                sample = self.shards.read(index, image="images" not in rows)
                if not sample.image and not _SHA256.fullmatch(str(sample.facts.get("sha256"))):
                    sample = self.shards.read(index)  # to be hashed
                if len(views) > 1:
                    other = self.shards.read(view, image=False)
                    sample = replace(sample, caption=other.caption, further=other.further)
                found = self._tensors(sample, epoch, unit, **rows)
                if len(rows) < len(self.features):
                    raise BadImage("undecodable", "or not finite, when features were made")
                return {**found, "bad": bad}
            except BadImage as error:
                bad.append(f"{self.shards.locate(index)}: {error}")
            except InputError as error:  # the caption; says where
                bad.append(str(error))
            if not self.replace:
                raise InputError(bad[0])
            if len(bad) == _TRIES:
                raise WorkError(f"{_TRIES} pairs in a row can't be read; the last: {bad[-1]}")
            stream = _REPLACEMENTS + len(bad)
            unit = int(permuted(self.seed, epoch, len(self), np.array(position), stream=stream))

    def _rows(self, index: int, view: int) -> dict[str, Tensor]:
        """The features of a pair's image (D,), and of a caption (1, D), where there are any."""
        places: dict[str, Any] = {"images": index, "tokens": slice(view, view + 1)}
        rows = {n: torch.from_numpy(np.array(of[places[n]])) for n, of in self.features.items()}
        return {name: row for name, row in rows.items() if not row.isnan().any()}

    def _draw(self, choices: list[Any], epoch: int, stream: int) -> Any:
        """One of them; each once before any comes again."""
        cycle, place = divmod(epoch, len(choices))
        return choices[shuffled(self.seed, cycle, len(choices), stream)[place]]

    def _streamed(self, item: Streamed) -> dict[str, Any]:
        bad = list(item.passed_over)
        try:
            return {**self._tensors(item.sample, item.epoch, item.index), "bad": bad}
        except BadImage as error:
            return {"bad": [*bad, f"{item.location}: {error}"]}

    def _tensors(self, sample: Sample, epoch: int, index: int, **rows: Tensor) -> dict[str, Any]:
        seed, further = [self.seed, epoch, index], sample.further
        captions = [sample.caption, *(further if self.take != "first" else ())]
        if further and self.take == "drawn":
            captions = [self._draw(captions, epoch, index)]
        tokens, long = zip(*(self.captions.tokens(c, [*seed, 1]) for c in captions), strict=True)
        digest, cuis = str(sample.facts.get("sha256")), sample.facts.get("concepts")
        if not _SHA256.fullmatch(digest):  # of the source's image
            digest = hashlib.sha256(sample.image).hexdigest()
        names = map(str, cuis if isinstance(cuis, list) else [])
        # C0040405 -> 40405; names of another form are left out
        concepts = [int(name[1:]) for name in names if _CUI.fullmatch(name)]
        if "images" not in rows:
            picture = Picture(sample.image, exact=self.decode == "exact")
            rows["images"] = self.transform(picture, np.random.default_rng(seed))
        return {
            "tokens": torch.stack(tokens),  # (k, L), k captions
            "index": index,
            "caption_hash": [_hash(hashlib.sha256(c.encode()).hexdigest()) for c in captions],
            "image_hash": _hash(digest),
            "concepts": torch.tensor(concepts, dtype=torch.int32),  # (k,)
            "long": sum(long),
            **rows,  # images (3, H, W), and features
        }


def _hash(digest: str) -> int:
    """The first 64 bits of a hexadecimal digest, as a signed integer."""
    return int.from_bytes(bytes.fromhex(digest[:16]), signed=True)


class LoadedBatch(NamedTuple):
    """A batch, and what happened on the way."""

    batch: Batch
    bad: list[str]  # pairs that couldn't be read and were replaced: their location, and why
    long_captions: int  # longer than the context


def _collate(samples: list[dict[str, Any]]) -> LoadedBatch | InputError | WorkError:
    """Stack samples into a batch; the first error, if any.

    A sample of a stream that couldn't be read is replaced by the next one of the batch.
    """
    errors: list[InputError | WorkError] = [s["error"] for s in samples if "error" in s]
    if errors:
        return errors[0]
    bad = [line for sample in samples for line in sample["bad"]]
    sound = [number for number, sample in enumerate(samples) if "images" in sample]
    if not sound:
        return WorkError(f"no pair of a whole batch can be read; the last: {bad[-1]}")
    chosen = [next((n for n in sound if n >= at), sound[0]) for at in range(len(samples))]
    samples = [samples[number] for number in chosen]
    batch = {
        "images": torch.stack([s["images"] for s in samples]),  # (B, 3, H, W) uint8
        "tokens": torch.cat([s["tokens"] for s in samples]),  # (B, L) int64
        "caption_hash": torch.tensor([h for s in samples for h in s["caption_hash"]]),  # (B,)
        "captions": torch.tensor([len(s["caption_hash"]) for s in samples]),  # (B,)
        "concepts": pad_sequence([s["concepts"] for s in samples], batch_first=True),  # (B, K)
    }
    for name in ("index", "image_hash"):
        batch[name] = torch.tensor([s[name] for s in samples], dtype=torch.int64)  # (B,)
    if get_worker_info() is not None:  # later it would fail in a thread, which nobody hears of
        try:
            for rows in batch.values():
                rows.share_memory_()
        except RuntimeError as error:
            return WorkError(f"{_NO_ROOM} ({str(error).rpartition(': ')[2]})")
    return LoadedBatch(batch, bad, sum(sample["long"] for sample in samples))


def load_batches(
    pairs: Pairs,
    parts: Iterable[list[Place] | list[Streamed]],
    *,
    workers: int,
    pin: bool,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[LoadedBatch]:
    """A batch of each part, in this order, prepared by `workers` processes (0: by this one).

    `stop` is asked whether to wait no longer (Stopped), now and then while a batch doesn't come.
    InputError: a pair can't be read; names the shard and the key. ShardChanged: a shard went away
    or changed; names it. WorkError: a worker died, or nothing can be read.
    """
    loader: DataLoader[Any] = DataLoader(
        pairs,
        batch_sampler=parts,
        num_workers=workers,
        collate_fn=_collate,
        pin_memory=pin,
        # of its own: otherwise each pass would draw from the stream that dropout uses
        generator=torch.Generator(),
        worker_init_fn=shutdown.outlive_signals,
        timeout=PATIENCE_SECONDS if workers else 0,
    )
    try:
        with shutdown.held_back():
            batches = iter(loader)
    except OSError as error:  # of a semaphore, or a fork
        raise WorkError(f"{_NO_ROOM} ({error.strerror})") from None
    while True:
        try:
            loaded = next(batches, None)
        except RuntimeError as error:
            if "DataLoader timed out" in str(error):
                if stop():
                    raise Stopped(f"no batch came for {PATIENCE_SECONDS:g} s") from None
                continue
            if "DataLoader worker" not in str(error):
                raise
            advice = "a loader process died; out of memory, or /dev/shm? Try fewer data.workers"
            raise WorkError(f"{advice} ({str(error).splitlines()[0]})") from None
        if isinstance(loaded, Exception):
            raise loaded
        if loaded is None:
            return
        yield loaded


def step_batches(parts: Iterator[LoadedBatch], per_step: int) -> Iterator[LoadedBatch]:
    """Join every `per_step` loader batches into one."""
    if per_step == 1:
        yield from parts
    while held := list(islice(parts, per_step)):
        batches = [part.batch for part in held]
        rows = [row for batch in batches for row in batch.pop("concepts")]
        joined = {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}
        joined["concepts"] = pad_sequence(rows, batch_first=True)  # (B, K); the others (B, ...)
        bad = [line for part in held for line in part.bad]
        yield LoadedBatch(joined, bad, sum(part.long_captions for part in held))
