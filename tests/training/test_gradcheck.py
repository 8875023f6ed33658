"""`--selfcheck`: on a sound step 0 and figures, on a wrong one 1 and the parameter's name."""

import re
from pathlib import Path
from typing import Any

import pytest

from medclip_oc import train
from medclip_oc.config.schema import TrainCommand
from medclip_oc.contrastive import grad_cache, loss
from medclip_oc.runtime import devices
from tests.support.cli import call, one_line, settings, torchrun, write
from tests.support.tiny_models import TEXT, TINY, VIT

BIASED = {**TINY, "init_logit_bias": -2.0, "init_logit_scale": 2.3}
DROPOUT = {**TINY, "vision_cfg": {**VIT, "patch_dropout": 0.5}}


def check(shards: Path, folder: Path, **changes: Any) -> int:
    file = write(settings(shards, folder / "run", **changes), folder / "config.yaml")
    code = call(train.main, TrainCommand, "--config", file, "--selfcheck")
    assert not (folder / "run").exists(), "a check leaves no run"
    return code


KEPT = {"train__keep_chunks": 2, "train__text_micro_batch_size": 3, "train__precision": "bf16"}
SOFT = {"positives": "concepts", "label_smoothing": 0.1}


@pytest.mark.parametrize(
    "changes",
    [
        KEPT,
        {"model__definition": DROPOUT, "model__arch": "check-dropout"},
        {"model__definition": BIASED, "model__arch": "check-sigmoid", "loss": {"name": "siglip"}},
        {"loss": SOFT, "train__micro_batch_size": 99},
    ],
    ids=["kept, bf16", "dropout", "siglip", "positives, one chunk"],
)
def test_a_sound_step(
    packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any]
) -> None:
    assert check(packed, tmp_path, **changes) == 0
    shown = capsys.readouterr().out
    assert re.search(r"fp32: loss \d\.\d+ cached, \d\.\d+ plain", shown), shown
    assert ("all pairs embedded at once" in shown) == ("dropout" not in str(changes))
    assert ("bf16: loss" in shown) == (changes.get("train__precision") == "bf16")
    parts = {"image tower", "text tower", "temperature"} | (
        {"bias"} if "siglip" in str(changes) else set()
    )
    for part in parts:
        assert re.search(rf"{part} +worst relative error \d\.\de[-+]\d\d  clip\.", shown), shown
    assert re.search(r"cached step +\d+\.\d\d s", shown)
    assert re.search(r"plain step +\d+\.\d\d s", shown)
    assert "holds: every relative error is under 1e-05" in shown
    if "dropout" not in str(changes):
        chunk = 8 if changes.get("train__micro_batch_size") == 99 else 4
        assert f"16 pairs on 1 process(es), cpu, in chunks of {chunk} images" in shown


def test_a_wrong_step(
    packed: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """open_clip's own fault: a temperature whose gradient is counted twice."""

    def wrong(*args: Any, **options: Any) -> Any:
        share, gradients = loss.contrast(*args, **options)
        return share, gradients._replace(scale=2 * gradients.scale)

    monkeypatch.setattr(grad_cache, "contrast", wrong)
    assert check(packed, tmp_path) == 1
    shown = capsys.readouterr()
    message = one_line(shown.err)
    assert "selfcheck: clip.logit_scale: relative error 1.0e+00 in fp32, above 1e-05" in message
    assert "holds" not in shown.out


def test_only_what_fits(
    packed: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(devices, "graph_bytes", lambda *_: 1000)
    monkeypatch.setattr(devices, "free_bytes", lambda d: 20_000)
    assert check(packed, tmp_path) == 0
    assert "10 pairs (of 16: as many as a plain batch has room for)" in capsys.readouterr().out


def test_siglip_needs_a_bias(
    packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check(packed, tmp_path, loss={"name": "siglip"}) == 2
    assert "loss.name: siglip needs a model with a bias" in one_line(capsys.readouterr().err)


@pytest.mark.slow
def test_two_processes(packed: Path, tmp_path: Path) -> None:
    """Dropout, SigLIP and a text tower of its own chunk size, checked over ranks."""
    definition = {**DROPOUT, "text_cfg": TEXT, "init_logit_bias": -2.0}
    tree = settings(packed, tmp_path / "run", model__definition=definition, model__arch="check-two")
    tree["loss"] = {"name": "siglip"}
    tree["train"]["text_micro_batch_size"] = 3
    file = write(tree, tmp_path / "config.yaml")
    done = torchrun(2, "-m", "medclip_oc.train", "--config", file, "--selfcheck")
    assert done.returncode == 0, done.stderr
    assert "16 pairs on 2 process(es)" in done.stdout
    assert done.stdout.count("holds: every relative error is under 1e-05") == 1
