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
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script: tools/ is there

import yaml
from interpolate import InterpolateConfig, make_folder
from interpolate import main as interpolate
from make_phantoms import PhantomConfig, split_combinations, write_split

from medclip_oc.config.checks import Natural, Settings
from medclip_oc.errors import WorkError
from medclip_oc.runtime import command

ROOT = Path(__file__).resolve().parents[1]
MODALITIES = {"old": ("ct", "mr"), "new": ("us", "xray")}
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


SIZES = {False: Sizes(1600, 150, 20, 8, 128), True: Sizes(64, 32, 1, 1, 32)}  # True: quick


@dataclass
class ExperimentConfig(Settings):
    """What fine-tuning forgets, and what keeps it: an experiment on phantoms."""

    out: str
    """Folder for the data, the runs and result.json."""
    seed: Natural = 0
    """Of the pictures, the weights and the order of the data."""
    quick: bool = False
    """Almost no training: to see that it runs."""


def draw(config: ExperimentConfig, out: Path) -> dict[str, str]:
    """Shard folders of the old modalities and of the new ones."""
    from medclip_oc.packing.formats import open_source
    from medclip_oc.packing.pack import PackOptions, pack

    found, sizes = {}, SIZES[config.quick]
    for name, modalities in MODALITIES.items():
        source = out / f"{name}-{config.seed}-{sizes.train}" / "source"
        shards, held_out = source.with_name("shards"), sizes.held_out
        found[name] = str(shards)
        if (shards / "index.json").exists():  # the last that packing writes
            continue
        drawn = PhantomConfig(str(source), sizes.train, held_out, held_out, config.seed, size=80)
        for split, every in split_combinations(config.seed).items():
            write_split(drawn, split, [c for c in every if c.modality in modalities])
        pack(open_source(source), shards, PackOptions(samples_per_shard=500))
    return found


def settings(shards: str, folder: Path, seed: int, epochs: int, batch: int) -> dict[str, Any]:
    """A run of the demo's model, by dotted names."""
    demo = (ROOT / "configs" / "tiny_cpu.yaml").read_text(encoding="utf-8")
    return {
        "model": yaml.safe_load(demo)["model"],
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


def train(run: tuple[str, dict[str, Any]]) -> Path:
    """The last checkpoint of a named run, trained unless an earlier call came that far."""
    name, values = run
    folder = Path(values["run.folder"])
    file, last = folder.with_name(f"{folder.name}.yaml"), folder / "checkpoints" / "last.pt"
    text = yaml.safe_dump(values)
    if last.exists() and file.exists() and file.read_text(encoding="utf-8") == text:
        return last
    last.unlink(missing_ok=True)
    file.write_text(text, encoding="utf-8")
    words = [sys.executable, "-m", "medclip_oc.train", "--config", str(file)]
    # one thread each: more than there are cores would spin against each other
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise WorkError(f"{name}: {done.stderr.strip().splitlines()[-1]}")
    print(f"trained: {name}", file=sys.stderr)
    return last


def recall(file: Path, shards: str) -> float:
    """Mean of R@1, R@5 and R@10 both ways, over the test split."""
    import torch

    from medclip_oc.config.evaluation import EvaluateConfig
    from medclip_oc.evaluation import sources
    from medclip_oc.runtime.distributed import World

    how: dict[str, Any] = {"duplicates": "keep", "interval_draws": 0, "workers": 0}
    asked = EvaluateConfig(checkpoint=str(file), data=shards, split="test", **how)
    measured, _ = sources.evaluate(asked, World(0, 1, torch.device("cpu")))
    return float(measured.record["mean_recall"])


def forgetting(config: ExperimentConfig, out: Path) -> dict[str, Any]:
    """Train, fine-tune in every way, measure both; prints the table."""
    sizes, shards = SIZES[config.quick], draw(config, out)
    old_run = settings(shards["old"], out / "before", config.seed, sizes.old_epochs, sizes.batch)
    start = train(("before", old_run))
    runs = {}
    for number, (name, changes) in enumerate(METHODS.items()):
        folder = out / f"method{number}"
        base = settings(shards["new"], folder, config.seed, sizes.new_epochs, sizes.batch)
        runs[name] = base | {"optim.lr": FINE_LR, "model.pretrained": str(start)} | changes
    with ThreadPoolExecutor(2) as pool:  # two runs at a time
        trained = dict(zip(runs, pool.map(train, runs.items()), strict=True))
    files = {"before fine-tuning": start, **trained}
    files["EMA 0.98 of plain"] = files["plain"].with_name("ema.pt")
    alpha, chosen = wise(start, files["plain"], shards, out / "wise")
    files[f"WiSE-FT of plain, alpha {alpha:g}"] = chosen
    rows = {
        name: {which: recall(file, where) for which, where in shards.items()}
        for name, file in files.items()
    }
    print(forgetting_table(rows, sizes.held_out))
    return {"rows": rows, "alpha": alpha}


def wise(start: Path, fine: Path, shards: dict[str, str], out: Path) -> tuple[float, Path]:
    """tools/interpolate.py on the validation pairs of both: alpha, and the file."""
    data: dict[str, Any] = {"data": shards["new"], "probe": shards["old"], "workers": 0}
    files: dict[str, Any] = {"fine_tuned": [str(fine)], "zero_shot": str(start), "out": str(out)}
    interpolate(InterpolateConfig(**data, **files, device="cpu"))
    record = json.loads((out / "interpolation.json").read_text(encoding="utf-8"))
    return float(record["alpha"]), out / "chosen.pt"


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
    out = make_folder(config.out)
    result = forgetting(config, out)
    (out / "result.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    command.run(main, ExperimentConfig)
