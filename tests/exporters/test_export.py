"""Exports give the features of the checkpoint, opened by the libraries that they are for."""

import json
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import medclip_oc
from medclip_oc import export, zeroshot
from medclip_oc.config.inference import ExportConfig, ZeroshotConfig
from medclip_oc.config.schema import LoraConfig, ModelConfig
from medclip_oc.exporters import to_open_clip
from medclip_oc.models import checkpoint, factory, lora
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
TEXTS = ["left pleural effusion", "MRI, T2: no abnormal signal (arrow)", "the \u201cmass\u201d"]
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
    settings = {"definition": DEFINITIONS.get(kind), "preprocess": PREPROCESS}
    if kind == "LoRA":
        before = ModelConfig("export-ViT", str(checkpoint_of("ViT", folder)))
    else:
        before = ModelConfig(arch=f"export-{kind}", **settings)
    clip, more = factory.build(before, seed=2), dict[str, Any]()
    config: dict[str, Any] = {"data": {"train": "shards/rocov2", "valid": valid and str(valid)}}
    if kind == "LoRA":
        lora.insert(clip.towers, LoraConfig(rank=2, alpha=6.0))
        for name, parameter in clip.towers.named_parameters():
            if name.endswith((".0.b", "logit_scale")):
                torch.nn.init.normal_(parameter, std=0.1)
        more["training"] = {"parts": {"adapters": lora.adapters(clip.towers).state_dict()}}
        config |= {"model": asdict(before), "lora": {"rank": 2, "alpha": 6.0}, "run": {"seed": 2}}
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
        "state_dict": lora.plain_state(clip.towers),
        "model": clip.description,
        "config": config,
        "step": 7,
        **more,
    }
    checkpoint.save(file, content)
    return file


def logits_of(file: Path, images: list[Image.Image], texts: list[str]) -> np.ndarray:
    """Those of the checkpoint itself: (N, M)."""
    clip, preprocess, tokenizer = medclip_oc.load(file)
    with torch.inference_mode():
        rows = clip.encode_image(torch.stack([preprocess(each) for each in images]), normalize=True)
        columns = clip.encode_text(tokenizer(texts), normalize=True)
        return (clip.logit_scale.exp() * rows @ columns.T).numpy()


SLOW = pytest.mark.slow
EXPORTS = [
    ("open_clip", "ViT-quickgelu"),
    ("hf", "ViT"),
    ("hf", "ViT-quickgelu"),
    ("adapters", "LoRA"),
    *(pytest.param("open_clip", kind, marks=SLOW) for kind in ("ModifiedResNet", "timm-and-HF")),
    *(pytest.param("onnx", kind, marks=SLOW) for kind in ("ViT-quickgelu", "timm-and-HF")),
]


@pytest.mark.parametrize(("form", "kind"), EXPORTS)
def test_the_cards_lines_run(
    form: str,
    kind: str,
    folder: Path,
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As they stand, and with real images and odd texts: the logits of the checkpoint.

    zeroshot ranks with a folder of open_clip, which was moved, as with the checkpoint.
    """
    file, out = checkpoint_of(kind, folder), tmp_path / "out"
    quantize = ["--quantize", "int8"] if form == "onnx" else []
    code, printed = run(file, form, "--images", folder, *quantize)
    assert (code, printed.count("\n")) == (0, 2)
    assert printed.startswith(f"{out}: features of 3 images and 4 texts differ")
    assert f"\nwritten to {out}; load it by " in printed
    card = (out / "README.md").read_text()
    assert "| what lies in this folder | 1.00000 (0 of 3 below 0.9999) | 1.00000 (0 of 4" in card
    assert ("| that, with weights of 8 bits | 0.9" in card) == bool(quantize)
    assert "## How to use it, from the folder in which out lies\n" in card
    assert ("# or AutoTokenizer; CLIPTokenizer leaves" in card) == (form == "hf")
    modes = {path.stat().st_mode for path in out.rglob("*") if path.is_file()}
    assert modes == {(folder / "0.jpg").stat().st_mode}
    [lines] = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    images = f"[Image.open(n).convert('RGB') for n in {[f'{folder}/{n}.jpg' for n in range(3)]}]  #"
    changed = lines.replace("[Image.new(", images).replace("texts = ", f"texts = {TEXTS} + ")
    monkeypatch.chdir(tmp_path)
    shutil.copy(checkpoint_of("ViT", folder), "best.pt")  # what adapters are put on
    for code in (lines, changed):
        after: dict[str, Any] = {}
        exec(code, after)
        logits = logits_of(file, after["images"], after["texts"])
        # image processors resize otherwise than open_clip: nearly the same
        slack = 1e-5 if form == "adapters" else 0.02
        assert np.asarray(after["logits"]) == pytest.approx(logits, abs=slack)
    assert after["logits"].shape == (3, 5)
    if form == "open_clip":
        words = ["--images", folder / "*.jpg", "--texts", *TEXTS, "--format", "json"]
        rankings = []
        for model in (file, f"local-dir:{out.rename(tmp_path / 'elsewhere')}"):
            option = "--checkpoint" if model is file else "--model"
            assert call(zeroshot.main, ZeroshotConfig, option, model, *words) == 0
            rankings.append(json.loads(capsys.readouterr().out))
        for expected, row in zip(*rankings, strict=True):
            assert (row["image"], row["text"]) == (expected["image"], expected["text"])
            assert row["cosine"] == pytest.approx(expected["cosine"], abs=1e-4)


JAVASCRIPT = """
import * as hf from "@huggingface/transformers";
Object.assign(hf.env, { localModelPath: ".", allowRemoteModels: false });
const open = (name) => hf[name].from_pretrained("out", { dtype: "fp32" });
const vision = await open("CLIPVisionModelWithProjection"), processor = await open("AutoProcessor");
const text = await open("CLIPTextModelWithProjection"), tokenizer = await open("AutoTokenizer");
const image = new hf.RawImage(new Uint8ClampedArray(512 * 400 * 3), 512, 400, 3);
const { image_embeds } = await vision(await processor(image));
const { text_embeds } = await text(tokenizer(TEXTS, { padding: true, truncation: true }));
console.log(JSON.stringify((await hf.matmul(image_embeds, text_embeds.transpose(1, 0))).tolist()));
"""


@SLOW
def test_transformers_js(folder: Path, run: Run, tmp_path: Path) -> None:
    """Where it is installed (npm install --global @huggingface/transformers): the same cosines."""
    npm = shutil.which("npm") or pytest.skip("no npm")
    packages = subprocess.run([npm, "root", "-g"], capture_output=True, text=True).stdout.strip()
    if not Path(packages, "@huggingface", "transformers").is_dir():
        pytest.skip("no @huggingface/transformers")
    file = checkpoint_of("ViT-quickgelu", folder)
    assert run(file, "onnx", "--images", folder)[0] == 0
    (tmp_path / "node_modules").symlink_to(packages)
    (tmp_path / "a.mjs").write_text(JAVASCRIPT.replace("TEXTS", json.dumps(TEXTS)))
    done = subprocess.run(["node", "a.mjs"], cwd=tmp_path, capture_output=True, text=True)
    logits = logits_of(file, [Image.new("RGB", (512, 400))], TEXTS)
    scale = checkpoint.load(file)["state_dict"]["logit_scale"].exp().item()
    assert np.array(json.loads(done.stdout)) == pytest.approx(logits / scale, abs=1e-4), done.stderr


def test_a_run_exports_on_its_own_pairs_with_its_figures(
    packed: Path, tmp_path: Path, run: Run
) -> None:
    """Twice: over an earlier export, and without its figures, the card says so."""
    file, readme = checkpoint_of("ViT", tmp_path, packed), tmp_path / "out" / "README.md"
    code, printed = run(file, "open_clip")
    assert code == 0
    assert "features of 8 images and 16 texts" in printed
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
    error = error_of(*images, form="adapters")
    assert "--to adapters: wanted is last.pt of a run with lora.rank" in error
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    error = error_of(*images, form="onnx")
    assert "needs onnxruntime: pip install 'medclip_oc[onnx]'" in error
    assert "--quantize: of no use to --to hf" in error_of("--quantize", "int8", form="hf")
    assert not (tmp_path / "out").exists()
