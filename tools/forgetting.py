"""What fine-tuning forgets, and what each way of fine-tuning keeps: an experiment on phantoms.

    python tools/forgetting.py --out runs/forgetting

A small CLIP learns CT and MR phantoms from scratch, and is fine-tuned on ultrasound and X-ray, in
every way that medclip_oc has. Measured are held-out pairs (combinations that nobody trained on) of
the new modalities, and of the old ones. Alpha of WiSE-FT is chosen on the validation pairs, as
tools/interpolate.py does.

Some five minutes on two free cores; a call that was cut short resumes. Every number depends on
--seed alone.
"""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script: tools/ is there

from medclip_oc.errors import InputError, WorkError
from medclip_oc.runtime import command

if TYPE_CHECKING:
    from make_phantoms import Combination

ROOT = Path(__file__).resolve().parents[1]
OLD, NEW = ("ct", "mr"), ("us", "xray")
SPLITS = ("train", "valid", "test")
MODEL: dict[str, Any] = {
    "arch": "phantom-clip",
    "definition": {
        "embed_dim": 128,
        "vision_cfg": {
            "image_size": 64,
            "patch_size": 16,
            "width": 128,
            "head_width": 32,
            "layers": 4,
        },
        "text_cfg": {
            "context_length": 32,
            "vocab_size": 49408,
            "width": 64,
            "heads": 4,
            "layers": 2,
        },
    },
}
# ways of fine-tuning, by their settings; the running average comes with the plain run
FINE_LR = 1e-3
METHODS: dict[str, dict[str, Any]] = {
    "plain": {"ema.decay": 0.98},
    "layer decay 0.6": {"optim.image_layer_decay": 0.6, "optim.text_layer_decay": 0.6},
    "LoRA, rank 8": {"lora.rank": 8, "lora.alpha": 16.0, "optim.lr": 2e-3},
    "frozen image tower": {"optim.freeze": "image"},
}


class Sizes(NamedTuple):
    """How much is drawn and trained."""

    train: int
    held_out: int
    old_epochs: int
    new_epochs: int
    batch: int


@dataclass
class ExperimentConfig:
    """What fine-tuning forgets, and what keeps it: an experiment on phantoms."""

    out: str
    """Folder for the data, the runs and result.json."""
    seed: int = 0
    """Of the pictures, the weights and the order of the data."""
    quick: bool = False
    """Almost no training: to see that it runs."""

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise InputError(f"--seed {self.seed}: at least 0")

    @property
    def sizes(self) -> Sizes:
        """How much is drawn and trained."""
        return Sizes(64, 32, 1, 1, 32) if self.quick else Sizes(1600, 150, 20, 8, 128)


# ------------------------------------------------------------------------------------------ data


def draw(
    folder: Path, combinations: dict[str, list["Combination"]], counts: dict[str, int], seed: int
) -> str:
    """Draw phantoms of these combinations and pack them; returns the shard folder.

    Args:
        folder: where to.
        combinations: of each split, which take turns.
        counts: pairs of each split.
        seed: of the pictures.
    """
    import make_phantoms
    import numpy as np
    import phantom_pictures
    from PIL import Image

    from medclip_oc.packing.formats import open_source
    from medclip_oc.packing.pack import PackOptions, pack

    source, shards = folder / "source", folder / "shards"
    if (shards / "index.json").exists():  # the last that packing writes
        return str(shards)
    for split, count in counts.items():
        images = source / f"{split}_images" / split
        images.mkdir(parents=True, exist_ok=True)
        rows = [["ID", "Caption"]]
        for index in range(count):
            rng = np.random.default_rng([seed, SPLITS.index(split), index])
            drawn = combinations[split][index % len(combinations[split])]
            picture = phantom_pictures.draw(*drawn, rng=rng, pixels=80)
            Image.fromarray(picture.pixels).save(images / f"{split}_{index:05}.jpg", quality=90)
            rows.append([f"{split}_{index:05}", make_phantoms.caption(drawn, rng)])
        make_phantoms.write_csv(source / f"{split}_captions.csv", rows)
    pack(open_source(source), shards, PackOptions(samples_per_shard=500))
    return str(shards)


def old_and_new(config: ExperimentConfig, out: Path) -> dict[str, str]:
    """Shard folders of the old modalities and of the new ones."""
    import make_phantoms

    found, sizes = {}, config.sizes
    every = make_phantoms.split_combinations(config.seed)
    for name, modalities in (("old", OLD), ("new", NEW)):
        known = {split: [c for c in every[split] if c.modality in modalities] for split in SPLITS}
        counts = {"train": sizes.train, "valid": sizes.held_out, "test": sizes.held_out}
        data = out / f"{name}-{config.seed}-{sizes.train}"
        found[name] = draw(data, known, counts, config.seed)
    return found


# -------------------------------------------------------------------------------------- training


def settings(shards: str, folder: Path, seed: int, epochs: int, batch: int) -> dict[str, Any]:
    """A run, by dotted names."""
    return {
        "run.folder": str(folder),
        "run.seed": seed,
        "run.overwrite": True,
        "data.train": shards,
        "data.valid": shards,
        "data.workers": 0,
        "train.global_batch_size": batch,
        "train.micro_batch_size": batch // 2,
        "train.epochs": epochs,
        "train.precision": "fp32",
        "optim.lr": 1e-3,
        "valid.every_epochs": None,
    }


def run_all(runs: dict[str, dict[str, Any]]) -> None:
    """Train each that an earlier call didn't, two at a time."""
    import yaml

    def one(item: tuple[str, dict[str, Any]]) -> None:
        name, values = item
        folder = Path(values["run.folder"])
        file = folder.with_name(f"{folder.name}.yaml")
        file.parent.mkdir(parents=True, exist_ok=True)
        tree: dict[str, Any] = {"model": MODEL}
        for key, value in values.items():
            section, _, word = key.partition(".")
            tree[section] = {**tree.get(section, {}), word: value}
        text, last = yaml.safe_dump(tree), folder / "checkpoints" / "last.pt"
        if last.exists() and file.exists() and file.read_text(encoding="utf-8") == text:
            return  # an earlier call came this far
        last.unlink(missing_ok=True)
        file.write_text(text, encoding="utf-8")
        words = [sys.executable, "-m", "medclip_oc.train", "--config", str(file)]
        # one thread each: more than there are cores would spin against each other
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        done = subprocess.run(words, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise WorkError(f"{name}: {done.stderr.strip().splitlines()[-1]}")
        print(f"trained: {name}", file=sys.stderr)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(one, runs.items()))


def recall(file: Path, shards: str) -> float:
    """Mean of R@1, R@5 and R@10 both ways, over the test split."""
    import torch

    from medclip_oc.config.evaluation import MeasureConfig
    from medclip_oc.data import loader
    from medclip_oc.evaluation import features, retrieval
    from medclip_oc.models import factory
    from medclip_oc.runtime.distributed import World

    world = World(0, 1, torch.device("cpu"))
    clip = factory.load(file)
    pairs = loader.evaluation_pairs(loader.open_shards(shards, "test", world), clip)
    embedded = features.embed_pairs(
        clip, pairs, world, batch_size=64, workers=0, precision="fp32", stop=lambda: False
    )
    settings = MeasureConfig(duplicates="keep", interval_draws=0)
    return float(retrieval.measure(embedded, settings, nearest=False).record["mean_recall"])


# ------------------------------------------------------------------------------------ experiment


def forgetting(config: ExperimentConfig, out: Path) -> dict[str, Any]:
    """Train, fine-tune in every way, measure both; prints the table."""
    sizes, shards = config.sizes, old_and_new(config, out)
    before = out / "before"
    old_run = settings(shards["old"], before, config.seed, sizes.old_epochs, sizes.batch)
    run_all({"before": old_run})
    start = before / "checkpoints" / "last.pt"
    runs = {}
    for number, (name, changes) in enumerate(METHODS.items()):
        folder = out / f"method{number}"
        base = settings(shards["new"], folder, config.seed, sizes.new_epochs, sizes.batch)
        runs[name] = base | {"optim.lr": FINE_LR, "model.pretrained": str(start)} | changes
    run_all(runs)
    files = {"before fine-tuning": start}
    for name, values in runs.items():
        files[name] = Path(values["run.folder"]) / "checkpoints" / "last.pt"
    files["EMA 0.98 of plain"] = files["plain"].with_name("ema.pt")
    alpha, files["WiSE-FT of plain"] = wise(start, files["plain"], shards, out)
    rows = {
        name: {which: recall(file, where) for which, where in shards.items()}
        for name, file in files.items()
    }
    rows = {f"{name}, alpha {alpha:g}" if "WiSE" in name else name: v for name, v in rows.items()}
    print(forgetting_table(rows, sizes.held_out))
    return {"rows": rows, "alpha": alpha}


def wise(start: Path, fine: Path, shards: dict[str, str], out: Path) -> tuple[float, Path]:
    """tools/interpolate.py on the validation pairs of both: alpha, and the file."""
    import interpolate

    interpolate.main(
        interpolate.InterpolateConfig(
            fine_tuned=[str(fine)],
            zero_shot=str(start),
            data=shards["new"],
            probe=shards["old"],
            out=str(out / "wise"),
            workers=0,
            device="cpu",
        )
    )
    record = json.loads((out / "wise" / "interpolation.json").read_text(encoding="utf-8"))
    return float(record["alpha"]), out / "wise" / "chosen.pt"


def forgetting_table(rows: dict[str, dict[str, float]], pool: int) -> str:
    """In per cent; how much of what plain fine-tuning forgets is kept, and what it costs."""
    start, plain = rows["before fine-tuning"], rows["plain"]
    forgotten = start["old"] - plain["old"]
    lines = [
        f"mean recall (of R@1, R@5 and R@10, both ways) in pools of {pool}: new modalities, old "
        "ones; share kept of what plain forgets; share lost of plain's on the new ones",
        "| method | new | old | kept | lost |",
        "|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        kept = (row["old"] - plain["old"]) / forgotten if forgotten else float("nan")
        lost = 1 - row["new"] / plain["new"]
        told = "" if name in ("before fine-tuning", "plain") else f"{kept:.0%} | {lost:.0%}"
        cells = f"{100 * row['new']:.1f} % | {100 * row['old']:.1f} %"
        lines.append(f"| {name} | {cells} | {told or ' | '} |")
    return "\n".join(lines)


def main(config: ExperimentConfig) -> None:
    """Run the experiment, and keep its result."""
    import torch

    torch.set_num_threads(1)
    out = Path(config.out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out: {out} can't be written ({error.strerror})") from error
    result = forgetting(config, out)
    (out / "result.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    command.run(main, ExperimentConfig)
