import errno
import os
import pty
import resource
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from medclip_oc.config.schema import Config
from medclip_oc.errors import InputError, Stopped, WorkError
from medclip_oc.runtime import command, distributed

PROGRAM = """
import sys
from pathlib import Path
from medclip_oc.config.schema import Config
from medclip_oc.runtime import command
from medclip_oc.runtime.progress import Progress, print_line

def main(settings):
    with Path(sys.argv[1]).open("w", encoding="utf-8") as file:
        file.write("whole")
        sys.stdin.read()
        print_line("a warning")
        Progress(2, "pairs", "embed").close()
        print("\\u0153\\udce9")
        for _ in range(int(sys.argv[2])):
            print("x" * 1000)

command.run(main, Config, prog="train", arguments=[])
"""
ENDING = """
import atexit
from medclip_oc.config.schema import Config
from medclip_oc.runtime import command

class Late:
    def __del__(self):
        print("taken apart", flush=True)

def main(settings):
    atexit.register(print, "handler")
    return 75

late = Late()
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


LIMIT = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
FILES = f"train: the {LIMIT} open files of `ulimit -n` are too few: raise it\n"


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (None, 0, ""),
        (75, 75, ""),
        (InputError("data.train: no\nsuch folder"), 2, "train: data.train: no; such folder\n"),
        (WorkError("step 3: the loss is nan"), 1, "train: step 3: the loss is nan\n"),
        (Stopped("saved"), 75, "train: saved\n"),
        (KeyboardInterrupt(), 130, ""),
        (OSError(errno.EMFILE, "Too many open files", "a.tar"), 1, FILES),
        (RuntimeError("Too many open files. Communication with the workers is"), 1, FILES),
        (SystemExit(7), 7, ""),
    ],
)
def test_exit_codes(
    error: BaseException | int | None, code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(error) == code
    out, err = capsys.readouterr()
    assert (out.strip(), err) == ("", line)


@pytest.mark.parametrize("bug", [ZeroDivisionError(), BrokenPipeError(32, "a worker went away")])
def test_a_bug_keeps_its_traceback(bug: Exception, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(bug) == 1
    shown = capfd.readouterr().err
    assert shown.startswith("Traceback")
    assert type(bug).__name__ in shown.splitlines()[-1]


LOST = "train: standard output can't be written"


@pytest.mark.parametrize(
    ("redirected", "code", "error"),
    [
        ("<&-", 0, "a warning\n"),
        (">&-", 1, f"a warning\n{LOST} (Bad file descriptor)\n"),
        (">/dev/full", 1, f"a warning\n{LOST} (No space left on device)\n"),
        ("2>&-", 0, ""),
        ("2>/dev/full", 0, ""),
        (">/dev/full 2>&1", 1, ""),
        ("<&- >&- 2>&-", 1, ""),
        ("| head -c 10; exit ${PIPESTATUS[0]}", 141, "a warning\n"),
    ],
)
def test_standard_streams_that_are_closed_or_full(
    redirected: str, code: int, error: str, tmp_path: Path
) -> None:
    words = shlex.join([sys.executable, "-c", PROGRAM, str(tmp_path / "result"), "1000"])
    done = subprocess.run(
        ["bash", "-c", f"{words} {redirected}"], input="", capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (code, error)
    assert (tmp_path / "result").read_text(encoding="utf-8") == "whole"


def test_files_are_utf_8_in_any_locale_and_terminals_get_escapes(tmp_path: Path) -> None:
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    words = [sys.executable, "-c", PROGRAM, str(tmp_path / "result"), "1"]
    env, null = {**os.environ, **locale, "PYTHONIOENCODING": "latin-1"}, subprocess.DEVNULL
    file = subprocess.run(words, stdin=null, stdout=subprocess.PIPE, env=env, check=True).stdout
    assert file.startswith("\u0153\\udce9\n".encode())
    ours, theirs = pty.openpty()
    subprocess.run(words, stdin=null, stdout=theirs, env=env, check=True)
    with os.fdopen(ours, "rb") as terminal:
        assert terminal.readline() == b"\\u0153\\udce9\r\n"
    os.close(theirs)


def test_the_end_runs_handlers_and_takes_nothing_apart() -> None:
    done = subprocess.run([sys.executable, "-c", ENDING], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (75, "handler\n", "")


def test_a_user_without_a_home_gets_one_for_now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pwd.getpwuid", lambda uid: {}[uid])
    monkeypatch.setenv("HOME", "")  # so that it comes back
    monkeypatch.delenv("HOME")
    assert run(None) == 0
    assert Path.home().is_dir()
    shutil.rmtree(Path.home())


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
    monkeypatch.delenv("RANK")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    assert run(WorkError("no")) == 1
    assert capsys.readouterr().err == "train: no (what follows is torchrun's)\n"
