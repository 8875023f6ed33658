"""Indices: written, searched, and tied to their model."""

import json
import resource
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import medclip_oc
from medclip_oc import embed, zeroshot
from medclip_oc.config.inference import EmbedConfig, ZeroshotConfig
from medclip_oc.data.shards import ShardSet
from medclip_oc.errors import InputError, WorkError
from medclip_oc.imaging.decode import decode
from medclip_oc.inference import feature_index
from medclip_oc.inference.feature_index import Index
from medclip_oc.models import checkpoint
from tests.support.cli import call, one_line
from tests.support.tiny_dataset import jpeg, write_tar
from tests.support.tiny_models import unit_vectors

FIELDS = ["query", "rank", "id", "score", "caption", "shard", "position"]


@pytest.fixture
def search(tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Searches an index as the command does: what it prints, or its one line on a mistake."""

    def run(index: Path | str, *words: object, code: int = 0) -> str:
        words = ("--checkpoint", tiny_checkpoint, "--index", index, *words)
        assert call(zeroshot.main, ZeroshotConfig, *words) == code
        said = capsys.readouterr()
        return one_line(said.err) if code else said.out

    return run


def test_an_index_holds_what_open_clip_gives(
    tiny_checkpoint: Path, packed: Path, index: Path
) -> None:
    clip, preprocess, tokenizer = medclip_oc.load(tiny_checkpoint)
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
    search: Callable[..., str], packed: Path, index: Path, tmp_path: Path
) -> None:
    def rows(*words: object) -> list[dict[str, Any]]:
        return list(map(json.loads, search(index, *words, "--format", "jsonl").splitlines()))

    shards = ShardSet.open(str(packed), "train")
    (tmp_path / "q.jpg").write_bytes(shards.read(30).image)
    found = rows("--search-image", tmp_path / "q.jpg", "--top", 3)
    assert [list(row) for row in found] == [FIELDS] * 3
    assert (found[0]["id"], found[0]["position"]) == ("train_0030", 30)
    assert found[0]["score"] == pytest.approx(1, abs=1e-5)
    caption = shards.read(41).caption
    found = rows("--search", caption, "bright", "--find", "captions")
    assert len(found) == 20
    assert (found[0]["query"], found[0]["caption"]) == (caption, caption)
    assert found[0]["score"] == pytest.approx(1, abs=1e-5)
    lines = search(index, "--search", caption, "--top", 1).splitlines()
    assert lines[0] == caption
    assert lines[1].split() == ["rank", "score", "id", "shard", "position", "caption"]
    assert len(lines) == 3
    images = np.load(index / "image_features.npy")
    scores = images @ np.load(index / "caption_features.npy")[41]
    found = rows("--search", caption, "--top", 48)
    assert [row["score"] for row in found] == pytest.approx(-np.sort(-scores), abs=1e-5)


def test_half_precision_is_half_the_size_and_nearly_the_same(
    search: Callable[..., str],
    tiny_checkpoint: Path,
    packed: Path,
    index: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "half size"
    words = ["--checkpoint", tiny_checkpoint, "--data", packed, "--split", "train", "--out", out]
    assert call(embed.main, EmbedConfig, *words) == 0
    said = capsys.readouterr().out
    assert f"48 pairs, 24 numbers each (float16): written to {out}\n" in said
    command = shlex.split(said.partition("python -m medclip_oc.zeroshot ")[2])
    assert call(zeroshot.main, ZeroshotConfig, *command) == 0  # as it is printed
    assert capsys.readouterr().out.startswith("left pleural effusion\n")
    half, full = (np.load(folder / "image_features.npy") for folder in (out, index))
    assert half.dtype == np.float16
    assert np.abs(half.astype(np.float32) - full).max() < 3e-4
    assert len(search(out, "--search", "bright", "--format", "jsonl").splitlines()) == 10
    assert call(embed.main, EmbedConfig, *words) == 2
    assert "half size is there already (--overwrite replaces it)" in capsys.readouterr().err
    assert call(embed.main, EmbedConfig, *words, "--overwrite") == 0
    assert not list(tmp_path.glob("*.partial"))


def random_index(folder: Path, size: int, *, faiss: bool) -> torch.Tensor:
    """An index of random features around 40 centres."""
    rows = unit_vectors(40, 16, 1)[torch.arange(size) % 40] + 0.5 * unit_vectors(size, 16, 2)
    rows = torch.nn.functional.normalize(rows, dim=1)
    rows[7] = rows[3]
    pairs = [{"id": str(n), "caption": "c", "shard": "s", "position": n} for n in range(size)]
    feature_index.write(folder, (size, 16), "float32", [(rows, rows, pairs)], {}, faiss=faiss)
    return rows


def test_exact_search_in_blocks_is_that_of_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = random_index(tmp_path / "x", 1000, faiss=False)
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
    exact_scores, exact = index.search(rows[8:58], 10)
    scores, found = index.search(rows[8:58], 10, engine="faiss")
    hits = [len(set(a) & set(b)) for a, b in zip(exact.tolist(), found.tolist(), strict=True)]
    assert sum(hits) >= 0.9 * 500
    assert (found[:, 0] == torch.arange(8, 58)).all()
    same = exact == found
    assert torch.allclose(scores[same], exact_scores[same], atol=1e-6)


def test_images_without_captions_are_enough(
    search: Callable[..., str], tiny_checkpoint: Path, tmp_path: Path, capsys: Any
) -> None:
    tar = write_tar(tmp_path / "0.tar", {f"{n}.jpg": jpeg(n) for n in range(3)})
    where = ("--checkpoint", tiny_checkpoint, "--data", tar, "--out", index := tmp_path / "index")
    assert call(embed.main, EmbedConfig, *where) == 0
    assert "3 images have no caption" in capsys.readouterr().err
    rows = json.loads(search(index, "--search", "a", "--format", "json"))
    assert sorted((row["id"], row["caption"]) for row in rows) == [("0", ""), ("1", ""), ("2", "")]
    assert "has none, only images" in search(index, "--search", "a", "--find", "captions", code=2)
    words = ("--checkpoint", tiny_checkpoint, "--texts", "a", "--images", tar)
    assert call(zeroshot.main, ZeroshotConfig, *words) == 0
    content = checkpoint.load(tiny_checkpoint) | {"config": {"data": {"caption_key": "said"}}}
    torch.save(content, tmp_path / "said.pt")
    where = ("--data", write_tar(tmp_path / "1.tar", {"a.jpg": jpeg(1), "a.said": b"x"}))
    for words in ((tmp_path / "said.pt",), (tiny_checkpoint, "--caption-key", "said")):
        words = ("--checkpoint", *words, *where, "--overwrite", "--out", index)
        assert call(embed.main, EmbedConfig, *words) == 0
        assert Index(index).pair(0)["caption"] == "x"


def test_another_model_is_refused(
    search: Callable[..., str], tiny_checkpoint: Path, index: Path, tmp_path: Path
) -> None:
    content = checkpoint.load(tiny_checkpoint)
    content["state_dict"]["text_projection"].neg_()
    checkpoint.save(tmp_path / "other.pt", content)
    said = search(index, "--search", "bright", "--checkpoint", tmp_path / "other.pt", code=2)
    assert "was made with other weights (tiny-test) than those of tiny-test now" in said


def test_mistakes(search: Callable[..., str], index: Path, tmp_path: Path) -> None:
    (tmp_path / "junk.jpg").write_bytes(jpeg(1)[:300])
    for name, file in (("older", "about.json"), ("damaged", "image_features.npy")):
        shutil.copytree(index, tmp_path / name)
        content = (index / file).read_bytes()
        (tmp_path / name / file).write_bytes(content.replace(b"files", b"")[:-1] + b"\n")
    for folder, words, message in (
        ("no", ["--search", "a"], "no such folder; medclip_oc.embed makes one"),
        (tmp_path, ["--search", "a"], "not an index"),
        (tmp_path / "older", ["--search", "a"], "of another version; embed the data again"),
        (tmp_path / "damaged", ["--search", "a"], "damaged, or of another version"),
        (index, ["--search", "a", "--engine", "faiss"], "has no such lists"),
        (index, ["--search", " "], "--search: number 1 is empty"),
        (index, ["--search-image", tmp_path / "junk.jpg"], "junk.jpg: truncated"),
    ):
        assert message in search(folder, *words, code=2)
    with pytest.raises(InputError, match=r"is there already \(it is no index\)"):
        feature_index.write(tmp_path, (0, 4), "float32", [], {})


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
