"""The experiment's command runs, and its table says what the rows do."""

import json
from pathlib import Path

import forgetting
import pytest
from forgetting import ExperimentConfig


def test_table() -> None:
    rows = {
        "before fine-tuning": {"new": 0.2, "old": 0.5},
        "plain": {"new": 0.4, "old": 0.3},
        "other": {"new": 0.38, "old": 0.45},
    }
    lines = forgetting.forgetting_table(rows, 150).splitlines()
    assert lines[0].startswith(
        "mean recall (of R@1, R@5 and R@10, both ways) in pools of 150: new "
    )
    assert lines[-3:] == [
        "| before fine-tuning | 20.0 % | 50.0 % |  |  |",
        "| plain | 40.0 % | 30.0 % |  |  |",
        "| other | 38.0 % | 45.0 % | 75% | 5% |",
    ]


@pytest.mark.slow
def test_it_runs_and_resumes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With almost no training; a second call trains nothing again and says the same."""
    monkeypatch.delitem(forgetting.METHODS, "layer decay 0.6")  # as the plain one in all else
    monkeypatch.delitem(forgetting.METHODS, "frozen image tower")
    config = ExperimentConfig(out=str(tmp_path), quick=True)
    first = forgetting.forgetting(config, tmp_path)
    said = capsys.readouterr()
    assert said.err.count("trained: ") == 1 + len(forgetting.METHODS)
    assert f"WiSE-FT of plain, alpha {first['alpha']:g}" in first["rows"]
    assert all(0 < row["new"] < 1 for row in first["rows"].values())
    again = forgetting.forgetting(config, tmp_path)
    assert "trained: " not in capsys.readouterr().err
    assert json.dumps(again) == json.dumps(first)
