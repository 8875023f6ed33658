import json
import re
import struct
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from medclip_oc.config.schema import LogConfig
from medclip_oc.errors import WorkError
from medclip_oc.training import logger
from medclip_oc.training.logger import RunLog

STEP = {"loss": 3.2123, "lr": 1e-5, "temperature": 0.07, "pairs_per_second": 1234.5}
DATED = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  ")


def opened(
    folder: Path, *, main: bool = True, done: int = 0, validated: bool = True, **settings: Any
) -> RunLog:
    how: dict[str, Any] = {"main": main, "done": done, "validated": validated}
    return RunLog(folder, LogConfig(**settings), config={"optim": {"lr": 1e-5}}, **how)


def undated(text: str) -> list[str]:
    lines = text.splitlines()
    assert all(DATED.match(line) for line in lines), lines
    return [DATED.sub("", line) for line in lines]


# ---------------------------------------------------------------------------------- files


def test_records_are_lines_of_json_at_once(tmp_path: Path) -> None:
    with closing(opened(tmp_path / "new" / "run")) as log:
        log.record(1, {"loss": 3.5, "valid/image_to_text/R@1": 0.25})
        log.record(2, {"loss": float("nan"), "grad_norm": float("inf")})
        written = (tmp_path / "new" / "run" / "metrics.jsonl").read_text()  # before close
    assert written == (
        '{"step": 1, "loss": 3.5, "valid/image_to_text/R@1": 0.25}\n'
        '{"step": 2, "loss": null, "grad_norm": null}\n'
    )


def test_messages_go_to_the_file_and_to_stderr(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with closing(opened(tmp_path)) as log:
        log.message("warm-up: 20 steps, é")
        assert undated((tmp_path / "log.txt").read_text()) == ["warm-up: 20 steps, é"]
    said = capsys.readouterr()
    assert said.out == ""
    assert undated(said.err) == ["warm-up: 20 steps, é"]


def test_a_resumed_run_takes_back_what_comes_again(tmp_path: Path) -> None:
    """Records of later steps, of a validation that is done again, and one that was cut short."""
    with closing(opened(tmp_path)) as log:
        for step in (1, 2, 3):
            log.record(step, {"loss": 1.0})
        log.record(2, {"valid/mean_recall": 0.5})
        log.record(2, {"valid_ema/mean_recall": 0.5})
        log.message("hello")
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 1')
    for validated, steps in ((True, [1, 2, 2, 2]), (False, [1, 2])):
        opened(tmp_path, done=2, validated=validated).close()
        lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines] == steps
    with closing(opened(tmp_path, done=2)) as log:
        log.record(3, {"loss": 1.0})
        log.message("hello")
    assert (tmp_path / "metrics.jsonl").read_text().endswith('\n{"step": 3, "loss": 1.0}\n')
    assert undated((tmp_path / "log.txt").read_text()) == ["hello", "hello"]


def test_a_line_has_what_a_reader_follows() -> None:
    values = {**STEP, "grad_norm": 9.0}
    assert logger.describe(values) == "loss 3.212  lr 1.0e-05  temperature 0.07  1,234 pairs/s"
    assert logger.describe({}) == ""


def test_other_ranks_write_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    with closing(opened(folder, main=False, tensorboard=True, wandb="online")) as log:
        log.message("hello")
        log.record(1, {"loss": 1.0})
        log.flush()
    assert not folder.exists()
    assert capsys.readouterr() == ("", "")


def test_a_folder_that_cannot_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkError, match=f"^{tmp_path}/file/run: Not a directory$"):
        opened(tmp_path / "file" / "run")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_full_disk_is_named(tmp_path: Path) -> None:
    (tmp_path / "log.txt").symlink_to("/dev/full")
    full = re.escape(f"{tmp_path}/log.txt: No space left on device")
    with pytest.raises(WorkError, match=full), closing(opened(tmp_path)) as log:
        log.message("hello")


# ---------------------------------------------------------------------------------- tensorboard


def test_tensorboard_reads_the_records_back(tmp_path: Path) -> None:
    with closing(opened(tmp_path, tensorboard=True)) as log:
        log.record(1, {"loss": 3.5})
        log.record(2, {"loss": 2.5, "valid/image_to_text/R@1": 0.25})
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert set(events.Tags()["scalars"]) == {"loss", "valid/image_to_text/R@1"}
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 3.5), (2, 2.5)]
    recall = events.Scalars("valid/image_to_text/R@1")
    assert [(event.step, event.value) for event in recall] == [(2, 0.25)]


# ---------------------------------------------------------------------------------- wandb


def wandb_records(file: Path) -> Iterator[Any]:
    """The protocol messages in a .wandb file.

    The file is a log as LevelDB writes it: after 7 bytes of our own, blocks of 32 KiB of chunks
    (checksum, length, type; type 1 a whole message, 2, 3 and 4 its first, middle and last part).
    """
    from wandb.proto.wandb_internal_pb2 import Record

    content, at, message = file.read_bytes(), 7, b""
    assert content.startswith(b":W&B")
    while at < len(content):
        if (left := -at % 32768) < 7:  # no room for a header: the block ends in padding
            at += left
        _, length, kind = struct.unpack_from("<IHB", content, at)
        message += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            record = Record()
            record.ParseFromString(message)
            yield record
            message = b""


def history(file: Path) -> list[dict[str, Any]]:
    rows = [record.history for record in wandb_records(file) if record.HasField("history")]
    return [
        {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in row.item}
        for row in rows
    ]


def test_wandb_offline_keeps_the_records_and_the_run(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # what is configured wins over the surroundings, but for a node that is said to be offline
    for start, mode, around in ((1, "offline", "disabled"), (3, "online", "offline")):
        monkeypatch.setenv("WANDB_MODE", around)
        with closing(opened(tmp_path, done=start, wandb=mode, wandb_project="radiology")) as log:
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
    assert config["optim"] == {"lr": 1e-5}
    rows = [
        {key: row[key] for key in row if not key.startswith("_")} | {"step": row["_step"]}
        for file in files
        for row in history(file)
    ]
    assert rows == [
        {"loss": 3.5, "valid/image_to_text/R@1": 0.25, "step": 1},
        {"loss": 2.5, "step": 2},
        {"loss": 3.5, "valid/image_to_text/R@1": 0.25, "step": 3},
        {"loss": 2.5, "step": 4},
    ]


@pytest.mark.parametrize("key", ["", "0" * 40])
def test_wandb_online_without_login_or_network_is_one_line(
    tmp_path: Path, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = {"HOME": str(tmp_path), "WANDB_API_KEY": key, "WANDB_BASE_URL": "http://127.0.0.1:9"}
    for name, value in alone.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(logger, "_WANDB_SECONDS", 1.0)
    with pytest.raises(WorkError, match="online does not work here: ") as caught:
        opened(tmp_path / "run", wandb="online")
    assert "--log.wandb offline" in str(caught.value)
    assert ("not logged in" in str(caught.value)) == (key == "")
    trouble = "not logged in" if key == "" else "http://127.0.0.1:9 can't be reached"
    assert trouble in str(logger.wandb_trouble())
