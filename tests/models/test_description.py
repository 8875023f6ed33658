"""Descriptions of models from outside are data: they fit the schema, or one line says why not."""

import io
import json
import random
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch

from medclip_oc.config.schema import ModelConfig
from medclip_oc.errors import InputError
from medclip_oc.models import checkpoint, description, factory
from tests.support.reference import HF, embed
from tests.support.reference import timm as timm_tower
from tests.support.tiny_models import TEXT, TINY

BERT = {**TINY, "text_cfg": HF}
EVIL = {"AutoConfig": "evil.Config", "AutoModel": "evil.Model", "AutoTokenizer": ["evil.T", None]}


def content_of(arch: str, definition: dict[str, Any]) -> dict[str, Any]:
    clip = factory.build(ModelConfig(arch=arch, definition=definition), seed=4)
    state = dict(clip.towers.clip.state_dict())
    config = {"model": {"arch": arch}, "data": {"valid": None}, "run": {"seed": 4}}
    return {"state_dict": state, "model": clip.description, "config": config}


def save(content: dict[str, Any], file: Path, *without: str, **text_cfg: Any) -> Path:
    """A checkpoint, without some of what it says, whose text tower is described otherwise."""
    model = deepcopy(content["model"])
    model["definition"]["text_cfg"] |= text_cfg
    model["tokenizer"] = text_cfg.get("hf_tokenizer_name", model["tokenizer"])
    kept = {key: value for key, value in model.items() if key not in without}
    checkpoint.save(file, {**content, "model": kept})
    return file


def test_all_of_open_clip_fits() -> None:
    for name in open_clip.list_models():
        description.check(description.DEFINITION, open_clip.get_model_config(name), f"{name}.")


def test_a_checkpoint_carries_its_tokenizer_and_text_tower(tmp_path: Path) -> None:
    """It opens where the package and the folder that it was made from are gone."""
    content, gone = content_of("carried-test", BERT), "package:gone/x"
    file = save(content, tmp_path / "a.pt")
    carried = list(content["model"]["files"])
    assert carried == ["text_model/config.json", "tokenizer.json", "tokenizer_config.json"]
    theirs = open_clip.create_model("carried-test", pretrained=str(file), pretrained_text=False)
    expected = embed(factory.load(file))
    assert all(w.equal(content["state_dict"][name]) for name, w in theirs.state_dict().items())
    save(content, file, hf_model_name=gone, hf_tokenizer_name=gone)
    assert embed(factory.load(file)).equal(expected)
    # one of before finds them as before, and what is saved from it carries them
    again = factory.load(save(content, file, "files"))
    assert embed(again).equal(expected)
    assert list(again.description["files"]) == carried


@pytest.mark.parametrize(
    "row",
    [
        ({"tokenizer_kwargs": {"trust_remote_code": True}}, {}, "trust_remote_code: no such sett"),
        ({"hf_tokenizer_name": "package:evilpkg"}, {}, "t.pt: hf_tok.*evilpkg is not installed"),
        ({"hf_model_name": "package:open_clip//etc"}, {}, "package open_clip holds no /etc"),
        ({"hf_model_name": "../tower"}, {}, "bert.pt: hf_model_name: ../tower leads out of"),
        ({"hf_model_name": "/no/where"}, {}, "bert.pt: hf_model_name: /no/where: no such"),
        ({"hf_tokenizer_name": "HERE"}, {}, "made with a tokenizer .* that isn't the one here"),
        ({"hf_tokenizer_name": "HERE"}, {"model_type": "evil"}, "contains custom code"),
        ({"hf_model_name": "HERE"}, {"auto_map": EVIL}, "config.json: auto_map: should be None"),
        ({"hf_model_name": "HERE"}, {"attn_implementation": "evil/x"}, "attn_impl.*: should be"),
        ({"hf_model_name": "HERE"}, {"num_hidden_layers": 10**7}, "num_hidden_layers: should be"),
        ({"hf_model_name": "HERE"}, {"hidden_size": 10**6}, "bert.pt doesn't fit bert-test: "),
        ({"hf_model_name": "HERE"}, {"num_attention_heads": 0}, "bert-test can't be built"),
    ],
)
def test_a_checkpoint_of_before_runs_no_code_and_leads_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row: tuple[Any, Any, str]
) -> None:
    """Nor is anything asked: a "y" on standard input is not read."""
    text, config, message = row
    content, here, mark = content_of("bert-test", BERT), tmp_path / "here", tmp_path / "ran"
    for folder in (here, here / "evilpkg", here / "evilpkg.egg-info"):
        folder.mkdir()
        for name in ("__init__.py", "evil.py"):
            (folder / name).write_text(f"from pathlib import Path\nPath({str(mark)!r}).touch()\n")
    (here / "evilpkg.egg-info" / "PKG-INFO").write_text("Name: evilpkg\nVersion: 1\n")
    own = json.loads((Path(HF["hf_model_name"]) / "config.json").read_text())
    (here / "config.json").write_text(json.dumps(own | config))
    (here / "tokenizer_config.json").write_text(json.dumps({"auto_map": EVIL}))
    told = {key: str(here) if value == "HERE" else value for key, value in text.items()}
    file = save(content, tmp_path / "bert.pt", "files", **told)
    monkeypatch.chdir(here)
    monkeypatch.syspath_prepend("")
    monkeypatch.setattr(sys, "stdin", asked := io.StringIO("y\ny\n"))
    with pytest.raises(InputError, match=message) as caught:
        factory.load(file)
    assert "\n" not in str(caught.value)
    assert asked.tell() == 0
    assert not mark.exists()


GARBAGE = [None, True, 0, -1, 3, 10**7, 10**30, 1e30, float("nan"), 0.5, "", "x", "../x", "a\0b"]
GARBAGE += ["package:evil/x", "/etc", b"", [], {}, [1, 2], {"a": 1}, {3: 4}, torch.ones(2)]
QUICK = {**TINY, "quick_gelu": True, "text_cfg": {**TEXT, "norm_kwargs": {"eps": 1e-6}}}
FUZZED = {"vit": QUICK, "bert": BERT, "timm": {**TINY, "vision_cfg": timm_tower("test_vit", 32)}}


# What neither the weights nor another part of the description tells otherwise: data like them.
FREE = {"mean", "std", "interpolation", "resize_mode", "heads", "head_width", "eps", "norm_kwargs"}


def places(tree: Any) -> list[tuple[Any, Any]]:
    """All mappings and lists in a tree, with each of their keys."""
    keys = list(tree) if isinstance(tree, dict) else range(min(3, len(tree)))
    keys = [key for key in keys if key not in FREE]
    inner = [tree[key] for key in keys if isinstance(tree[key], dict | list)]
    return [(tree, key) for key in keys] + [place for part in inner for place in places(part)]


@pytest.mark.slow
@pytest.mark.parametrize("name", FUZZED)
def test_a_hundred_mutations_change_nothing_or_are_refused(tmp_path: Path, name: str) -> None:
    sound = content_of(f"fuzz-{name}", FUZZED[name])
    file, rng, refused = tmp_path / "a.pt", random.Random(name), 0
    expected = embed(factory.load(save(sound, file)))
    for _ in range(100):
        content, told = deepcopy(sound), str(file)
        described = places({"model": content["model"], "config": content["config"]})
        owner, key = rng.choice([*described, (content, "state_dict"), (content, "config")])
        if rng.random() < 0.3:
            del owner[key]
        else:
            owner[key] = rng.choice(GARBAGE)
        checkpoint.save(file, content)
        try:
            assert embed(factory.load(file)).equal(expected), key
        except InputError as error:
            told, refused = str(error), refused + 1
        assert told.startswith(str(file))
        assert "\n" not in told
    assert refused > 60
