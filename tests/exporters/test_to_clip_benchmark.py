"""clip_benchmark reads an export as it is, and has our figures."""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medclip_oc import evaluate, export
from medclip_oc.config.evaluation import EvaluateConfig
from medclip_oc.config.inference import ExportConfig
from medclip_oc.data.shards import ShardSet
from tests.support.cli import call
from tests.support.tiny_dataset import jpeg, stock, write_captions, write_tar

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Exports to tmp_path / "out"; returns the exit code, and what was printed."""

    def run(*words: object) -> tuple[int, str]:
        given = ["--to", "clip_benchmark", "--out", tmp_path / "out", *words]
        return call(export.main, ExportConfig, *given), "".join(capsys.readouterr())

    return run


def read(folder: Path, split: str = "test") -> list[dict[str, Any]]:
    """The samples as `build_wds_dataset` finds them."""
    number = int((folder / split / "nshards.txt").read_text())
    assert len(list((folder / split).iterdir())) == number + 1
    return stock([str(folder / split / f"{n}.tar") for n in range(number)])


def test_retrieval(packed: Path, run: Run, tmp_path: Path) -> None:
    """A caption a line, whatever breaks it; images bit for bit; again over what is there."""
    odd = {"a.jpg": jpeg(1), "a.txt": "left\n\nlung\u2028 (arrow)\n".encode()}
    sets = f"{packed}::{write_captions(tmp_path / 'several.tar')}"
    sets += f"::{write_tar(tmp_path / 'odd.tar', odd)}"
    code, printed = run("--data", sets)
    assert (code, printed.splitlines()[0]) == (
        0,
        f"17 images, 23 captions: written to {tmp_path / 'out'}; its README.md has the call",
    )
    assert (tmp_path / "out" / "dataset_type.txt").read_text() == "retrieval\n"
    shards, samples = ShardSet.open(sets, "test"), read(tmp_path / "out")
    assert [sample["__key__"] for sample in samples] == shards.ids()
    for position, sample in enumerate(samples):
        pair = shards.read(position)
        assert sample[pair.extension] == pair.image
        texts = ["left  lung  (arrow)"] if pair.key == "a" else [pair.caption, *pair.further]
        assert sample["txt"].decode().splitlines() == texts
    assert "is there already; --overwrite" in run("--data", packed)[1]
    assert run("--data", packed, "--overwrite", "--split", "valid")[0] == 0
    assert len(read(tmp_path / "out", "valid")) == 12


MISTAKES = {
    "": "--data: required for --to clip_benchmark",
    "--data x --checkpoint y": "--checkpoint: of no use to --to clip_benchmark",
    "--data x --split test": "x: no such shard folder or tar",
    "--to hf --data x": "--checkpoint: required for --to hf",
    "--to hf --checkpoint y --split test": "--split: of no use to --to hf",
}


@pytest.mark.parametrize("words", MISTAKES)
def test_mistakes(words: str, run: Run, tmp_path: Path) -> None:
    code, error = run(*words.split())
    assert (code, error.count("\n")) == (2, 1)
    assert MISTAKES[words] in error
    assert not (tmp_path / "out").exists()


def theirs(folder: Path, model: Path, *words: object) -> dict[str, float]:
    """What clip_benchmark measures, in the environment of its own."""
    python = os.environ.get("CLIP_BENCHMARK_PYTHON") or pytest.skip(
        "CLIP_BENCHMARK_PYTHON names no Python that has clip_benchmark and requests"
    )
    given = ["--dataset", "wds/x", "--dataset_root", folder, "--model", f"local-dir:{model}"]
    given += ["--pretrained", "", "--no_amp", "--output", folder / "theirs.json", *words]
    command = [python, "-m", "clip_benchmark.cli", "eval", *map(str, given)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return dict(json.loads((folder / "theirs.json").read_text())["metrics"])


@pytest.fixture
def model(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """The checkpoint as a folder of open_clip."""
    (tmp_path / "a.jpg").write_bytes(jpeg(1))
    (tmp_path / "b.jpg").write_bytes(jpeg(2))
    given = ["--checkpoint", tiny_checkpoint, "--images", tmp_path, "--out", tmp_path / "model"]
    assert call(export.main, ExportConfig, "--to", "open_clip", *given) == 0
    return tmp_path / "model"


@pytest.mark.slow
@pytest.mark.parametrize("several", [False, True])
def test_its_recall_is_ours(
    several: bool, packed: Path, run: Run, model: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    data = write_captions(tmp_path / "several.tar") if several else packed
    assert run("--data", data)[0] == 0
    ks = (1, 2, 3)
    words = ["--task", "zeroshot_retrieval", "--recall_k", *ks]
    found = theirs(tmp_path / "out", model, *words)
    given = ["--checkpoint", tiny_checkpoint, "--data", data, "--json", tmp_path / "ours.json"]
    given += ["--ks", *ks, "--captions", "all" if several else "first"]
    assert call(evaluate.main, EvaluateConfig, *given) == 0
    ours = json.loads((tmp_path / "ours.json").read_text())
    for way, name in (("image_to_text", "text"), ("text_to_image", "image")):
        for k in ks:
            recall = found[f"{name}_retrieval_recall@{k}"]
            assert recall == pytest.approx(ours[way][f"R@{k}"], abs=1e-6)
