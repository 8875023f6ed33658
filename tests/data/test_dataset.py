"""Which pair comes when, and what a batch holds."""

import hashlib
import io
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torch.utils.data._utils import worker

from medclip_oc.config.schema import DataConfig
from medclip_oc.data import dataset, loader
from medclip_oc.data.sampler import Order, Place
from medclip_oc.data.shards import ShardSet
from medclip_oc.errors import InputError, WorkError
from medclip_oc.models import factory
from medclip_oc.runtime import shutdown
from tests.support.reference import global_batches
from tests.support.tiny_dataset import jpeg, write_pairs, write_tar

# DataLoader forks; nothing here has threads that matter to the children
FORKS = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    weighted=st.booleans(),
    world_size=st.integers(1, 8),
    per_rank=st.integers(1, 5),
    part=st.integers(1, 7),
    steps=st.integers(1, 12),
    done=st.integers(0, 12),
)
@settings(deadline=None, max_examples=25)
def test_global_batches_depend_on_nothing_but_the_position(
    sizes: list[int],
    weighted: bool,
    world_size: int,
    per_rank: int,
    part: int,
    steps: int,
    done: int,
) -> None:
    """Not on ranks, nor on loader batches, nor on where the run was taken up again."""
    weights = [1.0 + n for n in range(len(sizes))] if weighted else None
    order = Order(sizes, seed=3, weights=weights)
    size = per_rank * world_size
    whole = global_batches(order, 1, size=size, part=size, steps=done + steps)
    how = {"size": size, "part": part, "steps": steps, "start": done * size}
    resumed = global_batches(order, world_size, **how)
    assert resumed == whole[done:]


@pytest.fixture
def shards(tmp_path: Path) -> ShardSet:
    write_pairs(tmp_path / "a.tar", range(5), {1: ["C0040405", "C0007776"], 2: ["X1"]})
    write_pairs(tmp_path / "b.tar", range(5, 8))
    return ShardSet.open(str(tmp_path / "*.tar"), "train")


def batches(
    pairs: dataset.Pairs, places: list[list[Place]], workers: int = 0
) -> list[dataset.Batch]:
    return [
        loaded.batch for loaded in dataset.load_batches(pairs, places, workers=workers, pin=False)
    ]


def test_what_a_batch_holds(shards: ShardSet, clip: factory.Clip) -> None:
    (batch,) = batches(loader.evaluation_pairs(shards, clip), [[(0, 6), (0, 1), (0, 2)]])
    assert batch["images"].dtype == torch.uint8
    assert batch["images"].shape == (3, 3, 32, 32)
    decoded = Image.open(io.BytesIO(jpeg(6))).convert("RGB")
    assert batch["images"][0].equal(clip.preprocess(decoded))
    assert batch["tokens"].equal(clip.tokenizer([f"finding number {n}" for n in (6, 1, 2)]))
    assert batch["index"].tolist() == [6, 1, 2]
    assert batch["concepts"].tolist() == [[0, 0], [40405, 7776], [0, 0]]
    assert batch["concepts"].dtype == torch.int32
    assert batch["caption_hash"][0] == hashed(b"finding number 6")
    assert batch["image_hash"][0] == hashed(jpeg(6))


def hashed(content: bytes) -> int:
    return int.from_bytes(hashlib.sha256(content).digest()[:8], signed=True)


@FORKS
def test_augmentation_is_a_function_of_seed_epoch_and_index(
    shards: ShardSet, clip: factory.Clip
) -> None:
    """Workers change nothing."""
    places = [[(0, 3), (0, 1)], [(0, 7)], [(1, 0), (1, 3)]]
    pairs, other = (loader.training_pairs(shards, clip, DataConfig(), seed) for seed in (1, 2))
    alone = batches(pairs, places)
    for batch, helped in zip(alone, batches(pairs, places, workers=2), strict=True):
        assert all(batch[name].equal(helped[name]) for name in batch)
    assert not alone[0]["images"][0].equal(alone[2]["images"][1])
    assert not alone[0]["images"][0].equal(batches(other, places)[0]["images"][0])


def test_loader_batches_join_into_steps(shards: ShardSet, clip: factory.Clip) -> None:
    places = [[(0, 0), (0, 1)], [(0, 2)], [(0, 3), (0, 4)], [(0, 5)]]
    pairs = loader.evaluation_pairs(shards, clip)
    loads = [
        dataset.LoadedBatch(batch, [str(n)], n) for n, batch in enumerate(batches(pairs, places))
    ]
    joined = list(dataset.step_batches(iter(loads), 2))
    assert [(load.bad, load.long_captions) for load in joined] == [(["0", "1"], 1), (["2", "3"], 5)]
    steps = [load.batch for load in joined]
    assert [step["index"].tolist() for step in steps] == [[0, 1, 2], [3, 4, 5]]
    assert steps[0]["concepts"].tolist() == [[0, 0], [40405, 7776], [0, 0]]
    assert steps[0]["images"].shape == (3, 3, 32, 32)


def test_facts_of_other_makers_may_be_anything(tmp_path: Path, clip: factory.Clip) -> None:
    facts = [b"[1]", b'"x"', b'{"sha256": 5, "concepts": "C1"}', b'{"sha256": "xyz"}']
    facts.append(b'{"concepts": ["C99999999999", 3, null, "C0000007", "c1"]}')
    members = {}
    for n, content in enumerate(facts):
        members |= {f"p{n}.jpg": jpeg(n), f"p{n}.txt": b"x", f"p{n}.json": content}
    shards = ShardSet.open(str(write_tar(tmp_path / "a.tar", members)), "train")
    (batch,) = batches(loader.evaluation_pairs(shards, clip), [[(0, n) for n in range(5)]])
    assert batch["concepts"].tolist() == [[0], [0], [0], [0], [7]]
    assert batch["image_hash"].tolist() == [hashed(jpeg(n)) for n in range(5)]


@FORKS
@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_pair_is_named_in_evaluation(
    tmp_path: Path, clip: factory.Clip, workers: int
) -> None:
    bad = {"good.jpg": jpeg(0), "good.txt": b"x", "bad.jpg": b"no image", "bad.txt": b"y"}
    write_tar(tmp_path / "a.tar", bad)
    pairs = loader.evaluation_pairs(ShardSet.open(str(tmp_path / "a.tar"), "train"), clip)
    with pytest.raises(InputError, match=r"^a\.tar: bad: undecodable") as caught:
        batches(pairs, [[(0, 0), (0, 1)]], workers)
    assert "Traceback" not in str(caught.value)


@FORKS
def test_a_bad_pair_is_replaced_in_training(tmp_path: Path, clip: factory.Clip) -> None:
    """By the same pair wherever and whenever it is met; another one in the next epoch, perhaps."""
    members = {f"p{n}.jpg": jpeg(n) for n in range(40)} | {f"p{n}.txt": b"x" for n in range(40)}
    members |= {"p3.jpg": jpeg(3)[:-60], "p5.txt": b"\xff"}
    path = write_tar(tmp_path / "a.tar", dict(sorted(members.items())))
    shards = ShardSet.open(str(path), "train")
    cut, unreadable = map(shards.ids().index, ("p3", "p5"))
    pairs = loader.training_pairs(shards, clip, DataConfig(), 1)
    places = [[(epoch, cut), (epoch, unreadable), (epoch, 0)] for epoch in range(6)]
    loads = list(dataset.load_batches(pairs, places, workers=0, pin=False))
    for loaded in loads:
        assert [line.split("(")[0] for line in loaded.bad[:1]] == ["a.tar: p3: truncated "]
        assert any("a.tar: p5: caption unreadable" in line for line in loaded.bad)
        assert not {cut, unreadable} & set(loaded.batch["index"].tolist())
        assert loaded.batch["index"][2] == 0
    again = dataset.load_batches(pairs, [places[4][::-1]], workers=1, pin=False)
    assert next(again).batch["images"].flip(0).equal(loads[4].batch["images"])
    assert len({int(loaded.batch["index"][0]) for loaded in loads}) > 1


def test_a_set_of_nothing_but_bad_pairs_ends(tmp_path: Path, clip: factory.Clip) -> None:
    path = write_tar(
        tmp_path / "a.tar", {"a.jpg": b"1", "a.txt": b"x", "b.jpg": b"2", "b.txt": b"y"}
    )
    pairs = loader.training_pairs(ShardSet.open(str(path), "train"), clip, DataConfig(), 1)
    with pytest.raises(WorkError, match=r"20 pairs in a row can't be read; the last: a\.tar: [ab]"):
        batches(pairs, [[(0, 0)]])


@FORKS
def test_a_worker_that_dies_is_one_line(shards: ShardSet, clip: factory.Clip) -> None:
    pairs = loader.evaluation_pairs(shards, clip)
    pairs.transform = lambda picture, rng: os.kill(os.getpid(), 9)  # type: ignore
    with pytest.raises(WorkError, match="a loader process died; out of memory"):
        batches(pairs, [[(0, 0)]], workers=1)


# --------------------------------------------------------------------------------- captions

PARTS = [
    "Case 3.",
    "Axial CT of the chest (Fig. 2).",
    "There is a mass of 2.5 cm in the left lower lobe;",
    "no effusion is seen.",
    "Smith et al. described three such cases.",
    "Is it malignant?",
    "Follow-up was advised.",
]
TEXT = " ".join(PARTS)


def words(texts: list[str], context_length: int = 12) -> Tensor:
    """A tokenizer of words: 1, the words, 2; cut to the length with 2 at the end."""
    rows = torch.zeros(len(texts), context_length, dtype=torch.int64)
    for row, text in zip(rows, texts, strict=True):
        tokens = [1, *(100 + len(word) for word in text.split()), 2]
        if len(tokens) > context_length:
            tokens = [*tokens[: context_length - 1], 2]
        row[: len(tokens)] = torch.tensor(tokens)
    return rows


def ends_in_padding(texts: list[str], context_length: int = 12) -> Tensor:
    """As `words`, but filled up with the token that also ends a text, as SigLIP's."""
    rows = words(texts, context_length)
    return torch.where(rows == 0, 2, rows)


@pytest.mark.parametrize("tokenizer", [words, ends_in_padding])
def test_what_is_too_long_is_noticed(tokenizer: Any) -> None:
    captions = dataset.Captions(tokenizer)
    assert captions.context == 12
    for count in range(16):
        text = " ".join(["word"] * count)
        tokens, long = captions.tokens(text, [0])
        assert long == (count > 10)
        assert tokens.equal(tokenizer([text])[0])


def test_runs_of_sentences() -> None:
    """As many as fit, from a random one on, and earlier ones if room is left; or one, cut."""
    captions = dataset.Captions(words, "sentences")
    assert captions.tokens("One two. Three.", [0])[0].equal(words(["One two. Three."])[0])
    parts = [range(first, last) for first in range(7) for last in range(first + 1, 8)]
    runs = {part: " ".join(PARTS[n] for n in part) for part in parts}
    room = {part for part, text in runs.items() if len(text.split()) <= 10}
    whole = {part for part in room if not any(set(part) < set(more) for more in room)}
    allowed = whole | {range(2, 3)}  # one that is cut
    found = set[range]()
    for seed in range(60):
        tokens, long = captions.tokens(TEXT, [5, seed])
        assert long
        assert tokens.equal(captions.tokens(TEXT, [5, seed])[0])
        found |= {part for part in allowed if words([runs[part]])[0].equal(tokens)}
        assert any(words([runs[part]])[0].equal(tokens) for part in allowed)
    assert len(found) >= 4
    assert {range(2), range(2, 3)} < found


@FORKS
def test_a_loader_process_outlives_signals_from_its_first_moment(
    shards: ShardSet, clip: factory.Clip, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = worker._worker_loop

    def signalled(*args: Any) -> None:
        for number in shutdown.SIGNALS:
            os.kill(os.getpid(), number)
        begin(*args)

    monkeypatch.setattr(worker, "_worker_loop", signalled)
    (batch,) = batches(loader.evaluation_pairs(shards, clip), [[(0, 0)]], workers=1)
    assert len(batch["index"]) == 1
