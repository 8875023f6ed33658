"""The main job, end to end, on data it makes itself: what `make demo` runs.

Every step is the command a user would type; this script only types them, and at the end looks
whether the result holds what the README promises.
"""

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
    # One thread per process: two training processes share two cores.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    code = subprocess.run([sys.executable, *words], env=environment).returncode
    if code:
        sys.exit(f"demo: stopped: {title}: exit code {code}")


def main() -> int:
    """Make data, pack, train, evaluate, rank; 0 if the held-out recall is what it should be."""
    os.chdir(ROOT)
    began = time.monotonic()
    step("Draw synthetic phantoms", "tools/make_phantoms.py", "--out", SOURCE, "--overwrite")
    pack = ["--source", SOURCE, "--out", SHARDS, "--samples-per-shard", "500", "--overwrite"]
    step("Pack them into shards", "tools/make_shards.py", *pack)
    train = [
        "--standalone",
        "--nproc_per_node",
        "2",
        "-m",
        "medclip_oc.train",
        "--config",
        "configs/tiny_cpu.yaml",
    ]
    step("Train", "-m", "torch.distributed.run", *train, "--run.folder", RUN, "--run.overwrite")
    where = ["--data", SHARDS, "--split", "test"]
    step("Evaluate on held-out pairs", "-m", "medclip_oc.evaluate", "--checkpoint", BEST, *where)
    image, texts = candidates()
    step(
        "Rank captions for one image",
        *("-m", "medclip_oc.zeroshot", "--checkpoint", BEST, "--images", image, "--texts", *texts),
    )
    return conclude(time.monotonic() - began)


def candidates() -> tuple[str, list[str]]:
    """The first test image, and five test captions of which the first is its own."""
    import csv

    with Path(SOURCE, "test_captions.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return f"{SOURCE}/test_images/test/{rows[0]['ID']}.jpg", [row["Caption"] for row in rows[:5]]


def conclude(seconds: float) -> int:
    """Print where everything is and a small table; 1 if recall stayed below the promise."""
    record = json.loads(RESULT.read_text())
    chance = record["chance"]["R@10"]
    print(f"\n=== Done in {seconds:.0f} s. Results in {RUN}/ (synthetic data, no medical meaning)")
    print(f"  checkpoint   {BEST}")
    print(f"  figures      {RESULT}")
    print(f"  log          {RUN}/log.txt, metrics.jsonl, tensorboard/")
    print(f"\n  {record['pool']} held-out pairs     R@10    times chance ({100 * chance:.1f} %)")
    code = 0
    for way in ("image_to_text", "text_to_image"):
        recall = record[way]["R@10"]
        print(f"  {way.replace('_', ' '):<20} {100 * recall:6.1f} %    {recall / chance:.1f}")
        if recall < TIMES_CHANCE * chance:
            code = 1
    if code:
        print(f"demo: R@10 is below {TIMES_CHANCE} times chance", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
