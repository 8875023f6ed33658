"""The evaluation as a command: figures redone from files, baselines, every mistake in a line."""

import json
import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from medclip_oc import evaluate
from medclip_oc.config.evaluation import EvaluateConfig
from medclip_oc.config.schema import Config, ModelConfig
from medclip_oc.evaluation import feature_file, sources
from medclip_oc.models import checkpoint, factory
from medclip_oc.packing.formats import open_source
from medclip_oc.packing.pack import PackOptions, pack
from medclip_oc.runtime import command
from tests.support.cli import torchrun
from tests.support.tiny_dataset import jpeg, write_kaggle, write_pairs, write_tar
from tests.support.tiny_models import TINY

CT, XRAY, LUNG = "C0040405", "C1306645", "C0024109"


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 test pairs with concepts and their names; two share a caption, two an image."""
    folder = tmp_path_factory.mktemp("evaluated")
    source = write_kaggle(folder / "source", {"test": 24})
    rows = (source / "test_captions.csv").read_text().splitlines()
    rows[5] = rows[5].split(",")[0] + "," + rows[1].split(",", 1)[1]
    (source / "test_captions.csv").write_text("\n".join(rows))
    images = source / "test_images" / "test"
    (images / "test_0007.jpg").write_bytes((images / "test_0002.jpg").read_bytes())
    cuis = [f"{CT};{LUNG}" if n % 3 else XRAY for n in range(24)]
    lines = [f"test_{n:04},{cuis[n] if n else ''}" for n in range(24)]
    (source / "test_concepts.csv").write_text("\n".join(["ID,CUIs", *lines]))
    names = [f"{CT},X-Ray Computed Tomography", f"{XRAY},Plain x-ray", f"{LUNG},Lung"]
    (source / "cui_mapping.csv").write_text("\n".join(["CUI,Canonical name", *names]))
    pack(open_source(source, ["test"]), folder / "shards", PackOptions(), workers=1)
    return folder / "shards"


def write_checkpoint(file: Path, shards: Path, seed: int) -> Path:
    """What a run of no steps would leave."""
    settings = ModelConfig(arch="evaluate-test", definition=TINY)
    clip = factory.build(settings, seed=seed)
    config = Config()
    config.model, config.run.seed, config.data.valid = settings, 5, str(shards)
    file.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "state_dict": clip.towers.clip.state_dict(),
        "model": clip.description,
        "config": asdict(config),
        "step": 0,
        "metrics": {},
    }
    checkpoint.save(file, content)
    return file


@pytest.fixture(scope="module")
def best(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "checkpoints"
    return write_checkpoint(folder / "best.pt", shards, seed=1)


def call(*words: object) -> int:
    with pytest.raises(SystemExit) as end:
        command.run(
            evaluate.main,
            EvaluateConfig,
            prog="test",
            description="",
            arguments=list(map(str, words)),
        )
    return int(str(end.value.code))


def measured(*words: object, out: Path) -> dict[str, Any]:
    assert call(*words, "--workers", 0, "--json", out) == 0
    record: dict[str, Any] = json.loads(out.read_text())
    return record


def figures(record: dict[str, Any]) -> dict[str, Any]:
    """A record without where it is from."""
    origin = ("checkpoint", "data", "split", "precision", "decode", "data_fingerprint", "features")
    return {name: value for name, value in record.items() if name not in origin}


def test_everything_at_once(best: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--pools", "4,full", "--pool-draws", 3, "--slices", "lung", "--ks", 2)
    words += ("--baseline", "start", "--interval-draws", 40)
    record = measured("--checkpoint", best, *words, out=tmp_path / "x.json")
    shown = capsys.readouterr().out
    for text in (
        "pool of 24 pairs",
        "copies as one: 23 images, 23 captions",
        "pools of 4 pairs, mean of 3 random ones",
        "modality agreement@1",
        "lung (16)",
        "baseline start",
        "difference to start",
        "R@2",
    ):
        assert text in shown
    own = json.loads((best.parents[1] / "evaluations" / "best-test.json").read_text())
    assert own == record
    assert record["slices"][-1]["concept"] == LUNG
    assert [row["name"] for row in record["slices"]][:2] == ["CT", "X-ray"]
    assert record["concepts"]["queries"] == 23
    assert record["baseline"]["name"] == "start"
    arrays = np.load(tmp_path / "x.npz")
    assert arrays["ids"].shape == arrays["image_to_text_rank"].shape == (24,)
    assert arrays["text_to_image_nearest"].shape == (24, 10)
    assert set(arrays["image_to_text_nearest"].ravel()) <= set(arrays["ids"])


def test_a_baseline_is_the_weights_named(best: Path, shards: Path, tmp_path: Path) -> None:
    """`start` is what the run's own seed draws; a file is what it holds."""
    began = write_checkpoint(tmp_path / "began.pt", shards, seed=5)
    alone = measured("--checkpoint", began, out=tmp_path / "a.json")
    for name in ("start", began):
        record = measured("--checkpoint", best, "--baseline", name, out=tmp_path / "b.json")
        assert record["baseline"]["image_to_text"] == alone["image_to_text"]
        assert record["baseline"]["intervals"] == alone["intervals"]


@pytest.mark.parametrize("suffix", ["npz", "parquet"])
def test_figures_are_redone_from_features(best: Path, tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"features.{suffix}"
    words = ("--pools", "5", "--pool-draws", 3)
    first = measured("--checkpoint", best, "--features-out", file, *words, out=tmp_path / "a.json")
    again = measured("--features-in", file, *words, out=tmp_path / "b.json")
    assert figures(first) == figures(again)
    one, two = (np.load(tmp_path / f"{name}.npz") for name in "ab")
    assert all(np.array_equal(one[name], two[name]) for name in one.files)
    compared = measured("--features-in", file, "--baseline", file, out=tmp_path / "c.json")
    assert set(compared["baseline"]["difference"]["image_to_text"].values()) == {0}


def test_features_of_another_program(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Ids and two matrices will do; what can't be known is said."""
    rows = torch.nn.functional.normalize(torch.randn(30, 8), dim=1).numpy()
    np.savez(tmp_path / "x.npz", ids=np.arange(30), image_features=rows, text_features=rows)
    record = measured("--features-in", tmp_path / "x.npz", out=tmp_path / "x.json")
    assert record["image_to_text"]["R@1"] == 1
    assert "merged" not in record
    shown = capsys.readouterr().out
    assert "no concepts (CUIs)" in shown
    assert "no hashes" in shown


def bad_features(folder: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    rows = torch.nn.functional.normalize(torch.randn(24, 8), dim=1).numpy()
    content = {
        "ids": np.array([f"test_{n:04}" for n in range(24)]),
        "image_features": rows,
        "text_features": rows.copy(),
    }
    change(content)
    np.savez(folder / "bad.npz", **content)
    return folder / "bad.npz"


def not_finite(content: dict[str, Any]) -> None:
    content["text_features"][3, 2] = np.nan


def other_ids(content: dict[str, Any]) -> None:
    content["ids"] = content["ids"][::-1]


def nobody(content: dict[str, Any]) -> None:
    for name in content:
        content[name] = content[name][:0]


def unchanged(content: dict[str, Any]) -> None:
    pass


MISTAKES: dict[str, tuple[Callable[[dict[str, Any]], None], list[str], str]] = {
    "NaN": (not_finite, ["--features-in", "BAD"], "text_features of row 3 holds NaN or infinity"),
    "ids against the pairs": (
        other_ids,
        ["--features-in", "BAD", "--data", "SHARDS"],
        "--features-in: pair 0 is test_0023, but test_0000 is measured there",
    ),
    "ids against the baseline": (
        other_ids,
        ["--checkpoint", "BEST", "--baseline", "BAD"],
        "--baseline: pair 0 is test_0023, but test_0000 is measured there",
    ),
    "an empty file": (nobody, ["--features-in", "BAD"], "bad.npz: holds no pair"),
    "an empty split": (unchanged, ["--checkpoint", "BEST", "--data", "EMPTY"], "no readable pair"),
    "a pool larger than the set": (
        unchanged,
        ["--checkpoint", "BEST", "--pools", "5,25"],
        "--pools: 25 pairs, but the set holds only 24",
    ),
    "no concepts": (
        unchanged,
        ["--features-in", "BAD", "--slices", "CT"],
        "--slices: CT: the pairs have no concepts",
    ),
    "an unknown concept": (
        unchanged,
        ["--checkpoint", "BEST", "--slices", "liver"],
        "--slices: liver: no pair has a concept of this name or CUI",
    ),
    "no hashes": (
        unchanged,
        ["--features-in", "BAD", "--duplicates", "merge"],
        "--duplicates merge: the features come without image_hash",
    ),
    "features in no folder": (
        unchanged,
        ["--checkpoint", "BEST", "--features-out", "/proc/nowhere/x.npz"],
        "--features_out /proc/nowhere/x.npz: /proc/nowhere: No such file",
    ),
    "folders and tars": (
        unchanged,
        ["--checkpoint", "BEST", "--data", "configs::x.tar"],
        "mixes shard folders, which have splits, and tars",
    ),
    "nothing to measure": (unchanged, [], "--checkpoint: required, unless --features-in"),
    "no number": (unchanged, ["--checkpoint", "BEST", "--pools", "ten"], "--pools: 'ten' is not a"),
    "pool of none": (unchanged, ["--checkpoint", "BEST", "--pools", "0"], "--pools: '0' is not a"),
    "K": (unchanged, ["--checkpoint", "BEST", "--ks", "0"], r"--ks: \[0\] is not at least 1"),
    "no such baseline": (
        unchanged,
        ["--checkpoint", "BEST", "--baseline", "nowhere.pt"],
        "--baseline: nowhere.pt: no such file",
    ),
    "no such tag": (
        unchanged,
        ["--checkpoint", "BEST", "--baseline", "ViT-B-16:openaai"],
        "'openaai' is neither a file nor a tag of ViT-B-16",
    ),
    "a tag without a checkpoint": (
        unchanged,
        ["--features-in", "BAD", "--data", "SHARDS", "--baseline", "openai"],
        "--baseline openai: needs --checkpoint",
    ),
    "weights before a run that isn't there": (
        unchanged,
        ["--features-in", "BAD", "--data", "SHARDS", "--baseline", "start"],
        "--baseline start: needs --checkpoint",
    ),
    "a baseline without pairs": (
        unchanged,
        ["--features-in", "BAD", "--baseline", "ViT-B-16:openai"],
        "--baseline ViT-B-16:openai: a model needs the pairs; name them with --data",
    ),
    "two files of one name": (
        unchanged,
        ["--checkpoint", "BEST", "--features-out", "x.npz", "--json", "x.json"],
        "--features-out: 'x.npz' is not another name than that of --json",
    ),
    "a file of another kind": (
        unchanged,
        ["--features-in", "x.csv"],
        r"--features-in: 'x.csv' is not a file name that ends in .npz or .parquet",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_one_line(
    name: str, best: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change, words, message = MISTAKES[name]
    write_pairs(tmp_path / "x.tar", range(0))
    stands_for = {
        "BAD": bad_features(tmp_path, change),
        "BEST": best,
        "SHARDS": shards,
        "EMPTY": tmp_path / "x.tar",
    }
    given = [stands_for.get(word, word) for word in words]
    assert call(*given, *(["--workers", 0] if given else [])) == 2
    error = capsys.readouterr().err
    assert error.startswith("test: ")
    assert error.count("\n") == 1
    assert re.search(message, error), error


def test_a_model_that_is_not_finite(
    best: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = checkpoint.load(best)
    content["state_dict"]["text_projection"][0, 0] = torch.nan
    checkpoint.save(tmp_path / "nan.pt", content)
    assert call("--checkpoint", tmp_path / "nan.pt", "--workers", 0) == 1
    assert capsys.readouterr().err == (
        "test: text features hold NaN or infinity: nothing can be ranked\n"
    )


@pytest.mark.slow
def test_two_processes(best: Path, shards: Path, tmp_path: Path) -> None:
    """The same figures from two, which share the model's work; and a mistake in one line."""
    file = tmp_path / "features.parquet"
    words = ("--checkpoint", best, "--pools", "5", "--pool-draws", 3, "--baseline", "start")
    alone = measured(*words, "--features-out", tmp_path / "1.npz", out=tmp_path / "one.json")
    more = ("--features-out", file, "--json", tmp_path / "two.json")
    done = torchrun(2, "-m", "medclip_oc.evaluate", *words, *more)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("pool of 24 pairs") == 1
    both = json.loads((tmp_path / "two.json").read_text())
    assert both["merged"]["images"] == alone["merged"]["images"]
    for way in ("image_to_text", "text_to_image"):
        assert both[way] == pytest.approx(alone[way], rel=1e-6)
    one, two = (feature_file.load(f) for f in (tmp_path / "1.npz", file))
    assert one.ids == two.ids
    assert one.images == pytest.approx(two.images, abs=1e-6)
    assert np.array_equal(one.concepts, two.concepts)  # type: ignore[arg-type]
    done = torchrun(2, "-m", "medclip_oc.evaluate", "--checkpoint", best, "--pools", "25")
    assert done.returncode != 0
    ours = [line for line in done.stderr.splitlines() if line.startswith("python -m medclip_oc")]
    assert ours == ["python -m medclip_oc.evaluate: --pools: 25 pairs, but the set holds only 24"]


def test_a_folder_under_the_home_is_a_folder(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(shards.parent))
    settings = EvaluateConfig(checkpoint="x.pt", data=f"~/{shards.name}")
    assert sources._split(settings, settings.data) == "test"


def test_facts_of_other_makers_name_no_slice(
    best: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = (b'{"concepts": [40405, 1]}', b'{"concepts": "C0040405;C1306645"}', b"[1]")
    members = {}
    for n, content in enumerate(facts):
        members |= {f"p{n}.jpg": jpeg(n), f"p{n}.txt": b"x", f"p{n}.json": content}
    tar = write_tar(tmp_path / "x.tar", members)
    assert call("--checkpoint", best, "--data", tar, "--slices", "lung", "--workers", 0) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "--slices: lung: the pairs have no concepts" in error
