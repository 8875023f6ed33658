"""The package as pip installs it, away from a checkout: recipes, commands, types."""

import configparser
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.support.cli import ROOT
from tests.support.tiny_dataset import write_kaggle

BUILT_FROM = ("medclip_oc", "configs", "setup.cfg", "pyproject.toml", "README.md", "LICENSE")


def test_setup_names_every_folder() -> None:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    folders = {
        str(file.parent.relative_to(ROOT)) for file in ROOT.glob("medclip_oc/**/__init__.py")
    }
    packages = {name.replace(".", "/") for name in parser["options"]["packages"].split()}
    assert packages == folders | {"medclip_oc/recipes"}


@pytest.mark.slow
@pytest.mark.parametrize("how", [[], ["--editable"]], ids=["wheel", "editable"])
def test_an_installed_package(how: list[str], tmp_path: Path) -> None:
    """In an environment that has the packages of this one; without the network."""
    source, venv, work = (tmp_path / name for name in ("checkout", "venv", "work"))
    for folder in (source, work):
        folder.mkdir()
    for name in BUILT_FROM:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(*words: object) -> str:
        command = [str(word) for word in words]
        done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    run(sys.executable, "-m", "venv", "--without-pip", venv)
    [site] = venv.glob("lib/*/site-packages")
    (site / "present.pth").write_text(sysconfig.get_path("purelib") + "\n")
    options = ["--quiet", "--no-deps", "--no-build-isolation", *how]
    run(sys.executable, "-m", "pip", "--python", venv / "bin/python", "install", *options, source)
    python, command = venv / "bin" / "python", venv / "bin" / "medclip_oc"
    files = "import medclip_oc; from medclip_oc.config import fields; "
    files += "fields.load('vitb16'); print(medclip_oc.__file__, *fields.RECIPES.values())"
    package, *recipes = map(Path, run(python, "-c", files).split())
    assert package.is_relative_to(source if how else site)
    assert (package.parent / "py.typed").is_file()
    assert {file.name for file in recipes} == {file.name for file in ROOT.glob("configs/*.yaml")}
    assert "medclip_oc.zeroshot" in run(command)
    if how:
        return
    write_kaggle(work / "source", {"train": 48, "valid": 8, "test": 8})
    run(command, "make-shards", "--source", "source", "--out", "shards")
    data = ["--data.train", "shards", "--data.valid", "shards", "--run.folder", "run"]
    size = ["--train.global_batch_size", 48, "--train.micro_batch_size", 16, "--train.epochs", 1]
    run(command, "train", "--config", "tiny_cpu", *data, *size)
    model = ["--checkpoint", "run/checkpoints/best.pt"]
    assert "pool of 8 pairs" in run(command, "evaluate", *model)
    images = ["--images", "source/test_images/test/test_0000.jpg", "--texts", "bright", "dark"]
    ranked = json.loads(run(command, "zeroshot", *model, *images, "--format", "json"))
    assert {row["text"] for row in ranked} == {"bright", "dark"}
