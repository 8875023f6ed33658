"""What a model card says, and what it keeps to itself."""

import json
from pathlib import Path
from typing import Any

import pytest

from medclip_oc.config.vocabulary import DIRECTIONS
from medclip_oc.exporters import model_card
from tests.support.tiny_dataset import jpeg, write_tar

ABOUT: dict[str, Any] = {
    "name": "tiny",
    "definition": {"embed_dim": 24, "text_cfg": {"hf_tokenizer_name": "/home/me/bert"}},
    "preprocess": dict.fromkeys(("size", "resize_mode", "interpolation", "mean", "std"), 1),
}
LICENCES = [{"Attribution": "CC BY-NC [A et al. (2020)]"}, "cc by 4.0", {"Link": "x"}]


@pytest.mark.parametrize(
    ("where", "names"),
    [
        ("/home/me/rocov2", "rocov2"),
        ("shards/rocov2/::data/rocov2/train-{000000..000009}.tar", "rocov2"),
        (["a/one/x.tar", "a/two/*.tar"], "one, two"),
        ("pipe:aws s3 cp s3://bucket/mimic/train-0.tar -", "mimic"),
        ("https://host/padchest/train-{00..99}.tar?token=secret", "padchest"),
    ],
)
def test_data_sets_have_names(where: str | list[str], names: str) -> None:
    assert model_card.set_names(where) == names


@pytest.mark.parametrize(
    ("model", "weights"),
    [
        ({"arch": "ViT-B-16", "pretrained": "openai"}, "openai"),
        ({"arch": "t", "pretrained": "/home/me/run/best.pt"}, "best.pt"),
        ({"arch": "t", "pretrained": "home/me"}, "me\n"),
        ({"arch": "local-dir:/home/me/run"}, "its own weights"),
        ({"arch": "t"}, "random weights"),
        ({"arch": "t", "pretrained_text": "org/bert"}, "random weights, but for org/bert"),
        ({"arch": "t", "pretrained_image": "/a/b", "pretrained_text": "package:b"}, "b and pack"),
    ],
)
def test_says_what_is_known_without_a_path(
    tmp_path: Path, model: dict[str, Any], weights: str
) -> None:
    """Names, counts and licences, as long as the shards are those of the run."""
    data = {"train": str(tmp_path / "*.tar"), "valid": None, "caption_key": "said"}
    config = {"model": model, "data": data}
    scores = dict.fromkeys(("R@1", "R@5", "R@10", "median_rank", "mean_rank", "mrr"), 1.0)
    record = dict.fromkeys((*DIRECTIONS, "chance"), scores) | {"pool": 1, "images": 1, "texts": 1}
    (tmp_path / "evaluations").mkdir()
    (tmp_path / "evaluations" / "best-test.json").write_text(json.dumps(record))
    content = {"model": ABOUT, "config": config, "epoch": 2.5, "step": 5}
    file = tmp_path / "checkpoints" / "best.pt"
    found, asked = "CC BY-NC (1), CC BY (1), another (1)", "; the licences of its data\n"
    for pairs, licences, licence_line, asks in (
        (3, LICENCES, f"samples: {found}\n", False),
        (4, [*LICENCES, None], f"samples: {found}, none said (1)\n", True),
        (5, LICENCES, "in an epoch: 5\n- step: 5", True),
    ):
        for n, licence in enumerate(licences):
            facts = json.dumps({"license": licence}).encode()
            write_tar(tmp_path / f"{n}.tar", {"a.jpg": jpeg(n), "a.said": b"a", "a.json": facts})
        content["position"] = int(2.5 * pairs)
        card = model_card.render(content, file, "onnx", tmp_path / "out")
        assert f"- weights before: {weights}" in card
        assert f"- training data: {tmp_path.name}\n" in card
        assert licence_line in card
        assert "| image to text | 1 of 1 | 1 of 1 | 1 of 1 | 1 |" in card
        assert (asked in card) == asks
    for word in ("/home", str(tmp_path), "published"):
        assert word not in card
