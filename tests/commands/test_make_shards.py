"""tools/make_shards.py: what it prints, what it refuses, and its exit codes."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from medclip_oc import make_shards
from medclip_oc.config.packing import MakeShardsConfig
from medclip_oc.data.shards import ShardSet
from medclip_oc.packing.formats import open_source
from medclip_oc.packing.pack import PackOptions, pack
from tests.support.cli import ROOT, call, one_line
from tests.support.faulty_source import contents, rejected, write_faulty_source

SPLITS = ["train", "valid"]
TABLE = ["--table", "x.csv", "--image-column", "a", "--caption-column", "b"]


def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", ROOT / "tools" / "make_shards.py", *words]
    # where `python tools/make_shards.py` finds neither the package nor a terminal
    return subprocess.run(command, cwd="/", capture_output=True, text=True)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_faulty_source(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def packed(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("packed")
    report = pack(open_source(source, SPLITS), out, PackOptions(samples_per_shard=4))
    assert (report.read["train"], report.packed["train"]) == (23, 17)
    assert (report.read["valid"], report.packed["valid"]) == (3, 3)
    return out


def test_the_command_packs_and_prints_a_table(source: Path, packed: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "shards"
    words = ["--source", source, "--out", out, "--splits", *SPLITS]
    done = run(*words, "--samples-per-shard", "4", "--workers", "2")
    assert (done.returncode, done.stderr) == (0, "")  # no bar without a terminal
    table = [line.split() for line in done.stdout.splitlines()]
    assert table[0] == ["split", "read", "packed", "rejected", "MB", "shards"]
    assert [row[:4] for row in table[1:4]] == [
        ["train", "23", "17", "6"],
        ["valid", "3", "3", "0"],
        ["all", "26", "20", "6"],
    ]
    assert ["rejected", "1", "train:", "image", "missing"] in table
    assert contents(out) == contents(packed)

    again = run(*words)
    assert again.returncode == 2
    assert again.stderr.count("\n") == 1
    assert "a packing with other settings: samples_per_shard 4, not 1000; give" in again.stderr
    assert contents(out) == contents(packed)

    audited = run(*words, "--audit")  # refused before the audit takes its time
    assert (audited.returncode, audited.stdout) == (2, "")
    assert "samples_per_shard 4, not 1000" in audited.stderr

    (out / "notes.txt").write_text("mine")
    done = run(*words, "--overwrite", "--no-decode-check", "--workers=1")
    assert done.returncode == 0, done.stderr
    assert (out / "notes.txt").read_text() == "mine"
    assert len(list(out.glob("*.tar"))) == 2
    # what only decoding finds gets in: the cut one, the black one
    assert not {"truncated", "blank"} & {row["reason"] for row in rejected(out)}
    assert len(ShardSet.open(str(out), "train")) == 19


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--source", "/nowhere"], "/nowhere: no such source folder"),
        (["--source", "SOURCE"], "test_captions.csv: no such file"),
        (["--source", "SOURCE", "--splits", "validation"], "allowed are train, valid, test"),
        (
            ["--source", "SOURCE", "--samples-per-shard", "0"],
            "--samples-per-shard: 0 is not at least 1",
        ),
        (["--source", "SOURCE", "--resize", "0"], "--resize: 0 is not at least 1"),
        (["--source", "SOURCE", "--workers", "-1"], "--workers"),
        ([], "--source, --table: give one of them"),
        (["--source", "SOURCE", "--table", "x.csv"], "--source, --table: give one of them"),
        (["--source", "SOURCE", "--id-column", "x"], "--id-column: of no use with --source"),
        ([*TABLE, "--format", "flat"], "--format: of no use with --table"),
        (["--table", "x.csv"], "--table: needs --image-column and --caption-column"),
        (["--source", "SOURCE", "--verify"], "--source: of no use with --verify"),
        (["--source", "SOURCE", "--audit-only", "--resize", "9"], "--resize: of no use with --au"),
        (["--source", "SOURCE", "--splits", "train", "--drop-leaks"], "needs train and another"),
        (["--source", "SOURCE", "--max-pixels", "178956971"], "not from 1 to 178956970"),
        (["--source", "~nosuchuser/x"], "--source '~nosuchuser/x': "),
        (["--source", "x" * 300], "File name too long"),
        (
            ["--source", "SOURCE", "--splits", "train,valid"],
            "allowed are train, valid, test, blanks",
        ),
    ],
)
def test_wrong_input_is_one_line(
    source: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
) -> None:
    out = tmp_path / "out"
    given = [str(source) if word == "SOURCE" else word for word in words]
    assert call(make_shards.main, MakeShardsConfig, "--out", out, *given) == 2
    assert message in one_line(capsys.readouterr().err)
    assert not out.exists()


@pytest.mark.parametrize(
    ("out", "message"), [("", "--out: is empty"), ("SOURCE", "--out: the source itself")]
)
def test_a_folder_that_can_not_be_out_is_refused(
    source: Path, capsys: pytest.CaptureFixture[str], out: str, message: str
) -> None:
    before = contents(source / "train_images" / "train")
    words = ["--source", source, "--splits", *SPLITS, "--out", out.replace("SOURCE", str(source))]
    assert call(make_shards.main, MakeShardsConfig, *words) == 2
    assert message in one_line(capsys.readouterr().err)
    assert contents(source / "train_images" / "train") == before


def test_verifying_says_what_is_damaged(packed: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(packed, tmp_path / "shards"))
    done = run("--verify", "--out", folder, "--workers", "1")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{folder}: 6 shards, 20 samples, 0.1 MB: all well\n"
    (folder / "valid-000000.tar").unlink()
    done = run("--verify", "--out", folder, "--workers", "1")
    assert done.returncode == 1
    assert done.stdout == "valid-000000.tar: unreadable: No such file or directory\n"
    assert done.stderr.count("\n") == 1
    assert "damaged: 1 findings in 6 shards" in done.stderr
    done = run("--verify", "--out", "/nowhere")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
