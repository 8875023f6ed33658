"""clip_benchmark reads an export as it is, and has our figures."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from medclip_oc import evaluate, export, zeroshot
from medclip_oc.config.evaluation import EvaluateConfig
from medclip_oc.config.inference import ExportConfig, ZeroshotConfig
from medclip_oc.data.shards import ShardSet
from medclip_oc.evaluation import metrics
from tests.support.cli import call
from tests.support.tiny_dataset import jpeg, stock, write_captions, write_pairs, write_tar

PROMPTS = """
multi_label: false
templates: {positive: ["{}", "an X-ray\\n of {}."]}
classes: {odd: {names: [an odd one, a rest], aliases: [o]}, even: {positive: [even]}}
"""


def written(folder: Path, *words: object) -> Path:
    out = folder / "out"
    assert call(export.main, ExportConfig, "--to", "clip_benchmark", "--out", out, *words) == 0
    return out


def read(folder: Path, split: str = "test") -> list[dict[str, Any]]:
    """The samples as `build_wds_dataset` finds them."""
    number = int((folder / split / "nshards.txt").read_text())
    return stock([str(folder / split / f"{n}.tar") for n in range(number)])


def classes(folder: Path) -> list[object]:
    """Options for pairs of which all but the last two have a class, by another path."""
    facts = [(n, json.dumps({"id": f"{n % 2}/{n}"}).encode()) for n in range(13)]
    members = {
        f"x{n}.{end}": data for n, f in facts for end, data in (("jpg", jpeg(n)), ("json", f))
    }
    rows = ["image,label", *(f"{n % 2}/{n},{'even' if n % 2 else 'o'}" for n in range(11)), "z,odd"]
    (folder / "labels.csv").write_text("\n".join([*rows, ""]))
    (folder / "mine.yaml").write_text(PROMPTS)
    labels = ["--labels", folder / "labels.csv", "--prompts", folder / "mine.yaml"]
    return [write_tar(folder / "pairs.tar", members), *labels]


def test_retrieval(packed: Path, tmp_path: Path) -> None:
    """A caption a line, whatever breaks it; images bit for bit; again over what is there."""
    odd = {"a.jpg": jpeg(1), "a.txt": "left\n\nlung\u2028 (arrow)\n".encode()}
    tars = write_captions(tmp_path / "several.tar"), write_tar(tmp_path / "odd.tar", odd)
    out = written(tmp_path, "--data", sets := f"{packed}::{tars[0]}::{tars[1]}")
    assert (out / "README.md").read_text().startswith("17 of 17 images, 23 captions, for")
    assert (out / "dataset_type.txt").read_text() == "retrieval\n"
    shards = ShardSet.open(sets, "test")
    for n, (key, sample) in enumerate(zip(shards.ids(), read(out), strict=True)):
        pair = shards.read(n)
        assert (sample["__key__"], sample[pair.extension]) == (key, pair.image)
        texts = ["left  lung  (arrow)"] if pair.key == "a" else [pair.caption, *pair.further]
        assert sample["txt"].decode().splitlines() == texts
    out = written(tmp_path, "--data", packed, "--overwrite", "--split", "valid")
    assert len(read(out, "valid")) == 12


def test_classification(tmp_path: Path) -> None:
    out = written(tmp_path, "--data", *classes(tmp_path))
    assert (out / "README.md").read_text().startswith("11 of 13 images, 2 classes")
    found = [(sample["__key__"], int(sample["cls"])) for sample in read(out)]
    assert found == [(f"x{n}", n % 2) for n in range(11)]
    assert (out / "classnames.txt").read_text() == "an odd one\neven\n"
    forms = (out / "zeroshot_classification_templates.txt").read_text()
    assert forms == "{c}\nan X-ray  of {c}.\n"
    phrasings = ["an odd one", "an X-ray  of an odd one.", "a rest", "an X-ray  of a rest."]
    assert json.loads((out / "prompts.json").read_text()) == {
        "out": {"an odd one": phrasings, "even": ["even"]}
    }


MISTAKES = {
    "": "--data: required for --to clip_benchmark",
    "--data x --checkpoint y": "--checkpoint: of no use to --to clip_benchmark",
    "--data x": "x: no such shard folder or tar",
    "--data x --labels y": "--labels, --prompts: one needs the other",
    "--data PAIRS --labels y --prompts chexpert14": "chexpert14: its classes: several may be true",
    "--to hf --data x": "--checkpoint: required for --to hf",
}


@pytest.mark.parametrize("words", MISTAKES)
def test_mistakes(words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = words.replace("PAIRS", str(write_pairs(tmp_path / "pairs.tar", range(1)))).split()
    given = ["--to", "clip_benchmark", "--out", str(tmp_path / "out"), *given]
    assert call(export.main, ExportConfig, *given) == 2
    assert MISTAKES[words] in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


RECALL = {
    f"{its}_retrieval_recall@{k}": f"{way}/R@{k}"
    for its, way in (("text", "image_to_text"), ("image", "text_to_image"))
    for k in (1, 2, 3)
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["first", "all", "classes"])
def test_its_figures_are_ours(
    kind: str, packed: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """Of pairs, of several captions each, of classes; by the same model in its own environment."""
    python = os.environ.get("CLIP_BENCHMARK_PYTHON") or pytest.skip(
        "CLIP_BENCHMARK_PYTHON names no Python that has clip_benchmark and requests"
    )
    ours, its, model = (tmp_path / name for name in ("ours.json", "its.json", "model"))
    trained, images = ["--checkpoint", tiny_checkpoint], ["--images", packed.parent / "source"]
    to_open_clip = [*trained, "--to", "open_clip", "--out", model, *images]
    assert call(export.main, ExportConfig, *to_open_clip) == 0
    if kind == "classes":
        data, *labels = classes(tmp_path)
        given = [*trained, "--images", data, *labels, "--figures", ours]
        assert call(zeroshot.main, ZeroshotConfig, *given) == 0
        task = ["zeroshot_classification", "--custom_template_file", tmp_path / "out/prompts.json"]
        names = {"acc1": "accuracy", "mean_per_class_recall": "balanced_accuracy"}
    else:
        data, labels = packed if kind == "first" else write_captions(tmp_path / "a.tar"), []
        given = [*trained, "--data", data, "--captions", kind, "--json", ours, "--ks", 1, 2, 3]
        assert call(evaluate.main, EvaluateConfig, *given) == 0
        task, names = ["zeroshot_retrieval", "--recall_k", 1, 2, 3], RECALL
    out = written(tmp_path, "--data", data, *labels)
    words = ["--dataset", "wds/out", "--dataset_root", out, "--no_amp", "--output", its]
    words += ["--model", f"local-dir:{model}", "--pretrained", "", "--task", *task]
    command = [python, "-m", "clip_benchmark.cli", "eval", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found, record = (json.loads(file.read_text()) for file in (its, ours))
    record |= metrics.flat(record) if kind != "classes" else {}
    expected = {name: record[place] for name, place in names.items()}
    assert {name: found["metrics"][name] for name in expected} == pytest.approx(expected, abs=1e-6)
