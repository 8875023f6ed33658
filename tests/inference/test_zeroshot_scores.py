"""A run classifies at each validation as the command zeroshot does, and is the same run."""

import json
from pathlib import Path
from typing import Any

import pytest

from medclip_oc import zeroshot
from medclip_oc.config.inference import ZeroshotConfig
from tests.support.cli import call, run_training
from tests.support.interrupted import configure, fork_server, measured, same, weights
from tests.support.tiny_dataset import caption
from tests.support.tiny_models import TINY, VIT

PROMPTS = """
multi_label: SEVERAL
templates: {positive: ["{} bright"], negative: ["{} dark"]}
classes: {left: {names: [upper left, left]}, right: {names: [lower right]}}
"""
DROPOUT = {**TINY, "vision_cfg": {**VIT, "patch_dropout": 0.1}}
SLOW, SLOW_CASES = pytest.mark.slow, [(False, True, 1), (True, True, 2)]


def asked(folder: Path, packed: Path, *, several: bool, files: bool) -> dict[str, Any]:
    """`valid.zeroshot` of the validation pairs but the last; or of their files."""
    rows = ["image,left,right" if several else "image,label"]
    for n in range(11):
        there = ("upper left bright" in caption(48 + n), "lower right bright" in caption(48 + n))
        label = f"{there[0]:d},{there[1]:d}" if several else ("left", "right")[n % 2]
        rows.append(f"valid_{n:04},{label}")
    (folder / "labels.csv").write_text("\n".join([*rows, ""]))
    (folder / "mine.yaml").write_text(PROMPTS.replace("SEVERAL", str(several).lower()))
    images = {"images": [str(packed.parent / "source" / "valid_images")]} if files else {}
    return {"prompts": str(folder / "mine.yaml"), "labels": str(folder / "labels.csv"), **images}


@pytest.mark.parametrize(
    ("several", "files", "ranks"),
    [(True, False, 1), *(pytest.param(*case, marks=SLOW) for case in SLOW_CASES)],
)
def test_a_run_has_the_figures_of_the_command(
    several: bool,
    files: bool,
    ranks: int,
    packed: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = asked(tmp_path, packed, several=several, files=files)
    chosen = {"zeroshot": given, "metric": "zeroshot/auroc/right"}
    for name, more in {"with": chosen, "without": {}}.items():
        how: dict[str, Any] = {"valid": {"at_start": True, **more}, "train__max_steps": 2}
        model = {"arch": "zeroshot-test", "definition": DROPOUT}
        config = configure(packed, tmp_path, name, model=model, **how)
        if ranks == 1:
            assert run_training(config) == 0
        else:
            assert fork_server.train(ranks, tmp_path, "--config", config) == [0] * ranks
    assert same(weights(tmp_path / "with"), weights(tmp_path / "without"))
    records = [r for r in measured(tmp_path / "with") if "valid/zeroshot/auroc" in r]
    best = max(records, key=lambda record: record["valid/zeroshot/auroc/right"])
    of_command, file = given.get("images", [packed, "--split", "valid"]), tmp_path / "figures.json"
    words = ["--images", *of_command, "--labels", given["labels"], "--prompts", given["prompts"]]
    words += ["--checkpoint", tmp_path / "with" / "checkpoints" / "best.pt", "--figures", file]
    assert call(zeroshot.main, ZeroshotConfig, *words, *["--multi-label"] * several) == 0
    figures = json.loads(file.read_text())
    whole, classes = figures.get("macro", figures), figures.get("findings", figures.get("classes"))
    names = ["auroc", "average_precision"] if several else ["accuracy", "balanced_accuracy"]
    expected = {f"valid/zeroshot/{name}": whole[name] for name in names}
    expected |= {f"valid/zeroshot/auroc/{name}": each["auroc"] for name, each in classes.items()}
    assert {name: best[name] for name in expected} == pytest.approx(expected, abs=1e-9)
    if ranks == 1:
        labels = (tmp_path / "labels.csv").read_text()
        (tmp_path / "labels.csv").write_text(labels[: labels.rstrip().rindex("\n") + 1])
        config = tmp_path / "with" / "config.yaml"
        assert run_training(config) == 2
        assert "valid.zeroshot, whose files have changed since" in capsys.readouterr().err


MISTAKES: dict[str, tuple[str, Any]] = {
    "valid.zeroshot: needs prompts, labels, and data.valid": ("prompts", None),
    "valid.metric: zeroshot/mcc is not one of zeroshot/auroc": ("metric", "zeroshot/mcc"),
    "labels.csv: none of its rows names one of the images: 'a'": ("labels", "image,left\na,1\n"),
    "labels.csv: line 2: 'centre' is no candidate": ("labels", "image,label\nvalid_0001,centre\n"),
    "valid.zeroshot: chexpert: no such file, and no prompt set": ("prompts", "chexpert"),
    "valid.zeroshot.images: x: no such file": ("images", ["x"]),
}


@pytest.mark.parametrize("line", MISTAKES)
def test_mistakes_before_the_first_step(
    line: str, packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given, (key, value) = asked(tmp_path, packed, several=True, files=False), MISTAKES[line]
    if key == "labels":
        (tmp_path / "labels.csv").write_text(value)
    elif key != "metric":
        given[key] = value
    valid = {"zeroshot": given, "metric": value if key == "metric" else "zeroshot/auroc"}
    config = configure(packed, tmp_path, "run", valid=valid)
    assert run_training(config) == 2
    error = capsys.readouterr().err
    assert line in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()
