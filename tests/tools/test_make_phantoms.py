"""The phantom data set: what its pictures, captions, splits and files promise."""

import csv
import hashlib
import re
from itertools import combinations
from pathlib import Path
from typing import Any

import make_phantoms as tool
import numpy as np
import phantom_pictures as pictures
import pytest

from medclip_oc.errors import InputError

TABLE_NAMES = ("captions", "concepts", "concepts_manual")
COUNTS = {"train": 12, "valid": 5, "test": 4}
OF_SEED_0 = "e74534c0c2c39d885dc30013b2e8c7090af16d67d6f4808a4fbc48912513bb23"
TABLES = {
    "modality": tool.MODALITIES,
    "organ": tool.ORGANS,
    "lesion": tool.LESIONS,
    "size": tool.SIZES,
}


def draw_set(out: Path, **changes: int | bool) -> Path:
    tool.main(tool.PhantomConfig(str(out), **{**COUNTS, "size": 48, **changes}))
    return out


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_set(tmp_path_factory.mktemp("phantoms") / "set")


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def hashes(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def states(caption: str, attribute: str, value: str) -> bool:
    """Whether one of the value's wordings stands in the caption, as whole words."""
    entry = TABLES[attribute][value]
    for words in (entry if isinstance(entry, str) else entry.words).split(", "):
        pattern = re.escape(words).replace(r"\{\}", "(left|right)")
        if re.search(rf"\b{pattern}\b", caption, re.IGNORECASE):
            return True
    return False


def test_the_layout_is_that_of_rocov2_on_kaggle(phantoms: Path) -> None:
    tables = {f"{s}_{n}.csv" for s in COUNTS for n in TABLE_NAMES}
    folders = {f"{split}_images" for split in COUNTS}
    assert {path.name for path in phantoms.iterdir()} == (
        tables | folders | {"cui_mapping.csv", "boxes.csv", "README.txt"}
    )
    assert "synthetic" in (phantoms / "README.txt").read_text(encoding="utf-8").lower()
    for split, count in COUNTS.items():
        ids = [f"PHANTOM_{split}_{index:06d}" for index in range(count)]
        captions = rows(phantoms / f"{split}_captions.csv")
        assert [list(row) for row in captions] == [["ID", "Caption"]] * count
        images = (phantoms / f"{split}_images" / split).iterdir()
        assert sorted(path.name for path in images) == [f"{key}.jpg" for key in ids]
        for name in TABLE_NAMES:
            assert [row["ID"] for row in rows(phantoms / f"{split}_{name}.csv")] == ids


def test_the_seed_and_the_place_alone_decide_what_is_drawn(phantoms: Path, tmp_path: Path) -> None:
    whole = hashes(phantoms)
    other = hashes(draw_set(tmp_path / "other", seed=1))
    assert {name for name, digest in whole.items() if other[name] == digest} == {"cui_mapping.csv"}
    fewer = hashes(draw_set(tmp_path / "fewer", train=3, test=1))
    images = {name: digest for name, digest in fewer.items() if name.endswith(".jpg")}
    assert len(images) == 3 + COUNTS["valid"] + 1
    assert all(whole[name] == digest for name, digest in images.items())
    together = "".join(whole[name] for name in sorted(whole) if name.endswith(".jpg"))
    assert hashlib.sha256(together.encode()).hexdigest() == OF_SEED_0  # as before there were boxes


def test_a_box_is_the_smallest_around_the_lesion(phantoms: Path) -> None:
    splits = tool.split_combinations(0)
    every = [(split, index) for split, count in COUNTS.items() for index in range(count)]
    for (split, index), row in zip(every, rows(phantoms / "boxes.csv"), strict=True):
        drawn, rng = splits[split][index], np.random.default_rng([0, [*COUNTS].index(split), index])
        lesion = pictures.draw(*drawn, rng=rng, pixels=48).lesion
        y, x = np.nonzero(lesion >= lesion.max() / 2)
        box = [x.min(), y.min(), x.max() + 1, y.max() + 1]
        assert [*row.values()][2:] == [str(side) for side in box]
        assert row["image"] == f"{split}_images/{split}/PHANTOM_{split}_{index:06d}.jpg"
        assert row["finding"] == tool.finding(drawn)


def test_splits_share_no_combination_but_train_has_every_pair_of_values() -> None:
    splits = tool.split_combinations(0)
    every = [drawn for split in splits.values() for drawn in split]
    assert len(every) == len(set(every)) == 4 * 6 * 5 * 3 * 2
    assert min(len(splits["valid"]), len(splits["test"])) >= 60

    def value_pairs(found: list[tool.Combination]) -> set[tuple[str, ...]]:
        return {pair for drawn in found for pair in combinations(drawn, 2)}

    assert value_pairs(splits["train"]) == value_pairs(every)


def test_captions_and_concepts_state_one_combination_each_of_their_own_split(
    phantoms: Path,
) -> None:
    names = {row["CUI"]: row["Canonical name"] for row in rows(phantoms / "cui_mapping.csv")}
    assert all("made-up" in name for cui, name in names.items() if cui.startswith("C99"))
    splits = tool.split_combinations(0)
    for split in tool.SPLITS:
        tables = (rows(phantoms / f"{split}_{name}.csv") for name in TABLE_NAMES)
        for row, concepts, manual in zip(*tables, strict=True):
            values = [
                [value for value in table if states(row["Caption"], attribute, value)]
                for attribute, table in TABLES.items()
            ]
            values.append(re.findall(r"\b(left|right)\b", row["Caption"].lower()))
            assert [len(each) for each in values] == [1] * 5, row["Caption"]
            stated = tool.Combination(*(value for [value] in values))
            assert stated in splits[split]
            kinds = ("modality", "organ", "lesion")
            cuis = [TABLES[kind][getattr(stated, kind)].cui for kind in kinds]
            assert concepts["CUIs"].split(";") == cuis
            assert manual["CUIs"] == cuis[0]
            assert names.keys() >= set(cuis)


def test_the_patients_left_is_on_the_right_of_the_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """The lesion is what changes when it is left out; its middle shows the side."""
    masks = pictures.lesion_masks

    def invisible(*arguments: Any) -> pictures.Masks:
        return [(thing, 0 * mask) for thing, mask in masks(*arguments)]

    every = [drawn for split in tool.split_combinations(0).values() for drawn in split]
    for number, drawn in enumerate(every[::3]):
        picture = pictures.draw(*drawn, rng=np.random.default_rng(number), pixels=64)
        with monkeypatch.context() as patch:
            patch.setattr(pictures, "lesion_masks", invisible)
            without = pictures.draw(*drawn, rng=np.random.default_rng(number), pixels=64)
        change = np.abs(picture.pixels.astype(float) - without.pixels)
        if drawn.modality == "us":  # without what lies behind the lesion
            change *= picture.lesion > 0
        columns = np.arange(change.shape[1]) + 0.5
        for weight in (change, picture.lesion):
            middle = float((weight.sum(axis=0) * columns).sum() / weight.sum())
            assert (middle > change.shape[1] / 2) == (drawn.side == "left"), drawn


def test_only_a_set_of_its_own_is_overwritten(phantoms: Path, tmp_path: Path) -> None:
    out = draw_set(tmp_path / "set", train=14)
    mine = out / "train_images" / "train" / "mine.jpg"
    mine.write_bytes(b"kept")
    before = hashes(out)
    with pytest.raises(InputError, match="not empty"):
        draw_set(out)
    assert hashes(out) == before
    draw_set(out, overwrite=True)
    assert mine.read_bytes() == b"kept"
    mine.unlink()
    assert hashes(out) == hashes(phantoms)
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "train_captions.csv").write_text("ID,Caption\nROCOv2_1,real\n", encoding="utf-8")
    with pytest.raises(InputError, match="not written by this tool"):
        draw_set(theirs, overwrite=True)
    assert [path.name for path in theirs.iterdir()] == ["train_captions.csv"]
