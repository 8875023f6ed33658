import operator
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from medclip_oc import __version__
from medclip_oc.config import fields
from medclip_oc.config import parse as command
from medclip_oc.config.evaluation import EvaluateConfig
from medclip_oc.config.inference import EmbedConfig, ZeroshotConfig
from medclip_oc.config.schema import METRICS, Config, TrainCommand
from medclip_oc.errors import InputError


def parse(config_class: type[Any], *words: str) -> Any:
    return command.parse(config_class, words, prog="train")


def error_of(config_class: type[Any], *words: str) -> str:
    with pytest.raises(InputError) as caught:
        parse(config_class, *words)
    return str(caught.value)


def test_defaults_then_yaml_then_words_wherever_they_stand(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text("optim: {lr: 1e-4, eps: 1e-7}\nrun: {seed: 3}\n")
    for words in (
        ["--config", str(file), "--optim.lr", "2e-3", "--train.epochs=2"],
        ["--optim.lr", "2e-3", "--train.epochs=2", f"--config={file}"],
        ["--optim.lr", "2e-3", "--config", str(file), "--train.epochs=2"],
    ):
        config = parse(Config, *words)
        assert (config.optim.lr, config.optim.eps, config.run.seed) == (2e-3, 1e-7, 3)
        assert (config.train.epochs, config.train.global_batch_size) == (2, 1024)
        assert isinstance(config.train.epochs, int), "a whole number, as before, in the run folder"


def test_a_later_file_wins_over_an_earlier_one_key_by_key(tmp_path: Path) -> None:
    first, second = tmp_path / "1.yaml", tmp_path / "2.yaml"
    first.write_text("run: {seed: 1, folder: runs/one}")
    second.write_text("run: {seed: 2}")
    config = parse(Config, "--config", str(first), "--config", str(second))
    assert (config.run.seed, config.run.folder) == (2, "runs/one")


def test_numbers_as_people_write_them(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    for text, value in {"1e-5": 1e-5, "5E-4": 5e-4, "1e3": 1e3, ".5e1": 5.0, "1": 1.0}.items():
        file.write_text(f"optim:\n  lr: {text}\nmodel: {{definition: {{free: {text}}}}}\n")
        config = parse(Config, "--config", str(file))
        assert config.optim.lr == parse(Config, "--optim.lr", text).optim.lr == value
        assert isinstance(config.optim.lr, float)
        assert config.model.definition == {"free": value}  # no type says that it is a number


VALUES: dict[str, Any] = {
    # words -> the first one's setting, of training where its name has a dot, else of zeroshot
    "--optim.betas 0.8 0.9": (0.8, 0.9),
    "--optim.clip_norm null": None,
    "--optim.warmup_steps 7": 7,
    "--train.global-batch-size=8": 8,
    "--train.keep_chunks auto": "auto",
    "--run.overwrite": True,
    "--run.folder 5": "5",
    """--model.definition '{"embed_dim": 24}'""": {"embed_dim": 24},
    "--wise.alphas auto": "auto",
    "--wise.alphas 0.5": [0.5],
    "--log.tensorboard false": False,
    "--log.wandb": "online",
    "--log.wandb true": "online",
    "--log.wandb false": "disabled",
    "--log.wandb offline": "offline",
    "--data.valid s/{000..003}.tar": "s/{000..003}.tar",
    "--data.valid s/[01]*.tar": "s/[01]*.tar",
    "--data.valid a.tar b.tar": ["a.tar", "b.tar"],
    "--data.valid null": None,
    "--data.valid None": None,
    "--batch-size 3": 3,
    "--threshold -1e-2": -0.01,
    "--threshold=-1": -1.0,
    "--images a.jpg b.jpg": ["a.jpg", "b.jpg"],
    "--images 5": ["5"],
    "--texts 'a: b' 1e-5 null '- a dash' ''": ["a: b", "1e-5", "null", "- a dash", ""],
    "--texts='--- odd'": ["--- odd"],
}


@pytest.mark.parametrize(("words", "value"), VALUES.items(), ids=VALUES)
def test_each_type_from_words(words: str, value: Any) -> None:
    name = re.split("[ =]", words.removeprefix("--"))[0].replace("-", "_")
    needed = ("--images", "a.jpg", "--texts", "a", "--checkpoint", "a_b-c.pt")
    kind, more = (Config, ()) if "." in name else (ZeroshotConfig, needed)
    config = parse(kind, *more, *shlex.split(words))
    found = operator.attrgetter(name)(config)
    assert (found, type(found)) == (value, type(value))
    assert "." in name or config.checkpoint == "a_b-c.pt"


def test_an_empty_file_or_section_changes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    for text in ("", "# nothing yet\n", "optim:\n  # lr: 1\n", "optim: {}\n"):
        file.write_text(text)
        assert parse(Config, "--config", str(file)) == Config()
    file.write_text("checkpoint: c.pt\n")
    assert parse(EvaluateConfig, "--config", str(file)) == EvaluateConfig(checkpoint="c.pt")


BAD_WORDS = {
    "--optim.lr abc": "--optim.lr: 'abc' is not a number",
    "--optim.lr nan": "--optim.lr: 'nan' is not a number",
    "--optim.lr": "--optim.lr: takes one value, and none is given",
    "--optim.lr 1 2": "--optim.lr: takes one value, not 2: ['1', '2']",
    "--optim.lr=1 2": "'2': unexpected; did you mean --data.train 2?",
    "--optim.lrr 1": "--optim.lrr: no such setting; did you mean --optim.lr?",
    "--lr 1": "--lr: no such setting; did you mean --optim.lr?",
    "--confg x": "--confg: no such setting; did you mean --config?",
    "--optim.qqq 1": "--optim.qqq: no such setting; see --help",
    "--optim x": "--optim: a group of settings, such as optim.lr",
    "--batch-size 1": "--batch-size: no such setting; did you mean --train.global_batch_size?",
    "x": "'x': unexpected; did you mean --data.train x?",
    "x.yaml": "'x.yaml': unexpected; did you mean --config x.yaml?",
    "a/last.pt": "'a/last.pt': unexpected; did you mean --resume a/last.pt?",
    "--run.seed 1.5": "--run.seed: '1.5' is not a whole number",
    "--train.epochs 0": "train.epochs: 0 is not above 0",
    "--run.overwrite maybe": "--run.overwrite: 'maybe' is not true or false",
    "--optim.betas": "--optim.betas: takes one value or more, and none is given",
    "--optim.clip_norm x": "--optim.clip_norm: 'x' is not a number or null",
    "--model.definition x": "--model.definition: 'x' is not a mapping or null",
    "--config no/x.yaml": "no/x.yaml: No such file or directory",
    "--optim.betas 0.9 1": "optim.betas: (0.9, 1.0) is not in [0, 1)",
    "--optim.lr 0": "optim.lr: 0.0 is not above 0",
    "--data.augment.scale 0.9 0.8": "data.augment.scale: (0.9, 0.8) is not low and high in (0, 1]",
    "--valid.metric R@1": f"valid.metric: 'R@1' is not one of {', '.join(METRICS)}; or of "
    "valid.zeroshot, as zeroshot/auroc",
    "--config vitb17": "vitb17: No such file or directory; recipes that need no path: "
    + ", ".join(fields.RECIPES),
}


@pytest.mark.parametrize(("words", "line"), BAD_WORDS.items(), ids=BAD_WORDS)
def test_bad_words(words: str, line: str) -> None:
    assert error_of(TrainCommand, *words.split()) == line


def test_missing_settings_are_named_together_and_long_values_cut() -> None:
    line = error_of(EmbedConfig, "--checkpoint", "a")
    assert line == "--data, --out: required, but not given"
    line = error_of(EvaluateConfig, "--checkpoint", "a", "--batch-size", "0")
    assert line == "--batch-size: 0 is not at least 1"
    line = error_of(Config, "--optim.lr", "x" * 1000)
    assert line == f"--optim.lr: '{'x' * 76}... is not a number"


def help_of(config_class: type[Any], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit, match="0"):
        parse(config_class, "--help")
    return " ".join(capsys.readouterr().out.split())


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        parse(Config, "--version")
    assert capsys.readouterr().out == f"medclip_oc {__version__}\n"


def test_help_says_what_each_setting_is(capsys: pytest.CaptureFixture[str]) -> None:
    words = help_of(TrainCommand, capsys)
    assert "optim: AdamW with linear warm-up and a cosine to zero." in words
    assert "--optim.lr NUMBER Peak learning rate. (default: 1e-05)" in words
    assert "--data.train TEXT [TEXT ...] Pairs to train on. (default: shards/rocov2)" in words
    assert "--log.tensorboard Event files in RUN/tensorboard." in words  # a flag
    assert "--checkpoint.background {true,false} " in words
    assert "--resume.allow TEXT [TEXT ...] Names of settings" in words
    # of a command it is grouped; what another dataclass declares has the help that stands there
    words = help_of(EvaluateConfig, capsys)
    order = ["what to read: --checkpoint", "what to write: --json", "how: --ks INT [INT ...] The K"]
    assert sorted(order, key=words.index) == order
    assert "--batch-size INT" in words
