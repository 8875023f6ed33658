"""What the commands make of one small data set, and the pin files that remember it.

    python tests/pinned/make_pins.py

writes `pins/` again from the code as it is. That is allowed only in a commit whose message says
which intended change moved the numbers: a refactoring moves none. On another machine the digits
end a little differently; that alone is no reason.

The guard stands outside of what it guards: it runs commands and reads the files they write, and
imports nothing of the package. Where the tests' own conftest.py can't be imported for the moment,
`pytest --noconftest tests/pinned` still works.
"""

import csv
import hashlib
import importlib.metadata
import io
import json
import os
import platform
import subprocess
import sys
import tarfile
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
PINS = Path(__file__).with_name("pins")
LIBRARIES = ("numpy", "open_clip_torch", "opencv-python-headless", "Pillow", "simplejpeg", "torch")
SPLITS = {"train": range(41), "valid": range(41, 57)}
MISSING, COPY, LAST = 9, 55, 56
"""Numbers of the row whose image is missing, and of two pairs with one picture and caption."""
TRAINING = (
    *("--config", "configs/tiny_cpu.yaml", "--run.device", "cpu", "--data.workers", "0"),
    *("--train.global_batch_size", "16", "--train.micro_batch_size", "4"),  # cached in chunks
    *("--train.epochs", "8"),  # of 40 pairs: 20 steps, some across the end of an epoch
    *("--optim.warmup_steps", "5", "--optim.clip_norm", "11"),  # clips some of the steps
    *("--valid.every_epochs", "8", "--log.every_steps", "1", "--log.tensorboard", "false"),
)
TEXTS = (
    *("Röntgenaufnahme des Thorax", "normal chest, left", 'a "bright" mass'),
    "computed tomography of the abdomen",
)


# ------------------------------------------------------------------------------------ the drawn set


def draw(n: int) -> tuple[str, bytes]:
    """Extension and bytes of an image; kept as it is, or re-encoded for one of three reasons."""
    rng = np.random.default_rng(n)
    grey = Image.fromarray(rng.integers(0, 256, (5, 6), dtype=np.uint8))
    grey = grey.resize((72 + 16 * (n % 9), 72 + 20 * (n % 7)), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    if n % 20 == 3:  # 16 bits
        Image.fromarray(np.asarray(grey).astype(np.uint16) * 200 + n).save(file, "PNG")
        return "png", file.getvalue()
    colour = Image.merge("RGB", (grey, grey.rotate(180), grey.point(lambda value: 255 - value)))
    if n % 20 == 5:  # half transparent
        colour.putalpha(grey)
        colour.save(file, "PNG")
        return "png", file.getvalue()
    exif = Image.Exif()
    if n % 20 == 7:  # lies on its side
        exif[0x0112] = 6
    (colour if n % 3 else grey).save(file, "JPEG", quality=90, exif=exif)
    return "jpg", file.getvalue()


def caption(n: int) -> str:
    """A caption with what a table, a tar or a tokenizer may trip over."""
    side = ("links", "rechts, unten", "upper left")[n % 3]
    return (
        f"Röntgenaufnahme {n}, Thorax {side}",
        f'number {n}: a "bright" mass, {side}',
        f"number {n}, first line\nsecond line: {side}",
        f"u\u0308ber {n}; {side} ",  # decomposed, and a blank at the end
        f"computed tomography {n}: " + f"the abdomen {side}, " * (n % 13),  # some are cut
    )[n % 5]


def write_source(folder: Path) -> Path:
    """The set as Kaggle has ROCOv2."""
    for split, numbers in SPLITS.items():
        images = folder / f"{split}_images" / split
        images.mkdir(parents=True)
        captions, concepts = [("ID", "Caption")], [("ID", "CUIs")]
        for n in numbers:
            drawn, name = (COPY if n == LAST else n), f"{split}_{n:03}"
            captions.append((name, caption(drawn)))
            if n % 7:  # else the table doesn't know the pair
                concepts.append((name, ("C1306645;C0817096", "C0040405", "C0817096")[n % 3]))
            extension, data = draw(drawn)
            if n != MISSING:
                (images / f"{name}.{extension}").write_bytes(data)
        for kind, rows in (("captions", captions), ("concepts", concepts)):
            file = folder / f"{split}_{kind}.csv"
            with file.open("w", newline="", encoding="utf-8") as table:
                csv.writer(table).writerows(rows)
    return folder


# --------------------------------------------------------------------- what the commands make of it


def run(*words: str | Path) -> str:
    """Standard output of `python WORDS`; one thread, as sums depend on how they are split."""
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"}
    how: dict[str, Any] = {"cwd": ROOT, "env": env, "encoding": "utf-8", "timeout": 300}
    done = subprocess.run([sys.executable, *map(str, words)], capture_output=True, **how)
    if done.returncode:
        raise RuntimeError(f"{words}: exit code {done.returncode}\n{done.stderr}")
    return done.stdout


def steps(folder: Path) -> list[dict[str, float]]:
    """Every record of a run, less how fast it was."""
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in one.items() if k != "pairs_per_second"} for one in records]


def shards(folder: Path) -> dict[str, Any]:
    """What lies in the tars: each level on its own, so that one may change without the others."""
    found: dict[str, Any] = {"tars": {}, "keys": {}, "captions": {}, "members": {}}
    for path in sorted(folder.glob("*.tar")):
        found["tars"][path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
        with tarfile.open(path) as tar:
            members = {one.name: tar.extractfile(one).read() for one in tar}  # type: ignore
        found["keys"][path.name] = list(dict.fromkeys(name.partition(".")[0] for name in members))
        for name, data in members.items():
            found["members"][name] = hashlib.sha256(data).hexdigest()
            if name.endswith(".txt"):
                found["captions"][name] = data.decode()
    with (folder / "rejects.csv").open(newline="", encoding="utf-8") as file:
        found["rejects"] = [[r["split"], r["id"], r["reason"]] for r in csv.DictReader(file)]
    return found


def evaluation(file: Path) -> dict[str, Any]:
    """The figures and each pair's ranks, without where they come from."""
    record = json.loads(file.read_text(encoding="utf-8"))
    for name in ("checkpoint", "data", "data_fingerprint"):
        record.pop(name, None)
    with np.load(file.with_suffix(".npz")) as arrays:
        return {"record": record, "arrays": {name: arrays[name].tolist() for name in arrays.files}}


def pins(folder: Path) -> dict[str, Any]:
    """What each pin file holds, by its name; an empty folder takes what the commands write."""
    source, packed = write_source(folder / "source"), folder / "shards"
    run(
        *("tools/make_shards.py", "--source", source, "--splits", *SPLITS, "--out", packed),
        *("--samples-per-shard", "16"),
    )
    one, two, figures = folder / "one", folder / "two", folder / "figures.json"
    train = ("-m", "medclip_oc.train", *TRAINING, "--data.train", packed, "--data.valid", packed)
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    with ThreadPoolExecutor(1) as pool:  # most of the time goes into starting processes
        beside = pool.submit(run, *torchrun, *train, "--run.folder", two)
        run(*train, "--run.folder", one)
        model = ("--checkpoint", one / "checkpoints" / "best.pt", "--device", "cpu")
        run(
            *("-m", "medclip_oc.evaluate", *model, "--workers", "0", "--json", figures),
            *("--data", packed, "--split", "valid"),
            *("--pools", "8", "--pool-draws", "5", "--slices", "C0817096"),
        )
        ranked = run(
            *("-m", "medclip_oc.zeroshot", *model, "--workers", "0", "--format", "jsonl"),
            *("--images", source / "valid_images" / "valid", "--texts", *TEXTS),
        )
        beside.result()
    rows = [json.loads(line) for line in ranked.splitlines()]
    return {
        "made_with": made_with(),
        "shards": shards(packed),
        "steps_1_process": steps(one),
        "steps_2_processes": steps(two),
        "evaluation": evaluation(figures),
        "ranking": [row | {"image": Path(row["image"]).name} for row in rows],
    }


def made_with() -> dict[str, str]:
    """What the last digits depend on: versions and, as far as it tells, the processor."""
    facts = {name: importlib.metadata.version(name) for name in LIBRARIES}
    facts |= {"machine": platform.machine(), "processor": platform.processor()}
    cpu = Path("/proc/cpuinfo")
    for line in cpu.read_text(encoding="utf-8").splitlines() if cpu.exists() else ():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            facts["processor"] = value.strip()
        elif name.strip() == "flags":  # a virtual machine's name for it hides which kernels it runs
            facts["vectors"] = " ".join(sorted(f for f in value.split() if f.startswith("avx")))
    return facts


if __name__ == "__main__":
    PINS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as made:
        for name, pin in pins(Path(made)).items():
            text = json.dumps(pin, indent=1, ensure_ascii=False) + "\n"
            (PINS / f"{name}.json").write_text(text, encoding="utf-8")
