"""tools/make_shards.py: what it prints, what it refuses, and its exit codes."""

import shutil
from pathlib import Path

import pytest

from medclip_oc.data.shards import ShardSet
from tests.support.cli import Run, one_line
from tests.support.fault_injection import contents, rejected

SPLITS = ["train", "valid"]
TABLE = ["--table", "x.csv", "--image-column", "a", "--caption-column", "b"]


def test_the_command_packs_and_prints_a_table(
    faulty_source: Path, faulty_packed: Path, tmp_path: Path, run: Run
) -> None:
    out = tmp_path / "new" / "shards"
    words = ["--source", faulty_source, "--out", out, "--splits", *SPLITS]
    code, printed, error = run(*words, "--samples-per-shard", "4", "--workers", "1")
    assert (code, error) == (0, "")  # no bar without a terminal
    table = [line.split() for line in printed.splitlines()]
    assert table[0] == ["split", "read", "packed", "rejected", "MB", "shards"]
    assert [row[:4] for row in table[1:4]] == [
        ["train", "23", "17", "6"],
        ["valid", "3", "3", "0"],
        ["all", "26", "20", "6"],
    ]
    assert ["rejected", "1", "train:", "image", "missing"] in table
    assert printed.endswith(f"train --config vitb16 --data.train {out} --data.valid {out}\n")
    assert contents(out) == contents(faulty_packed)

    for more in ([], ["--audit"]):  # refused before the audit takes its time
        code, printed, error = run(*words, *more)
        assert (code, printed) == (2, "")
        message = "a packing with other settings: samples_per_shard 4, not 1000; give"
        assert message in one_line(error)
    assert contents(out) == contents(faulty_packed)

    (out / "notes.txt").write_text("mine")
    code, _, error = run(*words, "--overwrite", "--no-decode-check", "--workers=1")
    assert (code, error) == (0, "")
    assert (out / "notes.txt").read_text() == "mine"
    assert len(list(out.glob("*.tar"))) == 2
    # what only decoding finds gets in: the cut one, the black one
    assert not {"truncated", "blank"} & {row["reason"] for row in rejected(out)}
    assert len(ShardSet.open(str(out), "train")) == 19


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--source", "/nowhere"], "/nowhere: no such source folder"),
        (["--source", "SOURCE", "--samples-per-shard", "0"], "per-shard: 0 is not at least 1"),
        ([], "--source, --table: give one of them"),
        (["--source", "SOURCE", "--table", "x.csv"], "--source, --table: give one of them"),
        (["--source", "SOURCE", "--id-column", "x"], "--id-column: of no use with --source"),
        ([*TABLE, "--format", "flat"], "--format: of no use with --table"),
        (["--table", "x.csv"], "--table: needs --image-column and --caption-column"),
        (["--source", "SOURCE", "--verify"], "--source: of no use with --verify"),
        ([*TABLE, "--slices", "every:0"], "--slices: 'every:0' is not middle, a number, or"),
        ([*TABLE, "--window", "lung"], "--window: of no use with no --slices"),
        ([*TABLE, "--slices", "3", "--audit"], "of no use with --slices"),
        (["--source", "SOURCE", "--audit-only", "--resize", "9"], "--resize: of no use with --au"),
        (["--source", "SOURCE", "--splits", "train", "--drop-leaks"], "needs train and another"),
        (["--source", "SOURCE", "--max-pixels", "178956971"], "not from 1 to 178956970"),
        (["--source", "~nosuchuser/x"], "--source '~nosuchuser/x': "),
        (["--source", "SOURCE", "--splits", "train,valid"], "train, valid, test, blanks"),
    ],
)
def test_wrong_input_is_one_line(
    faulty_source: Path, tmp_path: Path, run: Run, words: list[str], message: str
) -> None:
    given = [str(faulty_source) if word == "SOURCE" else word for word in words]
    code, _, error = run("--out", tmp_path / "out", *given)
    assert code == 2
    assert message in one_line(error)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_can_not_be_out_is_refused(faulty_source: Path, run: Run) -> None:
    before = contents(faulty_source / "train_images" / "train")
    for out, message in (("", "--out: is empty"), (faulty_source, "--out: the source itself")):
        code, _, error = run("--source", faulty_source, "--splits", *SPLITS, "--out", out)
        assert code == 2
        assert message in one_line(error)
    assert contents(faulty_source / "train_images" / "train") == before


def test_verifying_says_what_is_damaged(faulty_packed: Path, tmp_path: Path, run: Run) -> None:
    folder = Path(shutil.copytree(faulty_packed, tmp_path / "shards"))
    well = f"{folder}: 6 shards, 20 samples, 0.1 MB: all well\n"
    assert run("--verify", "--out", folder, "--workers", "1") == (0, well, "")
    (folder / "valid-000000.tar").unlink()
    code, printed, error = run("--verify", "--out", folder, "--workers", "1")
    assert code == 1
    assert printed == "valid-000000.tar: unreadable: No such file or directory\n"
    assert "damaged: 1 findings in 6 shards" in one_line(error)
