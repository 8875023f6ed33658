import json
import re
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from medclip_oc.config.schema import Config, LogConfig, OptimConfig
from medclip_oc.errors import WorkError
from medclip_oc.training.checkpointer import Progress
from medclip_oc.training.logger import RunLog, wandb_online

Shown = pytest.CaptureFixture[str]
DATED = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  ")


@contextmanager
def opened(
    folder: Path, *, main: bool = True, done: int = 0, validated: bool = True, **settings: Any
) -> Iterator[RunLog]:
    config = Config(log=LogConfig(**settings), optim=OptimConfig(lr=0.25))
    with ExitStack() as stack:
        yield RunLog(folder, config, Progress(done, validated=validated), stack, main=main)


def undated(text: str) -> list[str]:
    lines = text.splitlines()
    assert all(DATED.match(line) for line in lines), lines
    return [DATED.sub("", line) for line in lines]


def test_records_and_messages_are_written_at_once(tmp_path: Path, capsys: Shown) -> None:
    with opened(tmp_path) as log:
        log.record(1, {"loss": 3.5, "valid/image_to_text/R@1": 0.25})
        log.record(2, {"loss": float("nan"), "grad_norm": float("inf")})
        log.message("warm-up: 20 steps, é")
        records, text = ((tmp_path / n).read_text() for n in ("metrics.jsonl", "log.txt"))
    assert records == (
        '{"step": 1, "loss": 3.5, "valid/image_to_text/R@1": 0.25}\n'
        '{"step": 2, "loss": null, "grad_norm": null}\n'
    )
    shown = capsys.readouterr()
    assert undated(text) == undated(shown.err) == ["warm-up: 20 steps, é"]
    assert shown.out == ""


def test_a_resumed_run_takes_back_what_comes_again(tmp_path: Path) -> None:
    """Records of later steps, of a validation that is done again, and one that was cut short."""
    with opened(tmp_path) as log:
        for step in (1, 2, 3):
            log.record(step, {"loss": 1.0})
        log.record(2, {"valid/mean_recall": 0.5})
        log.record(2, {"valid_ema/mean_recall": 0.5})
        log.message("hello")
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 1')
    for validated, steps in ((True, [1, 2, 2, 2]), (False, [1, 2])):
        with opened(tmp_path, done=2, validated=validated):
            pass
        lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines] == steps
    with opened(tmp_path, done=2) as log:
        log.record(3, {"loss": 1.0})
        log.message("hello")
    assert (tmp_path / "metrics.jsonl").read_text().endswith('\n{"step": 3, "loss": 1.0}\n')
    assert undated((tmp_path / "log.txt").read_text()) == ["hello", "hello"]


def test_other_ranks_write_nothing(tmp_path: Path, capsys: Shown) -> None:
    with opened(tmp_path, main=False, tensorboard=True, wandb="online") as log:
        log.message("hello")
        log.record(1, {"loss": 1.0})
        log.flush()
    assert not list(tmp_path.iterdir())
    assert capsys.readouterr() == ("", "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_full_disk_is_named(tmp_path: Path) -> None:
    (tmp_path / "log.txt").symlink_to("/dev/full")
    full = re.escape(f"{tmp_path}/log.txt: No space left on device")
    with pytest.raises(WorkError, match=full), opened(tmp_path) as log:
        log.message("hello")


def test_tensorboard_reads_the_records_back(tmp_path: Path) -> None:
    with opened(tmp_path, tensorboard=True) as log:
        log.record(1, {"loss": 3.5})
        log.record(2, {"loss": 2.5, "valid/image_to_text/R@1": 0.25})
    with opened(tmp_path, tensorboard=True, done=1) as log:
        log.record(2, {"loss": 1.5})
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 3.5), (2, 1.5)]
    assert set(events.Tags()["scalars"]) == {"loss", "valid/image_to_text/R@1"}


# ---------------------------------------------------------------------------------- wandb


def wandb_records(file: Path) -> list[Any]:
    """The messages of a small .wandb file, a LevelDB log: checksum, length and type before each."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, at, found = file.read_bytes(), 7, []
    while at < len(content):
        _, length, kind = struct.unpack_from("<IHB", content, at)
        assert kind == 1, "a whole message"
        found.append(Record.FromString(content[at + 7 : at + 7 + length]))
        at += 7 + length
    return found


def history(file: Path) -> list[dict[str, Any]]:
    """The rows, without what wandb adds but for the step."""
    rows = [
        {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in row.item}
        for row in (r.history for r in wandb_records(file) if r.HasField("history"))
    ]
    return [{k: v for k, v in row.items() if k == "_step" or k[0] != "_"} for row in rows]


def test_wandb_offline_keeps_the_records_and_the_run(
    tmp_path: Path, capfd: Shown, monkeypatch: pytest.MonkeyPatch
) -> None:
    # what is configured wins over the surroundings, but for a node that is said to be offline
    for start, mode, around in ((1, "offline", "disabled"), (3, "online", "offline")):
        monkeypatch.setenv("WANDB_MODE", around)
        with opened(tmp_path, done=start, wandb=mode, wandb_project="radiology") as log:
            log.record(start, {"loss": 3.5})
            log.record(start, {"valid/image_to_text/R@1": 0.25})
            log.record(start + 1, {"loss": 2.5})
        # wandb names folders to the second, and this is quicker than any resume
        (tmp_path / "wandb").rename(tmp_path / f"wandb-{start}")
    assert capfd.readouterr() == ("", "")

    name = (tmp_path / "wandb_id.txt").read_text().strip()
    files = sorted(tmp_path.glob(f"wandb-*/offline-run-*-{name}/run-{name}.wandb"))
    assert len(files) == 2
    run = next(record.run for record in wandb_records(files[0]) if record.HasField("run"))
    assert (run.run_id, run.project, run.display_name) == (name, "radiology", tmp_path.name)
    config = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert config["optim"]["lr"] == 0.25
    assert [row for file in files for row in history(file)] == [
        {"loss": 3.5, "valid/image_to_text/R@1": 0.25, "_step": 1},
        {"loss": 2.5, "_step": 2},
        {"loss": 3.5, "valid/image_to_text/R@1": 0.25, "_step": 3},
        {"loss": 2.5, "_step": 4},
    ]


def test_wandb_online_without_login_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = {"HOME": str(tmp_path), "WANDB_API_KEY": "", "WANDB_BASE_URL": "http://127.0.0.1:9"}
    for name, value in {**alone, "WANDB_HTTP_TIMEOUT": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(WorkError, match=r"not work here: not logged in.*wandb offline"):
        wandb_online(LogConfig(wandb="online"))
