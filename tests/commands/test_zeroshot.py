"""Captions ranked for images: every way in, every form out, and every mistake in a line."""

import csv
import io
import json
import re
import sys
from collections.abc import Callable
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
from medclip_oc.inference import image_inputs, prompts
from medclip_oc.inference.prompt_sets import PromptClass
from tests.support.cli import call
from tests.support.tiny_dataset import jpeg

FIELDS = ["image", "rank", "text", "cosine", "probability", "margin"]
TEXTS = ["a mass", "no finding", "pleural effusion"]
Rows = list[dict[str, Any]]
Run = Callable[..., tuple[Rows, str]]


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


@pytest.fixture
def ranked(tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Ranks as the command does: its rows, and what it says besides."""

    def run(*words: object, code: int = 0) -> tuple[Rows, str]:
        words = ("--checkpoint", tiny_checkpoint, "--format", "jsonl", *words)
        assert call(zeroshot.main, ZeroshotConfig, *words) == code
        said = capsys.readouterr()
        return [json.loads(line) for line in said.out.splitlines()], said.err

    return run


@torch.inference_mode()
def reference(checkpoint: Path, picture: Path, texts: list[str]) -> tuple[torch.Tensor, ...]:
    """Normalised features of an image (D,) and texts (M, D) by open_clip's own model; the scale."""
    clip, preprocess, tokenizer = medclip_oc.load(checkpoint)
    pixels = preprocess(Image.open(picture).convert("RGB"))[None]
    image = clip.encode_image(pixels, normalize=True)[0]
    return image, clip.encode_text(tokenizer(texts), normalize=True), clip.logit_scale.exp()


def test_rows_are_what_open_clip_gives(ranked: Run, tiny_checkpoint: Path, pictures: Path) -> None:
    rows, said = ranked("--images", pictures / "1.jpg", "--texts", *TEXTS)
    image, texts, scale = reference(tiny_checkpoint, pictures / "1.jpg", TEXTS)
    cosines = texts @ image
    order = cosines.argsort(descending=True)
    assert said == ""
    assert [list(row) for row in rows] == [FIELDS] * 3
    assert [row["text"] for row in rows] == [TEXTS[m] for m in order]
    assert [row["rank"] for row in rows] == [1, 2, 3]
    expected = {"cosine": cosines, "probability": (scale * cosines).softmax(0)}
    for name, values in expected.items():
        assert [row[name] for row in rows] == pytest.approx(values[order].tolist(), abs=1e-5)
    assert rows[0]["margin"] == pytest.approx(rows[0]["cosine"] - rows[1]["cosine"], abs=1e-6)
    assert rows[2]["margin"] == pytest.approx(rows[2]["cosine"] - rows[0]["cosine"], abs=1e-6)


def test_templates_are_the_mean_of_their_features(
    ranked: Run, tiny_checkpoint: Path, pictures: Path, tmp_path: Path
) -> None:
    (tmp_path / "forms.txt").write_text("a scan of {}\n\n{} is seen {}\n")
    words = ["--images", pictures / "0.jpg", "--texts", *TEXTS, "--templates"]
    rows, _ = ranked(*words, tmp_path / "forms.txt")
    for row in rows:
        forms = [f"a scan of {row['text']}", f"{row['text']} is seen {row['text']}"]
        image, texts, _ = reference(tiny_checkpoint, pictures / "0.jpg", forms)
        mean = texts.mean(0)
        assert row["cosine"] == pytest.approx(float(image @ mean / mean.norm()), abs=1e-5)
    built_in, _ = ranked(*words, "radiology")
    assert {row["text"] for row in built_in} == set(TEXTS)
    assert {row["cosine"] for row in built_in} != {row["cosine"] for row in rows}
    assert len(prompts.RADIOLOGY.read_text().splitlines()) == 8


def test_texts_of_a_label_are_one_candidate(ranked: Run, pictures: Path, tmp_path: Path) -> None:
    table, words = tmp_path / "texts.csv", ["--images", pictures / "0.jpg"]
    table.write_text("label,text\nsick,a mass\nwell,no finding\nsick,pleural effusion\n")
    of_label = {row["text"]: row for row in ranked(*words, "--texts-file", table)[0]}
    assert of_label.keys() == {"sick", "well"}
    [alone], _ = ranked(*words, "--texts", "no finding")
    assert of_label["well"]["cosine"] == pytest.approx(alone["cosine"], abs=1e-5)
    table.write_text("kind,text\nsick,a mass\nwell,no finding\n")
    rows, _ = ranked(*words, "--texts-file", table, "--label-column", "kind")
    assert {row["text"] for row in rows} == {"sick", "well"}


def test_none_of_these_is_a_candidate(ranked: Run, pictures: Path) -> None:
    words = ["--images", pictures, "--texts", *TEXTS]
    plain = [row for row in ranked(*words)[0] if row["rank"] == 1]
    best = sorted(row["cosine"] for row in plain)
    limit = (best[1] + best[2]) / 2
    rows, _ = ranked(*words, "--threshold", limit, "--top", 1)
    assert [row["text"] for row in rows] == [
        "none of these" if row["cosine"] < limit else row["text"] for row in plain
    ]
    rows, _ = ranked(*words, "--threshold", limit)
    assert sum(row["probability"] for row in rows) == pytest.approx(5, abs=1e-4)
    assert {row["cosine"] for row in rows if row["text"] == "none of these"} == {round(limit, 6)}


def test_images_of_every_kind(ranked: Run, pictures: Path, packed: Path) -> None:
    def names(*images: object) -> list[str]:
        return [Path(row["image"]).name for row in ranked("--texts", "a", "--images", *images)[0]]

    assert names(pictures) == [*(f"{n}.jpg" for n in range(4)), "4.PNG"]
    each_once = names(pictures / "[12].jpg", pictures / "3.jpg", pictures)
    assert each_once == ["1.jpg", "2.jpg", "3.jpg", "0.jpg", "4.PNG"]
    assert names(packed, "--split", "valid") == [f"valid_{n:04}" for n in range(12)]
    assert names(packed) == [f"test_{n:04}" for n in range(12)]
    assert len(names(packed / "train-{000000..000001}.tar", pictures / "0.jpg")) == 41


def test_dicom_files_of_a_folder_need_no_ending(tmp_path: Path) -> None:
    for name in ("IM0001", "1.2.840.7", "a.DCM", "README", "1.2.txt"):
        (tmp_path / name).write_bytes(bytes(128) + b"DICM" * (name != "README"))
    found = image_inputs.find([str(tmp_path)], None)
    assert [Path(found.name(n)).name for n in range(len(found))] == ["1.2.840.7", "IM0001", "a.DCM"]


TEXT_FILES = {
    "lines.txt": "\ufeffa mass\r\n\r\n  pleural effusion \nNA\n",
    "table.csv": 'id,text\n1,a mass\n2,"pleural effusion"\n3,NA\n',
    "table.tsv": "id\tcaption\n1\ta mass\n2\tpleural effusion\n3\tNA\n",
    "rows.jsonl": '{"text": "a mass"}\n{"text": "pleural effusion"}\n{"text": "NA", "x": 1}\n',
    "-": "\ufeffa mass\r\n\n  pleural effusion\nNA",
}


@pytest.mark.parametrize("name", TEXT_FILES)
def test_texts_from_files(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or from standard input."""
    file = tmp_path / name
    file.write_text(TEXT_FILES[name], newline="")
    with file.open() as opened:
        monkeypatch.setattr(sys, "stdin", opened)
        file_name = name if name == "-" else str(file)
        found = prompts.gather(
            ZeroshotConfig(
                checkpoint="c", images=["a"], texts=["first", "a mass"], texts_file=file_name
            )
        )
    names = ["first", "a mass", "pleural effusion", "NA"]
    assert found == [PromptClass(text, (text,)) for text in names]


@pytest.mark.slow
def test_any_open_clip_model(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a checkpoint of ours: an architecture of open_clip, and weights from a file."""
    torch.save(open_clip.create_model("RN50-quickgelu").state_dict(), tmp_path / "weights.pt")
    words = ["--images", pictures / "0.jpg", "--texts", *TEXTS, "--model", "RN50-quickgelu"]
    assert call(zeroshot.main, ZeroshotConfig, *words, "--pretrained", tmp_path / "weights.pt") == 0
    assert len(capsys.readouterr().out.splitlines()) == 2 + 3


def test_forms_hold_the_same(
    ranked: Run, tiny_checkpoint: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--images", pictures, "--texts", "a, b", "c\nd"]
    rows, _ = ranked(*words)
    printed = {}
    for form in ("json", "csv", "table"):
        more = ["--checkpoint", tiny_checkpoint, "--format", form]
        assert call(zeroshot.main, ZeroshotConfig, *words, *more) == 0
        printed[form] = capsys.readouterr().out
    assert json.loads(printed["json"]) == rows
    read = list(csv.DictReader(io.StringIO(printed["csv"], newline="")))
    assert read == [{name: str(row[name]) for name in FIELDS} for row in rows]
    lines = printed["table"].splitlines()
    assert len(lines) == 5 * 4
    assert lines[1].split() == ["rank", "cosine", "probability", "margin", "text"]
    assert {line.split(maxsplit=4)[4] for line in (lines[2], lines[3])} == {"a, b", "c d"}


def test_texts_that_are_cut_are_named(ranked: Run, pictures: Path) -> None:
    rows, said = ranked("--images", pictures / "0.jpg", "--texts", "lung " * 40, "short")
    assert len(rows) == 2
    assert said.count("\n") == 1
    assert "cut at 32 tokens, the rest doesn't count: 'lung lung" in said


def test_labels_give_figures(ranked: Run, pictures: Path, tmp_path: Path) -> None:
    """Accuracy and so on, redone from the rows; images without a label don't count."""
    table, out = tmp_path / "labels.csv", tmp_path / "x" / "figures.json"
    table.write_text("id,label\n0,a mass\n1.jpg,no finding\n4,a mass\n3,no finding\nother,a mass\n")
    words = ["--images", pictures, "--texts", *TEXTS, "--labels", table]
    rows, said = ranked(*words, "--figures", out)
    figures = json.loads(out.read_text())
    assert "labels.csv: 1 images have no row, 1 rows have no image: not counted" in said
    assert f"written to {out}\n" in said
    assert "4 images with a label\n" in said
    assert figures["images"] == 4
    best = {Path(row["image"]).stem: row["text"] for row in rows if row["rank"] == 1}
    truth = {"0": "a mass", "1": "no finding", "4": "a mass", "3": "no finding"}
    right = [best[name] == label for name, label in truth.items()]
    assert figures["accuracy"] == pytest.approx(np.mean(right))
    assert np.trace(figures["confusion"]["counts"]) == sum(right)


def test_corrupt_images_and_how_they_are_embedded(ranked: Run, tmp_path: Path) -> None:
    """The others are ranked, alike in any batch and by any worker."""
    for n in range(9):
        (tmp_path / f"{n}.jpg").write_bytes(jpeg(n)[: 400 if n in (4, 7) else None])
    words = ["--images", tmp_path, "--texts", "a", "b", "--top", 1, "--batch-size"]
    rows, said = ranked(*words, 4, "--workers", 2, code=1)
    assert [Path(row["image"]).stem for row in rows] == list("0123568")
    first, _, last = said.splitlines()
    assert first.startswith(f"warning: {tmp_path / '4.jpg'}: truncated")
    assert last == "test: 2 of 9 images can't be read; the others are ranked"
    one_by_one, _ = ranked(*words, 1, "--workers", 0, code=1)
    for row, other in zip(rows, one_by_one, strict=True):
        assert (row["image"], row["text"]) == (other["image"], other["text"])
        assert row["cosine"] == pytest.approx(other["cosine"], abs=1e-5)
        Path(row["image"]).unlink()
    rows, said = ranked("--images", tmp_path, "--texts", "a", code=2)
    assert rows == []
    assert said.endswith("\ntest: none of the 2 images can be read\n")


MISTAKES = {
    "--images EMPTY": "a folder without images",
    "--images NOTES": r"notes.txt: undecodable \(not one of",
    "--images PACKED.TAR": "packed.tar.gz: not a readable, uncompressed tar: .*; gunzip .tar.gz",
    "--images nowhere/*.jpg": r"nowhere/\*.jpg: no file matches",
    "--split test": "--split test: --images names no shard folder",
    "--texts a BLANK": "--texts: number 2 is empty",
    "--texts a caf\udce9": r"--texts: number 2: 'caf\\udce9': .* not text in UTF-8",
    "--texts-file GAPS": "gaps.csv: line 3: no text in text",
    "--texts-file POINTER": "pointer.txt: a Git LFS pointer in place of the file; `git lfs pull`",
    "--texts-file WIDE": r"wide.txt: line 1: 'a\\x00c\\x00': .* not text in UTF-8",
    "--texts-file GOUT": "no column 'text or caption'; found 'id', .*; --text-column and --label-",
    "--texts-file ARRAY": "array.json: no rows with named columns",
    "--texts-file LIST": "list.yaml: wanted are lines of text, or .csv, .tsv",
    "--templates NOTES": r"no {} in 'not an image'",
    "--templates chest": "no such file, and not `radiology`",
    "--labels GOUT": "line 3: 'gout' is no candidate; the nearest are a, b",
    "--labels OTHERS": "none of its rows names one of the images",
    "--threshold 2": "--threshold: 2.0 is not a cosine",
    "--figures x.json": "--figures: not without --labels",
    "--model ViT-B-32": "names its own model; give one of the two",
}


@pytest.fixture(scope="module")
def files(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """What the words in capitals of MISTAKES stand for."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "empty").mkdir()
    (folder / "gaps.csv").write_text("id,text\n1,a\n2,\n")
    (folder / "gout.csv").write_text("id,label\n0,a\n1,gout\n")
    (folder / "pointer.txt").write_text("version https://git-lfs.github.com/spec/v1\nsize 123\n")
    (folder / "wide.txt").write_text("ac", encoding="utf-16-le")
    (folder / "array.json").write_text('["a", "b"]')
    (folder / "list.yaml").write_text("- a\n- b\n")
    (folder / "packed.tar.gz").write_text("no tar")
    (folder / "others.csv").write_text("id,label\nx,a\n")
    made = {file.stem.upper(): file for file in folder.iterdir()}
    return {**made, "NOTES": pictures / "notes.txt", "BLANK": " "}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_one_line(
    mistake: str,
    files: dict[str, object],
    tiny_checkpoint: Path,
    pictures: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = mistake.split()
    given = [files.get(word, word) for word in words]
    defaults = {"--checkpoint": [tiny_checkpoint], "--images": [pictures], "--texts": ["a", "b"]}
    for option, values in defaults.items():
        if option not in words:
            given += [option, *values]
    assert call(zeroshot.main, ZeroshotConfig, *given) == 2
    error = capsys.readouterr().err
    assert error.startswith("test: ")
    assert error.count("\n") == 1
    assert re.search(MISTAKES[mistake], error), error


TOGETHER = {
    "--checkpoint c --images a": "--texts: give at least one, or --texts-file",
    "--model ViT-B-32": "--model ViT-B-32: give an architecture with --pretrained, or",
    "--model org/x --pretrained y": "--model org/x: give an architecture with --pretrained, or wi",
    "--checkpoint c --pretrained openai": "--pretrained: 'openai' is not used",
    "--checkpoint c --search a": "--search: not without --index",
    "--checkpoint c --index d": "--index: give --search TEXT or --search-image",
    "--checkpoint c --index d --search a --texts b": "--texts: not with --index",
    "--prompts x --texts a": "--texts: not with --prompts",
    "--prompts x --multi-label --top 3": "--top: not with --multi-label",
    "--prompts x --multi-label --threshold 0": "--threshold: not with --multi-label",
    "--texts a --multi-label": "--multi-label: not without --prompts",
    "--prompts x --labels y --threshold-labels z": "--threshold-labels: not without --multi-label",
    "--prompts x --features-in y.npz": "--images: not with --features-in",
    "--prompts modality --multi-label": "--multi-label: modality: no negative text of CT",
    "--prompts modalty": "modalty: no such file, and no prompt set; did you mean modality?",
}


@pytest.mark.parametrize("words", TOGETHER)
def test_what_doesnt_go_together(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    of_model = words.startswith(("--checkpoint", "--model"))
    given = words if of_model else f"--checkpoint c --images a {words}"
    assert call(zeroshot.main, ZeroshotConfig, *given.split()) == 2
    assert capsys.readouterr().err.startswith(f"test: {TOGETHER[words]}")
