import subprocess
import sys

import pytest

from medclip_oc.config.schema import Config
from medclip_oc.errors import InputError, Stopped, WorkError
from medclip_oc.runtime import command, distributed

PROGRAM = """
from medclip_oc.config.schema import Config
from medclip_oc.runtime import command

def main(settings):
    for _ in range(1000):
        print("x" * 1000)

command.run(main, Config, prog="train")
"""


def run(error: BaseException | int | None, *words: str) -> int:
    def main(_: Config) -> int | None:
        if isinstance(error, BaseException):
            raise error
        return error

    with pytest.raises(SystemExit) as end:
        command.run(main, Config, prog="train", arguments=words)
    return int(str(end.value.code))


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (None, 0, ""),
        (75, 75, ""),
        (InputError("data.train: no\nsuch folder"), 2, "train: data.train: no; such folder\n"),
        (WorkError("step 3: the loss is nan"), 1, "train: step 3: the loss is nan\n"),
        (Stopped("saved"), 75, "train: saved\n"),
        (KeyboardInterrupt(), 130, ""),
        (SystemExit(7), 7, ""),
    ],
)
def test_exit_codes(
    error: BaseException | int | None, code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(error) == code
    assert capsys.readouterr() == ("", line)


@pytest.mark.parametrize("bug", [ZeroDivisionError(), BrokenPipeError(32, "a worker went away")])
def test_a_bug_keeps_its_traceback(bug: Exception, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(bug) == 1
    shown = capfd.readouterr().err
    assert shown.startswith("Traceback")
    assert type(bug).__name__ in shown.splitlines()[-1]


def test_a_closed_pipe_ends_quietly() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(10) == b"x" * 10
        process.stdout.close()
        assert (process.wait(60), process.stderr.read()) == (141, b"")


def test_one_process_of_several_reports(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before torch is there the first of each node, afterwards the one that the store chooses."""
    monkeypatch.setenv("RANK", "4")
    monkeypatch.setattr(command, "_GRACE_SECONDS", 0)
    shown = []
    for first in (True, False):
        monkeypatch.setattr(distributed, "first_to_report", lambda first=first: first)
        assert run(WorkError("no")) == 1
        shown.append(capsys.readouterr().err)
    monkeypatch.delitem(sys.modules, "torch")
    for rank in ("0", "1"):
        monkeypatch.setenv("LOCAL_RANK", rank)
        assert run(WorkError("no")) == 1
        shown.append(capsys.readouterr().err)
        assert run(None, "--help") == 0
        shown.append(capsys.readouterr().out)
    assert list(map(bool, shown)) == [True, False, True, True, False, False]
