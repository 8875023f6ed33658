"""The same pairs in every form that people have them in: the same samples."""

import csv
import shutil
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from medclip_oc.data.shards import ShardSet
from medclip_oc.errors import InputError
from medclip_oc.packing.formats import open_source, open_table
from medclip_oc.packing.pack import PackOptions, pack
from medclip_oc.packing.sources import Source
from tests.support.tiny_dataset import caption, jpeg, pairs_of

SPLITS = {"train": range(5), "valid": range(5, 7), "test": range(7, 9)}
NAMES = {"C0040405": "X-Ray Computed Tomography", "C0024485": "Magnetic Resonance Imaging"}
LICENSE = {"PMCID": "PMC1", "Attribution": "CC BY [A et al. (2020)]", "Link": "https://x.org/1"}
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def key(n: int) -> str:
    return f"ROCO_{n:05d}"


def text(n: int) -> str:
    """With all that a table must carry: quotes, commas, another script, a newline."""
    return f'{caption(n)}, "œdème"' + ("\nsecond line" if n == 3 else "")


def concepts(n: int) -> list[str]:
    return [["C0040405", "C0024485"], ["C0024485"], []][n % 3]


def write_csv(path: Path, *rows: list[str], delimiter: str = ",") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)


def write_images(folder: Path, numbers: range) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for n in numbers:
        (folder / f"{key(n)}.jpg").write_bytes(jpeg(n))


def rocov2(folder: Path, images: str = "{split}_images/{split}") -> None:
    """The tables that ROCOv2 comes with, and where its images are; a zip ends so."""
    for split, numbers in SPLITS.items():
        rows = [[key(n), text(n)] for n in numbers]
        write_csv(folder / f"{split}_captions.csv", ["ID", "Caption"], *rows)
        for name, count in (("", 2), ("_manual", 1)):
            rows = [[key(n), ";".join(concepts(n)[:count])] for n in numbers]
            write_csv(folder / f"{split}_concepts{name}.csv", ["ID", "CUIs"], *rows)
        place = folder / images.format(split=split)
        if place.suffix == ".zip":
            with zipfile.ZipFile(place, "w", zipfile.ZIP_DEFLATED) as archive:
                archive.writestr(f"__MACOSX/{split}/._{key(numbers[0])}.jpg", b"the Finder's note")
                for n in numbers:
                    archive.writestr(f"{split}/{key(n)}.jpg", jpeg(n))
        else:
            write_images(place, numbers)
    write_csv(folder / "cui_mapping.csv", ["CUI", "Canonical name"], *map(list, NAMES.items()))
    everyone = [n for numbers in SPLITS.values() for n in numbers]
    rows = [[key(n), *LICENSE.values()] for n in everyone]
    write_csv(folder / "license_information.csv", ["ID ", *LICENSE], *rows)  # a blank, as seen


zenodo = partial(rocov2, images="{split}_images.zip")


def imageclef(folder: Path) -> None:
    """Tab-separated although named .csv; no names, no licences."""
    start = "ImageCLEFmedical_Caption_2023_"
    for split, numbers in SPLITS.items():
        rows = [[key(n), text(n)] for n in numbers]
        name = f"{start}caption_prediction_{split}_labels.csv"
        write_csv(folder / name, ["ID", "caption"], *rows, delimiter="\t")
        rows = [[key(n), ";".join(concepts(n))] for n in numbers]
        name = f"{start}concept_detection_{split}_labels.csv"
        write_csv(folder / name, ["ID", "cuis"], *rows, delimiter="\t")
        write_images(folder / f"{start}{split}_images" / split, numbers)


def roco1(folder: Path) -> None:
    """Plain lines: no header, no quoting, a blank before the caption."""
    for split, numbers in SPLITS.items():
        there = folder / {"valid": "validation"}.get(split, split) / "radiology"
        write_images(there / "images", numbers)
        lines = [f"{key(n)}\t {text(n).splitlines()[0]}\n" for n in numbers]
        (there / "captions.txt").write_text("".join(lines), encoding="utf-8")
        lines = ["\t".join([key(n), *concepts(n)]) + "\n" for n in numbers]
        (there / "cuis.txt").write_text("".join(lines), encoding="utf-8")


def parquet(folder: Path) -> None:
    """As Hugging Face has it; a split may be in several files, an empty list may read ['nan']."""
    (folder / "data").mkdir(parents=True)
    for split, numbers in SPLITS.items():
        word = {"valid": "validation"}.get(split, split)
        halves = [numbers[:2], numbers[2:]] if len(numbers) > 2 else [numbers]
        for place, half in enumerate(halves):
            name = f"{word}-{place:05d}-of-{len(halves):05d}.parquet"
            cells = [{"bytes": jpeg(n), "path": f"{key(n)}.jpg"} for n in half]
            pq.write_table(hugging_face(half, cells), folder / "data" / name)


def hugging_face(numbers: range, images: list[dict[str, Any]]) -> pa.Table:
    return pa.table(
        {
            "image": pa.array(images, IMAGE),
            "image_id": [key(n) for n in numbers],
            "caption": [text(n) for n in numbers],
            "cui": [concepts(n) or ["nan"] for n in numbers],
        }
    )


def one_table(suffix: str, folder: Path) -> Source:
    rows = list[dict[str, str]]()
    for split, numbers in SPLITS.items():
        write_images(folder / "pictures" / split, numbers)
        subset = {"valid": "Val"}.get(split, split)
        for n in numbers:
            row = {"path": f"{split}/{key(n)}.jpg", "report": text(n), "name": key(n)}
            rows.append({**row, "subset": subset, "cuis": ";".join(concepts(n))})
    path, frame = folder / f"pairs{suffix}", pd.DataFrame(rows)
    if suffix == ".jsonl":
        frame.to_json(path, orient="records", lines=True)
    elif suffix == ".parquet":
        frame.to_parquet(path)
    else:
        frame.to_csv(path, sep="\t" if suffix == ".tsv" else ",", index=False)
    columns = {"image": "path", "caption": "report", "id": "name", "split": "subset"}
    return open_table(path, {**columns, "concepts": "cuis"}, image_root=folder / "pictures")


FOLDERS: dict[str, Callable[[Path], None]] = {
    "kaggle": rocov2,
    "flat": partial(rocov2, images="{split}"),
    "zenodo": zenodo,
    "imageclef": imageclef,
    "roco1": roco1,
    "parquet": parquet,
}


@pytest.mark.parametrize("form", [*FOLDERS, ".csv", ".tsv", ".jsonl", ".parquet"])
def test_every_form_gives_the_same_samples(tmp_path: Path, form: str) -> None:
    if form in FOLDERS:
        FOLDERS[form](tmp_path)
    source = open_source(tmp_path) if form in FOLDERS else one_table(form, tmp_path)
    assert (source.form, source.splits) == (form if form in FOLDERS else "table", tuple(SPLITS))
    report = pack(source, tmp_path / "out", PackOptions(samples_per_shard=3))
    assert report.read == report.packed == {"train": 5, "valid": 2, "test": 2}
    for split, numbers in SPLITS.items():
        shard_set = ShardSet.open(str(tmp_path / "out"), split)
        for position, n in enumerate(numbers):
            pair = shard_set.read(position)
            assert (pair.key, pair.image) == (key(n), jpeg(n))
            # a form of plain lines has no place for a second one
            second = "\nsecond line"
            assert pair.caption == (text(n).removesuffix(second) if form == "roco1" else text(n))
            assert pair.facts["concepts"] == concepts(n)


def test_what_else_rocov2_says_is_in_the_facts(tmp_path: Path) -> None:
    def facts(choice: Any = "all") -> list[Any]:
        return [pair.facts for pair in pairs_of(open_source(tmp_path, concepts=choice), "train")]

    rocov2(tmp_path)
    both, none = {"concepts": ["C0040405", "C0024485"]}, {"concepts": [], "concept_names": []}
    license = {"license": LICENSE}
    assert facts()[0] == {**both, "concept_names": list(NAMES.values()), **license}
    assert facts()[2] == {**none, **license}
    write_csv(tmp_path / "cui_mapping.csv", ["CUI", "Canonical name"], ["C0024485", "MR"])
    assert facts()[0] == {**both, "concept_names": [None, "MR"], **license}
    manual = [each["concepts"] for each in facts("manual")]
    assert manual[:3] == [["C0040405"], ["C0024485"], []]
    assert facts("none") == [license] * 5
    (tmp_path / "test_concepts_manual.csv").unlink()
    with pytest.raises(InputError, match="no table of manual concepts of test"):
        open_source(tmp_path, concepts="manual")


def test_the_form_can_be_said(tmp_path: Path) -> None:
    """Where a folder is of several forms, the extracted images win, unless another one is named."""
    rocov2(tmp_path)
    for split, numbers in SPLITS.items():
        with zipfile.ZipFile(tmp_path / f"{split}_images.zip", "w") as archive:
            for n in numbers:
                archive.writestr(f"{key(n)}.jpg", jpeg(n + 100))
    assert open_source(tmp_path).form == "kaggle"
    zipped = pairs_of(open_source(tmp_path, form="zenodo"), "train")
    assert [pair.image.read() for pair in zipped] == [jpeg(n + 100) for n in SPLITS["train"]]
    shutil.rmtree(tmp_path / "test_images")  # half extracted: of this split, the zip is read
    assert pairs_of(open_source(tmp_path), "test")[0].image.read() == jpeg(107)


def test_a_damaged_zip_is_named_and_a_damaged_member_is_rejected(tmp_path: Path) -> None:
    zenodo(tmp_path)
    path = tmp_path / "train_images.zip"
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        second = archive.infolist()[2]
    data[second.header_offset + 30 + len(second.filename) + 40] ^= 0xFF  # in the compressed data
    path.write_bytes(data)
    report = pack(open_source(tmp_path, ["train"]), tmp_path / "out")
    assert (report.read["train"], report.packed["train"]) == (5, 4)
    assert report.rejected == {("train", "image unreadable"): 1}
    pointer = b"version https://git-lfs.github.com/spec/v1\n"
    for content, message in ((data[:-30], "not a readable zip"), (pointer, "a Git LFS pointer")):
        path.write_bytes(content)
        with pytest.raises(InputError, match=f"train_images.zip: {message}"):
            open_source(tmp_path, ["train"])
    with zipfile.ZipFile(tmp_path / "test_images.zip", "a") as archive:
        archive.writestr(f"old/{key(7)}.jpg", b"another")
    with pytest.raises(InputError, match=r"holds two images ROCO_00007.jpg: test/.*, old/"):
        open_source(tmp_path, ["test"])


def test_one_parquet_file_is_a_source(tmp_path: Path) -> None:
    parquet(tmp_path)
    shutil.copytree(tmp_path / "data", tmp_path / "hub" / "default" / "validation")
    assert open_source(tmp_path / "hub", ["valid"]).count("valid") == 9
    file = tmp_path / "data" / "validation-00000-of-00001.parquet"
    assert open_source(file).splits == ("valid",)
    other = file.rename(tmp_path / "pairs.parquet")
    assert open_source(other, ["test"]).count("test") == 2
    with pytest.raises(InputError, match=r"pairs.parquet: which split is it"):
        open_source(other)
    # images may be paths
    write_images(tmp_path / "pictures", range(2))
    cells = [{"bytes": None, "path": f"pictures/{key(n)}.jpg"} for n in range(2)]
    pq.write_table(hugging_face(range(2), cells), other)
    found = pairs_of(open_source(other, ["test"]), "test")
    assert [pair.image.read() for pair in found] == [jpeg(0), jpeg(1)]


HEAD = "path,report,subset\na,b,train\n"
COLUMNS, SUBSET = {"image": "path", "caption": "report"}, {"split": "subset"}
WRONG: list[tuple[str, dict[str, str], dict[str, Any], str]] = [
    (f"{HEAD}a,b,train/val\n", SUBSET, {}, "line 3: subset is 'train/val'; allowed are train"),
    (f"{HEAD}a,b,holdout\n", SUBSET, {}, "line 3: subset is 'holdout'; allowed are train, t"),
    ("path,report\na,b\n", {}, {"splits": ["train", "test"]}, "name one"),
    (HEAD, SUBSET, {"splits": ["test"]}, "t.csv: no rows whose subset is test"),
    (HEAD, {}, {"image_root": Path("/nowhere")}, "no such image folder .*a zip is to be unpacked"),
]


@pytest.mark.parametrize(("content", "columns", "options", "message"), WRONG)
def test_a_wrong_table_is_one_line(
    tmp_path: Path, content: str, columns: dict[str, str], options: dict[str, Any], message: str
) -> None:
    (tmp_path / "t.csv").write_text(content)
    columns, [split, *_] = {**COLUMNS, **columns}, options.get("splits", ["train"])
    with pytest.raises(InputError, match=message):
        open_table(tmp_path / "t.csv", columns, **options).count(split)


ROWS = "a.jpg,heart\nb.jpg,lung\n"
NO_IMAGES = {f"{split}_captions.csv": HEAD for split in SPLITS}
NO_PARQUET = {f"{split}.parquet": "PAR1 no" for split in SPLITS}
LAID_OUT = [  # the form, or what is said; tables and texts; images
    ("imagefolder", {"train/metadata.csv": f"file_name,text\n{ROWS}"}, "train/a.jpg train/b.jpg"),
    ("table", {"train/a.txt": "heart\n", "train/b.txt": "\ufefflung"}, "train/a.jpg train/b.DCM"),
    ("table", {"captions.csv": f"id,caption\n{ROWS}"}, "images/a.jpg images/b.PNG"),
    (
        "table",
        {"train/p/a.txt": "heart", "train/b.txt": "lung", "val/c.txt": "x"},
        "train/p/a train/b val/c",
    ),
    ("table", {"p/a.txt": "heart", "b.TXT": "lung"}, "p/a.jpg b.jpg"),
    ("table", {"metadata.csv": "path,text,Split\na,heart,train\nb,lung,training\n"}, "a.png b.png"),
    (
        "table",
        {"metadata.csv": f"path,text\ntrain/{ROWS}test/c,x".replace("b", "train/b")},
        "train/a train/b test/c",
    ),
    ("no column 'file_name.* --table captions.csv", {"captions.csv": "uid,findings\n1,x\n"}, ""),
    ("flat", {"R/train_captions.csv": f"ID,Caption\n{ROWS}"}, "a.txt R/train/a.jpg R/train/b"),
    ("data sets in R, S; name one", {"R/captions.csv": "", "S/captions.csv": ""}, ""),
    ("no captions there: .*images alone: zeroshot --images", {}, "s/a.dcm"),
    ("no captions there: no train_captions.csv.*--tab", {}, "x.jpg"),
    ("no captions there: .*tars: packed already", {}, "train-000000.tar index.json"),
    ("valid_captions.csv: no such file.*--splits", {"train_captions.csv": HEAD}, "train/a.jpg"),
    ("valid_images.*valid: no such image folder or zip", NO_IMAGES, "train_images/train/a.jpg"),
    ("/valid: no such image folder", {**NO_IMAGES, "valid": ""}, "train_images/train/a.jpg"),
    ("train.parquet: not a readable Parquet file", NO_PARQUET, ""),
]


@pytest.mark.parametrize(("expected", "texts", "images"), LAID_OUT)
def test_layouts_are_told_by_looking(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    expected: str,
    texts: dict[str, str],
    images: str,
) -> None:
    for path, content in {**texts, **dict.fromkeys(images.split(), "")}.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(content, encoding="utf-8")
    if " " in expected:
        with pytest.raises(InputError, match=expected):
            open_source(tmp_path)
        return
    source = open_source(tmp_path, ["train"])
    found = {Path(pair.id).name: pair.caption for pair in pairs_of(source, "train")}
    assert (source.form, found) == (expected, {"a": "heart", "b": "lung"})
    assert ("R, one level down" in capsys.readouterr().err) == ("R/" in images)


def test_fingerprints_tell_sources_apart(tmp_path: Path) -> None:
    def prints(**options: Any) -> tuple[str, ...]:
        return tuple(open_source(tmp_path, **options).fingerprints().values())

    rocov2(tmp_path)
    assert prints() == prints()
    found = {prints(), prints(splits=["train"]), prints(concepts="manual")}
    for name in ("cui_mapping.csv", "license_information.csv"):
        (tmp_path / name).unlink()
        found.add(prints())
    assert len(found) == 5
