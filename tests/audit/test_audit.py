"""Planted copies are found, and nothing else; the training side of a leak can be left out."""

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from medclip_oc.audit.audit import Audit, audit
from medclip_oc.config.packing import MakeShardsConfig
from medclip_oc.config.vocabulary import MODALITIES
from medclip_oc.data.shards import ShardSet
from medclip_oc.errors import InputError
from medclip_oc.make_shards import main
from medclip_oc.packing.formats import open_source
from medclip_oc.packing.pack import pack
from medclip_oc.reporting import audit_page
from medclip_oc.runtime import progress
from tests.support.cli import Reader, call
from tests.support.fault_injection import rejected
from tests.support.image_files import CHANGES, dicom, file, phantom, written
from tests.support.tiny_dataset import write_split

NASTY = 'left <script>alert("x")</script> & <b>right</b> lung, seen from the front with contrast'
LONG = " ".join(f"word{n}" for n in range(30))
WORDS = (lambda text: len(text.split()) + 2), 20
"""A stand-in for a tokenizer: a token per word, and two; the model reads 20."""


def write(folder: Path, pairs: Mapping[str, Mapping[str, tuple[bytes, str]]]) -> Path:
    """A source of {split: {file name: (image, caption)}}."""
    for split, files in pairs.items():
        rows = [(name.rpartition(".")[0], caption) for name, (_, caption) in files.items()]
        table = pd.DataFrame(rows, columns=["ID", "Caption"]).to_csv(index=False)
        write_split(folder, split, table, {name: data for name, (data, _) in files.items()})
    return folder


def look(folder: Path, *splits: str, workers: int = 1) -> Audit:
    config = MakeShardsConfig(out="", source=str(folder), audit_arch="words")
    return audit(open_source(folder, list(splits) or None), config, WORDS, workers)


def listed(found: Audit, what: str) -> set[tuple[str, str, str]]:
    return {(e["id"], e["other_id"], e["way"]) for e in found.report[what]["list"]}


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 different pictures in three splits, and copies of some of them."""
    plain = [phantom(number) for number in range(24)]
    pngs = [file(image, "PNG") for image in plain]
    train = {f"a{n}.png": (pngs[n], f"finding number{n} here and{n} there{n}") for n in range(12)}
    valid = {f"b{n}.png": (pngs[n], f"sight of valid{n} kind{n}") for n in range(12, 18)}
    test = {f"c{n}.png": (pngs[n], f"view of test{n} sort{n}") for n in range(18, 24)}
    train |= {
        "same-file.png": (pngs[18], LONG),
        "same-pixels.bmp": (file(plain[19], "BMP"), NASTY),
        "encoded.jpg": (file(plain[20], "JPEG", quality=50), "finding number0 here and0 there0"),
        "resized.png": (file(plain[21].resize((120, 120)), "PNG"), "c d"),
        "bright.png": (file(CHANGES["brighter"](plain[22]), "PNG"), "e f"),
        "cropped.png": (file(CHANGES["cropped"](plain[23]), "PNG"), "g h"),
        "of-valid.png": (pngs[12], "D C"),
        "inside.jpg": (file(plain[3], "JPEG", quality=90), LONG.replace("word7 ", "other ")),
    }
    test["of-valid-too.jpg"] = (file(plain[13], "JPEG", quality=90), "d c, D")
    return write(tmp_path_factory.mktemp("planted"), {"train": train, "valid": valid, "test": test})


@pytest.fixture(scope="module")
def found(planted: Path) -> Audit:
    return look(planted)


LEAKS = {
    ("same-file", "c18", "same file"),
    ("same-pixels", "c19", "same pixels"),
    ("encoded", "c20", "near"),
    ("resized", "c21", "near"),
    ("bright", "c22", "near"),
    ("cropped", "c23", "near"),
    ("of-valid", "b12", "same file"),
}


def test_every_planted_copy_is_found_and_nothing_else(found: Audit) -> None:
    both = LEAKS | {("b13", "of-valid-too", "near")}
    turned = {(other, one, way) for one, other, way in both}
    assert listed(found, "alike_images") == both | turned | {("inside", "a3", "near")}
    counts = found.report["alike_images"]["counts"]
    assert counts["train"]["test"] == {"same file": 1, "same pixels": 1, "near": 4}
    assert counts["valid"]["test"] == {"same file": 0, "same pixels": 0, "near": 1}
    degrees = [entry["likeness"] for entry in found.report["alike_images"]["list"]]
    assert degrees == sorted(degrees, reverse=True)  # the worst first


def test_the_training_side_is_named_with_its_partner(found: Audit) -> None:
    assert found.dropped.keys() == {("train", name) for name, _, _ in LEAKS}
    assert found.dropped["train", "same-file"] == "same file as test pair c18"
    assert found.dropped["train", "of-valid"] == "same file as valid pair b12"
    near = found.dropped["train", "cropped"]
    assert re.fullmatch(r"near-duplicate \(likeness 0\.9\d+\) of test pair c23", near)
    assert found.report["leaking_pairs"] == len(LEAKS)


def test_captions_alike(found: Audit) -> None:
    alike = listed(found, "alike_captions")
    assert {row for row in alike if row[0] in ("encoded", "of-valid")} == {
        ("encoded", "a0", "same text"),
        ("of-valid", "resized", "same words"),
        ("of-valid", "of-valid-too", "same words"),
    }
    [near] = [e for e in found.report["alike_captions"]["list"] if e["way"] == "near"]
    assert (near["id"], near["other_id"], near["likeness"]) == ("inside", "same-file", 0.935)


def test_counts_kinds_and_sizes(found: Audit) -> None:
    assert found.report["pairs"]["train"] == {"read": 20, "usable": 20, "unusable": {}}
    images, tokens = found.report["images"], found.report["captions"]["tokens"]
    assert images["formats"] == {"BMP": 1, "JPEG": 3, "PNG": 29}
    assert images["modes"] == {"L": 33}
    assert images["width"]["min"] == 120
    sides = [(each["from"], each["count"]) for each in images["shorter_side"] if each["count"]]
    assert sides == [(64, 1), (128, 32)]  # the resized one
    assert tokens["truncated"] == {"train": 2, "valid": 0, "test": 0}  # LONG, twice
    assert (tokens["min"], tokens["max"]) == (4, 32)
    assert sum(each["count"] for each in tokens["histogram"]) == 33
    assert sum(each["count"] for each in tokens["histogram"] if each["from"] > 20) == 2


@pytest.mark.slow
def test_workers_change_no_byte(
    planted: Path, found: Audit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medclip_oc.audit.audit._PIECE", 1)  # so that comparing is shared out, too
    look(planted, workers=2).write(tmp_path / "many" / "set")
    found.write(tmp_path / "one" / "set")
    for name in ("set/audit.json", "set/audit.html"):
        assert (tmp_path / "many" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()


def test_the_page_shows_leaks_and_escapes_what_people_wrote(found: Audit, tmp_path: Path) -> None:
    found.write(tmp_path)
    assert json.loads((tmp_path / "audit.json").read_text()) == found.report
    reader = Reader((tmp_path / "audit.html").read_text())
    assert "script" not in reader.tags
    assert f"Audit of {tmp_path.name}" in reader.text
    assert "pairs of planted0: form kaggle" in reader.text
    assert "likeness 1.000" not in reader.text  # of a near copy, that is
    assert "near, likeness over 0.999" in reader.text
    assert NASTY in reader.text
    assert all(f"train: {name}" in reader.text for name, _, _ in LEAKS)
    pictures = [str(value) for name, value in reader.attributes if name == "src"]
    # two of each leak, that between valid and test too, and of the copy inside
    assert len(pictures) == 2 * (len(LEAKS) + 2)
    assert all(value.startswith("data:image/jpeg;base64,") for value in pictures)


def test_the_number_of_pictures_is_bounded(tmp_path: Path) -> None:
    data, splits = file(phantom(0), "PNG"), ("train", "test")
    pairs = {split: {f"{split}{n}.png": (data, f"{n}") for n in range(40)} for split in splits}
    found = look(write(tmp_path / "source", pairs), *splits)
    assert found.report["leaking_pairs"] == 40
    assert found.report["alike_images"]["counts"]["train"] == {
        "train": {"same file": 39, "same pixels": 0, "near": 0},
        "test": {"same file": 40, "same pixels": 0, "near": 0},
    }
    found.write(tmp_path)
    assert (tmp_path / "audit.html").read_text().count("<img") == 2 * (24 + 8)


def test_what_packing_refuses_is_unusable_for_the_same_reason(tmp_path: Path) -> None:
    good = file(phantom(0), "JPEG", quality=90)
    files = {
        "good.jpg": (good, "x"),
        "cut.jpg": (good[:-300], "x"),
        "blank.png": (file(Image.new("RGB", (20, 20), (9, 8, 7)), "PNG"), "x"),
        "wordless.jpg": (good, " "),
    }
    folder = write(tmp_path / "source", {"train": files})
    with (folder / "train_captions.csv").open("a") as table:
        table.write("absent,x\ngood,x\n")
    found = look(folder, "train")
    report = pack(open_source(folder, ["train"]), tmp_path / "out")
    reasons = {reason: number for (_, reason), number in report.rejected.items()}
    pairs = found.report["pairs"]["train"]
    assert pairs == {"read": 6, "usable": 1, "unusable": dict(sorted(reasons.items()))}
    assert len(reasons) == 5
    (folder / "train_images" / "train" / "good.jpg").write_bytes(b"")
    assert look(folder, "train").report["captions"]["tokens"]["median"] is None


def test_modalities(tmp_path: Path) -> None:
    pairs = {"train": {f"{n}.jpg": (file(phantom(n), "JPEG"), "x") for n in range(6)}}
    folder = write(tmp_path / "source", pairs)
    (folder / "train_concepts.csv").write_text(
        "ID,CUIs\n0,C0040405;C0000001\n1,C1306645\n2,C0032743;C0040405\n3,C0000001;C0000002\n4,\n"
    )
    (folder / "cui_mapping.csv").write_text("CUI,Canonical name\nC0040405,CT of this release\n")
    concepts = look(folder, "train").report["concepts"]
    counts = concepts["splits"]["train"]
    named = {cui: number for cui, number in counts.pop("modalities").items() if number}
    assert named == {"C0040405": 2, "C1306645": 1, "C0032743": 1}
    assert counts == {"unknown": 1, "none": 1, "no_modality": 1, "several_modalities": 1}
    assert concepts["names"]["C0040405"] == "CT of this release"
    assert set(concepts["names"]) == set(MODALITIES.values())


def test_a_missing_library_is_one_line(planted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "imagehash", None)
    with pytest.raises(InputError, match=r"needs imagehash: pip install 'medclip_oc\[audit\]'"):
        look(planted)


def test_another_choice_of_pairs_is_another_source(
    planted: Path, found: Audit, tmp_path: Path
) -> None:
    source = open_source(planted)
    source.dropped = found.dropped
    assert pack(source, tmp_path).rejected["train", "leak"] == len(LEAKS)
    source.dropped = {("train", "a1"): "same file as test pair c18"}
    with pytest.raises(InputError, match="with other settings: other pairs leak"):
        pack(source, tmp_path)


def test_metadata_and_burned_in_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medclip_oc.reporting.audit_page.TEXTS_SHOWN", 2)
    films = [phantom(n).resize((400, 400)) for n in range(4)]
    files = {
        "a.jpg": (file(films[0], "JPEG", exif=b"Exif\0\0Doe", comment="Doe"), "x"),
        "b.png": (file(written(films[1], (8, 8)), "PNG"), "x"),
        "c.dcm": (dicom(np.asarray(films[2]), BurnedInAnnotation="YES"), "x"),
        "d.jpg": (file(written(films[3], (8, 8)), "JPEG", comment="Doe"), "x"),
    }
    found = look(write(tmp_path, {"train": files}), "train")
    assert found.report["images"]["metadata"] == {"EXIF": 1, "comment": 2}
    texts = found.report["images"]["burned_in_text"]
    assert [each["tagged"] for each in texts] == [True, False, False]
    assert ("train", "c") in found.pictures
    assert len(found.pictures) == 2
    assert b"Doe" not in b"".join(found.pictures.values())
    found.write(tmp_path)
    said = (tmp_path / "audit.html").read_text() + "".join(audit_page.headlines(found.report))
    assert said.count("EXIF 1, comment 2") == 2
    assert "may have text burned in: 3" in said


def make_shards(*words: object) -> int:
    return call(main, MakeShardsConfig, *words, "--workers", 1)


def test_the_command(
    planted: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "out"
    words = ["--source", planted, "--out", out]
    monkeypatch.setattr(progress, "LINE_SECONDS", 0)
    assert make_shards(*words, "--audit-only") == 0
    said = capsys.readouterr()
    assert "leak train-test: the pictures of 6 of 20 train pairs" in said.out
    assert re.search(r"audit: 16 of 33 images \(48%\), .* images/s, \d\d:\d\d left\n", said.err)
    assert sorted(path.name for path in out.iterdir()) == ["audit.html", "audit.json"]
    first = (out / "audit.json").read_bytes()
    assert json.loads(first)["settings"]["context_length"] == 77
    assert make_shards(*words, "--drop-leaks") == 0  # into the folder that holds an audit
    assert (out / "audit.json").read_bytes() == first
    left_out = {row["id"]: row["reason"] for row in rejected(out)}
    assert left_out == {name: "leak" for name, _, _ in LEAKS}
    assert len(ShardSet.open(str(out), "train")) == 20 - len(LEAKS)
    assert make_shards(*words) == 2  # an audit of other shards than these would mislead
    assert "drop_leaks true, not false" in capsys.readouterr().err
    assert make_shards(*words, "--overwrite") == 0
    assert not list(out.glob("audit.*"))
    assert not rejected(out)
    assert make_shards("--out", tmp_path / "x", *words[:2], "--audit", "--audit-arch", "V") == 2
    assert "--audit-arch: 'V' is not an open_clip" in capsys.readouterr().err


def test_groups_in_several_splits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """ROCOv2's articles are found by themselves; samples have them where they are asked for."""
    names = {"train": "abcd", "valid": "ef", "test": "gh"}
    pictures = (file(phantom(number), "PNG") for number in range(8))
    pairs = {split: {f"{n}.png": (next(pictures), n) for n in of} for split, of in names.items()}
    words = ["--source", write(tmp_path, pairs), "--out", tmp_path / "out"]
    assert make_shards(*words, "--drop-leaks", "groups") == 2
    told = capsys.readouterr()
    assert "--drop-leaks groups: no pair has a group; --group-column" in told.err
    assert told.out == ""  # nothing was looked at
    articles = "ID,PMCID\na,P1\nb,P2\nc,P3\nd,P4\ne,P4\nf,P5\ng,P5\nh,P1"
    (tmp_path / "license_information.csv").write_text(articles)
    assert make_shards(*words, "--drop-leaks", "groups", "--group-column", "PMCID") == 0
    assert "groups in several splits: 3 of 5, with 2 train pairs" in capsys.readouterr().out
    groups = json.loads((tmp_path / "out" / "audit.json").read_text())["groups"]
    assert [*groups["in_several"]] == ["P1", "P4", "P5"]
    assert groups["in_several"]["P1"] == {"train": 1, "valid": 0, "test": 1}
    assert "Groups in several splits" in (tmp_path / "out" / "audit.html").read_text()
    left_out = {row["id"]: row["detail"] for row in rejected(tmp_path / "out")}
    assert left_out == {it: f"group P{n} is in another split" for it, n in (("a", 1), ("d", 4))}
    train = ShardSet.open(str(tmp_path / "out"), "train")
    assert [train.facts(n)["group"] for n in range(len(train))] == ["P2", "P3"]
    assert not list(tmp_path.glob("*.salt"))
