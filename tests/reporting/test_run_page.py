"""The page on a run: all that was measured stands on it, and what is missing is said."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medclip_oc import report
from medclip_oc.config import fields, parse
from medclip_oc.config.evaluation import ReportConfig
from medclip_oc.config.schema import Config
from medclip_oc.config.vocabulary import DIRECTIONS
from medclip_oc.errors import InputError
from medclip_oc.evaluation import classification, findings
from medclip_oc.reporting import plots, run_files, run_page
from tests.support import cli
from tests.support.cli import NASTY, ROOT, Reader

CHARTS = ["Loss", "Learning rate", "Temperature", "Pairs per second", "Validation recall, per cent"]
CHARTS += ["Zero-shot scores, per cent", "Zero-shot auroc, per cent"]
AFTER = ("R@10", "Rank of the right one")
CLASSES = ("Confusion, best-classes", "AUROC, best-findings", "AUROC, best-probe")
IDS = [f"train_{n:04}" for n in range(20)]

SHOWN = ["43.2\u00a0%", "[42.8,\u00a043.6]", "77 bootstrap draws", "54.3\u00a0%", "65.4\u00a0%"]
SHOWN += ["Copies as one: 19 images, 20 captions", "6\u00a0of\u00a08", "78.7\u00a0%"]
SHOWN += ["87.7\u00a0%", "12.3\u00a0%"]
SHOWN += ["Pools of 5 pairs, mean of 33", "Pools of 6 pairs, mean of 44", "Baseline start"]
SHOWN += ["This model less start", "last-valid", "Best: rank 1 of 20", "Median: rank 10 of 20"]
SHOWN += ["Findings: best-findings", "Mass *", "macro mean of 2", "few-shot, 4 each"]
SHOWN += ["0.425 [0.285,\u00a00.578]"]  # 17 of 40 right, Wilson's interval
SHOWN += ["tiny-clip was trained from random weights on 3,000 pairs of shards/<b>, for 40 steps"]
SHOWN += ["that is +12.3 and +13.3 percentage points against start", "0123abc-dirty", "2026-01-02"]
SHOWN += ["It is weakest at notumor: recall ", "; at Edema: AUROC ", "where chance has 0.5"]
SHOWN += ["python -m medclip_oc.train --config 'x y.yaml'"]
SHOWN += [NASTY, "Worst: rank 20 of 20", "number 0: upper left dark", "the right one"]


def call(*words: object) -> int:
    return cli.call(report.main, ReportConfig, *words)


def scores(value: float) -> dict[str, float]:
    names = ("R@1", "R@5", "R@10")
    return dict.fromkeys(names, value) | {"median_rank": 3.5, "mean_rank": 7.25, "mrr": 0.321}


def ends(value: float) -> dict[str, list[float]]:
    return {name: [one - 0.004, one + 0.004] for name, one in scores(value).items()}


def both(value: float, of: Callable[[float], Any] = scores) -> dict[str, Any]:
    return {"image_to_text": of(value), "text_to_image": of(value + 0.01)}


def record(shards: str, text: str = NASTY, baseline: str = "start") -> dict[str, Any]:
    intervals = {"level": 0.95, "draws": 77, "seed": 0} | both(0.4321, ends)
    whole = {"pool": 20, "images": 20, "texts": 20, "chance": scores(0.05), "ties": "expected"}
    whole |= both(0.4321) | {"mean_recall": 0.4, "intervals": intervals}
    small = whole | both(0.6543) | {"between_draws": both(0.6543, ends)}
    concepts = both(0.8774, lambda v: {"nDCG@10": v, "modality_agreement@1": v})
    return whole | {
        "checkpoint": "best.pt",
        "data": shards,
        "split": "train",
        "duplicates": "keep",
        "merged": whole | {"images": 19} | both(0.5432),
        "pools": [small | {"pool": 5, "draws": 33}, small | {"pool": 6, "draws": 44}],
        "concepts": {"queries": 18, "relevant": 0.5} | concepts,
        "slices": [{"name": text, "concept": "C1", "images": 8, "texts": 80} | both(0.777)],
        "baseline": {"name": baseline, **whole, "difference": both(0.1234)},
    }


def write_classified(folder: Path) -> None:
    """Figures of two findings, one with few positives; of two classes; and of probes of these."""
    truth, rng = np.zeros((40, 2), np.int8), np.random.default_rng(0)
    truth[:20, 0] = truth[:5, 1] = 1
    told = rng.random(truth.shape)
    several = findings.measure(("Edema", "Mass"), truth, told)
    several["macro"]["average_precision"] = 1 + 2**-52  # a sum that was rounded up
    single = classification.measure(("glioma", "notumor"), truth[:, 0].astype(int), told)
    probes = {"knn": single | {"k": 5}, "linear": several | {"C": 1.0}, "few_shot": {"4": single}}
    records = {"findings": several, "classes": single, "probe": {"task": "probe", **probes}}
    for name, figures in records.items():
        (folder / f"best-{name}.json").write_text(json.dumps(figures))


def write_run(folder: Path, shards: Path) -> Path:
    """A run folder as training and evaluation leave it."""
    (folder / "evaluations").mkdir(parents=True)
    lines = []
    for step in range(1, 41):
        values = {"loss": 3 / step, "lr": 1e-3 / step, "temperature": 0.07, "grad_norm": None}
        lines.append({"step": step, **values, "pairs_per_second": 100 + step})
        if step % 10 == 0:
            recalls = {f"valid/{way}/R@1": step / 100 for way in DIRECTIONS}
            lines.append({"step": step, "valid/mean_recall": step / 80, **recalls})
    lines[-1] |= {"valid/zeroshot/auroc": 0.7, "valid/zeroshot/auroc/PET/CT": 0.6}
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text + '{"step": 41, "lo')  # cut by a crash
    for name in ("best-test", "last-valid"):
        (folder / "evaluations" / f"{name}.json").write_text(json.dumps(record(str(shards))))
    write_classified(folder / "evaluations")
    ranks = np.arange(1.0, 21.0)
    arrays = {"image_to_text_rank": ranks, "text_to_image_rank": ranks[::-1]}
    for way in DIRECTIONS:
        arrays[f"{way}_nearest"] = np.tile(np.array(IDS[:10]), (20, 1))
    np.savez(folder / "evaluations" / "best-test.npz", ids=np.array(IDS), **arrays)  # type: ignore[arg-type]
    return folder


def change_record(run: Path, changes: dict[str, Any]) -> None:
    file = run / "evaluations" / "best-test.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.fixture
def run(packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run folder, whose charts aren't drawn as PNGs."""
    monkeypatch.setattr(plots, "save_png", lambda _, folder: folder / "chart.png")
    return write_run(tmp_path / "run <1>", packed)


def describe_run(folder: Path) -> None:
    """What training leaves of its settings; write_run's folder is an older one."""
    config = parse.parse(Config, ["--config", str(ROOT / "configs" / "tiny_cpu.yaml")])
    config.data.train = "shards/<b>"
    fields.save_yaml(config, folder / "config.yaml")
    command = "command python -m medclip_oc.train --config 'x y.yaml'"
    (folder / "environment.txt").write_text(f"commit 0123abc-dirty\ntorch 2.9\n{command}\n")
    start = "2026-01-02 03:04:05  tiny-clip from random weights, 2 process(es) on cpu\n"
    plan = "2026-01-02 03:04:05  3,000 training pairs, 20 steps (23.4 per epoch)\n"
    (folder / "log.txt").write_text(f"{start}{plan}2026-01-02 03:05:05  done: the end\n")


def test_everything_is_on_the_page(
    packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "run", packed)
    describe_run(run)
    assert call("--run", run) == 0
    page = Reader((run / "report.html").read_text())
    for text in SHOWN:
        assert text in page.text, text
    assert "relevant recall@K: how" not in page.text  # which the record hasn't
    html = (run / "report.html").read_text()
    pictures = [value for name, value in page.attributes if name == "src"]
    assert len(pictures) == 36  # both directions, three kinds, three examples, two sides
    assert all(str(one).startswith("data:image/jpeg;base64,") for one in pictures)
    titles = [str(value) for name, value in page.attributes if name == "aria-label"]
    after = [f"{what}, {way}" for what in AFTER for way in DIRECTIONS.values()]
    assert titles == [*CHARTS, *after, *CLASSES]
    assert "script" not in page.tags
    assert not any(name in ("href", "onerror", "onload") for name, _ in page.attributes)
    assert not re.search(r"url\((?!#)|@import|https?:", html)
    assert "default-src 'none'" in html
    assert len(list((run / "report").glob("*.png"))) == len(titles)
    assert "report.html" in capsys.readouterr().out


def test_text_stays_text_wherever_it_stands(run: Path) -> None:
    """The page has the same tags whatever the names, the paths and the notes hold."""
    (run / "metrics.jsonl").unlink()

    def page(text: str) -> Reader:
        change_record(run, record(text, text, text))
        assert call("--run", run) == 0
        return Reader((run / "report.html").read_text())

    plain, nasty = page("plain"), page(NASTY)
    assert nasty.tags == plain.tags
    assert [name for name, _ in nasty.attributes] == [name for name, _ in plain.attributes]
    assert nasty.text.count(NASTY) == 8
    assert nasty.text.count(NASTY[:36]) == plain.text.count("plain") == 10  # charts shorten it


def test_the_examples_are_those_of_their_ranks(run: Path) -> None:
    found = run_files.evaluations(run)
    assert [one.name for one in found] == ["best-test", "last-valid"]
    chosen = run_page.examples(found[0], 2)
    own = [one for one in chosen if one["direction"] == "text_to_image"]
    assert [(one["kind"], one["rank"], one["query"][-2:]) for one in own] == [
        *(("Best", 1, "19"), ("Best", 2, "18")),
        *(("Median", 10, "10"), ("Median", 11, "09")),
        *(("Worst", 20, "00"), ("Worst", 19, "01")),
    ]
    assert {one["first"] for one in chosen} == {"train_0000"}


def test_bins_hold_every_rank_once_and_end_with_the_pool() -> None:
    ranks = np.array([1, 1.5, 2, 5, 6, 10, 10.5, 11, 20, 39])
    labels, shares, chance, notes = zip(*run_page.rank_bins(ranks, 100), strict=True)
    assert labels == ("1", "2-5", "6-10", "11-20", "21-40")
    assert shares == (0.1, 0.3, 0.2, 0.3, 0.1)
    assert chance == (0.01, 0.04, 0.05, 0.1, 0.2)
    assert notes[1] == "3 (30.0\u00a0%)"
    assert run_page.rank_bins(ranks, 39)[-1][0] == "21-39"
    assert [each[0] for each in run_page.rank_bins(np.array([1.0]), 3)] == ["1", "2-3"]


def test_long_series_are_averaged() -> None:
    lines = [{"step": n, "loss": float(n % 2)} for n in range(1, 1001)] + [{"step": 2000, "x": 1}]
    points = run_files.series(lines, "loss", most=100)
    assert len(points) == 100
    assert points[-1] == (1000, 0.5)
    assert run_files.series(lines[:50], "loss") == [(n, n % 2) for n in range(1, 51)]


def test_pairs_and_evaluations_that_are_not_there(
    run: Path, packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The page is made, and says it; --data names the pairs' new place."""
    (run / "metrics.jsonl").unlink()
    change_record(run, {"data": str(tmp_path / "gone")})
    assert call("--run", run) == 0
    assert "Gallery: " in capsys.readouterr().out
    page = Reader((run / "report.html").read_text())
    assert "img" not in page.tags
    for text in ("no such shard folder", "no metrics.jsonl", "43.2\u00a0%"):
        assert text in page.text
    assert call("--run", run, "--data", packed) == 0
    assert "img" in Reader((run / "report.html").read_text()).tags
    assert call("--run", run, "--data", tmp_path / "gone") == 2
    write_run(tmp_path / "new", packed)
    shutil.rmtree(tmp_path / "new" / "evaluations")
    assert call("--run", tmp_path / "new") == 0
    text = Reader((tmp_path / "new" / "report.html").read_text()).text
    assert "No evaluation yet" in text
    assert "Loss" in text


MISTAKES = [
    ("metrics.jsonl", "{}\n", "metrics.jsonl: line 1 is no record of a run"),
    ("metrics.jsonl", '{"step": 1, "loss": "x"}\n', "metrics.jsonl: line 1 is no record of a run"),
    ("metrics.jsonl", "[" * 100_000 + "\n", "metrics.jsonl: line 1 is no record of a run"),
    ("config.yaml", "run: [", "config.yaml: damaged, or no run's: remove it"),
    ("config.yaml", "run: {folder: x}", "config.yaml: damaged, or no run's: remove it"),
    ("evaluations/best-test.json", "[" * 100_000, "best-test.json: damaged, or not the record"),
    ("evaluations/best-test.json", '{"pool": 3}', "best-test.json: damaged, or not the record of"),
    ("evaluations/best-probe.json", '{"task": "x"}', "best-probe.json: damaged, or not the record"),
    ("evaluations/best-test.npz", "x", "best-test.npz: damaged"),
    ("evaluations/best-test.npz", None, "best-test.npz: not of the 20 pairs of best-test.json"),
    (".", None, "no metrics.jsonl, and no evaluations/"),
]


@pytest.mark.parametrize(("name", "content", "message"), MISTAKES)
def test_mistakes_are_one_line(
    name: str, content: str | None, message: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if content:
        (run / name).write_text(content)
    elif name == ".":
        shutil.rmtree(run)
        run.mkdir()
    else:  # of fewer pairs
        with np.load(run / name) as opened:
            arrays = dict(opened)
        np.savez(run / name, **{key: array[:7] for key, array in arrays.items()})
    assert call("--run", run) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every value inside, as what holds it and its key there."""
    inside = value.items() if isinstance(value, dict) else enumerate(value)
    pairs = [((value, key), each) for key, each in inside if not isinstance(each, str)]
    deep = [places(each) for _, each in pairs if isinstance(each, dict | list)]
    return [place for place, _ in pairs] + [place for part in deep for place in part]


FREE = ("intervals", "few_shot", "findings", "classes", "k", "C")  # may be empty, or any number
WRONG: list[Any] = ["x", [], {}, [1], {"a": 1}, True, 1e300, 10**400, -(10**400)]


@pytest.mark.slow
def test_fuzz(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever happens to a run's records: the same page, or one line."""
    monkeypatch.setattr(plots, "lines", lambda *values: str(values))
    monkeypatch.setattr(plots, "bars", lambda *values: str(values))
    monkeypatch.setattr(plots, "confusion", lambda *values: str(values))
    monkeypatch.setattr(plots, "svg", str)

    def page() -> str:
        run_page.write(run, 3, lambda *_: ({}, {}, []))
        return (run / "report.html").read_text()

    right, rng, told = page(), np.random.default_rng(0), []
    files = [run / "metrics.jsonl", *sorted((run / "evaluations").iterdir())]
    for n in range(420):
        file = files[n % len(files)]
        whole, key = file.read_bytes(), ""
        byte, lines = rng.integers(len(whole)), whole.split(b"\n")
        damaged = whole[:byte] + rng.bytes(n % 8) + whole[byte + n % 8 + 1 :]
        if file.suffix != ".npz":
            line = rng.integers(max(1, len(lines) - 1))  # the last one is cut already
            value = json.loads(lines[line])
            held, key = (chosen := places(value))[rng.integers(len(chosen))]
            held[key] = WRONG[rng.integers(len(WRONG))]
            lines[line] = json.dumps(value).encode()
            damaged = b"\n".join(lines)
        file.write_bytes(damaged)
        try:
            assert page() == right or key in FREE, (n, file)
        except InputError as error:
            told.append(str(error))
        file.write_bytes(whole)
    assert len(told) > 200
    assert not any("\n" in line for line in told)


def test_maps_are_of_the_checkpoint_that_was_evaluated(
    run: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The query with its own caption, and with that which came first; one where it is the same."""
    assert call("--run", run, "--maps", "--gallery", 1) == 0
    assert "Gallery: no relevance maps: " in capsys.readouterr().out  # there is no checkpoint
    assert "details" not in Reader((run / "report.html").read_text()).tags
    (run / "checkpoints").mkdir()
    shutil.copy(tiny_checkpoint, run / "checkpoints" / "best.pt")
    assert call("--run", run, "--maps", "--gallery", 1) == 0
    html, chosen = (
        (run / "report.html").read_text(),
        run_page.examples(run_files.evaluations(run)[0], 1),
    )
    right = sum(each["query"] == each["first"] for each in chosen)
    assert right == 2
    assert Reader(html).tags.count("details") == len(chosen) == 6
    assert html.count('alt="Relevance map') == 2 * len(chosen) - right
