"""Texts of about one length are embedded together, and their features come back in order."""

from pathlib import Path

import pytest
import torch

from medclip_oc.config.schema import ModelConfig
from medclip_oc.data import loader
from medclip_oc.data.shards import ShardSet
from medclip_oc.evaluation import features
from medclip_oc.inference import embedder, feature_index
from medclip_oc.models import factory
from tests.support.reference import ONE


@pytest.mark.parametrize("at_once", [1, 17, 1024])
def test_features_are_those_of_padded_texts(
    tiny: ModelConfig, packed: Path, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    for module in (embedder, features, feature_index):
        monkeypatch.setattr(module, "SORTED", at_once)
    clip, shards = factory.build(tiny).on(ONE.device), ShardSet.open(str(packed), "train")
    model, pairs = embedder.Embedder(clip, ONE.device, 5, 0), loader.evaluation_pairs(shards, clip)
    captions = [shards.read(n).caption for n in range(48)]
    seen, embed = list[torch.Tensor](), clip.towers.embed_texts
    wanted = embed(clip.tokenizer(captions))
    assert clip.towers.cuts_text()
    watched = lambda tokens: seen.append(tokens) or embed(tokens)  # noqa: E731
    monkeypatch.setattr(clip.towers, "embed_texts", watched)
    how = {"batch_size": 5, "workers": 0, "precision": "fp32"}
    for find in (
        lambda: model.texts(captions)[0],
        lambda: features.embed_pairs(clip, pairs, ONE, **how).texts,
        lambda: torch.cat([rows for _, rows, _ in feature_index.embedded(model, shards)]),
    ):
        seen.clear()
        torch.testing.assert_close(find(), wanted, rtol=0, atol=5e-6)
        assert sum(map(len, seen)) == 48
        assert all(tokens[:, -1].any() for tokens in seen), "a column of padding was embedded"
