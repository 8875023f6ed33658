"""Exports give the features of the checkpoint, opened by the libraries that they are for."""

import json
import re
import resource
import shutil
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
from medclip_oc import export, zeroshot
from medclip_oc.config.inference import ExportConfig, ZeroshotConfig
from medclip_oc.config.schema import ModelConfig
from medclip_oc.exporters import to_open_clip
from medclip_oc.models import checkpoint, factory
from tests.support.cli import call
from tests.support.reference import HF, RESNET, timm
from tests.support.tiny_dataset import jpeg
from tests.support.tiny_models import TINY

Run = Callable[..., tuple[int, str]]
MINILM = {**HF, "hf_model_name": HF["hf_tokenizer_name"], "context_length": 77}
DEFINITIONS: dict[str, Any] = {
    "ViT": TINY,
    "ViT-quickgelu": {**TINY, "quick_gelu": True},
    "ModifiedResNet": {**TINY, "vision_cfg": RESNET},
    "timm-and-HF": {**TINY, "vision_cfg": timm("test_efficientnet", 64), "text_cfg": MINILM},
}
PREPROCESS = {"mean": [0.4, 0.5, 0.6], "std": [0.3, 0.3, 0.2], "interpolation": "bilinear"}
TEXTS = ["left pleural effusion", "MRI, T2: no abnormal signal (arrow)", "normal"]
SCORES = {"R@1": 0.25, "R@5": 0.5, "R@10": 0.75, "median_rank": 5.0, "mean_rank": 9.0, "mrr": 0.4}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three images, and a run folder of each kind that a test asks for."""
    pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("export")
    for n in range(3):
        (folder / f"{n}.jpg").write_bytes(jpeg(n))
    return folder


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Exports to tmp_path / "out"; returns the exit code, and what was printed."""

    def run(file: Path, form: str, *words: object, out: Path = tmp_path / "out") -> tuple[int, str]:
        given = ["--checkpoint", file, "--to", form, "--out", out, *words]
        return call(export.main, ExportConfig, *given), "".join(capsys.readouterr())

    return run


def checkpoint_of(kind: str, folder: Path, valid: Path | None = None) -> Path:
    """That of a run with a kind of towers; saved once."""
    file = folder / kind / "checkpoints" / "best.pt"
    if file.exists():
        return file
    settings = {"definition": DEFINITIONS[kind], "preprocess": PREPROCESS}
    clip = factory.build(ModelConfig(arch=f"export-{kind}", **settings), seed=2)
    for name, buffer in clip.towers.clip.named_buffers():
        if name.endswith("running_var"):  # as training leaves it
            buffer.fill_(1.5)
    record: dict[str, Any] = {"pool": 9927, "data": "/home/me/roco", "chance": SCORES}
    record |= {"image_to_text": SCORES, "text_to_image": SCORES}
    for inner in (file.parent, folder / kind / "evaluations"):
        inner.mkdir(parents=True)
    for name in ("best-test", "last-test"):
        (folder / kind / "evaluations" / f"{name}.json").write_text(json.dumps(record))
    content = {
        "state_dict": clip.towers.clip.state_dict(),
        "model": clip.description,
        "config": {"data": {"train": "shards/rocov2", "valid": valid and str(valid)}},
        "step": 7,
    }
    checkpoint.save(file, content)
    return file


def pictures_in(folder: Path) -> list[Image.Image]:
    return [Image.open(path).convert("RGB") for path in sorted(folder.glob("*.jpg"))]


def features_of(model: tuple[Any, Any, Any], folder: Path) -> tuple[np.ndarray, np.ndarray]:
    clip, preprocess, tokenizer = model
    with torch.inference_mode():
        pixels = torch.stack([preprocess(picture) for picture in pictures_in(folder)])
        rows = clip.eval().encode_image(pixels, normalize=True)
        return rows.numpy(), clip.encode_text(tokenizer(TEXTS), normalize=True).numpy()


SLOW = pytest.mark.slow
KINDS = ["ViT-quickgelu", *(pytest.param(k, marks=SLOW) for k in ("ModifiedResNet", "timm-and-HF"))]


@pytest.mark.parametrize("kind", KINDS)
def test_open_clip(
    kind: str, folder: Path, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Opened by open_clip alone; and by zeroshot, which ranks as with the checkpoint."""
    file, out = checkpoint_of(kind, folder), tmp_path / "out"
    code, printed = run(file, "open_clip", "--images", folder)
    assert code == 0
    assert printed.startswith(f"{out}: features of 3 images and 4 texts differ")
    source = f"local-dir:{out}"
    clip, preprocess = open_clip.create_model_from_pretrained(source)
    theirs = features_of((clip, preprocess, open_clip.get_tokenizer(source)), folder)
    for exported, expected in zip(theirs, features_of(medclip_oc.load(file), folder), strict=True):
        assert exported == pytest.approx(expected, abs=1e-4)
    moved = out.rename(tmp_path / "elsewhere")
    words = ["--images", folder / "*.jpg", "--texts", *TEXTS, "--format", "json"]
    rankings = []
    for model in (["--checkpoint", file], ["--model", f"local-dir:{moved}"]):
        assert call(zeroshot.main, ZeroshotConfig, *model, *words) == 0
        rankings.append(json.loads(capsys.readouterr().out))
    for expected, row in zip(*rankings, strict=True):
        assert (row["image"], row["text"]) == (expected["image"], expected["text"])
        assert row["cosine"] == pytest.approx(expected["cosine"], abs=1e-4)


@SLOW
@pytest.mark.parametrize("kind", ["ViT-quickgelu", "timm-and-HF"])
def test_onnx(kind: str, folder: Path, run: Run, tmp_path: Path) -> None:
    """In onnxruntime, batches of several sizes; tokens also from the tokenizer files."""
    onnxruntime = pytest.importorskip("onnxruntime")
    from transformers import AutoTokenizer

    file, out = checkpoint_of(kind, folder), tmp_path / "out"
    code, printed = run(file, "onnx", "--images", folder)
    assert (code, printed.count("\n")) == (0, 1)
    clip = factory.load(file)
    pixels = torch.stack([clip.preprocess(picture) for picture in pictures_in(folder)])
    tokens, tokenizer = clip.tokenizer(TEXTS), AutoTokenizer.from_pretrained(out)
    images, texts = features_of(medclip_oc.load(file), folder)
    towers = [("image", "images", pixels, images), ("text", "tokens", tokens, texts)]
    for tower, name, batch, rows in towers:
        session = onnxruntime.InferenceSession(out / f"{tower}_tower.onnx")
        for size in (1, 2, 3):
            [features] = session.run(["features"], {name: batch[:size].numpy()})
            assert features == pytest.approx(rows[:size], abs=1e-4)
    for text, row in zip(TEXTS, tokens, strict=True):
        ids = tokenizer(text)["input_ids"]
        assert row[: len(ids)].tolist() == ids


@pytest.mark.parametrize("kind", ["ViT", "ViT-quickgelu"])
def test_hugging_face(kind: str, folder: Path, run: Run, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    file, out = checkpoint_of(kind, folder), tmp_path / "out"
    assert run(file, "hf", "--images", folder)[0] == 0
    clip = transformers.CLIPModel.from_pretrained(out).eval()
    processor = transformers.CLIPProcessor.from_pretrained(out)
    batch = processor(text=TEXTS, images=pictures_in(folder), return_tensors="pt", padding=True)
    with torch.inference_mode():
        exported = clip(**batch)
    images, texts = features_of(medclip_oc.load(file), folder)
    assert exported.text_embeds.numpy() == pytest.approx(texts, abs=1e-4)
    # its processor resizes otherwise than Pillow: nearly the same
    assert (exported.image_embeds.numpy() * images).sum(1).min() > 0.99
    assert clip.logit_scale.detach().equal(checkpoint.load(file)["state_dict"]["logit_scale"])


def test_a_run_exports_on_its_own_pairs_with_its_figures(
    packed: Path, tmp_path: Path, run: Run
) -> None:
    """Twice: over an earlier export, and without its figures, the card says so."""
    file, readme = checkpoint_of("ViT", tmp_path, packed), tmp_path / "out" / "README.md"
    code, printed = run(file, "open_clip")
    assert code == 0
    assert "features of 8 images and 8 texts" in printed
    card = readme.read_text()
    assert "Research use only" in card
    assert "| best-test | roco | 9,927 | image to text | 25.0 % | 50.0 % | 75.0 % | 5 |" in card
    assert "last-test" not in card
    shutil.rmtree(tmp_path / "ViT" / "evaluations")
    assert run(file, "open_clip", "--overwrite")[0] == 0
    assert "Not measured" in readme.read_text()


def test_an_export_that_differs_does_not_appear(
    folder: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights in half precision are found."""
    file, save_file = checkpoint_of("ViT", folder), to_open_clip.save_file

    def rounded(weights: dict[str, torch.Tensor], file: Path) -> None:
        save_file({name: w.half().float() for name, w in weights.items()}, file)

    monkeypatch.setattr(to_open_clip, "save_file", rounded)
    code, error = run(file, "open_clip", "--images", folder)
    assert code == 1
    assert error.startswith("test: --to open_clip: its features of images differ")
    assert error.endswith("more than 0.0001; nothing is exported\n")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("limit", "form"), [(99, "open_clip"), (9999, "open_clip"), (9999, "hf")])
def test_a_full_disk(limit: int, form: str, folder: Path, run: Run, tmp_path: Path) -> None:
    """No file may be larger: configuration or weights are cut."""
    file, (soft, hard) = checkpoint_of("ViT", folder), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        code, error = run(file, form, "--images", folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (code, error.count("\n")) == (1, 1)
    assert re.search(r"out: can't be written \(.*File too large", error)
    assert not list(tmp_path.iterdir())


def test_mistakes(folder: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def error_of(*words: object, kind: str = "ViT", form: str = "open_clip", **out: Path) -> str:
        code, line = run(checkpoint_of(kind, folder), form, *words, **out)
        assert (code, line.count("\n")) == (2, 1)
        return line

    images = ["--images", folder]
    assert "--images: name some to compare features on (the checkpoint names no" in error_of()
    assert "--overwrite replaces" in error_of(*images, "--overwrite", out=folder)
    error = error_of(*images, kind="ModifiedResNet", form="hf")
    assert "export-ModifiedResNet has no counterpart in CLIPModel: its image tower is a" in error
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    error = error_of(*images, form="onnx")
    assert "needs onnxruntime: pip install 'medclip_oc[onnx]'" in error
    assert not (tmp_path / "out").exists()
