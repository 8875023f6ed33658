"""The main job, end to end, on data it makes itself: what `make demo` runs.

Every step is the command a user would type; this script only types them, and at the end looks
whether the result holds what the README promises.
"""

import argparse
import csv
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RUN = "runs/demo"
SOURCE, SHARDS = "shards/phantoms-source", "shards/phantoms"
BEST = f"{RUN}/checkpoints/best.pt"
RESULT = Path(RUN, "evaluations", "best-test.json")
TIMES_CHANCE = 6  # both directions' R@10 on held-out combinations must reach this


def step(title: str, *words: str) -> None:
    """Show a command, run it, and end where it fails."""
    print(f"\n=== {title}\n$ {shlex.join(['python', *words])}", flush=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # two processes share two cores
    code = subprocess.run([sys.executable, *words], env=environment).returncode
    if code:
        sys.exit(f"demo: stopped: {title}: exit code {code}")


def main() -> None:
    """Make data, pack, train, evaluate, rank, report; exit code 1 if the recall is too low."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    os.chdir(ROOT)
    began = time.monotonic()
    step("Draw synthetic phantoms", "tools/make_phantoms.py", "--out", SOURCE, "--overwrite")
    pack = ["--source", SOURCE, "--out", SHARDS, "--samples-per-shard", "500", "--overwrite"]
    step("Pack them into shards", "tools/make_shards.py", *pack)
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    train = ["-m", "medclip_oc.train", "--config", "configs/tiny_cpu.yaml"]
    step("Train on two processes", *launch, *train, "--run.folder", RUN, "--run.overwrite")
    data = ["--data", SHARDS, "--split", "test"]
    step("Evaluate on held-out pairs", "-m", "medclip_oc.evaluate", "--checkpoint", BEST, *data)
    image, texts = candidates()
    rank = ["--checkpoint", BEST, "--images", image, "--texts", *texts]
    step("Rank captions for one image", "-m", "medclip_oc.zeroshot", *rank)
    step("Make the run's page", "-m", "medclip_oc.report", RUN, "--maps")
    conclude(time.monotonic() - began)


def candidates() -> tuple[str, list[str]]:
    """The first test image, and five test captions of which the first is its own."""
    with Path(SOURCE, "test_captions.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return f"{SOURCE}/test_images/test/{rows[0]['ID']}.jpg", [row["Caption"] for row in rows[:5]]


def conclude(seconds: float) -> None:
    """Say what the figures mean and what to do next; exit code 1 if recall is below the promise."""
    record = json.loads(RESULT.read_text(encoding="utf-8"))
    chance, pool = record["chance"]["R@10"], record["pool"]
    print(f"\n=== Done in {seconds:.0f} s (synthetic data, no medical meaning)")
    print(f"R@10 is how often the right one of {pool} held-out pairs is among the first 10 of the")
    print(f"ranking; by chance that is {100 * chance:.1f} %.")
    recalls = {way: record[way]["R@10"] for way in ("image_to_text", "text_to_image")}
    for way, recall in recalls.items():
        share = f"R@10 {100 * recall:5.1f} %, {recall / chance:.0f} times chance"
        print(f"  {way.replace('_', ' ')}   {share}")
    print("\nWhat to do next:")
    print(f"  open the page of this run   {RUN}/report.html")
    rank = f"-m medclip_oc.zeroshot --checkpoint {BEST} --images YOUR.jpg --texts CT MRI"
    print(f"  rank your own image         .venv/bin/python {rank}")
    pack = "tools/make_shards.py --source YOUR_FOLDER --out shards/yours"
    print(f"  pack your own data          .venv/bin/python {pack}")
    if min(recalls.values()) < TIMES_CHANCE * chance:
        sys.exit(f"demo: R@10 is below {TIMES_CHANCE} times chance")


if __name__ == "__main__":
    main()
