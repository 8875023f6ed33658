"""Go part of the way back to the weights before fine-tuning (WiSE-FT), or average several runs.

    python tools/interpolate.py --fine-tuned runs/x/checkpoints/best.pt --zero-shot openai \
        --alphas 0:1:0.1 --data shards/rocov2 --probe shards/general --out runs/x/wise

Along alpha, from 0 (before) to 1 (fine-tuned), it measures retrieval on --data, and on --probe what
the model knew before. It prints a table, draws the curve, and saves the chosen weights: of those
that lose at most --tolerance of the best score on --data, the best on the probe.
Several --fine-tuned files are averaged first (--soup uniform or greedy).
"""

import json
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script: tools/ is there

from medclip_oc.config import checks
from medclip_oc.config.schema import ModelConfig
from medclip_oc.errors import InputError, WorkError
from medclip_oc.runtime import command

if TYPE_CHECKING:
    from medclip_oc.models.averaging import State
    from medclip_oc.models.clip import Clip
    from medclip_oc.runtime.distributed import World

_MOST_STEPS = 1000


@dataclass
class InterpolateConfig(checks.Settings):
    """Interpolate between the weights before and after fine-tuning; average several runs."""

    fine_tuned: list[str]
    """Checkpoints written by training; several are averaged first."""
    data: str | list[str]
    """Pairs of the new domain: a shard folder, brace pattern, glob or list of tars."""
    out: str
    """Folder for chosen.pt, interpolation.json and curve.png."""
    zero_shot: str = "start"
    """The weights before: an open_clip tag, a file, or `start`: what the run started from."""
    alphas: str = "0:1:0.1"
    """FROM:TO:STEP, or numbers with commas; 0 is before, 1 after fine-tuning."""
    split: checks.Split = "valid"
    """Split of --data, where it is a shard folder."""
    probe: str | list[str] | None = None
    """Pairs of what the model knew before, see --data."""
    probe_split: checks.Split = "valid"
    """Split of --probe."""
    tolerance: checks.ShareBelowOne = 0.1
    """Share of the best score on --data that may be given up for the probe."""
    soup: Literal["uniform", "greedy"] = "uniform"
    """How several checkpoints are averaged: all of them, or those that help on --data."""
    batch_size: checks.Count = 64
    """Pairs embedded at once."""
    workers: checks.Natural = 2
    """Loader processes."""
    precision: checks.Precision = "fp32"
    """bf16 (CPU and CUDA), fp16 (CUDA), fp32."""
    device: checks.Device = "auto"
    """auto: CUDA where there is a GPU, else the CPU."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(bool(self.fine_tuned), "fine_tuned", "at least one checkpoint")


def alphas(text: str) -> list[float]:
    """The numbers that `0:1:0.1` or `0,0.5,1` stand for, in [0, 1]."""
    try:
        if ":" in text:
            first, last, step = (float(part) for part in text.split(":"))
            count = (last - first) / step + 1.001
            steps = range(int(count) if count <= _MOST_STEPS else 0)
            found = [round(first + n * step, 9) for n in steps]
        else:
            found = [float(part) for part in text.split(",")]
    except (ValueError, ArithmeticError):
        found = []
    if not found or any(not 0 <= alpha <= 1 for alpha in found):
        raise InputError(
            f"--alphas: {text!r} is not FROM:TO:STEP or numbers with commas, in [0, 1]"
        )
    return found


class Scorer:
    """Measures weights by retrieval; one model is refilled again and again."""

    def __init__(self, clip: "Clip", world: "World", settings: InterpolateConfig) -> None:
        from medclip_oc.data.loader import evaluation_pairs, open_shards

        self.clip, self.world, given = clip, world, vars(settings)
        self.how = {key: given[key] for key in ("batch_size", "workers", "precision")}
        places = {
            "data": (settings.data, settings.split),
            "probe": (settings.probe, settings.probe_split),
        }
        self.sets = {
            name: evaluation_pairs(open_shards(where, split, world), clip)
            for name, (where, split) in places.items()
            if where is not None
        }

    def __call__(self, state: "State") -> dict[str, float]:
        """The mean recall of each set, in [0, 1]."""
        return {name: self.score(state, name) for name in self.sets}

    def score(self, state: "State", name: str) -> float:
        """The mean recall of one set."""
        from medclip_oc.evaluation.retrieval import evaluate

        self.clip.towers.clip.load_state_dict(state)
        measured = evaluate(self.clip, self.sets[name], self.world, **self.how)
        return float(measured.record["mean_recall"])


def weights_before(settings: InterpolateConfig, content: dict[str, Any]) -> "State":
    """What --zero-shot stands for, for the model of a fine-tuned checkpoint."""
    from medclip_oc.models import factory, lora

    start, trained = settings.zero_shot, ModelConfig(**content["config"]["model"])
    if start != "start":
        trained = replace(trained, pretrained=start, pretrained_image=None, pretrained_text=None)
    clip = factory.build(trained, seed=content["config"]["run"]["seed"])
    return lora.plain_state(clip.towers)


def choose(rows: list[dict[str, float]], tolerance: float) -> dict[str, float]:
    """Of the rows that lose at most `tolerance` of the best, that which knows most of before."""
    best = max(row["data"] for row in rows)
    near = [row for row in rows if row["data"] >= (1 - tolerance) * best]
    if "probe" in rows[0]:
        return max(near, key=lambda row: (row["probe"], row["data"]))
    return max(rows, key=lambda row: row["data"])


def table(rows: list[dict[str, float]], chosen: dict[str, float]) -> str:
    """Alpha and scores in per cent, a line each."""
    names = [name for name in ("data", "probe") if name in rows[0]]
    lines = ["mean recall (of R@1, R@5 and R@10, both ways):"]
    lines.append(f"{'alpha':>8}" + "".join(f"{name:>10}" for name in names))
    for row in rows:
        cells = "".join(f"{100 * row[name]:>8.1f} %" for name in names)
        mark = "  <- chosen" if row is chosen else ""
        lines.append(f"{row['alpha']:>8g}{cells}{mark}")
    return "\n".join(lines)


def draw(rows: list[dict[str, float]], chosen: dict[str, float], file: Path) -> None:
    """The curve: score on the data against score on the probe, or against alpha."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4.5), layout="constrained")
    axes = figure.subplots()
    probed = "probe" in rows[0]
    x = [100 * row["probe"] if probed else row["alpha"] for row in rows]
    y = [100 * row["data"] for row in rows]
    axes.plot(x, y, marker="o")
    for row, place in zip(rows, zip(x, y, strict=True), strict=True):
        axes.annotate(f" {row['alpha']:g}", place, fontsize=8)
    axes.set(xlabel="mean recall on the probe, %" if probed else "alpha")
    axes.set(ylabel="mean recall on the data, %", title=f"chosen: alpha {chosen['alpha']:g}")
    figure.savefig(file, dpi=130)


def main(settings: InterpolateConfig) -> None:
    """Average, measure, choose, save."""
    steps = alphas(settings.alphas)  # before anything that takes time
    out = make_folder(settings.out)
    from medclip_oc.models import averaging, checkpoint, factory
    from medclip_oc.runtime.devices import check_precision, device_of
    from medclip_oc.runtime.distributed import World

    world = World(0, 1, device_of(settings.device))
    check_precision(settings.precision, world.device)
    contents = {file: checkpoint.load(file) for file in settings.fine_tuned}
    states: dict[str, State] = {file: dict(c["state_dict"]) for file, c in contents.items()}
    content = contents[settings.fine_tuned[0]]
    before = weights_before(settings, content)
    averaging.check_alike({**states, f"--zero-shot {settings.zero_shot}": before})
    clip = factory.restore(content, settings.fine_tuned[0]).on(world.device)
    scorer = Scorer(clip, world, settings)
    after, joined = soup(settings, states, scorer)
    rows = []
    for alpha in steps:
        rows.append({"alpha": alpha, **scorer(averaging.interpolated(before, after, alpha))})
        print(f"alpha {alpha:g} done", file=sys.stderr)
    chosen = choose(rows, settings.tolerance)
    about = {"zero_shot": settings.zero_shot, "fine_tuned": joined, "alpha": chosen["alpha"]}
    try:
        record = about | {"data": settings.data, "probe": settings.probe, "rows": rows}
        (out / "interpolation.json").write_bytes(json.dumps(record, indent=2).encode() + b"\n")
        draw(rows, chosen, out / "curve.png")
    except OSError as error:
        raise WorkError(f"--out: {out} can't be written ({error.strerror})") from error
    kept = {key: value for key, value in content.items() if key not in ("format", "training")}
    state = averaging.interpolated(before, after, chosen["alpha"])
    checkpoint.save(out / "chosen.pt", {**kept, "state_dict": state, "interpolation": about})
    print(table(rows, chosen))
    print(f"alpha {chosen['alpha']:g} is in {out / 'chosen.pt'}")


def make_folder(out: str) -> Path:
    """The folder for the results, before hours are spent on them."""
    try:
        Path(out).mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out).close()
    except OSError as error:
        raise InputError(f"--out: {out} can't be written ({error.strerror})") from error
    return Path(out)


def soup(
    settings: InterpolateConfig, states: "dict[str, State]", scorer: Scorer
) -> "tuple[State, list[str]]":
    """The average of the fine-tuned weights, and the files that are in it."""
    from medclip_oc.models import averaging

    files = list(states)
    if len(files) == 1:
        return states[files[0]], files
    if settings.soup == "greedy":
        chosen, alone = averaging.greedy(list(states.values()), lambda s: scorer.score(s, "data"))
        for file, score in zip(files, alone, strict=True):
            print(f"{100 * score:>8.1f} %  {file}")
        files = [files[number] for number in chosen]
    print(f"the average of {len(files)}: {', '.join(files)}")
    return averaging.mean([states[file] for file in files]), files


if __name__ == "__main__":
    command.run(main, InterpolateConfig)
