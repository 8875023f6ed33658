"""Draw a plainly synthetic data set in the Kaggle ROCOv2 layout.

    python tools/make_phantoms.py --out DIR [--train 3000] [--valid 300] [--test 300] [--seed 0]

A phantom is one combination of modality, organ, lesion, size and side (720 of them), drawn in grey
with jittered pose and noise, and a caption that states all five in one of several phrasings. Train,
valid and test share no combination, but every pair of attribute values occurs in train (from about
600 training images on), so the held-out pairs ask a model to combine what it has seen apart.

The pictures: phantom_pictures.py. Each image has a random stream of its own, made from (seed,
split, index), so the same seed draws the same bytes in any order.
"""

import csv
import sys
from collections import Counter
from dataclasses import dataclass
from itertools import combinations, product
from pathlib import Path
from typing import Annotated, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script: tools/ is there

import numpy as np
import phantom_pictures
from PIL import Image
from tqdm import tqdm

from medclip_oc.config.checks import Bound, Count, Natural, Settings
from medclip_oc.errors import InputError
from medclip_oc.runtime import command

SPLITS = ("train", "valid", "test")
HELD_OUT = {"valid": 0.10, "test": 0.15}  # share of the combinations
CONCEPT_FILES = ("concepts", "concepts_manual")
README = "README.txt"
NOTICE = "Synthetic phantoms, drawn by tools/make_phantoms.py. No patient, no medical meaning.\n"
ABOUT = """
Layout: that of ROCOv2 on Kaggle. The patient's left is on the right of each picture. Train, valid
and test share no combination of modality, organ, lesion, size and side. Concept ids are those of
the UMLS, except C99...: made up. boxes.csv: each lesion, in pixels (right and bottom beyond it).
"""


@dataclass
class PhantomConfig(Settings):
    """Draw a plainly synthetic data set in the Kaggle ROCOv2 layout."""

    out: str
    """Folder to write: {split}_images/{split}/ID.jpg, captions, concepts, boxes, cui_mapping."""
    train: Count = 3000
    """Training pairs."""
    valid: Count = 300
    """Validation pairs."""
    test: Count = 300
    """Test pairs."""
    seed: Natural = 0
    """The same seed draws the same files, byte for byte."""
    size: Annotated[int, Bound("at least 32", lambda size: size >= 32)] = 96
    """Shorter side in pixels; the longer one is up to a sixth more."""
    overwrite: bool = False
    """Replace an earlier data set of this tool; other files in the folder stay."""


class Term(NamedTuple):
    """A value of an attribute: its concept, and the words that captions have for it."""

    cui: str
    name: str
    words: str  # between commas


class Combination(NamedTuple):
    """What one picture shows: a key of each table below."""

    modality: str
    organ: str
    lesion: str
    size: str
    side: str


# CUIs of the UMLS, except C99...: made up here, and named so in cui_mapping.csv.
MODALITIES = {
    "ct": Term("C0040405", "X-Ray Computed Tomography", "CT, computed tomography, axial CT"),
    "xray": Term("C1306645", "Plain x-ray", "radiography, X-ray, plain film"),
    "us": Term("C0041618", "Ultrasonography", "ultrasound, sonography, B-mode ultrasonography"),
    "mr": Term("C0024485", "Magnetic Resonance Imaging", "MRI, MR imaging, magnetic resonance"),
}
ORGANS = {  # words are places, with the side in them
    "lung": Term("C0024109", "Lung", "{} lung, lung on the {}, {} pulmonary field"),
    "liver": Term("C0023884", "Liver", "{} lobe of the liver, {} hepatic lobe, {} liver"),
    "kidney": Term("C0022646", "Kidney", "{} kidney, kidney on the {}, {} renal parenchyma"),
    "brain": Term("C0006104", "Brain", "{} cerebral hemisphere, {} side of the brain"),
    "thyroid": Term("C0040132", "Thyroid Gland", "{} lobe of the thyroid, {} thyroid lobe"),
    "breast": Term("C0006141", "Breast", "{} breast, breast on the {}, {} mammary gland"),
}
LESIONS = {
    "mass": Term("C0577559", "Mass of body structure", "mass, tumor, solid lesion"),
    "cyst": Term("C0010709", "Cyst", "cyst, cystic lesion"),
    "calcification": Term(
        "C9900001", "Calcification (made-up id, not in the UMLS)", "calcification, calcific deposit"
    ),
    "abscess": Term("C0000833", "Abscess", "abscess, ring-like lesion, rim-enhancing lesion"),
    "effusion": Term("C0013687", "effusion", "effusion, fluid collection, crescent of fluid"),
}
SIZES = {
    "small": "small, tiny, minute",
    "medium": "medium-sized, moderate, mid-sized",
    "large": "large, big, bulky",
}
SIDES = ("left", "right")  # the patient's
TEMPLATES = (
    "{modality} showing a {size} {lesion} in the {place}.",
    "A {size} {lesion} in the {place} is seen on {modality}.",
    "{modality}. There is a {size} {lesion} in the {place}.",
    "{place}: {size} {lesion} ({modality}).",
    "On {modality} the {place} contains a {size} {lesion}.",
    "{lesion} of the {place}, {size}, as seen by {modality}.",
    "{modality} of a patient with a {size} {lesion} of the {place}.",
    "The {place} harbors a {size} {lesion} on this {modality}.",
    "{size} {lesion}, {place}. {modality}.",
    "Follow-up {modality}: the {lesion} in the {place} is {size}.",
    "{modality} demonstrates one {lesion} within the {place}; it is {size}.",
    "Within the {place}, {modality} reveals a {size} {lesion}.",
    "Incidental finding: the {lesion} of the {place} looks {size} on {modality}.",
)


def caption(drawn: Combination, rng: np.random.Generator) -> str:
    """All five attributes, in one of the phrasings and wordings."""

    def one(words: str) -> str:
        choices = words.split(", ")
        return choices[rng.integers(len(choices))]

    text = TEMPLATES[rng.integers(len(TEMPLATES))].format(
        modality=one(MODALITIES[drawn.modality].words),
        lesion=one(LESIONS[drawn.lesion].words),
        size=one(SIZES[drawn.size]),
        place=one(ORGANS[drawn.organ].words).format(drawn.side),
    )
    return text[0].upper() + text[1:]


def finding(drawn: Combination) -> str:
    """What the picture shows of the lesion, whatever its organ: size, kind and side."""
    size, kind = SIZES[drawn.size].split(", ")[0], LESIONS[drawn.lesion].words.split(", ")[0]
    return f"{size} {kind} on the {drawn.side}"


def split_combinations(seed: int) -> dict[str, list[Combination]]:
    """The combinations of each split, in a drawn order; every pair of values stays in train."""
    every = [Combination(*values) for values in product(MODALITIES, ORGANS, LESIONS, SIZES, SIDES)]
    order = [every[i] for i in np.random.default_rng([seed, len(SPLITS)]).permutation(len(every))]
    left = Counter(pair for drawn in every for pair in pairs(drawn))
    splits: dict[str, list[Combination]] = {split: [] for split in SPLITS}
    for drawn in order:
        for split, share in HELD_OUT.items():
            wanted = len(splits[split]) < round(share * len(every))
            if wanted and all(left[pair] > 1 for pair in pairs(drawn)):
                splits[split].append(drawn)
                left.subtract(pairs(drawn))
                break
        else:
            splits["train"].append(drawn)
    return splits


def pairs(drawn: Combination) -> list[frozenset[str]]:
    """The pairs of attribute values in a combination (no value belongs to two attributes)."""
    return [frozenset(pair) for pair in combinations(drawn, 2)]


def write_split(config: PhantomConfig, split: str, known: list[Combination]) -> list[list[str]]:
    """The pictures and tables of one split; the combinations take turns. Its rows of boxes.csv."""
    out, count = Path(config.out), getattr(config, split)
    folder = out / f"{split}_images" / split
    folder.mkdir(parents=True, exist_ok=True)
    tables: dict[str, list[list[str]]] = {"captions": [], **{name: [] for name in CONCEPT_FILES}}
    boxes = list[list[str]]()
    for index in tqdm(range(count), desc=split, unit="image", disable=None):  # None: terminal only
        # a stream of its own per image: the same picture whatever is drawn before it
        rng = np.random.default_rng([config.seed, SPLITS.index(split), index])
        drawn, key = known[index % len(known)], f"PHANTOM_{split}_{index:06d}"
        picture = phantom_pictures.draw(*drawn, rng=rng, pixels=config.size)
        Image.fromarray(picture.pixels).save(folder / f"{key}.jpg", quality=90)
        terms = (MODALITIES[drawn.modality], ORGANS[drawn.organ], LESIONS[drawn.lesion])
        box = Image.fromarray(picture.lesion >= picture.lesion.max() / 2).getbbox() or ()
        boxes.append([f"{split}_images/{split}/{key}.jpg", finding(drawn), *map(str, box)])
        tables["captions"].append([key, caption(drawn, rng)])
        tables["concepts"].append([key, ";".join(term.cui for term in terms)])
        tables["concepts_manual"].append([key, terms[0].cui])  # ROCOv2: by hand, the modality
    for name, rows in tables.items():
        header = ["ID", "Caption" if name == "captions" else "CUIs"]
        write_csv(out / f"{split}_{name}.csv", [header, *rows])
    return boxes


def write_csv(path: Path, rows: list[list[str]]) -> None:
    """A CSV with plain line ends."""
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


def clear(out: Path, overwrite: bool) -> None:
    """Make room for the data set: nothing is removed but what this tool wrote."""
    if not out.exists() or not any(out.iterdir()):
        return
    if not overwrite:
        raise InputError(f"--out {out}: not empty; give --overwrite, or another folder")
    readme = out / README
    if not readme.is_file() or not readme.read_bytes().startswith(NOTICE.encode()):
        raise InputError(f"--out {out}: not written by this tool (no {README} of its), left alone")
    for split in SPLITS:
        for picture in (out / f"{split}_images" / split).glob(f"PHANTOM_{split}_*.jpg"):
            picture.unlink()


def main(config: PhantomConfig) -> None:
    """Draw the data set that the config asks for."""
    out = Path(config.out)
    settings = f"train {config.train}, valid {config.valid}, test {config.test}, seed {config.seed}"
    try:
        clear(out, config.overwrite)
        out.mkdir(parents=True, exist_ok=True)
        # first of all files: a data set cut short is still known as ours
        text = f"{NOTICE}{ABOUT}\nDrawn with: {settings}, size {config.size}.\n"
        (out / README).write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"--out {out}: {error.strerror}") from None
    terms = [*MODALITIES.values(), *ORGANS.values(), *LESIONS.values()]
    names = [[term.cui, term.name] for term in terms]
    write_csv(out / "cui_mapping.csv", [["CUI", "Canonical name"], *names])
    splits = split_combinations(config.seed)
    boxes = [row for split in SPLITS for row in write_split(config, split, splits[split])]
    write_csv(out / "boxes.csv", [["image", "finding", "left", "top", "right", "bottom"], *boxes])
    print(f"{out}: {settings}. Synthetic: of no medical meaning.")


if __name__ == "__main__":
    command.run(main, PhantomConfig)
