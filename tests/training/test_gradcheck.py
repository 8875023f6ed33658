"""`--selfcheck`: on a sound step 0 and figures, on a wrong one 1 and the parameter's name."""

import re
from pathlib import Path
from typing import Any

import pytest

from medclip_oc.contrastive import grad_cache, loss
from tests.support.cli import one_line, run_training, write_config
from tests.support.interrupted import fork_server
from tests.support.tiny_models import TINY

Shown = pytest.CaptureFixture[str]
BIASED = {**TINY, "init_logit_bias": -2.0, "init_logit_scale": 2.3}
SIGLIP = {"model__definition": BIASED, "model__arch": "check-sigmoid", "loss": {"name": "siglip"}}
KEPT = {"train__keep_chunks": 2, "train__text_micro_batch_size": 3, "train__precision": "bf16"}
SOFT = {"loss": {"positives": "concepts", "label_smoothing": 0.1}, "train__micro_batch_size": 8}
DRAWS = {"model__patch_dropout": 0.5, "model__arch": "check-dropout"}


def check(shards: Path, folder: Path, **changes: Any) -> int:
    """Of 16 pairs at once, on the plain side, but where the micro batch is smaller."""
    file = write_config(shards, folder, **{"train__micro_batch_size": 16, **changes})
    code = run_training(file, "--selfcheck")
    assert not (folder / "run").exists(), "a check leaves no run"
    return code


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        (KEPT, "16 of 16 pairs on 1 process.*4 images and 3 texts, 2 kept.*bf16: loss.*embedded"),
        (DRAWS, "chunks of 4 images and 4 texts.*the same chunks, since the model draws random"),
        (SIGLIP, r"at once.* bias +worst relative error \d\.\de[-+]\d\d  clip\.logit_bias"),
        (SOFT, "8 of 16 pairs on 1 process.*chunks of 2 images and 2 texts.*embedded at once"),
    ],
    ids=["kept, bf16", "dropout", "siglip", "positives"],
)
def test_a_sound_step(
    packed: Path, tmp_path: Path, capsys: Shown, changes: dict[str, Any], shown: str
) -> None:
    assert check(packed, tmp_path, **changes) == 0
    out = capsys.readouterr().out
    assert re.search(shown, out, re.DOTALL), out
    assert re.search(r"fp32: loss \d\.\d+ cached, \d\.\d+ plain", out), out
    for part in ("image tower", "text tower", "temperature"):
        assert re.search(rf"{part} +worst relative error \d\.\de[-+]\d\d  clip\.", out), out
    assert re.search(r"cached step +\d+\.\d\d s.*plain step +\d+\.\d\d s", out, re.DOTALL)
    assert "holds: every relative error is under 1e-05" in out


@pytest.mark.parametrize(("factor", "error"), [(2.0, "1.0e+00"), (float("nan"), "inf")])
def test_a_wrong_step(
    packed: Path,
    tmp_path: Path,
    capsys: Shown,
    monkeypatch: pytest.MonkeyPatch,
    factor: float,
    error: str,
) -> None:
    """open_clip's own fault: a temperature whose gradient is counted twice. Or it is no number."""

    def wrong(*args: Any, **options: Any) -> Any:
        share, gradients = loss.contrast(*args, **options)
        return share, gradients._replace(scale=factor * gradients.scale)

    monkeypatch.setattr(grad_cache, "contrast", wrong)
    assert check(packed, tmp_path) == 1
    shown = capsys.readouterr()
    message = one_line(shown.err)
    assert f"selfcheck: clip.logit_scale: relative error {error} in fp32, above 1e-05" in message
    assert "holds" not in shown.out


@pytest.mark.slow
def test_two_processes(packed: Path, tmp_path: Path) -> None:
    """Dropout, SigLIP and a text tower of its own chunk size, checked over ranks."""
    sizes = {"train__micro_batch_size": 16, "train__text_micro_batch_size": 3}
    file = write_config(packed, tmp_path, **SIGLIP, **sizes, model__patch_dropout=0.5)
    assert fork_server.train(2, tmp_path, "--config", file, "--selfcheck") == [0, 0]
    said = "".join((tmp_path / f"rank{rank}.out").read_text() for rank in (0, 1))
    assert "16 of 16 pairs on 2 process(es), cpu, in chunks of 2 images and 3 texts" in said
    assert said.count("holds: every relative error is under 1e-05") == 1
