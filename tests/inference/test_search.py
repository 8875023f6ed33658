"""Indices: written, searched, and tied to their model."""

import json
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import medclip_oc
from medclip_oc import embed, zeroshot
from medclip_oc.config.inference import EmbedConfig, ZeroshotConfig
from medclip_oc.config.schema import ModelConfig
from medclip_oc.data.shards import ShardSet
from medclip_oc.errors import WorkError
from medclip_oc.imaging.decode import decode
from medclip_oc.inference import feature_index
from medclip_oc.inference.feature_index import Index
from medclip_oc.models import checkpoint, factory
from tests.support.cli import call
from tests.support.tiny_dataset import jpeg
from tests.support.tiny_models import TINY
from tests.support.unit_vectors import unit_vectors

FIELDS = ["query", "rank", "id", "score", "caption", "shard", "position"]


def checkpoint_of(file: Path, seed: int) -> Path:
    clip = factory.build(ModelConfig(arch="tiny-test", definition=TINY), seed=seed)
    content = {"state_dict": clip.towers.clip.state_dict(), "model": clip.description}
    checkpoint.save(file, {**content, "config": {}})
    return file


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint_of(tmp_path_factory.mktemp("search") / "best.pt", 3)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory, checked: Path, packed: Path) -> Path:
    """Of the 48 training pairs of `packed`, in three shards."""
    out = tmp_path_factory.mktemp("index") / "train"
    words = ["--checkpoint", checked, "--data", packed, "--split", "train", "--out", out]
    assert call(embed.main, EmbedConfig, *words, "--dtype", "float32", "--batch-size", 10) == 0
    return out


def answers(capsys: pytest.CaptureFixture[str], *words: object) -> list[dict[str, Any]]:
    assert call(zeroshot.main, ZeroshotConfig, *words, "--format", "jsonl") == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_an_index_holds_what_open_clip_gives(checked: Path, packed: Path, index: Path) -> None:
    clip, preprocess, tokenizer = medclip_oc.load(checked)
    shards = ShardSet.open(str(packed), "train")
    opened = Index(index)
    assert len(opened) == len(shards) == 48
    images, captions = (np.load(index / f"{name}_features.npy") for name in ("image", "caption"))
    assert images.dtype == np.float32
    for position in (0, 25, 47):
        sample = shards.read(position)
        pixels = preprocess(decode(sample.image).convert("RGB"))[None]
        with torch.inference_mode():
            image = clip.encode_image(pixels, normalize=True)[0].numpy()
            caption = clip.encode_text(tokenizer([sample.caption]), normalize=True)[0].numpy()
        assert images[position] == pytest.approx(image, abs=1e-5)
        assert captions[position] == pytest.approx(caption, abs=1e-5)
        assert opened.pair(position) == {
            "id": sample.key,
            "caption": sample.caption,
            "shard": f"train-{position // 20:06}.tar",
            "position": position,
        }


def test_answers_by_text_and_by_image(
    checked: Path, packed: Path, index: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = ShardSet.open(str(packed), "train")
    (tmp_path / "q.jpg").write_bytes(shards.read(30).image)
    words = ["--checkpoint", checked, "--index", index]
    rows = answers(capsys, *words, "--search-image", tmp_path / "q.jpg", "--top", 3)
    assert [list(row) for row in rows] == [FIELDS] * 3
    assert (rows[0]["id"], rows[0]["position"]) == ("train_0030", 30)
    assert rows[0]["score"] == pytest.approx(1, abs=1e-5)
    caption = shards.read(41).caption
    rows = answers(capsys, *words, "--search", caption, "bright", "--find", "captions")
    assert len(rows) == 20
    assert (rows[0]["query"], rows[0]["caption"]) == (caption, caption)
    assert rows[0]["score"] == pytest.approx(1, abs=1e-5)
    assert call(zeroshot.main, ZeroshotConfig, *words, "--search", caption, "--top", 1) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == caption
    assert lines[1].split() == ["rank", "score", "id", "shard", "position", "caption"]
    assert len(lines) == 3
    rows = answers(capsys, *words, "--search", caption, "--top", 48)
    images = np.load(index / "image_features.npy")
    query = np.load(index / "caption_features.npy")[41]
    order = np.argsort(-(images @ query), kind="stable")
    assert [row["score"] for row in rows] == pytest.approx((images @ query)[order], abs=1e-5)


def test_half_precision_is_half_the_size_and_nearly_the_same(
    checked: Path, packed: Path, index: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--checkpoint", checked, "--data", packed, "--split", "train"]
    assert call(embed.main, EmbedConfig, *words, "--out", tmp_path / "half") == 0
    assert "48 pairs, 24 numbers each (float16)" in capsys.readouterr().out
    half, full = (np.load(folder / "image_features.npy") for folder in (tmp_path / "half", index))
    assert half.dtype == np.float16
    assert np.abs(half.astype(np.float32) - full).max() < 3e-4
    rows = answers(
        capsys, "--checkpoint", checked, "--index", tmp_path / "half", "--search", "bright"
    )
    assert len(rows) == 10
    assert call(embed.main, EmbedConfig, *words, "--out", tmp_path / "half") == 2
    assert "half is there already (--overwrite replaces it)" in capsys.readouterr().err
    assert call(embed.main, EmbedConfig, *words, "--out", tmp_path / "half", "--overwrite") == 0
    assert not list(tmp_path.glob("*.partial"))


def random_index(folder: Path, size: int, *, faiss: bool) -> torch.Tensor:
    """An index of random features around 40 centres."""
    generator = torch.Generator().manual_seed(1)
    centres = torch.randn(40, 16, generator=generator)
    rows = centres.repeat(-(-size // 40), 1)[:size]
    rows = rows + 0.5 * torch.randn(size, 16, generator=generator)
    rows = torch.nn.functional.normalize(rows, dim=1)
    pairs = [{"id": str(n), "caption": "c", "shard": "s", "position": n} for n in range(size)]
    batches, about = [(rows, rows, pairs)], {"model": "m", "probes": {}}
    feature_index.write(folder, (size, 16), "float32", batches, about, faiss=faiss)
    return rows


def test_exact_search_in_blocks_is_that_of_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = random_index(tmp_path / "x", 1000, faiss=False)
    rows[7] = rows[3]
    features = np.load(tmp_path / "x" / "image_features.npy", mmap_mode="r+")
    features[7] = features[3]
    features.flush()
    queries = rows[[3, 500]]
    scores, order = (queries @ rows.T).sort(dim=1, descending=True, stable=True)
    for block in (64, 999, 65_536):
        monkeypatch.setattr(feature_index, "_ROWS", block)
        found_scores, found = Index(tmp_path / "x").search(queries, 25)
        assert found.tolist() == order[:, :25].tolist()
        assert found[0, :2].tolist() == [3, 7]
        assert torch.allclose(found_scores, scores[:, :25], atol=1e-6)
    assert Index(tmp_path / "x").search(queries, 5000)[1].shape == (2, 1000)


def test_faiss_finds_nearly_all_with_exact_scores(tmp_path: Path) -> None:
    pytest.importorskip("faiss")
    rows = random_index(tmp_path / "x", 4000, faiss=True)
    index = Index(tmp_path / "x")
    exact_scores, exact = index.search(rows[:50], 10)
    scores, found = index.search(rows[:50], 10, engine="faiss")
    hits = [len(set(a) & set(b)) for a, b in zip(exact.tolist(), found.tolist(), strict=True)]
    assert sum(hits) >= 0.9 * 500
    assert (found[:, 0] == torch.arange(50)).all()
    same = exact == found
    assert torch.allclose(scores[same], exact_scores[same], atol=1e-6)


def test_another_model_is_refused(
    checked: Path, index: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = checkpoint_of(tmp_path / "other.pt", 4)
    words = ["--index", index, "--search", "bright"]
    assert call(zeroshot.main, ZeroshotConfig, "--checkpoint", other, *words) == 2
    assert re_one_line(capsys) == (
        f"test: --index: {index} was made with other weights (tiny-test) than those of "
        "tiny-test now; embed the data again"
    )


def re_one_line(capsys: pytest.CaptureFixture[str]) -> str:
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said.strip()


def test_mistakes(
    checked: Path,
    packed: Path,
    index: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def said(*words: object) -> str:
        assert call(zeroshot.main, ZeroshotConfig, "--checkpoint", checked, *words) == 2
        return re_one_line(capsys)

    assert "no such folder; medclip_oc.embed makes one" in said("--index", "no", "--search", "a")
    assert "not an index" in said("--index", tmp_path, "--search", "a")
    assert "has no such lists" in said("--index", index, "--search", "a", "--engine", "faiss")
    assert "--search: number 1 is empty" in said("--index", index, "--search", " ")
    (tmp_path / "junk.jpg").write_bytes(jpeg(1)[:300])
    words = ["--index", index, "--search-image", tmp_path / "junk.jpg"]
    assert "junk.jpg: truncated" in said(*words)
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for file in index.iterdir():
        (damaged / file.name).write_bytes(file.read_bytes()[:-1])
    assert "damaged, or of another version" in said("--index", damaged, "--search", "a")
    words = ["--checkpoint", checked, "--data", packed, "--out", tmp_path]
    assert call(embed.main, EmbedConfig, *words) == 2
    assert "is there already (it is no index)" in re_one_line(capsys)


def test_a_disk_that_is_full_leaves_nothing(tmp_path: Path) -> None:
    rows = (unit_vectors(100, 64, 0), unit_vectors(100, 64, 1), [{"id": "a"}] * 100)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(WorkError, match=r"index: can't be written \("):
            feature_index.write(tmp_path / "index", (100, 64), "float32", [rows], {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())
