"""Captions ranked for images: every way in, every form out, and every mistake in a line."""

import csv
import io
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

import medclip_oc
from medclip_oc import zeroshot
from medclip_oc.config.inference import ZeroshotConfig
from medclip_oc.config.schema import ModelConfig
from medclip_oc.inference import prompts as candidates
from medclip_oc.models import checkpoint, factory
from tests.support.cli import call
from tests.support.tiny_dataset import jpeg
from tests.support.tiny_models import TINY

FIELDS = ["image", "rank", "text", "cosine", "probability", "margin"]
TEXTS = ["a mass", "no finding", "pleural effusion"]


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as training leaves it, of random weights."""
    clip = factory.build(ModelConfig(arch="tiny-test", definition=TINY), seed=3)
    file = tmp_path_factory.mktemp("zeroshot") / "best.pt"
    content = {"state_dict": clip.towers.clip.state_dict(), "model": clip.description}
    checkpoint.save(file, {**content, "config": {}})
    return file


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five images: one in a folder inside, a hidden one beside, and a text file."""
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "inner").mkdir()
    for n in range(4):
        (folder / f"{n}.jpg").write_bytes(jpeg(n))
    (folder / "inner" / "4.PNG").write_bytes(jpeg(4))
    (folder / "._0.jpg").write_bytes(b"a note of a Mac")
    (folder / "notes.txt").write_text("not an image")
    return folder


def rows_of(
    capsys: pytest.CaptureFixture[str], *words: object, code: int = 0
) -> tuple[list[dict[str, Any]], str]:
    """Rows, and what was said besides."""
    assert call(zeroshot.main, ZeroshotConfig, *words, "--format", "jsonl") == code
    said = capsys.readouterr()
    return [json.loads(line) for line in said.out.splitlines()], said.err


# ------------------------------------------------------------------------------------------ figures


def test_rows_are_what_open_clip_gives(
    checked: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Cosine, probability and margin redone with open_clip's own model and preprocessing."""
    rows, said = rows_of(
        capsys, "--checkpoint", checked, "--images", pictures / "1.jpg", "--texts", *TEXTS
    )
    clip, preprocess, tokenizer = medclip_oc.load(checked)
    with torch.inference_mode():
        pixels = preprocess(Image.open(pictures / "1.jpg").convert("RGB"))[None]
        image = clip.encode_image(pixels, normalize=True)
        texts = clip.encode_text(tokenizer(TEXTS), normalize=True)
        cosines = (image @ texts.T)[0]
        shares = (clip.logit_scale.exp() * cosines).softmax(0)
    order = cosines.argsort(descending=True).tolist()
    assert said == ""
    assert [list(row) for row in rows] == [FIELDS] * 3
    assert [row["text"] for row in rows] == [TEXTS[m] for m in order]
    assert [row["rank"] for row in rows] == [1, 2, 3]
    for row, m in zip(rows, order, strict=True):
        assert row["cosine"] == pytest.approx(float(cosines[m]), abs=1e-5)
        assert row["probability"] == pytest.approx(float(shares[m]), abs=1e-5)
    assert rows[0]["margin"] == pytest.approx(rows[0]["cosine"] - rows[1]["cosine"], abs=1e-6)
    assert rows[2]["margin"] == pytest.approx(rows[2]["cosine"] - rows[0]["cosine"], abs=1e-6)


def test_templates_are_the_mean_of_their_features(
    checked: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "forms.txt").write_text("a scan of {}\n\n{} is seen {}\n")
    words = ["--checkpoint", checked, "--images", pictures / "0.jpg", "--texts", *TEXTS]
    rows, _ = rows_of(capsys, *words, "--templates", tmp_path / "forms.txt")
    clip, preprocess, tokenizer = medclip_oc.load(checked)
    with torch.inference_mode():
        pixels = preprocess(Image.open(pictures / "0.jpg").convert("RGB"))[None]
        image = clip.encode_image(pixels, normalize=True)[0]
        for row in rows:
            text = row["text"]
            prompts = [f"a scan of {text}", f"{text} is seen {text}"]
            mean = clip.encode_text(tokenizer(prompts), normalize=True).mean(0)
            assert row["cosine"] == pytest.approx(float(image @ mean / mean.norm()), abs=1e-5)
    built_in, _ = rows_of(capsys, *words, "--templates", "radiology")
    assert {row["text"] for row in built_in} == set(TEXTS)
    assert {row["cosine"] for row in built_in} != {row["cosine"] for row in rows}
    assert all("{}" in form for form in candidates.RADIOLOGY)


def test_texts_of_a_label_are_one_candidate(
    checked: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "texts.csv"
    table.write_text("label,text\nsick,a mass\nwell,no finding\nsick,pleural effusion\n")
    words = ["--checkpoint", checked, "--images", pictures / "0.jpg", "--texts-file", table]
    rows, _ = rows_of(capsys, *words)
    assert {row["text"] for row in rows} == {"sick", "well"}
    alone, _ = rows_of(
        capsys, "--checkpoint", checked, "--images", pictures / "0.jpg", "--texts", "no finding"
    )
    well = next(row for row in rows if row["text"] == "well")
    assert well["cosine"] == pytest.approx(alone[0]["cosine"], abs=1e-5)
    table.write_text("kind,text\nsick,a mass\nwell,no finding\n")
    rows, _ = rows_of(capsys, *words)
    assert {row["text"] for row in rows} == {"a mass", "no finding"}
    rows, _ = rows_of(capsys, *words, "--label-column", "kind")
    assert {row["text"] for row in rows} == {"sick", "well"}


def test_none_of_these_is_a_candidate(
    checked: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--checkpoint", checked, "--images", pictures, "--texts", *TEXTS]
    plain, _ = rows_of(capsys, *words)
    best = sorted(row["cosine"] for row in plain if row["rank"] == 1)
    limit = (best[1] + best[2]) / 2
    rows, _ = rows_of(capsys, *words, "--threshold", limit, "--top", 1)
    first = [row["text"] for row in rows]
    assert first.count("none of these") == 2
    for row, one in zip(rows, (row for row in plain if row["rank"] == 1), strict=True):
        assert row["text"] == ("none of these" if one["cosine"] < limit else one["text"])
    rows, _ = rows_of(capsys, *words, "--threshold", limit)
    assert sum(row["probability"] for row in rows) == pytest.approx(5, abs=1e-4)
    assert {row["cosine"] for row in rows if row["text"] == "none of these"} == {round(limit, 6)}


# --------------------------------------------------------------------------------------- ways in


def test_images_of_every_kind(
    checked: Path, pictures: Path, packed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--checkpoint", checked, "--texts", "a", "--images"]
    folder, _ = rows_of(capsys, *words, pictures)
    assert [Path(row["image"]).name for row in folder] == [f"{n}.jpg" for n in range(4)] + ["4.PNG"]
    rows, _ = rows_of(capsys, *words, pictures / "[12].jpg", pictures / "3.jpg", pictures)
    names = [Path(row["image"]).name for row in rows]
    assert names == ["1.jpg", "2.jpg", "3.jpg", "0.jpg", "4.PNG"]  # each once
    rows, _ = rows_of(capsys, *words, packed, "--split", "valid")
    assert [row["image"] for row in rows] == [f"valid_{n:04}" for n in range(12)]
    rows, _ = rows_of(capsys, *words, packed)
    assert len(rows) == 12
    assert rows[0]["image"] == "test_0000"
    rows, _ = rows_of(capsys, *words, packed / "train-{000000..000001}.tar", pictures / "0.jpg")
    assert len(rows) == 41


@pytest.mark.parametrize("batch", ["1", "3", "64"])
def test_batches_and_workers_change_nothing(
    checked: Path, pictures: Path, batch: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--checkpoint", checked, "--images", pictures, "--texts", *TEXTS]
    plain, _ = rows_of(capsys, *words)
    rows, _ = rows_of(capsys, *words, "--batch-size", batch, "--workers", 0 if batch == "1" else 2)
    assert [row["text"] for row in rows] == [row["text"] for row in plain]
    for name in ("cosine", "probability", "margin"):
        assert [row[name] for row in rows] == pytest.approx([r[name] for r in plain], abs=1e-5)


TEXT_FILES = {
    "lines.txt": "\ufeffa mass\r\n\r\n  pleural effusion \nNA\n",
    "table.csv": 'id,text\n1,a mass\n2,"pleural effusion"\n3,NA\n',
    "table.tsv": "id\tcaption\n1\ta mass\n2\tpleural effusion\n3\tNA\n",
    "rows.jsonl": '{"text": "a mass"}\n{"text": "pleural effusion"}\n{"text": "NA", "x": 1}\n',
}


@pytest.mark.parametrize("name", TEXT_FILES)
def test_texts_from_files(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(TEXT_FILES[name], newline="")
    texts = ["first", "a mass"]
    found = candidates.gather(
        ZeroshotConfig(checkpoint="c", images=["a"], texts=texts, texts_file=str(tmp_path / name))
    )
    assert [one.name for one in found] == ["first", "a mass", "pleural effusion", "NA"]
    assert all(one.prompts == (one.name,) for one in found)


def test_texts_on_standard_input_and_help_in_a_process(checked: Path, pictures: Path) -> None:
    run = [sys.executable, "-m", "medclip_oc.zeroshot", "--checkpoint", checked]
    words = ["--images", pictures, "--texts-file", "-", "--format", "csv", "--top", "1"]
    done = subprocess.run(
        [*run, *words], input="a mass\nno finding, none\n", capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert list(rows[0]) == FIELDS
    assert len(rows) == 5
    assert {row["text"] for row in rows} <= {"a mass", "no finding, none"}


@pytest.mark.slow
def test_any_open_clip_model(
    checked: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a checkpoint of ours: an architecture of open_clip, and weights from a file."""
    clip = open_clip.create_model("RN50-quickgelu", precision="fp32")
    torch.save(clip.state_dict(), tmp_path / "weights.pt")
    words = ["--images", pictures / "0.jpg", "--texts", *TEXTS, "--model", "RN50-quickgelu"]
    rows, _ = rows_of(capsys, *words, "--pretrained", tmp_path / "weights.pt")
    assert [row["rank"] for row in rows] == [1, 2, 3]
    code = call(zeroshot.main, ZeroshotConfig, *words, "--pretrained", "openaai")
    assert code == 2
    assert capsys.readouterr().err.startswith(
        "test: --pretrained: 'openaai' is neither a file nor a tag of RN50-quickgelu"
    )


# ------------------------------------------------------------------------------------- ways out


def test_forms_hold_the_same(
    checked: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--checkpoint", checked, "--images", pictures, "--texts", "a, b", "c\nd"]
    rows, _ = rows_of(capsys, *words)
    assert call(zeroshot.main, ZeroshotConfig, *words, "--format", "json") == 0
    assert json.loads(capsys.readouterr().out) == rows
    assert call(zeroshot.main, ZeroshotConfig, *words, "--format", "csv") == 0
    read = list(csv.DictReader(io.StringIO(capsys.readouterr().out, newline="")))
    assert [{**row, "rank": int(row["rank"])} for row in read] == [
        {name: str(row[name]) if name != "rank" else row[name] for name in FIELDS} for row in rows
    ]
    assert call(zeroshot.main, ZeroshotConfig, *words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5 * 4
    assert lines[1].split() == ["rank", "cosine", "probability", "margin", "text"]
    assert {line.split(maxsplit=4)[4] for line in (lines[2], lines[3])} == {"a, b", "c d"}


def test_texts_that_are_cut_are_named(
    checked: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = "lung " * 40
    rows, said = rows_of(
        capsys, "--checkpoint", checked, "--images", pictures / "0.jpg", "--texts", long, "short"
    )
    assert len(rows) == 2
    assert said.count("\n") == 1
    assert "cut at 32 tokens, the rest doesn't count: 'lung lung" in said


def test_labels_give_figures(
    checked: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Accuracy and so on, redone from the rows; images without a label don't count."""
    table, out = tmp_path / "labels.csv", tmp_path / "x" / "figures.json"
    table.write_text("id,label\n0,a mass\n1.jpg,no finding\n4,a mass\n3,no finding\nother,a mass\n")
    words = ["--checkpoint", checked, "--images", pictures, "--texts", *TEXTS]
    rows, said = rows_of(capsys, *words, "--labels", table, "--figures", out)
    figures = json.loads(out.read_text())
    assert "1 images have no row" in said
    assert figures["images"] == 4
    best = {Path(row["image"]).stem: row["text"] for row in rows if row["rank"] == 1}
    truth = {"0": "a mass", "1": "no finding", "4": "a mass", "3": "no finding"}
    right = {name: best[name] == label for name, label in truth.items()}
    assert figures["accuracy"] == pytest.approx(np.mean(list(right.values())))
    recalls = [np.mean([right[n] for n in truth if truth[n] == label]) for label in TEXTS[:2]]
    assert figures["balanced_accuracy"] == pytest.approx(np.mean(recalls))
    confusion = figures["confusion"]
    assert np.sum(confusion["counts"]) == 4
    assert np.trace(confusion["counts"]) == sum(right.values())
    assert call(zeroshot.main, ZeroshotConfig, *words, "--labels", table) == 0
    assert "4 images with a label: accuracy" in capsys.readouterr().out


# ------------------------------------------------------------------------------------- bad input


def test_one_corrupt_image_among_a_hundred(
    checked: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for n in range(100):
        (tmp_path / f"{n:03}.jpg").write_bytes(jpeg(n % 8))
    (tmp_path / "050.jpg").write_bytes(jpeg(50)[:400])
    words = ["--checkpoint", checked, "--images", tmp_path, "--texts", "a", "b", "--top", 1]
    rows, said = rows_of(capsys, *words, "--batch-size", 16, code=1)
    assert [Path(row["image"]).stem for row in rows] == [f"{n:03}" for n in range(100) if n != 50]
    first, last = said.splitlines()
    assert first.startswith(f"warning: {tmp_path / '050.jpg'}: truncated")
    assert last == "test: 1 of 100 images can't be read; the others are ranked"
    plain, _ = rows_of(capsys, *words, "--batch-size", 16, "--workers", 0, code=1)
    assert plain == rows


MISTAKES = {
    "a folder without images": (["--images", "EMPTY"], "a folder without images"),
    "a file that is no image": (["--images", "NOTES"], r"notes.txt: undecodable \(not one of"),
    "no such file": (["--images", "nowhere.jpg"], "--images: nowhere.jpg: no such file"),
    "a glob of nothing": (["--images", "nowhere/*.jpg"], r"nowhere/\*.jpg: no file matches"),
    "a split of files": (["--split", "test"], "--split test: --images names no shard folder"),
    "empty text": (["--texts", "a", " "], "--texts: number 2 is empty"),
    "empty cell": (["--texts-file", "BLANK"], "blank.csv: line 3: no text in text"),
    "no column": (["--texts-file", "LABELS"], "no column 'text or caption'; found 'id'"),
    "no such file of texts": (["--texts-file", "x.txt"], "--texts-file: x.txt: no such file"),
    "a file without text": (
        ["--texts", "--texts-file", "EMPTY"],
        "--texts: takes one value or more",
    ),
    "a template without a place": (["--templates", "NOTES"], r"no {} in 'not an image'"),
    "no such templates": (["--templates", "chest"], "no such file, and not `radiology`"),
    "an unknown label": (["--labels", "LABELS"], "line 3: 'gout' is no candidate; those are a,"),
    "labels of other images": (["--labels", "OTHERS"], "none of its rows names an image"),
    "a cosine of 2": (["--threshold", "2"], "--threshold: 2.0 is not a cosine"),
    "figures without labels": (["--figures", "x.json"], "--figures: there are none without"),
    "two models": (["--model", "ViT-B-32"], "names its own model; give one of the two"),
    "another kind": (["--checkpoint", "BARE"], "not a medclip_oc checkpoint"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_one_line(
    name: str, checked: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words, message = MISTAKES[name]
    (tmp_path / "empty").mkdir()
    (tmp_path / "blank.csv").write_text("id,text\n1,a\n2,\n")
    (tmp_path / "labels.csv").write_text("id,label\n0,a\n1,gout\n")
    (tmp_path / "others.csv").write_text("id,label\nx,a\n")
    torch.save({"weight": torch.ones(2)}, tmp_path / "bare.pt")
    stands_for: dict[str, object] = {
        "EMPTY": tmp_path / "empty",
        "NOTES": pictures / "notes.txt",
        "BLANK": tmp_path / "blank.csv",
        "LABELS": tmp_path / "labels.csv",
        "OTHERS": tmp_path / "others.csv",
        "BARE": tmp_path / "bare.pt",
    }
    given = [stands_for.get(word, word) for word in words]
    defaults = {"--checkpoint": [checked], "--images": [pictures], "--texts": ["a", "b"]}
    for option, values in defaults.items():
        if option not in words:
            given += [option, *values]
    assert call(zeroshot.main, ZeroshotConfig, *given) == 2
    error = capsys.readouterr().err
    assert error.startswith("test: ")
    assert error.count("\n") == 1
    assert re.search(message, error), error


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--checkpoint", "c"], "--images: give at least one"),
        (["--checkpoint", "c", "--images", "a"], "--texts: give at least one, or --texts-file"),
        (["--model", "ViT-B-32"], "--pretrained: required with --model ViT-B-32: random weights"),
        (["--checkpoint", "c", "--pretrained", "openai"], "--pretrained: 'openai' is not used"),
        (["--checkpoint", "c", "--search", "a"], "--index: required for a search"),
        (["--checkpoint", "c", "--index", "d"], "--index: give --search TEXT or --search-image"),
        (
            ["--checkpoint", "c", "--index", "d", "--search", "a", "--texts", "b"],
            "--texts: ranks captions; not for a search",
        ),
    ],
)
def test_what_doesnt_go_together(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(zeroshot.main, ZeroshotConfig, *words) == 2
    assert capsys.readouterr().err.startswith(f"test: {message}")


@pytest.mark.parametrize(("words", "limit"), [(["--help"], 0.5), (["--imagse", "a.jpg"], 0.7)])
def test_help_and_mistakes_are_quick(words: list[str], limit: float) -> None:
    """Processor time of a process of its own."""
    code = (
        "import resource, subprocess, sys\n"
        "subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)\n"
        "used = resource.getrusage(resource.RUSAGE_CHILDREN)\n"
        "print(used.ru_utime + used.ru_stime)\n"
    )
    command = [sys.executable, "-c", code, sys.executable, "-m", "medclip_oc.zeroshot", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert float(done.stdout) < limit
