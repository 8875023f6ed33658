"""Commands as tests call them, the settings and files of a small run, and pages taken apart."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml

from medclip_oc import train
from medclip_oc.config import parse
from medclip_oc.config.schema import Config, TrainCommand
from medclip_oc.runtime import command
from tests.support.tiny_models import TINY

ROOT = Path(__file__).parents[2]
Run = Callable[..., tuple[int, str, str]]  # a command: its exit code, output, and errors


def write_config(shards: Path, folder: Path, name: str = "run", **changes: Any) -> Path:
    """The file of a run FOLDER/NAME of 30 steps, 10 epochs of 48 pairs, in chunks of 4."""
    tree: dict[str, Any] = {
        "run": {"folder": str(folder / name), "seed": 1},
        "model": {"arch": "train-test", "definition": TINY},
        "data": {
            "train": str(shards),
            "valid": str(shards),
            "workers": 0,
            "augment": {"scale": [0.95, 1.0], "rotation_degrees": 2.0},
        },
        "train": {
            "global_batch_size": 16,
            "micro_batch_size": 4,
            "epochs": 10,
            "precision": "fp32",
        },
        "optim": {"lr": 1e-3},
        "valid": {"every_epochs": 5},
        "log": {"every_steps": 1},
    }
    for change, value in changes.items():
        section, _, key = change.partition("__")
        if key:
            tree[section][key] = value
        else:
            tree[section] = value
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return file


def read_config(file: Path) -> Config:
    return parse.parse(Config, ["--config", str(file)])


def call(main: Callable[..., Any], config: type, *words: object) -> int:
    """Run a command in this process; returns its exit code."""
    with pytest.raises(SystemExit) as end:
        command.run(main, config, prog="test", arguments=[str(w) for w in words])
    return int(str(end.value.code))


def run_training(config: Path, *words: object) -> int:
    """Train in this process; returns the exit code."""
    return call(train.main, TrainCommand, "--config", config, *words)


def torchrun(*words: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run a command of the package in two processes, to this exit code."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]
    done = subprocess.run(
        [sys.executable, *launch, *map(str, words)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == code, done.stderr
    return done


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def one_line(error: str) -> str:
    """What a user sees first: our line. torchrun's own summary may follow."""
    ours = [
        line for line in error.splitlines() if line.startswith(("test: ", "python -m medclip_oc"))
    ]
    assert len(ours) == 1, error
    return ours[0]


NASTY = """<script>alert("1")</script> & 'quoted' <img src=x onerror=alert(1)> {{ 7 * 7 }} $x_$"""


class Reader(HTMLParser):
    """Collects the tags, their attributes, and the text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags, self.attributes, self.text = list[str](), list[tuple[str, str | None]](), ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text += data
