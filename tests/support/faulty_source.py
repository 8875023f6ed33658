"""A small source with a fault of each common kind, and what packing it leaves in a folder."""

import csv
from pathlib import Path

from PIL import Image

from tests.support.odd_files import file
from tests.support.tiny_dataset import jpeg, write_kaggle


def contents(folder: Path) -> dict[str, bytes]:
    # without what readers keep there for themselves
    return {p.name: p.read_bytes() for p in folder.iterdir() if not p.name.startswith(".")}


def rejected(folder: Path) -> list[dict[str, str]]:
    with (folder / "rejects.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_faulty_source(folder: Path) -> Path:
    """23 training rows, of which 17 are sound, and 3 sound validation rows."""
    write_kaggle(folder, {"train": 18, "valid": 3})
    pictures = folder / "train_images" / "train"
    (pictures / "train_0003.jpg").write_bytes(jpeg(3)[:-50])  # cut
    (pictures / "black.png").write_bytes(file(Image.new("L", (30, 20)), "PNG"))
    (pictures / "empty.jpg").touch()
    with (folder / "train_captions.csv").open("a", newline="", encoding="utf-8") as table:
        writer = csv.writer(table)
        writer.writerows([["black", "night"], ["empty", "-"], ["absent", "-"]])
        writer.writerows([["train_0000", "again"], ["up/../x", "-"]])
    (folder / "train_concepts.csv").write_text("ID,CUIs\ntrain_0000,C0040405;C0007776\n")
    return folder
