"""Weights before and after, and what lies between; runs averaged."""

import json
from pathlib import Path
from typing import Any

import interpolate
import open_clip
import pytest
import torch
from interpolate import InterpolateConfig, alphas, choose

from medclip_oc.config.schema import ModelConfig
from medclip_oc.errors import InputError
from medclip_oc.models import averaging, checkpoint, factory
from tests.support.cli import call, one_line, run_training, write_config


def states(count: int) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        {"w": torch.randn(50, 3, generator=generator), "seen": torch.tensor(n)}
        for n in range(count)
    ]


def test_between_both_ends_which_are_bit_for_bit() -> None:
    one, two = states(2)
    for alpha, wanted in ((0, one), (1, two), (0.0, one), (1.0, two)):
        found = averaging.interpolated(one, two, alpha)
        assert all(value.equal(wanted[name]) for name, value in found.items())
    found = averaging.interpolated(one, two, 0.3)
    torch.testing.assert_close(found["w"], 0.7 * one["w"] + 0.3 * two["w"])
    assert found["seen"] == 1
    assert averaging.interpolated(one, one, 0.3)["w"].equal(one["w"])
    three = states(3)
    torch.testing.assert_close(averaging.mean(three)["w"], sum(s["w"] for s in three) / 3)
    assert averaging.mean([three[0]] * 3)["w"].equal(three[0]["w"])


def test_greedy_takes_what_helps() -> None:
    """By the distance to a goal: 2 is best, 0 joins from the other side, 1 and 3 would harm."""
    made = [{"w": torch.tensor([value])} for value in (5.0, -20.0, 8.0, 60.0)]
    chosen, alone = averaging.greedy(made, lambda state: -abs(state["w"].item() - 7))
    assert chosen == [2, 0]
    assert alone == [-2, -27, -1, -53]


def test_models_of_another_build() -> None:
    one, two = states(2)
    two["w"] = two["w"][:4]
    with pytest.raises(InputError, match=r"a.pt and b.pt are not of one model: w differs"):
        averaging.check_alike({"a.pt": one, "b.pt": two})


def test_alphas() -> None:
    assert alphas("0:1:0.1") == [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1]
    assert alphas("0:1:0.3") == [0, 0.3, 0.6, 0.9]
    assert alphas("0,0.25,1") == [0, 0.25, 1]
    for wrong in ("0:2:0.5", "1:0:0.1", "0:1:0", "x", "", "0:1", "nan", "0:1:1e-9", "-0.1"):
        with pytest.raises(InputError, match="--alphas"):
            alphas(wrong)


def test_choice_and_table() -> None:
    rows = [
        {"alpha": 0.0, "data": 0.1, "probe": 0.9},
        {"alpha": 0.5, "data": 0.46, "probe": 0.8},
        {"alpha": 0.8, "data": 0.5, "probe": 0.6},
        {"alpha": 1.0, "data": 0.49, "probe": 0.2},
    ]
    assert choose(rows, 0.1)["alpha"] == 0.5
    assert choose(rows, 0.05)["alpha"] == 0.8
    alone = [{name: row[name] for name in ("alpha", "data")} for row in rows]
    assert choose(alone, 0.1)["alpha"] == 0.8
    measure, names, *lines = interpolate.table(rows, rows[1]).splitlines()
    assert measure == "mean recall (of R@1, R@5 and R@10, both ways):"
    assert (names, lines[1]) == (
        "   alpha      data     probe",
        "     0.5    46.0 %    80.0 %  <- chosen",
    )


@pytest.fixture(scope="module")
def runs(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The last checkpoints of two short runs from the same start."""
    folder = tmp_path_factory.mktemp("runs")
    found = []
    for number, lr in enumerate((1e-3, 2e-3)):
        file = write_config(packed, folder, f"run{number}", train__epochs=3, optim__lr=lr)
        assert run_training(file) == 0
        found.append(folder / f"run{number}" / "checkpoints" / "last.pt")
    return found


def interpolated(*words: object) -> int:
    return call(interpolate.main, InterpolateConfig, "--workers", 0, *words)


def test_the_whole_way(
    runs: list[Path], packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = ("--fine_tuned", runs[0], "--data", packed, "--probe", packed, "--out", out)
    assert interpolated(*words, "--probe_split", "test", "--alphas", "0:1:0.5") == 0
    shown = capsys.readouterr().out
    record = json.loads((out / "interpolation.json").read_text())
    assert [row["alpha"] for row in record["rows"]] == [0, 0.5, 1]
    assert shown.count("<- chosen") == 1
    assert (out / "curve.png").stat().st_size > 5000
    # what is measured at the ends is what the models themselves score
    fine = checkpoint.load(runs[0])
    assert record["rows"][-1]["data"] == fine["metrics"]["mean_recall"]
    name = fine["model"]["name"]
    theirs = open_clip.create_model(name, pretrained=str(out / "chosen.pt"))
    chosen = checkpoint.load(out / "chosen.pt")
    assert chosen["interpolation"]["alpha"] == record["alpha"]
    start = factory.build(ModelConfig(**fine["config"]["model"]), seed=1).towers.clip.state_dict()
    wanted = averaging.interpolated(start, fine["state_dict"], record["alpha"])
    assert all(value.equal(wanted[n]) for n, value in theirs.state_dict().items())


@pytest.mark.parametrize("kind", ["uniform", "greedy"])
def test_soups(runs: list[Path], packed: Path, tmp_path: Path, capsys: Any, kind: str) -> None:
    words = ("--fine_tuned", *runs, "--data", packed, "--out", tmp_path, "--soup", kind)
    assert interpolated(*words, "--alphas", 1) == 0
    assert "the average of" in capsys.readouterr().out
    found = checkpoint.load(tmp_path / "chosen.pt")
    files = found["interpolation"]["fine_tuned"]
    wanted = averaging.mean([checkpoint.load(file)["state_dict"] for file in files])
    assert all(value.equal(wanted[name]) for name, value in found["state_dict"].items())
    assert kind == "greedy" or files == [str(file) for file in runs]


def test_mistakes(runs: list[Path], packed: Path, tmp_path: Path, capsys: Any) -> None:
    words = ("--fine_tuned", runs[0], "--data", packed, "--out", tmp_path)
    for *change, message in (
        ("--zero_shot", "laion9", "'laion9' is neither a file nor a tag"),
        ("--out", "/proc/nowhere/x", "--out: /proc/nowhere/x can't be written"),
    ):
        assert interpolated(*words, *change) == 2
        assert message in one_line(capsys.readouterr().err)
