"""Findings judged by pairs of phrasings: rows, figures, records, and what is refused."""

import csv
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import medclip_oc
from medclip_oc import zeroshot
from medclip_oc.config.inference import ZeroshotConfig
from medclip_oc.errors import InputError
from medclip_oc.evaluation import findings
from medclip_oc.inference import labels
from medclip_oc.inference.embedder import open_embedder
from medclip_oc.inference.image_inputs import ImageSet, find
from medclip_oc.inference.prompt_sets import PromptClass
from medclip_oc.models import averaging
from tests.support.cli import call
from tests.support.tiny_dataset import jpeg

SET = """
multi_label: true
classes:
  Edema: {positive: [edema, wet lungs], negative: [no edema, dry lungs, clear]}
  Mass: {positive: [a mass], negative: [no mass], aliases: [tumour]}
"""
NAMES = ["auroc", "average_precision", "balanced_accuracy", "f1", "mcc"]
FIELDS = ["image", "finding", "probability", "cosine_positive", "cosine_negative"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Path:
    """A run with a checkpoint, 12 pictures, labels of 7 for the figures and of 5 for thresholds."""
    folder = tmp_path_factory.mktemp("findings")
    for name in ("checkpoints", "pictures"):
        (folder / name).mkdir()
    shutil.copy(tiny_checkpoint, folder / "checkpoints" / "best.pt")
    for n in range(12):
        (folder / "pictures" / f"{n:02}.jpg").write_bytes(jpeg(n))
    rows = ["00,1,", "01,0,1", "02,1,0", "03,0,0", "04,1,-1", "05,0,1", "06,1,1"]
    (folder / "test.csv").write_text("\n".join(["id,Edema,Tumour", *rows]))
    rows = ["07,mass", "08,edema", "09,No Finding", "10,mass|edema"]
    (folder / "valid.csv").write_text("\n".join(["id,findings", *rows]))
    (folder / "set.yaml").write_text(SET)
    return folder


def run(folder: Path, *words: object, code: int = 0) -> None:
    words = ("--checkpoint", folder / "checkpoints" / "best.pt", "--format", "csv", *words)
    assert call(zeroshot.main, ZeroshotConfig, *words) == code


def test_probabilities_are_chexzeros(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Tiu et al. 2022: exp(p) / (exp(p) + exp(n)), p and n the image's logits with the normalised
    means of the normalised features of the positive and of the negative phrasings.
    """
    run(folder, "--images", folder / "pictures", "--prompts", folder / "set.yaml", "--multi-label")
    said = capsys.readouterr()
    rows = list(csv.DictReader(said.out.splitlines()))
    assert [*rows[0]] == FIELDS
    assert [row["finding"] for row in rows[:3]] == ["Edema", "Mass", "Edema"]
    assert said.err.startswith("prompts: set, 2 classes, 3 positive and 4 negative texts; ")
    clip, preprocess, tokenizer = medclip_oc.load(folder / "checkpoints" / "best.pt")
    pixels = preprocess(Image.open(folder / "pictures" / "00.jpg").convert("RGB"))[None]
    edema = (["edema", "wet lungs"], ["no edema", "dry lungs", "clear"])
    sides = [edema, (["a mass"], ["no mass"])]
    with torch.inference_mode():
        image, scale = clip.encode_image(pixels, normalize=True)[0], float(clip.logit_scale.exp())
        for row, texts in zip(rows[:2], sides, strict=True):
            means = [clip.encode_text(tokenizer(t), normalize=True).mean(0) for t in texts]
            p, n = (float(scale * (image @ mean) / mean.norm()) for mean in means)
            expected = [math.exp(p) / (math.exp(p) + math.exp(n)), p / scale, n / scale]
            assert [float(row[name]) for name in FIELDS[2:]] == pytest.approx(expected, abs=1e-5)


def test_figures_and_their_record(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Redone from the rows; thresholds by the other table, whose images are among the same."""
    words = ["--prompts", folder / "set.yaml", "--multi-label", "--labels", folder / "test.csv"]
    images = ["--images", folder / "pictures", "--interval-draws", 20]
    run(folder, *words, *images, "--threshold-labels", folder / "valid.csv", "--uncertain", "ones")
    said = capsys.readouterr()
    rows = list(csv.DictReader(said.out.splitlines()))
    values = np.array([float(row["probability"]) for row in rows]).reshape(12, 2)
    truth = np.array([[1, -1], [0, 1], [1, 0], [0, 0], [1, 1], [0, 1], [1, 1]], np.int8)
    limits = findings.thresholds(np.array([[0, 1], [1, 0], [0, 0], [1, 1]], np.int8), values[7:11])
    expected = findings.measure(["Edema", "Mass"], truth, values[:7], draws=20, thresholds=limits)
    kept = folder / "evaluations" / f"best-{folder.name}-test-findings.json"
    record = json.loads(kept.read_text())
    found, expected = (each["findings"]["Mass"] for each in (record, expected))
    assert found.pop("intervals").keys() == expected.pop("intervals").keys() == {*NAMES}
    assert found == pytest.approx(expected, abs=1e-5)
    assert record["prompts"]["Mass"] == {"positive": ["a mass"], "negative": ["no mass"]}
    assert "test.csv: 1 images have no row, 0 rows have no image: not counted" in said.err
    assert "left out" not in said.err
    run(folder, *words, *images, "--figures", folder / "x" / "figures.json")
    line = "balanced accuracy, F1, MCC are left out: they need --threshold-labels"
    assert line in capsys.readouterr().err
    assert "mcc" not in json.loads((folder / "x" / "figures.json").read_text())["findings"]["Mass"]


def test_features_in_place_of_images(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same rows and figures; thresholds from images of their own."""
    best = str(folder / "checkpoints" / "best.pt")
    embedder = open_embedder(ZeroshotConfig(checkpoint=best, images=["x"], texts=["x"]))
    [(_, made, _)] = embedder.images(find([str(folder / "pictures")], None))
    np.savez(folder / "f.npz", ids=[f"{n:02}" for n in range(7)], image_features=made[:7].numpy())
    words = ["--prompts", folder / "set.yaml", "--multi-label", "--labels", folder / "test.csv"]
    words += ["--threshold-labels", folder / "valid.csv", "--threshold-images", folder / "pictures"]
    sources, printed = {"--features-in": "f.npz", "--images": "pictures/0[0-6].jpg"}, []
    for option, source in sources.items():
        run(folder, *words, option, folder / source, "--figures", folder / "figures.json")
        rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
        printed.append([float(row["probability"]) for row in rows])
        record = json.loads((folder / "figures.json").read_text())
        assert record["features_in"] == (str(folder / source) if source == "f.npz" else None)
        printed[-1].append(record["macro"]["mcc"])
    assert printed[0] == pytest.approx(printed[1], abs=1e-5)
    weights = averaging.size(embedder.clip.towers.clip.state_dict())
    for code, made_by in {0: weights, 2: 1.001 * weights}.items():
        about = {"image_features": np.eye(7, 24), "weights": np.full(7, made_by)}
        np.savez(folder / "f.npz", ids=[f"{n:02}" for n in range(7)], **about)
        run(folder, *words[:3], "--features-in", folder / "f.npz", code=code)
    assert "made by other weights" in capsys.readouterr().err
    np.savez(folder / "f.npz", image_features=np.eye(7))
    run(folder, *words[:3], "--features-in", folder / "f.npz", code=2)
    line = "features of 7 numbers, where the model's have 24: they are of an"
    assert line in capsys.readouterr().err


IMAGES = ImageSet([Path(f"/data/{n}.png") for n in range(6)])
CANDIDATES = [PromptClass("Edema", ("a",), ("b",)), PromptClass("Mass", ("c",), ("d",))]
BOTH = "id,Edema,Mass 0,1,0 1,0,1"
REFUSED = {  # labels and labels for thresholds, a blank between lines -> what the line says
    ("id,Edema,Mass x,1,0", None): "labels.csv: none of its rows names one of the im",
    ("id,Edema,Mass 0,1,0 1,1,0", None): "all 2 images are alike: no figures",
    ("id,label 0,Mass 1,Mass", None): "all 2 images are alike: no figures",
    (BOTH, BOTH): "/data/0.png is in --labels too; thresholds come from other images",
    (BOTH, "id,Edema,Mass 1,0,1 2,1,0"): "/data/1.png is in --labels too",
    ("id,label 0,Mass|Edema", None): "true are ['Edema', 'Mass']; one class is w",
}


def test_thresholds_on_copies_of_the_images_are_refused(tmp_path: Path) -> None:
    """The same rows stand for other files."""
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
        for n in range(2):
            (tmp_path / place / f"{n}.png").touch()
    (tmp_path / "labels.csv").write_text(BOTH.replace(" ", "\n"))
    how: dict[str, Any] = dict.fromkeys(
        ("labels", "threshold_labels"), str(tmp_path / "labels.csv")
    )
    how |= {"threshold_images": [str(tmp_path / "b")], "prompts": "chexpert5", "multi_label": True}
    settings = ZeroshotConfig(checkpoint="c", images=[str(tmp_path / "a")], **how)
    with pytest.raises(InputError, match=": 0 is in --labels too"):
        labels.open_labels(settings, CANDIDATES, find(settings.images, None))


@pytest.mark.parametrize("tables", REFUSED)
def test_tables_that_give_no_figures(tables: tuple[str, str | None], tmp_path: Path) -> None:
    """Of several labels an image where there are columns of them."""
    how: dict[str, Any] = {"prompts": "chexpert5", "multi_label": "Edema,Mass" in tables[0]}
    for option, text in zip(("labels", "threshold_labels"), tables, strict=True):
        if text:
            (tmp_path / f"{option}.csv").write_text("\n".join(text.split(" ")))
            how[option] = str(tmp_path / f"{option}.csv")
    with pytest.raises(InputError) as refused:
        labels.open_labels(ZeroshotConfig(checkpoint="c", images=["a"], **how), CANDIDATES, IMAGES)
    assert REFUSED[tables] in str(refused.value)


def test_a_finding_without_positives_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "labels.csv").write_text("id,Edema,Mass\n0,1,0\n1,0,0\n")
    how: dict[str, Any] = {"labels": str(tmp_path / "labels.csv"), "prompts": "chexpert5"}
    settings = ZeroshotConfig(checkpoint="c", images=["a"], multi_label=True, **how)
    labels.open_labels(settings, CANDIDATES, IMAGES)
    assert "labels.csv: no positive, or no negative image of Mass\n" in capsys.readouterr().err


def test_records_of_other_tables_and_tasks_are_kept(tmp_path: Path) -> None:
    """None has a name that retrieval gives."""
    tables = [("probe", "x/test.csv"), ("findings", "x/test.csv"), ("probe", "y/test.csv")]
    for n, (task, table) in enumerate([*tables, tables[0]]):
        best = str(tmp_path / "checkpoints" / "best.pt")
        labels.keep({"task": task, "n": n}, table, best, None)
    files = (tmp_path / "evaluations").glob("*.json")
    found = {file.stem: json.loads(file.read_text())["n"] for file in files}
    assert found == {"best-x-test-probe": 3, "best-x-test-findings": 1, "best-y-test-probe": 2}


def test_sets_are_listed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a model or images."""
    assert call(zeroshot.main, ZeroshotConfig, "--list-prompts") == 0
    assert "\nchexpert14         14 classes  Irvin et al. 2019" in capsys.readouterr().out
    words = ["--list-prompts", "--prompts", folder / "set.yaml"]
    assert call(zeroshot.main, ZeroshotConfig, *words) == 0
    assert "\nMass\n  + a mass\n  - no mass\n" in capsys.readouterr().out
