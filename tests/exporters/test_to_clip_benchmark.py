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
from tests.support.tiny_dataset import jpeg, stock, write_captions, write_pairs, write_tar

Run = Callable[..., tuple[int, str]]
PROMPTS = """
multi_label: false
templates: {positive: ["{}", "an X-ray\\n of {}."]}
classes:
  {odd: {names: [an odd one, a rest], aliases: [o]}, even: {positive: [even]}, x: {names: [x]}}
"""


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
    assert code == 0
    assert printed.startswith(f"{tmp_path / 'out'}: 17 of 17 images, 23 captions\n")
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


def classes(folder: Path) -> list[object]:
    """Options for pairs of which all but the last two have a class."""
    rows = [f"pair{n}.png,{('even', 'o')[n % 2]}" for n in range(11)]
    (folder / "labels.csv").write_text("\n".join(["image,label", *rows, "elsewhere,odd", ""]))
    (folder / "mine.yaml").write_text(PROMPTS)
    given = ["--data", write_pairs(folder / "pairs.tar", range(13))]
    return [*given, "--labels", folder / "labels.csv", "--prompts", folder / "mine.yaml"]


def test_classification(run: Run, tmp_path: Path) -> None:
    code, printed = run(*classes(tmp_path))
    assert code == 0
    assert "out: 11 of 13 images, 2 classes\n" in printed
    samples = read(tmp_path / "out")
    assert [(s["__key__"], int(s["cls"])) for s in samples] == [
        (f"pair{n}", 1 - n % 2) for n in range(11)
    ]
    files = ("classnames.txt", "zeroshot_classification_templates.txt")
    texts = [(tmp_path / "out" / name).read_text() for name in files]
    assert texts == ["an odd one\neven\nx\n", "{c}\nan X-ray  of {c}.\n"]
    of_sets = json.loads((tmp_path / "out" / "prompts.json").read_text())
    assert of_sets["out"]["even"] == ["even"]
    assert of_sets["out"]["an odd one"][2:] == ["a rest", "an X-ray  of a rest."]


MISTAKES = {
    "": "--data: required for --to clip_benchmark",
    "--data x --checkpoint y": "--checkpoint: of no use to --to clip_benchmark",
    "--data x --split test": "x: no such shard folder or tar",
    "--data x --labels y": "--labels, --prompts: one needs the other",
    "--data PAIRS --labels y --prompts chexpert14": "chexpert14: its classes: several may be true",
    "--data PAIRS --labels y --prompts plane": "--labels: y: no such file",
    "--to hf --data x": "--checkpoint: required for --to hf",
    "--to hf --checkpoint y --split test": "--split: of no use to --to hf",
}


@pytest.mark.parametrize("words", MISTAKES)
def test_mistakes(words: str, run: Run, tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "pairs.tar", range(1))
    code, error = run(*words.replace("PAIRS", str(pairs)).split())
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
