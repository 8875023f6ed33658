"""The benchmark of ranking: both sides embed as many images and texts."""

from pathlib import Path

import pytest
import rank
import torch

from medclip_oc.config.schema import ModelConfig
from medclip_oc.errors import InputError
from medclip_oc.inference.image_inputs import find
from tests.support.tiny_dataset import jpeg
from tests.support.tiny_models import TINY


def test_both_sides_do_the_same_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for n in range(3):
        (tmp_path / f"{n}.jpg").write_bytes(jpeg(n))
    images = rank.repeated(find([str(tmp_path)], None), 10, tmp_path / "more")
    embedder = rank.open_model(ModelConfig(arch="bench-test", definition=TINY), 4, workers=0)
    towers, seen = embedder.clip.towers, list[tuple[str, int]]()
    for name in ("embed_images", "embed_texts"):
        embed = getattr(towers, name)

        def watched(batch: torch.Tensor, name: str = name, embed: object = embed) -> torch.Tensor:
            seen.append((name, len(batch)))
            return embed(batch)  # type: ignore[operator]

        monkeypatch.setattr(towers, name, watched)
    rank.whole(embedder, images, rank.texts(6))
    ours, seen[:] = sorted(seen), []
    rank.forwards(embedder, 10, rank.texts(6))
    assert sorted(seen) == ours
    assert ours == [("embed_images", n) for n in (2, 4, 4)] + [("embed_texts", n) for n in (2, 4)]


def test_settings() -> None:
    with pytest.raises(InputError, match="--images: 0 is not at least 1"):
        rank.Config("x", images=0)
    with pytest.raises(InputError, match="--source: nowhere: no such file or folder"):
        next(rank.run(rank.Config("nowhere")))
