"""Descriptions of models from outside are data: they fit the schema, or one line says why not."""

import io
import json
import sys
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch

from medclip_oc.config.schema import ModelConfig
from medclip_oc.errors import InputError
from medclip_oc.models import checkpoint, description, factory
from medclip_oc.models.clip import Clip
from tests.support.reference import HF
from tests.support.tiny_models import TEXT, TINY, VIT

WITH_BERT = {**TINY, "text_cfg": HF}
CODE = "from pathlib import Path\nPath({!r}).touch()\n"
"""Python that leaves a mark where it runs."""


def build(arch: str, definition: dict[str, Any], **settings: Any) -> Clip:
    return factory.build(ModelConfig(arch=arch, definition=definition, **settings), seed=4)


def content_of(clip: Clip) -> dict[str, Any]:
    state = dict(clip.towers.clip.state_dict())
    return {"state_dict": state, "model": json.loads(json.dumps(clip.description)), "config": {}}


def texts(clip: Clip) -> torch.Tensor:
    with torch.inference_mode():
        return clip.towers.eval().embed_texts(clip.tokenizer(["a mass", "no finding"]))


def write(folder: Path, about: object, state: object = None) -> str:
    """A folder of open_clip's; its name."""
    (folder / "open_clip_config.json").write_text(json.dumps(about))
    torch.save(state, folder / "open_clip_pytorch_model.bin")
    return f"local-dir:{folder}"


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    """A checkpoint of before, which carries no files."""
    clip = build("bert-test", WITH_BERT)
    model = {k: v for k, v in clip.description.items() if k not in ("files", "digest")}
    checkpoint.save(
        tmp_path / "bert.pt", {"state_dict": clip.towers.clip.state_dict(), "model": model}
    )
    return tmp_path / "bert.pt"


def changed(file: Path, **text_cfg: Any) -> Path:
    """A checkpoint whose text tower is described otherwise."""
    content = checkpoint.load(file)
    content["model"]["definition"]["text_cfg"] |= text_cfg
    content["model"].pop("digest", None)
    content["model"]["tokenizer"] = text_cfg.get("hf_tokenizer_name", content["model"]["tokenizer"])
    checkpoint.save(file, content)
    return file


def test_all_of_open_clip_fits() -> None:
    for name in open_clip.list_models():
        description.check(description.DEFINITION, open_clip.get_model_config(name), f"{name}.")


def test_a_checkpoint_carries_its_tokenizer_and_text_tower(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It opens where the packages and folders that it was made from are gone."""
    file, clip = tmp_path / "a.pt", build("carried-test", WITH_BERT)
    content = {"state_dict": clip.towers.clip.state_dict(), "model": clip.description}
    checkpoint.save(file, content)
    assert "text_model/config.json" in clip.description["files"]
    theirs = open_clip.create_model("carried-test", pretrained=str(file), pretrained_text=False)
    assert all(w.equal(content["state_dict"][name]) for name, w in theirs.state_dict().items())
    gone = {"hf_model_name": "package:gone/x", "hf_tokenizer_name": "package:gone/x"}
    again = factory.load(changed(file, **gone))
    assert texts(again).equal(texts(clip))
    assert again.description["files"] == clip.description["files"]


def test_a_checkpoint_of_before_finds_them_as_before(bert: Path) -> None:
    """And the next one that is written from it carries them."""
    assert factory.load(bert).description["files"].keys() == {
        "text_model/config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }


def tower(folder: Path, **config: Any) -> str:
    """A text tower's folder with Python of its own, which leaves a mark; its path."""
    own = json.loads((Path(HF["hf_model_name"]) / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(own | config))
    return str(folder)


EVIL = {"AutoConfig": "evil.Config", "AutoModel": "evil.Model", "AutoTokenizer": ["evil.T", None]}


@pytest.mark.parametrize(
    ("text", "config", "message"),
    [
        ({"tokenizer_kwargs": {"trust_remote_code": True}}, {}, "trust_remote_code: no such sett"),
        ({"tokenizer_kwargs": {"bpe_path": "/etc/passwd"}}, {}, "bpe_path: no such setting"),
        ({"hf_model_name": "package:evilpkg"}, {}, "package evilpkg is not installed"),
        ({"hf_tokenizer_name": "package:evilpkg"}, {}, "package evilpkg is not installed"),
        ({"hf_model_name": "package:open_clip//etc"}, {}, "package open_clip holds no /etc"),
        ({"hf_model_name": "../tower"}, {}, "bert.pt: hf_model_name: ../tower leads out of"),
        (
            {"hf_model_name": "/no/where"},
            {},
            "bert.pt: hf_model_name: /no/where: no such",
        ),
        ({"hf_tokenizer_name": "HERE"}, {}, "made with a tokenizer .* that isn.t the one here"),
        (
            {"hf_tokenizer_name": "HERE"},
            {"model_type": "evil"},
            "bert-test: .*contains custom code",
        ),
        ({"hf_model_name": "HERE"}, {"auto_map": EVIL}, r"config.json: auto_map: should be None"),
        (
            {"hf_model_name": "HERE"},
            {"auto_map": EVIL, "model_type": "evil"},
            "model_type: sh",
        ),
        (
            {"hf_model_name": "HERE"},
            {"attn_implementation": "evil/x"},
            "attn_impl.*: should be",
        ),
        (
            {"hf_model_name": "HERE"},
            {"num_hidden_layers": 10**7},
            "num_hidden_layers: should be",
        ),
        ({"hf_model_name": "HERE"}, {"num_labels": 10**9}, "num_labels: should be less"),
        ({"hf_model_name": "HERE"}, {"hidden_size": 10**6}, "weights don't fit its own desc"),
        (
            {"hf_model_name": "HERE"},
            {"num_attention_heads": 0},
            "bert-test can't be built",
        ),
    ],
)
def test_a_checkpoint_of_before_runs_no_code_and_leads_nowhere(
    bert: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    text: dict[str, Any],
    config: dict[str, Any],
    message: str,
) -> None:
    """Nor is anything asked: a "y" on standard input is not read."""
    here, mark = tmp_path / "here", tmp_path / "ran"
    for folder in (here, here / "evilpkg", here / "evilpkg.egg-info"):
        folder.mkdir()
        for name in ("__init__.py", "evil.py"):
            (folder / name).write_text(CODE.format(str(mark)))
    (here / "evilpkg.egg-info" / "PKG-INFO").write_text("Name: evilpkg\nVersion: 1\n")
    (here / "evilpkg.egg-info" / "top_level.txt").write_text("evilpkg\n")
    tower(here, **config)
    (here / "tokenizer_config.json").write_text(json.dumps({"auto_map": EVIL}))
    monkeypatch.chdir(here)
    monkeypatch.syspath_prepend("")
    monkeypatch.setattr(sys, "stdin", asked := io.StringIO("y\ny\n"))
    told = {key: str(here) if value == "HERE" else value for key, value in text.items()}
    with pytest.raises(InputError, match=message) as caught:
        factory.load(changed(bert, **told))
    assert "\n" not in str(caught.value)
    assert asked.tell() == 0
    assert not mark.exists()


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ([], "config.json: should be a mapping"),
        (None, "config.json: should be a mapping"),
        ({"model_cfg": 5}, "model_cfg: should be a mapping .there: 5"),
        ({"model_cfg": TINY, "preprocess_cfg": {"mean": "x"}}, "preprocess_cfg.mean: should be"),
        ({"model_cfg": {**TINY, "text_cfg": {**TEXT, "layers": 10**7}}}, "text_cfg.layers: should"),
        ({"model_cfg": {**TINY, "vision_cfg": {**VIT, "width": 2**19}}}, "doesn't fit "),
        ({"model_cfg": {**TINY, "text_cfg": HF}}, "hf_model_name: /.* leads out of the folder"),
    ],
)
def test_a_folder(tmp_path: Path, about: object, message: str) -> None:
    name = write(tmp_path, about, build("folder-test", TINY).towers.clip.state_dict())
    with pytest.raises(InputError, match=message):
        factory.build(ModelConfig(arch=name))


def test_no_normalisation_in_whole_numbers(tmp_path: Path) -> None:
    none = {"mean": [0, 0, 0], "std": [1, 1, 1]}
    clip = build("whole-test", TINY, preprocess=none)
    checkpoint.save(tmp_path / "a.pt", content_of(clip))
    pixels = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    floats = {key: [float(number) for number in value] for key, value in none.items()}
    same = build("whole-test", TINY, preprocess=floats).towers.eval().embed_images(pixels)
    for model in (clip, factory.load(tmp_path / "a.pt")):
        torch.testing.assert_close(model.towers.eval().embed_images(pixels), same)
