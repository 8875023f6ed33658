from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import pytest

from medclip_oc.config import fields, parse
from medclip_oc.config.schema import Config
from medclip_oc.errors import InputError


def read(config_class: type[Any], file: Path) -> Any:
    return parse.parse(config_class, ["--config", str(file)], prog="train")


BAD_FILES = {
    "optim: {lrr: 1}": ": optim.lrr: no such setting; did you mean optim.lr?",
    "lr: 1": ": lr: no such setting; did you mean optim.lr?",
    "optimm: {lr: 1}": ": optimm: no such setting; did you mean optim?",
    "3: 1": ": 3: no such setting; see --help",
    "optim: 3": ": optim: 3 is not a mapping of settings",
    "optim: {lr: abc}": ": optim.lr: 'abc' is not a number",
    "optim: {lr: true}": ": optim.lr: true is not a number",
    "optim: {lr: null}": ": optim.lr: null is not a number",
    "optim: {lr: .nan}": ": optim.lr: nan is not a number",
    "optim: {betas: [0.9]}": ": optim.betas: [0.9] is not 2 numbers",
    "train: {micro_batch_size: 1.0}": ": train.micro_batch_size: 1.0 is not a whole number",
    "train: {keep_chunks: m}": ": train.keep_chunks: 'm' is not a whole number or one of auto",
    "loss: {name: triplet}": ": loss.name: 'triplet' is not one of clip, siglip",
    "run: {folder: 5}": ": run.folder: 5 is not text",
    "data: {train: [1, a]}": ": data.train: [1, 'a'] is not text or a list of texts",
    "run: {seed: 1}\noptim.lr: 2\noptim: {lr: 1}": ": optim.lr: given twice",
    "run:\n  seed: 1\n  seed: 2\n": ": line 3: not valid YAML: seed is given twice",
    "run:\n  seed: [1\n": ": line 3: not valid YAML: expected ',' or ']', but got '<stream end>'",
    "run: !!python/object:os.system {}": (
        ": line 1: not valid YAML: could not determine a constructor for the tag "
        "'tag:yaml.org,2002:python/object:os.system'"
    ),
    "- 1": ": a mapping of settings was expected, not [1]",
    "\x00": ": not a YAML file",
    b"\xff\xd8\xff\xe0": ": not a YAML file",
    "version https://git-lfs.x/v1\n": (
        ": a mapping of settings was expected, not 'version https://git-lfs.x/v1'"
    ),
    "a: " + "x" * 1_000_000: ": over 1,000,000 characters: no file of settings",
    "a: &a [1]\n"  # a billion laughs
    + "".join(f"{n}: &{n} [*{m}, *{m}]\n" for m, n in pairwise("abcdefghijklmnopqrst")): (
        ": line 7: not valid YAML: over 10 aliases (*name)"
    ),
    "optim: &a {lr: *a}": ": optim.lr: {'lr': {...}} is not a number",
    "[" * 100_000: ": not a YAML file",
}


@pytest.mark.parametrize(("text", "line"), BAD_FILES.items(), ids=range(len(BAD_FILES)))
def test_bad_files(tmp_path: Path, text: str | bytes, line: str) -> None:
    file = tmp_path / "x.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError) as caught:
        read(Config, file)
    assert str(caught.value) == f"{file}{line}"


def test_an_alias_stands_for_its_settings(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("optim: {lr: &a 2e-5, image_lr: *a}\n")
    config = read(Config, tmp_path / "x.yaml")
    assert config.optim.lr == config.optim.image_lr == 2e-5
    with pytest.raises(InputError, match="over 1,000,000 characters"):
        fields.load("/dev/zero")


@dataclass
class _Inner:
    pair: tuple[float, float] = (0.5, 1e-9)
    names: list[str] = field(default_factory=lambda: ["1e-5", "null", "yes", "a: b", "é", " x\n"])
    free: dict[str, Any] | None = None


@dataclass
class _Outer:
    inner: _Inner = field(default_factory=_Inner)
    kind: Literal["on", "off"] = "off"
    text: str = "5e3"


@pytest.mark.parametrize(
    "config",
    [Config(), _Outer(), _Outer(_Inner(free={"a": [1e-5, {"b": None}], "c": "1e-5"}))],
)
def test_saved_settings_are_read_again(tmp_path: Path, config: Any) -> None:
    file = tmp_path / "config.yaml"
    fields.save_yaml(config, file)
    assert read(type(config), file) == config
