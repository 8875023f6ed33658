"""`evaluate --probe`: where images, features, labels and splits come from."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from medclip_oc import evaluate
from medclip_oc.config.evaluation import EvaluateConfig
from medclip_oc.config.parse import parse
from medclip_oc.config.schema import Config
from medclip_oc.evaluation import probes
from medclip_oc.models import factory
from tests.conftest import REAL_DATA
from tests.support import reference
from tests.support.cli import call, one_line

COUNTS = {"train": 48, "valid": 12, "test": 12}  # of `packed`, where every other image is dark
ROWS = [
    (f"{split}_{n:04}", split.replace("valid", "Val"), "bright" if n % 2 else "dark")
    for split, count in COUNTS.items()
    for n in range(count)
]


def probe(table: pd.DataFrame, file: Path, *words: object) -> dict[str, Any]:
    table.to_csv(file, index=False)
    out = file.with_suffix(".json")
    assert call(evaluate.main, EvaluateConfig, "--probe", file, *words, "--json", out) == 0
    record: dict[str, Any] = json.loads(out.read_text())
    return record


def test_shards_files_and_features_are_probed_alike(
    packed: Path,
    tiny_checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(probes, "_DRAWS", 2)
    table, file = pd.DataFrame(ROWS, columns=["id", "split", "label"]), tmp_path / "labels.csv"
    model = ("--checkpoint", tiny_checkpoint, "--workers", 0)
    one = probe(table, file, *model, "--data", packed, "--features-out", tmp_path / "a.npz")
    assert one["images"] == COUNTS
    assert one["linear"]["confusion"]["classes"] == ["bright", "dark"]
    two = probe(table, file, *model, "--images", packed.parent / "source")
    shuffled = table.assign(id="x/../" + table["id"]).sample(frac=1, random_state=0)
    three = probe(shuffled, file, "--features-in", tmp_path / "a.npz")
    for name in ("knn", "linear", "few_shot"):
        assert one[name] == three[name]
        assert two[name]["1" if name == "few_shot" else "accuracy"]
    capsys.readouterr()
    drawn = probe(table[["id", "label"]], file, "--features-in", tmp_path / "a.npz", "--seed", 1)
    assert {**drawn["images"]} == {"train": 44, "valid": 14, "test": 14}
    said = capsys.readouterr().out
    assert "no column `split`: 60, 20 and 20 % of the images are drawn with --seed 1, by" in said
    assert "72 of 72 images have a row" in said


@pytest.mark.parametrize(
    ("rows", "words", "line"),
    [
        ("id,label,split\na,x,train\na,x,dev\n", [], "line 3: a has another split before"),
        ("id,label,split\na,x,home\n", [], "line 2: split: 'home': wanted is train, training"),
        ("id,label\na,x\nb,y\n", [], "images with a label {'train': 2, 'valid': 0, 'test': 0}"),
        ("id,label\na,x\n", ["--images", "x"], "give --data, --images or --features-in"),
        ("id,label\na,x\n", ["--slices", "CT"], "--slices: ['CT'] is not allowed with --probe"),
    ],
)
def test_mistakes_are_one_line(
    rows: str, words: list[str], line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "labels.csv").write_text(rows)
    np.savez(tmp_path / "a.npz", ids=np.array(["a", "b"]), image_features=np.eye(2))
    words = ["--probe", str(tmp_path / "labels.csv"), *words]
    words += ["--features-in", str(tmp_path / "a.npz")]
    assert call(evaluate.main, EvaluateConfig, *words) == 2
    assert line in one_line(capsys.readouterr().err)


@pytest.mark.slow
def test_imagenet_features_of_real_images_beat_chance(tmp_path: Path) -> None:
    if not REAL_DATA.is_dir():
        pytest.skip(f"the real images are not at {REAL_DATA}")
    config = parse(Config, ["--config", "warm_towers"])
    model = reference.save(factory.build(config.model, seed=0), tmp_path / "warm.pt")
    chest = pd.read_csv(REAL_DATA / "nih64" / "source.csv", dtype=str)[["image", "split"]]
    tables = {
        "nih64": chest.assign(label=chest.image.str.split("/").str[0]),
        "brain_mri": pd.read_csv(REAL_DATA / "brain_mri" / "labels.csv"),
        "vqa_rad": pd.read_csv(
            REAL_DATA / "vqa_rad" / "source.csv", usecols=["ID", "split", "organ"]
        ),
    }
    for name, table in tables.items():
        table = table.rename(columns={"organ": "label"})
        words = ("--checkpoint", model, "--images", REAL_DATA / name)
        figures = probe(table, tmp_path / f"{name}.csv", *words)["linear"]
        assert figures["intervals"]["auroc"][0] > 0.5
        assert figures["intervals"]["balanced_accuracy"][0] > 1 / len(figures["classes"])
