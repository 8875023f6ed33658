"""The house stands on floors: a module imports only from below (lazy imports included)."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "medclip_oc"
FLOORS = [
    {"errors"},  # the ground: what a mistake is
    # and what a setting is
    {"config", "lookup", "signatures", "depth", "apart", "order", "array_file", "line_charts"}
    | {"signals", "positives", "blend", "fused"},
    {"tables", "image_files", "dicom", "shard_index", "counting", "pools", "rank_config"}
    | {"row_writer"},
    {"decoding", "shard_layout"},
    {"distributed", "metrics", "losses", "schedule", "images", "sources", "shards", "checkpoint"}
    | {"warm_start", "settings", "shard_writer", "journal", "parallel", "progress", "page"}
    | {"duplicates", "likeness", "fingerprints", "memory", "replay", "towers", "mismatch"}
    | {"intervals", "neighbours", "relevance", "feature_file", "results", "run_files"}
    | {"candidates", "classification", "feature_index", "tokenizer_files"},
    {"samples", "index_files", "pictures", "captions", "remote_tar", "image_sets", "rank"}
    | {"model_card"},
    {"stream"},
    {
        "model",
        "data",
        "augment",
        "chunks",
        "trainable",
        "ema",
        "lora",
        "run_log",
        "run_folder",
        "command",
        "packing",
        "shard_check",
        "source_forms",
        "leaks",
        "inspection",
        "audit_page",
        "report_page",
        "report_gallery",
    },
    {"grad_cache", "watch", "optim"},  # the step, of chunks; what it is fed with
    {"features", "feed", "setup", "verify", "audit", "report_plots", "parity", "saver", "resume"},
    {"run_state", "concepts", "embedding", "truth"}
    | {"open_clip_folder", "onnx_folder", "hf_folder"},
    {"retrieval", "search", "trials"},
    {"evaluate", "zeroshot", "embed", "export", "selfcheck", "doctor", "report"},
    {"training_run"},
    {"train", "app", "__init__"},  # what users import
]
SEAMS = {
    "open_clip": {"model", "open_clip_folder"},
    "open_clip_train": {"distributed"},
    "wandb": {"run_log"},
    "tensorboard": {"run_log"},
    "torch.utils.tensorboard": {"run_log"},
    "webdataset": {"remote_tar"},
    "simplejpeg": {"pictures"},
    "torch.distributed": {"distributed"},
}


def floor(module: str) -> int:
    return next(number for number, names in enumerate(FLOORS) if module in names)


def imported(module: str) -> set[str]:
    """Dotted names of everything a module imports anywhere; ours as `medclip_oc.NAME`."""
    found = set()
    for node in ast.walk(ast.parse((PACKAGE / f"{module}.py").read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = "medclip_oc" if node.level else ""
            base = ".".join(part for part in (base, node.module) if part)
            found |= (
                {f"{base}.{alias.name}" for alias in node.names} if base == "medclip_oc" else {base}
            )
    return found


def test_every_module_has_a_floor() -> None:
    modules = {path.stem for path in PACKAGE.glob("*.py")}
    assert modules == set().union(*FLOORS)


@pytest.mark.parametrize("module", sorted(path.stem for path in PACKAGE.glob("*.py")))
def test_imports_only_from_below(module: str) -> None:
    ours = {name.split(".")[1] for name in imported(module) if name.startswith("medclip_oc.")}
    ours.discard("__version__")
    wrong = {name for name in ours if floor(name) >= floor(module)}
    assert not wrong, f"{module} (floor {floor(module)}) imports {wrong}"


@pytest.mark.parametrize(("package", "allowed"), SEAMS.items())
def test_only_the_seam_imports(package: str, allowed: set[str]) -> None:
    users = {
        path.stem
        for path in PACKAGE.glob("*.py")
        if any(n == package or n.startswith(f"{package}.") for n in imported(path.stem))
    }
    assert users <= allowed


@pytest.mark.parametrize(
    "command", ["train", "evaluate", "report", "zeroshot", "embed", "export", "app"]
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
    options = ("--checkpoint", "--optim.lr", "--gallery")
    assert any(option in done.stdout for option in options)
