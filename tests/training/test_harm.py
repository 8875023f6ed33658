"""Fine-tuning never ends below its start: 20 bad settings, planted on a small pretrained CLIP.

It learnt CT and MR phantoms, is fine-tuned on ultrasound and X-ray, and validated on all four.
"""

import re
from pathlib import Path
from typing import Any

import make_phantoms
import numpy as np
import pandas as pd
import pytest
import torch
from forgetting import MODALITIES

from medclip_oc.models import checkpoint
from medclip_oc.packing.formats import open_source
from medclip_oc.packing.pack import pack
from tests.support.cli import records, run_training, write_config
from tests.support.interrupted import weights

pytestmark = pytest.mark.slow

OLD, NEW = MODALITIES.values()
VISION = {"image_size": 64, "patch_size": 16, "width": 64, "head_width": 32, "layers": 3}
TEXT = {"context_length": 32, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2}
DEFINITION = {"embed_dim": 64, "vision_cfg": VISION, "text_cfg": TEXT}
MODEL = {"arch": "harm-test", "definition": DEFINITION}
BATCH = {"global_batch_size": 64, "micro_batch_size": 64, "precision": "fp32"}
CHANCE = (1 + 5 + 10) / 3 / 96  # mean recall over the 96 pairs


def recaptioned(source: Path, captions: Any, out: Path) -> None:
    """The training pairs of a source with other captions, as shards."""
    table = pd.read_csv(file := source / "train_captions.csv")
    table.assign(Caption=captions(table.Caption)).to_csv(file, index=False)
    pack(open_source(source), out)


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of shards and of the start's weights."""
    folder, every = tmp_path_factory.mktemp("harm"), make_phantoms.split_combinations(0)
    for known, *counts in ((OLD, 640, 96, 96), (NEW, 256, 1, 1)):
        source = folder / known[0] / "source"
        drawn = make_phantoms.PhantomConfig(str(source), *counts, size=80)
        for split, each in every.items():
            mine = [c for c in each if split != "train" or c.modality in known]
            make_phantoms.write_split(drawn, split, mine)
        pack(open_source(source), folder / known[0] / "shards")
    recaptioned(folder / "us" / "source", np.random.default_rng(0).permutation, folder / "mixed")
    recaptioned(folder / "us" / "source", lambda texts: texts[0], folder / "one")
    own = {"model": MODEL, "train": BATCH | {"epochs": 10}, "optim": {"lr": 2e-3}}
    file = write_config(folder / "ct" / "shards", folder, **own, valid={"every_epochs": None})
    assert run_training(file) == 0
    torch.save(state := weights(folder / "run"), folder / "start.pt")
    torch.save(state | {"logit_scale": torch.tensor(100.0).log()}, folder / "clamped.pt")
    return folder


def crops(low: float, **others: Any) -> dict[str, Any]:
    return {"data__augment": {"scale": [low, 1.0], "rotation_degrees": 2.0} | others}


def rate(lr: float, **others: Any) -> dict[str, Any]:
    return {"optim": {"lr": lr, "warmup_steps": 2} | others}


LOST, GUESSES = "the start: no gain", "learning rate.*guessing has 4.16"
BAD: dict[str, tuple[str, dict[str, Any]]] = {
    "rate 10 times too high": (GUESSES, rate(1e-2)),
    "rate 100 times too high": (GUESSES, rate(0.1)),
    "no warm-up": (GUESSES, rate(1e-2, warmup_steps=0)),
    "no clipping": (GUESSES, rate(1e-2, clip_norm=None)),
    "wrong mean and std": ("no gain", {"preprocess": {"mean": [0.0] * 3, "std": [1.0] * 3}}),
    "mean, std swapped": ("over", {"preprocess": {"mean": [0.27] * 3, "std": [0.46] * 3}}),
    "captions shuffled": (LOST, {"shards": "mixed"}),
    "one caption for all": (LOST, {"shards": "one"}),
    "temperature at its clamp": (GUESSES, {"weights": "clamped.pt"} | rate(1e-2)),
    "batches of two": (LOST, {"train__global_batch_size": 2, "train__max_steps": 12}),
    "weight decay": (LOST, rate(3e-4, weight_decay=1000.0)),
    "label smoothing": (LOST, {"loss": {"label_smoothing": 0.9}}),
    "crops": (LOST, crops(0.05)),
    "any rotation": (LOST, crops(0.95, rotation_degrees=180.0)),
    "mirrored, any hue": (LOST, crops(0.95, flip=True, hue=0.5)),
    "brightness, contrast": (LOST, crops(0.95, brightness=0.99, contrast=0.99)),
    "no memory of gradients": (GUESSES, rate(1e-2, betas=[0.0, 0.0])),
    "LoRA's rate": (LOST, rate(0.3) | {"lora": {"rank": 8}}),
    "rate in bf16": (GUESSES, rate(1e-2) | {"train__precision": "bf16"}),
    "projections' rate": (LOST, rate(0.1, freeze="all_but_projections")),
}


@pytest.mark.parametrize("name", ["sound", *BAD])
def test_best_is_never_below_the_start(start: Path, tmp_path: Path, name: str) -> None:
    sound = rate(1e-3) | {"train__epochs": 12}
    words, changes = BAD.get(name, ("mean_recall \\+.* over the start on 96 test pairs", sound))
    own = rate(3e-4) | {"train": BATCH | {"epochs": 3}, "valid": {}} | changes
    model = MODEL | {"pretrained": str(start / own.pop("weights", "start.pt"))}
    model |= {"preprocess": own.pop("preprocess", None)}
    data = {"model": model, "data__train": str(start / own.pop("shards", "us/shards"))}
    run = tmp_path / "run"
    assert run_training(write_config(start / "ct" / "shards", tmp_path, **data, **own)) == 0
    said = (run / "log.txt").read_text().splitlines()[-1]
    scores = [r["valid/mean_recall"] for r in records(run) if "valid/mean_recall" in r]
    best = checkpoint.load(run / "checkpoints" / "best.pt")
    assert best["metrics"]["mean_recall"] == max(scores) >= scores[0]
    assert re.search(words, said), said
    assert (best["step"] == 0) == (LOST in said)
    assert scores[0] > 4 * CHANCE or "preprocess" in changes
