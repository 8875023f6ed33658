"""Groups, salted names, and splits by group: what leaks by no name, and into no other split."""

import json
from collections import Counter
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medclip_oc.packing.groups import SPLITS_FILE, assign
from medclip_oc.packing.sources import SPLITS
from tests.support.cli import Run, one_line
from tests.support.fault_injection import contents, rejected
from tests.support.image_files import FILES, carried, dicom, planted
from tests.support.tiny_dataset import jpeg, picture, stock

SHARES = st.sampled_from([[0.8, 0.1, 0.1], [0.7, 0.15, 0.15], [0.5, 0.5, 0.0], [1 / 3] * 3])
PAIRS = st.dictionaries(st.tuples(st.text("abcd"), st.sampled_from("xyz")), st.integers(1, 9))


@given(PAIRS, PAIRS, SHARES, st.integers(0, 5))
@settings(deadline=None, derandomize=True)
def test_groups_fill_up_the_shares_and_stay(
    pairs: dict[Any, int], more: dict[Any, int], shares: list[float], seed: int
) -> None:
    sizes = {it: sum(n for (group, _), n in pairs.items() if group == it) for it, _ in pairs}
    first = assign(pairs, {}, shares, seed)
    assert assign(dict(sorted(pairs.items(), reverse=True)), {}, shares, seed) == first
    for split, share in zip(SPLITS, shares, strict=True):
        there = sum(sizes[group] for group, own in first.items() if own == split)
        assert abs(there - share * sum(sizes.values())) <= max(sizes.values(), default=0) + 1e-9
    second = assign({**more, **pairs}, first, shares, seed)
    assert first.items() <= second.items()
    assert second.keys() == first.keys() | {group for group, _ in more}


@pytest.mark.parametrize("seed", range(3))
def test_each_stratum_is_shared_out_beside_a_large_group(seed: int) -> None:
    pairs = {(f"{kind}{n}", kind): 1 + n % 10 for kind in "ab" for n in range(60)}
    pairs["large", "b"] = 66
    found = assign(pairs, {}, [0.7, 0.15, 0.15], seed)
    assert found != assign(pairs, {}, [0.7, 0.15, 0.15], seed + 1)
    for stratum in "ab":
        own = Counter[str]()
        for (group, kind), number in pairs.items():
            own[found[group]] += number * (kind == stratum)
        shares = [own[split] / own.total() for split in SPLITS]
        assert shares == pytest.approx([0.7, 0.15, 0.15], abs=0.02)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


TABLE = "--table t.csv --image-column image --caption-column text --out out --workers 1 "
OUT, SALT = Path("out"), Path("out.salt")


def write(patients: list[int]) -> None:
    """A table with one image a row, named by its place, of these patients."""
    rows = ["image,text,patient,exam,sex,group"]
    for n, patient in enumerate(patients):
        Path(f"i{n}.jpg").write_bytes(jpeg(n))
        rows.append(f"i{n}.jpg,finding {n},P{patient},E{n // 2},{'FM'[patient % 2]},test")
    Path("t.csv").write_bytes("\n".join(rows).encode())


def facts() -> list[dict[str, Any]]:
    return [json.loads(pair["json"]) for pair in stock([str(p) for p in sorted(OUT.glob("*.tar"))])]


def captions() -> Counter[bytes]:
    return Counter(pair["txt"] for pair in stock([str(p) for p in sorted(OUT.glob("*.tar"))]))


def test_groups_are_salted_and_split(run: Run) -> None:
    write(patients := [n // 3 for n in range(60)])
    words = TABLE + "--group-column patient --study-column exam --split-by 0.8,0.1,0.1"
    words += " --no-decode-check"  # so that workers are threads, which start at once
    error = run(*words.split())[2]
    assert ("out.salt: a new salt;" in error, "split by patient\n" in error) == (True, True)
    assert (SALT.stat().st_mode & 0o777, len(SALT.read_bytes())) == (0o600, 64)
    before, found = contents(OUT), facts()
    assert Counter(each["split"] for each in found) == {"train": 48, "valid": 6, "test": 6}
    split_of = {each["group"]: each["split"] for each in found}
    assert len(split_of) == len({(int(it["id"][1:]) // 3, it["group"]) for it in found}) == 20
    assert {it["split"] == split_of[it["group"]] and len(it["study"]) for it in found} == {16}
    assert len({each["study"] for each in found}) == len({(n // 3, n // 2) for n in range(60)})
    assert run(*words.split(), "--workers", 3, "--overwrite")[0] == 0
    assert contents(OUT) == before
    write([*range(100, 130), *patients])  # more rows, in another order
    assert "the source's tables" in run(*words.split())[2]
    words += " --overwrite --split-seed 5 --stratify-column sex"
    assert "has 20 groups already" in run(*words.split())[2]
    found = facts()
    assert split_of.items() <= {each["group"]: each["split"] for each in found}.items()
    assert Counter(each["split"] for each in found) == {"train": 72, "valid": 9, "test": 9}
    SALT.unlink()
    assert f"{SALT}: lost? " in one_line(run(*words.split())[2])


@pytest.mark.parametrize("hashed", ["", " --hash-ids"])
def test_a_report_stands_for_all_views_of_its_study(run: Run, hashed: str) -> None:
    write([0, 0, 0, 0, 1, 1])
    table = pd.read_csv("t.csv")
    # of the exam E0 of P0 the reports a and b; that of P1 is another one, and has none
    table["exam"] = ["E0", "E0", "E0", "E1", "E0", "E0"]
    table["text"] = ["", "a", "b", "c", " ", ""]
    table.to_csv("t.csv", index=False)
    words = f"{TABLE} --group-column patient --study-column exam{hashed}"
    code, _, error = run(*words.split())
    assert (code, "t.csv: 1 images without a caption take their study's" in error) == (0, True)
    assert captions() == {b"a": 2, b"b": 1, b"c": 1}
    assert [row["reason"] for row in rejected(OUT)] == 2 * ["caption empty"]
    assert Counter(Counter(each["study"] for each in facts()).values()) == {3: 1, 1: 1}
    run(*f"{TABLE} --overwrite --study-column exam".split())  # the exam E0 has two patients' images
    assert captions() == {b"a": 4, b"b": 1, b"c": 1}


@pytest.mark.slow  # the audit imports much
def test_no_planted_name_gets_out(run: Run) -> None:
    """In folders, file names, tags, columns, and metadata, of pairs and of rejected rows."""
    names, rows = [f"Planted{n:02}" for n in range(60)], ["image,text,patient,exam"]
    for n in range(12):
        folder, file, patient, exam, tag = names[5 * n : 5 * n + 5]
        Path(folder).mkdir()
        names.append(f"1.2.4711.{n + 1}")
        tags: dict[str, Any] = {"PatientName": tag, "PatientID": tag, "StudyInstanceUID": names[-1]}
        image = dicom(np.asarray(picture(n)), **tags)
        Path(folder, f"{file}.dcm").write_bytes(image[: -99 if n == 1 else None])
        rows.append(f"{folder}/{file}.dcm,{' ' if n == 2 else 'x'},{patient},{exam}")
    Path(folder, f"{file}.png").write_bytes(b"no image")
    odd = [folder, f"{folder}/../{folder}/{file}.dcm", f"{folder}/{file}.png", f"{folder}/{file}"]
    rows += [rows[1], f"{names[5]},x,,,{names[6]}", *(f"{it},x,{names[2]},x" for it in odd)]
    for n, kind in enumerate(("colour", "PNG")):
        names += (own := [f"Planted{kind}{it}" for it in range(8)])
        parts = [carried(FILES[kind], name.encode()).values() for name in own]
        Path(f"{n}.dcm").write_bytes(planted(FILES[kind], *chain(*parts)) + own[0].encode())
        rows.append(f"{n}.dcm,x,{names[2]},x")
    Path("t.csv").write_bytes("\n".join(rows).encode())
    code, told, _ = run(*f"{TABLE} --hash-ids --audit --group-column patient".split())
    assert "--strip-metadata removes: EXIF 2, ICC profile 2, IPTC 1, XMP 1, after the end 2" in told
    assert b"".join(contents(OUT).values()).count(b"Planted") > 50
    for columns, kept in (("patient exam", 13), ("dicom:PatientID dicom:StudyInstanceUID", 11)):
        words = TABLE + "--hash-ids --audit --overwrite --group-column {} --study-column {}"
        words += " --strip-metadata"
        code, *told = run(*words.format(*columns.split()).split())
        told += [str(item) for item in contents(OUT).items()]
        assert (code, [name for name in names if name in "".join(told)]) == (0, [])
        found, left = facts(), rejected(OUT)
        assert {len(each[it]) for each in found for it in ("id", "group", "study")} == {16}
        assert (len(found), len(found) + len(left)) == (kept, len(rows) - 1)
        assert {row["detail"].split()[0] for row in left} == {"row"}


def test_dicom_files_are_split_by_patient_and_others_by_image(run: Run) -> None:
    write([0] * 20)
    words = (TABLE + "--split-by 0.5,0.5,0 --overwrite").split()
    assert "split by image (--group-column says" in run(*words)[2]
    assert "--split-by: too few groups, all are in train" in run(*words, "--group-column", "sex")[2]
    for n in range(20):
        Path(f"i{n}.jpg").write_bytes(dicom(np.asarray(picture(n)), PatientID=f"P{n // 2}"))
    assert "split by dicom:PatientID" in run(*words)[2]
    found = {(each["group"], each["split"]) for each in facts()}
    assert Counter(split for _, split in found) == {"train": 5, "valid": 5}


WRONG = [
    ("--group-column pat", "--group-column: no column 'pat'; found image, text, patient"),
    ("--split-by .5,.5,0 --stratify-column dicom:PatientID", "--stratify-column: no column"),
    ("--stratify-column sex", "--stratify-column: of no use with no --split-by"),
    ("--split-by 0.8,0.1", "--split-by: '0.8,0.1' is not three shares that sum to 1"),
    ("--split-by 1,0,0 --splits train", "--splits: of no use with --split-by"),
    ("--split-by 1,0,0 --split-column group", "--split-by: the source has splits: test"),
    ("--study-column exam --group-salt out/salt", "inside --out; keep it apart"),
    ("--study-column exam --group-salt t.csv", "t.csv: no salt; wanted are 64 hex letters"),
    ("--group-salt salt", "--group-salt: of no use; no group, study, split or id is hashed"),
    ("--group-column sex --keep-columns group", "--group-column: --keep-columns has a group"),
    ("--group-column sex --keep-columns sex", "sex: --keep-columns has it, in plain"),
    ("--hash-ids --group-salt salt --split-column patient", "row 1: patient is none of train,"),
    ("--split-by 1,0,0", "splits.csv is there; restore it"),
    ("--split-by 1,0,0 --group-salt salt", "splits.csv: wanted are groups, their splits, and"),
]


@pytest.mark.parametrize(("words", "message"), WRONG)
def test_wrong_input_is_one_line(run: Run, words: str, message: str) -> None:
    write([1, 1, 2])
    OUT.mkdir()
    (OUT / SPLITS_FILE).write_text("group,split,salt\na,dev,b\n")
    Path("salt").write_bytes(b"0" * 64)
    code, _, error = run(*(TABLE + words).split())
    assert (code, message in one_line(error)) == (2, True), error
    assert [path.name for path in OUT.iterdir()] == [SPLITS_FILE]
