"""Rank captions: `python -m medclip_oc.zeroshot --checkpoint FILE --images A.jpg --texts "..."`."""

import csv
import json
import sys
from pathlib import Path
from typing import Any

from . import command
from .config import ZeroshotConfig
from .errors import InputError


def work(settings: ZeroshotConfig) -> None:
    """Rank the candidate captions for every image and print the rows."""
    _check(settings)
    import torch

    from . import features, images, rank, setup
    from .distributed import World, device_of

    world = World(0, 1, device_of(settings.device))
    setup.check_precision(settings.precision, world.device)
    clip, _ = setup.trained_clip(settings.checkpoint, world)
    how: dict[str, Any] = {"batch_size": settings.batch_size, "precision": settings.precision}

    def pixels(path: str) -> torch.Tensor:
        try:
            return clip.preprocess(images.decode(Path(path).read_bytes()).convert("RGB"))
        except (ValueError, OSError) as error:
            raise InputError(f"{path}: {error}") from error

    image_features = features.embed_images(clip, map(pixels, settings.images), world.device, **how)
    text_features = features.embed_texts(clip, settings.texts, world.device, **how)
    scale = clip.towers.inverse_temperature().item()
    rows = rank.rank_texts(
        settings.images, settings.texts, image_features, text_features, scale, settings.top
    )
    _print(rows, settings.format)


def _check(settings: ZeroshotConfig) -> None:
    for option in ("images", "texts"):
        if not getattr(settings, option):
            raise InputError(f"--{option}: give at least one")
    for number, text in enumerate(settings.texts, 1):
        if not text.strip():
            raise InputError(f"--texts: number {number} is empty")
    for path in settings.images:
        if not Path(path).is_file():
            what = "a folder, not an image" if Path(path).is_dir() else "no such file"
            raise InputError(f"--images: {path}: {what}")


def _print(rows: list[dict[str, Any]], form: str) -> None:
    if form == "json":
        print(json.dumps(rows, indent=2, ensure_ascii=False))
    elif form == "jsonl":
        print("\n".join(json.dumps(row, ensure_ascii=False) for row in rows))
    elif form == "csv":
        writer = csv.DictWriter(sys.stdout, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    else:
        _print_table(rows)


def _print_table(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        if row["rank"] == 1:
            print(f"{row['image']}\n  rank   cosine  probability  text")
        print(
            f"  {row['rank']:>4}  {row['cosine']:7.4f}  {row['probability']:11.4f}  {row['text']}"
        )


if __name__ == "__main__":
    command.main(
        work,
        ZeroshotConfig,
        prog="python -m medclip_oc.zeroshot",
        description="Rank candidate captions for images, best first.",
    )
