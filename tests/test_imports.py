"""Imports go one way, foreign packages come in at one place each, and each has its use."""

import ast
import configparser
import functools
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "medclip_oc"
# A folder imports from itself and from those before it; entry points from all, nobody from them.
ORDER = ["errors", "config", "runtime", "imaging", "contrastive", "reporting", "models", "data"]
ORDER += ["relevance", "packing", "audit", "evaluation", "inference", "web", "training"]
ORDER += ["exporters"]
MODULES = sorted(PACKAGE.rglob("*.py"))
SEAMS = {
    "open_clip": {"models", "exporters"},
    "wandb": {"training"},
    "torch.utils.tensorboard": {"training"},
    "webdataset": {"data", "packing", "exporters"},
    "simplejpeg": {"imaging"},
    "cv2": {"data"},
    "torch.distributed": {"runtime"},
}
IMPORTED_AS = {"open_clip_torch": "open_clip", "Pillow": "PIL", "PyYAML": "yaml"}
IMPORTED_AS |= {"opencv-python-headless": "cv2"}
IMPORTED_AS |= {"Jinja2": "jinja2", "docstring-parser": "docstring_parser"}


def place(path: Path) -> str:
    """The folder of a module; of those at the top, its own name."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


@functools.cache
def nodes(path: Path) -> list[ast.AST]:
    return list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


@functools.cache
def imported(path: Path) -> set[str]:
    """Dotted names of all that a module imports anywhere, ours relative to the package: `.data`."""
    here = ["", *path.relative_to(PACKAGE).parts[:-1]]
    found = set()
    for node in nodes(path):
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


def test_few_imports_of_ours_wait_for_a_call_and_each_says_why() -> None:
    """Beside those in the `main` of an entry point, which parses first."""
    lazy = set()
    for path in MODULES:
        lines = path.read_text().splitlines()
        for function in nodes(path):
            entry = path.parent == PACKAGE and getattr(function, "name", "") == "main"
            if isinstance(function, ast.FunctionDef) and not entry:
                ours = [n for n in ast.walk(function) if isinstance(n, ast.ImportFrom) and n.level]
                lazy |= {(path.name, node.lineno, lines[node.lineno - 1]) for node in ours}
    assert len(lazy) <= 10, lazy
    assert all("  # " in line for _, _, line in lazy), lazy


def test_every_text_names_its_encoding() -> None:
    """Of a path in a variable, ruff's PLW1514 doesn't know that it is one."""
    for path in MODULES:
        for node in nodes(path):
            name = getattr(node.func, "attr", "") if isinstance(node, ast.Call) else ""
            if isinstance(node, ast.Call) and name in ("read_text", "write_text"):
                told = len(node.args) > (name == "write_text")
                told |= any(keyword.arg == "encoding" for keyword in node.keywords)
                assert told, f"{path}:{node.lineno}"


def test_every_base_dependency_is_used_or_explained() -> None:
    text = (ROOT / "setup.cfg").read_text()
    parser = configparser.ConfigParser()
    parser.read_string(text)
    lines = parser["options"]["install_requires"].split()
    names = {match[0] for line in lines if (match := re.match(r"[A-Za-z][\w.-]*", line))}
    assert {"torch", "open_clip_torch", "webdataset", "pandas", "tqdm", "wandb"} <= names
    explained = set(re.findall(r"^ +# ([\w-]+): \w", text, re.MULTILINE))
    used = {name.split(".")[0] for path in MODULES for name in imported(path)}
    unused = {name for name in names - explained if IMPORTED_AS.get(name, name) not in used}
    assert not unused, f"neither imported by medclip_oc nor explained in setup.cfg: {unused}"


def test_help_and_a_wrong_option_need_no_torch() -> None:
    """What they import; the time they take follows from that."""
    code = """
import os, runpy, sys
for command in "train evaluate report zeroshot embed export app make_shards".split():
    for word, code in (("--help", 0), ("--nonsense", 2)):
        sys.argv = [command, word]
        try:
            runpy.run_module(f"medclip_oc.{command}", run_name="__main__")
        except SystemExit as end:
            assert end.code == code, command
        heavy = {"torch", "numpy", "pandas", "PIL", "open_clip", "wandb", "tqdm"} & {*sys.modules}
        assert not heavy, (command, heavy)
os._exit(0)  # else the exit code is that of a command that ended
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for option in ("--checkpoint", "--optim.lr", "--gallery", "--samples-per-shard"):
        assert option in done.stdout
    assert done.stderr.count("--nonsense: no such setting") == 8
