"""Weights as other programs leave them: loaded to the last tensor, or one line says what they are.

Each row is a file, or a folder, of one kind.
"""

import json
import warnings
import zipfile
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import medclip_oc
from medclip_oc.config.schema import ModelConfig
from medclip_oc.errors import InputError, WorkError
from medclip_oc.models import checkpoint, definition, factory, pretrained, transformers_clip
from tests.support.reference import embed
from tests.support.tiny_models import TINY

QUICK = {**TINY, "quick_gelu": True}
SETTINGS = ModelConfig(arch="others-test", definition=QUICK)


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return dict(factory.build(SETTINGS, seed=7).towers.clip.state_dict())


def torchscript(state: dict[str, Tensor], file: Path) -> None:
    """In half precision, with OpenAI's own buffers and a mask."""
    clip = factory.build(SETTINGS).towers.clip
    clip.load_state_dict(state)
    module: Any = nn.Module()
    for name, part in clip.half().named_children():
        module.add_module(name, part)
    for name, parameter in clip.named_parameters(recurse=False):
        module.register_parameter(name, parameter)
    for name in ("input_resolution", "context_length", "vocab_size"):
        module.register_buffer(name, torch.tensor(32))
    module.attn_mask = clip.attn_mask
    module.forward = lambda scores: module.logit_scale * scores
    with warnings.catch_warnings(action="ignore"):  # it is deprecated, and OpenAI's form
        torch.jit.save(torch.jit.trace(module, torch.ones(2), check_trace=False), file)


def clip_model(state: dict[str, Tensor]) -> dict[str, Tensor]:
    ids = {"vision_model.embeddings.position_ids": torch.arange(17)[None]}
    return transformers_clip.to_clip_model(state) | ids


BESIDE = {"epoch": 3, "best": np.float64(0.5), "args": Namespace(lr=1e-5, seed=np.int64(1))}
FORMS: dict[str, Any] = {
    "DDP, compiled": lambda s: {f"module._orig_mod.{n}": t for n, t in s.items()},
    "Lightning": lambda s: BESIDE | {"state_dict": {f"model.{n}": t for n, t in s.items()}},
    "model_state_dict": lambda s: BESIDE | {"model_state_dict": s},
    "model": lambda s: BESIDE | {"model": {f"clip.{n}": t for n, t in s.items()}},
    "a module's": lambda s: {f"clip_model.{n}": t for n, t in s.items()},
    "net": lambda s: {"net": {f"net.{n}": t for n, t in s.items()}, "ema": s},
    "float16": lambda s: {n: t.half() for n, t in s.items()},
    "CLIPModel": clip_model,
    "Lightning of a CLIPModel": lambda s: {f"model.{n}": t for n, t in clip_model(s).items()},
}


@pytest.mark.parametrize("form", [*FORMS, "OpenAI's TorchScript", "CLIPModel.safetensors"])
def test_every_tensor_is_loaded(
    form: str, weights: dict[str, Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "w.pt"
    if form in FORMS:
        torch.save(FORMS[form](weights), file)
    elif form == "CLIPModel.safetensors":
        file = tmp_path / "model.safetensors"
        save_file({name: t.contiguous() for name, t in clip_model(weights).items()}, file)
    else:
        torchscript(weights, file)
    half = form in ("float16", "OpenAI's TorchScript")
    built = factory.build(ModelConfig("others-test", str(file), QUICK)).towers.clip.state_dict()
    for name, tensor in built.items():
        assert tensor.equal(weights[name].half().float() if half else weights[name]), name
    told = f"{file}: holds weights as net, ema; taken: net\n"
    assert capsys.readouterr().err == (told if form == "net" else "")


WRONG: list[tuple[Any, str]] = [
    (nn.Linear(2, 2), r"pickled Python objects \(torch\.nn\.modules\.linear\.Linear\), .*If you t"),
    ({"a.w": torch.ones(1), "model.a.w": torch.ones(1)}, "holds several models; save one's"),
    ({"a": {"w": torch.ones(1)}, "b": 1}, r"holds \['a', 'b'\], no state dict .*model, net\)"),
    ({"teacher.w": torch.ones(1)}, r"missing: .* \.\.\.; it holds teacher\.w"),
    ({"blocks.0.attn.qkv.weight": torch.ones(1)}, "an image tower alone, for model.pretrained_im"),
    ({"bert.encoder.layer.0.x": torch.ones(1)}, "a text tower alone, whose folder model.pretrain"),
    ({"visual_encoder.cls_token": torch.ones(1)}, "a model of another kind, such as BLIP"),
]


@pytest.mark.parametrize(("content", "message"), WRONG)
def test_what_does_not_fit_is_named(content: Any, message: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(InputError, match=rf"w\.pt.*{message}") as caught:
        factory.build(ModelConfig("others-test", str(tmp_path / "w.pt"), QUICK))
    assert len(str(caught.value)) < 300 + len(str(tmp_path))


def test_weights_of_another_architecture_name_it() -> None:
    shapes = {"visual.conv1.weight": (768, 3, 32, 32), "visual.positional_embedding": (50, 768)}
    shapes["token_embedding.weight"] = (49408, 512)
    state = {name: torch.empty(size, device="meta") for name, size in shapes.items()}
    names = "ViT-B-32, coca_ViT-B-32, ViT-B-32-quickgelu"
    assert definition.hint(state) == f"; of its sizes are {names}: set model.arch"
    state["token_embedding.weight"] = torch.empty(1, 8, device="meta")
    sizes = "{'width': 768, 'patch_size': 32, 'image_size': 224}, text width 8"
    assert definition.hint(state) == f"; it holds a ViT of {sizes}"
    del state["token_embedding.weight"]
    names = "visual.conv1.weight, visual.positional_embedding"
    assert definition.hint(state) == f"; it holds {names}, ..."


CONFIG: dict[str, Any] = {
    "text": {"hidden_size": 32, "intermediate_size": 128, "num_attention_heads": 2},
    "vision": {"hidden_size": 32, "intermediate_size": 128, "num_attention_heads": 2},
}
for tower in CONFIG.values():
    tower["num_hidden_layers"] = 2
CONFIG["vision"] |= {"image_size": 32, "patch_size": 8}


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of the hub with a CLIPModel in it, as transformers saves it."""
    transformers = pytest.importorskip("transformers")
    cache = tmp_path_factory.mktemp("a hub")
    folder = cache / "models--org--clip" / "snapshots" / ("0" * 40)
    (cache / "models--org--clip" / "refs").mkdir(parents=True)
    (cache / "models--org--clip" / "refs" / "main").write_text(folder.name)
    towers = {f"{tower}_config": sizes for tower, sizes in CONFIG.items()}
    torch.manual_seed(1)
    transformers.CLIPModel(transformers.CLIPConfig(projection_dim=24, **towers)).save_pretrained(
        folder
    )
    mean = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3, "resample": 2}
    (folder / "preprocessor_config.json").write_text(json.dumps(mean))
    return cache


@pytest.fixture
def snapshot(hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """That model's folder. The home directory is where the cache is, and there is no network."""
    monkeypatch.setenv("HOME", str(hub.parent))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(hub))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return next(hub.glob("*/snapshots/*"))


def test_a_clip_model_of_transformers(snapshot: Path, hub: Path) -> None:
    """From a folder whose path has blanks, by ~, from the hub; its features are transformers'."""
    from transformers import CLIPModel

    below_home = f"~/{snapshot.relative_to(hub.parent)}"
    names = [f"local-dir:{snapshot}", f"local-dir:{below_home}", "hf-hub:org/clip"]
    clips = [factory.build(ModelConfig(arch=name)) for name in names]
    assert clips[0].description["preprocess"]["mean"] == [0.5] * 3
    assert clips[0].description["preprocess"]["interpolation"] == "bilinear"
    assert embed(clips[1]).equal(embed(clips[0]))
    assert embed(clips[2]).equal(embed(clips[0]))
    theirs = CLIPModel.from_pretrained(snapshot).eval()
    model, _, tokenizer = medclip_oc.load(snapshot, device="cpu")
    pixels, tokens = torch.randn(2, 3, 32, 32), tokenizer(["a mass", "no effusion"])
    with torch.inference_mode():
        image = theirs.visual_projection(theirs.vision_model(pixels).pooler_output)
        text = theirs.text_projection(theirs.text_model(tokens).pooler_output)
        torch.testing.assert_close(model.encode_image(pixels), image, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(model.encode_text(tokens), text, atol=1e-5, rtol=1e-4)


BIOMED = {**TINY, "text_cfg": {"hf_model_name": "org/bert", "hf_tokenizer_name": "org/bert"}}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", {"model_type": "siglip"}, "config.json: model_type: should be 'clip'"),
        ("config.json", {"text_config": {"vocab_size": 30522}}, "vocab_size: should be 49408"),
        ("config.json", {"vision_config": {"hidden_act": "relu"}}, "hidden_act: .*or 'gelu'"),
        ("config.json", {"vision_config": {"num_hidden_layers": 3}}, "tensors missing: visual"),
        ("preprocessor_config.json", {"image_mean": 3}, "image_mean: should be a valid list"),
        ("preprocessor_config.json", {"resample": 0}, "resample: should be 2 or 3"),
        ("open_clip_config.json", {"model_cfg": BIOMED}, "org/bert: .* put its config.json"),
    ],
)
def test_folders_that_do_not_map(
    name: str, content: dict[str, Any], message: str, snapshot: Path, tmp_path: Path
) -> None:
    for file in snapshot.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    if "model_cfg" in content:
        (tmp_path / "tokenizer.json").write_text("{}")
    about = json.loads((snapshot / name).read_text()) if (snapshot / name).exists() else {}
    for key, value in content.items():
        about[key] = about.get(key, {}) | value if isinstance(value, dict) else value
    (tmp_path / name).write_text(json.dumps(about))
    with pytest.raises((InputError, WorkError), match=message) as caught:
        factory.build(ModelConfig(arch=f"local-dir:{tmp_path}"))
    assert "\n" not in str(caught.value)


def test_load_takes_a_run_folder(tiny_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.pt").write_bytes(tiny_checkpoint.read_bytes())
    state = medclip_oc.load(tmp_path)[0].state_dict()
    expected = checkpoint.load(tiny_checkpoint)["state_dict"]
    assert all(tensor.equal(expected[name]) for name, tensor in state.items())
    with pytest.raises(InputError, match=r"a folder; name a file, such as checkpoints/best\.pt"):
        medclip_oc.load(tmp_path / "checkpoints")


def test_a_script_holds_nothing_but_tensors(weights: dict[str, Tensor], tmp_path: Path) -> None:
    """Other classes in its archive are refused, whatever its code is."""
    file = tmp_path / "a.pt"
    torchscript(weights, file)
    with zipfile.ZipFile(file) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in entries.items():
            other = data.replace(b"torch._utils\n_rebuild_tensor_v2", b"os\nsystem")
            archive.writestr(name, other)
    with pytest.raises(InputError, match=r"pickled Python objects \(os\.system\), which run code"):
        pretrained.load_weights(file)
