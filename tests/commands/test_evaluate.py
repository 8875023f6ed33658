"""The evaluation as a command: figures redone from files, baselines, every mistake in a line."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from medclip_oc import evaluate
from medclip_oc.config.checks import Unit
from medclip_oc.config.evaluation import EvaluateConfig
from medclip_oc.config.schema import Config, ModelConfig
from medclip_oc.models import averaging, checkpoint, factory
from medclip_oc.packing.formats import open_source
from medclip_oc.packing.pack import PackOptions, pack
from medclip_oc.reporting import run_files
from tests.support.cli import call, one_line
from tests.support.reference import save
from tests.support.tiny_dataset import jpeg, write_captions, write_kaggle, write_pairs, write_tar
from tests.support.tiny_models import TINY

CT, XRAY, LUNG = "C0040405", "C1306645", "C0024109"


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 test pairs with concepts and their names; two share a caption, two an image."""
    folder = tmp_path_factory.mktemp("evaluated")
    source = write_kaggle(folder / "source", {"test": 24})
    rows = (source / "test_captions.csv").read_text().splitlines()
    rows[5] = rows[5].split(",")[0] + "," + rows[1].split(",", 1)[1]
    (source / "test_captions.csv").write_text("\n".join(rows))
    images = source / "test_images" / "test"
    (images / "test_0007.jpg").write_bytes((images / "test_0002.jpg").read_bytes())
    cuis = [f"{CT};{LUNG}" if n % 3 else XRAY for n in range(24)]
    lines = [f"test_{n:04},{cuis[n] if n else ''}" for n in range(24)]
    (source / "test_concepts.csv").write_text("\n".join(["ID,CUIs", *lines]))
    names = [f"{CT},X-Ray Computed Tomography", f"{XRAY},Plain x-ray", f"{LUNG},Lung"]
    (source / "cui_mapping.csv").write_text("\n".join(["CUI,Canonical name", *names]))
    pack(open_source(source, ["test"]), folder / "shards", PackOptions(), workers=1)
    return folder / "shards"


def write_checkpoint(file: Path, shards: Path, seed: int, unit: Unit = "image") -> Path:
    """What a run of no steps would leave."""
    config = Config()
    config.model = ModelConfig(arch="evaluate-test", definition=TINY)
    config.run.seed, config.data.valid, config.data.unit = 5, str(shards), unit
    file.parent.mkdir(parents=True, exist_ok=True)
    return Path(save(factory.build(config.model, seed=seed), file, config))


@pytest.fixture(scope="module")
def best(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "checkpoints"
    return write_checkpoint(folder / "best.pt", shards, seed=1)


def run(*words: object) -> int:
    return call(evaluate.main, EvaluateConfig, *words, "--workers", 0)


def measured(*words: object, out: Path) -> dict[str, Any]:
    assert run(*words, "--json", out) == 0
    record: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return record


def exported(best: Path, folder: Path) -> str:
    """The model of a checkpoint in a folder, as open_clip has it."""
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY}))
    torch.save(checkpoint.load(best)["state_dict"], folder / "open_clip_pytorch_model.bin")
    return f"local-dir:{folder}"


def figures(record: dict[str, Any]) -> dict[str, Any]:
    """A record without where it is from."""
    origin = "checkpoint model pretrained data split precision decode captions features"
    origin += " data_fingerprint"
    return {name: value for name, value in record.items() if name not in origin.split()}


def test_everything_at_once(best: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--pools", "4,full", "--pool-draws", 3, "--slices", "lung", "gout", "--ks", 2)
    words += ("--baseline", "start", "--interval-draws", 40)
    record = measured("--checkpoint", best, *words, out=tmp_path / "x.json")
    shown = capsys.readouterr().out
    for text in (
        "pool of 24 pairs",
        "copies as one: 23 images, 23 captions",
        "pools of 4 pairs, mean of 3 random ones",
        "modality agreement@1",
        "lung (16)",
        "--slices: no pair has gout; the most frequent: ",
        f"for a page of it: python -m medclip_oc.report {best.parents[1]}",
        "baseline start",
        "this model less start, query by query",
        "R@2",
    ):
        assert text in shown
    own = json.loads((best.parents[1] / "evaluations" / "best-test.json").read_text())
    assert own == record
    assert record["slices"][-1]["concept"] == LUNG
    assert [row["name"] for row in record["slices"]][:2] == ["CT", "X-ray"]
    assert record["concepts"]["queries"] == 23
    assert record["baseline"]["name"] == "start"
    with np.load(tmp_path / "x.npz") as opened:
        arrays = dict(opened)
    assert arrays["ids"].shape == arrays["image_to_text_rank"].shape == (24,)
    assert arrays["text_to_image_nearest"].shape == (24, 10)
    assert set(arrays["image_to_text_nearest"].ravel()) <= set(arrays["ids"])


def test_all_captions_of_an_image(best: Path, tmp_path: Path) -> None:
    """As if each were a pair, and equal images one; the record has a name of its own."""
    file, flat = write_captions(tmp_path / "x.tar"), tmp_path / "flat.tar"
    pairs = {f"{n}.txt": letter.encode() for n, letter in enumerate("abcdefghij")}
    write_tar(flat, dict(sorted((pairs | {f"{n}.jpg": jpeg(n // 3) for n in range(10)}).items())))
    best = shutil.copytree(best.parent, tmp_path / "run" / "checkpoints") / "best.pt"
    words = ("--checkpoint", best, "--batch-size", 3, "--duplicates")
    merged = measured(*words, "merge", "--data", flat, out=tmp_path / "x.json")
    words += ("keep", "--data", file, "--captions")
    record = measured(*words, "all", out=tmp_path / "x.json")
    assert [record[name] for name in ("captions", "images", "texts")] == ["all", 4, 10]
    assert figures(record) == figures(merged) | {"duplicates": "keep"}
    assert measured(*words, "first", out=tmp_path / "y.json")["texts"] == 4
    assert len(list((tmp_path / "run/evaluations").glob("best-all_captions-*-tars.json"))) == 1


def test_by_study(tmp_path: Path) -> None:
    """As the run trained, or as asked for; from features as well; the record has its own name."""
    tar = write_pairs(tmp_path / "x.tar", range(9))
    best = write_checkpoint(tmp_path / "run/checkpoints/best.pt", tar, 1, unit="study")
    file, data = tmp_path / "z.npz", ("--data", tar, "--pools", 4, "--pool-draws", 2)
    words = ("--checkpoint", best, *data)
    record = measured(*words, "--features-out", file, out=tmp_path / "x.json")
    assert [record[n] for n in ("unit", "pool", "images", "texts")] == ["study", 5, 9, 9]
    again = measured("--features-in", file, *data, "--unit", "study", out=tmp_path / "y.json")
    assert figures(again) == figures(record)
    assert measured(*words, "--unit", "image", out=tmp_path / "y.json")["pool"] == 9
    found = {each.name[:13]: each.record for each in run_files.evaluations(tmp_path / "run")}
    assert (found["best-by_study"], len(found)) == (record, 2)


def test_the_record_of_other_data_has_their_name(best: Path, shards: Path, tmp_path: Path) -> None:
    shutil.copytree(shards, tmp_path / "other hospital")
    assert run("--checkpoint", best, "--data", tmp_path / "other hospital") == 0
    folder = best.parents[1] / "evaluations"
    assert json.loads((folder / "best-other_hospital-test.json").read_text())["pool"] == 24


def test_no_record_replaces_that_of_other_pairs(best: Path, tmp_path: Path) -> None:
    """Folders of one name, tars of one folder, files of features of one name."""
    checkpoint = shutil.copytree(best.parent, tmp_path / "run" / "checkpoints") / "best.pt"
    words = []
    for n, place in enumerate((tmp_path / "a" / "shards", tmp_path / "b" / "shards"), 1):
        place.mkdir(parents=True)
        for more in (2, 4):
            words.append(("--data", write_pairs(place / f"{more}.tar", range(n + more))))
        rows = np.eye(n + 6, dtype=np.float32)
        np.savez(place / "x.npz", ids=np.arange(n + 6), image_features=rows, text_features=rows)
        words.append(("--features-in", place / "x.npz"))
    for each in (*words, *words):  # the second time in the same file
        assert run("--checkpoint", checkpoint, *each) == 0
    records = [json.loads(file.read_text()) for file in tmp_path.rglob("run/evaluations/*.json")]
    evaluated = {record.get("data") or record["features"]: record["pool"] for record in records}
    assert evaluated == {str(w[1]): n for w, n in zip(words, (3, 5, 7, 4, 6, 8), strict=True)}
    assert len(records) == 6


def test_a_baseline_is_the_weights_named(best: Path, shards: Path, tmp_path: Path) -> None:
    """`start` is what the run's own seed draws; a file, bare weights too, is what it holds."""
    began, bare = write_checkpoint(tmp_path / "began.pt", shards, seed=5), tmp_path / "bare.pt"
    torch.save(checkpoint.load(began)["state_dict"], bare)
    alone = measured("--checkpoint", began, out=tmp_path / "a.json")
    for name in ("start", began, bare):
        record = measured("--checkpoint", best, "--baseline", name, out=tmp_path / "b.json")
        assert record["baseline"]["image_to_text"] == alone["image_to_text"]
        assert record["baseline"]["intervals"] == alone["intervals"]


def test_a_model_without_a_checkpoint(best: Path, shards: Path, tmp_path: Path) -> None:
    model = ("--model", exported(best, tmp_path), "--data", shards)
    first = measured("--checkpoint", best, out=tmp_path / "a.json")
    assert figures(measured(*model, out=tmp_path / "b.json")) == figures(first)


def test_figures_are_redone_from_features(best: Path, tmp_path: Path) -> None:
    file = tmp_path / "features.npz"
    words = ("--pools", "5", "--pool-draws", 3)
    first = measured("--checkpoint", best, "--features-out", file, *words, out=tmp_path / "a.json")
    again = measured("--features-in", file, *words, out=tmp_path / "b.json")
    assert figures(first) == figures(again)
    weights = averaging.size(checkpoint.load(best)["state_dict"])
    with np.load(file) as arrays:
        assert arrays["weights"] == pytest.approx(np.full(len(arrays["ids"]), weights), rel=1e-9)
    compared = measured("--features-in", file, "--baseline", file, out=tmp_path / "c.json")
    assert set(compared["baseline"]["difference"]["image_to_text"].values()) == {0}


def test_features_of_another_program(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two matrices will do, in any float; what can't be known is said."""
    rows = torch.nn.functional.normalize(torch.randn(30, 8), dim=1).numpy()
    np.savez(tmp_path / "x.npz", image_embeds=3 * rows.astype(np.float16), texts=rows)
    record = measured("--features-in", tmp_path / "x.npz", out=tmp_path / "y.json")
    assert record["image_to_text"]["R@1"] == 1
    assert "merged" not in record
    shown = capsys.readouterr().out
    assert "kept nowhere" not in shown
    assert run("--features-in", tmp_path / "x.npz") == 0
    assert "kept nowhere: --json FILE writes" in capsys.readouterr().out
    assert "no concepts (CUIs)" in shown
    assert "no hashes" in shown


@pytest.fixture(scope="module")
def files(best: Path, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """What the words in capitals of MISTAKES stand for."""
    folder = tmp_path_factory.mktemp("files")
    rows = torch.nn.functional.normalize(torch.randn(24, 8), dim=1).numpy()
    ids = np.array([f"test_{n:04}" for n in range(24)])
    np.savez(folder / "plain.npz", ids=ids, image_features=rows, text_features=rows)
    np.savez(folder / "turned.npz", ids=ids[::-1], image_features=rows, text_features=rows)
    write_pairs(folder / "empty.tar", range(0))
    members = {}
    for n, facts in enumerate((b'{"concepts": [40405, 1]}', b'{"concepts": "C0040405"}', b"[1]")):
        members |= {f"p{n}.jpg": jpeg(n), f"p{n}.txt": b"x", f"p{n}.json": facts}
    write_tar(folder / "other.tar", members)
    made = {file.stem.upper(): file for file in folder.iterdir()}
    return {**made, "BEST": best, "SHARDS": shards, "local-dir:FOLDER": exported(best, folder)}


MISTAKES = {
    "--features-in TURNED --data SHARDS": "--features-in: pair 0 is test_0023, but test_0000 is",
    "--checkpoint BEST --baseline TURNED": "--baseline: pair 0 is test_0023, but test_0000 is",
    "--checkpoint BEST --pools 5,25": "--pools: 25 pairs, but the set holds only 24",
    "--checkpoint BEST --unit study": "no pair has `study` in its KEY.json, as unit study needs",
    "--features-in PLAIN --unit study": "--unit study: features have none; name the pairs",
    "--checkpoint BEST --features-out /proc/no/x.npz": "/proc/no/x.npz: can't be written",
    "--checkpoint BEST --data configs::x.tar": "mixes shard folders, which have splits, and tars",
    "--checkpoint BEST --data EMPTY --split test": "empty.tar is not a shard folder with splits",
    "--ks 1": "--checkpoint: required; or --model, or --features-in",
    "--model ViT-B-16 --pretrained x --features-in PLAIN": "or --features-in, one of the two",
    "--model ViT-B-16 --checkpoint BEST": "names its own model; give one of the two",
    "--model ViT-B-16": "--model ViT-B-16: give an architecture with --pretrained, or without",
    "--model ViT-B-16 --pretrained x": "--pretrained: 'x' is neither a file nor a tag of ViT-B-16",
    "--model runs/x --pretrained y": "--model runs/x: give an architecture with --pretrained",
    "--model local-dir:FOLDER --pretrained x": " brings its own weights; leave it out",
    "--model local-dir:FOLDER": "--data: name the pairs, such as shards/rocov2",
    "--model local-dir:FOLDER --data SHARDS --baseline start": "start: needs --checkpoint",
    "--features-in a.npz --json a.json": "--features-in: 'a.npz' is not another name than that of",
    "--checkpoint BEST --baseline nowhere.pt": "nowhere.pt: no such file",
    "--checkpoint BEST --baseline ViT-B-16:openaai": "is neither a file nor a tag of ViT-B-16",
    "--features-in PLAIN --data SHARDS --baseline start": "--baseline start: needs --checkpoint",
    "--features-in PLAIN --baseline ViT-B-16:openai": "a model needs the pairs; name them with",
}


@pytest.mark.parametrize("words", ["--features-in PLAIN", "--checkpoint BEST --data OTHER"])
def test_slices_without_concepts(words: str, files: dict[str, object], capsys: Any) -> None:
    assert run(*(files.get(word, word) for word in words.split()), "--slices", "CT") == 0
    assert "no concepts (CUIs) with these pairs: no figures by concept" in capsys.readouterr().out


@pytest.mark.parametrize("words", MISTAKES)
def test_mistakes_are_one_line(
    words: str, files: dict[str, object], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*(files.get(word, word) for word in words.split())) == 2
    assert MISTAKES[words] in one_line(capsys.readouterr().err)
