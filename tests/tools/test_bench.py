"""The benchmarks run and clean up, and their peers do what their descriptions say."""

import tempfile
from pathlib import Path
from typing import Any

import pack
import pytest
import rank
import run
import torch
from step_peers import accumulated, batch, cached, whole, worst_error

from medclip_oc.config.schema import ModelConfig
from medclip_oc.contrastive.reference import gradients
from medclip_oc.inference.image_inputs import ImageSet, find
from medclip_oc.models import factory
from tests.support.tiny_dataset import jpeg, write_kaggle
from tests.support.tiny_models import TINY

MODEL = ModelConfig(arch="bench-test", definition=TINY)


def test_packing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_kaggle(tmp_path / "source", {"train": 8, "valid": 1, "test": 1})
    (tmp_path / "work").mkdir()
    config = pack.Config(str(source), 4, workers=1, rounds=1, samples_per_shard=16)
    config.slices = 2
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "work"))
    lines: list[dict[str, Any]] = [comparison.line() for comparison in pack.run(config)]
    units = [line["unit"] for line in lines]
    assert units == ["images/s"] * 2 + ["s"] * len(pack.SYNTAXES)
    assert all("40 images" in line["case"] for line in lines[:2])
    assert min(line["better"] for line in lines) > 0
    assert list((tmp_path / "work").iterdir()) == []  # nothing is left


def test_both_sides_of_ranking_do_the_same_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(3):
        (tmp_path / f"{n}.jpg").write_bytes(jpeg(n))
    images = ImageSet([find([str(tmp_path)], None).places[n % 3] for n in range(10)])
    embedder = rank.open_model(MODEL, 4, workers=0)
    towers, seen = embedder.clip.towers, list[tuple[str, int]]()
    for name in ("embed_images", "embed_texts"):
        embed = getattr(towers, name)

        def watched(batch: torch.Tensor, name: str = name, embed: Any = embed) -> Any:
            seen.append((name, len(batch)))
            return embed(batch)

        monkeypatch.setattr(towers, name, watched)
    rank.whole(embedder, images, rank.texts(6))
    ours, seen[:] = sorted(seen), []
    rank.forwards(embedder, 10, rank.texts(6))
    assert sorted(seen) == ours
    assert ours == [("embed_images", n) for n in (2, 4, 4)] + [("embed_texts", n) for n in (2, 4)]


@pytest.mark.parametrize("chunks", [2, 4])
def test_accumulation_is_exact_but_for_the_temperature(chunks: int) -> None:
    """As open_clip's: the gradient of one big batch, the temperature's once per chunk."""
    one = factory.build(MODEL).towers.train()
    given = batch(one, 16)
    loss = whole(one, *given)()
    wanted = gradients(one)
    torch.testing.assert_close(accumulated(one, *given, 16 // chunks)(), loss)
    found = gradients(one)
    scale = "clip.logit_scale"
    torch.testing.assert_close(found[scale], chunks * wanted[scale])
    rest = {name: g for name, g in wanted.items() if name != scale}
    assert worst_error(found, rest) < 1e-5
    torch.testing.assert_close(cached(one, *given, 16 // chunks)(), loss)
    assert worst_error(gradients(one), wanted) < 1e-5


@pytest.mark.parametrize("what", run.RUNS.values(), ids=run.RUNS)
def test_both_sides_take_the_same_steps(what: run.Run) -> None:
    """open_clip_train rounds batches up to the same number for each loader process."""
    assert what.pairs % (what.peer_batch * run.WORKERS) == 0
    assert what.pairs % what.batch == what.batch % what.peer_batch == what.batch % what.chunk == 0


@pytest.mark.slow
def test_whole_runs(old_webdataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_kaggle(tmp_path / "source", {"train": 16, "valid": 1, "test": 1})
    tiny = run.Run(TINY, 64, 32, 16, 8, run.FROZEN, epochs=2)
    monkeypatch.setitem(run.RUNS, "lit", tiny)
    given = (str(source), str(source / "train_captions.csv"), str(old_webdataset), ["lit"])
    config = run.Config(*given, rounds=1, profile=str(tmp_path / "profile.png"))
    drawn, draw = list[dict[str, float]](), run.draw
    monkeypatch.setattr(run, "draw", lambda parts, *rest: (drawn.append(parts), draw(parts, *rest)))
    [line] = [comparison.line() for comparison in run.run(config)]
    assert line["unit"] == "s"
    assert min(line["ours"], line["theirs"]) > 1
    assert min(line["ours_peak_mb"], line["theirs_peak_mb"]) > 200
    assert line["ours_loss"] == pytest.approx(line["theirs_loss"], rel=0.2)  # from the same weights
    assert min(drawn[0].values()) > 0  # each part's functions are still called so
    assert (tmp_path / "profile.png").stat().st_size > 5000
