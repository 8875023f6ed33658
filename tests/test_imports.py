"""Imports go one way, and foreign packages come in at one place each."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "medclip_oc"
# A folder imports from itself and from those before it; entry points from all, nobody from them.
ORDER = ["errors", "config", "runtime", "imaging", "contrastive", "reporting", "models", "data"]
ORDER += ["packing", "audit", "evaluation", "inference", "training", "exporters"]
MODULES = sorted(PACKAGE.rglob("*.py"))
SEAMS = {
    "open_clip": {"models", "exporters"},
    "wandb": {"training"},
    "torch.utils.tensorboard": {"training"},
    "webdataset": {"data", "packing"},
    "simplejpeg": {"imaging"},
    "torch.distributed": {"runtime"},
}


def place(path: Path) -> str:
    """The folder of a module; of those at the top, its own name."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return parts[0]


def imported(path: Path) -> set[str]:
    """Dotted names of all that a module imports anywhere, ours relative to the package: `.data`."""
    here = ["", *path.relative_to(PACKAGE).parts[:-1]]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level + 1] if node.level else []
            dotted = ".".join([*base, *([node.module] if node.module else [])])
            found |= {f"{dotted}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_one_way(path: Path) -> None:
    ours = {name.split(".")[1] for name in imported(path) if name.startswith(".")}
    ours -= {place(path), "__version__"}
    own = ORDER.index(place(path)) if place(path) in ORDER else len(ORDER)
    assert ours <= set(ORDER[:own]), f"{place(path)} imports {ours - set(ORDER[:own])}"


@pytest.mark.parametrize(("package", "allowed"), SEAMS.items())
def test_only_the_seam_imports(package: str, allowed: set[str]) -> None:
    users = {
        place(path)
        for path in MODULES
        if any(f"{name}.".startswith(f"{package}.") for name in imported(path))
    }
    assert users <= allowed


@pytest.mark.parametrize(
    "command",
    ["train", "evaluate", "report", "zeroshot", "embed", "export", "app", "make_shards"],
)
def test_help_needs_no_torch(command: str) -> None:
    """What `--help` imports; the time it takes follows from that."""
    code = (
        "import sys, runpy\n"
        f"sys.argv = ['{command}', '--help']\n"
        "try: runpy.run_module('medclip_oc.' + sys.argv[0], run_name='__main__')\n"
        "except SystemExit as end: assert end.code == 0, end.code\n"
        "heavy = {'torch', 'numpy', 'pandas', 'PIL', 'open_clip'} & sys.modules.keys()\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    options = ("--checkpoint", "--optim.lr", "--gallery", "--samples-per-shard")
    assert any(option in done.stdout for option in options)
