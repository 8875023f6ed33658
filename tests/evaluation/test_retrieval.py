"""All figures of a set, on one process and on several: they are the same numbers."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import hypergeom

from medclip_oc.config.evaluation import MeasureConfig
from medclip_oc.config.vocabulary import DIRECTIONS
from medclip_oc.errors import InputError
from medclip_oc.evaluation import concepts, features, metrics, ranks, retrieval
from medclip_oc.reporting import results
from medclip_oc.runtime.distributed import World
from tests.support import processes

CT, XRAY, PLEURA = 40405, 1306645, 32227
ALONE = World(0, 1, torch.device("cpu"))


def made(
    n: int, seed: int, world: World, noise: float = 1.0, *, copies: bool = True
) -> features.Embedded:
    """A set with concepts and, if wanted, copied images and captions."""
    g = torch.Generator().manual_seed(seed)
    images = torch.randn(n, 32, generator=g)
    texts = images + noise * torch.randn(n, 32, generator=g)
    images, texts = (torch.nn.functional.normalize(rows, dim=-1) for rows in (images, texts))
    of_image, of_text = np.arange(n), np.arange(n)
    if copies:
        of_image[5:9], of_text[3:6] = 4, 2
        of_text[n - 1] = 0
    images, texts = images[of_image], texts[of_text]
    rng = np.random.default_rng(seed)
    cuis = np.stack([np.where(rng.random(n) < 0.4, CT, XRAY), rng.integers(0, 4, n)], 1)
    cuis[::7] = 0
    cuis[1::9, 1] = PLEURA
    start, stop = features.share(n, world)
    return features.Embedded(
        images=images[start:stop],
        texts=texts[start:stop],
        start=start,
        ids=[f"p{number}" for number in range(n)],
        image_hash=of_image,
        caption_hash=of_text,
        concepts=cuis.astype(np.int32),
    )


SETTINGS = MeasureConfig(
    ks=[3], pools=["8,20", "full"], pool_draws=5, interval_draws=50, slices=["C0032227"]
)


def everything(world: World, n: int, file: Path) -> list[Any]:
    """What every rank has in the end, and one has saved."""
    one = made(n, 0, world)
    features.save(file, one, world)
    slices = concepts.find_slices(one.concepts, SETTINGS.slices, {})[0]
    other = made(n, 0, world, noise=2.0)
    found = retrieval.measure(one, SETTINGS, slices=slices, baseline=other, baseline_name="b")
    assert found.nearest is not None
    # a pool of two pairs: with four ranks some have nothing to rank
    few = retrieval.pool_ranks(one, metrics.pool_of(np.array([0, 2]), *2 * [np.arange(n)]))
    tensors = [torch.from_numpy(a) for a in (*found.pair_ranks(), *found.nearest, *few)]
    return [json.dumps(found.record), *tensors]


@pytest.mark.parametrize("size", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_any_number_of_processes(size: int, tmp_path: Path) -> None:
    alone = everything(ALONE, 50, tmp_path / "1.npz")
    for rank in processes.run(everything, size, tmp_path, 50, tmp_path / "x.npz"):
        assert json.loads(rank[0]) == json.loads(alone[0])
        assert all(a.equal(b) for a, b in zip(rank[1:], alone[1:], strict=True))
    assert (tmp_path / "1.npz").read_bytes() == (tmp_path / "x.npz").read_bytes()


@pytest.fixture(scope="module")
def measured() -> retrieval.Measured:
    one = made(60, 1, ALONE)
    slices = concepts.find_slices(one.concepts, ["C0032227", "ct"], {})[0]
    return retrieval.measure(one, SETTINGS, slices=slices)


def test_the_pool_as_it_is(measured: retrieval.Measured) -> None:
    one = made(60, 1, ALONE)
    first, second = ranks.retrieval_ranks(one.images, one.texts)
    assert np.array_equal(measured.ranks[0], first.numpy())
    assert np.array_equal(measured.ranks[1], second.numpy())
    record = measured.record
    assert (record["pool"], record["images"], record["texts"]) == (60, 60, 60)
    assert (record["ties"], record["duplicates"]) == ("expected", "keep")
    assert list(record["image_to_text"])[:4] == ["R@1", "R@3", "R@5", "R@10"]
    for way in DIRECTIONS:
        for name, (low, high) in record["intervals"][way].items():
            assert low <= record[way][name] <= high


def test_copies_as_one(measured: retrieval.Measured) -> None:
    """By definition, pair by pair on the whole matrix."""
    one = made(60, 1, ALONE)
    assert one.image_hash is not None
    assert one.caption_hash is not None
    scores = one.images.double() @ one.texts.double().T
    ranks = []
    for image in sorted(set(one.image_hash.tolist())):
        row = scores[np.flatnonzero(one.image_hash == image)[0]]
        right = set(one.caption_hash[one.image_hash == image].tolist())
        best = max(row[text] for text in right)
        wrong = [row[text] for text in set(one.caption_hash.tolist()) - right]
        ranks.append(1 + sum(score > best + 1e-6 for score in wrong))
    merged = measured.record["merged"]
    assert merged["images"] == len(ranks) == 56
    assert merged["texts"] == 56  # 60 less two copies of one caption, and one of another
    assert merged["image_to_text"]["mean_rank"] == pytest.approx(np.mean(ranks))
    assert merged["image_to_text"]["R@1"] > measured.record["image_to_text"]["R@1"]


def test_merged_alone_ranks_every_pair() -> None:
    one = made(60, 1, ALONE)
    found = retrieval.measure(one, MeasureConfig(duplicates="merge", interval_draws=0))
    assert found.record["duplicates"] == "merge"
    assert "merged" not in found.record
    ranks = found.pair_ranks()
    assert ranks[0].shape == ranks[1].shape == (60,)
    assert len(set(ranks[0][4:9].tolist())) == 1  # one image
    assert ranks[1][59] == ranks[1][0]


def test_random_pools_agree_with_the_formula() -> None:
    """In a random pool of P, how many of the r - 1 better ones come along is hypergeometric."""
    one = made(80, 2, ALONE, noise=3.0)
    one.image_hash = one.caption_hash = np.arange(80)
    settings = MeasureConfig(pools=["10"], pool_draws=300, interval_draws=0, duplicates="keep")
    record = retrieval.measure(one, settings, nearest=False).record["pools"][0]
    whole, _ = retrieval.pool_ranks(one, metrics.pool_of(*3 * [np.arange(80)]), "optimistic")
    for k in (1, 5):
        expected = hypergeom.cdf(k - 1, 79, whole - 1, 9).mean()
        assert record["image_to_text"][f"R@{k}"] == pytest.approx(expected, abs=0.03)
    assert record["chance"]["R@1"] == pytest.approx(0.1)
    assert (record["pool"], record["draws"]) == (10, 300)
    low, high = record["between_draws"]["image_to_text"]["R@1"]
    assert low < record["image_to_text"]["R@1"] < high


def test_slices(measured: retrieval.Measured) -> None:
    one = made(60, 1, ALONE)
    assert one.concepts is not None
    slices = {row["name"]: row for row in measured.record["slices"]}
    assert list(slices)[-2:] == ["C0032227", "ct"]
    assert {"CT", "X-ray", "no known modality"} < slices.keys()
    chosen = (one.concepts == CT).any(1)
    assert slices["CT"]["images"] == slices["ct"]["images"] == chosen.sum()
    own = metrics.summary(measured.ranks[1][chosen], [1, 3, 5, 10])
    assert slices["CT"]["text_to_image"] == own
    assert slices["C0032227"]["concept"] == "C0032227"
    assert sum(slices[s]["images"] for s in ("CT", "X-ray", "no known modality")) == 60


def test_a_copy_is_in_the_slices_of_all_its_pairs() -> None:
    """Pair 1's caption is pair 0's, which is of another modality: it is in both slices."""
    one = made(4, 1, ALONE, copies=False)
    one.caption_hash = np.array([0, 0, 1, 2])
    one.concepts = np.array([[CT], [XRAY], [CT], [0]], dtype=np.int32)
    slices = concepts.find_slices(one.concepts, [], {})[0]
    settings = MeasureConfig(duplicates="merge", interval_draws=20)
    record = retrieval.measure(one, settings, slices=slices).record
    counts = {row["name"]: (row["images"], row["texts"]) for row in record["slices"]}
    assert counts == {"CT": (2, 2), "X-ray": (1, 1), "no known modality": (1, 1)}
    shown = results.text(record)
    assert re.search(r"CT \(2\) +2 of 2 +2 of 2\n", shown)
    assert re.search(r"R@1 +4 of 4 +3 of 3 +33\.3 %\n", shown)
    assert "[" not in shown


def test_concept_figures() -> None:
    """Each image's texts in full, by the definition."""
    one = made(60, 1, ALONE, copies=False)
    assert one.concepts is not None
    record = retrieval.measure(one, SETTINGS).record["concepts"]
    sets = [set(row[row > 0].tolist()) for row in one.concepts]
    order = (one.texts.double() @ one.images.double().T).argsort(1, descending=True).tolist()
    agreed, recalls, precisions = [], [], []
    for own, found in zip(sets, order, strict=True):
        modalities = own & {CT, XRAY}
        if modalities:
            agreed.append(bool(modalities & sets[found[0]]))
        if own:
            relevant = {
                t for t, other in enumerate(sets) if len(own & other) >= 0.5 * len(own | other)
            }
            hits = len(relevant & set(found[:3]))
            recalls.append(hits / len(relevant))
            precisions.append(hits / 3)
    ours = record["text_to_image"]
    assert ours["modality_agreement@1"] == pytest.approx(np.mean(agreed))
    assert ours["relevant_recall@3"] == pytest.approx(np.mean(recalls))
    assert ours["relevant_precision@3"] == pytest.approx(np.mean(precisions))
    assert record["queries"] == len(recalls)
    assert record["queries_with_modality"] == len(agreed)
    assert 0 < ours["nDCG@10"] < 1


def test_a_baseline_is_compared_query_by_query() -> None:
    one, other = made(60, 1, ALONE), made(60, 1, ALONE, noise=3.0)
    record = retrieval.measure(
        one, MeasureConfig(interval_draws=200), baseline=other, baseline_name="before"
    ).record["baseline"]
    ours = retrieval.measure(one, MeasureConfig(), nearest=False).record
    gained = record["difference"]["image_to_text"]["R@1"]
    assert gained == pytest.approx(ours["image_to_text"]["R@1"] - record["image_to_text"]["R@1"])
    low, high = record["difference"]["intervals"]["image_to_text"]["R@1"]
    assert 0 < low < gained < high
    one.study_of = np.arange(60) // 2
    found = retrieval.measure(one, MeasureConfig(), baseline=other).record["baseline"]["difference"]
    low, high = found["intervals"]["mean_recall"]
    assert low < found["mean_recall"] < high
    same = retrieval.measure(one, MeasureConfig(), baseline=one).record["baseline"]["difference"]
    assert set(same["image_to_text"].values()) == {0}
    assert same["intervals"]["text_to_image"]["mrr"] == [0, 0]


def test_what_can_not_be_measured() -> None:
    one = made(20, 1, ALONE)
    other = made(20, 1, ALONE)
    other.ids = [*other.ids[:3], "x", *other.ids[4:]]
    with pytest.raises(InputError, match="--baseline: pair 3 is x, but p3 is measured there"):
        retrieval.measure(one, MeasureConfig(), baseline=other)
    with pytest.raises(InputError, match="--baseline: 19 pairs, but 20 are measured"):
        retrieval.measure(one, MeasureConfig(), baseline=made(19, 1, ALONE))
    one.concepts = one.image_hash = None
    with pytest.raises(InputError, match=r"--duplicates merge: .* without image_hash"):
        retrieval.measure(one, MeasureConfig(duplicates="merge"))
    assert not {"concepts", "merged"} & retrieval.measure(one, MeasureConfig()).record.keys()


OWNER = np.repeat(np.arange(6), [1, 3, 2, 1, 4, 1])  # the image of each text
STUDY = np.array([0, 1, 1, 2, 0, 3, 3, 3, 2, 4, 5, 4])  # of each pair
CAPTION = np.array([0, 1, 1, 2, 3, 4, 4, 4, 5, 0, 6, 7])  # of each pair; two studies have one
KEYS = {  # what is one image, what is one text, and what belongs together
    "captions": (OWNER, np.arange(12), OWNER),
    "study": (np.arange(12), 100 * STUDY + CAPTION, STUDY),
    "merged": (np.arange(12), CAPTION, STUDY),
}


def many(world: World, seed: int, way: str) -> list[Any]:
    """Figures of images with several captions, or of studies; of few values, so that many tie."""
    rows = np.random.default_rng(seed).integers(-1, 2, (2, 12, 3)) + np.array([0.0, 0.0, 4.0])
    captions: Any = (OWNER, np.arange(12), None, OWNER, None)
    facts = captions if way == "captions" else (np.arange(12), CAPTION, None, None, STUDY)
    for side in (0, 1):
        rows[side] = rows[side, [facts[side].tolist().index(n) for n in facts[side]]]
    images, texts = torch.nn.functional.normalize(torch.from_numpy(rows).float(), dim=-1)
    own = slice(*np.searchsorted(facts[0], features.share(facts[0][-1] + 1, world)).tolist())
    one = features.Embedded(images[own], texts[own], own.start, list(map(str, range(12))), *facts)
    duplicates: Any = "merge" if way == "merged" else "both"
    how = MeasureConfig(pools=["2,6"], pool_draws=3, interval_draws=5, duplicates=duplicates)
    measured = retrieval.measure(one, how)
    return [json.dumps(measured.record), *map(torch.from_numpy, measured.ranks), images, texts]


@pytest.mark.parametrize("way", KEYS)
@pytest.mark.parametrize("seed", range(4))
def test_all_captions_of_an_image_or_a_study_are_right(tmp_path: Path, seed: int, way: str) -> None:
    """By definition on the whole matrix: of an image the best-ranked right text counts."""
    record, *found, images, texts = many(ALONE, seed, way)
    image, text, together = KEYS[way]
    rows, columns = (np.sort(np.unique(key, return_index=True)[1]) for key in (image, text))
    scores = (images[rows].double() @ texts[columns].double().T).numpy()
    has = text[columns][:, None] == text  # (texts, 12)
    right = np.array([(has & (together[row] == together)).any(1) for row in rows])
    for side, (table, own) in enumerate(((scores, right), (scores.T, right.T))):
        gaps = table - np.where(own, table, -9).max(1, keepdims=True)
        above, tied = gaps > ranks.TIE, np.abs(gaps) <= ranks.TIE
        wanted = 1 + (above & ~own).sum(1) + (tied & ~own).sum(1) / ((tied & own).sum(1) + 1)
        assert found[side].numpy() == pytest.approx(wanted)
    n, m = right.shape
    chances = [np.mean((m + 1) / (right.sum(1) + 1)), np.mean((n + 1) / (right.sum(0) + 1))]
    read, pool = json.loads(record), 12 if way == "captions" else 6
    assert read["chance"]["mean_rank"] == pytest.approx(np.mean(chances))
    assert read["pools"][1]["mean_recall"] == pytest.approx(read["mean_recall"])
    assert [read[name] for name in ("pool", "images", "texts")] == [pool, n, m]
    for rank in processes.run(many, 2, tmp_path, seed, way):
        assert json.loads(rank[0]) == read
        assert all(a.equal(b) for a, b in zip(rank[1:3], found, strict=True))
