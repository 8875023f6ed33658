"""Every command of README.md and docs/, run as it stands there, on a small data set of its names.

Not run: what needs a model hub or a Slurm cluster (tests/commands/test_slurm.py has one), and the
page, which serves until it is stopped.
"""

import multiprocessing
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from tests.conftest import TINY
from tests.support.tiny_dataset import caption, jpeg, picture, write_kaggle

ROOT = Path(__file__).parents[2]
PAGES = ["README.md"]
PAGES += [f"docs/{name}.md" for name in ("data", "training", "evaluation", "ranking")]
NOT_RUN = (". .venv", "sbatch", "clip_benchmark eval", "--pretrained laion2b", "--to adapters")
# the last two: weights that have a name
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def commands(page: str) -> list[str]:
    """The commands in a page's sh blocks, each on one line, without its comment."""
    blocks = re.findall(r"^```sh\n(.*?)^```", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    stripped = [re.sub(r"\s+#\s.*|^#.*", "", line).strip() for line in lines]
    return [line for line in stripped if line and not any(word in line for word in NOT_RUN)]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that the pages name."""
    folder = tmp_path_factory.mktemp("workspace")
    for name in ("tools", "medclip_oc"):
        (folder / name).symlink_to(ROOT / name)
    config = {
        "model": {"arch": "docs-tiny", "definition": TINY},
        "train": {"global_batch_size": 16, "micro_batch_size": 4, "epochs": 1, "precision": "fp32"},
    }
    (folder / "configs").mkdir()
    for name, shards in (("vitb16", "rocov2"), ("pointing", "findings")):
        named = {"run": {"folder": f"runs/{name}"}}
        named["data"] = dict.fromkeys(("train", "valid"), f"shards/{shards}") | {"workers": 0}
        (folder / "configs" / f"{name}.yaml").write_text(yaml.safe_dump(config | named))
    for name in ("ROCOv2", "general"):
        source = write_kaggle(folder / name, {"train": 32, "valid": 12, "test": 12})
        for split, count in (("train", 32), ("valid", 12), ("test", 12)):
            rows = [f"{split}_{n:04},{('C0040405', 'C1306645')[n % 2]}" for n in range(count)]
            (source / f"{split}_concepts.csv").write_text("\n".join(["ID,CUIs", *rows]) + "\n")
    for name in ("images", "scans", "more"):
        (folder / name).mkdir()
        for n in range(4):
            picture(n).save(folder / name / f"{n}.{'png' if name == 'more' else 'jpg'}")
    (folder / "chest.jpg").write_bytes(jpeg(6))
    rows = [f'{n}.jpg,"{caption(n)}",{("train", "test")[n % 2]}' for n in range(4)]
    texts = [f'"{caption(n)}"' for n in range(6)]
    keys = [f"{split}_{n:04}" for split in ("train", "valid", "test") for n in range(12)]
    labels = [f"{key},{('CT', 'MRI')[n % 2]}" for n, key in enumerate(keys)]
    (folder / "pairs.csv").write_text("\n".join(["path,report,split", *rows, ""]))
    files = sorted(path.relative_to(folder) for path in (folder / "ROCOv2").rglob("train_*.jpg"))
    rows = [f'{file},"{caption(n)}",{n // 2}' for n, file in enumerate(files)]
    (folder / "patients.csv").write_text("\n".join(["path,report,patient_id", *rows, ""]))
    (folder / "captions.csv").write_text("\n".join(["caption", *texts, ""]))
    for name, rows in (("test", ["0,1", "1,0"]), ("valid", ["2,0", "3,1"])):
        (folder / f"{name}.csv").write_text("\n".join(["image,Edema", *rows, ""]))
    (folder / "modality.csv").write_text("\n".join(["image,label", *labels, ""]))
    run(folder, "python tools/make_shards.py --source general --out shards/general")
    return folder


def run(folder: Path, command: str) -> None:
    """Run a line as its shell would: forked from a process that has imported torch already.

    A torchrun of one process is run without torchrun, the other one with it.
    """
    if "--nproc_per_node" in command:
        words = shlex.split(command.replace("_node 4", "_node 2"))
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        code = subprocess.run(
            [*launch, *words[1:], "--run.overwrite"], cwd=folder, env=ENVIRONMENT
        ).returncode
    else:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["torch", "open_clip", "pandas"])
        words = shlex.split(command.partition(" > ")[0])[1:]
        process = context.Process(target=_enter, args=(folder, words))
        process.start()
        process.join()
        code = process.exitcode
    output = folder / "output.txt"
    assert code == 0, f"{command}\n{output.read_text()[-2000:] if output.exists() else ''}"


def _enter(folder: Path, words: list[str]) -> None:
    """Become the command."""
    os.chdir(folder)
    with Path("output.txt").open("w", encoding="utf-8") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # as in a process of its own
    if words[0] == "-m":
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")


@pytest.mark.slow
def test_every_command_runs_as_it_stands(workspace: Path) -> None:
    """In the order of the pages; what a command needs, an earlier one has made."""
    lines = [line for page in PAGES for line in commands(page)]
    assert len(lines) > 18
    fewer = {
        "32,100,full": "4,8,full",
        "--out phantoms --train 6000": "--out phantoms --train 32 --valid 12 --test 8",
    }
    for line in dict.fromkeys(lines):
        for words, instead in fewer.items():
            line = line.replace(words, instead)
        run(workspace, line)


def test_links_lead_somewhere() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target, heading in re.findall(r"\]\(((?!http)[^)#]*)(#[^)]*)?\)", page.read_text()):
            file = page.parent / target if target else page
            assert file.exists(), f"{page.name}: {target}"
            if heading:
                titles = re.findall(r"^#+ (.*)", file.read_text(), re.MULTILINE)
                slugs = {
                    re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles
                }
                assert heading[1:] in slugs, f"{page.name}: {target}{heading}"
