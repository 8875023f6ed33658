"""Pictures of maps, and the files that zeroshot --explain writes."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medclip_oc import zeroshot
from medclip_oc.config.inference import ZeroshotConfig
from medclip_oc.models import factory
from medclip_oc.relevance.maps import Relevance, explain
from medclip_oc.relevance.overlay import overlay
from tests.support.cli import call
from tests.support.tiny_dataset import picture


def test_only_what_is_relevant_is_coloured() -> None:
    values = np.repeat(np.float32([[0, 1]]), 100, axis=1).repeat(100, axis=0)
    words = [("left", 0.1), ("clear", -0.2), *[("word", 0.0)] * 100]
    shown = np.array(overlay(picture(1, (200, 100)), Relevance("", 0.3, values, words), width=400))
    assert np.ptp(shown[:200, :190], axis=-1).max() == 0
    assert np.ptp(shown[:200, 210:], axis=-1).min() > 40
    assert (shown[200:] == (0, 100, 200)).all(-1).any(), "blue behind what speaks against"


def test_maps_of_the_best_texts_are_written(
    tmp_path: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, maps = [tmp_path / name for name in ("x.png", "x.bmp", "x.2.png")], tmp_path / "maps"
    texts = ["a mass", "no finding", "pleural effusion"]
    for n, file in enumerate(images):
        picture(n, (60 + n, 50)).save(file)
    (tmp_path / "text").write_text("no picture")
    given = ["--checkpoint", tiny_checkpoint, "--images", *images, "--texts", *texts]
    for words, said in {
        ("--explain", tmp_path): "the folder is not empty",
        ("--explain", images[0]): "no folder (File exists)",
        ("--explain", maps, "--images", tmp_path / "text"): "undecodable",
        ("--explain", maps, "--templates", "radiology"): "a candidate must be one text; one is (",
        ("--explain", maps, "--threshold", 0.1): "--threshold: not with --explain",
    }.items():
        assert call(zeroshot.main, ZeroshotConfig, *given, *words) == 2
        assert said in capsys.readouterr().err
    given += ["--explain", maps, "--explain-top", 2]
    assert call(zeroshot.main, ZeroshotConfig, *given, "--top", 1) == 0
    stems = [f"{stem}-{k}" for stem in ("x", "x.2", "x.2.2") for k in (1, 2)]
    assert {p.name for p in maps.iterdir()} == {f"{s}.{e}" for s in stems for e in ("npy", "png")}
    every = explain(factory.load(tiny_checkpoint), Image.open(images[1]), texts)
    _, second, _ = sorted(every, key=lambda each: -each.cosine)
    assert np.array_equal(np.load(maps / "x.2-2.npy"), second.values)
